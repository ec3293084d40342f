"""Small random modules, as Hypothesis draws them, and everything that can be observed of one.

A recipe is a tuple of steps, each a name and its arguments; residuals and checkpoints hold recipes.
What the modules do is what real models were seen to do with their activations: hold tensors in
attributes, lists and hooks, hand tensors on without a copy, share modules, call functions, write
gates by hand, rebind buffers, draw random numbers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDTH = 8
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "softplus": nn.Softplus,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
}
IN_PLACE: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "mish": lambda: nn.Mish(inplace=True),
    "hardswish": lambda: nn.Hardswish(inplace=True),
}
FUNCTIONS = ("relu", "silu", "gelu", "mish", "hardswish", "softplus", "leaky_relu")
GATES = ("sigmoid", "tanh_softplus", "glu", "silu")
ALIASES = ("contiguous", "to", "view", "slice", "expand", "flatten", "transpose", "identity")
HOLDERS = ("attribute", "list", "retain_grad", "hook", "pre_hook", "backward_hook", "tensor_hook")
DROPS = ("dropout", "no_dropout", "drop_path", "in_place")
STATES = ("rebound", "written", "renormalised", "cache")
GENERATORS = ("torch", "numpy", "python")

Recipe = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Drawn:
    """A model to build: the same each time."""

    recipe: Recipe
    image: bool
    """Images, with convolutions; else rows, with linear layers."""
    channels_last: bool
    dtype: torch.dtype
    seed: int

    def build(self) -> Net:
        """The model, with its weights."""
        torch.manual_seed(self.seed)
        model = Net(self.recipe, self.image).to(self.dtype)
        return model.to(memory_format=self.format) if self.image else model

    def input(self) -> Tensor:
        """What it takes; a leaf with a gradient."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (2, WIDTH, 3, 3) if self.image else (5, WIDTH)
        x = torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)
        if self.image:
            x = x.contiguous(memory_format=self.format)
        return x.requires_grad_()

    @property
    def format(self) -> torch.memory_format:
        """Of images."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


def models() -> st.SearchStrategy[Drawn]:
    """Any of them."""
    return st.builds(
        Drawn,
        recipe=recipes(),
        image=st.booleans(),
        channels_last=st.booleans(),
        dtype=st.sampled_from((torch.float64, torch.float64, torch.float32)),
        seed=st.integers(0, 9),
    )


def recipes() -> st.SearchStrategy[Recipe]:
    """Steps, of which some hold steps."""
    simple = st.one_of(
        st.tuples(st.just("produce")),
        st.tuples(st.just("norm"), st.booleans()),
        st.tuples(st.just("drop"), st.sampled_from(DROPS)),
        st.tuples(st.just("alias"), st.sampled_from(ALIASES)),
        st.tuples(st.just("activation"), st.sampled_from(sorted(ACTIVATIONS))),
        st.tuples(st.just("in_place"), st.sampled_from(sorted(IN_PLACE))),
        st.tuples(st.just("shared"), st.sampled_from(sorted(ACTIVATIONS))),
        st.tuples(st.just("call"), st.sampled_from(FUNCTIONS)),
        st.tuples(st.just("by_hand"), st.sampled_from(("silu", "mish"))),
        st.tuples(st.just("function_of_their_own")),
        st.tuples(st.just("attribute"), st.sampled_from(FUNCTIONS)),
        st.tuples(st.just("gate"), st.sampled_from(GATES)),
        st.tuples(st.just("hold"), st.sampled_from(HOLDERS)),
        st.tuples(st.just("state"), st.sampled_from(STATES)),
        st.tuples(st.just("random"), st.sampled_from(GENERATORS)),
    )
    held = st.lists(simple, min_size=1, max_size=3).map(tuple)
    nested = st.tuples(st.sampled_from(("residual", "checkpoint")), held)
    return st.lists(st.one_of(simple, simple, simple, nested), min_size=1, max_size=6).map(tuple)


class Net(nn.Module):
    """The steps of a recipe one after another, between two layers with weights."""

    def __init__(self, recipe: Recipe, image: bool) -> None:
        super().__init__()
        self.shared: dict[str, nn.Module] = {}
        self.first = _layer(image, WIDTH)
        self.steps = nn.ModuleList(_step(step, image, self.shared) for step in recipe)
        self.last = _layer(image, WIDTH)
        for place, (name, *arguments) in enumerate(recipe):
            before = self.steps[place - 1] if place else self.first
            if name == "hold":
                _hold_by_hook(arguments[0], before, self.steps[place])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for step in self.steps:
            x = step(x)
        return self.last(x)


def _layer(image: bool, width: int) -> nn.Module:
    return nn.Conv2d(WIDTH, width, 1) if image else nn.Linear(WIDTH, width)


def _step(step: tuple[Any, ...], image: bool, shared: dict[str, nn.Module]) -> nn.Module:
    name, *arguments = step
    if name == "produce":
        return _layer(image, WIDTH)
    if name == "norm":
        batch = nn.BatchNorm2d if image else nn.BatchNorm1d
        return batch(WIDTH) if arguments[0] else nn.GroupNorm(2, WIDTH)
    if name == "drop":
        return _drop(*arguments)
    if name == "activation":
        return ACTIVATIONS[arguments[0]]()
    if name == "in_place":
        return IN_PLACE[arguments[0]]()
    if name == "shared":
        return shared.setdefault(arguments[0], ACTIVATIONS[arguments[0]]())
    if name in ("residual", "checkpoint"):
        body = nn.Sequential(*(_step(inner, image, shared) for inner in arguments[0]))
        return Residual(body) if name == "residual" else Checkpointed(body)
    if name == "gate":
        return Gate(_layer(image, 2 * WIDTH), arguments[0])
    kinds: dict[str, Callable[..., nn.Module]] = {
        "alias": Alias,
        "call": Calls,
        "by_hand": ByHand,
        "function_of_their_own": TheirOwn,
        "attribute": HoldsFunction,
        "hold": Holder,
        "state": State,
        "random": Noise,
    }
    return kinds[name](*arguments)


def _drop(how: str) -> nn.Module:
    if how == "drop_path":
        return DropPath()
    return nn.Dropout(0.0 if how == "no_dropout" else 0.3, inplace=how == "in_place")


class DropPath(nn.Module):
    """Drops whole samples in training; hands its very input on in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.bernoulli(torch.full_like(x[:, :1], 0.7))


