"""Whole networks with ReLU, torch's activations and ours: writes docs/networks.md and its CSV.

    python benchmarks/networks.py                  # all, twenty minutes
    python benchmarks/networks.py --only seven_layers
    python benchmarks/networks.py --page-only      # the page anew, from the CSV

One training step (forward, backward, SGD with momentum) and one inference pass of the seven-layer
network that `mishkit compare` trains, and of three of timm's with random weights. Every activation
of a network is replaced, at the same sites. All variants are timed by turns in one process, on one
thread, by processor time, which other work on the machine does not lengthen; an untimed step comes
before each timed one. The C library is told to keep freed memory, since page faults would take more
time than the activations, and hit one variant or another by chance. Its own settings are measured
too, with each variant in separate processes. All of this is repeated in several new processes. Peak
memory is how much a step raises the resident memory, with each variant in a separate process.
"""

from __future__ import annotations

import csv
import math
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

import pages
from pages import DOCS, markdown

import mishkit as mk
from mishkit.lab.common.bars import Verdict
from mishkit.lab.common.formats import significant
from mishkit.lab.common.memory import in_process, keep_freed_memory, page_faults
from mishkit.lab.common.models import Example, load
from mishkit.lab.common.timing import PROCESSOR, Call, Timing, round_robin, torch_threads
from mishkit.lab.study.networks import initialise, seven_layers
from mishkit.lab.surgery import Settings, peak_in_process, readable, training_step

CSV, PAGE = DOCS / "networks.csv", DOCS / "networks.md"
SEVEN = "seven_layers"
NETWORKS: dict[str, tuple[int, ...]] = {
    SEVEN: (64, 1, 28, 28),
    "resnet18": (4, 3, 224, 224),
    "cspdarknet53": (2, 3, 224, 224),
    "vit_tiny_patch16_224": (4, 3, 224, 224),
}
"""And the shape of their input."""
CHANNELS, CLASSES = 16, 10
"""Of the seven-layer network, as in `mishkit compare`."""
RELU, OURS = "torch ReLU, in place", "mishkit Mish, in place"
VARIANTS: dict[str, Callable[[], nn.Module]] = {
    RELU: partial(nn.ReLU, inplace=True),
    "torch Mish": nn.Mish,
    "torch SiLU": nn.SiLU,
    "torch GELU": nn.GELU,
    "mishkit Mish": mk.Mish,
    OURS: partial(mk.Mish, inplace=True),
    "mishkit SiLU, in place": partial(mk.SiLU, inplace=True),
    "mishkit GELU, in place": partial(mk.GELU, inplace=True),
}
SECONDS = 40.0
"""How long the steps of a network are timed; its inference passes take as long again."""
TIME, PEAK = 1.05, 1.04
"""The most that a step with our Mish in place may take, relative to ReLU, if there is a bar."""
BARRED = (SEVEN, "resnet18")
KEPT, DEFAULT = "kept", "default"
"""Whether the C library is told to keep freed memory, or has its own settings."""
PROCESSES, STEPS = 5, 40
"""How many processes there are, and steps in each with the C library's own settings."""


@dataclass(frozen=True)
class Row:
    """One network with one activation."""

    network: str
    variant: str
    heap: str
    """`KEPT` or `DEFAULT`"""
    step: float
    """Milliseconds of a training step: the minimum."""
    step_median: float
    samples: int
    """Of the step."""
    faults: float
    """Page faults of a step, the median."""
    inference: float | None = None
    inference_median: float | None = None
    peak: int | None = None
    """Bytes by which a step raises the resident memory."""


def build(network: str, variant: str) -> tuple[nn.Module, torch.Tensor]:
    """The network with that activation everywhere, and an input; the same weights each time."""
    make, shape = VARIANTS[variant], NETWORKS[network]
    if network == SEVEN:
        model: nn.Module = seven_layers(CLASSES, shape[1], CHANNELS, make)
        initialise(model, 0)
    else:
        model = load(f"timm:{network}", ("1,3,224,224",), ("act_layer=relu",)).model
        replaced = replace(model, nn.ReLU, make)
        assert replaced, network
    torch.manual_seed(1)
    return model, torch.randn(shape)


