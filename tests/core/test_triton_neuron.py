"""The APTx layer's Triton kernels: in Triton's interpreter, through torch, and as compiled."""

from __future__ import annotations

import itertools
import json
import math
import os
from typing import Any

import interpreters
import pytest
import torch
from common import TESTS, assert_same_bits, mostly_slow, name_of, shared
from neurons import NAMES, arguments, assert_exact, assert_saturates, exact, formula
from test_neuron import STRIDED
from torch import Tensor

from mishkit.ops import neuron as _neuron_ops

triton = pytest.importorskip("triton")

from mishkit.backends import _triton_neuron as kernels  # noqa: E402

# numpy, which the interpreter is made of, warns of inf and NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

interpreted = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is not set: kernels need a GPU"
)
every_dtype = pytest.mark.parametrize("dtype", kernels.DTYPES, ids=name_of)
one_dtype_mostly = pytest.mark.parametrize("dtype", mostly_slow(kernels.DTYPES, 1), ids=name_of)
INFINITE = math.inf


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes the longer the more there are."""
    monkeypatch.setattr(kernels, "FEW_PROGRAMS", 1)


def computed(tensors: list[Tensor], with_input: bool = True) -> list[Tensor]:
    """Output and gradients, in the order of `NAMES`."""
    *inputs, delta, g = tensors
    gradients = kernels.layer_backward(g, *inputs, with_input)
    return [kernels.layer(*inputs, delta), *gradients]


# ---- values and gradients ----

SHAPES = [(1, 1, 1), (3, 17, 5), (17, 65, 3), (9, 33, 17), (2, 3, 65), (130, 3, 2), (2, 130, 1)]


@interpreted
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@one_dtype_mostly
def test_shapes(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    tensors = arguments(*shape, dtype)
    got = computed(tensors)
    assert_exact(got, tensors)
    for result, fake in zip(
        got,
        [
            _neuron_ops._fake(*tensors[:5]),
            *_neuron_ops._fake_backward(*tensors[-1:], *tensors[:4], True),
        ],
        strict=True,
    ):
        assert (result.shape, result.stride(), result.dtype) == (
            fake.shape,
            fake.stride(),
            fake.dtype,
        )


@interpreted
@every_dtype
def test_without_delta_and_without_the_inputs_gradient(dtype: torch.dtype) -> None:
    tensors = arguments(5, 9, 4, dtype)
    want = computed(tensors)
    empty, *parameters = computed(tensors, with_input=False)[1:]
    assert empty.shape == (0,) and empty.dtype == dtype
    for got, expected in zip(parameters, want[2:], strict=True):
        assert_same_bits(got, expected)
    without_delta = [*tensors[:4], torch.zeros(0, dtype=dtype), tensors[5]]
    y = kernels.layer(*without_delta[:5])
    assert_exact([y], [*tensors[:4], torch.zeros(4, dtype=dtype), tensors[5]])


@interpreted
@pytest.mark.parametrize("shape", [(0, 0, 0), (0, 3, 2), (4, 0, 2), (4, 3, 0), (4, 0, 0)], ids=str)
def test_nothing_to_sum(shape: tuple[int, int, int]) -> None:
    tensors = arguments(*shape, torch.float32)
    for got, want in zip(computed(tensors), exact(tensors), strict=False):
        torch.testing.assert_close(got.double(), want)
    no_delta = torch.zeros(0)
    assert not kernels.layer(*tensors[:4], no_delta).any() or shape[1]


@interpreted
def test_blocks_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks in each sum, with an end that is no whole one, and chunks of the batch."""
    for name, size in (("FORWARD_BLOCK", 64), ("INPUT_BLOCK", 3), ("PARAMETER_BLOCK", 4)):
        monkeypatch.setattr(kernels, name, size)
    monkeypatch.setattr(kernels, "LEAST_ROWS", 5)
    for shape in ((13, 140, 4), (16, 5, 18)):
        tensors = arguments(*shape, torch.float32)
        got = computed(tensors)
        assert_exact(got, tensors)
        # No more chunks than enough, which then change the rounding alone.
        for enough in (1, 3):
            monkeypatch.setattr(kernels, "ENOUGH_PROGRAMS", enough)
            in_chunks = computed(tensors)
            assert_exact(in_chunks, tensors)
            assert_same_bits(in_chunks[1], got[1])
        monkeypatch.setattr(kernels, "ENOUGH_PROGRAMS", 1024)


