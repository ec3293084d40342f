"""mishkit and everything else that computes its functions on a CPU: a file per CPU, and a page.

    make peers                                # its own environment, everything; under 20 minutes
    make peers PEERS=--quick                  # a tenth of the time, into build/peers
    python benchmarks/peers.py --page-only    # the page and its figure anew, from the files

All peers of a function are timed in one process, by turns, on the same inputs, and into the same
existing memory. Each number of threads has its own process, since some peers read it only at the
start. Results are first compared with the formula in float64: a peer that computes something else
is reported and not timed. Peers that can't be loaded are listed with the reason.
"""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer

sys.path.insert(0, str(Path(__file__).parent))

import pages
import peer_page
from peer_adapters import BACKWARD, FLOORS, FORWARD, FUNCTIONS, Adapter, Lacks, Made, Work, everyone
from peer_page import Row

from mishkit.backends import cpu
from mishkit.lab.bench.results import QUANTILES
from mishkit.lab.bench.settings import DTYPES, parse_numbers
from mishkit.lab.common.memory import page_faults
from mishkit.lab.common.timing import PROCESSOR, WALL, Call, Timing, round_robin

SIZES = (1 << 10, 1 << 16, 1 << 20, 1 << 24)
TOLERANCE = {
    ("float32", FORWARD): 1e-4,
    ("float32", BACKWARD): 1e-4,
    ("bfloat16", FORWARD): 5e-3,
    ("bfloat16", BACKWARD): 1e-2,
}
"""Of the root of the mean square of |result − exact|/(1 + |exact|): wide enough for 16-bit
intermediate results and for gradients from the output, and far too narrow for another function."""
CHECKED = 1 << 16
"""How many elements are compared at either end."""
QUICK = 0.1
QUICK_RESULTS = pages.DOCS.parent / "build" / "peers"
REST = 2e-3
"""Seconds before a sample of several threads, for another peer's threads to stop spinning."""


def seconds(function: str, size: int) -> float:
    """How long a pass of a function is timed: mish has the most peers."""
    base = 4.0 if size > 1 << 22 else 1.2 if size > 1 << 18 else 0.6
    return base if function == "mish" else 0.4 * base


@dataclass
class Run:
    """The measurements of one process."""

    threads: int
    share: float
    adapters: list[Adapter] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    notes: set[tuple[str, ...]] = field(default_factory=set)

    def load(self) -> None:
        """Keep the peers that can be loaded, and note the others."""
        for adapter in everyone():
            try:
                adapter.load()
            except Exception as error:
                self.note(adapter.name, reason=f"absent: {_first_line(error)}")
            else:
                self.adapters.append(adapter)

    def note(
        self, peer: str, function: str = "", dtype: str = "", direction: str = "", *, reason: str
    ) -> None:
        """Note once what is not timed."""
        if (peer, function, dtype, direction, reason) not in self.notes:
            self.notes.add((peer, function, dtype, direction, reason))
            row = Row(peer, function, dtype, direction, threads=self.threads, note=reason)
            self.rows.append(row)

    def group(self, function: str, dtype: str, direction: str, size: int) -> None:
        """Check and time all peers on one piece of work."""
        work = Work.of(function, DTYPES[dtype], direction, size, self.threads)
        accepted: dict[tuple[str, str], tuple[Call, Errors]] = {}
        piece = function, dtype, direction
        for adapter in self.adapters:
            try:
                for memory, offer in adapter.calls(work):
                    errors = errors_of(offer, work)
                    is_floor = adapter.name in FLOORS
                    if not is_floor and not errors.rms <= TOLERANCE[dtype, direction]:
                        reason = f"another function: off by {errors.rms:.1g}"
                        self.note(adapter.name, *piece, reason=reason)
                        continue
                    accepted[adapter.name, memory] = self.rested(offer.call), errors
            except Lacks as lack:
                self.note(adapter.name, *piece, reason=str(lack))
            except Exception as failure:
                self.note(adapter.name, *piece, reason=f"failed: {_first_line(failure)}")
        budget = seconds(function, size) * self.share
        least = 3 if self.share == 1 else 2
        # One thread: processor time, which other work on the machine does not lengthen.
        clock = PROCESSOR if self.threads == 1 else WALL
        calls = {key: call for key, (call, _) in accepted.items()}
        timings = round_robin(calls, seconds=budget, least=least, clock=clock)
        versions = {adapter.name: adapter.version for adapter in self.adapters}
        for (peer, memory), timing in timings.items():
            per_element = Timing([sample / size for sample in timing.samples])
            key = (peer, *piece, memory, size, self.threads)
            call, errors = accepted[peer, memory]
            self.rows.append(
                Row(
                    *key,
                    version=versions[peer],
                    samples=len(timing.samples),
                    min=per_element.min,
                    median=per_element.median,
                    quantiles=tuple(map(per_element.quantile, QUANTILES)),
                    error=errors.worst,
                    relative=errors.relative,
                    faults=faults_of(call),
                )
            )

    def rested(self, call: Call) -> Call:
        """The call, after a rest if there are several threads."""
        if self.threads == 1:
            return call
        before = call.prepare

        def prepare() -> None:
            if before is not None:
                before()
            time.sleep(REST)

        return Call(call.run, prepare, call.most_calls)


class Errors(NamedTuple):
    """Of |result − exact|/(1 + |exact|), and the largest |result − exact|/|exact|."""

    worst: float
    rms: float
    relative: float


