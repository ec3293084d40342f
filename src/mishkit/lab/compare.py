"""`mishkit compare`: trains one network with several activations and tabulates what each costs."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pandas as pd
from lightning_fabric import Fabric

from . import LabError, contenders, data, environment, training
from .contenders import Contender
from .training import Recipe, Run, Watcher

INTERRUPTED = 130
"""The exit status of a program stopped by Ctrl-C."""


@dataclass(frozen=True)
class Settings:
    """What is compared and how."""

    activations: tuple[str, ...] = contenders.DEFAULT
    data: str = "mnist"
    data_root: Path = Path("data")
    download: bool = False
    image_size: int | None = None
    train_samples: int | None = None
    test_samples: int | None = None
    channels: int = 16
    epochs: int = 5
    seeds: int = 3
    first_seed: int = 0
    batch_size: int = 64
    lr: float = 5e-3
    target: float = 0.93
    threads: int | None = None
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: str = "1"
    strategy: str = "auto"
    output: Path = Path("mishkit-compare")

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.epochs, self.batch_size, self.lr, self.channels)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: finished runs, in the order in which they were done."""

    settings: Settings
    command: str
    environment: dict[str, str]
    contenders: list[Contender]
    data: data.Images
    devices: int
    runs: list[Run]

    @property
    def is_complete(self) -> bool:
        return len(self.runs) == len(self.contenders) * self.settings.seeds

    @property
    def baseline(self) -> Contender:
        """Whose time and bytes are 1: the first ReLU, or else the first contender."""
        relus = [contender for contender in self.contenders if contender.function == "relu"]
        return (relus or self.contenders)[0]

    def runs_of(self, contender: Contender) -> list[Run]:
        return [run for run in self.runs if run.activation == contender.name]


def main(settings: Settings, command: str) -> int:
    """Compares, prints and writes; returns the exit status of the process."""
    entrants = [contenders.find(name) for name in dict.fromkeys(settings.activations)]
    if not entrants:
        raise LabError("no activation to compare")
    try:
        fabric = Fabric(
            accelerator=settings.accelerator,
            strategy=settings.strategy,
            devices=settings.devices,
            precision=cast(Any, settings.precision),
        )
    except Exception as error:  # Fabric has many ways to say that a choice does not fit
        reason = " ".join(str(error).split())
        raise LabError(f"Lightning Fabric refuses these settings: {reason}") from error
    images = data.load(
        settings.data,
        seed=settings.first_seed,
        train_samples=settings.train_samples,
        test_samples=settings.test_samples,
        image_size=settings.image_size,
        root=settings.data_root,
        download=settings.download,
    )
    if settings.batch_size > len(images.train_labels):
        raise LabError(
            f"a batch of {settings.batch_size} is more than the {len(images.train_labels)} images "
            "there are to train with"
        )
    if settings.batch_size % fabric.world_size:
        raise LabError(
            f"a batch of {settings.batch_size} does not divide evenly over "
            f"{fabric.world_size} devices"
        )
    compare_and_tell: Any = _compare_and_tell  # Fabric's annotation forgets the further arguments
    return int(fabric.launch(compare_and_tell, settings, command, images))


def _compare_and_tell(fabric: Fabric, settings: Settings, command: str, images: data.Images) -> int:
    """What each process does; the first alone prints and writes."""
    if not fabric.is_global_zero:
        compare(fabric, settings, command, images, Watcher())
        return 0
    from . import console, report

    with console.Progress(settings) as progress:
        result = compare(fabric, settings, command, images, progress)
    if not result.runs:
        console.say("Stopped before the first training was finished: there is nothing to report.")
        return INTERRUPTED
    console.show(result)
    console.say_path(report.write(result))
    return 0 if result.is_complete else INTERRUPTED


def compare(
    fabric: Fabric, settings: Settings, command: str, images: data.Images, watcher: Watcher
) -> Comparison:
    """Trains every contender once for every seed.

    All contenders take a turn with one seed before the next seed begins, each time in another
    order, so that a machine that is slow for a while is slow for all of them. Ctrl-C ends it with
    the trainings that are finished.
    """
    entrants = [contenders.find(name) for name in dict.fromkeys(settings.activations)]
    runs: list[Run] = []
    with training.reproducible(settings.threads), StopRequest() as stop:
        facts = environment.describe(fabric.device)
        try:
            for contender, seed in schedule(entrants, settings.first_seed, settings.seeds):
                runs.append(
                    training.train(
                        fabric, contender, images, settings.recipe, seed, watcher, stop.is_set
                    )
                )
        except training.Stopped:
            pass
    return Comparison(settings, command, facts, entrants, images, fabric.world_size, runs)


def schedule(
    entrants: Sequence[Contender], first_seed: int, seeds: int
) -> Iterator[tuple[Contender, int]]:
    """Round-robin over the contenders, beginning with another one for each seed."""
    for turn in range(seeds):
        start = turn % len(entrants)
        for contender in [*entrants[start:], *entrants[:start]]:
            yield contender, first_seed + turn


