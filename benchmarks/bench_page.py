"""The tables of docs/benchmarks.md, from the results of `mishkit bench` on every CPU.

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
    CALL_OUT,
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
CALLS = ((CALL, 16), (CALL_OUT, 16), (CALL_BACKWARD, 16))


@dataclass(frozen=True)
class Machine:
    """The contents of one CPU's file."""

    path: Path
    name: str
    """The CPU, and the instruction set of our kernels."""
    facts: dict[str, str]
    results: Results


def machines(folder: Path) -> list[Machine]:
    """Every CPU that was measured, by name."""
    machines = [_machine(path) for path in folder.glob("*.csv")]
    return sorted(machines, key=lambda machine: machine.name)


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
    machines: Iterable[Machine],
    place: tuple[str, str, str, int],
    above: Sequence[str],
    below: Sequence[str],
) -> list[float]:
    """On each CPU, the minimum of the first timed contender of `above` over that of `below`."""
    values = []
    for machine in machines:
        pair = [
            next(
                (
                    t
                    for t in (machine.results.find(Key(*place, contender)) for contender in names)
                    if t
                ),
                None,
            )
            for names in (above, below)
        ]
        if pair[0] is not None and pair[1] is not None:
            values.append(pair[0].samples[0] / pair[1].samples[0])
    return values


def _table(
    machines: Sequence[Machine],
    dtype: str,
    columns: Sequence[tuple[str, int]],
    above: Sequence[str],
    below: Sequence[str],
) -> str:
    functions = dict.fromkeys(
        key.function for machine in machines for key in machine.results.timings
    )
    body = []
    for function in functions:
        cells = [
            span(ratios(machines, (function, dtype, case, size), above, below))
            for case, size in columns
        ]
        if any(cell != NONE for cell in cells):
            body.append((function, *cells))
    return markdown((dtype, *(f"{case}, {size_name(size)}" for case, size in columns)), body)


def over_torch(machines: Sequence[Machine], dtype: str) -> str:
    """How many times as long torch takes, or the formula in torch where it has no function."""
    return _table(machines, dtype, OVER_TORCH, (TWIN, EXPRESSION), (OURS,))


def over_relu(machines: Sequence[Machine], dtype: str) -> str:
    """How many times as long ours takes as torch's ReLU."""
    return _table(machines, dtype, OVER_RELU, (OURS,), (RELU,))


def mish_on(machines: Sequence[Machine]) -> str:
    """Mish on each CPU: ours in ns per element, and torch's relative to it."""
    body = []
    for machine in machines:
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
        f"{case}, {size_name(size)}, {unit}"
        for case, size in ((FORWARD, SMALL), (FORWARD, LARGE), (BACKWARD, SMALL))
        for unit in ("ns", "torch ×")
    ))  # fmt: skip
    return markdown(head, body, words=3)


def calls(machines: Sequence[Machine]) -> str:
    """What a call takes on 16 elements, in ns, and how many times as long torch's takes."""
    functions = dict.fromkeys(
        key.function for machine in machines for key in machine.results.timings
    )
    body = []
    for function in functions:
        cells = []
        for case, size in CALLS:
            place = function, "float32", case, size
            ours = [machine.results.find(Key(*place, OURS)) for machine in machines]
            cells += [
                span([timing.samples[0] for timing in ours if timing], digits=3),
                span(ratios(machines, place, (TWIN,), (OURS,))),
            ]
        body.append((function, *cells))
    head = [f"{case}, {unit}" for case, _ in CALLS for unit in ("ns", "torch ×")]
    return markdown(("float32, 16 elements", *head), body)


def bars(machines: Sequence[Machine]) -> str:
    """How many bars each CPU meets, and which it misses."""
    lines = []
    for machine in machines:
        judged = [verdict for verdict in verdicts(machine.results) if verdict.met is not None]
        if not judged or any("nan" in verdict.measured for verdict in judged):
            lines.append(f"- **{machine.name}**: its file lacks torch's medians, so no bars.")
            continue
        missed = [verdict for verdict in judged if not verdict.met]
        lines.append(f"- **{machine.name}**: {len(judged) - len(missed)} of {len(judged)} met.")
        lines += [f"    - {v.claim}: {v.measured}, the bar is {v.bar}" for v in missed]
    return "\n".join(lines)


def write(path: Path, machines: Sequence[Machine]) -> None:
    """Put the tables between the marks of the page."""
    for name, text in (
        ("mish", mish_on(machines)),
        ("torch", f"{over_torch(machines, 'float32')}\n\n{over_torch(machines, 'bfloat16')}"),
        ("relu", over_relu(machines, "float32")),
        ("calls", calls(machines)),
        ("bars", bars(machines)),
    ):
        pages.put(path, name, f"\n{text}\n\n")


def main() -> None:
    measured = machines(RESULTS)
    if not measured:
        raise SystemExit(f"{RESULTS} has no files")
    write(PAGE, measured)
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
