"""Activations that wait for the product that they are a factor of.

In ``down(act(gate(x)) * up(x))`` the activation is a module, the product is not. So `lean` and
`swap` put a module in the activation's place that computes nothing yet: it returns a tensor that
remembers the input. Multiplied by another tensor of its shape, that is `mishkit.gate`, in one pass.
Whatever else is done with it computes the activation first. The linear layers, their hooks, their
adapters and the model's own code are as before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._mode import compiler, is_tracing, is_transformed, wants_standard
from .._modules import ActivationModule
from .._torch_private import DisableTorchFunctionSubclass
from ..activation import DTYPES
from ..functional import FUNCTIONS
from ..functions import ACTIVATIONS
from ..gates import checked_numbers, gate, gate_of
from ..modules import MODULES
from ..ops.functions import fast_apply

_MODIFIED = (
    "mishkit: the input of a {} that waits for a product was modified by an inplace operation "
    "before that; mishkit.unswap(model)"
)


class Deferred(Tensor):
    """f(x) for an x that is held; it has no memory of its own.

    torch's functions, which see it by `__torch_function__`, get f(x) in its place. What goes around
    them, such as the operators of C++ or someone's autograd.Function, sees the autograd node of a
    function that computes f'(x), and gets f(x) in `__torch_dispatch__`.
    """

    x: Tensor
    version: int
    function: str
    parameters: Mapping[str, Any]
    value: Tensor | None = None

    def input(self) -> Tensor:
        """x; raises RuntimeError if it was modified since."""
        if _version(self.x) != self.version:
            raise RuntimeError(_MODIFIED.format(self.function))
        return self.x

    def computed(self) -> Tensor:
        """f(x), computed once."""
        if self.value is None:
            self.value = FUNCTIONS[self.function](self.input(), **self.parameters)
        return self.value

    def times(self, other: Any) -> Tensor | None:
        """The gate, if that is what the product with the other factor is."""
        x = self.x
        if self.value is not None or not isinstance(other, Tensor) or type(other) is Deferred:
            return None
        if other.shape != x.shape or other.device != x.device:
            return None
        if other.dtype is x.dtype and not (compiler.is_compiling() or wants_standard()):
            numbers = checked_numbers("mishkit", self.function, None, 0.0, self.parameters, False)
            return gate_of(self.input(), other, numbers)
        if other.dtype not in DTYPES:
            return None
        return gate(self.input(), other, self.function, **self.parameters)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _PRODUCTS and len(args) == 2 and not kwargs:
            waiting, factor = args if type(args[0]) is Deferred else args[::-1]
            product = waiting.times(factor)
            if product is not None:
                return product
        elif func in _LOOKS:
            with DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return func(*_computed(args), **_computed(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # Autograd has seen this tensor, with the node of `_Waiting`, and is done.
        with torch.no_grad(), DisableTorchFunctionSubclass():
            return func(*_plain(args), **_plain(kwargs or {}))


_make_wrapper = Tensor._make_wrapper_subclass


def _waiting(x: Tensor, function: str, parameters: Mapping[str, float], version: int) -> Deferred:
    strides = x.stride() if x.is_contiguous() else torch.empty_like(x, device="meta").stride()
    result: Deferred = _make_wrapper(
        Deferred, x.shape, strides=strides, dtype=x.dtype, device=x.device
    )
    result.x, result.version = x, version
    result.function, result.parameters = function, parameters
    return result


def _version(x: Tensor) -> int:
    """How often the tensor was written to; inference tensors have no counter."""
    return 0 if x.is_inference() else x._version


def _computed(value: Any) -> Any:
    return _replaced(value, Deferred.computed)


def _plain(value: Any) -> Any:
    return _replaced(value, lambda t: FUNCTIONS[t.function](t.input().detach(), **t.parameters))


def _replaced(value: Any, replace: Callable[[Deferred], Tensor]) -> Any:
    """The arguments of a call with these tensors replaced, also in lists and dictionaries."""
    if type(value) is Deferred:
        return replace(value)
    if type(value) in (tuple, list):
        return type(value)(_replaced(item, replace) for item in value)
    if type(value) is dict:
        return {name: _replaced(item, replace) for name, item in value.items()}
    return value


_PRODUCTS = frozenset(
    (Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.multiply, torch.mul, torch.multiply)
)
_LOOKS = frozenset(
    (
        *(getattr(Tensor, name) for name in ("size", "dim", "numel", "is_floating_point")),
        *(
            getattr(Tensor, name).__get__
            for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda")
        ),
    )
)
"""What can be asked of a tensor that has not been computed."""


class _Waiting(Function):
    """apply(x, function, parameters): a `Deferred`, with the gradient of the function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: str, parameters: Mapping[str, float]) -> Tensor:
        # Not as a saved tensor: hooks on these would pack x, and most nodes are dropped at once.
        result = _waiting(x, function, parameters, x._version)
        ctx.x, ctx.version = x, result.version
        ctx.function, ctx.parameters = function, parameters
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x: Tensor = ctx.x
        if x._version != ctx.version:
            raise RuntimeError(_MODIFIED.format(ctx.function))
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            inner = x.view_as(x) if create_graph else x.detach().requires_grad_()
            y = FUNCTIONS[ctx.function](inner, **ctx.parameters)
            (gradient,) = torch.autograd.grad(y, inner, grad, create_graph=create_graph)
        return gradient, None, None


_wait = fast_apply(_Waiting)


def deferred(x: Any, function: str, **parameters: float) -> Tensor:
    """f(x), as soon as it is known what is done with it."""
    plainly = compiler.is_compiling() or is_tracing() or is_transformed()
    if plainly or type(x) is not Tensor or x.dtype not in DTYPES or x.layout is not torch.strided:
        return FUNCTIONS[function](x, **parameters)
    if x.requires_grad and torch.is_grad_enabled():
        return _wait(x, function, parameters)
    return _waiting(x, function, parameters, _version(x))


# ---- in the place of an activation ---------------------------------------------------------------


class _Gating(ActivationModule):
    """An activation whose output waits for a product."""

    def forward(self, input: Tensor) -> Tensor:
        parameters = {name: getattr(self, name) for name in self.parameter_names}
        name = self.activation.name
        if name == "gelu" and getattr(self, "approximate", "none") == "tanh":
            name = "gelu_tanh"
        return deferred(input, name, **parameters)


def _gating(kind: type[ActivationModule]) -> type[ActivationModule]:
    name = f"Gating{kind.__name__}"
    return type(name, (_Gating, kind), {"__module__": __name__, "__doc__": kind.__doc__})


GATING: dict[str, type[ActivationModule]] = {
    name: _gating(MODULES[a.module_name]) for name, a in ACTIVATIONS.items()
}
"""For each function, the module that takes an activation's place."""
globals().update({kind.__name__: kind for kind in GATING.values()})  # which pickles look up


def call(function: str, parameters: Mapping[str, float]) -> Callable[..., Tensor]:
    """The same for an attribute that holds a function; can be pickled."""
    return functools.partial(deferred, function=function, **parameters)
