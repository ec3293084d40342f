"""`mishkit.enable`: torch's own operators, answered by our kernels or left to torch's."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import interpreters
import pytest
import torch
import torch.nn.functional as F
from common import ROOT, TESTS
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import mishkit as mk
from mishkit.activation import DTYPES
from mishkit.backends import cpu

pytestmark = pytest.mark.skipif(not cpu.isas(), reason="there are no kernels")
aten = torch.ops.aten

FORWARD: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "mish": (aten.mish, {}),
    "silu": (aten.silu, {}),
    "gelu": (aten.gelu, {}),
    "gelu_tanh": (aten.gelu, {"approximate": "tanh"}),
    "hardswish": (aten.hardswish, {}),
}
"""Our names, and torch's operators for them."""
LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "scalar": lambda: torch.randn(()),
    "empty": lambda: torch.randn(0, 3),
    "contiguous": lambda: torch.randn(3, 4, 5),
    "transposed": lambda: torch.randn(6, 4, 5).transpose(0, 2),
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "channels last, one channel": lambda: torch.randn(2, 1, 4, 5).to(
        memory_format=torch.channels_last
    ),
    "channels last, one image": lambda: torch.randn(1, 3, 4, 5).to(
        memory_format=torch.channels_last
    ),
    "size 1, arbitrary strides": lambda: torch.randn(200).as_strided((3, 1, 4), (4, 77, 1)),
    "size 1, transposed": lambda: torch.randn(200).as_strided((4, 1, 3), (1, 50, 4)),
    "chunk": lambda: torch.randn(4, 6, 2).chunk(2, dim=1)[1],
    "every other": lambda: torch.randn(3, 10)[:, ::2],
    "expanded": lambda: torch.randn(3, 1).expand(3, 4),
    "expanded scalar": lambda: torch.randn(()).expand(3, 4),
    "large": lambda: torch.randn(70_000),
}


@pytest.fixture(autouse=True)
def disabled_afterwards() -> Iterator[None]:
    yield
    mk.disable()


def in_place(name: str) -> Callable[..., Tensor]:
    torchs = name.removesuffix("_tanh")
    return lambda x: getattr(aten, f"{torchs}_")(x, **FORWARD[name][1])


def backward(name: str) -> Callable[..., Tensor]:
    torchs = name.removesuffix("_tanh")
    return lambda grad, x: getattr(aten, f"{torchs}_backward")(grad, x, **FORWARD[name][1])


def both(call: Callable[[], Any]) -> tuple[Any, Any]:
    """What a call gives with torch's kernels and with ours; an exception is a result, too."""

    def outcome() -> Any:
        try:
            return call()
        except Exception as error:
            return type(error), str(error).partition("\n")[0]

    with mk.disable():
        torchs = outcome()
    with mk.enable():
        return torchs, outcome()


def assert_alike(torchs: Any, ours: Any) -> None:
    """The same shape, dtype and strides, and close to each other; or the same error."""
    if not isinstance(torchs, Tensor):
        assert torchs == ours
        return
    assert (torchs.dtype, torchs.shape, torchs.stride()) == (ours.dtype, ours.shape, ours.stride())
    torch.testing.assert_close(ours, torchs, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORWARD)
