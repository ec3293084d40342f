"""How the public functions are called: the code they share, except for the simplest case."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from ._mode import (
    are_transforms_active,
    compiler,
    is_dynamo_compiling,
    is_grad_enabled,
    is_tracing,
    is_transformed,
    wants_standard,
)
from ._torch_private import increment_versions
from .activation import DTYPES, Activation
from .backends import torch as plain
from .export import exported, portable
from .ops.functions import RULES, fast_apply

Save = Literal["input", "output", "copy"]
SAVE = get_args(Save)
_NO_AUTOGRAD_WITH_OUT = "{}: out= doesn't support autograd; use torch.no_grad()"

MOST_CHECKED = 1000
"""How many sets of valid parameters are remembered, so that they aren't checked again."""

REFUSALS = (RuntimeError, TypeError)
"""How operators reject tensors; subclasses from other libraries raise TypeError."""


class Call:
    """How one function is called, except for the simplest case, which `functional` handles."""

    public: Callable[..., Tensor]
    """The function of `mishkit.functional`."""

    def __init__(self, a: Activation) -> None:
        self.a = a
        self.name = f"mishkit.{a.name}"
        self.rules = RULES[a.name]
        self.forward = self.rules.forward
        self.forward_out = self.rules.forward_out
        self.saving_input = fast_apply(self.rules.saving_input)
        self.transformed = self.rules.saving_input.apply
        self.saving_output = fast_apply(self.rules.saving_output)
        self.in_place = fast_apply(self.rules.in_place)
        self.copying = fast_apply(self.rules.copying)
        if self.rules.trained is not None:
            self.training = fast_apply(self.rules.trained)

    def traced(
        self, x: Tensor, parameters: tuple[float, ...], inplace: bool, save: str, out: Tensor | None
    ) -> Tensor:
        """Under torch.compile, torch.export or torch.jit.trace: use plain torch, which the compiler
        can fuse, or torch's own operators.
        """
        needs_grad = self.check(x, inplace, save, out)
        self.check_turn(parameters, inplace and needs_grad, save)
        # The formula rejects other dtypes; how compiled code then fails depends on the torch
        # version.
        if wants_standard() or (x.dtype in DTYPES and (unsuited(x) or is_distributed(x))):
            return self.standard(x, parameters, inplace, out)
        if self.keeps_output(x, parameters, inplace, save):
            y = self.rules.traced(x, *parameters)
        else:
            # In place, autograd still needs the original x.
            kept = x.clone() if inplace or save == "copy" else x
            y = plain.forward(self.a, kept, *parameters)
        target = x if inplace else out
        return y if target is None else target.copy_(y)

    def keeps_output(
        self, x: Tensor, parameters: tuple[float, ...], inplace: bool, save: str
    ) -> bool:
        """Whether compiled code works from the output. It doesn't where f is inverted iteratively,
        as in float64, because that would unroll into thousands of operations.
        """
        wanted = save == "output" or (inplace and save != "copy")
        unrolls = x.dtype == torch.float64 or self.a.iterates(*parameters)
        return wanted and not unrolls and x.requires_grad and torch.is_grad_enabled()

    def standard(
        self, x: Tensor, parameters: Sequence[Any], inplace: bool, out: Tensor | None
    ) -> Tensor:
        """Compute with torch's own operators."""
        write = exported if wants_standard() else portable
        y = write(self.a, x.clone() if inplace else x, parameters)
        target = x if inplace else out
        return y if target is None else target.copy_(y)

    def refused(
        self,
        error: Exception,
        x: Tensor,
        parameters: Sequence[Any] = (),
        inplace: bool = False,
        save: str = "input",
        out: Tensor | None = None,
    ) -> Tensor:
        """Handle a tensor that our operators rejected: torch's own operators may accept it."""
        kind = unsuited(x)
        if not kind and is_distributed(x):
            if not inplace and out is None:
                return self.on_parts(x, parameters, save)
            kind = "a DTensor"
        if not kind:
            raise error
        # That torch's operations accept another dtype does not mean the formula is defined for it.
        if x.dtype in DTYPES or self.a.torch_function is not None:
            try:
                return self.standard(x, parameters, inplace, out)
            except (RuntimeError, TypeError) as error_of_torch:
                error = error_of_torch
        raise RuntimeError(
            f"{self.name}: expected a tensor of float32, float64, bfloat16 or float16, got {kind}"
        ) from error

    def on_parts(self, x: Any, parameters: Sequence[Any], save: str) -> Tensor:
        """Compute a DTensor: each process computes its own part, as the function is elementwise."""
        # f of a sum is not the sum of f, so pending sums over processes are reduced first.
        distributed = sys.modules["torch.distributed.tensor"]
        placements = [distributed.Replicate() if p.is_partial() else p for p in x.placements]
        x = x.redistribute(placements=placements)
        y = self.public(x.to_local(), *parameters, save=save)
        return type(x).from_local(  # type: ignore[no-any-return]
            y, x.device_mesh, placements, run_check=False, shape=x.shape, stride=x.stride()
        )

    def special(
        self, x: Tensor, parameters: tuple[float, ...], inplace: bool, save: str, out: Tensor | None
    ) -> Tensor:
        """Eager calls with `inplace`, `out` or `save="output"`, or whose input isn't a Tensor."""
        if (
            (out is None) is inplace  # there is one target, and `inplace` is a bool
            and save == "input"
            and isinstance(x, Tensor)
            and not are_transforms_active()
            and forward_ad._current_level < 0
        ):
            target = x if out is None else out
            if not ((x.requires_grad or target.requires_grad) and is_grad_enabled()):
                try:
                    # The operator checks the tensors, in a fraction of the time it would take here.
                    self.forward_out(x, target, *parameters)
                except REFUSALS:
                    return self.checked(x, parameters, inplace, save, out)
                # Tell autograd that a tensor it may have saved is overwritten.
                increment_versions((target,))
                return target
        return self.checked(x, parameters, inplace, save, out)

    def checked(
        self, x: Tensor, parameters: tuple[float, ...], inplace: bool, save: str, out: Tensor | None
    ) -> Tensor:
        """The general case of `special`."""
        if not isinstance(x, Tensor) and has_torch_function_unary(x):  # a proxy of torch.fx
            options = {"inplace": inplace, "save": save, "out": out}
            options = {name: v for name, v in options.items() if v not in (False, "input", None)}
            return handle_torch_function(self.public, (x,), x, *parameters, **options)
        needs_grad = self.check(x, inplace, save, out)
        self.check_turn(parameters, inplace and needs_grad, save)
        target = x if inplace else out
        if target is not None and target.is_neg():
            raise RuntimeError(
                f"{self.name}: can't write over a lazily negated tensor; resolve_neg() it"
            )
        if is_transformed():
            # Transforms may ask for any derivative in any mode, which requires keeping the input.
            y = self.rules.saving_input.apply(x.clone() if inplace else x, *parameters)
            return y if target is None else target.copy_(y)
        try:
            if needs_grad and save == "copy":
                if inplace:
                    return self.copying(x, x.clone(), *parameters)
                return self.saving_input(x.clone(), *parameters)
            if needs_grad:
                return (self.in_place if inplace else self.saving_output)(x, *parameters)
            if target is None:
                return self.rules.forward(x, *parameters)
            self.rules.forward_out(x, target, *parameters)
        except REFUSALS as error:
            return self.refused(error, x, parameters, inplace, save, out)
        increment_versions((target,))
        return target

    def trained(
        self, x: Tensor, values: tuple[Any, ...], inplace: bool, save: str, out: Tensor | None
    ) -> Tensor:
        """Calls with tensors among the parameters."""
        self.check(x, inplace, save, out)
        parameters = self.stack(x, values)
        needs_grad = is_grad_enabled() and (x.requires_grad or parameters.requires_grad)
        wants_output = save == "output" or (inplace and needs_grad and save != "copy")
        standard = wants_standard()
        if wants_output and not standard:
            raise ValueError(
                f'{self.name}: save="output" and inplace=True need parameters that are '
                'numbers; the gradients of tensors need the input, or with save="copy" a copy'
            )
        if out is not None and needs_grad:
            raise RuntimeError(_NO_AUTOGRAD_WITH_OUT.format(self.name))
        # For distributed tensors, torch knows how to sum the gradients of the plain tensors used
        # with them.
        standard = standard or is_distributed(x)
        rows = plain.by_channel(parameters.to(x.dtype), x) if standard or unsuited(x) else ()
        kept = x.clone() if needs_grad and save == "copy" else x
        if standard:
            write = exported if wants_standard() else portable
            y = write(self.a, kept, rows)
        elif rows:
            return self.refused(TypeError(), x, rows, inplace, save, out)
        elif compiler.is_compiling() or is_transformed():
            y = plain.trained(self.a, kept, parameters)
        elif needs_grad:
            y = self.training(kept, parameters)
        else:
            assert self.rules.trained_forward is not None
            y = self.rules.trained_forward(x, parameters)
        target = x if inplace else out
        return y if target is None else target.copy_(y)

    def stack(self, x: Tensor, values: tuple[Any, ...]) -> Tensor:
        """The parameters as one tensor, in the form the operators take."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        rows = [torch.as_tensor(v, dtype=dtype, device=x.device).reshape(-1) for v in values]
        channels = max(row.numel() for row in rows)
        for parameter, row in zip(self.a.parameters, rows, strict=True):
            if row.numel() not in (1, channels) or not row.numel():
                raise ValueError(
                    f"mishkit.{self.a.name}: {parameter.name} has {row.numel()} values where "
                    f"another parameter has {channels}"
                )
        if channels > 1 and (x.dim() < 2 or x.shape[1] != channels):
            raise ValueError(
                f"mishkit.{self.a.name}: {channels} values a parameter need as many channels in "
                f"dimension 1 of the input, whose shape is {tuple(x.shape)}"
            )
        return torch.stack([row.expand(channels) for row in rows])

    def check_turn(self, parameters: tuple[float, ...], loses_input: bool, save: str) -> None:
        """Reject working from the output if the output and one bit don't determine the gradient."""
        if save == "output" or (loses_input and save != "copy"):
            try:
                self.a.turn_at(*parameters)
            except ValueError as error:
                # Concatenated rather than formatted: Dynamo in torch 2.10 would lose the first
                # half.
                raise ValueError(
                    error.args[0] + '; save="output" and inplace=True need that'
                ) from None

    def check(self, x: Tensor, inplace: bool, save: str, out: Tensor | None) -> bool:
        """Reject calls that are wrong for any parameters; returns whether x needs a gradient."""
        name = self.name
        if save not in SAVE:
            raise ValueError(f'{name}: save must be "input", "output" or "copy", not {save!r}')
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: the input must be a tensor, not {type(x).__name__}")
        if not isinstance(inplace, bool):
            raise TypeError(f"{name}: inplace must be True or False, not {inplace!r}")
        needs_grad = is_grad_enabled() and x.requires_grad
        if inplace and out is not None:
            raise ValueError(f"{name}: inplace=True and out= exclude each other")
        if inplace and needs_grad and x.is_leaf:
            raise RuntimeError(f"{name}: a leaf that requires grad can't be changed in place")
        if out is None:
            return needs_grad
        if needs_grad or (is_grad_enabled() and out.requires_grad):
            raise RuntimeError(_NO_AUTOGRAD_WITH_OUT.format(name))
        plain.check_out(self.a.name, x, out)
        return needs_grad


