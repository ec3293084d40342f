"""`mishkit accuracy`: the error of every kernel, over all inputs of a dtype or a stride of them.

float32 is swept with a stride. For the gradient from the output, the numbers next to the minimum
are swept too: the error is largest there, and a stride would miss where.

For the operators of each function and dtype, this measures against float64:

f       |y − f(x)| in ULP, which is the spacing of the dtype at f(x), but no finer than at the
        smallest normal number; and the absolute error. Where |f(x)| < 1.7e−36 or
        |f(x)| < |x|·exp(−87) (the tail: float32 is about to run out of exponents), only the
        absolute error counts.
df      |g − f'(x)|, where g is the gradient of 1 from the input; for the 16-bit types it includes
        the rounding of g. This error and all others of slopes are relative where |f'(x)| > 1.
df_y    |d − f'(x')|, where d is the gradient of 1 from the rounded output y and the side, and x'
        is the input that gives exactly y on that side: the error beyond the rounding of y. Where
        that exceeds the bar, d may still lie among the gradients of all inputs whose outputs
        round to y, as it does for a formula that is centred on them near the minimum; then the
        distance from these counts. float32 only.
decoder |d − f'(x)|, against the true gradient at the input: the maximum, and this and the root
        mean square under N(0, 1) relative to those of |f'(x') − f'(x)|, the error of an exact
        inverse of the rounded y. For the 16-bit types d is the kernel's gradient before its own
        rounding, which is enclosed using its rounded products with many upstream gradients.
limits  f and the gradients at ±∞ are the limits, and zeros of f have the right sign; from −1e30
        outwards f equals its value at −∞ where that is 0; NaN is kept.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from mishkit.activation import Activation
from mishkit.backends import cpu, triton
from mishkit.backends import torch as plain
from mishkit.functions import ACTIVATIONS

from ..._missing import install
from .. import LabError
from ..common.bars import Verdict, conclude, console, progress_bar, table
from ..common.errors import check_known
from ..common.timing import torch_threads
from .interpreter import make_faithful
from .references import Reference

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STRIDE = 509
"""A prime, so that no bit of the mantissa stays the same; gives eight million float32 values."""
INTERPRETED_STRIDE = 65521
"""The same for Triton's interpreter, which is slow; gives 65,000 values."""
NEAR = 60_000
"""How many float32 values are swept on each side of a minimum."""
CHUNK = 1 << 16
"""Values at a time: few enough for everything computed from them to fit the caches."""

UPSTREAM = 64
"""How many upstream gradients are used to tell a 16-bit gradient before its rounding."""

TAIL_F = 1.7e-36
TAIL_WEIGHT = math.exp(-87.0)
BAR_F_MAX_ULP = {"float32": 4.5, "bfloat16": 0.56, "float16": 0.56}
BAR_F_MEAN_ULP = 0.75
BAR_TAIL = 1.7e-36
BAR_DF = 2.5e-7
BAR_DF_Y = 2e-6
BAR_FROM_OUTPUT = 1e-4
INTERPRETED_LANES = 1 << 12
"""Threads per warp in Triton's interpreter, where blocks the size of a chunk take the least time
and give the same results.
"""
BACKENDS = ("cpu", "torch", "triton")

BAR_DECODER = 1.05
"""The decoder's error divided by the exact inverse's."""
RESOLUTION = 2.0**-24
"""Decoders compute in float32, so errors below this need no comparison."""

Array = NDArray[np.float64]


@dataclass
class Errors:
    """Running statistics of an error, collected in chunks."""

    max: float = 0.0
    at: float = math.nan
    """The input with the largest error."""
    total: float = 0.0
    count: float = 0.0

    def add(self, error: Array, x: Array, weight: Array | float = 1.0) -> None:
        """Add the errors at x. A NaN counts as an infinite error, or comparisons would miss it."""
        if not error.size:
            return
        error = np.where(np.isnan(error), np.inf, error)
        worst = int(error.argmax())
        if error[worst] > self.max:
            self.max, self.at = float(error[worst]), float(x[worst])
        self.total += float(np.sum(error * weight))
        self.count += float(np.sum(np.broadcast_to(weight, error.shape)))

    @property
    def mean(self) -> float:
        """The (weighted) mean."""
        return self.total / self.count if self.count else 0.0

    def __str__(self) -> str:
        if self.max == 0:
            return "0"
        figure = f"{self.max:.2f}" if 0.1 <= self.max < 1e4 else f"{self.max:.1e}"
        return f"{figure} @ {self.at:.4g}"


