"""The results of analysing a function, and how they are shown on a terminal."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from html import escape

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..._html import html_block, html_paragraph, html_table, html_text
from ..common.bars import table
from ..common.formats import significant
from .cost import Cost

WIDTH = 100
"""The width if there is no terminal."""
Number = Decimal
"""30 significant digits; use float(number) where fewer are enough."""


@dataclass(frozen=True)
class Formula:
    """An expression in x."""

    unicode: str
    latex: str


@dataclass(frozen=True)
class Part:
    """The function between two joints, with its derivatives."""

    low: Number
    high: Number
    f: Formula
    df: Formula
    d2f: Formula


@dataclass(frozen=True)
class Range:
    """The range of f: between two numbers, each of which may or may not be a value itself."""

    low: Number
    high: Number
    has_low: bool
    has_high: bool

    def __str__(self) -> str:
        left, right = "[" if self.has_low else "(", "]" if self.has_high else ")"
        return f"{left}{show(self.low)}, {show(self.high)}{right}"


@dataclass(frozen=True)
class Extremum:
    """Where f stops falling and starts to rise, or the reverse."""

    kind: str
    """"minimum" or "maximum"."""
    x: Number
    y: Number
    flat_to: Number | None = None
    """The other end, if it is a plateau."""


@dataclass(frozen=True)
class Inflection:
    """Where f″ changes sign."""

    x: Number
    y: Number
    slope: Number | None
    """f′ at this point; None where it jumps."""
    becomes_convex: bool
    is_joint: bool


@dataclass(frozen=True)
class End:
    """The behaviour of f as x → −∞ or +∞: it approaches the line slope·x + intercept."""

    side: str
    """"−∞" or "+∞"."""
    limit: Number
    slope: Number
    intercept: Number | None
    """None if there is no such line."""


@dataclass(frozen=True)
class Joint:
    """Where two parts of the definition meet."""

    x: Number
    smoothness: int
    """The order of the highest continuous derivative; 0 for f alone, −1 if f itself jumps."""
    jumps: int | None
    """The order of the first derivative that jumps; None if none up to the third does."""
    jump: Number
    """The size of the jump: the value on the right minus that on the left."""


@dataclass(frozen=True)
class Lipschitz:
    """The smallest L with |g(a) − g(b)| ≤ L·|a − b|, where g is f or f′."""

    constant: Number
    """Infinite if g jumps."""
    steepest: Number
    """The largest |g′| where g is smooth; the same as `constant` if g does not jump."""
    places: tuple[Number, ...]
    """Where |g′| takes this value; ±∞ if it is the limit there."""
    everywhere_from: tuple[Number, Number] | None = None
    """An interval on which |g′| has this value everywhere."""


@dataclass(frozen=True)
class Gaussian:
    """f applied to a standard normal input z ~ N(0, 1)."""

    mean: Number
    """E[f(z)]"""
    second_moment: Number
    """E[f(z)²]"""
    slope_second_moment: Number
    """E[f′(z)²]"""
    gain: Number
    """1/√E[f(z)²]: weights of variance gain²/fan_in keep E[y²] the same from layer to layer. For
    ReLU it is the √2 of `torch.nn.init.calculate_gain`.
    """
    backward_gain: Number
    """1/√E[f′(z)²]: weights of variance backward_gain²/fan_out preserve the size of the gradient.
    """


@dataclass(frozen=True)
class Shape:
    """Statements about the shape of f; jumps of f are taken into account."""

    monotone: str | None
    """"rising", "falling", "constant", or None."""
    convex: bool
    concave: bool
    quasiconvex: bool
    """Falls to one minimum, then rises; either part may be missing, or flat in places."""
    quasiconcave: bool
    but_for_jumps: str | None
    """The stronger shape that f would have without its jumps, if any."""


@dataclass(frozen=True)
class Distance:
    """The distance between f and another function g."""

    other: str
    parameters: dict[str, float]
    max_error: Number
    """sup |f − g| over the whole real line."""
    at: Number | None
    """Where that is; ±∞ if it is a limit, None if f equals g."""
    signed: Number
    """f − g at that point."""
    l2: Number
    """√E[(f(z) − g(z))²], z ~ N(0, 1)."""


@dataclass(frozen=True, repr=False)
class Analysis:
    """The result of `analyze`: print it, show it in a notebook, or read its attributes."""

    name: str
    parameters: dict[str, float]
    formula: str
    parts: tuple[Part, ...]
    range: Range
    extrema: tuple[Extremum, ...]
    inflections: tuple[Inflection, ...]
    ends: tuple[End, End]
    joints: tuple[Joint, ...]
    lipschitz_f: Lipschitz
    lipschitz_df: Lipschitz
    gaussian: Gaussian
    shape: Shape
    against: Distance | None = None
    cost: Cost | None = None

    @property
    def minima(self) -> tuple[Extremum, ...]:
        """The extrema that are minima."""
        return tuple(e for e in self.extrema if e.kind == "minimum")

    @property
    def smoothness(self) -> int | None:
        """The order of the highest everywhere continuous derivative; None without joints."""
        return min((joint.smoothness for joint in self.joints), default=None)

    def to_json(self, indent: int | None = 2) -> str:
        """Everything as JSON; numbers with all digits, infinities as strings."""
        plain = dataclasses.asdict(self)
        text = json.dumps(plain, default=_mark, indent=indent, ensure_ascii=False)
        return re.sub(r'"@([^"]*)@"', r"\1", text)

    def __rich__(self) -> RenderableType:
        return tables(self)

    def __str__(self) -> str:
        return plain_text(self)

    def __repr__(self) -> str:
        lowest = "".join(
            f", minimum {show(m.y, 6)} at {show(m.x, 6)}" for m in self.minima[:1]
        )  # the others are in the table
        return f"<Analysis: {_title(self).plain}; range {self.range}{lowest}>"

    def _repr_html_(self) -> str:
        facts_and_formulas = [*_formula_rows(self), *facts(self)]
        rows = [(escape(label), escape(text)) for label, text in facts_and_formulas]
        parts = [html_paragraph(_title(self).plain, strong=True), html_table((), rows)]
        if self.cost is not None:
            parts.append(html_text(_as_text(Group(*_cost(self.cost)))))
        return html_block(*parts)


def _mark(value: object) -> str:
    if isinstance(value, Decimal):
        return f"@{value}@" if value.is_finite() else str(value)
    raise TypeError(type(value))


def show(value: Number | float | None, digits: int = 8) -> str:
    """A number for display: `digits` significant digits, no trailing zeros, and ∞ and − as such."""
    if value is None:
        return "–"
    value = Decimal(value)
    if not value.is_finite():
        return "−∞" if value < 0 else "∞"
    text = f"{value:.{digits}g}" if value else "0"
    mantissa, e, exponent = text.partition("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    text = f"{mantissa}e{int(exponent)}" if e else mantissa
    if e and -1 < int(exponent) < 12:
        text = f"{Decimal(text):f}"
    return text.replace("-", "−")


# ---- on the terminal -----------------------------------------------------------------------------


def plain_text(analysis: Analysis) -> str:
    """The tables as plain text."""
    return _as_text(tables(analysis))


def _as_text(shown: RenderableType) -> str:
    stream = io.StringIO()
    Console(file=stream, width=WIDTH, highlight=False, color_system=None).print(shown)
    return stream.getvalue()


def tables(analysis: Analysis) -> RenderableType:
    """The whole analysis."""
    shown: list[RenderableType] = [_title(analysis), _formulas(analysis), _facts(analysis)]
    if analysis.cost is not None:
        shown += _cost(analysis.cost)
    return Group(*shown)


def _title(analysis: Analysis) -> Text:
    values = ", ".join(f"{name} = {show(value)}" for name, value in analysis.parameters.items())
    title = Text(f"{analysis.name}", style="bold")
    title.append(
        f": {analysis.formula}" + (f"   with {values}" if values else ""), style="not bold"
    )
    return title


def _formulas(analysis: Analysis) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in _formula_rows(analysis):
        table.add_row(label, Text(text))
    return table


def _formula_rows(analysis: Analysis) -> Iterator[tuple[str, str]]:
    """The function and its derivatives, one formula a row."""
    for part in analysis.parts:
        if len(analysis.parts) > 1:
            yield "where", _interval(show(part.low), show(part.high))
        for label, form in (("f", part.f), ("f′", part.df), ("f″", part.d2f)):
            yield label, form.unicode


def _interval(low: str, high: str) -> str:
    if low == "−∞":
        return "all x" if high == "∞" else f"x < {high}"
    return f"x > {low}" if high == "∞" else f"{low} < x < {high}"


def _facts(analysis: Analysis) -> Table:
    table = Table(box=SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in facts(analysis):
        table.add_row(label, Text(text))
    return table


def facts(analysis: Analysis) -> Iterator[tuple[str, str]]:
    """The facts, one per line."""
    yield "range", str(analysis.range)
    for extremum in analysis.extrema:
        yield extremum.kind, _extremum(extremum)
    if not analysis.extrema:
        yield "minimum", "none"
    yield (
        "inflections",
        "; ".join(
            f"x = {show(i.x)}, f = {show(i.y)}"
            + (f", f′ = {show(i.slope)}" if i.slope is not None else " (a kink)")
            for i in analysis.inflections
        )
        or "none",
    )
    for end in analysis.ends:
        yield f"x → {end.side}", _end(end)
    for joint in analysis.joints:
        yield "joint", _joint(joint)
    if not analysis.joints:
        yield "smoothness", "no joints: derivatives of every order"
    yield "Lipschitz, f", _lipschitz(analysis.lipschitz_f, "f′", "f")
    yield "Lipschitz, f′", _lipschitz(analysis.lipschitz_df, "f″", "f′")
    yield "shape", _shape(analysis)
    g = analysis.gaussian
    yield "gain", f"{show(g.gain)} = 1/√E[f(z)²] for z ~ N(0, 1); E[f] = {show(g.mean)}"
    yield "gain, backward", f"{show(g.backward_gain)} = 1/√E[f′(z)²]"
    if analysis.against is not None:
        d = analysis.against
        label = d.other + "".join(f", {name} = {show(v)}" for name, v in d.parameters.items())
        where = f" at x = {show(d.at)} (f is {'above' if d.signed > 0 else 'below'})"
        yield f"from {label}", f"at most {show(d.max_error)}" + (where if d.at is not None else "")
        yield "", f"L2 under N(0, 1): {show(d.l2)}"


def _extremum(extremum: Extremum) -> str:
    flat = f" to {show(extremum.flat_to)}" if extremum.flat_to is not None else ""
    return f"f = {show(extremum.y, 10)} at x = {show(extremum.x, 10)}{flat}"


def _end(end: End) -> str:
    text = f"f → {show(end.limit)}"
    if end.limit.is_finite():
        return text
    if end.intercept is None:
        return f"{text}, f′ → {show(end.slope)}"
    line = {1.0: "x", -1.0: "−x", 0.0: ""}.get(float(end.slope), f"{show(end.slope)}·x")
    if end.intercept:
        line += f" {'−' if end.intercept < 0 else '+'} {show(abs(end.intercept))}"
    return f"{text}, along the line {line}"


def _joint(joint: Joint) -> str:
    x = f"x = {show(joint.x)}: "
    if joint.jumps is None:
        return x + "C³ or smoother"
    primes = ("f", "f′", "f″", "f‴")[joint.jumps]
    order = str(joint.smoothness).translate(str.maketrans("0123-", "⁰¹²³⁻")).replace("⁻1", "⁻¹")
    name = f"C{order}" if joint.smoothness >= 0 else "not continuous"
    return f"{x}{name}, {primes} jumps by {show(joint.jump)}"


def _lipschitz(bound: Lipschitz, derivative: str, function: str) -> str:
    if bound.everywhere_from is not None:
        where = "for " + _interval(*(show(end) for end in bound.everywhere_from))
    else:
        where = "at x = " + ", ".join(show(x) for x in bound.places)
    largest = f"|{derivative}| is at most {show(bound.steepest)}"
    if not bound.steepest.is_finite():
        return f"none, since |{derivative}| grows without end"
    if not bound.constant.is_finite():
        return f"none, since {function} jumps; elsewhere {largest}"
    return f"{show(bound.constant)}, reached {where}"


def _shape(analysis: Analysis) -> str:
    shape = analysis.shape
    words = [shape.monotone or "not monotone"]
    if shape.but_for_jumps:
        words[0] += f" ({shape.but_for_jumps} but for the jumps of f)"
    words.append("convex" if shape.convex else "concave" if shape.concave else "not convex")
    if shape.monotone:  # then it is both quasiconvex and quasiconcave
        return ", ".join(words)
    if shape.quasiconvex and not shape.convex:
        words.append("quasiconvex")
    if shape.quasiconcave and not shape.concave:
        words.append("quasiconcave")
    return ", ".join(words)


def _cost(cost: Cost) -> list[RenderableType]:
    shown: list[RenderableType] = []
    if cost.loops:
        shown.append(_loops(cost))
        if any(loop.iterates for loop in cost.loops):
            shown.append(
                Text("* There is a loop inside that repeats until it converges; one pass of it.\n")
            )
    else:
        shown.append(Text(f"{cost.why_no_loops}\n"))
    shown.append(_roofline(cost))
    return shown


def _loops(cost: Cost) -> Table:
    columns = ["body", "dtype"]
    isas = list(dict.fromkeys(loop.isa for loop in cost.loops))
    title = (
        "Vector instructions an element, in the main loop (÷ vector divisions, √ roots, a vector)"
    )
    grid = table(title, [*columns, *isas], words=2)
    cells = {(loop.body, loop.dtype, loop.isa): loop for loop in cost.loops}
    for body, dtype in dict.fromkeys((loop.body, loop.dtype) for loop in cost.loops):
        row = []
        for isa in isas:
            loop = cells[body, dtype, isa]
            a_vector = loop.elements / 4
            extra = "".join(
                f" {sign}{significant(rate * a_vector, 2)}"
                for sign, rate in (("÷", loop.divisions), ("√", loop.square_roots))
                if rate
            )
            row.append(significant(loop.vector_instructions) + extra + "*" * loop.iterates)
        grid.add_row(body, dtype, *row)
    return grid


def _roofline(cost: Cost) -> Table:
    title = (
        f"One core, {cost.processor}, kernels: {cost.kernels}; memory copies "
        f"{cost.copy_bytes_per_ns:.1f} GB/s ({cost.copied_bytes >> 20} MiB)"
    )
    grid = table(
        title,
        ["body", "dtype", "bytes an\nelement", "compute,\nns", "memory,\nns", "ratio", "bound by"],
        words=2,
    )
    for roof in cost.roofs:
        grid.add_row(
            roof.body,
            roof.dtype,
            f"{roof.bytes:g}",
            significant(roof.compute_ns),
            significant(roof.memory_ns),
            f"{roof.ratio:.2f}",
            roof.bound,
        )
    return grid
