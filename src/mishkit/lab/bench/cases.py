"""What `mishkit bench` times: the same work done by mishkit, by torch's ReLU and by torch's twin.

The twin is torch's own function. The formula as you would write it in torch is timed as well, and
so is mishkit's Mish, with which the other functions that have one exponential are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mishkit as mk
from mishkit.activation import Activation

from ..common.timing import Call

SPREAD = 2.0
"""Inputs are drawn from N(0, SPREAD), which covers both branches and both tails of every function.
"""
OPERATOR_LIMIT = 1 << 20
"""From this many elements on, a backward pass takes long enough to be timed through autograd."""
CALL_SIZES = (16, 1024)
"""The sizes at which a call's overhead is timed."""
MOST_IN_PLACE = 16
"""How often a function may be applied to its own output before that gets near the denormal numbers.
"""

OURS, RELU, TWIN = "mishkit", "relu", "torch"
EXPRESSION, MISH = "expression", "mishkit's mish"
FORWARD, OUT, IN_PLACE, PACKED = "forward", "forward, out=", "in place", "forward, packed"
BACKWARD, FROM_OUTPUT = "backward", "backward from output"
CALL, CALL_OUT, CALL_BACKWARD = "call", "call, out=", "call and backward"
CASES = (FORWARD, OUT, IN_PLACE, PACKED, BACKWARD, FROM_OUTPUT, CALL, CALL_OUT, CALL_BACKWARD)
SAME_WORK = {PACKED: FORWARD, FROM_OUTPUT: BACKWARD}
"""Cases that only mishkit has, and what the others do instead."""

Calls = dict[tuple[str, str], Call]
"""Calls by case and contender."""


@dataclass(frozen=True)
class Peer:
    """One of torch's functions, in every form that torch has; None for forms that it lacks."""

    forward: Callable[[Tensor], Tensor]
    out: Callable[..., Tensor] | None
    in_place: Callable[[Tensor], Tensor] | None
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(grad, input, output) -> grad_input; the operator."""
    expression: Callable[[Tensor], Tensor] | None = None
    """The formula in torch's elementary functions; None if `forward` already is that."""


def _peers() -> dict[str, Peer]:
    aten = torch.ops.aten
    return {
        "relu": Peer(
            F.relu,
            lambda x, out: torch.clamp_min(x, 0, out=out),
            torch.relu_,
            lambda g, x, y: aten.threshold_backward(g, y, 0),
        ),
        "relu6": Peer(
            F.relu6,
            partial(aten.hardtanh.out, min_val=0, max_val=6),
            partial(F.relu6, inplace=True),
            lambda g, x, y: aten.hardtanh_backward(g, x, 0, 6),
        ),
        "leaky_relu": Peer(
            F.leaky_relu,
            aten.leaky_relu.out,
            partial(F.leaky_relu, inplace=True),
            lambda g, x, y: aten.leaky_relu_backward(g, x, 0.01, False),
            lambda x: torch.where(x > 0, x, 0.01 * x),
        ),
        "elu": Peer(
            F.elu,
            aten.elu.out,
            partial(F.elu, inplace=True),
            lambda g, x, y: aten.elu_backward(g, 1, 1, 1, False, x),
            lambda x: torch.where(x > 0, x, torch.expm1(x)),
        ),
        "softplus": Peer(
            F.softplus,
            aten.softplus.out,
            None,
            lambda g, x, y: aten.softplus_backward(g, x, 1.0, 20.0),
            lambda x: torch.log1p(torch.exp(x)),
        ),
        "silu": Peer(
            F.silu,
            aten.silu.out,
            partial(F.silu, inplace=True),
            lambda g, x, y: aten.silu_backward(g, x),
            lambda x: x * torch.sigmoid(x),
        ),
        "gelu": Peer(
            F.gelu,
            aten.gelu.out,
            aten.gelu_,
            lambda g, x, y: aten.gelu_backward(g, x),
            lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
        ),
        "gelu_tanh": Peer(
            partial(F.gelu, approximate="tanh"),
            partial(aten.gelu.out, approximate="tanh"),
            partial(aten.gelu_, approximate="tanh"),
            lambda g, x, y: aten.gelu_backward(g, x, approximate="tanh"),
            lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        ),
        "mish": Peer(
            F.mish,
            aten.mish.out,
            partial(F.mish, inplace=True),
            lambda g, x, y: aten.mish_backward(g, x),
            lambda x: x * torch.tanh(F.softplus(x)),
        ),
        "hardswish": Peer(
            F.hardswish,
            aten.hardswish.out,
            partial(F.hardswish, inplace=True),
            lambda g, x, y: aten.hardswish_backward(g, x),
            lambda x: x * (x + 3).clamp(0, 6) / 6,
        ),
    }


PEERS = _peers()
"""Torch's functions, by mishkit's names for them."""


def contenders(a: Activation) -> dict[str, Peer]:
    """What is timed next to mishkit: ReLU, and torch's own function unless that is ReLU itself."""
    peers = {RELU: PEERS["relu"]}
    if a.name in PEERS and a.name != "relu":
        peers[TWIN] = PEERS[a.name]
    return peers


def expression(a: Activation) -> Callable[[Tensor], Tensor] | None:
    """The function as you would write it in torch, from its formula; None for ReLU."""
    if a.name in PEERS:
        return PEERS[a.name].expression
    return lambda x: a.portable(x, *a.defaults)


