"""The rows of `benchmarks/peers.py`, and the table, figure and page that are made of them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from peer_adapters import BACKWARD, EXISTING, FLOORS, FORWARD, FRESH, OURS
from peer_adapters import OURS_FROM_OUTPUT as FROM_OUTPUT

from mishkit.lab.bench import QUANTILES, size_name
from mishkit.lab.drawing import COLOURS, DPI, style
from mishkit.lab.formats import NONE, significant

DOCS = Path(__file__).parent.parent / "docs"
CSV, PAGE, FIGURE = DOCS / "peers.csv", DOCS / "peers.md", DOCS / "figures" / "peers.png"
LEVEL = 1.05
"""Up to this ratio two are as fast as one another: what two runs of one differ by."""
SMALL = 1 << 16
"""Below it a call's overhead decides."""
BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"
"""Around the table that the README shows."""


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
    note: str = ""


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
        return ", ".join((*words, f"{self.threads} thread{'s' * (self.threads > 1)}"))


_QUANTILE_NAMES = [f"q{round(100 * q)}" for q in QUANTILES]
_COLUMNS = (
    "peer", "version", "function", "dtype", "direction", "memory", "size", "threads", "samples",
    "min", "median", *_QUANTILE_NAMES, "error", "note",
)  # fmt: skip
_FACTS = ("cpu", "cores", "isa", "load", "minutes", "date")


def write(path: Path, rows: Iterable[Row], facts: Mapping[str, str]) -> None:
    """A line a row; what the run was made on stands in each."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*_COLUMNS, *_FACTS))
        for row in rows:
            figures = [f"{t:.5g}" for t in (row.min, row.median, *row.quantiles)]
            timed = [row.samples, *figures, f"{row.error:.2g}"]
            if row.note:
                timed = [""] * (len(QUANTILES) + 4)
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
            cell = Cell(row.function, row.dtype, row.direction, row.memory, row.size, row.threads)
            found.setdefault(cell, {})[row.peer] = row
    return found


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
        others = [row for name, row in peers.items() if name not in (OURS, FROM_OUTPUT, *FLOORS)]
        if ours is None or not others:
            continue
        others.sort(key=lambda row: row.min)
        faster = tuple(row.peer for row in others if row.min < ours.min)
        found.append(Duel(cell, ours, others[0], faster))
    return found


class Cause(NamedTuple):
    """Why we are behind in the cells that fit; an empty tuple fits everything."""

    text: str
    functions: tuple[str, ...] = ()
    directions: tuple[str, ...] = ()
    memories: tuple[str, ...] = ()
    most: int = 1 << 62
    """The largest size."""
    least: int = 0
    dtypes: tuple[str, ...] = ()
    threads: tuple[int, ...] = ()
    peers: tuple[str, ...] = ()

    def fits(self, duel: Duel) -> bool:
        cell = duel.cell
        pairs = (
            (self.functions, cell.function),
            (self.directions, cell.direction),
            (self.memories, cell.memory),
            (self.dtypes, cell.dtype),
            (self.threads, cell.threads),
            (self.peers, duel.best.peer),
        )
        fitting = all(not wanted or value in wanted for wanted, value in pairs)
        return fitting and self.least <= cell.size <= self.most


ARENA = (
    "ONNX Runtime's arena hands out the memory of the last result again: its fresh memory is not "
    "fresh. Page faults a call at 16 Mi: ONNX Runtime 0, ours 544 (huge pages), torch and oneDNN "
    "16,385"
)
ALLOCATES = (
    "ours, like any gradient of autograd, goes into fresh memory and pays its page faults; the "
    "other's goes into existing memory"
)
CALL = (
    "the call: `out=` is checked in Python. Of 16 elements mk.relu(x, out=y) takes 2.1 µs, its "
    "operator alone 0.64, torch.clamp_min(x, 0, out=y) 1.0: 1.1 µs more are 0.017 ns an element at "
    "64 Ki"
)
SMALL_CALL = (
    "the call, made in Python: of 16 elements mk.relu takes 1.2 µs, F.relu 1.0; mk.mish and "
    "F.mish 1.3"
)
ERF = (
    "0.02 ns are the call; the rest is the error function: oneDNN's is right to an absolute error "
    "alone (at −5 it is 17% off, at −6 it is 0), ours to 4 ULP down to −12.8"
)
BARRIER = (
    "probably the load: a result waits for both threads at a barrier, and where the system has put "
    "one aside a call of 10 µs takes a scheduling quantum. At a load of 1.6, mish forward into "
    "existing memory took 0.101, 0.061 and 0.129 ns at 64 Ki, 1 Mi and 16 Mi; oneDNN "
    "0.132, 0.106 and 0.252"
)
STREAM = (
    "probably memory: both pass over tensors of 4 MiB at about the speed of a copy, ours into "
    "memory that the allocator gives anew; not measured apart"
)
CAUSES: tuple[Cause, ...] = (
    Cause(BARRIER, threads=(2,), least=SMALL),
    Cause(ARENA, memories=(FRESH,), peers=("ONNX Runtime",), least=1 << 20),
    Cause(ALLOCATES, directions=(BACKWARD,), memories=(EXISTING,)),
    Cause(ERF, functions=("gelu",), memories=(EXISTING,), least=SMALL, most=SMALL),
    Cause(CALL, directions=(FORWARD,), memories=(EXISTING,), most=1 << 20),
    Cause(SMALL_CALL, memories=(FRESH,), most=SMALL),
    Cause(STREAM, functions=("relu",), least=1 << 20, most=1 << 20),
)
"""Found by reading and measuring; the first that fits is said."""
UNEXPLAINED = "not explained yet"


def cause(duel: Duel) -> str:
    """The first that fits."""
    return next((c.text for c in CAUSES if c.fits(duel)), UNEXPLAINED)


# ---- the page ----


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table; the first column of words."""
    lines = [f"| {' | '.join(head)} |", "|---" + "|--:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in body)])


def _order(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.peer for row in rows if not row.note))


