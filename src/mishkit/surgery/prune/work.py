"""The work of `prune`: watch a model on real inputs, decide which units to remove, and try it.

Any removal that changes the outputs is undone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._state import undisturbed
from ..slots import Slot
from .graph import Cut, Graph
from .run import (
    Call,
    Reading,
    Snapshot,
    channels,
    copied_outputs_of,
    outputs_of,
    tapped,
    training_outputs_of,
    with_progress,
)

COMPARED = 8
"""How many batches are kept, with their outputs, to compare the pruned model with the original."""
ROUNDING = 128
"""How far a different order of summation may move an output: this times eps times the largest."""


class Work:
    """One call of `prune`: its arguments, what it found and what it did."""

    def __init__(
        self,
        model: nn.Module,
        chosen: Sequence[Slot],
        example: Any,
        threshold: float,
        fraction: float,
    ) -> None:
        self.model, self.chosen, self.example = model, chosen, example
        self.threshold, self.fraction = threshold, fraction
        self.lossy = threshold > 0 or fraction > 0
        self.kept: list[tuple[Any, list[Tensor]]] = []
        """The first batches, each with the outputs of the original model."""
        self.shapes: dict[Call, torch.Size] = {}
        """For each site: the shape of its output for the example inputs."""
        self.at_sites: dict[Call, Reading] = {}
        self.at_readers: dict[nn.Module, Reading] = {}
        self.cuts: list[Cut] = []
        self.max_change = 0.0
        """The largest absolute change of an output that was kept."""
        self.trained: list[Tensor] | None = None
        """The original model's outputs for the first batch in training mode, if it runs."""
        self.uncompared = ""
        """Why they are not compared."""
        self.in_training = ""
        """What the report says about training mode, which was not watched."""

    def run(self, batches: Iterable[Any], progress: bool) -> None:
        """Find what is silent, and remove what can be removed."""
        graph = Graph(self.model, self.example, self.chosen)
        self.shapes = graph.shapes
        cuts = graph.cuts()
        self._watch(batches, graph, cuts, progress)
        for cut in cuts:
            self._decide(graph, cut)
        self.cuts = [cut for cut in cuts if cut.sites]
        self._look_at_training()
        self.max_change = self._carry_out(graph, [cut for cut in self.cuts if cut.removed])

    @property
    def max_output(self) -> float:
        """The largest absolute output of the original model."""
        return max((_largest(y) for _, ys in self.kept for y in ys), default=0.0)

    def _watch(
        self, batches: Iterable[Any], graph: Graph, cuts: Sequence[Cut], progress: bool
    ) -> None:
        """Run the batches, and record the outputs of the sites and the inputs of the readers."""
        with undisturbed(self.model):  # hooks and what they record are outside this
            self._watch_disturbing(batches, graph, cuts, progress)

    def _watch_disturbing(
        self, batches: Iterable[Any], graph: Graph, cuts: Sequence[Cut], progress: bool
    ) -> None:
        dims = {call: self._dimension(call, shape, cuts) for call, shape in graph.shapes.items()}

        def note(readings: dict[Any, Reading], key: Any, x: Tensor, dim: int) -> None:
            reading = Reading.of(x, dim, self.threshold)
            if reading is None:
                return
            if key in readings:
                readings[key].add(reading)
            else:
                readings[key] = reading

        def see(call: Call, output: Tensor) -> None:
            if call in dims:
                note(self.at_sites, call, output, dims[call])

        def read(layer: nn.Module, args: Any, kwargs: Any) -> None:
            x = args[0] if args else kwargs["input"]
            note(self.at_readers, layer, x, channels(layer))

        readers = dict.fromkeys(layer for cut in cuts for layer in cut.readers)
        hooks = [layer.register_forward_pre_hook(read, with_kwargs=True) for layer in readers]
        try:
            with tapped(self.chosen, see) as begin:
                for batch in with_progress(batches, progress):
                    begin()
                    outputs = copied_outputs_of(self.model, batch)
                    if len(self.kept) < COMPARED:
                        self.kept.append((batch, outputs))
        finally:
            for hook in hooks:
                hook.remove()
        if not self.kept:
            raise ValueError("mishkit.prune: data holds no batch")

    @staticmethod
    def _dimension(call: Call, shape: torch.Size, cuts: Sequence[Cut]) -> int:
        """Which dimension of a site's output holds the units, counted from the end."""
        usual = 1 - len(shape) if len(shape) > 3 else -1
        for cut in cuts:
            if call in cut.sites:
                linear = isinstance(cut.root, nn.Linear)
                usual = -1 if linear or len(shape) < 3 else 1 - len(shape)
                units = 1 + max(max(c.sites.get(call, [0])) for c in cuts)
                if shape and shape[usual] != units and units in shape:
                    usual = list(shape).index(units) - len(shape)
                break
        return usual

    def _decide(self, graph: Graph, cut: Cut) -> None:
        """Decide which of the units that are silent somewhere can be removed."""
        silent: dict[int, None] = {}
        for call, units in cut.sites.items():
            if call in self.at_sites:
                is_silent = self.at_sites[call].silent(self.fraction)
                silent.update(
                    {r: None for u, r in units.items() if u < len(is_silent) and is_silent[u]}
                )
        if cut.obstacle:
            cut.why_not = dict.fromkeys(silent, cut.obstacle)
            return
        readers: dict[int, list[tuple[nn.Module, int]]] = {}
        for layer, inputs in cut.readers.items():
            for index, root in inputs.items():
                readers.setdefault(root, []).append((layer, index))
        quiet = {
            layer: self.at_readers[layer].silent(self.fraction)
            for layer in cut.readers
            if layer in self.at_readers
        }
        for root in sorted(silent):
            folds = []
            for layer, index in readers.get(root, ()):
                name = graph.names[layer]
                if layer not in quiet or index >= len(quiet[layer]):
                    cut.why_not[root] = f"{name} was not seen to read it"
                elif not quiet[layer][index]:
                    weight: Tensor = layer.weight  # type: ignore[assignment]
                    eps = torch.finfo(weight.dtype).eps
                    constant = self.at_readers[layer].constant(index, eps)
                    if constant is None:
                        cut.why_not[root] = f"{name} reads other values than 0"
                    elif not _can_fold(layer):
                        cut.why_not[root] = f"{name} reads a constant that it can't take up"
                    else:
                        folds.append((layer, index, constant))
            if root not in cut.why_not:
                cut.removed.append(root)
                for layer, index, constant in folds:
                    cut.folds.setdefault(layer, {})[index] = constant
        if len(cut.removed) == cut.units:
            spared = cut.removed.pop(0)
            cut.why_not[spared] = "one unit is kept"
            for layer, inputs in cut.readers.items():
                for index in [i for i in cut.folds.get(layer, {}) if inputs[i] == spared]:
                    del cut.folds[layer][index]
        if cut.removed and not graph.fits(cut):
            cut.refuse("a layer tied to it would lose other units, or all")

    def _look_at_training(self) -> None:
        """The model's outputs in training mode, if it runs there and gives the same each time."""
        batch = self.kept[0][0]
        try:
            self.trained = training_outputs_of(self.model, batch)
            repeated = training_outputs_of(self.model, batch, seed=1)
        except Exception as error:  # a model may do anything on its training path
            self.uncompared = f"not looked at, as the model fails: {_first_line(error)}"
            return
        if any(_distance(y, first) for y, first in zip(repeated, self.trained, strict=True)):
            self.uncompared = "not compared, as it draws random numbers"

    def _carry_out(self, graph: Graph, cuts: Sequence[Cut]) -> float:
        """Remove what was decided and undo what changes the outputs; returns the largest change."""
        if not cuts:
            return 0.0
        start = Snapshot(self.model)
        failure, change = self._attempt(graph, cuts)
        if failure and len(cuts) > 1:
            for cut in cuts:
                start.restore()
                alone, _ = self._attempt(self._fresh_graph(), [cut])
                if alone:
                    cut.refuse(alone)
            start.restore()
            cuts = [cut for cut in cuts if cut.removed]
            failure, change = self._attempt(self._fresh_graph(), cuts)
        if failure:
            start.restore()
            for cut in cuts:
                cut.refuse(failure)
            self.in_training = ""
            return 0.0
        return change

    def _fresh_graph(self) -> Graph:
        return Graph(self.model, self.example, ())

    def _attempt(self, graph: Graph, cuts: Sequence[Cut]) -> tuple[str, float]:
        """Remove these and compare; returns why it failed, if it did, and the largest change."""
        expected = [self._masked(batch, cuts) for batch, _ in self.kept] if self.lossy else None
        try:
            folds: dict[nn.Module, dict[int, float]] = {}
            for cut in cuts:
                for layer, constants in cut.folds.items():
                    folds.setdefault(layer, {}).update(constants)
            for layer, constants in folds.items():  # before the inputs are renumbered
                _fold(layer, constants)
            graph.remove(cuts)
            pruned = [outputs_of(self.model, batch) for batch, _ in self.kept]
        except Exception as error:
            # A model may raise anything if its shapes are not as it expects.
            return f"without it the model fails: {_first_line(error)}", 0.0
        original = [outputs for _, outputs in self.kept]
        for ys, targets in zip(pruned, expected or original, strict=True):
            if [y.shape for y in ys] != [y.shape for y in targets]:
                return "without it an output has another shape", 0.0
            for y, target in zip(ys, targets, strict=True):
                moved = _distance(y, target)
                if not moved <= ROUNDING * torch.finfo(target.dtype).eps * _largest(target):
                    return f"without it an output changes by {moved:.2g}", 0.0
        failure = self._attempt_training()
        if failure:
            return failure, 0.0
        pairs = [
            pair
            for ys, before in zip(pruned, original, strict=True)
            for pair in zip(ys, before, strict=True)
        ]
        return "", max((_distance(y, target) for y, target in pairs), default=0.0)

    def _attempt_training(self) -> str:
        """Run in training mode, if the model ran there before; returns why it failed, if it did."""
        self.in_training = self.uncompared
        if self.trained is None:
            return ""
        try:
            pruned = training_outputs_of(self.model, self.kept[0][0])
        except Exception as error:
            return f"without it the model fails in training mode: {_first_line(error)}"
        if [y.shape for y in pruned] != [y.shape for y in self.trained]:
            return "without it an output has another shape in training mode"
        if self.uncompared:
            return ""
        for y, target in zip(pruned, self.trained, strict=True):
            moved = _distance(y, target)
            if not moved <= ROUNDING * torch.finfo(target.dtype).eps * _largest(target):
                self.in_training = (
                    f"without what was removed an output changes by {moved:.2g} of up to "
                    f"{_largest(target):.2g}"
                )
                break
        return ""

    def _masked(self, batch: Any, cuts: Sequence[Cut]) -> list[Tensor]:
        """The outputs with nearly silent units set to 0: what the model must give without them."""
        zeros: dict[nn.Module, list[int]] = {}
        for cut in cuts:
            for layer, inputs in cut.readers.items():
                folded = cut.folds.get(layer, {})
                gone = set(cut.removed)
                zeros.setdefault(layer, []).extend(
                    index for index, root in inputs.items() if root in gone and index not in folded
                )

        def mask(layer: nn.Module, args: Any, kwargs: Any) -> Any:
            args = list(args) or [kwargs["input"]]
            index = torch.tensor(zeros[layer], device=args[0].device, dtype=torch.long)
            args[0] = args[0].index_fill(channels(layer), index, 0)
            return tuple(args), {k: v for k, v in kwargs.items() if k != "input"}

        hooks = [layer.register_forward_pre_hook(mask, with_kwargs=True) for layer in zeros]
        try:
            return outputs_of(self.model, batch)
        finally:
            for hook in hooks:
                hook.remove()


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:80] if text else ''}"


