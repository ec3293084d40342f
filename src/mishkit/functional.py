"""The functions: `mish(input)` and its brothers, with the names and arguments of torch's own.

Every function takes, beside its input and its parameters,

inplace : bool
    Write the result over the input. Backward then uses the output and one bit an element, as with
    ``save="output"``. A leaf that requires grad is refused.
save : "input" or "output"
    What is kept for backward: the input (the exact gradient, any number of derivatives), or the
    output, which the next layer usually keeps anyway, and one bit an element (first derivative
    only; in float32 off by up to 1e-4 beside a minimum, where many inputs share an output, which
    is rounded once there and may have other last digits than without). Transforms of torch.func
    and forward mode, and compiled float64, keep the input all the same.
out : Tensor, optional
    Where to write the result, of the input's shape and dtype; not with autograd.

The input is a tensor of float32, float64, bfloat16 or float16, of any shape and strides. The result
has its dtype, shape and (where it is dense) strides. NaN gives NaN; ±inf gives the limit. Other
dtypes and layouts (complex, nested, sparse, DTensor) go to torch's own function, where it takes
them, and are refused elsewhere. torch.fx sees one call; torch.jit.trace and torch.export see
torch's own operators.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.overrides import handle_torch_function, has_torch_function_unary

from .activation import DTYPES, Activation
from .backends import torch as plain
from .functions import ACTIVATIONS
from .ops import RULES, are_transforms_active, fast_apply, wants_standard

if TYPE_CHECKING:  # what the last line of this file brings
    from ._function_types import *  # noqa: F403

Save = Literal["input", "output"]
SAVE = get_args(Save)
_NO_AUTOGRAD_WITH_OUT = "{}: out= doesn't support autograd; use torch.no_grad()"

_MOST_CHECKED = 1000
"""Sets of parameters that are remembered to be right."""

# In pieces, torch.compiler.is_compiling() and torch.jit.is_tracing() cost no more than the first.
_compiler = torch.compiler
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_is_tracing: Callable[[], bool] = torch._C._is_tracing
_is_grad_enabled = torch.is_grad_enabled

_REFUSALS = (RuntimeError, TypeError)
"""How operators refuse tensors; TypeError is how those of other libraries' subclasses do."""


class _Call:
    """How one function is called: everything but the plainest case, which `_public` has."""

    public: Callable[..., Tensor]

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
        """Under torch.compile, torch.export or torch.jit.trace: plain torch, for the compiler to
        fuse, or torch's own operators."""
        needs_grad = self.check(x, inplace, save, out)
        self.check_turn(parameters, inplace and needs_grad, save)
        # Another dtype is refused by the formula: how compiled code fails for it depends on torch.
        if wants_standard() or (x.dtype in DTYPES and _is_foreign(x)):
            return self.standard(x, parameters, inplace, out)
        if self.keeps_output(x, parameters, inplace, save):
            y = self.rules.traced(x, *parameters)
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

    def standard(
        self, x: Tensor, parameters: tuple[float, ...], inplace: bool, out: Tensor | None
    ) -> Tensor:
        """By torch's own operators."""
        y = self.a.portable(x.clone() if inplace else x, *parameters)
        target = x if inplace else out
        return y if target is None else target.copy_(y)

    def refused(
        self,
        error: Exception,
        x: Tensor,
        parameters: tuple[float, ...] = (),
        inplace: bool = False,
        out: Tensor | None = None,
    ) -> Tensor:
        """What our operators refused: torch's own may take it."""
        if not _is_foreign(x):
            raise error
        # That its operations take another dtype does not define a formula for it.
        if x.dtype in DTYPES or self.a.torch_function is not None:
            try:
                return self.standard(x, parameters, inplace, out)
            except (RuntimeError, TypeError) as error_of_torch:
                error = error_of_torch
        raise RuntimeError(
            f"{self.name}: expected a tensor of float32, float64, bfloat16 or float16, got "
            f"{_described(x)}"
        ) from error

    def special(
        self, x: Tensor, parameters: tuple[float, ...], inplace: bool, save: str, out: Tensor | None
    ) -> Tensor:
        """Eager calls with `inplace`, `out` or `save="output"`, or of what is no tensor."""
        if not isinstance(x, Tensor) and has_torch_function_unary(x):  # a proxy of torch.fx
            options = {"inplace": inplace, "save": save, "out": out}
            given = {name: v for name, v in options.items() if v not in (False, "input", None)}
            return handle_torch_function(self.public, (x,), x, *parameters, **given)
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
        try:
            if needs_grad:
                return (self.in_place if inplace else self.saving_output)(x, *parameters)
            if target is None:
                return self.rules.forward(x, *parameters)
            self.rules.forward_out(x, target, *parameters)
        except _REFUSALS as error:
            return self.refused(error, x, parameters, inplace, out)
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
        standard = wants_standard()
        if wants_output and not standard:
            raise ValueError(
                f'{self.name}: save="output" and inplace=True need parameters that are '
                "numbers; the gradients of tensors need the input"
            )
        if out is not None and needs_grad:
            raise RuntimeError(_NO_AUTOGRAD_WITH_OUT.format(self.name))
        if standard:
            y = self.a.portable(x, *plain.by_channel(parameters.to(x.dtype), x))
        elif _compiler.is_compiling() or are_transforms_active() or forward_ad._current_level >= 0:
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
                # Added, and not formatted: Dynamo of torch 2.10 would lose the first half.
                raise ValueError(
                    error.args[0] + '; save="output" and inplace=True need that'
                ) from None

    def check(self, x: Tensor, inplace: bool, save: str, out: Tensor | None) -> bool:
        """Refuse what goes wrong whatever the parameters; whether x needs a gradient."""
        name = self.name
        if save not in SAVE:
            raise ValueError(f'{name}: save must be "input" or "output", not {save!r}')
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: the input must be a tensor, not {type(x).__name__}")
        if not isinstance(inplace, bool):
            raise TypeError(f"{name}: inplace must be True or False, not {inplace!r}")
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