_README = (
    (FORWARD, EXISTING, 1 << 16),
    (FORWARD, EXISTING, 1 << 20),
    (FORWARD, EXISTING, 1 << 24),
    (FORWARD, FRESH, 1 << 24),
    (BACKWARD, FRESH, 1 << 16),
    (BACKWARD, FRESH, 1 << 24),
)
"""The README's columns."""


def table(rows: Sequence[Row], function: str = "mish", dtype: str = "float32") -> str:
    """ns an element of everyone, one thread; the fastest of each column, floors aside, in bold.

    Where a peer has no form into existing memory, what it takes into fresh stands in brackets.
    """
    everything = times(rows)
    columns = [Cell(function, dtype, *column, 1) for column in _README]
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
    head = [
        f"{cell.direction}, {size_name(cell.size)}{', fresh' * (cell.memory == FRESH)}"
        for cell in columns
    ]
    return markdown((f"{function}, {dtype}", *head), body)


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


def _behind_table(found: Sequence[Duel]) -> str:
    body = [
        (
            str(duel.cell),
            significant(duel.ours.min),
            significant(duel.best.min),
            f"{duel.ratio:.2f}",
            f"{duel.of_medians:.2f}",
            ", ".join(duel.faster),
            cause(duel),
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
        word = (
            f"{threads} thread{'s' * (threads > 1)}, {'below' if is_small else '64 Ki and above'}"
        )
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
    found = duels(rows)
    timed = [row for row in rows if not row.note]
    versions = ", ".join(dict.fromkeys(f"{r.peer} {r.version}" for r in timed))
    late = behind(found)
    small = [d for d in late if d.cell.size < SMALL]
    large = [d for d in late if d.cell.size >= SMALL]
    missing = list(notes(rows))
    dtypes = dict.fromkeys(row.dtype for row in timed)
    return TEMPLATE.format(
        facts=f"{facts['cpu']}, {facts['cores']} cores, mishkit's kernels: {facts['isa']}; load "
        f"before the run {facts['load']}; {facts['minutes']} minutes, {facts['date']}.",
        versions=versions,
        begin=BEGIN,
        end=END,
        table=table(rows),
        bfloat16=table(rows, dtype="bfloat16"),
        figure=figure,
        counts=counts(found),
        leads="\n\n".join(leads(found, dtype) for dtype in dtypes),
        large=_behind_table(large) if large else "None.",
        small=_behind_table(small) if small else "None.",
        notes="\n".join(missing) or "None.",
    )


TEMPLATE = """# Against everyone

What mishkit's functions cost beside everyone else who computes them on a CPU. Made by `make peers`;
every timing is a row of [peers.csv](peers.csv). {facts}

{versions}.

All peers of a function are timed in one process, in turns, on inputs N(0, 2), nanoseconds an
element, minima (the CSV has medians and quantiles). *Existing*: the result goes into memory that is
there, the same for all; *fresh*: into memory that the call allocates. Backward is (grad, input) →
grad_input. Each result was compared with the formula in float64 before it was timed; the CSV's
`error` is the largest |result − exact|/(1 + |exact|). torch ReLU and copy are the floor: they
compute less. "1 exp" is x·n/(n + 2), n = eˣ(eˣ + 2), given to a compiler.

{begin}
{table}
{end}

In brackets: into fresh memory, where there is no form into existing memory.

{bfloat16}

![Nanoseconds an element of mish against the size, a line a peer]({figure})

## How far ahead

{counts}

The time of the fastest other over ours, one thread; in bold where we are behind by more than 5%.

{leads}

## Where we are behind

By more than 5% at 64 Ki elements and above:

{large}

At 1 Ki, where the cost of a call decides:

{small}

## Who is missing, and what is not offered

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