def replace(
    model: nn.Module,
    old: type[nn.Module] | tuple[type[nn.Module], ...],
    make: Callable[[], nn.Module],
) -> int:
    """Replace every module of these classes by a new one; returns how many there were."""
    count = 0
    for name, child in model.named_children():
        if isinstance(child, old):
            setattr(model, name, make())
            count += 1
        else:
            count += replace(child, old, make)
    return count


def training(model: nn.Module, image: torch.Tensor) -> Callable[[], Any]:
    """One step, as `surgery` measures it; the learning rate is 0, so the weights stay."""
    model.train()
    return training_step(Example("", model, (image,)))


def inference(model: nn.Module, image: torch.Tensor) -> Callable[[], Any]:
    """One pass."""
    model.eval()

    def run() -> Any:
        with torch.inference_mode():
            return model(image)

    return run


def measure(network: str, *, seconds: float = SECONDS, peaks: bool = True) -> list[Row]:
    """Measure every variant of a network. The samples of `PROCESSES` processes are combined, since
    each places its memory blocks by chance."""
    by_process = [
        in_process(timings, network, seconds / PROCESSES, number) for number in range(PROCESSES)
    ]
    rows = []
    for variant in VARIANTS:
        steps, passes = (
            [of_process[kind, variant] for of_process in by_process]
            for kind in ("step", "inference")
        )
        peak = None
        if peaks and Path("/proc/self/clear_refs").exists():
            options = (f"network={network}", f"variant={variant!r}")
            # By module, not by file: its folder is on the path of a script and of its children.
            settings = Settings(f"{Path(__file__).stem}:build", (), options)
            peak = peak_in_process(settings, None)
        rows.append(
            Row(
                network,
                variant,
                KEPT,
                min(map(min, steps)),
                median(map(median, steps)),
                sum(map(len, steps)),
                median(of_process["faults", variant][0] for of_process in by_process),
                min(map(min, passes)),
                median(map(median, passes)),
                peak,
            )
        )
    return rows


def timings(network: str, seconds: float, turn: int) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of all steps and passes of every variant, and page faults, in this process. Each
    turn starts with a different variant."""
    keep_freed_memory()
    milliseconds: dict[tuple[str, str], list[float]] = {}
    order = [*VARIANTS][turn:] + [*VARIANTS][:turn]
    with torch_threads(1):
        for kind, use in (("step", training), ("inference", inference)):
            calls = {}
            for variant in order:
                run = use(*build(network, variant))
                run()
                # An untimed run first leaves memory and caches as this variant does.
                calls[variant] = Call(run, prepare=run, most_calls=1)
            timed = round_robin(calls, seconds=seconds, least=2, clock=PROCESSOR)
            for variant, timing in timed.items():
                milliseconds[kind, variant] = [sample / 1e6 for sample in timing.samples]
                if kind == "step":
                    milliseconds["faults", variant] = [faults_of(calls[variant].run)]
    return milliseconds


def faults_of(step: Callable[[], Any]) -> float:
    """Page faults of a step: the median of a few."""
    return median(page_faults(step) for _ in range(5))


def measure_default(network: str) -> list[Row]:
    """ReLU and our Mish in place with the C library's own settings, in turns, each time in a new
    process: medians over the processes of their medians, the least of their minima."""
    by_variant: dict[str, list[tuple[float, float, float]]] = {RELU: [], OURS: []}
    for _ in range(PROCESSES):
        for variant, results in by_variant.items():
            results.append(in_process(_steps, network, variant))
    rows = []
    for variant, results in by_variant.items():
        least, middle, faults = zip(*results, strict=True)
        figures = (min(least), median(middle), PROCESSES * STEPS, median(faults))
        rows.append(Row(network, variant, DEFAULT, *figures))
    return rows


def _steps(network: str, variant: str) -> tuple[float, float, float]:
    """The minimum and the median of `STEPS` steps in ms, and the median of their page faults."""
    torch.set_num_threads(1)
    step = training(*build(network, variant))
    for _ in range(5):
        step()
    timing = Timing([Call(step).sample(1, PROCESSOR) / 1e6 for _ in range(STEPS)])
    return timing.min, timing.median, faults_of(step)


# ---- the page ----

_FACTS = ("cpu", "cores", "isa", "torch", "load", "date")


def facts_now() -> dict[str, str]:
    """The machine and versions that are measured."""
    python = platform.python_version()
    return {**pages.facts(), "torch": f"{torch.__version__}, Python {python}"}


def write(path: Path, lines: Sequence[tuple[Row, Mapping[str, str]]]) -> None:
    """Write a line per row, with the machine that it was measured on."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*Row.__dataclass_fields__, *_FACTS))
        for row, facts in lines:
            values = (f"{v:.6g}" if isinstance(v, float) else v for v in asdict(row).values())
            writer.writerow((*values, *(facts[name] for name in _FACTS)))


