"""The rows of `benchmarks/peers.py`, and the table, figure and page that are made of them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pages
from matplotlib.figure import Figure
from pages import DOCS, markdown
from peer_adapters import BACKWARD, EXISTING, FLOORS, FORWARD, FRESH, OURS
from peer_adapters import OURS_FROM_OUTPUT as FROM_OUTPUT

from mishkit.lab.bench.results import QUANTILES
from mishkit.lab.calculus.drawing import COLOURS, DPI, style
from mishkit.lab.common.formats import NONE, significant, size_name, threads_name

CSV, PAGE, FIGURE = DOCS / "peers.csv", DOCS / "peers.md", DOCS / "figures" / "peers.png"
LEVEL = 1.05
"""Up to this ratio two are as fast as one another: what two runs of one differ by."""
SMALL = 1 << 16
"""Below it a call's overhead decides."""


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
    """One timing in ns an element; or a note why there is none."""

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
    """A line a row; what the run was made on stands in each."""
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
    """The rows of a file; KeyError where a column is missing, ValueError for a bad number."""
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
    """What the run was made on."""
    with path.open(newline="") as file:
        line: dict[str, str] = next(csv.DictReader(file), {})
    return {name: line.get(name, "") for name in _FACTS}


# ---- comparing ----

Times = dict[Cell, dict[str, Row]]
"""By cell and peer."""


def times(rows: Iterable[Row]) -> Times:
    """The timings without the notes."""
    found: Times = {}
    for row in rows:
        if not row.note:
            found.setdefault(row.cell, {})[row.peer] = row
    return found


def rivals(peers: Mapping[str, Row]) -> list[Row]:
    """Those whom ours are set against, the fastest first."""
    others = (row for name, row in peers.items() if name not in (OURS, FROM_OUTPUT, *FLOORS))
    return sorted(others, key=lambda row: row.min)


@dataclass(frozen=True)
class Duel:
    """Ours and the fastest other in a cell."""

    cell: Cell
    ours: Row
    best: Row
    faster: tuple[str, ...]
    """All who are faster than ours, the fastest first."""

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
    """Every cell that we and another are in. Autograd has no backward pass into existing memory,
    nor have we; what others have is set against ours into fresh."""
    everything, found = times(rows), []
    for cell, peers in everything.items():
        ours = peers.get(OURS) or everything.get(cell._replace(memory=FRESH), {}).get(OURS)
        others = rivals(peers)
        if ours is None or not others:
            continue
        faster = tuple(row.peer for row in others if row.min < ours.min)
        found.append(Duel(cell, ours, others[0], faster))
    return found


# ---- why we are behind ----

MOSTLY = 0.7
"""The share of a gap that explains it."""
WRONG = 0.01
"""A relative error from which on a result has no digit that may be relied upon."""
UNEXPLAINED = "not explained yet"


def cause(duel: Duel, everything: Times) -> str:
    """Why another is faster, from the rows alone; `everything` has those of all cells."""
    reasons = (_by_medians, _arena, _into_fresh, _of_the_call, _tail, _second_thread)
    found = (reason(duel, everything) for reason in reasons)
    return next((text for text in found if text), UNEXPLAINED)


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
    others = f", torch's {torch.faults:,}" if torch else ""
    return (
        f"{duel.best.peer}'s fresh memory is not fresh: its arena reuses that of the last "
        f"result. Its call makes {duel.best.faults:,} page faults, ours {duel.ours.faults:,}"
        f"{others}"
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
    """By how many microseconds our call at the smallest size is longer than theirs."""
    size = min(cell.size for cell in everything)
    found = everything.get(duel.cell._replace(size=size), {})
    ours, best = found.get(OURS), found.get(duel.best.peer)
    return _gap(ours, best) if ours and best and size < duel.cell.size else None


# ---- the page ----


def _order(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.peer for row in rows if not row.note))


_SHOWN = (
    (FORWARD, EXISTING, 1 << 16),
    (FORWARD, EXISTING, 1 << 20),
    (FORWARD, EXISTING, 1 << 24),
    (FORWARD, FRESH, 1 << 24),
    (BACKWARD, FRESH, 1 << 16),
    (BACKWARD, FRESH, 1 << 24),
)