@dataclass
class Accuracy:
    """All errors of one function in one dtype."""

    function: str
    dtype: str
    f_ulp: Errors = field(default_factory=Errors)
    f_abs: Errors = field(default_factory=Errors)
    tail_abs: Errors = field(default_factory=Errors)
    df_abs: Errors = field(default_factory=Errors)
    df_y_abs: Errors = field(default_factory=Errors)
    """Beyond the rounding of y; float32 only."""
    decoder: Errors = field(default_factory=Errors)
    decoder_square: Errors = field(default_factory=Errors)
    inverse: Errors = field(default_factory=Errors)
    inverse_square: Errors = field(default_factory=Errors)
    broken_limits: list[str] = field(default_factory=list)

    @property
    def is_half(self) -> bool:
        """Whether the dtype has 16 bits."""
        return self.dtype != "float32"

    @property
    def decoder_max_ratio(self) -> float:
        """The largest error of the decoded gradient divided by that of the exact inverse."""
        return _ratio(self.decoder.max, self.inverse.max)

    @property
    def decoder_rms_ratio(self) -> float:
        """The same for the root mean square under N(0, 1)."""
        return _ratio(math.sqrt(self.decoder_square.mean), math.sqrt(self.inverse_square.mean))


def _ratio(ours: float, theirs: float) -> float:
    if ours <= RESOLUTION:
        return 0.0
    return ours / theirs if theirs else math.inf


@dataclass(frozen=True)
class Kernels:
    """The operators of one activation with its parameters, on one backend."""

    activation: Activation
    parameters: tuple[float, ...]
    backend: str = "cpu"

    def forward(self, x: Tensor) -> Tensor:
        """f(x)."""
        return self._call("", plain.forward, x)

    def backward(self, x: Tensor) -> Tensor:
        """The gradient of 1 from the input."""
        return self._call("_backward", plain.backward, torch.ones_like(x), x)

    def packed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) and the side."""
        return self._call("_packed", plain.forward_packed, x)

    def backward_packed(self, y: Tensor, side: Tensor, grad: float = 1.0) -> Tensor:
        """The gradient of `grad` from the output and the side."""
        grads = torch.full_like(y, grad)
        return self._call("_backward_packed", plain.backward_packed, grads, y, side)

    def _call(self, ending: str, plain_form: Callable[..., Any], *tensors: Tensor) -> Any:
        a = self.activation
        if self.backend == "torch":
            return plain_form(a, *tensors, *self.parameters)
        if self.backend == "triton":
            of_gpu = getattr(triton, plain_form.__name__)
            return to_cpu(of_gpu(a, *(t.to(_gpu()) for t in tensors), *self.parameters))
        return getattr(torch.ops.mishkit, a.name + ending)(*tensors, *self.parameters)


def _gpu() -> str:
    """Where Triton's kernels run: the interpreter takes CPU tensors."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def to_cpu(result: Any) -> Any:
    """A tensor or a tuple of tensors, moved to the CPU."""
    return tuple(map(to_cpu, result)) if isinstance(result, tuple) else result.cpu()


def measure(
    activation: Activation,
    dtype: str,
    *parameters: float,
    backend: str = "cpu",
    stride: int = STRIDE,
) -> Accuracy:
    """Sweep one function in one dtype: all 16-bit inputs, or every `stride`-th float32.

    The function's parameters are the defaults unless others are given.
    """
    parameters = parameters or activation.defaults
    kernels = Kernels(activation, parameters, backend)
    reference = Reference(activation, parameters)
    turn = activation.turn_at(*parameters)
    result = Accuracy(activation.name, dtype)
    # Chunks are too small to be worth several threads. A broken kernel may give infinities, which
    # `Errors` can handle.
    with torch_threads(1), np.errstate(invalid="ignore", over="ignore"):
        for x in inputs(dtype, stride):
            _add_forward(result, kernels, reference, x)
            _add_backward(result, kernels, reference, x)
            _add_from_output(result, kernels, reference, x)
        if dtype == "float32" and turn is not None:
            for x in beside(turn, NEAR).split(CHUNK):
                _add_from_output(result, kernels, reference, x, weighed=False)
        result.broken_limits = broken_limits(kernels, reference, DTYPES[dtype])
    return result


