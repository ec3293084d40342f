"""The rows of `benchmarks/peers.py`, and the tables, figure and page made of all CPUs' rows."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import NamedTuple

import pages
from matplotlib import rc_context
from matplotlib.figure import Figure
from pages import DOCS, markdown, span
from peer_adapters import BACKWARD, EXISTING, FLOORS, FORWARD, FRESH, OURS
from peer_adapters import OURS_FROM_OUTPUT as FROM_OUTPUT

from mishkit._environment import slug
from mishkit.lab.bench.results import QUANTILES
from mishkit.lab.calculus.drawing import COLOURS, style
from mishkit.lab.common.formats import NONE, significant, size_name, threads_name

RESULTS, PAGE, FIGURE = (
    DOCS / "results" / "peers",
    DOCS / "peers.md",
    DOCS / "figures" / "peers.svg",
)
BEHIND = DOCS / "results" / "peers-behind.csv"
WRITTEN = (RESULTS, PAGE, FIGURE, BEHIND)
LEVEL = 1.05
"""Up to this ratio two peers count as equally fast: repeated runs differ by as much."""
SMALL = 1 << 16
"""Below this size the overhead of a call decides."""


class Cell(NamedTuple):
    """Where peers are compared."""

    function: str
    dtype: str
    direction: str
    memory: str
    size: int
    threads: int

    def __str__(self) -> str:
        words = (self.function, self.dtype, self.direction, self.memory, size_name(self.size))
        return ", ".join((*words, threads_name(self.threads)))


@dataclass(frozen=True)
class Row:
    """One timing in ns per element, or a note why there is none."""

    peer: str
    function: str = ""
    dtype: str = ""
    direction: str = ""
    memory: str = ""
    size: int = 0
    threads: int = 0
    version: str = ""
    samples: int = 0
    min: float = 0.0
    median: float = 0.0
    quantiles: tuple[float, ...] = (0.0,) * len(QUANTILES)
    """At `QUANTILES`."""
    error: float = 0.0
    """The largest |result − exact|/(1 + |exact|)."""
    relative: float = 0.0
    """The largest |result − exact|/|exact|."""
    faults: int = 0
    """Page faults of a call."""
    note: str = ""

    @property
    def cell(self) -> Cell:
        return Cell(self.function, self.dtype, self.direction, self.memory, self.size, self.threads)


_QUANTILE_NAMES = [f"q{round(100 * q)}" for q in QUANTILES]
_COLUMNS = (
    "peer", "version", "function", "dtype", "direction", "memory", "size", "threads", "samples",
    "min", "median", *_QUANTILE_NAMES, "error", "relative", "faults", "note",
)  # fmt: skip
_FACTS = ("cpu", "cores", "isa", "load", "minutes", "date")


def write(path: Path, rows: Iterable[Row], facts: Mapping[str, str]) -> None:
    """Write a line per row, each with the machine that was measured."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*_COLUMNS, *_FACTS))
        for row in rows:
            figures = [f"{t:.5g}" for t in (row.min, row.median, *row.quantiles)]
            errors = (f"{row.error:.2g}", f"{row.relative:.2g}")
            timed = [row.samples, *figures, *errors, row.faults]
            if row.note:
                timed = [""] * len(timed)
            key = (row.peer, row.version, row.function, row.dtype, row.direction, row.memory)
            numbers = (row.size or "", row.threads or "")
            made_by = [facts.get(name, "") for name in _FACTS]
            writer.writerow((*key, *numbers, *timed, row.note, *made_by))


def read(path: Path) -> list[Row]:
    """The rows of a file; KeyError if a column is missing, ValueError for a bad number."""
    with path.open(newline="") as file:
        return [_row(line) for line in csv.DictReader(file)]


def _row(line: Mapping[str, str]) -> Row:
    def number(name: str) -> float:
        return float(line[name] or 0)

    return Row(
        *(line[name] for name in ("peer", "function", "dtype", "direction", "memory")),
        size=int(line["size"] or 0),
        threads=int(line["threads"] or 0),
        version=line["version"],
        samples=int(line["samples"] or 0),
        min=number("min"),
        median=number("median"),
        quantiles=tuple(map(number, _QUANTILE_NAMES)),
        error=number("error"),
        relative=number("relative"),
        faults=int(number("faults")),
        note=line["note"],
    )


