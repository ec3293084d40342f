"""(1 − t)·f(x) + t·g(x) for two functions of the table: the operators and their autograd.

    mishkit::blend(input, f, f_0, ..., g, g_0, ..., t) -> output
    mishkit::blend_backward(grad, input, f, f_0, ..., g, g_0, ..., t) -> grad_input

f and g are positions in the table. Each is followed by as many numbers as the function with the
most parameters needs; surplus numbers are not read. (They are plain numbers because lists and
strings are harder to read through the stable C ABI.) t is from 0 to 1. At 0 the result is that of f
alone, to the bit, and at 1 that of g. Results have the strides of `torch.empty_like(input)`. If one
of the functions tends to +inf and the other to −inf, as only negated forms of `aptx` do, an
infinite input gives NaN.

The operators are not differentiable by themselves; `call` adds autograd.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.overrides import has_torch_function_unary

from .._mode import are_transforms_active, wants_standard
from ..activation import Activation
from ..backends import torch as plain
from ..backends import triton
from ..functions import ACTIVATIONS
from .functions import fast_apply, operator, register_fake, saving_input

TABLE = tuple(ACTIVATIONS.values())
"""The functions by the positions that operators name them by."""
_PLACES = {name: place for place, name in enumerate(ACTIVATIONS)}
NUMBERS = max(len(a.parameters) for a in TABLE)
"""How many numbers follow each function."""

_NUMBERS = ", ".join(f"{{0}} {{1}}{i}" for i in range(NUMBERS))
_BOTH = "".join(f", int {name}, {_NUMBERS.format('float', name + '_')}" for name in "fg")
SCHEMAS = {
    "blend": f"(Tensor input{_BOTH}, float t) -> Tensor",
    "blend_backward": f"(Tensor grad, Tensor input{_BOTH}, float t) -> Tensor",
}


def function(name: str, *parameters: Any) -> tuple[Any, ...]:
    """A function with its parameters, in the form that the operator takes."""
    return _PLACES[name], *parameters, *(0.0,) * (NUMBERS - len(parameters))


# ---- plain torch -------------------------------------------------------------------------------


def mix(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """(1 − t)·a + t·b, where t is a number strictly between 0 and 1, or a 0-dim tensor from 0 to 1.

    Unlike torch.lerp, this never computes a difference of infinities.
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
        a = TABLE[int(both[begin])]
        yield a, both[begin + 1 : begin + 1 + len(a.parameters)]


class _Blend(NamedTuple):
    """Two functions of the table combined into one: see `Formulas`."""

    name: str
    f: Callable[..., Tensor]
    df: Callable[..., Tensor]
    d2f: Callable[..., Tensor]
    is_dead: Callable[..., bool]


def _is_dead(*arguments: Any) -> bool:
    """Whether no gradient passes where the derivative is 0; both functions must be like that."""
    *both, t = arguments
    (a, _), (b, _) = _split(both)
    if not isinstance(t, Tensor) and (t <= 0 or t >= 1):
        return b.is_dead if t >= 1 else a.is_dead
    return a.is_dead and b.is_dead


BLEND = _Blend("blend", _mixed("f"), _mixed("df"), _mixed("d2f"), _is_dead)


_expression: Callable[..., Tensor] = functools.partial(plain.forward, BLEND)
"""With t as a tensor."""


def _exported(x: Tensor, both: tuple[Any, ...], t: float) -> Tensor:
    (a, of_a), (b, of_b) = _split(both)
    if t <= 0 or t >= 1:
        return b.portable(x, *of_b) if t >= 1 else a.portable(x, *of_a)
    return mix(a.portable(x, *of_a), b.portable(x, *of_b), t)


# ---- operators ---------------------------------------------------------------------------------