def read(path: Path) -> list[tuple[Row, dict[str, str]]]:
    """The lines of a file."""
    with path.open(newline="") as file:
        return [_line(line) for line in csv.DictReader(file)]


def _line(line: Mapping[str, str]) -> tuple[Row, dict[str, str]]:
    def number(name: str) -> float | None:
        return float(line[name]) if line[name] else None

    peak = number("peak")
    row = Row(
        *(line[name] for name in ("network", "variant", "heap")),
        float(line["step"]),
        float(line["step_median"]),
        int(line["samples"]),
        float(line["faults"]),
        *(number(name) for name in ("inference", "inference_median")),
        None if peak is None else int(peak),
    )
    return row, {name: line[name] for name in _FACTS}


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Our Mish in place against ReLU in place."""
    kept = {(row.network, row.variant): row for row in rows if row.heap == KEPT}
    verdicts = []
    for network in BARRED:
        ours, relu = kept.get((network, OURS)), kept.get((network, RELU))
        for claim, bar, names in (
            ("training step, time", TIME, ("step", "step_median")),
            ("training step, peak memory", PEAK, ("peak",)),
        ):
            ratios = [
                getattr(ours, name) / getattr(relu, name)
                for name in names
                if ours and relu and getattr(ours, name) and getattr(relu, name)
            ]
            text = f"{ratios[0]:.3f}×" if ratios else "not measured"
            text += f" of minima, {ratios[1]:.3f}× of medians" if len(ratios) > 1 else ""
            met = max(ratios) <= bar if ratios else None
            verdicts.append(Verdict(f"{network}: {claim}", f"≤ {bar} × ReLU", text, met))
    return verdicts


def table(rows: Sequence[Row]) -> str:
    """One network: times and peaks, and over ReLU's."""
    relu = next((row for row in rows if row.variant == RELU), None)
    head = (
        *("activation", "step, ms", "÷ ReLU", "(medians)"),
        *("inference, ms", "÷ ReLU", "peak", "÷ ReLU"),
    )
    body = []
    for row in rows:
        cells = [row.variant, f"{row.step:.4g}"]
        cells += [_over(row, relu, "step"), _over(row, relu, "step_median")]
        cells += [significant(row.inference or math.nan, 4), _over(row, relu, "inference")]
        cells += ["–" if row.peak is None else readable(row.peak), _over(row, relu, "peak")]
        body.append(cells)
    return markdown(head, body)


def _over(row: Row, relu: Row | None, name: str) -> str:
    above, below = getattr(row, name), getattr(relu, name, None)
    return f"{above / below:.3f}" if above and below else "–"


