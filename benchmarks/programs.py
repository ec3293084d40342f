"""Programs that no one here wrote, run as they are, with mishkit's kernels and in less memory.

    pip install diffusers matcha-tts transformers accelerate pytorch-lightning timm ultralytics
    python benchmarks/programs.py                  # a quarter of an hour; writes docs/programs.md
    python benchmarks/programs.py --only matcha_train --rounds 1

The programs in benchmarks/programs drive the models, losses and training loops of other libraries.
Each runs in processes of its own, in turns: by `mishkit run`, by `mishkit run --enable` and by
`mishkit run --enable --recompute`. A program that does not run is on the page, with the reason.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

import torch
import typer
from pages import DOCS, facts, markdown

from mishkit.lab.surgery import readable

FOLDER = Path(__file__).parent / "programs"
PAGE = DOCS / "programs.md"
TIME_BAR, MEMORY_BAR, WANTED = 1.2, 0.75, 3
WAYS = {"as it is": (), "enable": ("--enable",), "recompute": ("--enable", "--recompute")}
EXACT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
"""For runs that measure memory: freed memory goes back to the system at once."""
TRIALS = 600
"""Seconds after which a run is abandoned."""


@dataclass(frozen=True)
class Program:
    """A program, the packages it needs, and why a bar may be out of reach."""

    name: str
    shown: str
    packages: tuple[str, ...]
    trains: bool
    note: str


PROGRAMS = (
    Program(
        "matcha_train",
        "Matcha-TTS, training (Mish)",
        ("matcha-tts",),
        True,
        "SnakeBeta, a product of its own operations, and the transformer blocks take the rest",
    ),
    Program(
        "matcha_speak",
        "Matcha-TTS, synthesis (Mish)",
        ("matcha-tts",),
        False,
        "SnakeBeta and the transformer blocks take the rest",
    ),
    Program(
        "diffusers_train",
        "diffusers, DDPM, training (SiLU)",
        ("diffusers",),
        True,
        "convolutions take nearly all of the time",
    ),
    Program(
        "diffusers_sample",
        "diffusers, DDPM, sampling (SiLU)",
        ("diffusers",),
        False,
        "convolutions take nearly all of the time, and sampling keeps nothing",
    ),
    Program(
        "transformers_train",
        "transformers, Trainer, BERT (GELU)",
        ("transformers", "accelerate"),
        True,
        "matrix products take nearly all of the time",
    ),
    Program(
        "lightning_train",
        "Lightning, EfficientNet of timm (SiLU)",
        ("pytorch-lightning", "timm"),
        True,
        "torch's in-place SiLU keeps a copy, which cannot be recomputed",
    ),
    Program(
        "ultralytics_train",
        "ultralytics, YOLO11n, training (SiLU)",
        ("ultralytics",),
        True,
        "torch's in-place SiLU keeps a copy, which cannot be recomputed",
    ),
)


@dataclass
class Runs:
    """What was measured in one way of running a program, over all rounds."""

    seconds: list[float]
    added: int
    loss: float


class DoesNotRun(Exception):
    """A program failed; the message is the last line that it printed."""


def run(program: Program, way: str, **variables: str) -> Runs:
    """Run a program once, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "mishkit", "run", *WAYS[way]]
    environment = {**os.environ, "MISHKIT_ENABLE": "", "OMP_NUM_THREADS": "1", **variables}
    try:
        process = subprocess.run(
            [*command, f"{program.name}.py"],
            cwd=FOLDER,
            env=environment,
            text=True,
            capture_output=True,
            timeout=TRIALS,
        )
    except subprocess.TimeoutExpired:
        raise DoesNotRun(f"took longer than {TRIALS} s") from None
    lines = [line for line in (process.stdout, process.stderr) if line.strip()]
    if process.returncode:
        raise DoesNotRun(lines[-1].strip().splitlines()[-1])
    result = json.loads(process.stdout.strip().splitlines()[-1])
    return Runs(result["seconds"], result["added"], result["loss"])


def measure(program: Program, rounds: int) -> dict[str, Runs]:
    """Run the program in every way by turns, `rounds` times."""
    runs: dict[str, Runs] = {}
    for _ in range(rounds):
        for way in WAYS if program.trains else tuple(WAYS)[:2]:
            result = run(program, way)
            if way in runs:
                runs[way].seconds += result.seconds
            else:
                runs[way] = result
    for way in runs:
        runs[way].added = run(program, way, **EXACT).added
    return runs