def read_facts(path: Path) -> dict[str, str]:
    """The machine that was measured."""
    with path.open(newline="") as file:
        line: dict[str, str] = next(csv.DictReader(file), {})
    return {name: line.get(name, "") for name in _FACTS}


@dataclass(frozen=True)
class Machine:
    """The contents of one CPU's file."""

    path: Path
    rows: tuple[Row, ...]
    facts: dict[str, str]

    @property
    def name(self) -> str:
        """The CPU, and the instruction set of our kernels."""
        return f"{self.facts['cpu']}, {self.facts['isa']}"


def machines(folder: Path) -> list[Machine]:
    """Every CPU that was measured, by name."""
    machines = [
        Machine(path, tuple(read(path)), read_facts(path)) for path in sorted(folder.glob("*.csv"))
    ]
    return sorted(machines, key=lambda machine: machine.name)


def add(folder: Path, rows: Sequence[Row], facts: Mapping[str, str]) -> Path:
    """Put rows into the file of their CPU. They replace its rows for the same work, since times of
    different runs can't be compared.
    """
    path = folder / f"{slug(facts['cpu'], facts['isa'])}.csv"
    work = {_work(row) for row in rows}
    old = [row for row in read(path) if _work(row) not in work] if path.exists() else []
    folder.mkdir(parents=True, exist_ok=True)
    write(path, [*old, *rows], facts)
    return path


def _work(row: Row) -> tuple[str | int, ...]:
    """What is timed together; notes that are not about any work belong to every run."""
    return row.function, row.dtype, row.direction, row.size, row.threads


# ---- comparing ----

Times = dict[Cell, dict[str, Row]]
"""By cell and peer."""


def times(rows: Iterable[Row]) -> Times:
    """The timings without the notes."""
    by_cell: Times = {}
    for row in rows:
        if not row.note:
            by_cell.setdefault(row.cell, {})[row.peer] = row
    return by_cell


def rivals(peers: Mapping[str, Row]) -> list[Row]:
    """The peers that ours is compared with, the fastest first."""
    others = (row for name, row in peers.items() if name not in (OURS, FROM_OUTPUT, *FLOORS))
    return sorted(others, key=lambda row: row.min)


@dataclass(frozen=True)
class Duel:
    """Ours and the fastest other in a cell."""

    cell: Cell
    ours: Row
    best: Row
    faster: tuple[str, ...]
    """All peers that are faster than ours, the fastest first."""

    @property
    def ratio(self) -> float:
        """Our minimum over theirs: above 1 we are behind."""
        return self.ours.min / self.best.min

    @property
    def of_medians(self) -> float:
        return self.ours.median / self.best.median

    @property
    def is_behind(self) -> bool:
        return self.ratio > LEVEL


def duels(rows: Iterable[Row]) -> list[Duel]:
    """Every cell that has both ours and another. Neither autograd nor we have a backward pass into
    existing memory; those of others are compared with ours into fresh memory."""
    everything, duels = times(rows), []
    for cell, peers in everything.items():
        ours = peers.get(OURS) or everything.get(cell._replace(memory=FRESH), {}).get(OURS)
        theirs = rivals(peers)
        if ours is None or not theirs:
            continue
        faster = tuple(row.peer for row in theirs if row.min < ours.min)
        duels.append(Duel(cell, ours, theirs[0], faster))
    return duels


# ---- why we are behind ----

MOSTLY = 0.7
"""The share of a gap that explains it."""
WRONG = 0.01
"""The relative error from which a result has no reliable digit."""
UNEXPLAINED = "not explained yet"


def cause(duel: Duel, everything: Times) -> str:
    """Why another is faster, from the rows alone; `everything` has those of all cells."""
    return kind_and_cause(duel, everything)[1]