def on_gpu(name: str, *arguments: Any) -> Tensor:
    """The Triton version of the operators, for the dtypes that Triton supports."""
    *tensors, x = (argument for argument in arguments if isinstance(argument, Tensor))
    *both, t = arguments[len(tensors) + 1 :]
    body = "backward" if tensors else "forward"
    if x.dtype not in triton.DTYPES:
        return getattr(plain, body)(BLEND, *tensors, x, *both, t)
    (a, of_a), (b, of_b) = _split(both)
    if t <= 0 or t >= 1:
        activation, numbers = (b, of_b) if t >= 1 else (a, of_a)
        return getattr(triton, body)(activation, *tensors, x, *numbers)
    return getattr(triton, name)(a, tuple(of_a), b, tuple(of_b), *tensors, x, t)


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
        _library.impl(_name, functools.partial(on_gpu, _name), "CUDA")
    register_fake(_library, _name, _fake)

_forward = operator("blend")
_SavingInput = saving_input(
    BLEND,
    _forward,
    operator("blend_backward"),
    functools.partial(plain.double_backward, BLEND),
    2 * (NUMBERS + 1) + 1,
)
_apply = fast_apply(_SavingInput)


class Fraction:
    """t, a number from 0 to 1 that changes between calls; several sites may share one.

    A deep copy is the same object, so that a copied model, such as the average of one in training,
    follows along. An unpickled one is independent.

    Eager code reads the number. Compiled code reads a 0-dim tensor on the device of its input, so
    that it is not recompiled for every t. The number is rounded to float32 so that both agree.
    """

    value: float

    def __init__(self, value: float, devices: Iterable[torch.device]) -> None:
        self._tensors: dict[torch.device, Tensor] = dict.fromkeys(
            [*devices] or [torch.device("cpu")], torch.empty(0)
        )
        self.set(value)

    def set(self, value: float) -> None:
        """Change it for all later calls; backward passes of earlier calls keep the old value."""
        (self.value,) = struct.unpack("f", struct.pack("f", value))
        for device in self._tensors:
            self._place(device)

    def place(self, device: torch.device) -> None:
        """Also provide a tensor on that device, for compiled code."""
        if device.type != "meta" and device not in self._tensors:
            self._place(device)

    def _place(self, device: torch.device) -> None:
        # A new tensor, because pending compiled backward passes may still need the old one. Not an
        # inference tensor, because autograd rejects those.
        with torch.inference_mode(False):
            self._tensors[device] = torch.full((), self.value, device=device)

    def on(self, device: torch.device) -> Tensor:
        """The tensor on that device, for compiled code."""
        if device in self._tensors:
            return self._tensors[device]
        return next(iter(self._tensors.values())).to(device)

    def another(self) -> Fraction:
        """An independent copy with this number, on these devices."""
        return Fraction(self.value, self._tensors)

    def __deepcopy__(self, _memo: dict[int, Any]) -> Fraction:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"value": self.value, "devices": [str(device) for device in self._tensors]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._tensors = {}
        self.set(state["value"])
        for device in ["cpu", *state["devices"]]:
            with suppress(RuntimeError, AssertionError):  # the device may be gone
                self.place(torch.device(device))


def call(x: Tensor, both: tuple[Any, ...], t: Fraction) -> Tensor:
    """The blend of two functions, given as `function` + `function`; keeps its input.

    Accepts what the functions of `mishkit.functional` accept, is differentiable to any order and in
    any mode, and returns x's layout. Exported code contains t as a number.
    """
    if wants_standard() or (not isinstance(x, Tensor) and has_torch_function_unary(x)):
        return _exported(x, both, t.value)
    if torch.compiler.is_compiling():
        return _expression(x, *both, t.on(x.device))
    if not isinstance(x, Tensor):
        raise TypeError(f"mishkit.blend: the input must be a tensor, not {type(x).__name__}")
    if are_transforms_active():
        return _SavingInput.apply(x, *both, t.value)
    if (x.requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0:
        return _apply(x, *both, t.value)
    return _forward(x, *both, t.value)
