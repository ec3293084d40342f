"""A model whose own forward pass runs under `recompute`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .._mode import are_transforms_active
from .choice import Choice
from .context import is_recomputing, recompute_some


class Passes(threading.local):
    """The forward passes that are running in this thread, the innermost last."""

    def __init__(self) -> None:
        self.running: list[tuple[nn.Module, AbstractContextManager[None] | None]] = []

    def begin(self, module: nn.Module, choice: Choice | None, *, wanted: bool) -> None:
        """Enter `recompute` for a pass of this module, if it is wanted and torch can do it."""
        # The transforms of torch.func refuse to run under hooks on saved tensors.
        wanted = wanted and torch.is_grad_enabled() and not are_transforms_active()
        context = recompute_some(choice) if wanted else None
        if context is not None:
            context.__enter__()
        self.running.append((module, context))

    def end(self, module: nn.Module) -> None:
        """Leave it. May be called after an error that was raised before `begin` was called."""
        if self.running and self.running[-1][0] is module:
            context = self.running.pop()[1]
            if context is not None:
                context.__exit__(None, None, None)


class _State(threading.local):
    def __init__(self) -> None:
        self.suspended = False


_passes, _state = Passes(), _State()


def attach(model: nn.Module, choice: Choice | None = None) -> None:
    """Run the model's forward pass under `recompute` from now on, dropping all that can be dropped,
    or only what is chosen.

    The hooks are plain functions or small objects, so that the model can be copied, pickled and
    saved as before.
    """
    detach(model)
    model.register_forward_pre_hook(_Enter(choice), prepend=True)
    model.register_forward_hook(_leave, always_call=True)


def detach(model: nn.Module) -> None:
    """Undo `attach`, if it was called."""
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key in [key for key, hook in hooks.items() if hook is _leave or type(hook) is _Enter]:
            del hooks[key]
            model._forward_hooks_always_called.pop(key, None)


def is_attached(model: nn.Module) -> bool:
    """Whether the model's forward pass runs under `recompute`."""
    return any(type(hook) is _Enter for hook in model._forward_pre_hooks.values())


@contextmanager
def suspended() -> Iterator[None]:
    """Within it, attached models run as if they were not, in this thread."""
    before, _state.suspended = _state.suspended, True
    try:
        yield
    finally:
        _state.suspended = before


@dataclass(frozen=True)
class _Enter:
    choice: Choice | None

    def __call__(self, model: nn.Module, inputs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        stands_back = _state.suspended or is_recomputing()
        _passes.begin(model, self.choice, wanted=not stands_back)

    def __getattr__(self, name: str) -> Any:
        if name == "__name__":  # for which torch.jit.script asks, in order to compile the hook
            raise AttributeError(
                "mishkit: torch.jit.script can't compile a model that recomputes; "
                "mishkit.unswap(model) makes it as it was"
            )
        raise AttributeError(name)


def _leave(model: nn.Module, inputs: Any, output: Any) -> None:
    if not torch.compiler.is_compiling():
        _passes.end(model)