def _is_foreign(x: Tensor) -> bool:
    """Whether no operator of ours is meant for it."""
    distributed = sys.modules.get("torch.distributed.tensor")
    return (
        x.dtype not in DTYPES
        or x.layout is not torch.strided
        or x.is_nested
        or (distributed is not None and isinstance(x, distributed.DTensor))
    )


def _described(x: Tensor) -> str:
    kinds = [str(x.dtype)]
    if x.layout is not torch.strided:
        kinds.append(str(x.layout))
    if x.is_nested:
        kinds.append("nested")
    return " ".join(kind.removeprefix("torch.") for kind in kinds)


def _plain_function(a: Activation) -> tuple[_Call, Callable[..., Tensor]]:
    call = _Call(a)
    rules = call.rules
    forward, saving_input = rules.forward, fast_apply(rules.saving_input)
    transformed = rules.saving_input.apply

    def function(
        input: Tensor, inplace: bool = False, *, save: str = "input", out: Tensor | None = None
    ) -> Tensor:
        if _is_dynamo_compiling() or _compiler._is_compiling_flag or _is_tracing():
            return call.traced(input, (), inplace, save, out)
        if inplace or save != "input" or out is not None or not isinstance(input, Tensor):
            return call.special(input, (), inplace, save, out)
        try:
            if are_transforms_active():
                return transformed(input)
            if (input.requires_grad and _is_grad_enabled()) or forward_ad._current_level >= 0:
                return saving_input(input)
            return forward(input)
        except _REFUSALS as error:
            return call.refused(error, input)

    return call, function