@interpreted
def test_each_tanh_is_as_exact_as_is_said() -> None:
    """With γ = x = 1, where y = tanh β. The interpreter's exp2 and division are exact to a unit
    in the last place: what remains is what the formula itself costs."""
    ends = (20.0, 1.0, 0.01)
    beta = torch.cat([torch.linspace(-end, end, 501, dtype=torch.float64) for end in ends])
    beta = beta.float().unsqueeze(1)
    ones, zeros = torch.ones_like(beta), torch.zeros_like(beta)
    got = kernels.layer(ones[:1], zeros, beta, ones, torch.zeros(0))[0].double()
    assert (got - beta.double().tanh()[:, 0]).abs().max() <= 2e-7


@interpreted
def test_the_derivative_keeps_its_digits() -> None:
    """β's gradient, x²·(1 − tanh²(βx)), down to 1e-30 of x²."""
    x = torch.linspace(-34, 34, 401).unsqueeze(1)
    ones, zeros = torch.ones(401, 1), torch.zeros(401, 1)
    for i in (0, 60, 150, 199, 201, 250, 400):
        row, wide = x[i : i + 1], x[i : i + 1].double()
        gradients = kernels.layer_backward(ones[:1], row, zeros[:1], ones[:1], ones[:1], True)
        bend = (wide / wide.cosh()) ** 2
        torch.testing.assert_close(gradients[2].double(), bend, rtol=1e-5, atol=0)