def _shown(function: str, dtype: str) -> list[Cell]:
    """The cells of a function that the tables of times show."""
    return [Cell(function, dtype, *place, 1) for place in _SHOWN]


def table(rows: Sequence[Row], function: str = "mish", dtype: str = "float32") -> str:
    """ns an element of everyone, one thread; the fastest of each column, floors aside, in bold.

    Where a peer has no form into existing memory, what it takes into fresh stands in brackets.
    """
    everything = times(rows)
    columns = _shown(function, dtype)
    best = [
        min(
            (r.min for name, r in everything.get(cell, {}).items() if name not in FLOORS),
            default=0.0,
        )
        for cell in columns
    ]
    body = []
    for peer in _order(rows):
        cells = []
        for cell, least in zip(columns, best, strict=True):
            row = everything.get(cell, {}).get(peer)
            other = everything.get(cell._replace(memory=FRESH), {}).get(peer)
            if row is None:
                cells.append(f"({significant(other.min)})" if other else NONE)
            else:
                bold = "**" * (row.min == least)
                cells.append(f"{bold}{significant(row.min)}{bold}")
        if any(text != NONE for text in cells):
            body.append((peer, *cells))
    return markdown((f"{function}, {dtype}", *map(_column, columns)), body)


def _column(cell: Cell) -> str:
    return f"{cell.direction}, {size_name(cell.size)}{', fresh' * (cell.memory == FRESH)}"


def beside_torch(rows: Sequence[Row], dtype: str = "float32") -> str:
    """ns an element of each function, torch's and ours, one thread; the faster in bold."""
    everything = times(rows)
    functions = dict.fromkeys(cell.function for cell in everything)
    body = []
    for function in functions:
        found = [everything.get(cell, {}) for cell in _shown(function, dtype)]
        pairs = [(peers.get("torch"), peers.get(OURS)) for peers in found]
        if any(torch is None or ours is None for torch, ours in pairs):
            continue  # torch has no such function
        for place, name in enumerate(("torch", "mishkit")):
            texts = []
            for pair in pairs:
                bold = "**" * (pair[place].min == min(row.min for row in pair))
                texts.append(f"{bold}{significant(pair[place].min)}{bold}")
            body.append((f"{name} {function}", *texts))
    return markdown((dtype, *map(_column, _shown("", dtype))), body)


def write_readme(path: Path, rows: Sequence[Row], facts: Mapping[str, str]) -> None:
    """Put the two tables between the marks of the README."""
    versions = {row.peer: row.version for row in rows if not row.note}
    made = README_TEMPLATE.format(
        machine=f"{facts['cpu']}, kernels {facts['isa']}, torch {versions['torch']}",
        beside=beside_torch(rows),
        table=table(rows),
        counts=counts([d for d in duels(rows) if d.cell.size >= SMALL]),
    )
    pages.put(path, "peers", made)


README_TEMPLATE = """One thread of {machine}. Nanoseconds per element, the minimum
over interleaved repeats, into existing memory unless the column says fresh.

{beside}

Mish in the libraries that compute it on a CPU. Brackets: into fresh memory, where a library can't
write into existing memory. Bold: the fastest, ReLU and copy aside. "1 exp" is the expression with
one exponential, passed to a compiler.

{table}

Over all functions, dtypes and directions that at least one other library offers:

{counts}

"""


def leads(found: Sequence[Duel], dtype: str) -> str:
    """By function: how many times faster than the fastest other, one thread."""
    columns = [
        (direction, memory, size)
        for direction, memory in ((FORWARD, EXISTING), (FORWARD, FRESH), (BACKWARD, FRESH))
        for size in (1 << 16, 1 << 20, 1 << 24)
    ]
    by_cell = {duel.cell: duel for duel in found}
    functions = dict.fromkeys(duel.cell.function for duel in found)
    body = []
    for function in functions:
        cells = []
        for direction, memory, size in columns:
            duel = by_cell.get(Cell(function, dtype, direction, memory, size, 1))
            text = f"{1 / duel.ratio:.2f} × {duel.best.peer}" if duel else NONE
            cells.append(f"**{text}**" if duel and duel.is_behind else text)
        body.append((function, *cells))
    head = [f"{d}, {size_name(s)}, {m}" for d, m, s in columns]
    return markdown((dtype, *head), body)


