"""The figures of a report, as SVG to be embedded in an HTML page.

Colours are CSS variables (``--ink``, ``--grid``, ``--c0`` … ``--c7``) and text stays text, so a
figure follows the page's fonts and its light or dark scheme. Contenders differ in marker and line
style as well as in colour.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from ..common.formats import significant
from .comparison import Comparison
from .intervals import interval

# Placeholders that matplotlib accepts as colours, replaced by CSS variables afterwards.
INK, GRID = "#010203", "#040506"
SERIES = tuple(f"#0a0b{number:02x}" for number in range(8))
VARIABLES = {INK: "--ink", GRID: "--grid"} | {
    colour: f"--c{number}" for number, colour in enumerate(SERIES)
}
MARKERS = "osD^vPX*<"
"""One more than there are colours, so that the first 72 contenders differ."""
DASHES: tuple[Any, ...] = (
    "-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1)), "-.", "--", ":"
)  # fmt: skip
SIZE = (5.2, 3.5)
"""Inches; at 72 pixels per inch, the width of a phone held upright."""
ROW = 0.2
"""Inches added for each line of a legend or bar chart beyond the first `ROWS`."""
ROWS = 4
RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}


def accuracy_by_epoch(result: Comparison, data: str) -> str:
    """Test accuracy against epoch: the mean over seeds, with a band for the 95 % interval."""
    table = result.epochs
    table = table[(table["phase"] == "final") & (table["data"] == data)]
    with _figure(f"accuracy-by-epoch {data}", len(result.contenders) / 2) as (figure, axes):
        lowest, highest = [], []
        for number, contender in enumerate(result.contenders):
            group = table[table["activation"] == contender.name]
            if group.empty:
                continue
            intervals = [
                interval(100 * accuracies) for _, accuracies in group.groupby("epoch")["accuracy"]
            ]
            epochs = sorted(group["epoch"].unique())
            mean = np.array([estimate.mean for estimate in intervals])
            half = np.nan_to_num([estimate.half for estimate in intervals])
            axes.fill_between(
                epochs, mean - half, mean + half, color=_colour(number), alpha=0.14, linewidth=0
            )
            axes.plot(epochs, mean, label=contender.label, **_line(number))
            lowest.append((mean - half)[-1])
            highest.append((mean + half).max())
        target = 100 * result.targets[data]
        # Leaves out the steep initial rise, where all curves coincide.
        low, high = min(*lowest, target), max(*highest, target)
        axes.set_ylim(max(0, low - 0.5 * (high - low) - 1), min(100, high + 1))
        axes.axhline(target, color=INK, linewidth=0.9, linestyle=":")
        axes.annotate(
            "target", (0, target), (2, 2), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="left", fontsize=8,
        )  # fmt: skip
        axes.set_xlabel("epoch")
        axes.set_ylabel("test accuracy, %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True)
        _legend(figure)
        return _svg(figure, f"Test accuracy against epoch, {data}")


def accuracy_by_step(result: Comparison, summary: pd.DataFrame, data: str) -> str:
    """Final accuracy against the time of a step, both with their 95 % intervals."""
    with _figure(f"accuracy-by-step {data}", len(result.contenders) / 2) as (figure, axes):
        for number, row in _rows(result, summary, data):
            look = _line(number) | {"linestyle": "none", "markersize": 7}
            axes.errorbar(
                row["step_ms"],
                row["accuracy"],
                xerr=np.nan_to_num(row["step_ms_half"]),
                yerr=np.nan_to_num(row["accuracy_half"]),
                elinewidth=1,
                capsize=2,
                **look,
            )
            axes.plot([], [], label=row["label"], **look)  # a legend entry without error bars
        axes.set_xlabel("time of a training step, ms")
        axes.set_ylabel("final test accuracy, %")
        axes.margins(0.08)
        axes.grid(True)
        _legend(figure)
        return _svg(figure, f"Final accuracy against the time of a step, {data}")


def differences(result: Comparison, summary: pd.DataFrame, data: str) -> str:
    """Accuracy differences to the baseline on equal seeds, with both intervals."""
    with _figure(f"differences {data}", len(result.contenders)) as (figure, axes):
        labels: list[str] = []
        for number, row in _rows(result, summary, data):
            if row["activation"] == result.baseline.name:
                continue
            place, middle = len(labels), row["accuracy_diff"]
            labels.append(row["label"])
            for name, width in (("wide", 1.2), ("half", 4.5)):
                half = np.nan_to_num(row[f"accuracy_diff_{name}"])
                axes.plot(
                    [middle - half, middle + half], [place, place], color=_colour(number),
                    linewidth=width, solid_capstyle="butt",
                )  # fmt: skip
            look = _line(number) | {"linestyle": "none", "markersize": 7}
            axes.plot([middle], [place], **look, markeredgecolor=INK, markeredgewidth=0.6)
        axes.axvline(0, color=INK, linewidth=0.9)
        axes.set_yticks(range(len(labels)), labels)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.grid(True, axis="x")
        axes.set_xlabel(f"points above {result.baseline.label}")
        return _svg(figure, f"Differences in accuracy to the baseline, {data}")


def kept_bytes(result: Comparison, summary: pd.DataFrame, data: str) -> str:
    """Bytes kept for the backward pass, per sample."""
    with _figure(f"kept-bytes {data}", len(result.contenders)) as (figure, axes):
        labels: list[str] = []
        for number, row in _rows(result, summary, data):
            kibibytes = row["kept_bytes"] / 1024
            axes.barh(len(labels), kibibytes, 0.7, color=_colour(number))
            axes.annotate(
                significant(kibibytes), (kibibytes, len(labels)), (4, 0),
                textcoords="offset points", va="center",
            )  # fmt: skip
            labels.append(row["label"])
        axes.margins(x=0.16)
        axes.set_yticks(range(len(labels)), labels)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.grid(True, axis="x")
        axes.set_xlim(left=0)
        axes.set_xlabel("kept for backward, KiB a sample")
        return _svg(figure, f"Bytes kept for the backward pass, {data}")


def rates(result: Comparison, data: str) -> str:
    """Validation accuracy against the learning rate; a ring marks the chosen rate."""
    with _figure(f"rates {data}", len(result.contenders) / 2) as (figure, axes):
        for number, contender in enumerate(result.contenders):
            choice = result.choices[data, contender.name]
            means = [score.mean for _, score in choice.scores]
            grid = [lr for lr, _ in choice.scores]
            axes.plot(grid, means, label=contender.label, **_line(number))
            axes.plot(
                [choice.lr], [means[grid.index(choice.lr)]], marker="o", markersize=11,
                markerfacecolor="none", markeredgecolor=_colour(number), linestyle="none",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(result.settings.rates, [f"{lr:g}" for lr in result.settings.rates])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("learning rate")
        axes.set_ylabel("validation accuracy, %")
        axes.grid(True)
        _legend(figure)
        return _svg(figure, f"Validation accuracy against learning rate, {data}")


def _rows(
    result: Comparison, summary: pd.DataFrame, data: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a data set, each with the number that determines its contender's style."""
    names = [contender.name for contender in result.contenders]
    for row in summary[summary["data"] == data].to_dict("records"):
        yield names.index(row["activation"]), {str(name): value for name, value in row.items()}


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside upper left", ncols=2, handlelength=3)


def _colour(number: int) -> str:
    return SERIES[number % len(SERIES)]


def _line(number: int) -> dict[str, Any]:
    return {
        "color": _colour(number),
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[(number + number // len(SERIES)) % len(DASHES)],
    }


@contextmanager
def _figure(name: str, rows: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure, high enough for this many lines of text."""
    width, height = SIZE
    # The salt makes the ids of figures unique on a page, and the same in every run.
    with mpl.rc_context({**RC, "svg.hashsalt": name}):
        size = (width, height + ROW * max(0, math.ceil(rows) - ROWS))
        figure = Figure(size, layout="constrained")
        yield figure, figure.add_subplot()


def _svg(figure: Figure, title: str) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
    # The page sets the size; the view box keeps the proportions.
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return re.sub(r"font: [\d.]+px [^;\"]*", _own_font, svg)


def _own_font(match: re.Match[str]) -> str:
    size = match.group().split()[1]
    return f"font-size: {size}; font-family: inherit"