def _largest(y: Tensor) -> float:
    finite = y.double().nan_to_num(0.0, 0.0, 0.0)
    return float(finite.abs().max()) if y.numel() else 0.0


def _distance(y: Tensor, expected: Tensor) -> float:
    """The largest difference; infinities and NaNs must be the same in both."""
    y, expected = y.double(), expected.double()
    is_same = (y == expected) | (y.isnan() & expected.isnan())
    return float(torch.where(is_same, 0.0, (y - expected).abs()).max()) if y.numel() else 0.0


def _can_fold(layer: nn.Module) -> bool:
    """Whether an input that is constant everywhere adds the same to each output position."""
    if layer._parameters.get("bias") is None:
        return False
    if isinstance(layer, nn.Linear):
        return True
    padding: Any = layer.padding
    unpadded = padding == "valid" or (padding != "same" and not any(padding))
    plain = not getattr(layer, "transposed", False) and layer.groups == 1
    return bool(plain and (unpadded or layer.padding_mode != "zeros"))


def _fold(layer: nn.Module, constants: Mapping[int, float]) -> None:
    """Let the bias absorb what these inputs add."""
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    assert weight is not None and bias is not None
    with torch.no_grad():
        index = torch.tensor(list(constants), device=weight.device)
        values = torch.tensor(list(constants.values()), device=weight.device, dtype=torch.double)
        columns = weight.index_select(1, index).double()
        # A convolution adds up all of its taps.
        columns = columns.flatten(2).sum(-1) if columns.ndim > 2 else columns
        folded = (bias.double() + columns @ values).to(bias.dtype)
    layer._parameters["bias"] = nn.Parameter(folded)
