"""torch.fx and torch.jit, and tensors that torch's functions take where our operators don't."""

from __future__ import annotations

import inspect
import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import interpreters
import pytest
import torch
import torch.nn.functional as F
from common import DEFAULTS, SAVING, Case, every_case, every_function, every_saving, typical_case
from pairwise import pairwise
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import mishkit


def layer() -> nn.Module:
    return mishkit.APTxLayer(6, 6)


NETS: dict[str, Callable[[], nn.Module]] = {
    **{
        f"{case.a.module_name}, {options}": lambda a=case.a, o=options: getattr(
            mishkit, a.module_name
        )(**o)
        for case in DEFAULTS
        for options in ({}, {"save": "output"})
    },
    "Mish, in place": lambda: mishkit.Mish(inplace=True),
    "Swish, trained": lambda: mishkit.Swish(trainable=True),
    "APTx, trained": lambda: mishkit.APTx(trainable=True, num_parameters=6),
    "APTxLayer": layer,
}
every_net = pytest.mark.parametrize("make", NETS.values(), ids=NETS)


def around(act: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), act, nn.Linear(6, 3))


def assert_trains_alike(got: Any, want: nn.Module, x: Tensor) -> None:
    results = []
    for run in (got, want):
        y = run(x)
        leaves = [p for p in run.parameters() if p.requires_grad]
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-3)


# ---- torch.fx ----


@every_net
def test_fx_sees_one_call(make: Callable[[], nn.Module]) -> None:
    net = around(make())
    graph = torch.fx.symbolic_trace(net)
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    assert len(calls) == 1 and calls[0].target.__module__.startswith("mishkit")
    assert_trains_alike(graph, net, torch.randn(5, 4))


@every_function
def test_fx_keeps_what_a_call_was_given(case: Case) -> None:
    def f(x: Tensor) -> Tensor:
        return case.call(x * 1, inplace=True)

    graph = torch.fx.symbolic_trace(f)
    call = [node for node in graph.graph.nodes if node.op == "call_function"][-1]
    assert call.kwargs == {"inplace": True} and call.args[1:] == case.parameters
    x = torch.randn(7)
    torch.testing.assert_close(graph(x), case.call(x))


def test_fx_after_lean() -> None:
    net = around(nn.SiLU())
    mishkit.lean(net, torch.randn(5, 4), recompute=False)
    assert_trains_alike(torch.fx.symbolic_trace(net), net, torch.randn(5, 4))


def test_other_things_are_still_no_tensors() -> None:
    for call in (mishkit.mish, mishkit.swish, mishkit.softplus):
        with pytest.raises(TypeError, match="must be a tensor, not list"):
            call([1.0])


# ---- torch.jit ----


@contextmanager
def without_deprecations() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@every_net
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_jit_trace_has_torchs_operators_alone(make: Callable[[], nn.Module], frozen: bool) -> None:
    net = around(make()).requires_grad_(not frozen)
    x = torch.randn(5, 4)
    with without_deprecations():
        traced = torch.jit.trace(net, x)
        assert "mishkit::" not in str(traced.inlined_graph)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        loaded = torch.jit.load(file)
    torch.testing.assert_close(loaded(x), net(x))
    if not frozen:
        assert_trains_alike(loaded, net, torch.randn(7, 4))


@every_saving
def test_a_traced_function_has_the_gradient(options: dict[str, Any]) -> None:
    """Traced with an input that needs none."""
    with without_deprecations():
        traced = torch.jit.trace(lambda x: mishkit.mish(x * 1, **options), torch.randn(5))
    x = torch.randn(9, requires_grad=True)
    torch.testing.assert_close(
        torch.autograd.grad(traced(x).sum(), x), torch.autograd.grad(F.mish(x).sum(), x)
    )


def test_a_trace_loads_without_mishkit(tmp_path: Any) -> None:
    path = str(tmp_path / "net.pt")
    with without_deprecations():
        torch.jit.trace(around(mishkit.HMish()).requires_grad_(False), torch.ones(1, 4)).save(path)
    code = f"import sys, torch; torch.jit.load({path!r}); assert 'mishkit' not in sys.modules"
    done = interpreters.python(code, os.environ)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "make",
    [
        *(mishkit.HMish, mishkit.APTx, lambda: around(mishkit.HMish())),
        *(lambda: mishkit.APTx(trainable=True), lambda: around(annealed())),
        *(lambda: mishkit.APTxLayer(4, 4), lambda: nn.Sequential(mishkit.APTxNeuron(4))),
    ],
)
def test_jit_script_is_refused_in_one_line(make: Callable[[], nn.Module]) -> None:
    with without_deprecations(), pytest.raises(RuntimeError) as error:
        torch.jit.script(make())
    message = str(error.value)
    assert "torch.jit.script can't compile mishkit's modules; torch.jit.trace the " in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "make",
    [
        *(mishkit.Mish, mishkit.SiLU, mishkit.GELU, mishkit.Hardswish, mishkit.ReLU),
        *(lambda: mishkit.GELU(approximate="tanh"), lambda: mishkit.Softplus(2.0, 15.0)),
        *(lambda: mishkit.Mish(inplace=True), lambda: leaned()),
    ],
)
def test_jit_script_has_torchs_operators_alone(make: Callable[[], nn.Module]) -> None:
    net = around(make())
    x = torch.randn(5, 4)
    with without_deprecations():
        scripted = torch.jit.script(net)
        file = io.BytesIO()
        torch.jit.save(scripted, file)
        file.seek(0)
        loaded = torch.jit.load(file)
    assert "mishkit::" not in str(scripted.inlined_graph)
    torch.testing.assert_close(loaded(x), net(x))
    assert_trains_alike(loaded, net, torch.randn(7, 4))