class Alias(nn.Module):
    """Hands its input on: the same memory, in some layouts or in all."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "contiguous":
            return x.contiguous()
        if self.how == "to":
            return x.to(torch.float64).to(x.dtype)
        if self.how == "view":
            return x.view_as(x)
        if self.how == "slice":
            return x[1:]
        if self.how == "expand":
            return x[:1].expand_as(x)
        if self.how == "flatten":
            return x.reshape(x.shape[0], -1).reshape(x.shape)
        return x.transpose(-1, -2).transpose(-1, -2) if self.how == "transpose" else x


class Calls(nn.Module):
    """Calls a function."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return getattr(F, self.name)(x)


class HoldsFunction(nn.Module):
    """Calls a function that it holds as an attribute."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.activation = getattr(F, name)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x)


class ByHand(nn.Module):
    """An activation put together from others."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.sigmoid(x) if self.name == "silu" else torch.tanh(F.softplus(x)))


class _MemoryEfficient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * s * (1 + x * (1 - s))


class TheirOwn(nn.Module):
    """An activation in somebody's autograd function."""

    def forward(self, x: Tensor) -> Tensor:
        return _MemoryEfficient.apply(x)


class Gate(nn.Module):
    """Half of a tensor times a function of the other half."""

    def __init__(self, layer: nn.Module, how: str) -> None:
        super().__init__()
        self.layer, self.how = layer, how

    def forward(self, x: Tensor) -> Tensor:
        both = self.layer(x)
        if self.how == "glu":
            return F.glu(both, 1)
        a, b = both.chunk(2, 1)
        if self.how == "sigmoid":
            return a * torch.sigmoid(b)
        return a * (F.silu(b) if self.how == "silu" else torch.tanh(F.softplus(b)))


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x[-y.shape[0] :] + y


