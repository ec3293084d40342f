"""The functions: `mish(input)` and its brothers, with the names and arguments of torch's own.

Every function takes, beside its input and its parameters,

inplace : bool
    Write the result over the input. Backward then uses the output and one bit an element, as with
    ``save="output"``. A leaf that requires grad is refused.
save : "input" or "output"
    What is kept for backward: the input (the exact gradient, any number of derivatives), or the
    output, which the next layer usually keeps anyway, and one bit an element (first derivative
    only). Transforms of torch.func and forward mode, and compiled float64, keep the input all the
    same.
out : Tensor, optional
    Where to write the result, of the input's shape and dtype; not with autograd.

The input is a tensor of float32, float64, bfloat16 or float16, of any shape and strides. The result
has its dtype, shape and (where it is dense) strides. NaN gives NaN; ±inf gives the limit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.autograd.graph import increment_version

from .activation import Activation
from .backends import torch as plain
from .functions import ACTIVATIONS
from .ops import RULES, are_transforms_active, fast_apply

if TYPE_CHECKING:  # what the last line of this file brings
    from ._function_types import *  # noqa: F403

SAVE = ("input", "output")
_NO_AUTOGRAD_WITH_OUT = "{}: out= doesn't support autograd; use torch.no_grad()"

_MOST_CHECKED = 1000
"""Sets of parameters that are remembered to be right."""

_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled


class _Call:
    """How one function is called: everything but the plainest case, which `_public` has."""

    def __init__(self, a: Activation) -> None:
        self.a = a
        self.name = f"mishkit.{a.name}"
        self.rules = RULES[a.name]
        self.saving_output = fast_apply(self.rules.saving_output)
        self.in_place = fast_apply(self.rules.in_place)
        if self.rules.trained is not None:
            self.training = fast_apply(self.rules.trained)

    def traced(
        self, x: Tensor, parameters: tuple[float, ...], inplace: bool, save: str, out: Tensor | None
    ) -> Tensor:
        """Under torch.compile or torch.export: plain torch, for the compiler to fuse."""
        needs_grad = self.check(x, inplace, save, out)
        self.check_turn(parameters, inplace and needs_grad, save)
        if torch.compiler.is_exporting():
            y = self.a.portable(x, *parameters)
        elif self.keeps_output(x, parameters, inplace, save):
            y = self.rules.traced.apply(x, *parameters)
        else:
            # In place, autograd needs what x was.
            y = plain.forward(self.a, x.clone() if inplace else x, *parameters)
        target = x if inplace else out
        return y if target is None else target.copy_(y)

    def keeps_output(
        self, x: Tensor, parameters: tuple[float, ...], inplace: bool, save: str
    ) -> bool:
        """Whether compiled code works from the output: not where inverting f step by step, as in
        float64, would unroll into thousands of operations."""
        wanted = inplace or save == "output"
        unrolls = x.dtype == torch.float64 or self.a.iterates(*parameters)
        return wanted and not unrolls and x.requires_grad and torch.is_grad_enabled()

    def special(
        self, x: Tensor, parameters: tuple[float, ...], inplace: bool, save: str, out: Tensor | None
    ) -> Tensor:
        """Eager calls with `inplace`, `out` or `save="output"`."""
        needs_grad = self.check(x, inplace, save, out)
        self.check_turn(parameters, inplace and needs_grad, save)
        target = x if inplace else out
        if target is not None and target.is_neg():
            raise RuntimeError(
                f"{self.name}: can't write over a lazily negated tensor; resolve_neg() it"
            )
        if are_transforms_active() or forward_ad._current_level >= 0:
            # Transforms may ask for any derivative, in any mode: only the input answers that.
            y = self.rules.saving_input.apply(x.clone() if inplace else x, *parameters)
            return y if target is None else target.copy_(y)
        if needs_grad:
            return (self.in_place if inplace else self.saving_output)(x, *parameters)
        if target is None:
            return self.rules.forward(x, *parameters)
        self.rules.forward_out(x, target, *parameters)
        # Autograd must know that what it may have saved is gone; inference tensors are never saved.
        if not target.is_inference():
            increment_version(target)
        return target

    def trained(
        self, x: Tensor, values: tuple[Any, ...], inplace: bool, save: str, out: Tensor | None
    ) -> Tensor:
        """Calls with tensors among the parameters."""
        self.check(x, inplace, save, out)
        parameters = self.stack(x, values)
        needs_grad = _is_grad_enabled() and (x.requires_grad or parameters.requires_grad)
        wants_output = save == "output" or (inplace and needs_grad)
        if wants_output and not torch.compiler.is_exporting():
            raise ValueError(
                f'{self.name}: save="output" and inplace=True need parameters that are '
                "numbers; the gradients of tensors need the input"
            )
        if out is not None and needs_grad:
            raise RuntimeError(_NO_AUTOGRAD_WITH_OUT.format(self.name))
        if torch.compiler.is_exporting():
            y = self.a.portable(x, *plain.by_channel(parameters.to(x.dtype), x))
        elif _is_compiling() or are_transforms_active() or forward_ad._current_level >= 0:
            y = plain.trained(self.a, x, parameters)
        elif needs_grad:
            y = self.training(x, parameters)
        else:
            assert self.rules.trained_forward is not None
            y = self.rules.trained_forward(x, parameters)
        target = x if inplace else out
        return y if target is None else target.copy_(y)

    def stack(self, x: Tensor, values: tuple[Any, ...]) -> Tensor:
        """The parameters as the operators take them."""
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
        """Refuse to work from the output where that and a bit don't determine the gradient."""
        if save == "output" or loses_input:
            try:
                self.a.turn_at(*parameters)
            except ValueError as error:
                raise ValueError(f'{error}; save="output" and inplace=True need one') from None

    def check(self, x: Tensor, inplace: bool, save: str, out: Tensor | None) -> bool:
        """Refuse what goes wrong whatever the parameters; whether x needs a gradient."""
        name = self.name
        if save not in SAVE:
            raise ValueError(f'{name}: save must be "input" or "output", not {save!r}')
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: the input must be a tensor, not {type(x).__name__}")
        needs_grad = _is_grad_enabled() and x.requires_grad
        if inplace and out is not None:
            raise ValueError(f"{name}: inplace=True and out= exclude each other")
        if inplace and needs_grad and x.is_leaf:
            raise RuntimeError(f"{name}: a leaf that requires grad can't be changed in place")
        if out is None:
            return needs_grad
        if needs_grad or (_is_grad_enabled() and out.requires_grad):
            raise RuntimeError(_NO_AUTOGRAD_WITH_OUT.format(name))
        if out.shape != x.shape or out.dtype != x.dtype or out.device != x.device:
            raise ValueError(
                f"{name}: out must be {x.dtype} of shape {tuple(x.shape)} on {x.device}, "
                f"not {out.dtype} of shape {tuple(out.shape)} on {out.device}"
            )
        return needs_grad