def test_a_leaned_model_is_scripted() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 4))
    x = torch.randn(2, 4)
    mishkit.lean(net, x, recompute=False)
    with without_deprecations():
        scripted = torch.jit.script(net)
    assert "aten::silu" in str(scripted.inlined_graph)
    torch.testing.assert_close(scripted(x), net(x))
    assert type(net[1]) is mishkit.SiLU  # the model itself is not changed


def test_a_model_that_recomputes_is_not_scripted() -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.SiLU(), nn.Linear(64, 4))
    mishkit.lean(net, torch.randn(64, 64))
    with without_deprecations():
        with pytest.raises(AttributeError, match=r"mishkit.unswap\(model\) makes it as it was"):
            torch.jit.script(net)
        mishkit.unswap(net)
        torch.jit.script(net)


def annealed() -> nn.Module:
    net = nn.Sequential(nn.ReLU())
    mishkit.Anneal(net, {"relu": "mish"}, 4)
    return net


def leaned() -> nn.Module:
    return mishkit.SiLU(save="output")


# ---- tensors that torch's functions take ----


def jagged() -> Tensor:
    return torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], layout=torch.jagged)


FOREIGN: dict[str, Callable[[], Tensor]] = {
    "jagged": jagged,
    "complex64": lambda: torch.randn(5, dtype=torch.complex64),
    "complex128": lambda: torch.randn(2, 3, dtype=torch.complex128),
    "int64": lambda: torch.arange(-3, 4),
    "bool": lambda: torch.tensor([True, False]),
    "sparse": lambda: torch.eye(3).sub(0.5 * torch.eye(3)).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
}


def parts(x: Tensor) -> Tensor:
    if x.is_nested:
        return x.values()
    return x.to_dense() if x.layout is not torch.strided else x


@pytest.mark.filterwarnings("ignore:Sparse")
@pairwise(
    {
        "case": [case for case in DEFAULTS if case.a.torch_function],
        "name": list(FOREIGN),
        "options": SAVING,
    }
)
def test_what_torch_takes(case: Case, name: str, options: dict[str, Any]) -> None:
    """And what it doesn't take is refused in one line."""
    x = FOREIGN[name]()
    try:
        want = getattr(F, str(case.a.torch_function))(x)
    except Exception:  # whatever torch raises
        with pytest.raises(RuntimeError, match="expected a tensor of float32, float64") as error:
            case.call(x, **options)
        assert str(x.dtype).removeprefix("torch.") in str(error.value)
        assert "\n" not in str(error.value)
        return
    got = case.call(x, **options)
    torch.testing.assert_close(parts(got), parts(want))
    assert (got is x) == bool(options.get("inplace"))


@every_saving
@pytest.mark.parametrize("name", ["silu", "gelu", "relu"])
def test_gradients_of_nested_tensors(name: str, options: dict[str, Any]) -> None:
    x, gradients = jagged(), []
    for call in (lambda t: getattr(mishkit, name)(t, **options), getattr(F, name)):
        leaf = x.detach().clone().requires_grad_()
        parts(call(leaf * 1)).abs().sum().backward()
        assert leaf.grad is not None
        gradients.append(parts(leaf.grad))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_swapped_model_takes_nested_tensors() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 3))
    mishkit.swap(net, {"silu": "h_mish"})
    x = jagged()
    torch.testing.assert_close(net(x).values(), net(x.values()))


# ---- the rest ----


@every_case
def test_kept_bytes_of_tensors_without_an_address(case: Case) -> None:
    def kept(x: Tensor) -> int:
        with mishkit.KeptBytes() as bytes_:
            case.call(case.call(x.sin()).cos())
        return bytes_.total

    want = kept(torch.randn(100, requires_grad=True))
    assert want and kept(torch.randn(100, device="meta", requires_grad=True)) == want
    with FakeTensorMode():
        assert kept(torch.randn(100, requires_grad=True)) == want


def test_everything_public_is_listed_before_it_is_used() -> None:
    code = "import mishkit; assert {*mishkit.__all__} <= {*dir(mishkit)}"
    done = interpreters.python(code, os.environ)
    assert done.returncode == 0, done.stderr


@typical_case
def test_save_is_typed_as_what_it_may_be(case: Case) -> None:
    for public in (
        mishkit.gelu,
        getattr(mishkit, case.a.name),
        getattr(mishkit, case.a.module_name),
    ):
        annotation = inspect.signature(public, eval_str=True).parameters["save"].annotation
        assert annotation == Literal["input", "output", "copy"]


@every_function
def test_the_docstring_says_what_each_argument_is(case: Case) -> None:
    for public in (getattr(mishkit, case.a.name), getattr(mishkit, case.a.module_name)):
        text = inspect.getdoc(public) or ""
        for name in inspect.signature(public).parameters:
            assert f"\n{name} : " in text, (public, name)