def test_our_kernels_answer(name: str, dtype: torch.dtype) -> None:
    x, grad = torch.randn(2, 1000).to(dtype)
    form, options = FORWARD[name]
    ours, rules = getattr(mk, name), getattr(torch.ops.mishkit, f"{name}_backward")
    if name == "gelu" and dtype == torch.float64:  # where torch's is faster
        ours, rules = F.gelu, aten.gelu_backward
        with mk.disable():
            expected, gradient = ours(x), rules(grad, x)
    else:
        expected, gradient = ours(x), rules(grad, x)
    with mk.enable():
        assert torch.equal(form(x, **options), expected)
        out = torch.empty_like(x)
        assert form.out(x, **options, out=out) is out
        assert torch.equal(out, expected)
        clone = x.clone()
        assert in_place(name)(clone) is clone
        assert torch.equal(clone, expected)
        assert torch.equal(backward(name)(grad, x), gradient)
        if name not in ("mish", "hardswish"):  # which have no such form
            torchs = getattr(aten, f"{name.removesuffix('_tanh')}_backward")
            torchs.grad_input(grad, x, **options, grad_input=out)
            assert torch.equal(out, gradient)


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_as_with_torch(layout: str, name: str) -> None:
    x = LAYOUTS[layout]()
    form, options = FORWARD[name]
    assert_alike(*both(lambda: form(x, **options)))
    assert_alike(*both(lambda: in_place(name)(x.clone(memory_format=torch.preserve_format))))
    for out in (torch.empty_like(x), torch.empty(0), x.new_empty((*x.shape, 2))[..., 0]):
        assert_alike(*both(lambda out=out: form.out(x, **options, out=out)))


@pytest.mark.parametrize("name", FORWARD)
def test_layouts_of_gradients_are_as_with_torch(name: str) -> None:
    shapes = itertools.groupby(
        sorted(((make().shape, label) for label, make in LAYOUTS.items()), key=str),
        key=lambda pair: pair[0],
    )
    for _, group in shapes:
        for first, second in itertools.product([label for _, label in group], repeat=2):
            grad, x = LAYOUTS[first](), LAYOUTS[second]()
            assert_alike(*both(lambda grad=grad, x=x: backward(name)(grad, x)))
    x = torch.randn(2, 3, 4, 5)
    last = x.to(memory_format=torch.channels_last)
    for grad, input_ in itertools.product((x, last, x[:1, :1, :1, :1].expand_as(x)), (x, last)):
        assert_alike(*both(lambda grad=grad, x=input_: backward(name)(grad, x)))


ELSEWHERE: dict[str, Callable[[], Any]] = {
    "integers": lambda: F.mish(torch.arange(3)),
    "bool": lambda: F.silu(torch.tensor([True])),
    "integers, hardswish": lambda: F.hardswish(torch.arange(3)),
    "complex": lambda: F.silu(torch.tensor([1 + 2j])),
    "no such approximation": lambda: F.gelu(torch.ones(3), approximate="cubic"),
    "gradient of another dtype": lambda: aten.silu_backward(
        torch.ones(3).double(), torch.ones(3)
    ),
    "gradient of another shape": lambda: aten.silu_backward(torch.ones(2), torch.ones(3)),
    "gradient that broadcasts": lambda: aten.silu_backward(torch.ones(1), torch.ones(3)),
    "out of another dtype": lambda: aten.silu.out(torch.ones(3), out=torch.ones(3).double()),
    "out of integers": lambda: aten.mish.out(torch.ones(3), out=torch.ones(3).int()),
    "out on another device": lambda: aten.mish.out(
        torch.ones(3), out=torch.empty(3, device="meta")
    ),
    "overlapping out": lambda: (lambda x: aten.silu.out(x[:-1], out=x[1:]))(torch.ones(9)),
    "out is the input": lambda: (lambda x: aten.silu.out(x, out=x))(torch.ones(9)),
    "in place, expanded": lambda: F.silu(torch.ones(1).expand(3), inplace=True),
    "in place, strided": lambda: F.silu(torch.ones(6)[::2], inplace=True),
    "minus infinity": lambda: F.mish(torch.tensor([-torch.inf, torch.inf, torch.nan, -0.0])),
    "minus infinity, in place": lambda: F.silu(
        torch.cat([torch.ones(5000), torch.tensor([-torch.inf]), torch.ones(5000)]), inplace=True
    ),
    "minus infinity, bfloat16": lambda: F.gelu(
        torch.full((9000,), -torch.inf).bfloat16(), approximate="tanh"
    ),
    "negated": lambda: F.silu(torch._neg_view(torch.ones(3))),
    "meta": lambda: F.mish(torch.empty(3, device="meta")).shape,
    "quantised": lambda: F.gelu(
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    ).dequantize(),
    "nested": lambda: F.silu(
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    ).unbind()[1],
    "jagged": lambda: F.gelu(
        torch.nested.nested_tensor([torch.ones(2, 2), torch.ones(3, 2)], layout=torch.jagged)
    ).values(),
    "sparse": lambda: F.mish(torch.eye(3).to_sparse()),
    "mkldnn": lambda: F.gelu(torch.ones(3).to_mkldnn()).to_dense(),
}  # fmt: skip