def _plain_function(a: Activation) -> Callable[..., Tensor]:
    call = _Call(a)
    rules = call.rules
    forward, saving_input = rules.forward, fast_apply(rules.saving_input)
    transformed = rules.saving_input.apply

    def function(
        input: Tensor, inplace: bool = False, *, save: str = "input", out: Tensor | None = None
    ) -> Tensor:
        if _is_compiling():
            return call.traced(input, (), inplace, save, out)
        if inplace or save != "input" or out is not None or not isinstance(input, Tensor):
            return call.special(input, (), inplace, save, out)
        if are_transforms_active():
            return transformed(input)
        if (input.requires_grad and _is_grad_enabled()) or forward_ad._current_level >= 0:
            return saving_input(input)
        return forward(input)

    return function


def _parametric_function(a: Activation) -> Callable[..., Tensor]:
    call = _Call(a)
    rules = call.rules
    saving_input = fast_apply(rules.saving_input)
    checked = {a.defaults}

    def function(
        input: Tensor, values: tuple[Any, ...], inplace: bool, save: str, out: Tensor | None
    ) -> Tensor:
        parameters = values
        if _is_compiling() or values not in checked:
            if a.trainable and any(isinstance(value, Tensor) for value in values):
                return call.trained(input, values, inplace, save, out)
            parameters = tuple(float(value) for value in values)
            a.check(*parameters)
            if not _is_compiling() and len(checked) < _MOST_CHECKED:
                checked.add(parameters)
        if _is_compiling():
            return call.traced(input, parameters, inplace, save, out)
        if inplace or save != "input" or out is not None or not isinstance(input, Tensor):
            return call.special(input, parameters, inplace, save, out)
        if are_transforms_active():
            return rules.saving_input.apply(input, *parameters)
        if (input.requires_grad and _is_grad_enabled()) or forward_ad._current_level >= 0:
            return saving_input(input, *parameters)
        return rules.forward(input, *parameters)

    # A function with these very arguments: binding them to a signature at each call takes 3 µs.
    names = [p.name for p in a.parameters]
    head = ", ".join(f"{p.name}={p.default!r}" for p in a.parameters)
    made: dict[str, Any] = {"__name__": __name__, "function": function}
    exec(
        f"def {a.name}(input, {head}, inplace=False, *, save='input', out=None):\n"
        f"    return function(input, ({', '.join(names)},), inplace, save, out)",
        made,
    )
    return made[a.name]


