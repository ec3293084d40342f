"""`mishkit bench --like`: two tables that others have published, in their layout, on a CPU.

mish-cuda   the table of its README, which `mishkit.lab.bench.published_gpu` makes for a GPU: an
            input of (16, 10, 256, 256) from N(0, 1), mean ± standard deviation (min – max) over
            100 runs after 10 warm-up runs, round-robin.
hmish       the table of the hmish kernels in ConvolutionBuildingBlocks: inference and training,
            16 Mi elements, scalar and vector kernels side by side, and the L2 norm of the error
            against float64. Here the columns are our kernels for the least and the best
            instruction set of this CPU, results go into existing memory where there is a form
            for that, and inputs are N(0, 2).

Runs for the first table start with whatever the caches hold: on a CPU they are not flushed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import mishkit as mk
from mishkit.activation import Activation
from mishkit.backends import cpu
from mishkit.functions import ACTIVATIONS

from .. import LabError
from ..common.bars import console
from ..common.environment import processor, warn_of_load
from ..common.formats import size_name, threads_name
from ..common.timing import Call, Timing, no_garbage_collection, round_robin, torch_threads
from . import published_gpu
from .cases import BACKWARD, FORWARD, SPREAD, backward_call, normal, working
from .published_gpu import (
    MISH_CUDA,
    SIZE,
    l2_error,
    mish_cuda_functions,
    mish_cuda_lines,
    time_words,
)
from .results import Key, Results
from .settings import DTYPES, Settings

HMISH = "hmish"
TABLES = (MISH_CUDA, HMISH)
SECONDS = 20.0
"""How long hmish's table is timed for one function."""
NOT_THERE = "N/A"
"""The word that the published table uses."""


def main(table: str, settings: Settings, functions: Sequence[str] = ("h_mish",)) -> int:
    """Print one of the tables. `functions` are those of hmish's rows; mish-cuda's table is of Mish.

    Raises
    ------
    LabError
        for an unknown table, or a device other than the CPU
    """
    if table not in TABLES:
        raise LabError(f"--like takes {' or '.join(TABLES)}, not {table!r}")
    if settings.device != "cpu" or settings.paper:
        raise LabError("--like is about CPUs: with --device cuda both tables are in every run")
    out = console()
    out.print(f"mishkit {mk.__version__}, torch {torch.__version__}, {processor()}")
    warn_of_load(out)
    for threads in settings.threads:
        for dtype in settings.dtypes:
            with torch_threads(threads):
                if table == MISH_CUDA:
                    _mish_cuda(out, dtype, threads, settings.quick)
                else:
                    for name in functions:
                        _hmish(out, ACTIVATIONS[name], dtype, threads, settings.quick)
    return 0


# ---- mish-cuda's ----


def _mish_cuda(out: Console, dtype: str, threads: int, is_quick: bool) -> None:
    results = time_mish_cuda(dtype, is_quick)
    runs = len(next(iter(results.timings.values())).samples)
    shape = ", ".join(map(str, published_gpu.SHAPE))
    out.print(
        f"mish-cuda's table: torch.{dtype}, ({shape}), {threads_name(threads)}, over {runs} runs",
        style="bold",
    )
    out.print("\n".join([*mish_cuda_lines(results, dtype), *results.missing, ""]), markup=False)


