"""What the training callbacks share."""

from __future__ import annotations

import warnings
from typing import Any

from .anneal import Anneal


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
