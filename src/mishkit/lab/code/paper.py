"""`mishkit bench --device cuda --paper`: what the GPU kernels cost, without a GPU.

Every kernel is compiled for every target and its machine code is counted. Its arithmetic is
compared with its memory traffic, using the published peaks of four GPUs (see `roofline`). The
kernels that torch.compile makes of torch's Mish are shown for comparison, if they can be obtained
(see `inductor`). Nothing is run, so none of these figures is a time.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.text import Text

import mishkit as mk
from mishkit.backends import triton
from mishkit.bodies import (
    BACKWARD,
    BACKWARD_PACKED,
    BODIES,
    FORWARD,
    FORWARD_PACKED,
)
from mishkit.functions import ACTIVATIONS

from ..._missing import install
from .. import LabError
from ..common.bars import Interruptible, Verdict, conclude, console, progress_bar, table
from ..common.files import whole_file
from ..common.formats import NONE, significant
from . import inductor as _inductor
from .gpu import (
    ALU,
    FLOAT64,
    FMA,
    LOCAL,
    NARROW,
    SPECIAL,
    TARGETS,
    UNSEEN,
    Build,
    Code,
    Finder,
    Job,
    compile_all,
)
from .roofline import A100, GPU, GPUS, H100, roofline

DTYPES = ("float32", "bfloat16", "float16")
WIDTH = 132
"""Columns that the tables need."""
TORCHS = f"{_inductor.PREFIX}mish"
"""The function whose torch.compile kernels are shown next to ours."""

Outcome = Code | str | None
Codes = dict[Job, Outcome]
"""The code of a kernel for a target, an error message, or None if the kernel doesn't exist."""


class Kernel(NamedTuple):
    """A kernel, independent of the target."""

    function: str
    body: str
    dtype: str

    @property
    def is_ours(self) -> bool:
        """Whether it is one of ours and not torch.compile's."""
        return not self.function.startswith(_inductor.PREFIX)

    def job(self, target: str) -> Job:
        """The job of compiling it for a target."""
        return Job(*self, target)


def kernels(functions: Iterable[str], dtypes: Sequence[str]) -> list[Kernel]:
    """All bodies of these functions, followed by torch.compile's kernels."""
    ours = itertools.product(functions, BODIES)
    pairs = [*ours, (TORCHS, FORWARD), (TORCHS, BACKWARD)]
    return [Kernel(*pair, dtype) for dtype in dtypes for pair in pairs]


def find_build(function: str, body: str, dtype: str, target: str) -> Build | None:
    """The build of one of our kernels or of torch.compile's."""
    if not Kernel(function, body, dtype).is_ours:
        return _inductor.build(function, body, dtype, target)
    a, torch_dtype = ACTIVATIONS[function], getattr(torch, dtype)
    if body == FORWARD_PACKED and a.turn is None:
        return None  # a monotone function has no side to pack
    return build_of(triton.launch(a, body, torch_dtype, *a.defaults), dtype, target)


def build_of(launch: triton.Launch, dtype: str, target: str) -> Build:
    """The build for a launch on a large tensor."""
    torch_dtype = getattr(torch, dtype)
    pointer = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}[dtype]
    types: dict[str, Any] = dict.fromkeys(launch.tensors, pointer)
    types |= {"count": "i32", "c": ("fp32",) * len(launch.numbers)}
    types["minimum"] = ("fp32",) * len(launch.minimum or ())
    if launch.has_side:
        types["side"] = "*u8"
    lanes = 64 if target.startswith("gfx") else 32
    elements = launch.block(torch_dtype, _inductor.SIZE, lanes)
    constants = {**launch.constants, "BLOCK": elements}
    names = launch.kernel.arg_names
    return Build(
        kernel=launch.kernel,
        signature={name: "constexpr" if name in constants else types[name] for name in names},
        constexprs=constants,
        num_warps=triton.WARPS,
        elements=elements,
        bytes_per_element=launch.traffic * torch_dtype.itemsize + launch.has_side / 8,
        aligned=(*launch.tensors, "count"),
    )


# ---- the command ---------------------------------------------------------------------------------


def main(functions: Sequence[str], dtypes: Sequence[str], csv_path: Path | None = None) -> int:
    """Examine the GPU kernels of these functions; returns 1 if a bar is missed."""
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise LabError(f"no GPU kernel takes {dtype}; there are {', '.join(DTYPES)}")
    return run(kernels(functions, dtypes), find_build, csv_path=csv_path)