def behind(found: Sequence[Duel]) -> list[Duel]:
    """The cells in which another is faster by more than `LEVEL`, the worst first."""
    return sorted((d for d in found if d.is_behind), key=lambda d: -d.ratio)


def _behind_table(found: Sequence[Duel], everything: Times) -> str:
    body = [
        (
            str(duel.cell),
            significant(duel.ours.min),
            significant(duel.best.min),
            f"{duel.ratio:.2f}",
            f"{duel.of_medians:.2f}",
            ", ".join(duel.faster),
            cause(duel, everything),
        )
        for duel in found
    ]
    return markdown(("cell", "ours", "best", "ratio", "of medians", "faster", "cause"), body)


def counts(found: Sequence[Duel]) -> str:
    """In how many cells we are first, level or behind, in words."""
    lines = []
    kinds = dict.fromkeys((d.cell.threads, d.cell.size < SMALL) for d in found)
    for threads, is_small in sorted(kinds):
        chosen = [d for d in found if (d.cell.threads, d.cell.size < SMALL) == (threads, is_small)]
        word = f"{threads_name(threads)}, {'below' if is_small else '64 Ki and above'}"
        first = sum(d.ratio <= 1 for d in chosen)
        late = sum(d.is_behind for d in chosen)
        lines.append(
            f"- {word}: first in {first} of {len(chosen)} cells, level (within "
            f"{LEVEL - 1:.0%}) in {len(chosen) - first - late}, behind in {late}."
        )
    return "\n".join(lines)


def notes(rows: Iterable[Row]) -> Iterator[str]:
    """Who is absent, fails or computes something else; then what is not offered."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        if row.note:
            where = " ".join(x for x in (row.function, row.dtype, row.direction) if x)
            found.setdefault((row.peer, row.note), {})[where] = None
    loud = ("absent", "failed", "another")
    ordered = sorted(found.items(), key=lambda item: not item[0][1].startswith(loud))
    for (peer, reason), where in ordered:
        places = [place for place in where if place]
        few = ", ".join(places) if len(places) <= 4 else f"{len(places)} cases"
        yield f"- **{peer}**: {reason}" + (f" ({few})" if places else "")


def page(rows: Sequence[Row], facts: Mapping[str, str], figure: str) -> str:
    """The whole page."""
    found, everything = duels(rows), times(rows)
    timed = [row for row in rows if not row.note]
    versions = ", ".join(dict.fromkeys(f"{r.peer} {r.version}" for r in timed))
    late = behind(found)
    small = [d for d in late if d.cell.size < SMALL]
    large = [d for d in late if d.cell.size >= SMALL]
    missing = list(notes(rows))
    dtypes = dict.fromkeys(row.dtype for row in timed)
    return TEMPLATE.format(
        facts=f"{facts['cpu']}, {facts['cores']} cores, mishkit's kernels: {facts['isa']}; load "
        f"average before the run {facts['load']}; {facts['minutes']} minutes, {facts['date']}.",
        versions=versions,
        table=table(rows),
        bfloat16=table(rows, dtype="bfloat16"),
        figure=figure,
        counts=counts(found),
        leads="\n\n".join(leads(found, dtype) for dtype in dtypes),
        large=_behind_table(large, everything) if large else "None.",
        small=_behind_table(small, everything) if small else "None.",
        notes="\n".join(missing) or "None.",
    )


TEMPLATE = """# Against everyone

What mishkit's functions cost on a CPU, compared with those of other libraries. `make peers` makes
this page; [peers.csv](peers.csv) has a row for every timing. {facts}

{versions}.

