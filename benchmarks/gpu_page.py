"""What docs/gpu.md says of runs of `make gpu`: made from the folders of their results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu import KINDS, STAGES, records
from gpu_networks import NETWORKS
from gpu_stages import COMPILED, DTYPES, LEAN, RECOMPUTE, SELECTIVE, TORCH
from pages import DOCS, markdown, put

from mishkit.functions import ACTIVATIONS

PAGE = DOCS / "gpu.md"
NEVER = (
    "**No GPU has run this yet.** The GPU kernels were compiled for five targets, and run in "
    "Triton's interpreter; no machine with a GPU has been at hand, so there are no timings. "
    "`make gpu` on a machine with an NVIDIA GPU writes them into this place.\n"
)


def write_page(results: Path) -> Path:
    """Write what was measured into the page, or that nothing was; returns the page."""
    folders = sorted(path.parent for path in results.glob("*/machine.jsonl"))
    found = [text for folder in folders if (text := "\n\n".join(section(folder)))]
    put(PAGE, "gpu", "\n\n".join(found) + "\n" if found else NEVER)
    return PAGE


def results_of(folder: Path, stage: str) -> dict[str, Any]:
    """The results of a stage's items; what a dry run wrote is none."""
    found = records(folder, stage).items()
    return {item: one["result"] for item, one in found if "result" in one and "dry" not in one}


def section(folder: Path) -> Iterator[str]:
    """What one GPU has shown."""
    machine = results_of(folder, "machine")
    if "facts" not in machine:
        return
    facts = machine["facts"]
    part = ", a part of a GPU (MIG)" if facts["is_part"] else ""
    yield (
        f"## On {facts['gpu']}\n\n{facts['target']}{part}, driver {facts['driver']}, torch "
        f"{facts['torch']}, Triton {facts['triton']}, cuDNN {facts['cudnn']}, {facts['date']}. "
        "Made by `make gpu`; the results are in `docs/results/gpu`."
    )
    if "first call" in machine:
        first = machine["first call"]
        yield (
            f"The first call of `mk.mish` took {first['forward, first']:.2g} s with its "
            f"compilation, the second {1e6 * first['forward, second']:.0f} µs."
        )
    yield from _accuracy(results_of(folder, "accuracy"))
    yield from _lean({**results_of(folder, "lean"), **results_of(folder, "compiled")})
    yield from _tables(results_of(folder, "tables"))
    yield from _tests(folder)
    yield from _left_out(folder)


def _accuracy(found: dict[str, Any]) -> Iterator[str]:
    if not found:
        return
    yield "### Accuracy\n\nThe largest errors against float64, over all 16-bit inputs and one " + (
        "float32 in 1,021. The gradients' are absolute, and those of 16 bits include rounding."
    )
    head = ["function"]
    kinds = ("f, ULP", "df", "df from the output")
    head += [f"{dtype}: {kind}" for dtype in DTYPES for kind in kinds]
    rows = []
    for name in ACTIVATIONS:
        of = [found.get(f"{name}, {dtype}") for dtype in DTYPES]
        cells = [f"{one[kind]:.2g}" if one else "–" for one in of for kind in kinds]
        rows.append((f"`{name}`", *cells))
    yield markdown(head, rows)
    lost = [item for item, one in found.items() if not one["NaN stays"]]
    yield f"NaN is lost by {', '.join(lost)}." if lost else "NaN stays NaN in all of them."


def _lean(found: dict[str, Any]) -> Iterator[str]:
    rows = []
    for name in NETWORKS:
        for way in (LEAN, RECOMPUTE, SELECTIVE, COMPILED):
            one = found.get(f"{name}, {way}")
            if one is None:
                continue
            memory, times = one["memory"], one["milliseconds"]
            rows.append(
                (
                    name,
                    f"`{way}`",
                    str(one["batch"]),
                    f"{memory[TORCH]['peak'] / 2**30:.2f} GiB",
                    *(f"{memory[way][k] / memory[TORCH][k]:.3f}" for k in ("alive", "peak")),
                    f"{times[TORCH]['min']:.1f} ms",
                    *(f"{times[way][k] / times[TORCH][k]:.3f}" for k in ("min", "median")),
                )
            )
    if not rows:
        return
    yield (
        "### Lean networks\n\nA training step without the optimizer, under bfloat16 autocast: "
        "memory by `torch.cuda.max_memory_allocated`, times by CUDA events in turns with torch "
        "eager. *Alive* is what is allocated between the passes, *peak* the most during a step, "
        "both beyond the parameters; the columns of ratios are over torch's."
    )
    head = ("network", "way", "batch", "peak, torch", "alive", "peak", "time, torch", "minimum")
    yield markdown((*head, "median"), rows, words=2)
    for name in NETWORKS:
        same = found.get(f"{name}, the same gradient")
        if same:
            verdict = "has the same bits" if same["same bits"] else "differs"
            yield (
                f"{name}, float32: the gradient within `mk.recompute()` {verdict} (largest "
                f"difference {same['difference']:.2g}; between two runs of torch's own "
                f"{same['difference of torch']:.2g})."
            )
    if "formulas" in found:
        other = [key for key, answer in found["formulas"].items() if answer is not True]
        yield (
            f"Formulas of `mk.recompute` that do not give the bits of this GPU's kernels, so that "
            f"more is kept: {'; '.join(other) or 'none'}."
        )


def _tables(found: dict[str, Any]) -> Iterator[str]:
    for dtype in DTYPES:
        one = found.get(f"mish-cuda, {dtype}")
        if one:
            lines = "\n".join(one["lines"])
            yield f"### mish-cuda's table, {dtype}\n\n```\n{lines}\n```"
    rows = []
    for item, one in found.items():
        if item.startswith("errors, "):
            _, name, dtype = item.split(", ")
            for row in one["rows"]:
                error = "–" if row["error"] is None else f"{row['error']:.3g}"
                who = row["contender"], row["case"]
                rows.append((f"`{name}`", dtype, *who, f"{row['min']:.1f}", error))
    if rows:
        head = ("function", "dtype", "by", "pass", "µs", "L2 error")
        yield "### 16 Mi elements: times and errors\n\n" + markdown(head, rows, words=4)


def _tests(folder: Path) -> Iterator[str]:
    found = [one for one in records(folder, "tests").values() if "dry" not in one]
    if found:
        passed, failed = (sum(kind in one for one in found) for kind in ("result", "error"))
        yield f"### Tests\n\nOf the tests marked `gpu`, {passed} passed and {failed} failed."


def _left_out(folder: Path) -> Iterator[str]:
    lines = []
    for stage in STAGES:
        for item, one in records(folder, stage.name).items():
            for kind in ("error", "skipped"):
                if kind in one and "dry" not in one:
                    reason = str(one[kind]).strip().splitlines()[-1]
                    lines.append(f"- {stage.name}, `{item}`: {KINDS[kind]}, {reason}")
    if lines:
        yield "### What is missing\n\n" + "\n".join(lines)