@interpreted
@one_dtype_mostly
def test_large_numbers_saturate(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    # The interpreter rounds subnormal results to bfloat16 wrongly.
    least = info.smallest_normal * (64 if dtype == torch.bfloat16 else 1)
    assert_saturates(computed, dtype, large=info.max / 4.1, least=least)


@interpreted
def test_infinity_and_nan_as_in_plain_torch() -> None:
    values = torch.tensor([0.0, 1, -1, 2.5, -3, math.nan])
    x = torch.tensor([INFINITE, -INFINITE, math.nan, 2.0]).unsqueeze(1)
    parameters = [t.reshape(-1, 1) for t in torch.meshgrid([values] * 3, indexing="ij")]
    got = kernels.layer(x, *parameters, torch.zeros(0))
    torch.testing.assert_close(got, formula(x, *parameters), equal_nan=True)
    # The gradients of a NaN, of each tensor, and of the input at ±inf, where torch has NaN.
    for index in (0, 1, 2, 3, 5):
        tensors = arguments(3, 2, 2, torch.float32)
        tensors[index][1, 1] = math.nan
        for name, result, want in zip(NAMES, computed(tensors), exact(tensors), strict=False):
            assert torch.equal(result.isnan(), want.isnan()), (index, name)
    tensors = arguments(2, 1, 3, torch.float32)
    tensors[0] = x[:2]
    assert computed(tensors)[1].isnan().all()


# ---- what results do not depend on ----


@interpreted
@one_dtype_mostly
def test_the_rest_of_the_batch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row alone gives the output and the gradient that it gives among others, NaN included,
    whatever the tile."""
    *inputs, delta, g = arguments(9, 50, 5, dtype)
    want = computed([*inputs, delta, g])
    again = computed([*inputs, delta, g])
    for got, expected in zip(again, want, strict=True):
        assert_same_bits(got, expected)
    inputs[0][3] = math.nan
    for few in (1, 1000):  # the second makes tiles of few rows
        monkeypatch.setattr(kernels, "FEW_PROGRAMS", few)
        y, to_input, *_ = computed([*inputs, delta, g])
        assert y[3].isnan().all() and to_input[3].isnan().all()
        for row in (0, 2, 4, 8):
            part = slice(row, row + 1)
            assert_same_bits(y[part], want[0][part])
            assert_same_bits(to_input[part], want[1][part])
            alone = [inputs[0][part], *inputs[1:], delta, g[part]]
            y_alone, to_input_alone, *_ = computed(alone)
            assert_same_bits(y_alone, y[part])
            assert_same_bits(to_input_alone, to_input[part])


@interpreted
def test_neighbours_in_memory() -> None:
    """Nothing before or after a tensor is used."""
    tensors = arguments(5, 35, 3, torch.float32)
    want = computed(tensors)
    moved = []
    for t in tensors:
        row = torch.full((t.numel() + 200,), math.nan)
        row[100 : 100 + t.numel()] = t.flatten()
        moved.append(row[100 : 100 + t.numel()].view(t.shape))
    for got, expected in zip(computed(moved), want, strict=True):
        assert_same_bits(got, expected)


@interpreted
@pytest.mark.parametrize("layout", STRIDED)
def test_layouts(layout: str) -> None:
    tensors = [STRIDED[layout](t) if t.dim() == 2 else t for t in arguments(4, 5, 3, torch.float32)]
    tensors[4] = torch.stack([tensors[4], -tensors[4]], -1)[:, 0]
    want = computed([t.contiguous() for t in tensors])
    for got, expected in zip(computed(tensors), want, strict=True):
        assert got.is_contiguous()
        assert_same_bits(got, expected)


def test_the_sizes_of_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rows = kernels._rows_for
    assert rows((8, 4, 2, 1), 4096, 8) == 8
    assert rows((8, 4, 2, 1), 1, 10_000) == 1 and rows((8, 4, 2, 1), 5, 10_000) == 8
    assert rows((8, 4, 2, 1), 256, 8) == 8 and rows((8, 4, 2, 1), 128, 8) == 4
    assert rows((32, 16, 8), 3, 10_000) == 8 and rows((32, 16, 8), 64, 1) == 8


@interpreted
def test_scratch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """12 bytes a parameter and chunk, 12 MiB at most: what the docstring says."""
    tile = kernels.PARAMETER_OUTS * kernels.PARAMETER_COLUMNS
    assert 12 * tile * kernels.ENOUGH_PROGRAMS == 12 << 20
    allocated = []
    empty = Tensor.new_empty

    def spy(self: Tensor, *size: Any, **options: Any) -> Tensor:
        allocated.append(empty(self, *size, **options))
        return allocated[-1]

    monkeypatch.setattr(Tensor, "new_empty", spy)
    monkeypatch.setattr(kernels, "LEAST_ROWS", 4)
    tensors = arguments(10, 5, 3, torch.bfloat16)
    kernels.layer_backward(tensors[5], *tensors[:4], True)
    assert {t.shape for t in allocated if t.dim() == 4} == {(2, 3, 3, 5)}


# ---- misuse ----


def test_operators_check_for_themselves() -> None:
    x, a, b, c, d, g = arguments(3, 6, 4, torch.float32)
    wrong = [
        lambda: kernels.layer(x[0], a, b, c, d),
        lambda: kernels.layer(x[:, 1:], a, b, c, d),
        lambda: kernels.layer(x, a[1:], b, c, d),
        lambda: kernels.layer(x, a, b, c, d[1:]),
        lambda: kernels.layer(x, a, b.bfloat16(), c, d),
        lambda: kernels.layer(x, a, b, c, d.double()),
        lambda: kernels.layer(*(t.long() for t in (x, a, b, c, d))),
        lambda: kernels.layer(*(t.double() for t in (x, a, b, c, d))),
        lambda: kernels.layer_backward(g[1:], x, a, b, c, True),
        lambda: kernels.layer_backward(g.double(), x, a, b, c, True),
    ]
    for run in wrong:
        with pytest.raises(RuntimeError, match=r"mishkit\.aptx_layer: "):
            run()


# ---- through torch ----


def environment(**changes: str) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {**others, **changes}


THROUGH_TORCH = """
import sys
from pathlib import Path

import torch

torch.version.cuda = "13.0"  # as a build for GPUs says
import mishkit
from mishkit import neuron
from mishkit.ops import neuron as _neuron_ops
from mishkit.backends import triton
from mishkit.lab.accuracy.interpreter import make_faithful
from neurons import formula

has = torch._C._dispatch_has_kernel_for_dispatch_key
for name in ("aptx_layer", "aptx_layer_backward"):
    assert has(f"mishkit::{name}", "CUDA") and not has(f"mishkit::{name}", "CPU")
assert neuron._kernels == {"cpu": (), "cuda": triton.DTYPES}
assert "triton" not in sys.modules
_neuron_ops._register_gpu("CPU")

def assert_trains(layer, call, x):
    leaves = [x, *layer.parameters()]
    y, want = call(x), formula(x, layer.alpha, layer.beta, layer.gamma, layer.delta)
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
    g = torch.randn_like(y)
    got, wanted = (torch.autograd.grad(t, leaves, g) for t in (y, want))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)

wide = mishkit.APTxLayer(5, 3, dtype=torch.float64)
assert_trains(wide, wide, torch.randn(4, 5, dtype=torch.float64, requires_grad=True))
assert "triton" not in sys.modules  # float64 has no need of it

make_faithful()
from mishkit.backends import _triton_neuron as kernels
calls = []
for name in ("layer", "layer_backward"):
    def spy(*given, run=getattr(kernels, name), name=name):
        calls.append(name)
        return run(*given)
    setattr(kernels, name, spy)

