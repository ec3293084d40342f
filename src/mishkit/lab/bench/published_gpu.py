"""Two tables in the form in which others have published theirs, so that figures can be compared.

mish-cuda   the table of its README: an input of (16, 10, 256, 256) from N(0, 1); forward with
            autograd recording, and backward through autograd; mean ± standard deviation (min–max)
            over 100 runs after 10 warm-up runs. Its "mish_pt" is the formula in torch operations.
errors      the table of the hmish kernels: 16 Mi elements, the time, and the L2 norm of the error
            against float64, forward and backward; here for every function, from N(0, 2).

Unlike in theirs, the caches are flushed before each run, and host time is excluded (see
`mishkit.lab.common.gpu_timing`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import mishkit as mk
from mishkit.activation import Activation
from mishkit.functions import ACTIVATIONS

from ..common.contenders import composed_mish
from ..common.formats import NONE, significant, size_name
from ..common.gpu_timing import Stopwatch
from ..common.timing import Call
from .cases import (
    BACKWARD,
    EXPRESSION,
    FORWARD,
    FROM_OUTPUT,
    OURS,
    PEERS,
    RELU,
    SPREAD,
    TWIN,
    backward_call,
    working,
)
from .cases import expression as expression_of
from .gpu_device import normal
from .results import Key, Results
from .settings import DTYPES, Settings

if TYPE_CHECKING:  # what prints needs packages that a machine which only measures may lack
    from rich.console import Console

    from ..common.bars import Verdict

MISH_CUDA, ERRORS = "mish-cuda", "errors"
SHAPE = (16, 10, 256, 256)
RUNS, WARM_RUNS = 100, 10
SIZE = 1 << 24
CHUNK = 1 << 20
"""How many elements are compared at a time, in float64."""
WORSE = 1.05
"""The largest allowed ratio of our error to torch's."""

# ---- mish-cuda's ---------------------------------------------------------------------------------


def compiled(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """torch.compile of a function, for the shapes that it is called with."""
    return torch.compile(function, dynamic=False)


def mish_cuda_functions() -> dict[str, Callable[[Tensor], Tensor]]:
    """The functions under the names of the published table, and newer ones."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch has deprecated its JIT, which is one of the contenders
        jit = torch.jit.script(composed_mish)
    return {
        "relu": F.relu,
        "softplus": F.softplus,
        "mish_pt": composed_mish,
        "mish_jit": jit,
        "mish_torch": F.mish,
        "mish_compile": compiled(F.mish),
        "silu": F.silu,
        "mishkit": mk.mish,
        "mishkit_output": partial(mk.mish, save="output"),
        "mishkit_h_mish": mk.h_mish,
        "mishkit_silu": mk.silu,
    }


def mish_cuda_calls(dtype: torch.dtype) -> Iterator[tuple[tuple[str, str], Call]]:
    """Calls by case and name."""
    x = normal(SHAPE, dtype, 0).div_(SPREAD)
    g, leaf = normal(SHAPE, dtype, 1), x.clone().requires_grad_()
    for name, function in mish_cuda_functions().items():
        yield (FORWARD, name), Call(partial(function, leaf))
        yield (BACKWARD, name), backward_call(function, x, g)


def time_mish_cuda(results: Results, dtype: str, stopwatch: Stopwatch, is_quick: bool) -> None:
    """The times of mish-cuda's table, in one dtype."""
    torch.compiler.reset()
    size = math.prod(SHAPE)
    calls = working(mish_cuda_calls(DTYPES[dtype]), results.missing, f"{MISH_CUDA}, {dtype}")
    runs = RUNS // 5 if is_quick else RUNS
    for (case, name), timing in stopwatch.time(calls, rounds=runs, warm=WARM_RUNS).items():
        results.timings[Key("mish", dtype, case, size, name, table=MISH_CUDA)] = timing


def time_words(nanoseconds: float) -> str:
    """Four digits and a unit, as in the published table: 223.7µs, 1.135ms."""
    for unit, length in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= length:
            return f"{nanoseconds / length:#.4g}{unit}"
    return f"{nanoseconds:#.4g}ns"


def mish_cuda_lines(results: Results, dtype: str) -> Iterator[str]:
    """The lines for one dtype, in the published form."""
    endings = {FORWARD: "fwd", BACKWARD: "bwd"}
    timings = {k: t for k, t in results.timings.items() if (k.table, k.dtype) == (MISH_CUDA, dtype)}
    width = max((len(key.contender) for key in timings), default=0) + 5
    for key, timing in timings.items():
        mean, std, low, high = map(
            time_words, (timing.mean, timing.std, timing.min, max(timing.samples))
        )
        name = f"{key.contender}_{endings[key.case]}:"
        late = "!" * timing.is_late
        yield f" {name:{width}} {mean} ± {std} ({low} – {high}){late}"


# ---- the errors ----------------------------------------------------------------------------------

Forms = dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]]
"""By contender: the function, and (grad, input) -> grad_input."""


def forms(a: Activation) -> Forms:
    """Ours, with gradients from the input and from the output; torch's own; and the formula."""

    def operator(ending: str) -> Callable[..., Any]:
        return partial(_with, getattr(torch.ops.mishkit, a.name + ending).default, a.defaults)

    def from_output(g: Tensor, x: Tensor) -> Tensor:
        return operator("_backward_packed")(g, *operator("_packed")(x))

    ours = mk.functional.FUNCTIONS[a.name]
    by_contender: Forms = {
        OURS: (ours, operator("_backward")),
        FROM_OUTPUT: (ours, from_output),
    }
    if a.name in PEERS:
        by_contender[TWIN] = PEERS[a.name].forward, partial(_by_autograd, PEERS[a.name].forward)
    by_formula = expression_of(a)
    if by_formula is not None:
        by_contender[EXPRESSION] = by_formula, partial(_by_autograd, by_formula)
    return by_contender


