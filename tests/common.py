"""What the tests loop over: functions with parameters, engines, dtypes, layouts, and formulas."""

from __future__ import annotations

import functools
import importlib.util
import os
import pickle
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock  # which torch needs too
from torch import Tensor

import mishkit
from mishkit.activation import DTYPES, Activation
from mishkit.backends import cpu, triton
from mishkit.backends import torch as plain
from mishkit.functions import ACTIVATIONS

TESTS = Path(__file__).parent
ROOT = TESTS.parent


@dataclass(frozen=True)
class Case:
    """A function with parameters to call it with."""

    a: Activation
    parameters: tuple[float, ...]

    def __str__(self) -> str:
        values = ",".join(f"{value:g}" for value in self.parameters)
        return f"{self.a.name}({values})" if values else self.a.name

    @property
    def turn(self) -> float | None:
        """Where f has its minimum; None where it is monotone."""
        return self.a.turn_at(*self.parameters)

    @property
    def call(self) -> Callable[..., Tensor]:
        """The public function with these parameters, by name."""
        named = {p.name: v for p, v in zip(self.a.parameters, self.parameters, strict=True)}
        return functools.partial(getattr(mishkit, self.a.name), **named)

    def exactly(self, formula: str, x: Tensor) -> Tensor:
        """`f`, `df` or `d2f` in float64."""
        return getattr(self.a, formula)(x.double(), *self.parameters)


def _cases(parameters: dict[str, list[tuple[float, ...]]]) -> list[Case]:
    return [Case(ACTIVATIONS[name], given) for name, lists in parameters.items() for given in lists]


DEFAULTS = [Case(a, a.defaults) for a in ACTIVATIONS.values()]
OTHERS = _cases(
    {
        "softplus": [(0.75, 15.0)],
        "hard_mish": [(4.0,)],
        "swish": [(2.7,)],
        "aptx": [(0.75, 1.25, 0.625)],  # both branches rise without end
    }
)
"""Other parameters, one set a function: for the tests of every mechanism."""
FURTHER = _cases(
    {
        "softplus": [(-1.5, 20.0)],
        # Smooth right of the quadratic part; hardswish; the minimum is a kink.
        "hard_mish": [(3.0,), (6.0,), (1.2,)],
        "swish": [(0.3,)],
        "leaky_relu": [(0.2,)],
        "elu": [(0.7,)],
        # Scaled; mirrored; mirrored with two branches; even; steeper on the left.
        "aptx": [
            (1.0, 0.3, 1.7),
            (1.0, -1.3, -0.4),
            (0.5, -1.0, -0.5),
            (0.0, 0.8, 1.0),
            (-0.6, 1.1, 0.7),
        ],
    }
)
"""And more of them: for the tests of the formulas and of the kernels' values."""
TURNLESS = _cases(
    {
        "swish": [(-0.8,), (0.0,)],
        "leaky_relu": [(-0.5,)],
        "elu": [(-0.7,)],
        "aptx": [
            (1.1, 1.0, 0.5),
            (-1.5, 1.0, 0.5),
            (1.0, 1.0, -0.5),
            (0.5, 0.0, 1.0),
        ],
    }
)
"""Parameters for which f has not exactly one minimum: its output doesn't give its gradient."""
JUMPING = _cases({"softplus": [(1.0, 1.0), (-2.0, 7.5), (0.5, -3.0)]})
"""Parameters for which f jumps, so that one output belongs to two slopes."""
SHAPES = DEFAULTS + OTHERS + FURTHER + TURNLESS
TURNING = [case for case in DEFAULTS if case.turn is not None]

every_function = pytest.mark.parametrize("case", DEFAULTS, ids=str)
every_case = pytest.mark.parametrize("case", DEFAULTS + OTHERS, ids=str)
every_decoding = pytest.mark.parametrize("case", DEFAULTS + OTHERS + FURTHER, ids=str)
every_shape = pytest.mark.parametrize("case", SHAPES, ids=str)
every_turning = pytest.mark.parametrize("case", TURNING, ids=str)
every_undecodable = pytest.mark.parametrize("case", TURNLESS + JUMPING, ids=str)
# One that turns, one with parameters, and one that inverts f step by step, where the mechanism is
# the same for all.
TYPICAL = [next(c for c in TURNING if c.a.name == "mish"), OTHERS[0], OTHERS[-1]]
typical_case = pytest.mark.parametrize("case", TYPICAL, ids=str)
typical_turning = pytest.mark.parametrize(
    "case", [case for case in TYPICAL if case.turn is not None], ids=str
)