def unsuited(x: Tensor) -> str:
    """A description of the kind of tensor if none of our operators supports it, otherwise ""."""
    if x.dtype in DTYPES and x.layout is torch.strided and not x.is_nested:
        return ""
    kinds = [str(x.dtype)]
    if x.layout is not torch.strided:
        kinds.append(str(x.layout))
    if x.is_nested:
        kinds.append("nested")
    return " ".join(kind.removeprefix("torch.") for kind in kinds)


def is_distributed(x: Tensor) -> bool:
    """Whether it is a DTensor."""
    distributed = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and isinstance(x, distributed.DTensor)


def with_parameters(call: Call) -> Callable[..., Tensor]:
    """The public call of a function whose parameters arrive as a tuple."""
    a, forward, saving_input = call.a, call.forward, call.saving_input
    checked = {a.defaults}

    def function(
        input: Tensor, values: tuple[Any, ...], inplace: bool, save: str, out: Tensor | None
    ) -> Tensor:
        parameters = values
        is_traced = is_dynamo_compiling() or compiler._is_compiling_flag or is_tracing()
        if is_traced or values not in checked:
            if not isinstance(input, Tensor):
                return call.special(input, values, inplace, save, out)
            if a.trainable and any(isinstance(value, Tensor) for value in values):
                return call.trained(input, values, inplace, save, out)
            parameters = tuple(float(value) for value in values)
            a.check(*parameters)
            if not is_traced and len(checked) < MOST_CHECKED:
                checked.add(parameters)
        if is_traced:
            return call.traced(input, parameters, inplace, save, out)
        if inplace or save != "input" or out is not None or not isinstance(input, Tensor):
            return call.special(input, parameters, inplace, save, out)
        try:
            if are_transforms_active():
                return call.transformed(input, *parameters)
            if (input.requires_grad and is_grad_enabled()) or forward_ad._current_level >= 0:
                return saving_input(input, *parameters)
            return forward(input, *parameters)
        except REFUSALS as error:
            return call.refused(error, input, parameters)

    return function