def row(program: Program, runs_by_way: dict[str, Runs]) -> tuple[list[str], bool]:
    """The program's line in the table, and whether it meets a bar."""
    before = runs_by_way["as it is"]
    cells = [program.shown, f"{min(before.seconds):.3g} s"]
    meets = False
    for way in ("enable", "recompute"):
        if way not in runs_by_way:
            cells += ["–", "–"]
            continue
        after = runs_by_way[way]
        faster = min(before.seconds) / min(after.seconds)
        middle = statistics.median(before.seconds) / statistics.median(after.seconds)
        less = after.added / before.added
        is_faster = min(faster, middle) >= TIME_BAR  # both, since other programs may disturb either
        meets |= is_faster or less <= MEMORY_BAR
        cells += [
            _bold(f"{faster:.2f} ({middle:.2f})", is_faster),
            _bold(f"{less:.2f}", less <= MEMORY_BAR),
        ]
    cells.insert(2, readable(before.added))
    difference = max(
        abs(runs.loss - before.loss) / abs(before.loss) for runs in runs_by_way.values()
    )
    return [*cells, f"{difference:.0e}"], meets


def _bold(text: str, is_met: bool) -> str:
    return f"**{text}**" if is_met else text


def main(
    only: Annotated[list[str] | None, typer.Option(help="One of the programs.")] = None,
    rounds: Annotated[int, typer.Option(help="How often each runs in each way.")] = 3,
) -> None:
    """Run every program and print its line; write docs/programs.md if none is left out."""
    rows, short, failed, met = [], [], [], 0
    for program in PROGRAMS:
        if only and program.name not in only:
            continue
        try:
            cells, meets = row(program, measure(program, rounds))
        except DoesNotRun as error:
            failed.append(f"- {program.shown} does not run here: {error}")
            print(failed[-1], flush=True)
            continue
        rows.append(cells)
        met += meets
        if not meets:
            short.append(f"- {program.shown}: {program.note}.")
        print(" | ".join(cells), flush=True)
    if not only:
        PAGE.write_text(page(rows, short, failed, met), encoding="utf-8")
        print(f"written: {PAGE}")


def page(rows: list[list[str]], short: list[str], failed: list[str], met: int) -> str:
    """The page of the documentation."""
    head = ["program", "step", "memory", "time, enable", "memory, enable"]
    head += ["time, recompute", "memory, recompute", "loss, difference"]
    packages = sorted({name for program in PROGRAMS for name in program.packages})
    versions = ", ".join(f"{name} {_version(name)}" for name in packages)
    host = facts()
    return TEMPLATE.format(
        machine=f"{host['cpu']}, {host['isa']} kernels, one thread, torch {torch.__version__}",
        load=f"{host['load']} on {host['cores']} cores, {host['date']}",
        versions=versions,
        table=markdown(head, rows),
        met=met,
        wanted=f"{WANTED}: {'met' if met >= WANTED else '**missed**'}",
        short="\n".join(short) or "All of them meet it.",
        failed="\n".join(failed) or "Every program ran, in every way.",
        time=TIME_BAR,
        memory=MEMORY_BAR,
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


TEMPLATE = """# Programs that need not change

Programs that no one here wrote: models, losses and training loops of other libraries, driven by
their own classes, with random data. Each was run as it is, by `mishkit run --enable` (torch's own
operators computed by mishkit's kernels) and by `mishkit run --enable --recompute` (and nothing kept
that the backward pass can recompute). Made by `python benchmarks/programs.py`.

{machine}; load {load}. {versions}.

Times are the processor's, of a step: how many times faster, by the minimum of all steps, and in
brackets by their median. Memory is the peak of resident memory beyond what the process had before
its first step, gradients and the optimizer's state included, divided by that of the program as it
is. It is measured in runs of its own, where freed memory goes back to the system at once. Bold: at
least {time} times faster by both, or at most {memory} of the memory. The last column compares the
loss of the last step (of a sampler, the mean of the result).

{table}

{met} programs meet one of the two bars. Wanted are {wanted}.

## Which don't, and why

{short}

## What did not work

{failed}

- timm's training script is not part of its package, so its network is trained by Lightning.
- With `--enable`, torch is imported before the program starts. A program that sets environment
  variables for torch or OpenMP itself sets them too late; set them outside.
- NewGELU and other formulas written out in Python are several operators, which `enable` does not
  see.
"""


if __name__ == "__main__":
    typer.run(main)