def mostly_slow(values: Iterable[Any], quick: Collection[Any] | int) -> list[Any]:
    """For `parametrize`: `quick` of the values (or the first so many) for every run, the others for
    `make slow`. A tuple has several arguments."""
    params = []
    for i, value in enumerate(values):
        is_quick = i < quick if isinstance(quick, int) else value in quick
        marks = () if is_quick else (pytest.mark.slow,)
        if isinstance(value, tuple):
            params.append(pytest.param(*value, marks=marks))
        else:
            params.append(pytest.param(value, marks=marks, id=name_of(value)))
    return params


def shared(folders: pytest.TempPathFactory, name: str, make: Callable[[], Any]) -> Any:
    """What `make` returns, made once for all workers of pytest-xdist: for slow fixtures."""
    folder = folders.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    path = folder / f"{name}.pickle"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            path.write_bytes(pickle.dumps(make()))
        return pickle.loads(path.read_bytes())


def name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


shapes_mostly_slow = pytest.mark.parametrize("case", mostly_slow(SHAPES, DEFAULTS), ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
half_dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name_of)

# How a user asks for a gradient: the options of the public call.
SAVING: dict[str, dict[str, Any]] = {
    "input": {},
    "output": {"save": "output"},
    "inplace": {"inplace": True},
}
every_saving = pytest.mark.parametrize("options", SAVING.values(), ids=SAVING)
from_output = pytest.mark.parametrize(
    "options", [SAVING["output"], SAVING["inplace"]], ids=["output", "inplace"]
)


@dataclass(frozen=True)
class Engine:
    """What computes the operators: an instruction set of the CPU, "plain" torch or "triton"."""

    name: str

    def operator(self, case: Case, ending: str = "") -> Callable[..., Any]:
        """The operator of that ending, for tensors alone."""
        # The parameters that are trained come in a tensor.
        numbers = () if "trained" in ending else case.parameters
        if self.name in ("plain", "triton"):
            named = "backward" in ending or "trained" in ending
            name = ending.lstrip("_") if named else "forward" + ending
            body = getattr(plain if self.name == "plain" else triton, name)
            body = functools.partial(body, case.a)
            if self.name == "triton":
                body = _on_gpu(body)
            return lambda *tensors: body(*tensors, *numbers)
        operator = getattr(torch.ops.mishkit, case.a.name + ending).default
        return lambda *tensors: operator(*tensors, *numbers)

    def __str__(self) -> str:
        return self.name


def _on_gpu(body: Callable[..., Any]) -> Callable[..., Any]:
    """With the CPU's tensors on the GPU, if there is one: Triton's interpreter takes them as they
    are."""
    if not torch.cuda.is_available():
        return body

    def there(*arguments: Any) -> Any:
        result = body(*(moved(x, "cuda") if isinstance(x, Tensor) else x for x in arguments))
        results = result if isinstance(result, tuple) else (result,)
        back = tuple(moved(y, "cpu") for y in results)
        return back if isinstance(result, tuple) else back[0]

    return there


def moved(x: Tensor, device: str) -> Tensor:
    """The tensor elsewhere, with its strides."""
    storage = x.untyped_storage()
    there = storage.cuda() if device == "cuda" else storage.cpu()
    empty = torch.empty(0, dtype=x.dtype, device=device)
    return empty.set_(there, x.storage_offset(), x.shape, x.stride())


KERNELS = [Engine(name) for name in cpu.isas()]
PLAIN = Engine("plain")
TRITON = [Engine("triton")] if importlib.util.find_spec("triton") else []
"""Triton's kernels: on a GPU, or in the interpreter."""
ENGINES = [*KERNELS, PLAIN]
EVERY_ENGINE = [*ENGINES, *(pytest.param(e, id=str(e), marks=pytest.mark.gpu) for e in TRITON)]
"""For the fixtures `engine` and `every_engine`."""
ITSELF = {"every_engine": PLAIN, "dtype": torch.float64}
"""Plain torch in float64 is the formula that the tests compare with: there is nothing to test."""


# Errors allowed beyond the rounding of the result, absolute and relative. How exact the kernels
# really are is the business of `mishkit accuracy`; a broken formula is far outside of these.
ABSOLUTE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 1e-5, torch.float16: 1e-5}
# What the rounding of y costs a gradient decoded from it, beside the minimum.
DECODED = {torch.float64: 1e-6, torch.float32: 5e-4, torch.bfloat16: 0.05, torch.float16: 0.02}