def kind_and_cause(duel: Duel, everything: Times) -> tuple[str, str]:
    """The kind of cause, which many cells share, and what it is in this one."""
    kinds = {
        "the other's samples vary by more than the gap": _by_medians,
        "the other's fresh memory is an arena's, used before; ours is new": _arena,
        "the other's gradient goes into existing memory, ours into fresh": _into_fresh,
        "the call itself, made from Python": _of_the_call,
        "the other has no relative accuracy in the tail": _tail,
        "a second thread does not speed up ours at this size": _second_thread,
    }
    for kind, reason in kinds.items():
        text = reason(duel, everything)
        if text:
            return kind, text
    return UNEXPLAINED, UNEXPLAINED


def _by_medians(duel: Duel, everything: Times) -> str | None:
    if duel.of_medians > 1:
        return None
    return (
        f"by medians ours is first, by {significant(1 / duel.of_medians)}×: "
        f"{duel.best.peer}'s samples vary by more than the gap"
    )


def _arena(duel: Duel, everything: Times) -> str | None:
    if duel.cell.memory != FRESH or not duel.best.faults < duel.ours.faults / 10:
        return None
    torch = everything[duel.cell].get("torch")
    of_torch = f", torch's {torch.faults:,}" if torch else ""
    return (
        f"{duel.best.peer}'s fresh memory is not fresh: its arena reuses that of the last "
        f"result. Its call makes {duel.best.faults:,} page faults, ours {duel.ours.faults:,}"
        f"{of_torch}"
    )


def _into_fresh(duel: Duel, everything: Times) -> str | None:
    fresh = everything.get(duel.cell._replace(memory=FRESH), {})
    if duel.ours.memory == duel.cell.memory or not fresh:
        return None
    text = "ours goes into fresh memory, as every gradient of autograd does"
    for next_best in rivals(fresh)[:1]:
        ratio = significant(next_best.min / duel.ours.min)
        text += f"; of the others that do so, the fastest, {next_best.peer}, takes {ratio}× as long"
    return text


def _of_the_call(duel: Duel, everything: Times) -> str | None:
    gap = _gap(duel.ours, duel.best)
    if duel.cell.size < SMALL:
        return f"the call, made from Python and with checked arguments: {gap:.1f} µs more"
    extra = _extra_call(duel, everything)
    if extra is None or extra < MOSTLY * gap:
        return None
    return f"the call: {extra:.1f} µs more at 1 Ki, and {gap:.1f} µs here"


def _tail(duel: Duel, everything: Times) -> str | None:
    ours, best = duel.ours.relative, duel.best.relative
    if duel.cell.direction != FORWARD or not best > WRONG > 100 * ours:
        return None
    extra, gap = _extra_call(duel, everything) or 0.0, _gap(duel.ours, duel.best)
    call = f"; {extra:.1f} of the {gap:.1f} µs are the call" if extra >= 0.05 else ""
    return (
        f"{duel.best.peer} keeps only its absolute error small: its largest relative error on "
        f"these inputs is {best:.2g}, ours {ours:.2g}{call}"
    )


def _second_thread(duel: Duel, everything: Times) -> str | None:
    alone = everything.get(duel.cell._replace(threads=1), {}).get(OURS)
    if duel.cell.threads == 1 or alone is None or alone.min > LEVEL * duel.ours.min:
        return None
    took, takes = (row.min * row.size / 1e3 for row in (alone, duel.ours))
    return (
        f"a second thread does not speed up ours: {took:.1f} µs with one, {takes:.1f} with "
        f"{duel.cell.threads}"
    )


def _gap(ours: Row, best: Row) -> float:
    """Microseconds a call."""
    return (ours.min - best.min) * ours.size / 1e3


def _extra_call(duel: Duel, everything: Times) -> float | None:
    """How many microseconds longer our call takes than theirs at the smallest size."""
    size = min(cell.size for cell in everything)
    peers = everything.get(duel.cell._replace(size=size), {})
    ours, best = peers.get(OURS), peers.get(duel.best.peer)
    return _gap(ours, best) if ours and best and size < duel.cell.size else None


# ---- the page ----