class StopRequest:
    """While it is entered, the first Ctrl-C sets a flag; the second interrupts as usual."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._before: Any = None
        self._installed = False

    def is_set(self) -> bool:
        return self._event.is_set()

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids it
            self._before = signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        return self

    def __exit__(self, *exc: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)


def summarise(result: Comparison) -> pd.DataFrame:
    """One row a contender that has a finished run, in the order in which they were named.

    For each quantity: mean, std (over steps, epochs or seeds; with n − 1), min, 10 % quantile,
    median, 90 % quantile, max. Times of steps in milliseconds, of epochs in seconds, bytes a
    sample, accuracies in percent. Ratios are to the baseline, those of times between medians: a few
    steps that the machine spent on something else move a mean far. `reached` counts the seeds that
    came to the target, and the figures about it are over those.
    """
    rows = []
    for contender in result.contenders:
        runs = result.runs_of(contender)
        if not runs:
            continue
        forward = [1e3 * value for run in runs for value in run.forward]
        backward = [1e3 * value for run in runs for value in run.backward]
        reached = [hit for run in runs if (hit := run.reached(result.settings.target))]
        rows.append(
            {
                "activation": contender.name,
                "label": contender.label,
                "seeds": len(runs),
                **_spread("forward_ms", forward),
                **_spread("backward_ms", backward),
                **_spread("step_ms", [f + b for f, b in zip(forward, backward, strict=True)]),
                "step_ratio": math.nan,
                "kept_bytes": sum(run.kept_bytes for run in runs) / len(runs),
                "kept_ratio": math.nan,
                **_spread("epoch_s", [epoch.seconds for run in runs for epoch in run.epochs]),
                "epoch_ratio": math.nan,
                "reached": len(reached),
                **_spread("epochs_to_target", [float(epochs) for epochs, _ in reached]),
                **_spread("seconds_to_target", [seconds for _, seconds in reached]),
                **_spread("accuracy", [100 * run.epochs[-1].test_accuracy for run in runs]),
            }
        )
    table = pd.DataFrame(rows)
    baseline = table[table["activation"] == result.baseline.name]
    if len(baseline):
        for ratio, of in (
            ("step_ratio", "step_ms_median"),
            ("kept_ratio", "kept_bytes"),
            ("epoch_ratio", "epoch_s_median"),
        ):
            table[ratio] = table[of] / baseline[of].iloc[0]
    return table


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    series = pd.Series(values, dtype="float64")
    quantiles = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}
    return {
        f"{name}_mean": float(series.mean()),
        f"{name}_std": float(series.std()),
        **{f"{name}_{what}": float(series.quantile(q)) for what, q in quantiles.items()},
    }


def epochs_table(result: Comparison) -> pd.DataFrame:
    """Tidy: one row for each contender, seed and epoch. Seconds are of training alone."""
    rows = []
    for run in result.runs:
        seconds = 0.0
        for epoch in run.epochs:
            seconds += epoch.seconds
            rows.append(
                {
                    "activation": run.activation,
                    "seed": run.seed,
                    "epoch": epoch.number,
                    "train_loss": epoch.train_loss,
                    "test_loss": epoch.test_loss,
                    "test_accuracy": epoch.test_accuracy,
                    "epoch_seconds": epoch.seconds,
                    "seconds": seconds,
                }
            )
    return pd.DataFrame(rows)


def steps_table(result: Comparison) -> pd.DataFrame:
    """Tidy: one row for each contender, seed and step, times in milliseconds."""
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "activation": run.activation,
                    "seed": run.seed,
                    "step": range(1, len(run.forward) + 1),
                    "forward_ms": [1e3 * value for value in run.forward],
                    "backward_ms": [1e3 * value for value in run.backward],
                }
            )
            for run in result.runs
        ],
        ignore_index=True,
    )


def settings_json(settings: Settings) -> dict[str, Any]:
    """The settings as plain values."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(settings).items()
    }


def results_json(result: Comparison) -> str:
    """Everything but the single steps, as JSON; what is not a number is null."""
    content = {
        "command": result.command,
        "complete": result.is_complete,
        "environment": result.environment,
        "settings": settings_json(result.settings),
        "data": {
            "source": result.data.source,
            "train": len(result.data.train_labels),
            "test": len(result.data.test_labels),
            "shape": result.data.shape,
            "classes": result.data.classes,
        },
        "devices": result.devices,
        "baseline": result.baseline.name,
        "summary": json.loads(summarise(result).to_json(orient="records", double_precision=15)),
        "runs": [
            {"activation": run.activation, "seed": run.seed, "kept_bytes": run.kept_bytes}
            for run in result.runs
        ],
        "epochs": json.loads(epochs_table(result).to_json(orient="records", double_precision=15)),
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"
