"""The report of `mishkit compare`: a self-contained HTML file beside the tables it is made from."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import jinja2
import pandas as pd

from ..common import formats
from ..common.files import whole_file
from . import plots, verdicts
from .comparison import Comparison

TABLES = ("trials.csv", "epochs.csv", "summary.csv")


def write(result: Comparison) -> Path:
    """Write the tables and the page into the output folder; returns the path of report.html."""
    folder = result.settings.output
    for name, table in zip(
        TABLES, (result.trials, result.epochs, verdicts.summarise(result)), strict=True
    ):
        with whole_file(folder / name) as file:
            table.to_csv(file, index=False)
    path = folder / "report.html"
    with whole_file(path) as file:
        file.write(render(result))
    return path


def render(result: Comparison) -> str:
    """The HTML page."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        significant=formats.significant,
        ratio=formats.ratio,
        thousands="{:,}".format,
        counted=formats.counted,
    )
    environment.globals.update(
        with_half=formats.with_half, signed=formats.signed, between=formats.between
    )
    template = environment.from_string(
        (files(__package__) / "report.html.j2").read_text(encoding="utf-8")
    )
    summary = verdicts.summarise(result)
    names = [contender.name for contender in result.contenders]
    return template.render(
        result=result,
        settings=result.settings,
        headline=verdicts.headline(summary, result.baseline.label),
        budget=verdicts.budget(summary, result.baseline.label),
        groups=[
            {
                "data": data,
                "rows": summary[summary["data"] == data].to_dict("records"),
                "facts": next(facts for trial, facts in result.done if trial.data == data),
                "train": _size(result, data, "train_size"),
                "test": _size(result, data, "test_size"),
                "figures": list(figures(result, summary, str(data))),
            }
            for data in summary["data"].unique()
        ],
        pairs=int((summary["activation"] != result.baseline.name).sum()),
        trials=result.trials.astype(object).where(result.trials.notna(), None).to_dict("records"),
        colours={name: number % len(plots.SERIES) for number, name in enumerate(names)},
        edges=summary[summary["lr_at_edge"]].to_dict("records"),
        diverged=summary[summary["diverged"] > 0].to_dict("records"),
        twins=twins(result),
        several_machines=result.trials["processor"].nunique() > 1,
        verdicts=verdicts,
        NONE=formats.NONE,
    )


def figures(result: Comparison, summary: pd.DataFrame, data: str) -> Iterator[tuple[str, str, str]]:
    """Title, SVG and caption of every figure for a data set."""
    yield (
        "Accuracy against epoch",
        plots.accuracy_by_epoch(result, data),
        "Mean over seeds; the band is its 95 % interval. The axis is cut below. From epochs.csv, "
        "phase “final”.",
    )
    yield (
        "Accuracy against the time of a step",
        plots.accuracy_by_step(result, summary, data),
        "Up and to the left is better. Means over seeds, with their 95 % intervals: accuracy and "
        "step_ms in summary.csv.",
    )
    if (summary["activation"] != result.baseline.name).any():
        yield (
            f"Difference to {result.baseline.label}",
            plots.differences(result, summary, data),
            "In final accuracy, on equal seeds. The thick bar is the 95 % interval; the thin line, "
            "from which verdicts are drawn, holds all comparisons to 95 % together. "
            "accuracy_diff in summary.csv.",
        )
    yield (
        "Memory kept for backward",
        plots.kept_bytes(result, summary, data),
        "What autograd holds between forward and backward, over the whole network: kept_bytes in "
        "summary.csv.",
    )
    if len(result.settings.rates) > 1:
        yield (
            "The search for the learning rate",
            plots.rates(result, data),
            "Mean accuracy on the validation part over the tuning seeds; rings mark what was "
            "chosen. From trials.csv, phase “tune”.",
        )


def twins(result: Comparison) -> list[str]:
    """The labels of contenders that compute the same function; the largest such group."""
    groups: dict[str, list[str]] = {}
    for contender in result.contenders:
        if (result.finals["activation"] == contender.name).any():
            groups.setdefault(contender.function, []).append(contender.label)
    largest = max(groups.values(), key=len)
    return largest if len(largest) > 1 else []


def _size(result: Comparison, data: str, column: str) -> int:
    finals = result.finals
    return int(finals[finals["data"] == data][column].iloc[0])