def assert_rounds(got: Tensor, want: Tensor, extra: float = 0.0, relative: float = 0.0) -> None:
    """`got` is `want` (float64), rounded to got's dtype, within the errors above; or else by as
    much more as `extra`, or `relative` to `want` in units of the rounding."""
    info = torch.finfo(got.dtype)
    rounding = info.eps * (4 if got.dtype in (torch.float32, torch.float64) else 0.51)
    rounding *= 1 + relative
    least = info.smallest_normal * info.eps  # half of a subnormal's step, and more
    # Beyond the largest number lies inf.
    want = torch.where(want.abs() > info.max, want.to(got.dtype).double(), want)
    torch.testing.assert_close(
        got.double(), want, rtol=rounding, atol=ABSOLUTE[got.dtype] + least + extra, equal_nan=True
    )


def bits_of(x: Tensor) -> Tensor:
    """The bit patterns, so that −0 and NaN compare too."""
    size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.contiguous().view(size)


def assert_same_bits(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype and got.shape == want.shape
    assert torch.equal(bits_of(got), bits_of(want))


def every_half(dtype: torch.dtype) -> Tensor:
    """All 65,536 values of a 16-bit type."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def spread(dtype: torch.dtype, count: int = 3000) -> Tensor:
    """Inputs from all over: dense where the functions bend, sparse to the ends of the dtype."""
    bend = torch.linspace(-25, 25, count, dtype=torch.float64)
    far = torch.logspace(-30, 30, count // 10, dtype=torch.float64)
    largest = torch.tensor([torch.finfo(dtype).max], dtype=torch.float64)
    x = torch.cat([bend, far, -far, largest, -largest, torch.zeros(1, dtype=torch.float64)])
    x = x.to(dtype)
    return x[x.isfinite()]


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---- layouts ----


def _randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


DENSE: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: _randn(3, 5, 4, 7),
    "channels_last": lambda: _randn(3, 5, 4, 7).to(memory_format=torch.channels_last),
    "channels_last_3d": lambda: _randn(2, 3, 4, 3, 2).to(memory_format=torch.channels_last_3d),
    "transposed": lambda: _randn(19, 11).mT,
    "permuted": lambda: _randn(3, 5, 4, 7).permute(2, 0, 3, 1),
    "size_one": lambda: torch.as_strided(_randn(3, 1, 7), (3, 1, 7), (7, 99, 1)),
    "row": lambda: _randn(131),
    "offset": lambda: _randn(64)[3:50],
    "scalar": lambda: _randn(1)[0],
    "empty": lambda: _randn(0),
    "empty_4d": lambda: _randn(2, 0, 3, 4).to(memory_format=torch.channels_last),
}
"""Layouts that fill one run of memory, which the kernels take as they are."""

SCATTERED: dict[str, Callable[[], Tensor]] = {
    "every_second": lambda: _randn(9, 11)[::2],
    "columns": lambda: _randn(9, 11)[:, 1:],
    "strided_row": lambda: _randn(7, 40)[:, ::3],
    "channels_last_columns": lambda: DENSE["channels_last"]()[:, 1:, :, ::2],
    "permuted_columns": lambda: _randn(3, 5, 4, 7).permute(3, 1, 0, 2)[:, 1:],
    "expanded": lambda: _randn(5, 1, 3).expand(5, 4, 3),
    "expanded_scalar": lambda: _randn(1)[0].expand(3, 7),
    "windows": lambda: _randn(40).unfold(0, 5, 2),
    "diagonal": lambda: _randn(9, 9).diagonal(),
}
"""Layouts with gaps or overlaps, which need a copy."""

LAYOUTS = {**DENSE, **SCATTERED}


def laid_out(name: str, dtype: torch.dtype) -> Tensor:
    """A tensor of that layout: converting the storage keeps the strides, whatever they are."""
    x = LAYOUTS[name]()
    row = torch.as_strided(x, (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
    return torch.as_strided(row.to(dtype), x.shape, x.stride(), x.storage_offset())


def assert_laid_out_like(result: Tensor, x: Tensor) -> None:
    assert result.shape == x.shape
    want = torch.empty_like(x)
    # Without elements, or along a dimension of one, a stride says nothing.
    if x.numel():
        for size, got, wanted in zip(x.shape, result.stride(), want.stride(), strict=True):
            assert size == 1 or got == wanted, (result.stride(), want.stride())


def copies(call: object, *arguments: Tensor) -> int:
    """How often torch copied a tensor meanwhile."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the profiler's own state
        with torch.autograd.profiler.profile(use_kineto=False) as profile:
            call(*arguments)  # type: ignore[operator]
    return sum(event.name in ("aten::copy_", "aten::clone") for event in profile.function_events)