@pytest.mark.parametrize("case", ELSEWHERE)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:.*deprecated")
def test_everything_else_goes_where_it_went(case: str) -> None:
    assert_alike(*both(ELSEWHERE[case]))


@pytest.mark.parametrize("name", FORWARD)
def test_the_gradients_are_right(name: str) -> None:
    form, options = FORWARD[name]
    x = torch.randn(7, dtype=torch.float64, requires_grad=True)
    with mk.enable():
        assert gradcheck(lambda x: form(x, **options), x, check_forward_ad=True)
        assert gradgradcheck(lambda x: form(x, **options), x)
        y = form(x, **options)
    with mk.disable():
        assert type(form(x, **options).grad_fn) is type(y.grad_fn)  # torch's own node


def test_functorch_hooks_and_modules() -> None:
    x = torch.randn(5, 8)
    net = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8), nn.Mish(), nn.GELU("tanh"))
    loss = lambda x: net(x).square().sum()  # noqa: E731
    seen: list[tuple[int, ...]] = []
    handle = net[1].register_full_backward_hook(lambda m, i, o: seen.append(tuple(o[0].shape)))

    def results() -> tuple[Tensor, ...]:
        loss(x.clone().requires_grad_()).backward()
        handle.remove()
        return (
            torch.func.vmap(torch.func.grad(loss))(x),
            torch.func.hessian(loss)(x[0]),
            torch.func.jvp(net, (x,), (x,))[1],
            torch.func.vmap(net, in_dims=1, out_dims=1)(x[:, None]),
        )

    with mk.enable():
        ours = results()
    assert seen == [(5, 8)]
    for a, b in zip(ours, results(), strict=True):
        torch.testing.assert_close(a, b)


def test_compiled_and_traced() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8), nn.Mish()).eval()
    x = torch.randn(4, 8, requires_grad=True)
    expected = net(x)
    (dx,) = torch.autograd.grad(expected.sum(), x)
    with mk.enable(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONWARNINGS", "ignore")
        y = torch.compile(net, fullgraph=True, backend="aot_eager")(x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], dx)
        exported = torch.export.export(net, (x.detach(),))
        torch.testing.assert_close(exported.module()(x), expected)
    targets = [str(node.target) for node in exported.graph.nodes]
    assert "aten.silu.default" in targets and "aten.mish.default" in targets


def test_torchs_own_kernels_come_back() -> None:
    x = torch.randn(1000)
    torchs = F.mish(x)
    mk.enable()
    assert not torch.equal(F.mish(x), torchs)
    assert mk.enabled() == ("gelu", "hardswish", "mish", "silu")
    mk.disable()
    assert mk.enabled() == ()
    assert torch.equal(F.mish(x), torchs)


def test_calls_and_blocks() -> None:
    mk.enable("mish")
    mk.enable(["mish", "silu"])
    mk.enable("mish")  # again, and nothing more
    assert mk.enabled() == ("mish", "silu")
    with mk.enable("gelu"):
        assert mk.enabled() == ("gelu", "mish", "silu")
        with mk.enable("gelu"), mk.disable():
            assert mk.enabled() == ()
        assert mk.enabled() == ("gelu", "mish", "silu")
    assert mk.enabled() == ("mish", "silu")
    with mk.enable():
        mk.disable()  # for good
    assert mk.enabled() == ()
    with pytest.raises(KeyError), mk.enable():
        raise KeyError
    assert mk.enabled() == ()
    block = mk.enable("silu")
    for _ in range(2):
        with block:
            assert mk.enabled() == ("silu",)
    assert mk.enabled() == ()


