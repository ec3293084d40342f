"""The tables of docs/benchmarks.md, made of the results of `mishkit bench` on every CPU.

make bench                        # times this machine, adds its file, and writes the tables
python benchmarks/bench_page.py   # the tables alone, from docs/results/bench
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pages
from pages import DOCS, markdown, span

from mishkit.lab.bench.cases import (
    BACKWARD,
    CALL,
    CALL_BACKWARD,
    EXPRESSION,
    FORWARD,
    FROM_OUTPUT,
    IN_PLACE,
    OURS,
    OUT,
    RELU,
    TWIN,
)
from mishkit.lab.bench.cpu_bars import verdicts
from mishkit.lab.bench.results import Key, Results, read_csv
from mishkit.lab.common.formats import NONE, size_name
from mishkit.lab.common.timing import Timing

RESULTS, PAGE = DOCS / "results" / "bench", DOCS / "benchmarks.md"
SMALL, MIDDLE, LARGE = 1 << 16, 1 << 20, 1 << 24
OVER_TORCH = (
    (FORWARD, SMALL), (FORWARD, MIDDLE), (FORWARD, LARGE), (OUT, LARGE), (BACKWARD, SMALL),
    (BACKWARD, LARGE),
)  # fmt: skip
OVER_RELU = (
    (FORWARD, SMALL), (FORWARD, LARGE), (OUT, LARGE), (IN_PLACE, LARGE), (BACKWARD, SMALL),
    (FROM_OUTPUT, SMALL),
)  # fmt: skip
CALLS = ((CALL, 16), (CALL_BACKWARD, 16))


@dataclass(frozen=True)
class Machine:
    """What one CPU's file has."""

    path: Path
    name: str
    """The CPU, and the instruction set of our kernels."""
    facts: dict[str, str]
    results: Results


def machines(folder: Path) -> list[Machine]:
    """Every CPU that was measured, by name."""
    found = [_machine(path) for path in folder.glob("*.csv")]
    return sorted(found, key=lambda machine: machine.name)


def _machine(path: Path) -> Machine:
    rows = read_csv(path)
    timings = {}
    for row in rows:
        key = Key(
            row["function"], row["dtype"], row["case"], int(row["size"]), row["contender"],
            int(row["threads"]),
        )  # fmt: skip
        least, median = float(row["min"]), float(row["median"] or "nan")
        # Three samples that have this minimum and this median.
        timings[key] = Timing([least, median, 2 * median - least])
    last = max(rows, key=lambda row: row["date"])
    return Machine(path, f"{last['cpu']}, {last['isa']}", last, Results(timings))


# ---- tables ----


def ratios(
    found: Iterable[Machine],
    place: tuple[str, str, str, int],
    above: Sequence[str],
    below: Sequence[str],
) -> list[float]:
    """On each CPU, one contender's minimum over another's: the first of each that was timed."""
    values = []
    for machine in found:
        pair = [
            next((t for t in (machine.results.find(Key(*place, who)) for who in names) if t), None)
            for names in (above, below)
        ]
        if pair[0] is not None and pair[1] is not None:
            values.append(pair[0].samples[0] / pair[1].samples[0])
    return values


def _table(
    found: Sequence[Machine],
    dtype: str,
    columns: Sequence[tuple[str, int]],
    above: Sequence[str],
    below: Sequence[str],
) -> str:
    functions = dict.fromkeys(key.function for machine in found for key in machine.results.timings)
    body = []
    for function in functions:
        cells = [
            span(ratios(found, (function, dtype, case, size), above, below))
            for case, size in columns
        ]
        if any(cell != NONE for cell in cells):
            body.append((function, *cells))
    return markdown((dtype, *(f"{case}, {size_name(size)}" for case, size in columns)), body)


def over_torch(found: Sequence[Machine], dtype: str) -> str:
    """How many times as long torch takes, or the formula in torch where it has no function."""
    return _table(found, dtype, OVER_TORCH, (TWIN, EXPRESSION), (OURS,))


def over_relu(found: Sequence[Machine], dtype: str) -> str:
    """How many times as long ours takes as torch's ReLU."""
    return _table(found, dtype, OVER_RELU, (OURS,), (RELU,))


def mish_on(found: Sequence[Machine]) -> str:
    """Mish on each CPU: ours in ns an element, and torch's and ReLU's beside."""
    body = []
    for machine in found:
        cells = []
        for case, size in ((FORWARD, SMALL), (FORWARD, LARGE), (BACKWARD, SMALL)):
            place = "mish", "float32", case, size
            timing = machine.results.find(Key(*place, OURS))
            cells += [
                NONE if timing is None else span([timing.samples[0]]),
                span(ratios([machine], place, (TWIN,), (OURS,))),
            ]
        name = f"[{machine.facts['cpu']}](results/bench/{machine.path.name})"
        body.append((name, machine.facts["isa"], machine.facts["date"], *cells))
    head = ("CPU", "kernels", "date", *(
        f"{case}, {size_name(size)}, {what}"
        for case, size in ((FORWARD, SMALL), (FORWARD, LARGE), (BACKWARD, SMALL))
        for what in ("ns", "torch ×")
    ))  # fmt: skip
    return markdown(head, body, words=3)


def calls(found: Sequence[Machine]) -> str:
    """What a call takes on 16 elements, in ns, and how many times as long torch's takes."""
    functions = dict.fromkeys(key.function for machine in found for key in machine.results.timings)
    body = []
    for function in functions:
        cells = []
        for case, size in CALLS:
            place = function, "float32", case, size
            ours = [machine.results.find(Key(*place, OURS)) for machine in found]
            cells += [
                span([timing.samples[0] for timing in ours if timing], digits=3),
                span(ratios(found, place, (TWIN,), (OURS,))),
            ]
        body.append((function, *cells))
    head = [f"{case}, {what}" for case, _ in CALLS for what in ("ns", "torch ×")]
    return markdown(("float32, 16 elements", *head), body)


def bars(found: Sequence[Machine]) -> str:
    """How many bars each CPU meets, and which it misses."""
    lines = []
    for machine in found:
        judged = [verdict for verdict in verdicts(machine.results) if verdict.met is not None]
        if not judged or any("nan" in verdict.measured for verdict in judged):
            lines.append(f"- **{machine.name}**: its file lacks torch's medians, so no bars.")
            continue
        missed = [verdict for verdict in judged if not verdict.met]
        lines.append(f"- **{machine.name}**: {len(judged) - len(missed)} of {len(judged)} met.")
        lines += [f"    - {v.what}: {v.measured}, the bar is {v.bar}" for v in missed]
    return "\n".join(lines)


def write(path: Path, found: Sequence[Machine]) -> None:
    """Put the tables between the marks of the page."""
    for name, text in (
        ("mish", mish_on(found)),
        ("torch", f"{over_torch(found, 'float32')}\n\n{over_torch(found, 'bfloat16')}"),
        ("relu", over_relu(found, "float32")),
        ("calls", calls(found)),
        ("bars", bars(found)),
    ):
        pages.put(path, name, f"\n{text}\n\n")


def main() -> None:
    found = machines(RESULTS)
    if not found:
        raise SystemExit(f"{RESULTS} has no files")
    write(PAGE, found)
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