def _parametric_function(a: Activation) -> tuple[_Call, Callable[..., Tensor]]:
    call = _Call(a)
    rules = call.rules
    saving_input = fast_apply(rules.saving_input)
    checked = {a.defaults}

    def function(
        input: Tensor, values: tuple[Any, ...], inplace: bool, save: str, out: Tensor | None
    ) -> Tensor:
        parameters = values
        is_traced = _is_dynamo_compiling() or _compiler._is_compiling_flag or _is_tracing()
        if is_traced or values not in checked:
            if not isinstance(input, Tensor):
                return call.special(input, values, inplace, save, out)
            if a.trainable and any(isinstance(value, Tensor) for value in values):
                return call.trained(input, values, inplace, save, out)
            parameters = tuple(float(value) for value in values)
            a.check(*parameters)
            if not is_traced and len(checked) < _MOST_CHECKED:
                checked.add(parameters)
        if is_traced:
            return call.traced(input, parameters, inplace, save, out)
        if inplace or save != "input" or out is not None or not isinstance(input, Tensor):
            return call.special(input, parameters, inplace, save, out)
        try:
            if are_transforms_active():
                return rules.saving_input.apply(input, *parameters)
            if (input.requires_grad and _is_grad_enabled()) or forward_ad._current_level >= 0:
                return saving_input(input, *parameters)
            return rules.forward(input, *parameters)
        except _REFUSALS as error:
            return call.refused(error, input, parameters)

    # A function with these very arguments: binding them to a signature at each call takes 3 µs.
    names = [p.name for p in a.parameters]
    head = ", ".join(f"{p.name}={p.default!r}" for p in a.parameters)
    # The package says whose code it is. With a __name__, Dynamo would look for it in that module.
    made: dict[str, Any] = {"__package__": __package__, "function": function}
    exec(
        f"def {a.name}(input, {head}, inplace=False, *, save='input', out=None):\n"
        f"    return function(input, ({', '.join(names)},), inplace, save, out)",
        made,
    )
    return call, made[a.name]


def _signature(a: Activation) -> list[inspect.Parameter]:
    kind = inspect.Parameter
    either, keyword = kind.POSITIONAL_OR_KEYWORD, kind.KEYWORD_ONLY
    value = float | Tensor if a.trainable else float
    return [
        kind("input", either, annotation=Tensor),
        *(kind(p.name, either, default=p.default, annotation=value) for p in a.parameters),
        kind("inplace", either, default=False, annotation=bool),
        kind("save", keyword, default="input", annotation=Save),
        kind("out", keyword, default=None, annotation=Tensor | None),
    ]


def _document(a: Activation) -> str:
    lines = [f"{a.formula}, elementwise.", "", f"Source: {a.source}.", ""]
    lines += [f"The function {_shape(a)}."]
    if a.trainable:
        lines += [
            "",
            "Tensors as parameters, of one element or one a channel (dimension 1 of the input),",
            "get gradients, which are summed in float32 (float64 for float64); they exclude",
            'save="output".',
        ]
    kind = "float or Tensor" if a.trainable else "float"
    lines += ["", "Parameters", "----------", INPUT]
    lines += [f"{p.name} : {kind}, default {p.default:g}\n    {p.meaning}" for p in a.parameters]
    lines += [OPTIONS, OUT]
    return "\n".join(lines)


INPUT = """\
input : Tensor
    of float32, float64, bfloat16 or float16, and any shape and strides; others go to
    torch's own function, if it takes them"""
OPTIONS = """\
inplace : bool, default False
    write the result over the input; backward then uses the output and one bit an element
save : "input" or "output", default "input"
    what is kept for backward: the input (the exact gradient, any number of derivatives), or the
    output, which the next layer usually keeps anyway, and one bit an element (first derivative
    only)"""
OUT = """\
out : Tensor, optional
    where to write the result, of the input's shape and dtype; not with autograd"""


def _shape(a: Activation) -> str:
    turn = a.turn_at(*a.defaults)
    if turn is None:
        return "is monotone"
    where = " (with these defaults)" if callable(a.turn) else ""
    return f"falls to its minimum at x = {turn:.7g}{where}, then rises"


def _public(a: Activation) -> Callable[..., Tensor]:
    call, function = (_parametric_function if a.parameters else _plain_function)(a)
    call.public = function
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
    save: Save = "input",
    out: Tensor | None = None,
) -> Tensor:
    """x·Φ(x), elementwise; with ``approximate="tanh"``, its tanh form (`gelu_tanh`).

    Source: Hendrycks & Gimpel 2016, Gaussian Error Linear Units (arXiv:1606.08415).

    Parameters
    ----------
    input : Tensor
        of float32, float64, bfloat16 or float16, and any shape and strides; others go to
        torch's own function, if it takes them
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element
    approximate : "none" or "tanh", default "none"
        which form
    save : "input" or "output", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives), or the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only)
    out : Tensor, optional
        where to write the result, of the input's shape and dtype; not with autograd
    """
    if approximate not in _GELU:
        raise ValueError(f'mishkit.gelu: approximate must be "none" or "tanh", not {approximate!r}')
    return _GELU[approximate](input, inplace, save=save, out=out)


FUNCTIONS["gelu"] = gelu
globals().update(FUNCTIONS)
