"""Recognise an activation that someone wrote by hand, by evaluating it.

A module without parameters, buffers and submodules whose forward is one of our functions is that
function, whatever its class: ``x * torch.tanh(F.softplus(x))``, an autograd.Function of one's own,
`NewGELU`. It is evaluated at a few hundred inputs, small and large, in training and in eval mode;
values and gradients have to agree with ours. A gate is not elementwise, so it agrees with none.

Modules that hold anything but numbers and strings are not evaluated, since that might change what
they hold. A module that calls our function, or torch's, is not recognised either: the audit sees
the call.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..functions import ACTIVATIONS
from ._state import random_numbers_kept

SHAPE = (2, 8, 6, 4)
RELATIVE, ABSOLUTE = 2e-6, 1e-7
"""How far values and gradients may differ: formulas may compute in float32 inside."""
FAR = (17.0, 30.5, 88.0, 104.0, 300.0, 1e4, 1e8)
"""Inputs at which functions that agree near 0 may differ, with both signs."""

PLAIN = (bool, int, float, str, type(None))
_OF_EVERY = frozenset(vars(nn.Module()))

Recognised = tuple[str, dict[str, float]] | None
Result = TypeVar("Result")
_recognised: weakref.WeakKeyDictionary[nn.Module, tuple[Any, Recognised]] = (
    weakref.WeakKeyDictionary()
)


def function_of(module: nn.Module) -> Recognised:
    """The name of our function that the module computes, and its parameters; None if there is none
    or if it can't be told.
    """
    if not _is_candidate(module):
        return None
    return remembered(_recognised, module, _compare)


def computes(method: Callable[[Tensor], Any], function: str, values: Sequence[float]) -> bool:
    """Whether a method of a module, which a pass calls with a tensor, is this function of it."""
    x = _probes()
    try:
        with random_numbers_kept(), torch.no_grad():
            y = method(x.clone())
    except Exception:  # whatever it raises, it is not that
        return False
    expected = ACTIVATIONS[function].f(x, *values)
    return isinstance(y, Tensor) and y.shape == x.shape and _close(y.to(expected.dtype), expected)


def _is_candidate(module: nn.Module) -> bool:
    kind = type(module)
    if kind.__module__.partition(".")[0] in ("torch", "mishkit") or "forward" in vars(module):
        return False
    if module._parameters or module._buffers or module._modules:
        return False
    if not all(isinstance(vars(module)[name], PLAIN) for name in vars(module).keys() - _OF_EVERY):
        return False
    return takes_one(module)


def takes_one(module: nn.Module) -> bool:
    """Whether the forward of the module's class needs one argument, the first."""
    try:
        parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    except (TypeError, ValueError):
        return False
    required = [
        p
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    by_position = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return len(required) == 1 and required[0].kind in by_position and parameters[0] is required[0]


def _state(module: nn.Module) -> Any:
    """What the result may depend on."""
    return {name: value for name, value in vars(module).items() if name not in _OF_EVERY}


def remembered(
    results: weakref.WeakKeyDictionary[nn.Module, tuple[Any, Result | None]],
    module: nn.Module,
    evaluate: Callable[[nn.Module], Result | None],
) -> Result | None:
    """The result of evaluating the module, `alone`; kept until the module's attributes change."""
    state = _state(module)
    known = results.get(module)
    if known is None or known[0] != state:
        known = results[module] = state, alone(functools.partial(evaluate, module))
    return known[1]


def alone(work: Callable[[], Result | None]) -> Result | None:
    """Run the work in a thread of its own, where no mode, hook or autocast of torch is active, and
    return its result; None if it raises anything.
    """
    results: list[Result | None] = []

    def run() -> None:
        try:
            with random_numbers_kept(), torch.random.fork_rng(devices=[]):
                results.append(work())
        except Exception:  # whatever a forward raises, it is none of our functions
            results.append(None)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0] if results else None


class _Calls(TorchFunctionMode):
    """The names of the functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.names.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))

    def has(self, function: str) -> bool:
        """Whether one of our functions was called, torch's or ours."""
        return not self.names.isdisjoint((function, function.removesuffix("_tanh")))


def _compare(module: nn.Module) -> Recognised:
    probes, calls = _probes(), _Calls()
    values = []
    for training in (True, False):
        clone = copy.copy(module)
        clone.training = training
        for dtype in (torch.float32, torch.float64):
            x = probes.to(dtype, copy=True).requires_grad_()
            inner = x * 1  # not a leaf, so that it might be written over
            kept = inner.detach().clone()
            with calls:
                y = clone.forward(inner)
            if not isinstance(y, Tensor) or (y.shape, y.dtype) != (x.shape, x.dtype):
                return None
            if not torch.equal(inner.detach(), kept) or not y.requires_grad:
                return None  # it works in place, or has no gradient
            grad = torch.linspace(0.5, 2, x.numel(), dtype=dtype).view_as(x)
            (dx,) = torch.autograd.grad(y, x, grad)
        values.append((y.detach(), (dx / grad).detach()))
    (y, slope), in_eval = values
    if not all(map(_close, in_eval, (y, slope))):
        return None
    for name, parameters in _functions(probes, y):
        a = ACTIVATIONS[name]
        numbers = tuple(parameters.get(p.name, p.default) for p in a.parameters)
        if _close(y, a.f(probes, *numbers)) and _close(slope, a.df(probes, *numbers)):
            return None if calls.has(name) else (name, parameters)
    return None


def _functions(x: Tensor, y: Tensor) -> Iterator[tuple[str, dict[str, float]]]:
    """Our functions with their defaults, and x·σ(beta·x) with the beta that fits one input."""
    for name in ACTIVATIONS:
        yield name, {}
    place = int((x - 1).abs().argmin())
    share = float(y.flatten()[place] / x.flatten()[place])
    if 0 < share < 1:
        yield "swish", {"beta": round(math.log(share / (1 - share)) / float(x.flatten()[place]), 6)}


def _probes() -> Tensor:
    """Different inputs in no order, so that an operation on neighbours, rows or halves shows."""
    far = torch.tensor([*FAR, *(-number for number in FAR)], dtype=torch.float64)
    near = torch.linspace(-12.3, 12.7, math.prod(SHAPE) - len(far), dtype=torch.float64)
    mixed = torch.randperm(math.prod(SHAPE), generator=torch.Generator().manual_seed(0))
    return torch.cat([near, far])[mixed].view(SHAPE)


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=RELATIVE, atol=ABSOLUTE)
