"""The figures of a report, as SVG to be set into an HTML page.

Colours are CSS variables (``--ink``, ``--grid``, ``--c0`` … ``--c7``) and text is text, so that a
figure follows the page's fonts and its light or dark scheme. Contenders differ in marker and line
style as well as in colour.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .compare import Comparison, epochs_table

# Stand-ins, which matplotlib takes for colours, and the CSS variables that replace them.
INK, GRID = "#010203", "#040506"
SERIES = tuple(f"#0a0b{number:02x}" for number in range(8))
VARIABLES = {INK: "--ink", GRID: "--grid"} | {
    colour: f"--c{number}" for number, colour in enumerate(SERIES)
}
MARKERS = "osD^vPX*"
DASHES: tuple[Any, ...] = (
    "-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1)), "-.", "--", ":"
)  # fmt: skip
SIZE = (5.2, 3.5)
"""Inches; at 72 pixels an inch, the width of a phone held upright."""
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


def accuracy_by_epoch(result: Comparison) -> str:
    """Test accuracy against epoch: mean over seeds, and a band of one standard deviation."""
    with _figure("accuracy-by-epoch") as (figure, axes):
        for number, group, label in _contenders(result):
            by_epoch = group.groupby("epoch")["test_accuracy"]
            mean, std = 100 * by_epoch.mean(), 100 * by_epoch.std().fillna(0)
            axes.fill_between(
                mean.index, mean - std, mean + std, color=_colour(number), alpha=0.14, linewidth=0
            )
            axes.plot(mean.index, mean, label=label, **_line(number))
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _accuracy_axis(axes, result)
        return _svg(figure, "Test accuracy against epoch")


def accuracy_by_time(result: Comparison) -> str:
    """Test accuracy against training time, and each seed thinly.

    The mean accuracy over seeds, at the sum of the epochs' median times: one epoch that the machine
    spent on something else would squeeze all curves into a corner.
    """
    with _figure("accuracy-by-time") as (figure, axes):
        end = 0.0
        for number, group, label in _contenders(result):
            for _, one in group.groupby("seed"):
                axes.plot(
                    one["seconds"], 100 * one["test_accuracy"],
                    color=_colour(number), linewidth=0.7, alpha=0.4,
                )  # fmt: skip
            by_epoch = group.groupby("epoch")
            seconds = by_epoch["epoch_seconds"].median().cumsum()
            axes.plot(seconds, 100 * by_epoch["test_accuracy"].mean(), label=label, **_line(number))
            end = max(end, seconds.max())
        axes.set_xlabel("training time, s (without the tests)")
        axes.set_xlim(0, 1.04 * end)
        _accuracy_axis(axes, result)
        return _svg(figure, "Test accuracy against training time")


def step_times(result: Comparison, summary: pd.DataFrame) -> str:
    """Forward and backward time of a step: the median, and from the 10 % to the 90 % quantile."""
    with _figure("step-times") as (figure, axes):
        rows, colours = np.arange(len(summary)), _bar_colours(result, summary)
        for offset, what, hatch in ((-0.2, "forward", None), (0.2, "backward", "////")):
            axes.barh(
                rows + offset,
                summary[f"{what}_ms_median"],
                0.38,
                xerr=_errors(summary, f"{what}_ms"),
                color="none" if hatch else colours,
                edgecolor=colours,
                hatch=hatch,
                error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
            )
        _names_axis(axes, summary)
        axes.set_xlabel("ms a step: forward solid, backward hatched")
        return _svg(figure, "Forward and backward time of a training step")


def kept_bytes(result: Comparison, summary: pd.DataFrame) -> str:
    """Bytes kept for backward, a sample."""
    with _figure("kept-bytes") as (figure, axes):
        rows = np.arange(len(summary))
        kibibytes = summary["kept_bytes"] / 1024
        axes.barh(rows, kibibytes, 0.7, color=_bar_colours(result, summary))
        for row, value in zip(rows, kibibytes, strict=True):
            axes.annotate(
                f"{value:,.0f}", (value, row), (4, 0), textcoords="offset points", va="center"
            )
        axes.margins(x=0.14)
        _names_axis(axes, summary)
        axes.set_xlabel("kept for backward, KiB a sample")
        return _svg(figure, "Bytes kept for the backward pass")


def _contenders(result: Comparison) -> Iterator[tuple[int, pd.DataFrame, str]]:
    table = epochs_table(result)
    for number, contender in enumerate(result.contenders):
        group = table[table["activation"] == contender.name]
        if len(group):
            yield number, group, contender.label


def _accuracy_axis(axes: Axes, result: Comparison) -> None:
    """Cuts off the first steep rise, where all curves are one, and marks the target."""
    last = min(run.epochs[-1].test_accuracy for run in result.runs)
    best = max(epoch.test_accuracy for run in result.runs for epoch in run.epochs)
    target = result.settings.target
    low = max(0.0, min(last, target) - 0.12)
    high = min(1.0, max(best, target) + 0.01)
    axes.set_ylim(100 * low, 100 * high)
    axes.set_ylabel("test accuracy, %")
    axes.axhline(100 * target, color=INK, linewidth=0.9, linestyle=":")
    axes.annotate(
        "target", (0, 100 * target), (2, 2), xycoords=("axes fraction", "data"),
        textcoords="offset points", ha="left", fontsize=8,
    )  # fmt: skip
    axes.grid(True)
    axes.figure.legend(loc="outside upper left", ncols=2, handlelength=3)


def _names_axis(axes: Axes, summary: pd.DataFrame) -> None:
    axes.set_yticks(range(len(summary)), summary["label"])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(True, axis="x")
    axes.set_xlim(left=0)


def _bar_colours(result: Comparison, summary: pd.DataFrame) -> list[str]:
    """Each row in the colour that its contender has in the other figures."""
    names = [contender.name for contender in result.contenders]
    return [_colour(names.index(name)) for name in summary["activation"]]


def _errors(summary: pd.DataFrame, quantity: str) -> np.ndarray:
    """How far the 10 % and the 90 % quantile are from the median."""
    low, median, high = (summary[f"{quantity}_{what}"] for what in ("p10", "median", "p90"))
    return np.stack([median - low, high - median])


def _colour(number: int) -> str:
    return SERIES[number % len(SERIES)]


def _line(number: int) -> dict[str, Any]:
    return {
        "color": _colour(number),
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number % len(DASHES)],
    }


@contextmanager
def _figure(name: str) -> Iterator[tuple[Figure, Axes]]:
    # The salt keeps the ids of figures on one page apart, and the same from run to run.
    with mpl.rc_context({**RC, "svg.hashsalt": name}):
        figure = Figure(SIZE, layout="constrained")
        yield figure, figure.add_subplot()


def _svg(figure: Figure, title: str) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
    # Size comes from the page; the view box keeps the proportions.
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return re.sub(r"font: [\d.]+px [^;\"]*", _own_font, svg)


def _own_font(match: re.Match[str]) -> str:
    size = match.group().split()[1]
    return f"font-size: {size}; font-family: inherit"