def run(
    chosen: Iterable[Kernel],
    find: Finder,
    targets: Sequence[str] = TARGETS,
    csv_path: Path | None = None,
) -> int:
    """Compile, print the tables and the bars, write the CSV; returns 1 if a bar is missed."""
    chosen = list(chosen)
    out = console()
    out.width = max(WIDTH, out.width)
    out.print(
        f"mishkit {mk.__version__}, torch {torch.__version__}, Triton {_triton()}: "
        f"compiled for {', '.join(targets)}; nothing is run.\n"
        "Bytes, instructions, special functions (SFU), float32 (FMA) and other (ALU) operations: "
        "an element, for A100.\n"
        "Wide: by 128 bits at a time, on every target. The GPUs' columns: the time of the busiest "
        "unit, which is named, over that of\n"
        "memory, both at their published peaks; under 1 a kernel may run at memory's speed.",
    )
    codes: Codes = {}
    with Interruptible(out) as measured:
        _compile([kernel.job(target) for kernel in chosen for target in targets], find, codes)
    for dtype in dict.fromkeys(kernel.dtype for kernel in chosen):
        _print_table(out, [kernel for kernel in chosen if kernel.dtype == dtype], codes)
    for words in dict.fromkeys(_not_had(codes)):
        out.print(Text(words))
    title = "Bars: arithmetic over memory, and what no kernel may hold"
    csv = csv_path, partial(write_csv, codes=codes)
    return conclude(out, title, list(verdicts(codes)), measured, csv)


def _triton() -> str:
    try:
        import triton
    except ModuleNotFoundError:
        raise LabError(f"Triton is not installed: {install('triton')}") from None
    return triton.__version__


def _compile(jobs: list[Job], find: Finder, codes: Codes) -> None:
    with progress_bar() as bar:
        task = bar.add_task("compiling", total=len(jobs))
        for job, outcome in compile_all(jobs, find):
            codes[job] = outcome
            bar.update(task, description=f"{job.function}, {job.body}, {job.target}", advance=1)


def _print_table(out: Console, kernels: Sequence[Kernel], codes: Codes) -> None:
    columns = ["kernel", "bytes", "instr.", SPECIAL, FMA, ALU, "reg.", "wide"]
    grid = table(kernels[0].dtype, [*columns, *(gpu.name for gpu in GPUS)])
    function = None
    for kernel in kernels:
        code = codes.get(kernel.job(A100.target))
        if not isinstance(code, Code):
            continue
        if kernel.function != function:
            function = kernel.function
            grid.add_row(function if kernel.is_ours else f"{function}, compiled")
        all_wide = all(
            compiled.is_wide
            for job, compiled in codes.items()
            if job[:3] == kernel and isinstance(compiled, Code)
        )
        grid.add_row(
            f"  {_words(kernel.body)}",
            significant(code.bytes_per_element),
            _range(code.instructions, code.diverged),
            *(significant(code.operations.get(unit, 0.0)) for unit in (SPECIAL, FMA, ALU)),
            str(code.registers),
            "yes" if all_wide else "no",
            *(_ratio_cell(codes.get(kernel.job(gpu.target)), gpu) for gpu in GPUS),
        )
    out.print(grid)


def _range(least: float, most: float) -> str:
    """One number, or two if threads that take different branches cost more."""
    words = significant(least), significant(most)
    return words[0] if words[0] == words[1] else "–".join(words)


def _ratio_cell(code: Outcome, gpu: GPU) -> str:
    if not isinstance(code, Code):
        return NONE
    roof = roofline(code, gpu)
    return f"{roof.ratio:.2f} {roof.unit}"


def _not_had(codes: Codes) -> Iterator[str]:
    for job, outcome in sorted(codes.items()):
        if isinstance(outcome, str) and not Kernel(*job[:3]).is_ours:
            yield f"torch.compile's kernel could not be had: {job.function}, {job.body}: {outcome}"


# ---- the bars ------------------------------------------------------------------------------------


class Bar(NamedTuple):
    """How long some kernels' arithmetic may take, relative to the time of their memory traffic."""

    claim: str
    limit: float
    gpu: GPU
    applies: Callable[[Kernel], bool]

    def verdict(self, codes: Codes) -> Verdict:
        """The verdict on the worst of them."""
        bar = f"≤ {self.limit:g} on {self.gpu.name}"
        ratios = {
            job: roofline(code, self.gpu)
            for job, code in codes.items()
            if isinstance(code, Code)
            and job.target == self.gpu.target
            and Kernel(*job[:3]).is_ours
            and self.applies(Kernel(*job[:3]))
        }
        if not ratios:
            return Verdict(self.claim, bar, "not measured", None)
        job = max(ratios, key=lambda job: ratios[job].ratio)
        worst = ratios[job]
        above = [job.function for job, roof in ratios.items() if roof.ratio > self.limit]
        words = f"{worst.ratio:.2f} ({job.function}: {worst.unit})"
        if len(above) > 1:
            words += f"; {len(above)} of {len(ratios)} above"
        return Verdict(self.claim, bar, words, not above)


