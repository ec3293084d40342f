"""(1 − t)·f(x) + t·g(x) for two functions of the table: the operators and their autograd.

    mishkit::blend(input, f, f_0, ..., g, g_0, ..., t) -> output
    mishkit::blend_backward(grad, input, f, f_0, ..., g, g_0, ..., t) -> grad_input

f and g are places in the table, each followed by as many numbers as the function with the most
parameters has; those that a function does not have are not read. (Plain numbers, because lists
and strings are not as plainly read through the stable C ABI.) t is from 0 to 1; at 0 the result is
that of f alone, to the bit, and at 1 that of g. Results have the strides of
`torch.empty_like(input)`. Where one of the two tends to +inf and the other to −inf, as only negated
forms of `aptx` do, an infinite input gives NaN.

The operators know nothing of autograd: `call` does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from .activation import Activation
from .backends import torch as plain
from .backends import triton
from .functions import ACTIVATIONS
from .ops import are_transforms_active, fast_apply, operator, saving_input

_TABLE = tuple(ACTIVATIONS.values())
_PLACES = {name: place for place, name in enumerate(ACTIVATIONS)}
NUMBERS = max(len(a.parameters) for a in _TABLE)
"""How many numbers follow each function."""

_NUMBERS = ", ".join(f"{{0}} {{1}}{i}" for i in range(NUMBERS))
_BOTH = "".join(f", int {name}, {_NUMBERS.format('float', name + '_')}" for name in "fg")
SCHEMAS = {
    "blend": f"(Tensor input{_BOTH}, float t) -> Tensor",
    "blend_backward": f"(Tensor grad, Tensor input{_BOTH}, float t) -> Tensor",
}


def function(name: str, *parameters: float) -> tuple[float, ...]:
    """A function with its parameters, as the operators take it."""
    return _PLACES[name], *map(float, parameters), *(0.0,) * (NUMBERS - len(parameters))


# ---- plain torch -------------------------------------------------------------------------------


def mix(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """(1 − t)·a + t·b, for t a number above 0 and below 1, or a tensor () from 0 to 1.

    A difference of infinities never arises, as it does in torch.lerp.
    """
    if not isinstance(t, Tensor):
        return (1 - t) * a + t * b
    if a.dtype == torch.float64:
        t = t.double()
    return torch.where(t <= 0, a, torch.where(t >= 1, b, (1 - t) * a + t * b))


def _mixed(formula: str) -> Callable[..., Tensor]:
    def mixed(x: Tensor, *arguments: Any) -> Tensor:
        *both, t = arguments
        (a, of_a), (b, of_b) = _split(both)
        if not isinstance(t, Tensor) and (t <= 0 or t >= 1):
            return getattr(b, formula)(x, *of_b) if t >= 1 else getattr(a, formula)(x, *of_a)
        return mix(getattr(a, formula)(x, *of_a), getattr(b, formula)(x, *of_b), t)

    return mixed


def _split(both: Any) -> Iterator[tuple[Activation, Any]]:
    for begin in (0, NUMBERS + 1):
        a = _TABLE[int(both[begin])]
        yield a, both[begin + 1 : begin + 1 + len(a.parameters)]


@dataclass(frozen=True, eq=False)
class _Blend:
    """Two functions of the table as one: see `Formulas`."""

    name: str = "blend"
    f: Callable[..., Tensor] = _mixed("f")
    df: Callable[..., Tensor] = _mixed("df")
    d2f: Callable[..., Tensor] = _mixed("d2f")


BLEND = _Blend()


def _exported(x: Tensor, both: tuple[float, ...], t: float) -> Tensor:
    (a, of_a), (b, of_b) = _split(both)
    if t <= 0 or t >= 1:
        return b.portable(x, *of_b) if t >= 1 else a.portable(x, *of_a)
    return mix(a.portable(x, *of_a), b.portable(x, *of_b), t)


# ---- operators ---------------------------------------------------------------------------------

_library = torch.library.Library("mishkit", "FRAGMENT")
for _name, _body, _fake in (
    ("blend", "forward", lambda x, *_: torch.empty_like(x)),
    ("blend_backward", "backward", lambda grad, x, *_: torch.empty_like(x)),
):
    _library.define(_name + SCHEMAS[_name], tags=torch.Tag.pt2_compliant_tag)
    _library.impl(
        _name, functools.partial(getattr(plain, _body), BLEND), "CompositeExplicitAutograd"
    )
    if triton.available():
        _library.impl(_name, getattr(triton, _name), "CUDA")
    torch.library.register_fake(f"mishkit::{_name}", _fake, lib=_library)

_forward = operator("blend")
_SavingInput = saving_input(
    BLEND,
    _forward,
    operator("blend_backward"),
    functools.partial(plain.double_backward, BLEND),
    2 * (NUMBERS + 1) + 1,
)
_apply = fast_apply(_SavingInput)


def call(x: Tensor, both: tuple[float, ...], t: float, at: Callable[[], Tensor]) -> Tensor:
    """The blend of two functions, `function` + `function`, which keeps its input.

    It takes what a function of `mishkit.functional` takes, is differentiable to any order and in
    any mode, and is laid out as x. Compiled code reads t from the tensor `at()` when it runs;
    exported code has the number t in it.
    """
    if torch.compiler.is_compiling():
        if torch.compiler.is_exporting():
            return _exported(x, both, t)
        return plain.forward(BLEND, x, *both, at())
    if not isinstance(x, Tensor):
        raise TypeError(f"mishkit.blend: the input must be a tensor, not {type(x).__name__}")
    if are_transforms_active():
        return _SavingInput.apply(x, *both, t)
    if (x.requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0:
        return _apply(x, *both, t)
    return _forward(x, *both, t)