_SHOWN = (
    (FORWARD, EXISTING, 1 << 16),
    (FORWARD, EXISTING, 1 << 24),
    (FORWARD, FRESH, 1 << 24),
    (BACKWARD, FRESH, 1 << 16),
    (BACKWARD, FRESH, 1 << 24),
)


def _shown(function: str, dtype: str) -> list[Cell]:
    """The cells of a function that the tables show."""
    return [Cell(function, dtype, *place, 1) for place in _SHOWN]


def _column(cell: Cell) -> str:
    return f"{cell.direction}, {size_name(cell.size)}{', fresh' * (cell.memory == FRESH)}"


def _order(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.peer for row in rows if not row.note))


def _every_peer(machines: Sequence[Machine]) -> list[str]:
    return list(dict.fromkeys(peer for machine in machines for peer in _order(machine.rows)))


def table(machines: Sequence[Machine], function: str = "mish", dtype: str = "float32") -> str:
    """Ours in ns per element, and everyone's times relative to it, as ranges over the CPUs."""
    columns = _shown(function, dtype)
    tables = [times(machine.rows) for machine in machines]
    body = [(f"{OURS}, ns", *(span(_times_of(tables, cell, OURS)) for cell in columns))]
    for peer in _every_peer(machines):
        cells = [span(_times_of(tables, cell, peer, over=OURS)) for cell in columns]
        if peer != OURS and any(text != NONE for text in cells):
            body.append((peer, *cells))
    return markdown((f"{function}, {dtype}", *map(_column, columns)), body)


def _times_of(
    tables: Sequence[Times], cell: Cell, peer: str, over: str | None = None
) -> list[float]:
    """A peer's minimum on every CPU, or its ratio to another's."""
    rows = [everything.get(cell, {}) for everything in tables]
    if over is None:
        return [row[peer].min for row in rows if peer in row]
    return [row[peer].min / row[over].min for row in rows if peer in row and over in row]


def write_readme(path: Path, machines: Sequence[Machine]) -> None:
    """Put the ranges between the marks of the README."""
    rows = []
    tables = [times(machine.rows) for machine in machines]
    for function in ("mish", "silu", "gelu", "gelu_tanh", "hardswish", "softplus", "relu"):
        columns = [Cell(function, "float32", *place, 1) for place in _IN_README]
        cells = [span(_times_of(tables, cell, "torch", over=OURS)) for cell in columns]
        rows.append((function, *cells))
    head = ("torch's time over mishkit's", *(_column(Cell("", "", *at, 1)) for at in _IN_README))
    cpus = "; ".join(machine.name for machine in machines)
    pages.put(path, "peers", f"{markdown(head, rows)}\n\nOne thread, float32, minima: {cpus}.\n")


_IN_README = (
    (FORWARD, EXISTING, 1 << 16),
    (FORWARD, EXISTING, 1 << 24),
    (FORWARD, FRESH, 1 << 24),
    (BACKWARD, FRESH, 1 << 24),
)


def leads(machines: Sequence[Machine], dtype: str) -> str:
    """By function: how many times as long the fastest other takes, on one thread."""
    columns = _shown("", dtype)
    by_cell = [{duel.cell: duel for duel in duels(machine.rows)} for machine in machines]
    functions = dict.fromkeys(cell.function for cells in by_cell for cell in cells)
    body = []
    for function in functions:
        texts = []
        for column in columns:
            cell = column._replace(function=function)
            met = [cells[cell] for cells in by_cell if cell in cells]
            names = ", ".join(dict.fromkeys(duel.best.peer for duel in met))
            text = f"{span([1 / duel.ratio for duel in met])} × {names}" if met else NONE
            texts.append(f"**{text}**" if any(duel.is_behind for duel in met) else text)
        body.append((function, *texts))
    return markdown((dtype, *map(_column, columns)), body)


def behind(duels: Sequence[Duel]) -> list[Duel]:
    """The cells in which another is faster by more than `LEVEL`, the worst first."""
    return sorted((d for d in duels if d.is_behind), key=lambda d: -d.ratio)