def time_mish_cuda(dtype: str, is_quick: bool) -> Results:
    """Every function of the table, forward and backward, one run each, round-robin."""
    results, size = Results(), math.prod(published_gpu.SHAPE)
    runs = max(1, published_gpu.RUNS // 5) if is_quick else published_gpu.RUNS
    working_calls = working(
        _mish_cuda_calls(DTYPES[dtype]), results.missing, f"{MISH_CUDA}, {dtype}"
    )
    samples: dict[Any, list[float]] = {key: [] for key in working_calls}
    with no_garbage_collection():
        for run in range(-published_gpu.WARM_RUNS, runs):
            for key, call in working_calls.items():
                time = call.sample(1)
                if run >= 0:
                    samples[key].append(time)
    for (case, name), times in samples.items():
        results.timings[Key("mish", dtype, case, size, name, table=MISH_CUDA)] = Timing(times)
    return results


def _mish_cuda_calls(dtype: torch.dtype) -> Iterator[tuple[tuple[str, str], Call]]:
    size = math.prod(published_gpu.SHAPE)
    x, g = (normal(size, dtype, seed).view(published_gpu.SHAPE) / SPREAD for seed in (0, 1))
    leaf = x.clone().requires_grad_()
    for name, function in mish_cuda_functions().items():
        yield (FORWARD, name), Call(partial(function, leaf))
        yield (BACKWARD, name), backward_call(function, x, g)


# ---- hmish's ----


def _hmish(out: Console, a: Activation, dtype: str, threads: int, is_quick: bool) -> None:
    isas = cpu.isas()[:1] + cpu.isas()[1:][-1:]
    seconds = SECONDS / 5 if is_quick else SECONDS
    times, errors = time_hmish(a, DTYPES[dtype], isas, seconds)
    title = f"hmish's tables: {dtype}, {size_name(SIZE)} elements, {threads_name(threads)}"
    out.print(title, style="bold")
    out.print("\n".join(hmish_lines(a, isas, times, errors)), markup=False)


def time_hmish(
    a: Activation, dtype: torch.dtype, isas: Sequence[str], seconds: float
) -> tuple[dict[tuple[str, str], float], dict[str, float]]:
    """Nanoseconds per call by row and instruction set, and the L2 norms by row."""
    rows, exact, x = _hmish_rows(a, dtype)
    errors: dict[str, float] = {}
    before = cpu.isa()
    calls = {}
    try:
        for isa in isas or [""]:
            choose = partial(cpu.use, isa) if isa else None
            if choose is not None:
                choose()
            for name, run in rows.items():
                if name in exact:
                    error = l2_error(run(), exact[name], x)
                    errors[name] = max(error, errors.get(name, 0.0))
                calls[name, isa] = Call(run, choose)
        timings = round_robin(calls, seconds=seconds, least=3)
    finally:
        if isas:
            cpu.use(before)
    return {key: timing.min for key, timing in timings.items()}, errors


def _hmish_rows(
    a: Activation, dtype: torch.dtype
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, Callable[[Tensor], Tensor]], Tensor]:
    """What each row runs, the exact result for rows with an error, and the input."""
    x = normal(SIZE, dtype, 0)
    ones, out = torch.ones_like(x), torch.empty_like(x)

    def operator(name: str, ending: str) -> Callable[..., Any]:
        return getattr(torch.ops.mishkit, name + ending).default

    y, side = operator(a.name, "_packed")(x, *a.defaults)
    title = a.name.replace("_", "")
    rows: dict[str, Callable[[], Tensor]] = {
        "relu": partial(mk.relu, x, out=out),
        title: partial(mk.functional.FUNCTIONS[a.name], x, out=out),
        "relu_grad": partial(operator("relu", "_backward"), ones, x),
        f"{title}_train_fwd": partial(operator(a.name, "_packed_out"), x, out, *a.defaults),
        f"{title}_bwd": partial(operator(a.name, "_backward_packed"), ones, y, side, *a.defaults),
    }
    exact = {
        title: lambda points: a.f(points, *a.defaults),
        f"{title}_bwd": lambda points: a.df(points, *a.defaults),
    }
    return rows, exact, x


def hmish_lines(
    a: Activation,
    isas: Sequence[str],
    times: dict[tuple[str, str], float],
    errors: dict[str, float],
) -> Iterator[str]:
    """Both tables in their published form."""
    title = a.name.replace("_", "")
    columns = [f"Time ({isa})" for isa in isas] or ["Time (plain torch)"]
    for file, names in (
        ("infer", ("relu", title)),
        ("train", ("relu_grad", f"{title}_train_fwd", f"{title}_bwd")),
    ):
        yield f"## {title}_{file}"
        yield ""
        yield _row("Implementation", *columns, "L2norm")
        yield "|".join(["-" * 22 + " ", *[" " + "-" * 17 + " "] * (len(columns) + 1)]) + "|"
        for name in names:
            cells = [time_words(times[name, isa]) for isa in isas or [""]]
            yield _row(name, *cells, f"{errors[name]:.6g}" if name in errors else NOT_THERE)
        yield ""


def _row(first: str, *cells: str) -> str:
    return "|".join([f"{first:<22} ", *(f" {text:<17} " for text in cells)]) + "|"
