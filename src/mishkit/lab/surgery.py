"""`mishkit audit` and `mishkit lean`: what a model's activations cost, and what `lean` changes."""

from __future__ import annotations

import csv
import dataclasses
import gc
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from torch import nn

import mishkit as mk
from mishkit._progress import progress, step
from mishkit._repeats import repeats
from mishkit.surgery._state import undisturbed
from mishkit.surgery.keepers import Keeper
from mishkit.surgery.report import LEAN, Report, readable
from mishkit.surgery.watch import tensors_of

from . import LabError
from .common.bars import FittingTable, table
from .common.errors import telling
from .common.files import whole_file
from .common.memory import grown_by, in_process, return_freed_memory
from .common.models import Example, load, mean_square

AUTOCASTS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """Which model to look at, and how."""

    name: str
    shapes: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    autocast: str | None = None
    """A 16-bit dtype."""
    evaluation: bool = False
    """Use eval mode instead of training mode."""

    def __post_init__(self) -> None:
        if self.autocast is not None and self.autocast not in AUTOCASTS:
            raise LabError(f"--autocast takes {' or '.join(AUTOCASTS)}, not {self.autocast}")

    def load(self) -> Example:
        """The model and its inputs, the same on every call."""
        return load(self.name, self.shapes, self.options, train=not self.evaluation)

    def casting(self, model: nn.Module) -> Any:
        """The context manager for the model's forward passes."""
        if self.autocast is None:
            return nullcontext()
        weight = next(model.parameters(), torch.empty(0))
        return torch.autocast(weight.device.type, AUTOCASTS[self.autocast])


@dataclass(frozen=True)
class Effect:
    """A training step before and after `lean`."""

    name: str
    sites: int
    leaned: int
    """How many modules `lean` changes."""
    kept: int
    """Bytes kept for the backward pass before, as counted by `KeptBytes`."""
    audited: int
    """The same according to the audit."""
    promised: int
    """The bytes kept after `lean`, as predicted by the audit."""
    after: int
    """The bytes kept after `lean`, as counted by `KeptBytes`."""
    sites_before: int
    """Bytes kept before only because of the sites that `lean` changes."""
    sites_saving: int
    """How many of these bytes the audit predicted to be saved."""
    loss: float
    loss_error: float
    """loss after − loss before|, divided by the loss."""
    gradient_error: float
    """‖gradient after − before‖ divided by ‖gradient before‖, over all parameters together."""
    peak: int | None = None
    """Bytes by which a training step raises the resident memory, before; None if unknown."""
    peak_after: int | None = None
    keepers: tuple[Keeper, ...] = ()
    """If asked for: what keeps memory before, with the recomputable parts first."""


def audit(settings: Settings) -> Report:
    """Audit a model given by name."""
    with progress("mishkit audit", steps=1):
        step(f"building {settings.name}")
        return _audited(settings.load(), settings)


def _audited(example: Example, settings: Settings) -> Report:
    with _calling(example), settings.casting(example.model):
        return mk.audit(example.model, *example.inputs)


def _calling(example: Example) -> AbstractContextManager[None]:
    """Reports errors in the model's forward and backward passes along with its inputs."""
    shapes = (f"{'×'.join(map(str, t.shape))} {t.dtype}" for t in tensors_of(example.inputs))
    return telling(f"{example.name} with inputs {' and '.join(shapes)}".replace("torch.", ""))


def effect(
    settings: Settings, keywords: Mapping[str, Any], *, peaks: bool = True, keepers: bool = False
) -> Effect:
    """Apply `lean` with these options to a model given by name, and measure what changes for one
    training step.

    Both steps start with the same parameters and random numbers. Resident memory is measured in a
    separate process for each. With `keepers`, these are found too.
    """
    with progress("mishkit lean", steps=3):
        return _effect(settings, keywords, peaks, keepers)


def _effect(
    settings: Settings, keywords: Mapping[str, Any], peaks: bool, wants_keepers: bool
) -> Effect:
    step(f"building {settings.name}")
    example = settings.load()
    keepers = _audited(example, settings).keepers if wants_keepers else ()
    by_recomputable = sorted(keepers, key=lambda keeper: (-keeper.recomputable, -keeper.nbytes))
    with _calling(example):
        step("a training step as it is")
        kept, loss, gradient = _step(settings, example)
        with settings.casting(example.model):
            report = mk.lean(example.model, *example.inputs, **keywords)
        step("a training step that is lean")
        after, lean_loss, lean_gradient = _step(settings, example)
    pays = [site for site in report.sites if site.by == LEAN]
    norm = torch.linalg.vector_norm
    gradient_error = _relative(norm(lean_gradient - gradient).item(), norm(gradient).item())
    del example, lean_gradient, gradient
    peak = peak_after = None
    if peaks and Path("/proc/self/clear_refs").exists():
        step("the peak of memory as it is", more=1)
        peak = peak_in_process(settings, None)
        step("the peak of memory when lean", more=1)
        peak_after = peak_in_process(settings, keywords)
    return Effect(
        name=settings.name,
        sites=len(report.sites),
        leaned=len(report.changed or ()),
        kept=kept,
        audited=report.kept,
        promised=report.after_lean,
        after=after,
        sites_before=sum(site.alone for site in pays),
        sites_saving=sum(site.saving for site in pays),
        loss=loss,
        loss_error=_relative(abs(lean_loss - loss), abs(loss)),
        gradient_error=gradient_error,
        peak=peak,
        peak_after=peak_after,
        keepers=tuple(by_recomputable),
    )