def write_behind(path: Path, machines: Sequence[Machine]) -> None:
    """Every cell in which another is faster, with the cause, as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("cpu", "isa", *Cell._fields, *_BEHIND_COLUMNS))
        for machine in machines:
            everything = times(machine.rows)
            for duel in behind(duels(machine.rows)):
                figures = (duel.ours.min, duel.best.min, duel.ratio, duel.of_medians)
                writer.writerow(
                    (
                        *(machine.facts["cpu"], machine.facts["isa"], *duel.cell),
                        *(f"{figure:.4g}" for figure in figures),
                        "; ".join(duel.faster),
                        cause(duel, everything),
                    )
                )


_BEHIND_COLUMNS = ("ours_ns", "best_ns", "ratio", "ratio_of_medians", "faster", "cause")


def causes(machines: Sequence[Machine]) -> str:
    """The kinds of causes: how many cells they explain, and the largest ratio."""
    cells: dict[str, list[list[Duel]]] = {}
    for number, machine in enumerate(machines):
        everything = times(machine.rows)
        for duel in behind(duels(machine.rows)):
            kind = kind_and_cause(duel, everything)[0]
            cells.setdefault(kind, [[] for _ in machines])[number].append(duel)
    body = []
    for kind, by_machine in sorted(cells.items(), key=lambda item: -max(map(len, item[1]))):
        worst = [max(duel.ratio for duel in late) for late in by_machine if late]
        largest = max((duel for late in by_machine for duel in late), key=lambda duel: duel.ratio)
        numbers = sorted({len(late) for late in by_machine})
        count = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"
        body.append((kind, f"{largest.cell}: {largest.best.peer}", count, span(worst)))
    return markdown(("cause", "the worst cell", "cells", "by at most, ×"), body, words=2)


def counts(machines: Sequence[Machine]) -> str:
    """In how many cells we are first, level or behind, with lines for each CPU."""
    body = []
    for machine in machines:
        every = duels(machine.rows)
        kinds = dict.fromkeys((d.cell.threads, d.cell.size < SMALL) for d in every)
        for threads, is_small in sorted(kinds):
            met = [d for d in every if (d.cell.threads, d.cell.size < SMALL) == (threads, is_small)]
            first, late = sum(d.ratio <= 1 for d in met), sum(d.is_behind for d in met)
            size = "1 Ki" if is_small else "64 Ki and above"
            numbers = (len(met), first, len(met) - first - late, late)
            body.append((machine.name, size, str(threads), *map(str, numbers)))
    head = ("CPU", "elements", "threads", "cells", "first", f"within {LEVEL - 1:.0%}", "behind")
    return markdown(head, body, words=2)


def missing(machines: Sequence[Machine]) -> str:
    """The peers that could not be loaded, or failed."""
    lines: dict[str, None] = {}
    for machine in machines:
        for row in machine.rows:
            if row.note.startswith(("absent", "failed", "another")):
                work = " ".join(x for x in (row.function, row.dtype, row.direction) if x)
                suffix = f" ({work})" if work else ""
                lines[f"- **{row.peer}**, on {machine.name}: {row.note}{suffix}"] = None
    return "\n".join(lines) or "None."


def measured(machines: Sequence[Machine], folder: str) -> str:
    """The CPUs, each with its file."""
    body = []
    for machine in machines:
        versions = {row.peer: row.version for row in machine.rows if not row.note}
        body.append(
            (
                f"[{machine.facts['cpu']}]({folder}/{machine.path.name})",
                machine.facts["isa"],
                versions.get("torch", NONE),
                machine.facts["date"],
                f"{sum(not row.note for row in machine.rows):,}",
            )
        )
    return markdown(("CPU", "kernels", "torch", "date", "timings"), body, words=4)


def page(machines: Sequence[Machine], figure: str, folder: str, behind_csv: str) -> str:
    """The whole page."""
    dtypes = dict.fromkeys(row.dtype for m in machines for row in m.rows if not row.note)
    return TEMPLATE.format(
        measured=measured(machines, folder),
        tables="\n\n".join(table(machines, dtype=dtype) for dtype in dtypes),
        figure=figure,
        counts=counts(machines),
        leads="\n\n".join(leads(machines, dtype) for dtype in dtypes),
        causes=causes(machines),
        behind=behind_csv,
        level=f"{LEVEL - 1:.0%}",
        missing=missing(machines),
    )


TEMPLATE = """# Against everyone

