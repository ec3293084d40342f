"""`make gpu`: what only a GPU can show, in nine minutes, on a machine with torch and no network.

    make gpu                   # everything; again to go on where it was cut off
    make gpu GPU="--minutes 4 --only accuracy,lean"
    make gpu DRY=1             # the same way on a CPU, tiny and without meaning
    python benchmarks/gpu.py --page-only    # docs/gpu.md anew, from the results

It needs Python, torch 2.10 or later with its own Triton, and a C compiler for Triton's launchers.
What else is missing is left out, and the output says what and why.

Each stage runs in a process of its own, with a budget, and writes a line a result into
docs/results/gpu/<GPU, torch, Triton>/<stage>.jsonl as soon as there is one. So a crash, a hang or
the end of the lease costs one result; the next run does what is not done yet. Results of a dry run
go to build/gpu-dry and are marked; no page is made of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "gpu"
DRY_RESULTS = ROOT / "build" / "gpu-dry"
MINUTES = 9.0
GRACE = 20.0
"""Seconds that a process gets beyond its budget for the item that it is at."""
RESTARTS = 4
"""How often a stage whose process died is begun again, after the item that it died of."""
LATE = -1
"""The status of a process that was stopped because the time was over."""
BROKEN = 3
"""The exit status of a process whose GPU context is broken: it can't go on, but the next can."""


@dataclass(frozen=True)
class Stage:
    """A part of the work with its share of the time, in seconds of nine minutes."""

    name: str
    seconds: float
    processes: int = 1
    triton: bool = True
    """Whether it makes no sense without Triton."""


STAGES = (
    Stage("machine", 40, triton=False),
    Stage("accuracy", 50, processes=4),
    Stage("lean", 120, triton=False),
    Stage("tables", 50),
    Stage("compiling", 90, processes=4),
    Stage("compiled", 45),
    Stage("tests", 140),
)
"""In order of what would be missed most if the time were cut short."""


# ---- what is written -----------------------------------------------------------------------------


def records(folder: Path, stage: str) -> dict[str, dict[str, Any]]:
    """What is known of a stage's items: the last line about each, by name."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob(f"{stage}*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # cut off while it was written
                record = json.loads(line)
                if "result" in record or "result" not in found.get(record["item"], {}):
                    found[record["item"]] = record
    return found


def is_done(record: dict[str, Any]) -> bool:
    """Whether there is nothing left to try: it has a result, or failed by itself."""
    return "result" in record or "error" in record


def settle(folder: Path, stage: str, is_dry: bool, **why: str) -> None:
    """Write why items were begun and not finished, by processes that have ended."""
    write = Writer(folder / f"{stage}.jsonl", is_dry)
    for item, record in records(folder, stage).items():
        if "began" in record:
            write(item, **why)


class Writer:
    """Writes a line an item."""

    def __init__(self, path: Path, is_dry: bool) -> None:
        self.path, self.is_dry = path, is_dry
        path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, item: str, **what: Any) -> None:
        """Write what became of an item: a result, an error, or why it was skipped."""
        dry = {"dry": True} if self.is_dry else {}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"item": item, **what, **dry}) + "\n")


# ---- one stage, in its own process ---------------------------------------------------------------


def work(options: argparse.Namespace) -> int:
    """Do a share of a stage's items until the time is over; returns the exit status."""
    share, shares = options.share
    suffix = f".{share}" if shares > 1 else ""
    write = Writer(options.folder / f"{options.stage}{suffix}.jsonl", options.dry_run)
    known = records(options.folder, options.stage)
    done = {item for item, record in known.items() if is_done(record)}
    prepare(options.dry_run)
    if options.stage == "tests":
        try:
            import gpu_tests
        except ImportError:
            write("all", skipped="pytest is not installed")
            return 0
        gpu_tests.run(write, done, options.until, options.dry_run)
        return 0
    import gpu_machine
    import gpu_stages
    import torch

    on = gpu_machine.machine(options.dry_run)
    todo = enumerate(gpu_stages.STAGES[options.stage](on))
    for item, run in (pair for number, pair in todo if number % shares == share):
        if item in done:
            continue
        if time.time() > options.until:
            write(item, skipped="out of time")
            continue
        write(item, began=True)
        try:
            write(item, result=run())
        except torch.OutOfMemoryError:
            write(item, error="the GPU's memory does not suffice")
        except Exception as error:
            write(item, error=gpu_machine.first_line(error))
            if "CUDA error" in str(error):
                return BROKEN
        on.free()
    return 0