def inputs(dtype: str, stride: int) -> Iterator[Tensor]:
    """The finite values of a dtype, ordered by bit pattern, in chunks."""
    if dtype == "float32":
        for start in range(0, 1 << 32, CHUNK * stride):
            stop = min(start + CHUNK * stride, 1 << 32)
            patterns = np.arange(start, stop, stride, dtype=np.uint64).astype(np.uint32)
            yield _finite(torch.from_numpy(patterns.view(np.float32)))
    else:
        patterns16 = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.int16)
        yield _finite(torch.from_numpy(patterns16).view(DTYPES[dtype]))


def beside(turn: float, count: int) -> Tensor:
    """This many float32 on each side of a number, and the number itself."""
    size = torch.tensor(abs(turn), dtype=torch.float32).view(torch.int32)
    places = torch.arange(-count, count + 1, dtype=torch.int32) + size
    x = torch.where(places < 0, -places.abs().view(torch.float32), places.view(torch.float32))
    return x if turn > 0 else -x


def ulp(value: Array, dtype: str) -> Array:
    """The spacing of the dtype at a value, but at least that at the smallest normal number."""
    info = torch.finfo(DTYPES[dtype])
    digits, smallest = round(-math.log2(info.eps)), round(math.log2(info.tiny))
    exponent = np.where(value == 0, smallest, np.frexp(value)[1] - 1)
    return np.ldexp(1.0, np.maximum(exponent, smallest) - digits)


def _add_forward(result: Accuracy, kernels: Kernels, reference: Reference, x: Tensor) -> None:
    y, true, at = _array(kernels.forward(x)), _array(reference.f(x.double())), _array(x)
    error = _distance(y, true, result.dtype)
    tail = np.abs(true) < np.maximum(TAIL_F, np.abs(at) * TAIL_WEIGHT)
    if result.dtype == "float16":
        tail[:] = False  # its smallest number is far above the tail
    body = ~tail
    in_ulp = error[body] / ulp(true[body], result.dtype)
    result.f_ulp.add(in_ulp, at[body])
    result.f_abs.add(error[body], at[body])
    result.tail_abs.add(error[tail], at[tail])


def _distance(result: Array, true: Array, dtype: str) -> Array:
    """How far results are from true values; beyond the largest number comes infinity."""
    overflows = np.abs(true) > torch.finfo(DTYPES[dtype]).max
    return np.where(overflows & (result == np.copysign(math.inf, true)), 0.0, np.abs(result - true))


def _add_backward(result: Accuracy, kernels: Kernels, reference: Reference, x: Tensor) -> None:
    gradient, true = _array(kernels.backward(x)), _array(reference.df(x.double()))
    result.df_abs.add(_distance(gradient, true, result.dtype) / _scale(true), _array(x))


def _scale(slope: Array) -> Array:
    """What errors of a slope are divided by."""
    return np.maximum(np.abs(slope), 1)


def _add_from_output(
    result: Accuracy, kernels: Kernels, reference: Reference, x: Tensor, weighed: bool = True
) -> None:
    """The mean square counts only inputs that are `weighed`."""
    y, side = kernels.packed(x)
    if not y.isfinite().all():
        x = x[y.isfinite()]
        y, side = kernels.packed(x)
    at, true = _array(x), _array(reference.df(x.double()))
    exact = _array(reference.df_of_output(y.double(), x.double()))
    if result.is_half:
        decoded = _before_rounding(kernels, x, y, side)
    else:
        decoded = _array(kernels.backward_packed(y, side))
        result.df_y_abs.add(_beyond(decoded, exact, y, x, reference, result.dtype), at)
    weight = np.exp(-0.5 * at * at) * ulp(at, result.dtype)
    for candidate, largest, square in (
        (decoded, result.decoder, result.decoder_square),
        (exact, result.inverse, result.inverse_square),
    ):
        error = np.abs(candidate - true) / _scale(true)
        largest.add(error, at)
        if weighed:
            square.add(error * error, at, weight)