def default_table(rows: Sequence[Row]) -> str:
    """The steps with the C library's own settings, beside those with kept memory."""
    kept = {(row.network, row.variant): row for row in rows if row.heap == KEPT}
    head = (
        *("network", "activation", "own settings, ms", "page faults"),
        *("kept memory, ms", "page faults"),
    )
    body = []
    for row in rows:
        beside = kept.get((row.network, row.variant))
        if row.heap == DEFAULT and beside:
            cells = [row.network, row.variant]
            for shown in (row, beside):
                cells += [significant(shown.step_median, 4), f"{shown.faults:,.0f}"]
            body.append(cells)
    return markdown(head, body, words=2)


def page(lines: Sequence[tuple[Row, Mapping[str, str]]]) -> str:
    """The page of the documentation."""
    rows = [row for row, _ in lines]
    parts = []
    for network in dict.fromkeys(row.network for row in rows):
        facts = next(facts for row, facts in lines if row.network == network)
        chosen = [row for row in rows if row.network == network and row.heap == KEPT]
        shape = "×".join(map(str, NETWORKS[network]))
        samples = min(row.samples for row in chosen)
        parts.append(
            f"## {network}, {shape}\n\n{facts['cpu']}, {facts['cores']} cores, kernels "
            f"{facts['isa']}, torch {facts['torch']}; {facts['date']}; load average before "
            f"the run {facts['load']}; at least {samples} samples of each.\n\n{table(chosen)}"
        )
    bars = [(v.claim, v.bar, v.measured, v.word) for v in verdicts(rows)]
    return TEMPLATE.format(
        bars=markdown(("what", "bar", "measured", ""), bars, words=4),
        parts="\n\n".join(parts),
        default=default_table(rows),
    )


TEMPLATE = """# Whole networks

One training step and one inference pass with ReLU, with torch's activations and with ours in the
same places. `python benchmarks/networks.py` makes this page; [networks.csv](networks.csv) has every
row. Times are processor times of one thread: the minimum over {processes} processes and, under
(medians), the median of the processes' medians. The variants take turns, and an untimed step of the
same variant comes before each timed one. *Peak* is how far a training step raises the resident
memory above parameters, gradients and the optimizer's state; each is measured in its own process.

## The bars: our Mish in place against ReLU in place

{bars}

A bar on time is met if both ratios are within it. Misses are explained in
[Benchmarks](benchmarks.md).

{parts}

## What page faults cost

The C library of Linux returns large freed blocks to the system and gets them again at the next
step, zeroed page by page. How often this happens depends on the order in which blocks are allocated
and freed, so it slows down one activation or another by chance. For the tables above,
`mallopt(M_TRIM_THRESHOLD, 1 << 30)` and `mallopt(M_MMAP_THRESHOLD, 1 << 30)` made the library keep
freed memory. In any program that trains on a CPU,
`MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_MMAP_THRESHOLD_=1073741824` in the environment does the
same. Medians of training steps with the library's own settings, over {processes} processes of each
variant, and with memory kept:

{default}
""".replace("{processes}", str(PROCESSES))


def main(
    only: Annotated[list[str] | None, typer.Option(help="One of the networks.")] = None,
    seconds: Annotated[float, typer.Option(help="For the steps of a network.")] = SECONDS,
    peaks: Annotated[bool, typer.Option(help="Measure the peak memory.")] = True,
    page_only: Annotated[bool, typer.Option("--page-only", help="From the CSV as it is.")] = False,
) -> None:
    """Measure the networks, one by one into the CSV, and write the page."""
    lines = read(CSV) if CSV.exists() else []
    for network in () if page_only else only or NETWORKS:
        facts = facts_now()
        rows = measure(network, seconds=seconds, peaks=peaks)
        print(f"{network}\n{table(rows)}\n", flush=True)
        rows += measure_default(network) if network in BARRED else []
        lines = [line for line in lines if line[0].network != network]
        lines += [(row, facts) for row in rows]
        order = list(NETWORKS)
        lines.sort(key=lambda line: order.index(line[0].network))
        write(CSV, lines)
    PAGE.write_text(page(lines))
    print(f"written: {PAGE}")


if __name__ == "__main__":
    typer.run(main)
