"""Remove the units that an activation with a flat part has silenced.

Silence is observed, not derived: the model runs on real inputs, and the inputs of each layer are
watched. A unit is removed if every layer that reads it reads 0 from it, whatever lies in between.
So residuals, products and depthwise convolutions, which tie units together, need no special rules.
torch-pruning finds which units are tied. What it cannot see (a softmax, a mean over the units)
shows in the outputs: every removal is tried, and undone if the outputs change.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..._missing import install
from ...functions import ACTIVATIONS
from .._columns import aligned
from ..slots import Slot, slots
from .run import Snapshot, macs_of
from .work import Work

FLAT = frozenset(
    {a.name for a in ACTIVATIONS.values() if a.is_dead}
    | {"hardsigmoid", "hardshrink", "softshrink"}
)
"""Functions that are exactly 0 over a whole range, by formula and not by underflow."""


@dataclass(frozen=True)
class PrunedSite:
    """What was found at one activation, and what was done."""

    name: str
    """Its path in the model; a suffix `#2` marks the second call of a module that is used twice."""
    function: str
    units: int
    """How many channels or features the activation had."""
    silent_units: tuple[int, ...]
    """The units whose output was silent."""
    removed_units: tuple[int, ...]
    """The units removed, or to be removed in a dry run. These can include units that are silent
    only later on.
    """
    why_not: str
    """Why silent units were kept; empty if none were."""

    @property
    def silent(self) -> int:
        """How many units are silent."""
        return len(self.silent_units)

    @property
    def removed(self) -> int:
        """How many units were removed."""
        return len(self.removed_units)


@dataclass(frozen=True)
class PruneReport:
    """What `mishkit.prune` found and did; `print` shows it as a table."""

    sites: tuple[PrunedSite, ...]
    parameters_before: int
    parameters_after: int
    macs_before: int
    """Multiply-accumulates of all matrix products, convolutions and attention on the example
    inputs. Counted by operator (`torch.utils.flop_counter`, halved), so functional calls are
    included.
    """
    macs_after: int
    max_change: float
    """The largest absolute change of any output, on the first batches that were watched."""
    max_output: float
    """The largest absolute output before pruning, for comparison."""
    compared: int
    """On how many batches these were measured."""
    dry_run: bool
    in_training: str = ""
    """How training mode, which was not watched, is affected: that outputs change, or why they were
    not compared. Empty if they stay the same.
    """

    @property
    def silent(self) -> int:
        """Silent units, summed over the sites."""
        return sum(site.silent for site in self.sites)

    @property
    def removed(self) -> int:
        """Removed units, summed over the sites; a unit shared by tied sites is counted at each."""
        return sum(site.removed for site in self.sites)

    def __str__(self) -> str:
        rows = [("site", "function", "units", "silent", "removed", "why not")]
        rows += [
            (s.name, s.function, f"{s.units:,}", f"{s.silent:,}", f"{s.removed:,}", s.why_not)
            for s in self.sites
        ]
        lines = aligned(rows, numbers=(2, 3, 4))
        batches = "1 batch" if self.compared == 1 else f"{self.compared} batches"
        lines += [
            "",
            _before_after("parameters", self.parameters_before, self.parameters_after),
            _before_after("MACs", self.macs_before, self.macs_after),
            f"greatest change of an output: {self.max_change:.3g} (outputs up to "
            f"{self.max_output:.3g}, {batches})",
        ]
        if self.in_training:
            lines.append(f"in training mode: {self.in_training}")
        if self.dry_run:
            lines.append("dry run: the model is as it was")
        return "\n".join(lines)


def _before_after(quantity: str, before: int, after: int) -> str:
    less = f" (-{(before - after) / before:.1%})" if after < before else ""
    return f"{quantity:<11}{before:,} -> {after:,}{less}"


def prune(
    model: nn.Module,
    *inputs: Any,
    data: Iterable[Any] | None = None,
    sites: str | Iterable[str] | None = None,
    threshold: float = 0.0,
    fraction: float = 0.0,
    dry_run: bool = False,
    progress: bool = True,
) -> PruneReport:
    """Remove the units that are silent on real inputs, so that the layers become narrower.

    A unit is a channel of a convolution or a feature of a linear layer. It is silent at an
    activation if ``|y| <= threshold`` there at all positions of all samples, or at all but a
    fraction of them. It is removed, with everything tied to it, if every Linear or Conv that reads
    it gets a silent input, or a constant that its bias can absorb. Otherwise it stays, and the
    report says why. With the defaults, the outputs on the watched inputs stay the same to rounding:
    every removal is tried, and undone if they change or if the model then fails in training mode.
    Outputs in training mode may change, because units can be silent only with the running
    statistics; the report then says so. On other inputs a unit may not be silent, so use data like
    those that the model will meet.

    The model is changed in place. Parameters are replaced by smaller ones, so create a new
    optimizer. Training modes, hooks, `requires_grad` and buffers stay as they were, except that
    BatchNorm's buffers lose the removed channels. The model is watched in eval mode without grad.
    The result can be trained, and saved whole. Needs the packages of the extra ``prune``.

    Parameters
    ----------
    model : torch.nn.Module
        a model in any floating dtype, on any device
    *inputs : Tensor or other arguments
        example inputs of any shape, used to trace the model and to count its MACs. The model is
        called as ``model(*inputs)``, or as ``model(**inputs[0])`` if there is one input and it is a
        mapping
    data : iterable of batches, optional
        the real inputs, on the model's device. A batch is a tensor, a tuple or list of positional
        arguments or a mapping of keyword arguments, without labels. If omitted, `inputs` are
        watched
    sites : str or iterable of str, optional
        names of activations, or patterns such as ``"blocks.*.act"``; by default all activations
        with a flat part at 0 (relu, h_mish, hard_mish, hardswish, ...). These are modules of known
        classes and functions held as module attributes, but not calls such as ``F.relu(x)`` in a
        `forward`
    threshold : float, default 0.0
        the largest absolute value of a silent output
    fraction : float, default 0.0
        the fraction of positions, below 1, at which a silent unit may exceed the threshold
    dry_run : bool, default False
        only report what would be removed; leave the model unchanged
    progress : bool, default True
        show a progress bar over `data` on a terminal, if rich is installed

    Returns
    -------
    PruneReport
        the units of each site: silent, removed, and why others were kept; parameters, MACs and the
        change of the outputs

    Raises
    ------
    ValueError
        if a pattern in `sites` matches no activation, if there are no inputs or `data` is empty, or
        if `threshold` or `fraction` is out of range
    TypeError
        if `data` is a tensor or a mapping instead of an iterable of batches
    ModuleNotFoundError
        if the extra ``prune`` is not installed
    """
    if not inputs:
        raise ValueError("mishkit.prune: give inputs, with which the model is traced")
    if isinstance(data, Tensor | Mapping):
        raise TypeError(
            f"mishkit.prune: data must be an iterable of batches, as [batch], not a single "
            f"{type(data).__name__}"
        )
    if not threshold >= 0:
        raise ValueError(f"mishkit.prune: threshold must not be below 0, but is {threshold}")
    if not 0 <= fraction < 1:
        raise ValueError(f"mishkit.prune: fraction must be in [0, 1), but is {fraction}")
    chosen = _chosen(model, sites)
    try:
        import torch_pruning  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in ("torch_pruning", "numpy"):
            raise
        raise ModuleNotFoundError(
            f"mishkit.prune needs {error.name}: {install(error.name, 'prune')}", name=error.name
        ) from None
    example = inputs[0] if len(inputs) == 1 and isinstance(inputs[0], Mapping) else inputs
    batches = [example] if data is None else data
    before = Snapshot(model)
    with before.leniently():
        try:
            parameters, macs = _parameters(model), macs_of(model, example)
            work = Work(model, chosen, example, threshold, fraction)
            work.run(batches, progress and data is not None)
            report = PruneReport(
                sites=_sites(work),
                parameters_before=parameters,
                parameters_after=_parameters(model),
                macs_before=macs,
                macs_after=macs_of(model, example),
                max_change=work.max_change,
                max_output=work.max_output,
                compared=len(work.kept),
                dry_run=dry_run,
                in_training=work.in_training,
            )
        except BaseException:
            before.restore()
            raise
        if dry_run:
            before.restore()
    return report


def _chosen(model: nn.Module, patterns: str | Iterable[str] | None) -> list[Slot]:
    """The slots to be watched: one per activation, even if it has several names."""
    activations = [slot for slot in slots(model) if slot.known is not None]
    if patterns is None:
        chosen = [slot for slot in activations if slot.known and slot.known.function in FLAT]
    else:
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        chosen = []
        for pattern in patterns:
            matched = [slot for slot in activations if fnmatch.fnmatchcase(slot.name, pattern)]
            if not matched:
                there = ", ".join(slot.name for slot in activations) or "none"
                raise ValueError(
                    f'mishkit.prune: "{pattern}" is no activation of this model; it has {there}'
                )
            chosen += matched
    once: dict[Any, Slot] = {}
    for slot in chosen:
        module = isinstance(slot.value, nn.Module)
        once.setdefault(id(slot.value) if module else (id(slot.owner), slot.attribute), slot)
    return list(once.values())


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _sites(work: Work) -> tuple[PrunedSite, ...]:
    """What was found at each call of the activations, and at activations that were not called."""
    pruned = []
    for call in sorted({*work.shapes, *work.at_sites, *((p, 1) for p in range(len(work.chosen)))}):
        place, number = call
        slot = work.chosen[place]
        reading = work.at_sites.get(call)
        quiet = reading.silent(work.fraction) if reading else []
        silent = [unit for unit, is_silent in enumerate(quiet) if is_silent]
        removed, reasons = [], Counter[str]()
        cuts = [(cut, cut.sites[call], set(cut.removed)) for cut in work.cuts if call in cut.sites]
        for unit, is_silent in enumerate(quiet):
            roots = [(cut, units[unit], gone) for cut, units, gone in cuts if unit in units]
            if any(root in gone for _, root, gone in roots):
                removed.append(unit)
            elif is_silent and roots:
                cut, root, _ = roots[0]
                reasons[cut.why_not[root]] += 1
            elif is_silent:
                reasons["no layer before it makes its units"] += 1
        if call not in work.shapes:
            reasons["it was not called with the example inputs"] = 0
        elif reading is None:
            reasons["it was not called with the data"] = 0
        elif not quiet:
            reasons["its width changes with the inputs"] = 0
        several = len(reasons) > 1
        why = "; ".join(f"{n}: {r}" if several else r for r, n in reasons.most_common())
        pruned.append(
            PrunedSite(
                name=slot.name + (f"#{number}" if number > 1 else ""),
                function=slot.known.function if slot.known else "",
                units=len(quiet),
                silent_units=tuple(silent),
                removed_units=tuple(removed),
                why_not=why,
            )
        )
    return tuple(pruned)