def _before_rounding(kernels: Kernels, x: Tensor, y: Tensor, side: Tensor) -> Array:
    """A kernel's gradient of 1 from the output, before it was rounded to a 16-bit type.

    Its rounded product with an upstream gradient encloses it within half a spacing, and products
    with other gradients give other bounds. What remains is a fraction of the spacing, except next
    to a power of two. Within that, the value is taken to be the one of the plain-torch formula, or
    the nearest to it.
    """
    a, info = kernels.activation, torch.finfo(y.dtype)
    low, high = np.full(y.numel(), -np.inf), np.full(y.numel(), np.inf)
    for grad in 1 + np.arange(UPSTREAM) / UPSTREAM:  # each is exact in both types
        product = _array(kernels.backward_packed(y, side, float(grad)))
        half = np.maximum(np.abs(product), info.tiny) * (0.5 * info.eps)
        low = np.maximum(low, (product - half) / grad)
        high = np.minimum(high, (product + half) / grad)
    turn = a.turn_at(*kernels.parameters)
    right = x.double() > (-math.inf if turn is None else turn)
    formula = _array(a.df_y(y.float(), right, y.dtype, *kernels.parameters))
    return np.clip(formula, low, high)


def _beyond(
    gradient: Array, exact: Array, y: Tensor, x: Tensor, reference: Reference, dtype: str
) -> Array:
    scale = _scale(exact)
    beyond = np.abs(gradient - exact) / scale
    far = np.flatnonzero(beyond > BAR_DF_Y)
    beyond[far] = _outside(gradient[far], y[far], x[far], reference, dtype) / scale[far]
    return np.maximum(beyond, 0)


def beyond_rounding(gradient: Tensor, y: Tensor, x: Tensor, reference: Reference) -> Array:
    """The part of a float32 gradient's error from the output that rounding y does not explain."""
    exact = _array(reference.df_of_output(y.double(), x.double()))
    return _beyond(_array(gradient), exact, y, x, reference, "float32")


def _outside(gradient: Array, y: Tensor, x: Tensor, reference: Reference, dtype: str) -> Array:
    """How far gradients lie from the range of those of all inputs whose outputs round to y."""
    half = torch.from_numpy(0.5 * ulp(_array(y), dtype))
    ends = [_array(reference.df_of_output(y.double() + d, x.double())) for d in (-half, half)]
    return np.maximum(np.minimum(*ends) - gradient, gradient - np.maximum(*ends))


