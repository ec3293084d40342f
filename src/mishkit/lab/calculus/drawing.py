"""`mishkit plot`: draw functions and their derivatives as a figure.

Curves differ in colour (Okabe and Ito's palette, which colour-blind readers can tell apart) and in
dash pattern. They are drawn from the definitions, with gaps where they jump.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import sympy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .. import LabError
from ..common.files import check_writable, whole_file
from ..common.named import Named, finite
from .analysis import show
from .analyze import curve_of, extrema
from .curve import Curve, Piece, X

Array = NDArray[np.float64]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = (
    "-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1)), "-.", "--"
)  # fmt: skip
PANELS = ("f(x)", "f′(x)", "f″(x)")
RANGE = (-5.0, 4.0)
POINTS = 1200
PANEL = (3.7, 3.1)
"""Inches."""
FORMATS = ("png", "svg", "pdf")
DPI = 150
RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mishkit",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
}


@dataclass(frozen=True)
class Drawn:
    """A curve and its label."""

    label: str
    curve: Curve

    def lines(self, order: int, low: float, high: float) -> tuple[Array, Array]:
        """x and the derivative of this order, with a gap where it jumps."""
        xs: list[Array] = []
        ys: list[Array] = []
        for number, piece in enumerate(self.curve.pieces):
            begin, end = max(float(piece.low), low), min(float(piece.high), high)
            if begin >= end or not isinstance(piece, Piece):
                continue
            if xs and self.curve.jump(number - 1, order):
                xs.append(np.array([begin]))
                ys.append(np.array([np.nan]))
            x = np.linspace(begin, end, max(2, round(POINTS * (end - begin) / (high - low))))
            xs.append(x)
            ys.append(_on(piece.forms[order], x))
        return np.concatenate(xs), np.concatenate(ys)


def of_named(named: Named) -> Drawn:
    """A function of the table."""
    return Drawn(str(named), curve_of(named))


def of_expression(label: str, expression: sympy.Expr) -> Drawn:
    """Any expression in x."""
    return Drawn(label, Curve.of(expression))


def _on(form: sympy.Expr, x: Array) -> Array:
    f = sympy.lambdify(X, form, modules=["scipy", "numpy"])
    with np.errstate(all="ignore"):
        return np.array(np.broadcast_to(f(x), x.shape), dtype=float)


def draw(
    figure: Figure,
    drawn: Sequence[Drawn],
    *,
    against: Drawn | None = None,
    low: float = RANGE[0],
    high: float = RANGE[1],
) -> None:
    """Fill a figure: a panel each for f, f′ and f″, and one for the error against a function."""
    functions = list(drawn)
    if against is not None and against.label not in [d.label for d in functions]:
        functions.insert(0, against)
    count = 3 if against is None else 4
    axes = figure.subplots(1 if count == 3 else 2, 3 if count == 3 else 2, squeeze=False).flat
    for order, (panel, title) in enumerate(zip(axes, PANELS, strict=False)):
        for number, function in enumerate(functions):
            panel.plot(*function.lines(order, low, high), label=function.label, **_style(number))
        _finish(panel, title, low, high)
    if len(functions) == 1:
        _mark_minimum(axes[0], functions[0], low, high)
    if against is not None:
        compared = [(number, d) for number, d in enumerate(functions) if d.label != against.label]
        for number, function in compared:
            _error(axes[3], function, against, number, low, high, named=len(compared) > 1)
        if len(compared) > 1:
            axes[3].legend(
                fontsize=8.5, handlelength=2.6, frameon=True, edgecolor="none", framealpha=0.85
            )
        _finish(axes[3], f"error: f(x) − {against.label}(x)", low, high)
        axes[3].margins(y=0.16 if len(compared) == 1 else 0.3)
    if len(functions) > 1:
        figure.legend(
            *axes[0].get_legend_handles_labels(),
            loc="outside upper center",
            ncols=math.ceil(len(functions) / math.ceil(len(functions) / 4)),
            handlelength=3,
        )


def _style(number: int) -> dict[str, Any]:
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number % len(DASHES)],
        "zorder": 3 - 0.01 * number,
    }


def _finish(axes: Axes, title: str, low: float, high: float) -> None:
    axes.set_title(title)
    axes.set_xlim(low, high)
    axes.set_xlabel("x")
    for line in (axes.axhline, axes.axvline):
        line(0, color="#888888", linewidth=0.8, zorder=1)


def _mark_minimum(axes: Axes, function: Drawn, low: float, high: float) -> None:
    for e in extrema(function.curve, function.curve.stretches(1)):
        x, y = float(e.x), float(e.y)
        if e.kind == "minimum" and low < x < high:
            axes.plot([x], [y], "o", color=COLOURS[0], markersize=5, zorder=4)
            axes.annotate(
                f"({show(e.x, 4)}, {show(e.y, 4)})", (x, y), (0, -8), textcoords="offset points",
                ha="center", va="top", fontsize=9,
            )  # fmt: skip
            bottom, top = axes.get_ylim()
            axes.set_ylim(min(bottom, y - 0.12 * (top - bottom)), top)


def _error(
    axes: Axes,
    function: Drawn,
    against: Drawn,
    number: int,
    low: float,
    high: float,
    *,
    named: bool,
) -> None:
    """The error, with a dot where it is largest; its size is written there or in the legend."""
    x = np.union1d(function.lines(0, low, high)[0], against.lines(0, low, high)[0])
    error = _values(function, x) - _values(against, x)
    style = _style(number)
    worst = int(np.nanargmax(np.abs(error)))
    label = f"{function.label}: {show(error[worst], 3)}" if named else None
    axes.plot(x, error, label=label, **style)
    if error[worst]:
        axes.plot([x[worst]], [error[worst]], "o", color=style["color"], markersize=5, zorder=4)
    if error[worst] and not named:
        above = error[worst] > 0
        # Aligned inwards near the edges, where a centred number would be cut off.
        share = (x[worst] - low) / (high - low)
        side = "left" if share < 0.15 else "right" if share > 0.85 else "center"
        axes.annotate(
            show(error[worst], 3), (x[worst], error[worst]), (0, 6 if above else -6),
            textcoords="offset points", ha=side, va="bottom" if above else "top",
            fontsize=9, color=style["color"],
        )  # fmt: skip


def _values(function: Drawn, x: Array) -> Array:
    y = np.full_like(x, np.nan)
    for piece in function.curve.pieces:
        inside = (x >= float(piece.low)) & (x <= float(piece.high))
        if isinstance(piece, Piece) and inside.any():
            y[inside] = _on(piece.forms[0], x[inside])
    return y


@contextmanager
def style() -> Iterator[None]:
    """The style of the figures."""
    with mpl.rc_context(RC):
        yield


def size(against: Drawn | None) -> tuple[float, float]:
    """The size of a figure in inches."""
    columns, rows = (3, 1) if against is None else (2, 2)
    return columns * PANEL[0], rows * PANEL[1] + 0.4


def save(
    drawn: Sequence[Drawn],
    path: Path,
    *,
    against: Drawn | None = None,
    low: float = RANGE[0],
    high: float = RANGE[1],
) -> None:
    """Write the figure to a file, in the format given by the file name."""
    suffix = format_of(path)
    if not low < high:
        raise LabError("the range must be given as low,high")
    with style():
        figure = Figure(size(against), layout="constrained")
        draw(figure, drawn, against=against, low=low, high=high)
        # No date, so that the same figure gives the same file.
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix)
        with whole_file(path, "wb") as file:
            figure.savefig(file, format=suffix, dpi=DPI, metadata=metadata)


def format_of(path: Path) -> str:
    """The format given by a file name; LabError if there is none or the file can't be written."""
    suffix = path.suffix.lstrip(".").lower()
    if suffix not in FORMATS:
        raise LabError(f"{path}: the name must end in .{', .'.join(FORMATS)}")
    check_writable(path)
    return suffix


def window(
    drawn: Sequence[Drawn],
    *,
    against: Drawn | None = None,
    low: float = RANGE[0],
    high: float = RANGE[1],
) -> None:
    """Show the figure in a window until it is closed."""
    import matplotlib.pyplot as plt

    if mpl.get_backend().lower() in ("agg", "pdf", "svg", "ps", "template"):
        raise LabError("there is no display for a window; write to a file with --out FILE")
    with style():
        figure = plt.figure(figsize=size(against), layout="constrained")
        draw(figure, drawn, against=against, low=low, high=high)
        plt.show()


def parse_range(text: str) -> tuple[float, float]:
    """For example "-5,4" -> (-5.0, 4.0)."""
    try:
        low, high = (finite(part) for part in text.split(","))
    except ValueError:
        raise LabError(f'"{text}" is no range; write LOW,HIGH') from None
    if not low < high:
        raise LabError(f'"{text}" is no range; LOW must be below HIGH')
    return low, high