def _signature(a: Activation) -> list[inspect.Parameter]:
    kind = inspect.Parameter
    either, keyword = kind.POSITIONAL_OR_KEYWORD, kind.KEYWORD_ONLY
    value = float | Tensor if a.trainable else float
    return [
        kind("input", either, annotation=Tensor),
        *(kind(p.name, either, default=p.default, annotation=value) for p in a.parameters),
        kind("inplace", either, default=False, annotation=bool),
        kind("save", keyword, default="input", annotation=str),
        kind("out", keyword, default=None, annotation=Tensor | None),
    ]


def _document(a: Activation) -> str:
    lines = [f"{a.formula}, elementwise.", "", f"Source: {a.source}.", ""]
    lines += [f"The function {_shape(a)}."]
    lines += ["See `mishkit.functional` for `inplace`, `save` and `out`."]
    if a.trainable:
        lines += [
            "",
            "Tensors as parameters, of one element or one a channel (dimension 1 of the input),",
            "get gradients, which are summed in float32 (float64 for float64); they exclude",
            'save="output".',
        ]
    if a.parameters:
        kind = "float or Tensor" if a.trainable else "float"
        lines += ["", "Parameters", "----------"]
        lines += [
            f"{p.name} : {kind}, default {p.default:g}\n    {p.meaning}" for p in a.parameters
        ]
    return "\n".join(lines)


def _shape(a: Activation) -> str:
    turn = a.turn_at(*a.defaults)
    if turn is None:
        return "is monotone"
    where = " (with these defaults)" if callable(a.turn) else ""
    return f"falls to its minimum at x = {turn:.7g}{where}, then rises"


def _public(a: Activation) -> Callable[..., Tensor]:
    function = (_parametric_function if a.parameters else _plain_function)(a)
    function.__name__ = function.__qualname__ = a.name
    function.__doc__ = _document(a)
    function.__module__ = "mishkit"
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        _signature(a), return_annotation=Tensor
    )
    return function


FUNCTIONS = {name: _public(a) for name, a in ACTIVATIONS.items()}
"""The public functions by name; `mishkit.gelu` chooses between two of them."""

_GELU = {"none": FUNCTIONS["gelu"], "tanh": FUNCTIONS["gelu_tanh"]}


def gelu(
    input: Tensor,
    inplace: bool = False,
    *,
    approximate: str = "none",
    save: str = "input",
    out: Tensor | None = None,
) -> Tensor:
    """x·Φ(x), elementwise; with ``approximate="tanh"``, its tanh form (`gelu_tanh`).

    Source: Hendrycks & Gimpel 2016, Gaussian Error Linear Units (arXiv:1606.08415).

    See `mishkit.functional` for `inplace`, `save` and `out`.
    """
    if approximate not in _GELU:
        raise ValueError(f'mishkit.gelu: approximate must be "none" or "tanh", not {approximate!r}')
    return _GELU[approximate](input, inplace, save=save, out=out)


FUNCTIONS["gelu"] = gelu
globals().update(FUNCTIONS)