def prepare(is_dry: bool) -> None:
    """Let a dry run's kernels run in Triton's interpreter; leave out Triton where it can't work."""
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]
    if is_dry:
        os.environ["TRITON_INTERPRET"] = "1"
        import torch

        from mishkit.backends import triton
        from mishkit.lab.accuracy.interpreter import make_faithful

        torch.set_num_threads(1)
        make_faithful()
        triton.LANES = 1 << 12
    elif os.environ.get("MISHKIT_GPU_WITHOUT_TRITON"):
        import gpu_machine

        gpu_machine.without_triton()


# ---- all stages ----------------------------------------------------------------------------------


class Run:
    """Runs the stages, one after the other, within the time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.end = time.time() + 60 * options.minutes
        self.scale = options.minutes / MINUTES
        self.environment = dict(os.environ, PYTHONUNBUFFERED="1")
        paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
        self.environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        if not (ROOT / "src" / "mishkit" / "_kernels.so").exists():
            # Nothing here runs on a CPU; and in the tests, a warning is an error.
            self.environment["MISHKIT_CPU_ISA"] = "none"

    def all(self) -> int:
        """Run everything that is wanted; returns the exit status."""
        say(f"make gpu{', dry run' if self.options.dry_run else ''}: {self.options.minutes:g} min")
        folder = self.folder()
        if folder is None:
            return 1
        say(f"results: {folder}")
        no_triton = self.without_triton()
        for stage in STAGES:
            if self.options.only and stage.name not in self.options.only:
                continue
            if stage.triton and no_triton:
                Writer(folder / f"{stage.name}.jsonl", self.options.dry_run)(
                    "all", skipped=no_triton
                )
                say(f"{stage.name}: skipped: {no_triton}")
                continue
            self.stage(stage, folder)
            if stage.name == "machine":
                no_triton = no_triton or self.failed_to_compile(folder)
        say(*summary(folder))
        return 0

    def folder(self) -> Path | None:
        """Where results go: a folder a GPU and version; None if nothing can run here."""
        done = self.python("--probe", timeout=120)
        answer = done.stdout.strip().splitlines()[-1:] or [""]
        if done.returncode or not answer[0].startswith("{"):
            said = (done.stderr.strip() or "no answer").splitlines()[-1]
            say(f"nothing to run on: {said}")
            return None
        facts = json.loads(answer[0])
        if facts["is_part"]:
            say(f"{facts['gpu']} is a part of a GPU (MIG): its bandwidth is that of the part")
        name = f"{facts['gpu']} torch {facts['torch']} triton {facts['triton']}"
        slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
        folder: Path = self.options.folder / slug
        if self.options.fresh:
            for path in folder.glob("*.jsonl"):
                path.unlink()
        cache = writable(ROOT / "build" / "gpu-cache")
        self.environment.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
        self.environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
        self.why_no_triton: str = facts["why no triton"]
        return folder

    def without_triton(self) -> str:
        """Why our kernels can't run, if that is known; the rest then goes on without Triton."""
        if self.why_no_triton:
            self.environment["MISHKIT_GPU_WITHOUT_TRITON"] = "1"
        return self.why_no_triton

    def failed_to_compile(self, folder: Path) -> str:
        """Why Triton's first kernel failed, if it did."""
        error = records(folder, "machine").get("first call", {}).get("error", "")
        if error:
            from gpu_machine import what_triton_lacks

            hint = what_triton_lacks()
            self.why_no_triton = f"Triton's first kernel failed ({error}){hint and ': ' + hint}"
        return self.without_triton()

    def stage(self, stage: Stage, folder: Path) -> None:
        """Run a stage's processes; again, after what one died of."""
        start = time.time()
        until = min(start + self.scale * stage.seconds, self.end)
        shares = 1 if self.options.dry_run else stage.processes
        if start >= self.end:
            Writer(folder / f"{stage.name}.jsonl", self.options.dry_run)(
                "the rest", skipped="out of time"
            )
        dead = {"error": "the process ended while this ran: see the log"}
        for _ in range(RESTARTS):
            settle(folder, stage.name, self.options.dry_run, **dead)
            if time.time() >= until:
                break
            statuses = self.processes(stage.name, folder, until, shares)
            if LATE in statuses:  # to be tried again another time
                settle(folder, stage.name, self.options.dry_run, skipped="out of time")
            if not any(statuses):
                break
            shares = 1  # what is left, after what a process died of
        found = records(folder, stage.name)
        counts = {kind: sum(kind in one for one in found.values()) for kind in KINDS}
        text = ", ".join(f"{count} {KINDS[kind]}" for kind, count in counts.items() if count)
        say(f"{stage.name}: {text or 'nothing'}, in {time.time() - start:.0f} s")

    def processes(self, stage: str, folder: Path, until: float, shares: int) -> list[int]:
        """Run a stage in so many processes at once; returns their exit statuses."""
        folder.mkdir(parents=True, exist_ok=True)
        running = []
        with contextlib.ExitStack() as stack:
            for share in range(shares):
                log = stack.enter_context((folder / f"{stage}.{share}.log").open("ab"))
                command = self.command(
                    *("--stage", stage, "--share", f"{share}/{shares}"),
                    *("--until", str(until), "--folder", str(folder)),
                )
                running.append(
                    subprocess.Popen(
                        command,
                        stdout=log,
                        stderr=log,
                        env=self.environment,
                        cwd=ROOT,
                        start_new_session=True,
                    )
                )
            return [ended(process, until + GRACE) for process in running]

    def command(self, *arguments: str) -> list[str]:
        """This program, in another process."""
        dry = ["--dry-run"] if self.options.dry_run else []
        return [sys.executable, str(Path(__file__)), *dry, *arguments]

    def python(self, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """The same, with its output."""
        command = self.command(*arguments)
        try:
            return subprocess.run(
                command, capture_output=True, text=True, env=self.environment, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 1, "", "the GPU does not answer")


KINDS = {"result": "done", "error": "failed", "skipped": "skipped", "began": "not finished"}


def ended(process: subprocess.Popen[bytes], latest: float) -> int:
    """The exit status of a process, which is stopped with its children when the time is over."""
    try:
        return process.wait(max(1.0, latest - time.time()))
    except subprocess.TimeoutExpired:
        for how, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 30)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
                break
        return LATE


