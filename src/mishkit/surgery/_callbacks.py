"""What the training callbacks share."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from .anneal import Anneal
from .lean import lean
from .report import Report


def checked_share(steps: int | float) -> int | float:
    """Validate `steps`: a number of steps, or a fraction of all steps as a float up to 1."""
    share = isinstance(steps, float) and 0 < steps <= 1
    count = isinstance(steps, int) and not isinstance(steps, bool) and steps >= 1
    if not (share or count):
        raise ValueError(
            "AnnealCallback: steps must be an int of at least 1, or a float above 0 and up to 1, "
            f"the share of all steps of the training; not {steps!r}"
        )
    return steps


def total(steps: int | float, all_steps: float) -> int:
    """The number of steps, given how many a training has in all."""
    if isinstance(steps, int):
        return steps
    if not 0 < all_steps < float("inf"):
        raise ValueError(
            f"AnnealCallback: steps={steps} is a share of all steps of the training, and how many "
            "these are is not known; give a number of steps"
        )
    return max(1, round(steps * all_steps))


def restart(anneal: Anneal, steps: int, count: int = 0) -> None:
    """Set the total number of steps and how many of them were taken."""
    state: dict[str, Any] = {**anneal.state_dict(), "steps": steps, "count": min(count, steps)}
    anneal.load_state_dict(state)


def end(anneal: Anneal) -> None:
    """At the end of a training: leave only the new activations if all steps were taken."""
    if anneal.done:
        anneal.finish()
        return
    warnings.warn(
        f"AnnealCallback: the training ended at t = {anneal.fraction:g}, after {anneal.count} of "
        f"{anneal.steps} steps; the activations are left blended. `callback.anneal.finish()` puts "
        "the new ones in their place",
        stacklevel=2,
    )


class FirstCalls:
    """Remembers the first call of each outermost module that a training step calls, and then makes
    these modules lean. So a training loop need not say what its model's inputs are.
    """

    def __init__(self, model: nn.Module) -> None:
        self._depth = 0
        self._calls: dict[str, tuple[nn.Module, Any, Any]] = {}
        self._handles = []
        for name, module in model.named_modules():
            self._handles += [
                module.register_forward_pre_hook(self._before(name), with_kwargs=True),
                module.register_forward_hook(self._after, always_call=True),
            ]

    def lean(self, recompute: bool) -> dict[str, Report]:
        """Make the called modules lean; returns their reports by name."""
        self.forget_hooks()
        calls, self._calls = self._calls, {}
        return {
            name: lean(module, *args, recompute=recompute, **kwargs)
            for name, (module, args, kwargs) in calls.items()
        }

    def forget_hooks(self) -> None:
        """Stop watching calls."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            # A module without submodules, such as a loss, contains no activations.
            if not self._depth and module._modules and name not in self._calls:
                self._calls[name] = (module, _detached(args), _detached(kwargs))
            self._depth += 1

        return hook

    def _after(self, *_: Any) -> None:
        self._depth -= 1


class LeanOnce:
    """Make a model lean after its first training step: the common part of the callbacks."""

    def __init__(self, recompute: bool = True) -> None:
        super().__init__()
        self.recompute = recompute
        self.reports: dict[str, Report] = {}
        self._calls: FirstCalls | None = None

    def _look_at(self, model: nn.Module) -> None:
        """Begin to watch which modules are called, if that has not been done."""
        if not self.reports and self._calls is None:
            self._calls = FirstCalls(model)

    def _make_lean(self) -> None:
        """Make the called modules lean."""
        if self._calls is not None:
            calls, self._calls = self._calls, None
            self.reports = calls.lean(self.recompute)

    def _forget(self) -> None:
        """Leave no hooks behind."""
        if self._calls is not None:
            self._calls.forget_hooks()
            self._calls = None


def _detached(value: Any) -> Any:
    """A copy of the tensors in a structure, without their history."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) in (tuple, list):
        return type(value)(map(_detached, value))
    if type(value) is dict:
        return {key: _detached(item) for key, item in value.items()}
    return value