def _relative(error: float, size: float) -> float:
    if not size:  # for example if a model returns zeros
        return math.inf if error else 0.0
    return error / size


def _step(settings: Settings, example: Example) -> tuple[int, float, torch.Tensor]:
    """The bytes that a step keeps, its loss, and all gradients in one vector; the model is left
    unchanged.
    """
    model = example.model
    excluded = [*model.parameters(), *model.buffers(), *tensors_of(example.inputs)]
    with undisturbed(model, example.inputs):
        torch.manual_seed(1)
        model.zero_grad()
        with settings.casting(model):
            with mk.KeptBytes(exclude=excluded) as kept:
                output = model(*example.inputs)
            loss = mean_square(output)
        total = kept.total
        del kept
        loss.backward()
        gradients = [p.grad.flatten().double() for p in model.parameters() if p.grad is not None]
    return total, loss.item(), torch.cat(gradients)


# ---- resident memory ----


def peak_in_process(settings: Settings, keywords: Mapping[str, Any] | None) -> int | None:
    """`_peak` in a separate process."""
    peak: int | None = in_process(_peak, settings, keywords)
    return peak


def _peak(settings: Settings, keywords: Mapping[str, Any] | None) -> int | None:
    """Bytes by which one training step raises the resident memory above its starting level: the
    model, its gradients, the optimizer's state and what is cached after a first step. `lean` is
    applied with the options `keywords`; None leaves the model as it is.
    """
    return_freed_memory()
    example = settings.load()
    model = example.model
    if keywords is not None:
        with settings.casting(model):
            mk.lean(model, *example.inputs, **keywords)
    step = training_step(example, partial(settings.casting, model))
    step()
    gc.collect()
    return grown_by(step, repeats=1)


def training_step(example: Example, casting: Callable[[], Any] = nullcontext) -> Callable[[], None]:
    """One step of SGD with momentum, with the forward pass and loss inside the `casting` context.
    The weights do not change, since the learning rate is 0.
    """
    model = example.model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def step() -> None:
        with casting():
            loss = mean_square(model(*example.inputs))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return step


# ---- the terminal ----

_console = Console(highlight=False)


def show(report: Report, top: int | None = None) -> None:
    """Print an audit, with the sites to change in bold."""
    for line, style in report.styled(top):
        _console.print(Text(line, style=style), soft_wrap=True)


def effect_as_json(effect: Effect, top: int = 0) -> str:
    """An effect as JSON, with the names of its attributes as keys, and the first `top` keepers."""
    shortened = dataclasses.replace(effect, keepers=effect.keepers[:top])
    return json.dumps(dataclasses.asdict(shortened), indent=2, ensure_ascii=False)


def show_effects(effects: Sequence[Effect], top: int = 0) -> None:
    """Print what `lean` changed, and the first `top` rows of keepers."""
    kept = table(
        "Bytes kept for backward", ("model", "sites", "lean", "before", "promised", "after", "×")
    )
    step = table(
        "One training step",
        ("model", "loss", "loss,\nerror", "gradient,\nerror", "peak,\nbefore", "after", "×"),
    )
    for effect in effects:
        kept.add_row(
            effect.name,
            str(effect.sites),
            str(effect.leaned),
            *(readable(count) for count in (effect.kept, effect.promised, effect.after)),
            f"{effect.after / effect.kept:.3f}" if effect.kept else "",
        )
        peaks = [effect.peak, effect.peak_after]
        step.add_row(
            effect.name,
            f"{effect.loss:.4g}",
            f"{effect.loss_error:.1e}",
            f"{effect.gradient_error:.1e}",
            *(readable(peak) if peak is not None else "–" for peak in peaks),
            f"{effect.peak_after / effect.peak:.3f}" if effect.peak and effect.peak_after else "",
        )
    _console.print(kept)
    _console.print(step)
    _console.print(
        "Errors are relative; the gradient's is that of all parameters together. Peak: by how much "
        "a step raises the resident memory.",
        soft_wrap=True,
    )
    for effect in effects:
        if effect.keepers and top:
            _console.print(_keepers_table(effect, top))


def _keepers_table(effect: Effect, top: int) -> FittingTable:
    """What keeps memory before; repeated blocks share a row."""
    grid = table(
        f"What {effect.name} keeps before",
        ("module", "operator", "kept", "can be\nrecomputed"),
        words=2,
    )
    rows = repeats(effect.keepers, lambda keeper: keeper.module, lambda keeper: keeper.operator)
    for row in rows[:top]:
        counts = (
            sum(keeper.nbytes for keeper in row.items),
            sum(keeper.recomputable for keeper in row.items),
        )
        place = row.name + row.times
        grid.add_row(Text(place or "(model)"), row.items[0].operator, *map(readable, counts))
    return grid


def write_csv(report: Report, path: Path) -> None:
    """One row per site."""
    with whole_file(path) as file:
        names = (
            [field.name for field in dataclasses.fields(report.sites[0])] if report.sites else []
        )
        writer = csv.writer(file)
        writer.writerow(names)
        for site in report.sites:
            writer.writerow([_cell(getattr(site, name)) for name in names])


def _cell(value: Any) -> Any:
    if isinstance(value, tuple):
        return (
            "×".join(map(str, value)) if value and isinstance(value[0], int) else "; ".join(value)
        )
    return value