layer = mishkit.APTxLayer(5, 3)
assert_trains(layer, layer, torch.randn(2, 4, 5, requires_grad=True))
one = mishkit.APTxLayer(5, 1, use_delta=False)
assert_trains(one, one, torch.randn(5, requires_grad=True))
assert calls == ["layer", "layer_backward"] * 2

neuron._kernels["cpu"] = triton.DTYPES
compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
assert_trains(layer, compiled, torch.randn(4, 5, requires_grad=True))
assert calls == ["layer", "layer_backward"] * 3

with torch.autocast("cpu", dtype=torch.bfloat16):
    y = layer(torch.randn(4, 5))
assert y.dtype == torch.bfloat16 and len(calls) == 7
x = torch.randn(4, 5, requires_grad=True)
(first,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
assert torch.autograd.grad(first.sum(), x)[0].isfinite().all()
"""


@interpreted
def test_through_torch() -> None:
    """Registered as for a GPU, then for CPU tensors: the layer in every way it is called."""
    variables = environment(TRITON_INTERPRET="1", MISHKIT_CPU_ISA="none", PYTHONPATH=_paths())
    done = interpreters.python(THROUGH_TORCH, variables)
    assert done.returncode == 0, done.stderr


def _paths() -> str:
    return os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])


# ---- as compiled ----

GROUPS = (("sm_80", "gfx942"), ("sm_75", "sm_90", "sm_100"))
"""Targets, by the process that compiles for them; the first are for every run."""
TARGETS = list(itertools.chain(*GROUPS))
# Beside two special instructions, which take 8 turns each of those that issue one a turn, fit 16
# in all. With 16-bit types the input's gradient takes more, converting parameters.
MOST = {"float32": 16.0, "bfloat16": 19.0, "float16": 18.0}


@pytest.fixture
def figures(tmp_path_factory: pytest.TempPathFactory, target: str) -> dict[str, dict[str, float]]:
    """What `neuron_compiled.py` prints for this target and those of its group."""
    group = next(group for group in GROUPS if target in group)

    def printed() -> dict[str, dict[str, float]]:
        variables = environment(TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("triton")))
        file = TESTS / "neuron_compiled.py"
        process = interpreters.program(file, *group, environment=variables)
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout)  # type: ignore[no-any-return]

    return shared(tmp_path_factory, f"compiled_{group[0]}", printed)  # type: ignore[no-any-return]


@pytest.mark.parametrize("target", mostly_slow(TARGETS, GROUPS[0]))
@every_dtype
def test_compiled_code(
    figures: dict[str, dict[str, float]], dtype: torch.dtype, target: str
) -> None:
    """No float64, nothing spilled, and no more instructions than are said."""
    start = f"{target} {name_of(dtype)} "
    of_target = {name: kernel for name, kernel in figures.items() if name.startswith(start)}
    assert len(of_target) == (3 if dtype == torch.float32 else 1)
    for name, kernel in of_target.items():
        assert kernel["doubles"] == kernel["stack"] == 0, name
        # The main loop has two; Triton 3.8 has a few more outside, for AMD's GPUs.
        assert 2 <= kernel["special"] < 2.2, name
        if target.startswith("sm_"):
            assert kernel["special"] == 2, name
            assert kernel["instructions"] <= MOST[name_of(dtype)], name


@every_dtype
def test_builds_are_what_is_launched(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    builds = list(kernels.builds(dtype))
    assert len({build.name for build in builds}) == len(builds)
    launched = []

    class Spy:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int]) -> Any:
            def launch(*positional: Any, num_warps: int, **constants: Any) -> None:
                launched.append((self.kernel, len(positional), constants, num_warps))

            return launch

    kernels_built = {build.kernel for build in builds}
    for name, kernel in list(vars(kernels).items()):
        if name.endswith("_kernel"):
            assert kernel in kernels_built
            monkeypatch.setattr(kernels, name, Spy(kernel))
    for batch in (1, 2, 4, 8, 16, 200):
        x, *parameters, delta, g = arguments(batch, 5, 3, dtype)
        kernels.layer(x, *parameters, delta)
        kernels.layer(x, *parameters, delta[:0])
        kernels.layer_backward(g, x, *parameters, True)
    built = [(b.kernel, len(b.signature) - len(b.constants), b.constants, b.warps) for b in builds]
    assert all(call in built for call in launched)
    assert all(call in launched for call in built)
