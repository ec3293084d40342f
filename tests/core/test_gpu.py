"""The GPU backend through the public API: on a GPU where there is one.

Without one it is shown that the operators are registered for it, that what is registered works in
Triton's interpreter, on which device kernels are started, and that their offsets are 64 bits wide.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import interpreters
import pytest
import torch
from common import (
    DECODED,
    KERNELS,
    PLAIN,
    TESTS,
    TRITON,
    TYPICAL,
    Case,
    assert_laid_out_like,
    assert_rounds,
    assert_same_bits,
    every_dtype,
    every_function,
    every_turning,
    half_dtypes,
    laid_out,
    moved,
    name_of,
    spread,
    typical_case,
)
from torch import Tensor

import mishkit
from mishkit.backends import triton

pytestmark = pytest.mark.skipif(not TRITON, reason="Triton is not installed")

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
SOURCE = Path(mishkit.__file__).parent.parent
FAR = (1 << 31) + (1 << 20)
"""An element that 32 bits don't count to."""
triton_dtypes = pytest.mark.parametrize("dtype", triton.DTYPES, ids=name_of)


def needs_gpu(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.gpu(pytest.mark.skipif(not GPUS, reason="no GPU")(test))


# ---- registered for a GPU ------------------------------------------------------------------------


def python(code: str, **environment: str) -> None:
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "MISHKIT_CPU_ISA")}
    paths = os.pathsep.join((str(SOURCE), str(TESTS)))
    variables = {**kept, "PYTHONPATH": paths, **environment}
    done = interpreters.python(code, variables, strict="RuntimeWarning")
    assert done.returncode == 0, done.stderr


REGISTERED = """
import sys, torch
torch.version.cuda = "99.0"
import mishkit, mishkit.surgery
from mishkit import neuron
from mishkit.ops import functions as ops
from mishkit.functions import ACTIVATIONS
has = torch._C._dispatch_has_kernel_for_dispatch_key
names = [a.name + ending for a in ACTIVATIONS.values() for ending in ops.schemas(a)]
names += ["aptx_layer", "aptx_layer_backward", "blend", "blend_backward"]
names += ["affine", "affine_backward", "layer_norm_again"]
assert all(has(f"mishkit::{name}", "CUDA") for name in names), names
assert torch.float16 in neuron._kernels["cuda"]
assert "triton" not in sys.modules
"""


def test_a_build_for_gpus_has_every_operator() -> None:
    """Triton waits for the first call."""
    python(REGISTERED)