def broken_limits(kernels: Kernels, reference: Reference, dtype: torch.dtype) -> list[str]:
    """Where f or a gradient at ±∞, or f of a NaN, is not what it must be."""
    inf, broken = math.inf, []
    for name, far in (("−inf", (-1e30, -3e38, -inf)), ("inf", (inf,))):
        end = torch.tensor([far[-1]], dtype=torch.float64)
        true_limit, slope = reference.f(end), reference.df(end).to(dtype)
        limit = true_limit.to(dtype)
        # More than a vector of each, so that they go through the main loop and not only the tail.
        x = torch.tensor(far if limit == 0 else far[-1:], dtype=dtype).repeat(150 // len(far))
        y = kernels.forward(x)
        gradients = kernels.backward(x), kernels.backward_packed(*kernels.packed(x))
        is_exact = bool((y == limit).all() and (y.signbit() == limit.signbit()).all())
        # A slope that is not a whole number has been rounded on the way.
        spacing = 0 if slope == slope.round() else 4 * torch.finfo(dtype).eps
        close = [bool(((g == slope) | ((g - slope).abs() <= spacing)).all()) for g in gradients]
        if limit != true_limit:  # other inputs have the same output, and its gradient is theirs too
            word = str(dtype).removeprefix("torch.")
            outside = _outside(_array(gradients[1]), y, x, reference, word)
            close[1] = close[1] or bool((outside <= 0).all())
        checks = zip(("f", "df", "df_y"), (is_exact, *close), strict=True)
        broken += [f"{function}({name})" for function, holds in checks if not holds]
    nan = torch.full((150,), math.nan, dtype=dtype)
    return broken if kernels.forward(nan).isnan().all() else [*broken, "f(nan)"]


def _finite(x: Tensor) -> Tensor:
    return x[x.isfinite()]


def _array(x: Tensor) -> Array:
    return x.double().numpy()


# ---- bars ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """One figure of one function, and its bar."""

    claim: str
    bar: str
    figure: float
    limit: float
    text: str

    @property
    def met(self) -> bool:
        """Whether the figure is within the bar."""
        return self.figure <= self.limit


def findings(result: Accuracy) -> list[Finding]:
    """The figures of a sweep that have a bar."""

    def errors(claim: str, unit: str, limit: float, measured: Errors) -> Finding:
        return Finding(claim, f"≤ {limit:g}{unit}", measured.max, limit, str(measured))

    def figure(claim: str, unit: str, limit: float, measured: float) -> Finding:
        return Finding(claim, f"≤ {limit:g}{unit}", measured, limit, f"{measured:.3g}")

    broken = result.broken_limits
    common = [
        errors("f, maximum", " ULP", BAR_F_MAX_ULP[result.dtype], result.f_ulp),
        errors("f in the tail, absolute", "", BAR_TAIL, result.tail_abs),
        Finding("limits at ±inf and NaN", "exact", len(broken), 0, ", ".join(broken) or "exact"),
    ]
    if result.is_half:
        return [
            *common,
            figure("decoder ÷ exact inverse, maximum", "×", BAR_DECODER, result.decoder_max_ratio),
            figure("decoder ÷ exact inverse, rms", "×", BAR_DECODER, result.decoder_rms_ratio),
        ]
    # The evaluation error may exceed the error of rounding y where no minimum is near.
    excess = result.decoder.max - BAR_DECODER * result.inverse.max
    return [
        *common,
        figure("f, mean", " ULP", BAR_F_MEAN_ULP, result.f_ulp.mean),
        errors("df, absolute", "", BAR_DF, result.df_abs),
        errors("df_y, absolute", "", BAR_FROM_OUTPUT, result.decoder),
        errors("df_y beyond the rounding of y", "", BAR_DF_Y, result.df_y_abs),
        figure("decoder − 1.05 × exact inverse", "", BAR_DF_Y, max(excess, 0.0)),
    ]


def verdict(claim: str, bar: str, named: Sequence[tuple[Finding, str]]) -> Verdict:
    """The row for one bar: every function that misses it, or the one that comes closest."""
    missed = [pair for pair in named if not pair[0].met]
    shown = missed or [max(named, key=lambda pair: pair[0].figure)]
    measured = "; ".join(f"{name} {finding.text}" for finding, name in shown)
    return Verdict(claim, bar, measured, not missed)


def verdicts(results: Iterable[Accuracy]) -> list[Verdict]:
    """One row per bar and dtype."""
    by_bar: dict[tuple[str, str, str], list[tuple[Finding, str]]] = {}
    for result in results:
        for finding in findings(result):
            key = result.dtype, finding.claim, finding.bar
            by_bar.setdefault(key, []).append((finding, result.function))
    return [
        verdict(f"{dtype}: {claim}", bar, named) for (dtype, claim, bar), named in by_bar.items()
    ]


# ---- the command ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What to sweep."""

    functions: Sequence[str] = tuple(ACTIVATIONS)
    dtypes: Sequence[str] = tuple(DTYPES)
    stride: int = STRIDE
    backend: str = "cpu"
    isa: str | None = None
    """The instruction set of the kernels; None for the one in use."""

    def __post_init__(self) -> None:
        check_known("function", self.functions, ACTIVATIONS)
        check_known("dtype", self.dtypes, DTYPES)
        if self.stride < 1:
            raise LabError("the stride must be positive")
        check_known("backend", [self.backend], BACKENDS)
        if self.backend == "triton" and importlib.util.find_spec("triton") is None:
            raise LabError(f"Triton is not installed: {install('triton')}")
        if self.backend == "cpu":
            if not cpu.isas():
                raise LabError("the kernels were not built: --backend torch measures plain torch")
            check_known("instruction set", [self.isa] if self.isa else [], cpu.isas())
        elif self.isa:
            raise LabError(f"--isa chooses the CPU's kernels: not with --backend {self.backend}")


def default_stride(backend: str) -> int:
    """A stride that makes the sweep quick enough."""
    return INTERPRETED_STRIDE if is_interpreted(backend) else STRIDE


def is_interpreted(backend: str) -> bool:
    """Whether Triton's interpreter stands in for a GPU."""
    return backend == "triton" and not torch.cuda.is_available()


@contextmanager
def interpreter() -> Iterator[None]:
    """Run Triton's kernels in its interpreter within the block: computing as a GPU does, in large
    blocks.

    Raises LabError if Triton has already been imported without it, which can't be undone.
    """
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads this when it is imported
    from triton.language import sum as builtin
    from triton.runtime.interpreter import InterpretedFunction

    if not isinstance(builtin, InterpretedFunction):
        raise LabError("Triton was imported before: set TRITON_INTERPRET=1 from the start")
    make_faithful()
    lanes, triton.LANES = triton.LANES, INTERPRETED_LANES
    try:
        yield
    finally:
        triton.LANES = lanes


def run(settings: Settings) -> Iterator[Accuracy]:
    """The sweeps, one after the other."""
    for dtype in settings.dtypes:
        for name in settings.functions:
            with _prepared(settings):
                a = ACTIVATIONS[name]
                result = measure(a, dtype, backend=settings.backend, stride=settings.stride)
            yield result


def _prepared(settings: Settings) -> AbstractContextManager[Any]:
    if is_interpreted(settings.backend):
        return interpreter()
    return cpu.using(settings.isa) if settings.isa else nullcontext()


def _kernels(settings: Settings) -> str:
    """What is swept, in words."""
    if settings.backend == "torch":
        return "plain torch"
    if settings.backend == "cpu":
        return settings.isa or cpu.isa()
    if is_interpreted(settings.backend):
        return "Triton kernels in its interpreter, not on a GPU"
    return f"Triton kernels on {torch.cuda.get_device_name()}"


def main(settings: Settings) -> int:
    """Sweep, print the tables and the bars; returns 1 if a bar is missed."""
    out = console()
    count = len(settings.dtypes) * len(settings.functions)
    results = []
    with progress_bar() as bar:
        task = bar.add_task("sweeping", total=count)
        for result in run(settings):
            results.append(result)
            bar.update(task, advance=1, description=f"{result.function}, {result.dtype}")
    kernels = _kernels(settings)
    for dtype in settings.dtypes:
        _print_table(out, [r for r in results if r.dtype == dtype], dtype, kernels, settings.stride)
    out.print("max, rms: error of the gradient from the output over that of an exact inverse.\n")
    title = "Bars (the function nearest to each, or all that miss it)"
    return conclude(out, title, verdicts(results))


def _print_table(
    out: Console, results: list[Accuracy], dtype: str, kernels: str, stride: int
) -> None:
    which = "all values"
    if dtype == "float32":
        which = f"one value in {stride:,}; df_y of all within {NEAR:,} of the minimum"
    columns = ("function", "f, ULP", "mean", "f, abs.", "df, abs.", "df_y, abs.", "max", "rms")
    grid = table(f"{dtype}, {which}, {kernels}: the largest errors, and where", columns)
    for r in results:
        grid.add_row(
            *(r.function, str(r.f_ulp), f"{r.f_ulp.mean:.2f}", f"{r.f_abs.max:.1e}"),
            *(str(r.df_abs), str(r.decoder)),
            *(f"{r.decoder_max_ratio:.2f}×", f"{r.decoder_rms_ratio:.2f}×"),
        )
    out.print(grid)