def errors_of(offer: Made, work: Work) -> Errors:
    """The errors at either end; infinite for a wrong shape, NaN if a result is NaN."""
    result = offer.tensor()
    if result.shape != work.x.shape:
        return Errors(math.inf, math.inf, math.inf)
    parts, relative = [], 0.0
    for part in (slice(None, CHECKED), slice(-CHECKED, None)):
        exact = work.exact(part)
        errors = (result[part].double() - exact).abs()
        parts.append((errors / (1 + exact.abs()))[~exact.isnan()])
        # A result that is 0 or subnormal has no relative error.
        normal = exact.abs() > torch.finfo(result.dtype).tiny
        if normal.any():
            relative = max(relative, (errors / exact.abs())[normal].max().item())
    errors = torch.cat(parts)
    return Errors(errors.max().item(), errors.square().mean().sqrt().item(), relative)


def faults_of(call: Call) -> int:
    """Page faults of a call after the first."""
    for _ in range(2):
        if call.prepare is not None:
            call.prepare()
        faults = page_faults(call.run)
    return faults


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


# ---- processes ----


def settings_of(threads: int) -> dict[str, str]:
    """The environment in which every peer starts with this many threads."""
    count = str(threads)
    flags = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
    return {
        **os.environ,
        "OMP_NUM_THREADS": count,
        "NUMBA_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "NPROC": count,  # XLA's pool
        "XLA_FLAGS": f"{flags} {os.environ.get('XLA_FLAGS', '')}".strip(),
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def measure(
    threads: int,
    functions: Sequence[str],
    dtypes: Sequence[str],
    sizes: Sequence[int],
    share: float,
) -> list[Row]:
    """Everything that this process, with its number of threads, can time."""
    torch.set_num_threads(threads)
    run = Run(threads, share)
    run.load()
    begin = time.monotonic()
    for function in functions:
        for dtype in dtypes:
            for size in sizes:
                for direction in (FORWARD, BACKWARD):
                    run.group(function, dtype, direction, size)
            passed = time.monotonic() - begin
            text = f"{threads} thread(s), {function}, {dtype}: {passed:.0f} s so far"
            print(text, file=sys.stderr, flush=True)
    return run.rows


def children(arguments: Sequence[str], threads: Sequence[int]) -> Iterator[Row]:
    """The rows of a process for each number of threads."""
    with tempfile.TemporaryDirectory() as folder:
        for count in threads:
            path = Path(folder, f"{count}.csv")
            command = [sys.executable, __file__, *arguments, "--threads", str(count)]
            process = subprocess.run([*command, "--part", str(path)], env=settings_of(count))
            if process.returncode:
                raise SystemExit(
                    f"the process of {count} thread(s) ended with {process.returncode}"
                )
            yield from peer_page.read(path)


def main(
    function: Annotated[list[str] | None, typer.Option(help="Of mishkit's; all.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16 or both.")] = None,
    sizes: Annotated[str, typer.Option(help="Elements.")] = "1Ki,64Ki,1Mi,16Mi",
    threads: Annotated[str, typer.Option(help="A process for each.")] = "1,2",
    quick: Annotated[
        bool, typer.Option("--quick", help="A tenth of the time; by default into build/peers.")
    ] = False,
    into: Annotated[
        Path | None, typer.Option(help="The folder of the page, and of results/peers.")
    ] = None,
    readme: Annotated[Path, typer.Option(help="Where ranges go, too.")] = pages.README,
    page_only: Annotated[
        bool, typer.Option("--page-only", help="From the files as they are.")
    ] = False,
    part: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Time mishkit's peers; add the file of this CPU, and write the page and its figure."""
    functions, dtypes = function or list(FUNCTIONS), dtype or ["float32", "bfloat16"]
    if not page_only and cpu.isa() == "none":
        raise SystemExit("mishkit's kernels are not built: make kernels")
    if part is not None:
        share = QUICK if quick else 1.0
        rows = measure(int(threads), functions, dtypes, parse_numbers(sizes), share)
        peer_page.write(part, rows, {})
        return
    # Quick timings do not replace full ones.
    root = into or (QUICK_RESULTS if quick else pages.DOCS)
    moved = {path: root / path.relative_to(pages.DOCS) for path in peer_page.WRITTEN}
    results, page, figure, behind = moved.values()
    if not page_only:
        facts = pages.facts()
        begin = time.monotonic()
        arguments = [f"--function={name}" for name in functions]
        arguments += [f"--dtype={name}" for name in dtypes]
        arguments += [f"--sizes={sizes}", *(["--quick"] if quick else [])]
        rows = list(children(arguments, parse_numbers(threads)))
        facts["minutes"] = f"{(time.monotonic() - begin) / 60:.1f}"
        print(f"written: {peer_page.add(results, rows, facts)}")
    try:
        machines = peer_page.machines(results)
    except (OSError, csv.Error, KeyError, ValueError) as error:
        raise SystemExit(f"{results}: {error}") from None
    if not machines:
        raise SystemExit(f"{results} has no files")
    write_page(machines, page, figure, behind, results)
    print(f"written: {page}, {figure}, {behind}")
    if root == pages.DOCS:
        peer_page.write_readme(readme, machines)
        print(f"written: {readme}")


def write_page(
    machines: Sequence[peer_page.Machine], page: Path, figure: Path, behind: Path, results: Path
) -> None:
    """The page, its figure, and the file of all cells in which another is faster."""
    peer_page.draw(machines, figure)
    peer_page.write_behind(behind, machines)
    links = [os.path.relpath(path, page.parent) for path in (figure, results, behind)]
    page.write_text(peer_page.page(machines, *links), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