def _with(operator: Callable[..., Any], parameters: tuple[float, ...], *tensors: Tensor) -> Any:
    return operator(*tensors, *parameters)


def _by_autograd(function: Callable[[Tensor], Tensor], g: Tensor, x: Tensor) -> Tensor:
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf, g)[0]


def l2_error(result: Tensor, exact: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """‖result − exact(x)‖₂, in float64, one chunk at a time."""
    total = 0.0
    for part, at in zip(result.split(CHUNK), x.split(CHUNK), strict=True):
        total += float((part.double() - exact(at.double())).square().sum())
    return math.sqrt(total)


def measure_errors(results: Results, name: str, dtype: str, stopwatch: Stopwatch) -> None:
    """The errors and times of one function in one dtype."""
    a, size = ACTIVATIONS[name], SIZE
    x = normal(size, DTYPES[dtype], 0)
    ones = torch.ones_like(x)

    def f(at: Tensor) -> Tensor:
        return a.f(at, *a.defaults)

    def df(at: Tensor) -> Tensor:
        return a.df(at, *a.defaults)

    calls: dict[tuple[str, str], Call] = {}
    for contender, (function, gradient) in forms(a).items():
        for case, result, exact in (
            (FORWARD, function(x), f),
            (BACKWARD, gradient(ones, x), df),
        ):
            key = Key(name, dtype, case, size, contender, table=ERRORS)
            results.errors[key] = l2_error(result, exact, x)
        if contender != FROM_OUTPUT:
            calls[FORWARD, contender] = Call(partial(function, x))
            calls[BACKWARD, contender] = backward_call(function, x, ones)
    y, side = getattr(torch.ops.mishkit, f"{name}_packed").default(x, *a.defaults)
    decode = getattr(torch.ops.mishkit, f"{name}_backward_packed").default
    calls[BACKWARD, FROM_OUTPUT] = Call(partial(decode, ones, y, side, *a.defaults))
    for (case, contender), timing in stopwatch.time(calls, rounds=10, warm=3).items():
        results.timings[Key(name, dtype, case, size, contender, table=ERRORS)] = timing


def _print_errors(out: Console, results: Results, dtype: str) -> None:
    keys = [key for key in results.errors if (key.table, key.dtype) == (ERRORS, dtype)]
    if not keys:
        return
    from ..common.bars import table

    title = f"{dtype}, {size_name(keys[0].size)} elements: L2 norm of the error against float64"
    grid = table(title, ("", "forward, µs", "L2 error", "backward, µs", "L2 error"))
    pairs = dict.fromkeys((key.function, key.contender) for key in keys)
    last = None
    for function, contender in pairs:
        if function != last:
            grid.add_row(last := function)
        cells = []
        for case in (FORWARD, BACKWARD):
            key = Key(function, dtype, case, keys[0].size, contender, table=ERRORS)
            timing = results.timings.get(key)
            cells.append(NONE if timing is None else significant(timing.min / 1e3))
            cells.append(f"{results.errors[key]:.3g}" if key in results.errors else NONE)
        grid.add_row(f"  {contender}", *cells)
    out.print(grid)


def verdicts(results: Results) -> Iterator[Verdict]:
    """Our errors divided by torch's own, for the worst of all functions."""
    from ..common.bars import Verdict

    for case in (FORWARD, BACKWARD):
        claim, bar = f"{case}: L2 error over torch's own", f"≤ {WORSE:g}×"
        ratios = {}
        for key, error in results.errors.items():
            theirs = results.errors.get(key._replace(contender=TWIN))
            is_ours = (key.case, key.contender) == (case, OURS) and key.function != RELU
            if is_ours and theirs:
                ratios[f"{key.function}, {key.dtype}"] = error / theirs
        if not ratios:
            yield Verdict(claim, bar, "not measured", None)
            continue
        worst = max(ratios, key=lambda which: ratios[which])
        yield Verdict(claim, bar, f"{ratios[worst]:.2f}× ({worst})", ratios[worst] <= WORSE)


# ---- both ----------------------------------------------------------------------------------------


class _Job(NamedTuple):
    title: str
    run: Callable[[], None]


def time_all(results: Results, settings: Settings, stopwatch: Stopwatch) -> None:
    """Both tables, in the settings' dtypes; the first is always of Mish."""
    jobs = [
        _Job(
            f"{MISH_CUDA}, {dtype}",
            partial(time_mish_cuda, results, dtype, stopwatch, settings.quick),
        )
        for dtype in settings.dtypes
    ]
    jobs += [
        _Job(f"{ERRORS}, {name}, {dtype}", partial(measure_errors, results, name, dtype, stopwatch))
        for dtype in settings.dtypes
        for name in settings.functions
    ]
    for job in jobs:
        try:
            job.run()
        except torch.OutOfMemoryError:
            results.missing.append(f"{job.title}: the GPU's memory does not suffice")


def print_all(out: Console, results: Results, settings: Settings) -> None:
    """Both tables."""
    for dtype in settings.dtypes:
        lines = list(mish_cuda_lines(results, dtype))
        if lines:
            shape = ", ".join(map(str, SHAPE))
            count = len(next(iter(_mish_cuda(results, dtype))).samples)
            out.print(
                f"mish-cuda's table: torch.{dtype}, ({shape}), over {count} runs", style="bold"
            )
            out.print("\n".join([*lines, ""]), markup=False)
    for dtype in settings.dtypes:
        _print_errors(out, results, dtype)


def _mish_cuda(results: Results, dtype: str) -> Iterator[Any]:
    return (t for k, t in results.timings.items() if (k.table, k.dtype) == (MISH_CUDA, dtype))