All peers of a function are timed in one process, taking turns, on inputs from N(0, 2). Times are
minima, in nanoseconds per element; the CSV has medians and quantiles too. *Existing* means that the
result goes into memory that already exists, the same for all peers; *fresh* means into memory that
the call allocates. Backward is (grad, input) → grad_input. Each result was compared with the
formula in float64 before it was timed: in the CSV, `error` is the largest
|result − exact|/(1 + |exact|), `relative` the largest |result − exact|/|exact|, and `faults` the
number of page faults per call. torch ReLU and copy compute less and serve as a floor. "1 exp" is
x·n/(n + 2), n = eˣ(eˣ + 2), passed to a compiler.

{table}

Brackets: into fresh memory, where a peer can't write into existing memory.

{bfloat16}

![Nanoseconds per element of mish against the size, one line per peer]({figure})

## How far ahead

{counts}

The time of the fastest other peer divided by ours, with one thread; bold where ours is behind by
more than 5%.

{leads}

## Where we are behind

The cause is derived from the rows: the gap at 1 Ki elements is that of the call, page faults are
counted, and errors are compared. Behind by more than 5% at 64 Ki elements and above:

{large}

At 1 Ki elements, where the cost of a call decides:

{small}

## Missing peers, and what peers don't offer

{notes}
"""


# ---- the figure ----

_MARKERS = "os^Dv*P"
_PANELS = ((FORWARD, EXISTING), (FORWARD, FRESH), (BACKWARD, FRESH))


def look(number: int) -> dict[str, Any]:
    """A line's colour and marker: no two peers share both, and neither is needed alone."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": _MARKERS[(number + number // len(COLOURS)) % len(_MARKERS)],
        "linestyle": ("-", "--", ":")[number // len(COLOURS) % 3],
    }


def draw(rows: Sequence[Row], path: Path, function: str = "mish") -> None:
    """ns an element against size, a line a peer; float32 above, bfloat16 below; one thread."""
    everything = times(rows)
    peers = [peer for peer in _order(rows) if peer not in FLOORS]
    dtypes = list(dict.fromkeys(row.dtype for row in rows if not row.note)) or ["float32"]
    with style():
        made = Figure((13.5, 4.6 * len(dtypes) + 1.2), layout="constrained")
        axes = made.subplots(len(dtypes), len(_PANELS), squeeze=False, sharey=True, sharex=True)
        for down, dtype in enumerate(dtypes):
            for across, (direction, memory) in enumerate(_PANELS):
                panel = axes[down][across]
                for name in (*peers, *FLOORS):
                    points = sorted(
                        (cell.size, found[name].min)
                        for cell, found in everything.items()
                        if cell[:4] == (function, dtype, direction, memory)
                        and cell.threads == 1
                        and name in found
                    )
                    if not points:
                        continue
                    looks: dict[str, Any] = {"color": "#888888", "linestyle": "--"}
                    looks["marker"] = "x" if name == "copy" else "."
                    if name not in FLOORS:
                        looks = look(peers.index(name))
                    panel.plot(
                        *zip(*points, strict=True),
                        label=name,
                        **looks,
                        linewidth=3.2 if name == OURS else 1.5,
                        markersize=7 if name == OURS else 5,
                        zorder=4 if name == OURS else 2,
                    )
                panel.set(xscale="log", yscale="log")
                sizes = sorted({cell.size for cell in everything})
                panel.set_xticks(sizes, [size_name(size) for size in sizes])
                panel.minorticks_off()
                ticks = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20]
                panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
                panel.set_title(f"{function}, {dtype}, {direction}, {memory} memory")
                if not across:
                    panel.set_ylabel("ns an element")
                if down == len(dtypes) - 1:
                    panel.set_xlabel("elements")
        named: dict[str, Any] = {}
        for panel in axes.flat:
            named |= {
                label: line
                for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
                if label not in named
            }
        made.legend(
            list(named.values()),
            list(named),
            loc="outside lower center",
            ncols=6,
            handlelength=3.2,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        made.savefig(path, dpi=DPI, metadata={"Software": None})