def test_functions_that_there_are_not() -> None:
    with pytest.raises(ValueError, match=r"there is no 'swash'; there are mish, silu"):
        mk.enable("swash")
    with pytest.raises(ValueError, match="softplus is left to torch"):
        mk.enable(["mish", "softplus"])
    with pytest.raises(TypeError, match="must be names"):
        mk.enable([F.mish])  # type: ignore[list-item]
    assert mk.enabled() == ()


def test_threads_may_switch_while_others_compute() -> None:
    x = torch.randn(16)
    expected, stop, wrong = F.silu(x), threading.Event(), []

    def compute() -> None:
        while not stop.is_set():
            y = F.silu(x)
            if not torch.allclose(y, expected):
                wrong.append(y)

    def switch() -> None:
        for _ in range(3000):
            with mk.enable():
                assert "silu" in mk.enabled()

    mk.enable()
    mk.disable()
    computing = threading.Thread(target=compute)
    switching = [threading.Thread(target=switch) for _ in range(2)]
    for thread in (computing, *switching):
        thread.start()
    for thread in switching:
        thread.join()
    stop.set()
    computing.join()
    assert not wrong and mk.enabled() == ()


def _in_child(queue: Any) -> None:
    import mishkit

    queue.put((mishkit.enabled(), torch.equal(F.mish(torch.ones(3)), mishkit.mish(torch.ones(3)))))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork")
def test_processes(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    if method == "fork":
        mk.enable()
    else:
        monkeypatch.setenv("MISHKIT_ENABLE", "1")
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=_in_child, args=(queue,))
    process.start()
    names, equal = queue.get()
    process.join()
    assert len(names) == 4 and equal and process.exitcode == 0


def variables(**changes: str) -> dict[str, str]:
    path = os.pathsep.join((str(ROOT / "src"), os.environ.get("PYTHONPATH", "")))
    return {**os.environ, "PYTHONPATH": path, **changes}


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return interpreters.python(code, variables(**environment), strict="Warning")


def test_nothing_is_printed() -> None:
    done = python(
        "import mishkit as mk, torch\n"
        "mk.enable(); torch.nn.functional.mish(torch.ones(3)); mk.disable(); mk.enable()"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("mish, silu", "mish silu"),
        pytest.param("1", "gelu hardswish mish silu", marks=pytest.mark.slow),
        pytest.param("0", "", marks=pytest.mark.slow),
    ],
)
def test_environment(value: str, names: str) -> None:
    done = python("import mishkit as mk; print(*mk.enabled())", MISHKIT_ENABLE=value)
    assert (done.stdout.strip(), done.stderr) == (names, "")


def test_environment_with_a_wrong_name() -> None:
    done = python("import mishkit", MISHKIT_ENABLE="swash")
    assert "MISHKIT_ENABLE: mishkit.enable: there is no 'swash'" in done.stderr


def test_torch_enables_when_it_is_imported() -> None:
    """By the entry point, which torch loads; here it is called, since it may not be installed."""
    code = (
        "import sys, torch, mishkit_autoload; mishkit_autoload.load()\n"
        "module = sys.modules.get('mishkit'); print(module and module.enabled())"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=variables(MISHKIT_ENABLE="silu"),
        text=True,
        capture_output=True,
    )
    assert done.stdout.split("\n")[0] == "('silu',)", done.stderr
    assert python(code, MISHKIT_ENABLE="").stdout == "None\n"


def test_plain_torch_stays_plain() -> None:
    code = "import mishkit as mk; mk.enable(); print(mk.enabled())"
    assert python(code, MISHKIT_CPU_ISA="none").stdout == "()\n"


def test_a_part_of_torchs_own_tests() -> None:
    """In a process of their own; `make opinfo` runs all of them, with torch's kernels as well."""
    pytest.importorskip("expecttest")
    options = ["-q", "-p", "no:cacheprovider", str(TESTS / "opinfo"), "-k", "mish and float32"]
    code = f"import pytest, sys; sys.exit(pytest.main({options!r}))"
    done = interpreters.python(code, variables(), ROOT)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "16 passed" in done.stdout