class Checkpointed(nn.Module):
    """f(x), computed again for the backward pass."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=False)


class Holder(nn.Module):
    """Holds what passes, or does so by a hook."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.held: list[Tensor] = []

    def hold(self, x: Any) -> None:
        """Hold the last tensor of those given."""
        tensors = [t for t in (x if isinstance(x, tuple) else (x,)) if isinstance(t, Tensor)]
        self.held[:] = tensors[-1:]

    def forward(self, x: Tensor) -> Tensor:
        if self.how in ("list", "attribute"):
            self.hold(x)
        elif self.how == "retain_grad" and x.requires_grad:
            x.retain_grad()
            self.hold(x)
        elif self.how == "tensor_hook" and x.requires_grad:
            x.register_hook(self.hold)
        return x


class _Hook:
    """Holds what a hook is given; a class, so that models with hooks can be copied."""

    def __init__(self, holder: Holder) -> None:
        self.holder = holder

    def __call__(self, module: nn.Module, *given: Any) -> None:
        self.holder.hold(given[-1])


def _hold_by_hook(how: str, module: nn.Module, holder: nn.Module) -> None:
    assert isinstance(holder, Holder)
    hook = _Hook(holder)
    if how == "hook":
        module.register_forward_hook(hook)
    elif how == "pre_hook":
        module.register_forward_pre_hook(hook)
    elif how == "backward_hook":
        module.register_full_backward_hook(hook)


class State(nn.Module):
    """Changes its own state in every forward pass."""

    count: Tensor

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("count", torch.zeros(()))
        self.weight = nn.Parameter(torch.ones(1))
        self.cache: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "rebound":
            self.count = self.count + 1
        elif self.how == "written":
            self.count.add_(1)
        elif self.how == "cache":
            self.cache["calls"] = self.cache.get("calls", 0) + 1
            self.cache["last"] = float(x.detach().sum())
            return x * (1 + 0.1 * self.cache["calls"])
        else:
            with torch.no_grad():
                self.weight.mul_(0.9)
        return x * (self.weight + 0.1 * self.count).to(x.dtype)


class Noise(nn.Module):
    """Adds a random number."""

    def __init__(self, generator: str) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        if self.generator == "torch":
            return x + torch.rand((), dtype=x.dtype)
        return x + (np.random.rand() if self.generator == "numpy" else random.random())


# ---- what can be observed ---------------------------------------------------------------------


def seed(number: int) -> None:
    """All generators."""
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def generators() -> tuple[Any, ...]:
    """The states of all generators, in a form that == compares."""
    kind, keys, *position = np.random.get_state()
    return torch.get_rng_state().tolist(), kind, keys.tolist(), *position, random.getstate()


def state_of(model: nn.Module) -> dict[str, Any]:
    """Parameters, buffers, modes, hooks and what else modules hold, in a form that == compares."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_modules", "_mishkit_replaced", "_mishkit_replaced_attributes"):
                continue
            if attribute.endswith("_hooks"):  # the keys are other numbers each time
                value = list(value.values())
            state[f"{name}:{attribute}"] = _plain(value)
    return state


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.dtype, value.requires_grad, value.detach().tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if not isinstance(item, nn.Module)}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return _Hook if isinstance(value, _Hook) else value


def observe(model: nn.Module, drawn: Drawn, *, train: bool) -> dict[str, Tensor]:
    """Two passes: outputs, gradients, what is held and its gradients, and buffers."""
    model.train(train)
    model.zero_grad()
    seed(1)
    observed: dict[str, Tensor] = {}
    for number in range(2):
        x = drawn.input()
        y = model(x)
        # Before the backward pass, where a hook may put something else there.
        observed |= {f"{number} held {n}": t.clone() for n, t in _held(model)}
        observed[f"{number} output"] = y.detach().clone()
        y.square().mean().backward()
        assert x.grad is not None
        observed[f"{number} gradient of the input"] = x.grad
        for name, held in _held(model):
            observed[f"{number} held after backward {name}"] = held.clone()
        for name, holder in model.named_modules():
            if isinstance(holder, Holder) and holder.how == "retain_grad" and holder.held:
                # What a checkpoint has recomputed may get none.
                grad = holder.held[0].grad
                name = f"{number} retained gradient {name}"
                observed[name] = torch.empty(0) if grad is None else grad.clone()
    observed |= {f"gradient {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    observed |= {f"buffer {n}": b.clone() for n, b in model.named_buffers()}
    model.eval()
    with torch.no_grad():
        observed["output without gradients"] = model(drawn.input().detach())
    return observed


def _held(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in model.named_modules():
        if isinstance(module, Holder) and module.held:
            yield name, module.held[0].detach()
