"""How much to recompute: the cheapest bytes first, until a budget is met."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from .._progress import step
from .._torch_private import without_modes
from ..memory import KeptBytes
from ..recompute.choice import Choice, Kind, Meter
from ..recompute.context import recompute_some
from ..recompute.model import suspended
from ._state import undisturbed
from .watch import tensors_of


class Point(NamedTuple):
    """One way to share out memory and time."""

    kept: int
    """Bytes kept for the backward pass."""
    seconds: float
    """The measured time that recomputing takes in a backward pass."""


class Curve:
    """The bytes that each choice keeps and the time that it takes, from dropping nothing to
    dropping everything.

    Matrix products, which take longest, are among the choices only where the budget needs them.
    Runs the model once for each kind of tensor that can be dropped, and its backward pass twice.
    """

    def __init__(
        self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], budget: int
    ) -> None:
        self._model, self._args, self._kwargs = model, args, kwargs
        self._excluded = [*model.parameters(), *model.buffers(), *tensors_of((args, kwargs))]
        self._budget = budget
        self.kinds: list[Kind] = []
        """The cheapest first, matrix products last."""
        self.nbytes: dict[Kind, int] = {}
        self.points = [Point(self.kept(self._first(0)), 0.0)]
        self._go_on(products=False)
        if self.points[-1].kept > budget:
            self._go_on(products=True)

    def _go_on(self, *, products: bool) -> None:
        """Add the kinds that are matrix products, or those that are not."""
        self._measured(products)  # warms up
        meter = self._measured(products)
        kinds = [kind for kind in meter.nbytes if kind.is_product == products]
        seconds = self.points[-1].seconds
        for kind in sorted(kinds, key=lambda k: (meter.seconds[k] / meter.nbytes[k], k)):
            self.kinds.append(kind)
            self.nbytes[kind] = meter.nbytes[kind]
            seconds += meter.seconds[kind]
            self.points.append(Point(self.kept(self._first(len(self.kinds))), seconds))

    def choice(self) -> Choice:
        """The choice that meets the budget with the least time, or else keeps the least."""
        budget = self._budget
        if self.points[0].kept <= budget:
            return self._first(0)
        count = next((i for i, point in enumerate(self.points) if point.kept <= budget), None)
        if count is None:
            return self._first(len(self.kinds))
        # Drop only as much of the last kind as is needed.
        kind = self.kinds[count - 1]
        cheaper = self._first(count - 1)
        low, high = 0, self.nbytes[kind]
        while high - low > max(1024, self.nbytes[kind] // 64):
            middle = (low + high) // 2
            enough = self.kept(Choice(cheaper.whole, kind, middle)) <= budget
            low, high = (low, middle) if enough else (middle, high)
        partly = Choice(cheaper.whole, kind, high)
        return partly if self.kept(partly) <= budget else self._first(count)

    def kept(self, choice: Choice) -> int:
        """The bytes that the model keeps with this choice."""
        step("a pass with less recomputed", more=1)
        counted = KeptBytes(exclude=self._excluded)
        with torch.enable_grad(), suspended(), counted, recompute_some(choice):
            self._model(*self._args, **self._kwargs)
        return counted.total

    def _first(self, count: int) -> Choice:
        return Choice(frozenset(self.kinds[:count]))

    def _measured(self, products: bool) -> Meter:
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        meter = Meter(products)
        step("a step, to see what recomputing takes", more=1)
        with torch.enable_grad(), suspended():
            with recompute_some(None, meter):
                output = self._model(*self._args, **self._kwargs)
            losses = [t.float().sum() for t in tensors_of(output) if t.grad_fn is not None]
            if losses and parameters:
                loss = torch.stack(losses).sum()
                torch.autograd.grad(loss, parameters, allow_unused=True)
        return meter


@contextmanager
def curve_of(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], budget: int
) -> Iterator[Curve]:
    """The curve of a model, which is left as it was."""
    with undisturbed(model, args, kwargs):
        with torch.no_grad():
            model(*args, **kwargs)  # whatever it writes to has been copied now
        with without_modes():
            yield Curve(model, args, kwargs, budget)