def writable(folder: Path) -> Path:
    """The folder, or if it can't be written a temporary one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="mishkit-gpu-"))


def probe(is_dry: bool) -> int:
    """Print, as JSON, what this machine is, or to stderr why nothing can run here."""
    prepare(is_dry)
    try:
        import torch
    except ImportError:
        print("torch is not installed", file=sys.stderr)
        return 1
    import gpu_machine

    on = gpu_machine.machine(is_dry)
    try:
        on.check()
    except gpu_machine.NoGPUError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = "none"
    why = "Triton is not installed" if version == "none" else ""
    facts = {**on.facts(), "torch": torch.__version__, "triton": version, "why no triton": why}
    print(json.dumps(facts))
    return 0


def say(*lines: str) -> None:
    """Print at once, also through a pipe."""
    print(*lines, sep="\n", flush=True)


def summary(folder: Path) -> Iterator[str]:
    """What failed and what was skipped, and why."""
    for stage in STAGES:
        items: dict[tuple[str, str], list[str]] = {}
        for item, record in records(folder, stage.name).items():
            for kind in ("error", "skipped"):
                if kind in record:
                    reason = str(record[kind]).strip().splitlines()[-1]
                    items.setdefault((KINDS[kind], reason), []).append(item)
        for (kind, reason), names in items.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield f"  {stage.name}: {'; '.join(names[:3])}{more}: {kind}: {reason}"


# ---- the command line ----------------------------------------------------------------------------


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    option: Callable[..., Any] = parser.add_argument
    option("--dry-run", action="store_true", help="on a CPU, tiny, in Triton's interpreter")
    option("--minutes", type=float, default=MINUTES, help="for everything")
    option("--only", type=lambda text: text.split(","), help="stages, separated by commas")
    option("--fresh", action="store_true", help="forget earlier results")
    option("--folder", type=Path, help="where results go")
    option("--page-only", action="store_true", help="write docs/gpu.md from the results")
    for hidden in ("--stage", "--share", "--until"):
        option(hidden, default=None, help=argparse.SUPPRESS)
    option("--probe", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    names = [stage.name for stage in STAGES]
    if options.only and not set(options.only) <= set(names):
        parser.error(f"--only knows {', '.join(names)}")
    if options.stage:
        options.share = [int(part) for part in options.share.split("/")]
        options.until = float(options.until)
    options.folder = options.folder or (DRY_RESULTS if options.dry_run else RESULTS)
    return options


def main() -> int:
    """Do what the command line says; returns the exit status."""
    options = parsed()
    if options.probe:
        return probe(options.dry_run)
    if options.stage:
        return work(options)
    if not options.page_only:
        status = Run(options).all()
        if status or options.dry_run:
            return status
    try:
        from gpu_page import write_page
    except ImportError as error:
        say(f"no page ({error}); elsewhere: python benchmarks/gpu.py --page-only")
        return 0
    say(f"written: {write_page(options.folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