@pytest.mark.parametrize("builds", [{"cuda": "13.0"}, {"hip": "7.0"}, {}], ids=str)
def test_what_a_build_for_gpus_is(builds: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's and AMD's GPUs have the same key."""
    for name in ("cuda", "hip"):
        monkeypatch.setattr(torch.version, name, builds.get(name))
    assert triton.available.__wrapped__() is bool(builds)


UNREGISTERED = """
import sys, torch
torch.version.cuda = "13.0"
sys.modules["triton"] = None  # as if it were not installed
import mishkit, mishkit.surgery
from mishkit import neuron
from mishkit.ops import functions as ops
from mishkit.functions import ACTIVATIONS
has = torch._C._dispatch_has_kernel_for_dispatch_key
for name in [a.name + ending for a in ACTIVATIONS.values() for ending in ops.schemas(a)]:
    assert not has(f"mishkit::{name}", "CUDA")
    assert has(f"mishkit::{name}", "CompositeExplicitAutograd")
assert not has("mishkit::aptx_layer", "CUDA") and neuron._kernels["cuda"] == ()
x = torch.linspace(-3, 3, 99, device="meta", requires_grad=True)
mishkit.mish(x).sum().backward()  # as on any device that has no kernels
"""


def test_without_triton_plain_torch_serves() -> None:
    python(UNREGISTERED)


THROUGH_TORCH = """
import functools, torch, mishkit
from mishkit.ops import functions as ops
from mishkit.backends import cpu, triton
from mishkit.functions import ACTIVATIONS
from mishkit.lab.accuracy.interpreter import make_faithful

assert cpu.isa() == "none"
make_faithful()
triton.LANES = 64
for a in ACTIVATIONS.values():
    for ending in ops.schemas(a):
        body = functools.partial(getattr(triton, ops._body(ending)), a)
        ops._library.impl(a.name + ending, body, "CPU")
started = []
kernels = triton._kernels()
for name in ("forward", "forward_packed", "backward", "backward_packed", "double_backward",
             "trained", "trained_backward"):
    class Counted:
        def __init__(self, kernel, name):
            self.kernel, self.name, self.arg_names = kernel, name, kernel.arg_names
        def __getitem__(self, grid):
            started.append(self.name)
            return self.kernel[grid]
    setattr(kernels, name, Counted(getattr(kernels, name), name))

def used(*names):
    found, started[:] = list(started), []
    assert found == list(names), found

x = torch.randn(2, 3, 1, 157) * 3
g = torch.randn_like(x)
modules = mishkit.Mish, mishkit.HardMish, mishkit.Softplus
for module in modules:
    name = {"HardMish": "hard_mish"}.get(module.__name__, module.__name__.lower())
    a = ACTIVATIONS[name]
    y, slope = (formula(x.double(), *a.defaults) for formula in (a.f, a.df))
    want = g * slope
    packed = "forward_packed" if a.turn is not None else "forward"
    for options, of in (
        ({}, ("forward", "backward")),
        ({"save": "output"}, (packed, "backward_packed")),
        ({"inplace": True}, (packed, "backward_packed")),
    ):
        leaf = x.clone().requires_grad_()
        got = module(**options)(leaf * 1)
        got.backward(g)
        used(*of)
        close = 1e-5 if not options else 2e-3
        torch.testing.assert_close(got.double(), y, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(leaf.grad.double(), want, rtol=close, atol=close)
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(module()(leaf), leaf, g, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    bend = g * a.d2f(x.double(), *a.defaults)
    torch.testing.assert_close(second.double(), bend, rtol=1e-5, atol=1e-5)
    used("forward", "backward", "double_backward")
    out = torch.empty_like(x)
    getattr(mishkit, name)(x, out=out)
    used("forward")
    torch.testing.assert_close(out.double(), y, rtol=1e-6, atol=1e-6)

for module in (mishkit.Swish, mishkit.APTx):
    for count in (1, 3):
        act = module(trainable=True, num_parameters=count)
        leaf = x.clone().requires_grad_()
        given = list(act.parameters())
        y = act(leaf)
        got = torch.autograd.grad(y, [leaf, *given], g)
        used("trained", "trained_backward")
        wide = module(trainable=True, num_parameters=count).double()
        wide.load_state_dict({k: v.double() for k, v in act.state_dict().items()})
        far = x.double().requires_grad_()
        exact = wide(far)
        wanted = torch.autograd.grad(exact, [far, *wide.parameters()], g.double())
        used()  # float64 is plain torch's
        for one, other in zip((y, *got), (exact, *wanted), strict=True):
            torch.testing.assert_close(one.double(), other.detach(), rtol=1e-4, atol=1e-4)
"""


def test_through_torch() -> None:
    """Registered for the CPU's tensors: every way to call it, against float64, and that the
    kernels which are meant to are the ones that run."""
    python(THROUGH_TORCH, TRITON_INTERPRET="1", MISHKIT_CPU_ISA="none")


# ---- where kernels start -------------------------------------------------------------------------


def test_kernels_start_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    from mishkit.backends import _triton_neuron

    entered: list[object] = []

    class Entering:
        def __init__(self, device: object) -> None:
            self.device = device

        def __enter__(self) -> None:
            entered.append(self.device)

        def __exit__(self, *_: object) -> None:
            entered.append("left")

    monkeypatch.setattr(torch.cuda, "device", Entering)
    there: Any = SimpleNamespace(is_cuda=True, device="cuda:1")

    class Kernel:
        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            return lambda *_, **__: entered.append("started")

    body = triton.Launch(Kernel(), ("x", "y"), (), None, {}, 2)
    body(torch.float32, 1000, there, there)
    assert entered == ["cuda:1", "started", "left"]
    for guard in (triton.on_device, _triton_neuron.on_device):
        entered.clear()
        with guard(there):
            assert entered == ["cuda:1"]
        entered.clear()
        with guard(torch.zeros(1)):
            assert not entered


@needs_gpu
@pytest.mark.skipif(GPUS < 2, reason="fewer than two GPUs")
@typical_case
def test_the_second_gpu(case: Case) -> None:
    with torch.cuda.device(0):
        x = spread(torch.float32).to("cuda:1").requires_grad_()
        y = case.call(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert y.device == gradient.device == x.device and torch.cuda.current_device() == 0
        assert_rounds(y.detach().cpu(), case.exactly("f", x.detach().cpu()))


# ---- offsets of 64 bits --------------------------------------------------------------------------


class Pointer:
    """To memory that begins FAR elements before some tensor does, `per` of them an element."""

    def __init__(self, tensor: Tensor, per: int = 1) -> None:
        self.tensor, self.dtype = tensor, tensor.dtype
        self.address = tensor.data_ptr() - FAR // per * tensor.element_size()

    def data_ptr(self) -> int:
        return self.address

    @property
    def reach(self) -> tuple[int, int]:
        begin = self.tensor.data_ptr()
        return begin, begin + self.tensor.nbytes


@pytest.fixture
def far_program(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Runs one program of a kernel in the interpreter, as it would among millions."""
    if GPUS:
        pytest.skip("Triton's interpreter is not in use")
    from triton.runtime import interpreter
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

    reach: list[tuple[int, int]] = []
    program = [0]

    def within(places: Any, mask: Any) -> None:
        for place in places.data.ravel()[mask.data.ravel()]:
            assert any(begin <= int(place) < end for begin, end in reach), "out of reach"

    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def checked_load(self: Any, places: Any, mask: Any, *other_operands: Any) -> Any:
        within(places, mask)
        return load(self, places, mask, *other_operands)

    def checked_store(self: Any, places: Any, value: Any, mask: Any, *other_operands: Any) -> Any:
        within(places, mask)
        return store(self, places, value, mask, *other_operands)

    def number(self: Any, axis: int) -> Any:
        return TensorHandle(interpreter.np.array([program[0]], "int32"), interpreter.tl.int32)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", checked_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", checked_store)
    monkeypatch.setattr(InterpreterBuilder, "create_get_program_id", number)
    monkeypatch.setattr(GridExecutor, "_init_args_hst", lambda self, args, named: (args, named))
    monkeypatch.setattr(GridExecutor, "_restore_args_dev", lambda *_: None)

    def run(kernel: Any, which: int, *arguments: Any, **constants: Any) -> None:
        reach[:] = [a.reach for a in arguments if isinstance(a, Pointer)]
        program[0] = which
        kernel[(1,)](*arguments, **constants)

    yield run


@pytest.mark.parametrize("body", ["forward", "forward_packed", "backward", "backward_packed"])
def test_beyond_32_bits(body: str, far_program: Callable[..., None]) -> None:
    """The last two programs of a tensor of more than 2³¹ elements, whose addresses are checked
    before they are used: on all others it would be the same."""
    case, dtype = TYPICAL[0], torch.bfloat16
    launch = triton.launch(case.a, body, dtype, *case.parameters)
    block = 1024
    x = (torch.randn(block + 300) * 2).to(dtype)
    y, side = PLAIN.operator(case, "_packed")(x)
    grad = torch.randn(x.shape).to(dtype)
    result, packed = torch.zeros_like(x), torch.zeros_like(side)
    tensors = {
        "forward": {"x": x, "y": result},
        "forward_packed": {"x": x, "y": result, "side": packed},
        "backward": {"grad": grad, "x": x, "result": result},
        "backward_packed": {"grad": grad, "y": y, "side": side, "result": result},
    }[body]
    assert tuple(tensors) == launch.tensors and block % 8 == FAR % block == 0
    for program in (FAR // block, FAR // block + 1):
        far_program(
            launch.kernel,
            program,
            *(Pointer(t, 8 if name == "side" else 1) for name, t in tensors.items()),
            FAR + x.numel(),
            launch.numbers,
            *(() if launch.minimum is None else (launch.minimum,)),
            **launch.constants,
            BLOCK=block,
        )
    if body.startswith("forward"):
        assert_rounds(result, case.exactly("f", x))
        assert body == "forward" or torch.equal(packed, side)
    else:
        want = grad.double() * case.exactly("df", x)
        assert_rounds(result, want, 0 if body == "backward" else 4 * DECODED[dtype])


def test_trained_beyond_32_bits(far_program: Callable[..., None]) -> None:
    case = next(c for c in TYPICAL if c.a.trainable)
    x = torch.randn(300)
    parameters = torch.tensor(case.parameters).unsqueeze(1)
    result, tile = torch.zeros_like(x), 512
    tiles = FAR // tile + 1
    twin = case.a.twin.of_trained
    far_program(
        triton._kernels().trained,
        tiles - 1,
        *(Pointer(x), _near(parameters), Pointer(result), 1, 1, FAR + x.numel(), tiles),
        *(twin.trained_numbers, twin.f, len(case.parameters), 1, 1, tile),
    )
    assert_rounds(result, case.exactly("f", x))


def _near(tensor: Tensor) -> Pointer:
    pointer = Pointer(tensor)
    pointer.address = tensor.data_ptr()
    return pointer


OFFSETS = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mishkit.backends import triton as ours
from mishkit.functions import ACTIVATIONS
from mishkit.lab.code import paper as _paper
for body in _paper.BODIES:
    launch = ours.launch(ACTIVATIONS["mish"], body, torch.float16)
    build = _paper.build_of(launch, "float16", "sm_90")
    signature = {**build.signature, "count": "i64"}
    source = ASTSource(build.kernel, signature, dict(build.constexprs))
    print(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ttir"])
"""


@pytest.mark.slow
def test_compiled_offsets_of_programs_are_wide(tmp_path: Path) -> None:
    """With a count of 64 bits, as Triton passes one from 2³¹ on: what a program's number is
    multiplied with comes after it has been widened."""
    code = "import sys\nsys.stdout = open(sys.argv[1], 'w')\n" + OFFSETS
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = os.pathsep.join((str(SOURCE), str(TESTS)))
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "ttir")],
        env={**kept, "PYTHONPATH": paths, "TRITON_CACHE_DIR": str(tmp_path)},
        check=True,
    )
    text = (tmp_path / "ttir").read_text()
    modules = [part for part in text.split("module {") if "tt.func public" in part]
    assert len(modules) == 5
    for module in modules:
        assert "%count: i64" in module
        (program,) = re.findall(r"(%\w+) = tt\.get_program_id x", module)
        uses = re.findall(rf"= (\S+) {program}\b.*", module)
        assert uses == ["arith.extsi"], module
        assert re.search(r"arith\.cmpi sle, %\w+, %count : i64", module)


@needs_gpu
@half_dtypes
def test_more_than_2_to_the_31(dtype: torch.dtype) -> None:
    count = (1 << 31) + 4099
    free, _ = torch.cuda.mem_get_info()
    if free < 5 * 2 * count:
        pytest.skip(f"{5 * 2 * count >> 30} GiB of GPU memory are not free")
    case = TYPICAL[0]
    x = torch.zeros(count, dtype=dtype, device="cuda")
    ends = slice(0, 5000), slice(count - 5000, count)
    for end in ends:
        x[end] = torch.randn(5000, device="cuda").to(dtype) * 2
    y, side = torch.ops.mishkit.mish_packed(x)
    got = torch.ops.mishkit.mish_backward_packed(torch.ones_like(x), y, side)
    for end in ends:
        at = x[end].cpu()
        assert_rounds(y[end].cpu(), case.exactly("f", at))
        assert_rounds(got[end].cpu(), case.exactly("df", at), DECODED[dtype])
    assert not y[5000:-5000].any()


# ---- both memories -------------------------------------------------------------------------------


@every_turning
@triton_dtypes
def test_packed_on_one_decodes_on_the_other(case: Case, dtype: torch.dtype) -> None:
    """The side's bytes mean the same on a GPU (or in the interpreter) and on a CPU."""
    x = spread(dtype, 500)
    x = x[(x.double() - case.turn).abs() > 0.05]  # where rounding y might choose
    there, here = TRITON[0], KERNELS[-1] if KERNELS else PLAIN
    grad = torch.ones_like(x)
    packed = [engine.operator(case, "_packed")(x) for engine in (there, here)]
    assert torch.equal(packed[0][1], packed[1][1])
    for engine, (y, side) in ((here, packed[0]), (there, packed[1])):
        got = engine.operator(case, "_backward_packed")(grad, y, side)
        assert_rounds(got, case.exactly("df", x), DECODED[dtype])


@triton_dtypes
def test_misaligned(dtype: torch.dtype) -> None:
    """Views that begin at no multiple of 16 bytes, in every body."""
    case, engine = TYPICAL[0], TRITON[0]
    whole = (torch.randn(2000) * 2).to(dtype)
    for begin in (1, 3):
        x, grad = whole[begin:], whole.flip(0)[begin:]
        y, side = engine.operator(case, "_packed")(x)
        plain, plain_side = engine.operator(case, "_packed")(x.clone())
        assert_same_bits(y, plain)
        assert_same_bits(side, plain_side)
        for ending, tensors in (
            ("_backward", (grad, x)),
            ("_backward_packed", (grad, y, side)),
            ("_double_backward", (grad, grad, x)),
        ):
            operator = engine.operator(case, ending)
            got, want = operator(*tensors), operator(*(t.clone() for t in tensors))
            pairs = zip(got, want, strict=True) if isinstance(got, tuple) else [(got, want)]
            for a, b in pairs:
                assert_same_bits(a, b)


# ---- the public API on a GPU ---------------------------------------------------------------------


def gradients(
    case: Case, x: Tensor, g: Tensor, **options: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output, gradient, and the gradient of that by x; all of them on the CPU."""
    leaf = x.cuda().requires_grad_()
    y = case.call(leaf * 1, **options)
    (first,) = torch.autograd.grad(y, leaf, g.cuda(), create_graph=not options)
    second = None if options else torch.autograd.grad(first.sum(), leaf)[0].cpu()
    return y.detach().cpu(), first.detach().cpu(), second


@needs_gpu
@every_function
@every_dtype
def test_functions(case: Case, dtype: torch.dtype) -> None:
    x = spread(dtype)
    x = x[x.abs() < 1e4]
    g = (torch.randn(x.shape) * 2).to(dtype)
    for options in ({}, {"save": "output"}, {"inplace": True}):
        y, first, second = gradients(case, x, g, **options)
        assert_rounds(y, case.exactly("f", x))
        extra = 0 if not options else DECODED[dtype] * float(g.abs().max())
        assert_rounds(first, g.double() * case.exactly("df", x), extra)
        if second is not None:
            assert_rounds(second, g.double() * case.exactly("d2f", x), ABSOLUTE_OF_BEND[dtype])
    out = torch.empty_like(x, device="cuda")
    assert case.call(x.cuda(), out=out) is out
    assert_rounds(out.cpu(), case.exactly("f", x))


ABSOLUTE_OF_BEND = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 0.05,  # the first gradient is rounded on the way
    torch.float16: 0.01,
}


@needs_gpu
@every_function
@pytest.mark.parametrize("layout", ["channels_last", "every_second", "permuted", "expanded"])
def test_layouts_on_a_gpu(case: Case, layout: str) -> None:
    x = laid_out(layout, torch.float32)
    there = moved(x, "cuda")
    y = case.call(there)
    assert_laid_out_like(y, there)
    assert_rounds(y.cpu(), case.exactly("f", x))
    leaf = there.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(case.call(leaf, save="output").sum(), leaf)
    assert_rounds(gradient.cpu(), case.exactly("df", x), DECODED[torch.float32])


@needs_gpu
@every_function
def test_modules_on_a_gpu(case: Case) -> None:
    x = spread(torch.float32)
    for options in ({}, {"save": "output"}, {"inplace": True}):
        y = mishkit.get(case.a.name, **options).cuda()(x.cuda())
        assert_rounds(y.cpu(), case.exactly("f", x))


@needs_gpu
@pytest.mark.parametrize("name", ["swish", "aptx"])
@pytest.mark.parametrize("count", [1, 6])
def test_trained_on_a_gpu(name: str, count: int) -> None:
    act = mishkit.get(name, trainable=True, num_parameters=count)
    x, g = torch.randn(5, 6, 7, 9), torch.randn(5, 6, 7, 9)
    results = []
    for device in ("cpu", "cuda"):
        moved, leaf = act.to(device), x.to(device).requires_grad_()
        y = moved(leaf)
        derivatives = torch.autograd.grad(y, [leaf, *moved.parameters()], g.to(device))
        results.append([t.detach().cpu() for t in (y, *derivatives)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


def layer_results(device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    layer = mishkit.APTxLayer(33, 17, dtype=dtype)
    x, g = torch.randn(50, 33).to(dtype), torch.randn(50, 17).to(dtype)
    layer, leaf = layer.to(device), x.to(device).requires_grad_()
    y = layer(leaf)
    gradients = torch.autograd.grad(y, [leaf, *layer.parameters()], g.to(device))
    return [t.detach().cpu() for t in (y, *gradients)]


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
def test_the_layer_on_a_gpu(dtype: torch.dtype) -> None:
    here, there = layer_results("cpu", dtype), layer_results("cuda", dtype)
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)


@needs_gpu
def test_float64_does_not_need_triton() -> None:
    code = "import sys, torch, mishkit\n"
    code += "mishkit.mish(torch.ones(9, dtype=torch.float64, device='cuda'))\n"
    code += "assert 'mishkit.backends._triton_kernels' not in sys.modules"
    python(code)


@needs_gpu
def test_autocast_on_a_gpu() -> None:
    linear = torch.nn.Linear(8, 8, device="cuda")
    layer = mishkit.APTxLayer(8, 8, device="cuda")
    x = torch.randn(4, 8, device="cuda", requires_grad=True)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cuda", dtype=dtype):
            for y in (mishkit.mish(linear(x)), mishkit.Mish(save="output")(linear(x)), layer(x)):
                assert y.dtype == dtype
                (gradient,) = torch.autograd.grad(y.float().sum(), x)
                assert gradient.dtype == torch.float32 and gradient.isfinite().all()


@needs_gpu
@typical_case
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_on_a_gpu(case: Case) -> None:
    x = spread(torch.float32).cuda()
    x = x[x.abs() < 1e4]
    for options in ({}, {"save": "output"}):
        call = functools.partial(case.call, **options)
        compiled = torch.compile(call, fullgraph=True)
        leaf = x.clone().requires_grad_()
        y = compiled(leaf)
        (gradient,) = torch.autograd.grad(y.sum(), leaf)
        assert_rounds(y.detach().cpu(), case.exactly("f", x.cpu()), 1e-5)
        extra = DECODED[torch.float32] if options else 1e-5
        assert_rounds(gradient.cpu(), case.exactly("df", x.cpu()), extra)


@needs_gpu
@pytest.mark.usefixtures("fresh_compiler")
def test_the_layer_compiled_on_a_gpu() -> None:
    layer = mishkit.APTxLayer(33, 17, device="cuda")
    x = torch.randn(50, 33, device="cuda")
    want = layer(x)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), want)


# ---- streams and graphs --------------------------------------------------------------------------


def streamed() -> dict[str, tuple[list[Tensor], Callable[..., Any]]]:
    """By name, inputs and what is run on them: each kind of kernel."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda") * 2

    x, g = normal(8, 6, 64, 64), normal(8, 6, 64, 64)
    y, side = torch.ops.mishkit.mish_packed(x)
    layer = [normal(64, 48), *(normal(32, 48) for _ in range(3)), normal(32)]
    parameters = torch.rand(3, 6, device="cuda") + 0.5
    by_kind: dict[str, tuple[list[Tensor], Callable[..., Any]]] = {
        "forward": ([x], mishkit.mish),
        "packed": ([x], torch.ops.mishkit.mish_packed),
        "backward": ([g, x], torch.ops.mishkit.mish_backward),
        "backward_packed": ([g, y, side], torch.ops.mishkit.mish_backward_packed),
        "double_backward": ([g, g, x], torch.ops.mishkit.mish_double_backward),
        "trained": ([x, parameters], torch.ops.mishkit.aptx_trained),
        "trained_backward": ([g, x, parameters], torch.ops.mishkit.aptx_trained_backward),
        "layer": (layer, torch.ops.mishkit.aptx_layer),
        "layer_backward": (
            [normal(64, 32), *layer[:4]],
            lambda *t: torch.ops.mishkit.aptx_layer_backward(*t, True),
        ),
    }
    return by_kind


KINDS = (
    *("forward", "packed", "backward", "backward_packed", "double_backward"),
    *("trained", "trained_backward", "layer", "layer_backward"),
)
every_kind = pytest.mark.parametrize("kind", KINDS)


def assert_same(got: Any, want: Any) -> None:
    pairs = zip(got, want, strict=True) if isinstance(got, tuple) else [(got, want)]
    for a, b in pairs:
        assert_same_bits(a.cpu(), b.cpu())


@needs_gpu
@every_kind
def test_the_current_stream(kind: str) -> None:
    """A stream that is kept busy, then fills the inputs: a kernel on another would find them
    empty, and be done too early."""
    inputs, run = streamed()[kind]
    want = run(*inputs)  # which compiles
    empty = [torch.zeros_like(t) for t in inputs]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(*empty)  # its memory is there from now on
        torch.cuda.synchronize()
        torch.cuda._sleep(200_000_000)
        for to, t in zip(empty, inputs, strict=True):
            to.copy_(t)
        got = run(*empty)
        done = stream.record_event()
        assert not done.query()
    stream.synchronize()
    assert_same(got, want)


@needs_gpu
@every_kind
def test_a_graph_after_one_call(kind: str) -> None:
    """Captured once, replayed on other contents."""
    inputs, run = streamed()[kind]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run(*inputs)
    for t in inputs:
        if t.is_floating_point():
            t.copy_(torch.rand_like(t) + 0.1)
    graph.replay()
    torch.cuda.synchronize()
    assert_same(got, run(*inputs))


@needs_gpu
@pytest.mark.parametrize("options", [{}, {"save": "output"}], ids=["input", "output"])
def test_a_graph_of_forward_and_backward(options: dict[str, Any]) -> None:
    x = torch.randn(1000, device="cuda", requires_grad=True)

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(mishkit.mish(x, **options).sum(), x)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    with torch.no_grad():
        x.copy_(torch.randn(1000, device="cuda"))
    graph.replay()
    torch.cuda.synchronize()
    assert_same(got, step())


# ---- trained parameters ----


@pytest.mark.gpu
def test_two_trained_parameters() -> None:
    """No function has two yet: a·x + b·x²."""
    from gpu_kernels import two_df, two_dp, two_numbers

    device = "cuda" if GPUS else "cpu"
    x, grad = (torch.randn(4, 3, 5, device=device) for _ in range(2))
    parameters = torch.randn(2, 3, device=device)
    tiling = triton.Tiling.of(x, 3)
    sums, result = parameters.new_empty(2, 1, 3), torch.empty_like(x)
    triton._kernels().trained_backward[(tiling.channel_blocks,)](
        *(grad, x, parameters, result, sums, *tiling.shape, tiling.tiles, 1, tiling.tiles),
        *(two_numbers, two_df, two_dp, 2, *tiling.tile),
        num_warps=triton.WARPS,
    )
    a, b = (row.view(1, 3, 1) for row in parameters)
    torch.testing.assert_close(result, grad * (a + 2 * b * x))
    want = torch.stack([(grad * x).sum((0, 2)), (grad * x * x).sum((0, 2))])
    torch.testing.assert_close(sums.sum(1), want)