What mishkit's functions cost on a CPU, beside those of other libraries. `make peers` times them
all on the machine at hand, adds a file for its CPU, and makes this page from all files. Ranges are
over these CPUs:

{measured}

All peers of a function take turns in one process, on inputs from N(0, 2). Times are minima of one
thread. A result goes into memory that exists or, where the column says *fresh*, into memory that
the call allocates. Backward is (grad, input) → grad_input. Who computes something else than the
formula in float64 is not timed. The files have medians, quantiles, errors, page faults, two threads
and all sizes.

## Mish

How many times as long as mishkit's everyone takes. torch ReLU and copy do less work; "1 exp" is
x·n/(n + 2) with n = eˣ(eˣ + 2), passed to a compiler.

{tables}

![Time of Mish over the number of elements]({figure})

## Every function

How many times as long the fastest other takes; bold where ours is behind by more than {level} on
some CPU.

{leads}

{counts}

## Where ours is behind

{causes}

[Every cell with its figures and its cause]({behind}) is in a file.

## Who is missing

{missing}
"""


# ---- the figure ----

LINES = (OURS, "torch", "torch.compile, 1 exp", "oneDNN", "torch ReLU")
"""Ours, torch's two, the fastest other, and the floor; more lines would be hard to tell apart."""
_MARKERS = "os^Dv"
WIDTH, HEIGHT, LETTERS = 4.6, 3.8, 10
"""In inches and points: legible where the page is 390 pixels wide."""


def draw(machines: Sequence[Machine], path: Path, function: str = "mish") -> None:
    """ns per element against the size, forward into existing memory, float32, one thread: the
    geometric mean over the CPUs, and a band from the fastest to the slowest.
    """
    tables = [times(machine.rows) for machine in machines]
    sizes = sorted({cell.size for everything in tables for cell in everything})
    with style(), rc_context({"font.size": LETTERS, "svg.fonttype": "none", "svg.hashsalt": "0"}):
        figure = Figure((WIDTH, HEIGHT), layout="constrained")
        panel = figure.subplots()
        ends = []
        for number, name in enumerate(LINES):
            spans = {}
            for size in sizes:
                cell = Cell(function, "float32", FORWARD, EXISTING, size, 1)
                values = _times_of(tables, cell, name)
                if values:
                    spans[size] = values
            if not spans:
                continue
            means = [geometric_mean(values) for values in spans.values()]
            look = {"color": COLOURS[number], "marker": _MARKERS[number], "markersize": 4}
            panel.plot(list(spans), means, linewidth=2.4 if name == OURS else 1.4, **look)
            lows, highs = map(min, spans.values()), map(max, spans.values())
            panel.fill_between(
                list(spans), list(lows), list(highs), color=COLOURS[number], alpha=0.2, linewidth=0
            )
            ends.append((means[-1], name, COLOURS[number]))
        panel.set(xscale="log", yscale="log", xlabel="elements", ylabel="ns an element")
        panel.set_xticks(sizes, [size_name(size) for size in sizes])
        panel.minorticks_off()
        ticks = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]
        panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        for place, (_, name, colour) in zip(_apart([end[0] for end in ends]), ends, strict=True):
            panel.annotate(
                name, (sizes[-1], place), (6, 0), textcoords="offset points", va="center",
                color=colour, annotation_clip=False,
            )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def _apart(places: Sequence[float], ratio: float = 1.35) -> list[float]:
    """Heights on a logarithmic axis, moved so far apart that labels don't overlap."""
    result = list(places)
    order = sorted(range(len(places)), key=lambda number: places[number])
    for lower, upper in itertools.pairwise(order):
        result[upper] = max(result[upper], ratio * result[lower])
    return result