def large(a: Activation, dtype: torch.dtype, size: int) -> Calls:
    """Everything that is timed with `size` elements."""
    x, grad = normal(size, dtype, seed=0), normal(size, dtype, seed=1)
    return dict((*_forwards(a, x), *_backwards(a, x, grad)))


def small(a: Activation, dtype: torch.dtype, size: int) -> Calls:
    """The overhead of a call: without grad, into memory that exists, and with the backward pass."""
    x, grad = normal(size, dtype, seed=0), normal(size, dtype, seed=1)
    leaf, y = x.clone().requires_grad_(), torch.empty_like(x)

    def with_backward(function: Callable[[Tensor], Tensor]) -> Call:
        return Call(lambda: torch.autograd.grad(function(leaf), leaf, grad))

    def into(function: Callable[..., Any]) -> Call:
        return Call(lambda: function(x, out=y))  # a partial would merge the keywords, in 0.1 µs

    functions = {OURS: mk.functional.FUNCTIONS[a.name]}
    functions |= {name: peer.forward for name, peer in contenders(a).items()}
    writers = {OURS: functions[OURS]}
    writers |= {name: peer.out for name, peer in contenders(a).items() if peer.out is not None}
    calls = {(CALL, name): Call(partial(f, x)) for name, f in functions.items()}
    calls |= {(CALL_OUT, name): into(f) for name, f in writers.items()}
    return calls | {(CALL_BACKWARD, name): with_backward(f) for name, f in functions.items()}


@lru_cache(maxsize=2)
def normal(size: int, dtype: torch.dtype, seed: int) -> Tensor:
    """This many inputs, the same on every call."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(size, generator=generator) * SPREAD).to(dtype)


def _operator(a: Activation, ending: str) -> Callable[..., Any]:
    return getattr(torch.ops.mishkit, a.name + ending).default


def _forwards(a: Activation, x: Tensor) -> Iterator[tuple[tuple[str, str], Call]]:
    ours, out, buffer = mk.functional.FUNCTIONS[a.name], torch.empty_like(x), torch.empty_like(x)
    prepare = partial(buffer.copy_, x)

    def in_place(function: Callable[[Tensor], Tensor]) -> Call:
        return Call(partial(function, buffer), prepare, MOST_IN_PLACE)

    yield (FORWARD, OURS), Call(partial(ours, x))
    yield (OUT, OURS), Call(partial(ours, x, out=out))
    yield (IN_PLACE, OURS), in_place(partial(ours, inplace=True))
    if a.turn is not None:
        yield (PACKED, OURS), Call(partial(_operator(a, "_packed"), x, *a.defaults))
    for name, peer in contenders(a).items():
        yield (FORWARD, name), Call(partial(peer.forward, x))
        if peer.out is not None:
            yield (OUT, name), Call(partial(peer.out, x, out=out))
        if peer.in_place is not None:
            yield (IN_PLACE, name), in_place(peer.in_place)
    by_formula = expression(a)
    if by_formula is not None:
        yield (FORWARD, EXPRESSION), Call(partial(by_formula, x))
    if a.name != "mish":
        yield (FORWARD, MISH), Call(partial(mk.functional.FUNCTIONS["mish"], x))


def _backwards(a: Activation, x: Tensor, g: Tensor) -> Iterator[tuple[tuple[str, str], Call]]:
    """At the operator for small tensors, and through autograd on a retained graph from 1 Mi up."""
    if x.numel() < OPERATOR_LIMIT:
        y, side = _operator(a, "_packed")(x, *a.defaults)
        yield (BACKWARD, OURS), Call(partial(_operator(a, "_backward"), g, x, *a.defaults))
        from_output = partial(_operator(a, "_backward_packed"), g, y, side, *a.defaults)
        yield (FROM_OUTPUT, OURS), Call(from_output)
        for name, peer in contenders(a).items():
            yield (BACKWARD, name), Call(partial(peer.backward, g, x, peer.forward(x)))
        return
    ours, leaf = mk.functional.FUNCTIONS[a.name], x.clone().requires_grad_()

    def through_autograd(y: Tensor) -> Call:
        return Call(partial(torch.autograd.grad, y, leaf, g, retain_graph=True))

    yield (BACKWARD, OURS), through_autograd(ours(leaf))
    yield (FROM_OUTPUT, OURS), through_autograd(ours(leaf, save="output"))
    for name, peer in contenders(a).items():
        yield (BACKWARD, name), through_autograd(peer.forward(leaf))
    by_formula = expression(a)
    if by_formula is not None:
        yield (BACKWARD, EXPRESSION), through_autograd(by_formula(leaf))


def backward_call(function: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Call:
    """A backward pass through autograd, on a graph that is made by the first call and kept."""
    leaf, kept = x.detach().requires_grad_(), list[Tensor]()

    def run() -> Any:
        if not kept:
            kept.append(function(leaf))
        return torch.autograd.grad(kept[0], leaf, g, retain_graph=True)

    return Call(run)


def working(calls: Iterable[tuple[Any, Call]], missing: list[str], group: str) -> dict[Any, Call]:
    """The calls of a group that work: each is run once, which also compiles it. Calls other than
    mishkit's may fail, which adds a line to `missing`.
    """
    usable = {}
    for key, call in calls:
        try:
            call.run()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if OURS in key:
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            missing.append(f"{group}: no {', '.join(key)}: {reason}")
            continue
        usable[key] = call
    return usable