def _kernels_of(dtype: str, *bodies: str, closed: bool | None = None) -> Callable[[Kernel], bool]:
    def applies(kernel: Kernel) -> bool:
        if kernel.dtype != dtype or kernel.body not in bodies:
            return False
        return closed is None or _is_closed(kernel.function) == closed

    return applies


def _is_closed(function: str) -> bool:
    """Whether the derivative from the output has a closed form; the others use tables."""
    a = ACTIVATIONS[function]
    return a.twin.table(torch.float32, *a.defaults) is None


def _words(body: str) -> str:
    return body.replace("_", " ")


# With a side, y near the minimum is computed a second time: three more operations, which take gelu
# and gelu_tanh to 0.71.
_FLOAT32 = dict.fromkeys(BODIES, 0.7) | {FORWARD_PACKED: 0.72}
BARS = (
    *(
        Bar(f"float32, {_words(body)}", limit, A100, _kernels_of("float32", body))
        for body, limit in _FLOAT32.items()
    ),
    *(
        Bar(f"bfloat16, {_words(body)}", 0.7, A100, _kernels_of("bfloat16", body))
        for body in (FORWARD, FORWARD_PACKED, BACKWARD)
    ),
    *(
        Bar(
            "bfloat16, backward packed, by a table",
            limit,
            gpu,
            _kernels_of("bfloat16", BACKWARD_PACKED, closed=False),
        )
        for limit, gpu in ((1.0, A100), (0.8, H100))
    ),
    Bar(
        "bfloat16, backward packed, in closed form",
        0.7,
        A100,
        _kernels_of("bfloat16", BACKWARD_PACKED, closed=True),
    ),
)

FAULTS = {
    FLOAT64: "no float64 instruction",
    LOCAL: "no local memory",
    NARROW: "128-bit loads and stores on the main path",
    UNSEEN: "no calls, loops or branches on data",
}


def verdicts(codes: Codes) -> Iterator[Verdict]:
    """Every bar on the ratios, followed by the bars on faults."""
    for bar in BARS:
        yield bar.verdict(codes)
    ours = {job: code for job, code in codes.items() if Kernel(*job[:3]).is_ours}
    broken = {job: code for job, code in ours.items() if isinstance(code, str)}
    count = sum(code is not None for code in ours.values())
    yield _fault_verdict("every kernel compiles for every target", broken, count)
    compiled = {job: code for job, code in ours.items() if isinstance(code, Code)}
    for fault, claim in FAULTS.items():
        faulty = {job: code.faults[fault] for job, code in compiled.items() if fault in code.faults}
        yield _fault_verdict(claim, faulty, len(compiled))


def _fault_verdict(claim: str, faulty: dict[Job, str], count: int) -> Verdict:
    if not count:
        return Verdict(claim, "all", "not measured", None)
    words = f"{count - len(faulty)} of {count}"
    for job, fault in itertools.islice(sorted(faulty.items()), 2):
        words += f"; {', '.join(job)}: {fault}"
    if len(faulty) > 2:
        words += "; …"
    return Verdict(claim, "all", words, not faulty)


def write_csv(path: Path, codes: Codes) -> None:
    """One row per kernel and target; operations per element, sizes in bits or bytes as named."""
    operations = sorted({u for c in codes.values() if isinstance(c, Code) for u in c.operations})
    figures = ["bytes_per_element", "elements", "diverged", "registers", "shared", "local"]
    made_by = {"mishkit": mk.__version__, "torch": torch.__version__, "triton": _triton()}
    head = [*operations, *figures, "accesses", "faults", "gpu", "ratio", "unit", *made_by]
    with whole_file(path) as file:
        writer = csv.writer(file)
        writer.writerow([*Job._fields, *head])
        for job, code in sorted((j, c) for j, c in codes.items() if isinstance(c, Code)):
            gpu = next((gpu for gpu in GPUS if gpu.target == job.target), None)
            roof = roofline(code, gpu) if gpu else None
            row = [f"{code.operations.get(unit, 0):.6g}" for unit in operations]
            row += [f"{getattr(code, name):.6g}" for name in figures]
            row += [code.access_words, "; ".join(f"{k}: {v}" for k, v in code.faults.items())]
            row += [gpu.name, f"{roof.ratio:.6g}", roof.unit] if gpu and roof else [""] * 3
            writer.writerow([*job, *row, *made_by.values()])
