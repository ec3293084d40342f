"""torch.compile, torch.export and the tools below them, against eager calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

import pytest
import torch
from common import (
    DEFAULTS,
    JUMPING,
    OTHERS,
    SAVING,
    TURNLESS,
    TYPICAL,
    Case,
    every_function,
    every_saving,
    laid_out,
    mostly_slow,
    typical_case,
)
from pairwise import pairwise
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck

import mishkit
from mishkit.activation import DTYPES
from mishkit.ops.functions import SCHEMAS

pytestmark = pytest.mark.usefixtures("fresh_compiler")
slow = pytest.mark.slow

# As far as two roundings of an output can move the gradient that is decoded from it.
CLOSE = {"rtol": 1e-4, "atol": 5e-4}


def compiled(f: Callable[..., Any], backend: str = "aot_eager", **options: Any) -> Any:
    return torch.compile(f, fullgraph=True, backend=backend, **options)


def calling(case: Case, options: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """A function of a leaf with something before and after, to fuse with."""
    return lambda x: case.call(x * 1.5, **options) + 1


def results(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The value, and the gradient for an uneven gradient of the value."""
    ((y, gradient),) = results_of_all(lambda leaf: (f(leaf),), [x])
    return y, gradient


def results_of_all(
    f: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """The same of functions that are called together, each of its own input."""
    leaves = [
        x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs
    ]
    values = f(*leaves)
    gradients = torch.autograd.grad(sum(_weighed(y).sum() for y in values), leaves)
    return [(y.detach(), gradient) for y, gradient in zip(values, gradients, strict=True)]


def _weighed(y: Tensor) -> Tensor:
    return y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)


def together(functions: Sequence[Callable[[Tensor], Tensor]]) -> Callable[..., Sequence[Tensor]]:
    """One graph of several functions takes a fraction of the time of a graph each."""
    return lambda *inputs: [f(x) for f, x in zip(functions, inputs, strict=True)]


def assert_agree(got: tuple[Tensor, ...], want: tuple[Tensor, ...], name: str = "") -> None:
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, msg=lambda message: f"{name}: {message}", **CLOSE)


# ---- torch.compile ----


@pytest.mark.parametrize("save", mostly_slow(["input", "output"], 1))
@pytest.mark.parametrize(
    "cases",
    [pytest.param(DEFAULTS, id="defaults"), pytest.param(OTHERS, id="others", marks=[slow])],
)
def test_forward_and_backward(cases: list[Case], save: str) -> None:
    """Every function; from the output, `test_layouts` and `test_dtypes` have the typical ones."""
    f = together([calling(case, {"save": save}) for case in cases])
    inputs = [torch.randn(5, 33).mul(3) for _ in cases]
    pairs = zip(results_of_all(compiled(f), inputs), results_of_all(f, inputs), strict=True)
    for case, (got, want) in zip(cases, pairs, strict=True):
        assert_agree(got, want, str(case))


mish_mostly = pytest.mark.parametrize("case", mostly_slow(TYPICAL, 1), ids=str)
saving_mostly = pytest.mark.parametrize(
    "options",
    [pytest.param(o, marks=slow) if i == "inplace" else o for i, o in SAVING.items()],
    ids=SAVING,
)


@mish_mostly
@every_saving
def test_inductor(case: Case, options: dict[str, Any]) -> None:
    """Where code is really generated; what it is made of is the same for all functions."""
    f, x = calling(case, options), torch.randn(5, 33).mul(3)
    assert_agree(results(compiled(f, "inductor"), x), results(f, x))


TURNS = {name: list(islice(cycle(TYPICAL), i, i + 5)) for i, name in enumerate(SAVING)}
"""For each way to save, what is called with each layout or dtype in turn, so that any two meet."""
every_turn = pytest.mark.parametrize(
    ("options", "cases"), [(SAVING[name], cases) for name, cases in TURNS.items()], ids=SAVING
)


@every_turn
def test_dtypes(options: dict[str, Any], cases: list[Case]) -> None:
    f = together([calling(case, options) for case in cases[: len(DTYPES)]])
    inputs = [torch.randn(5, 33).mul(3).to(dtype) for dtype in DTYPES]
    pairs = zip(results_of_all(compiled(f), inputs), results_of_all(f, inputs), strict=True)
    for dtype, (got, want) in zip(DTYPES, pairs, strict=True):
        for g, w in zip(got, want, strict=True):
            assert g.dtype == dtype
            torch.testing.assert_close(g, w, rtol=0.02, atol=0.02)


@mish_mostly
@saving_mostly
def test_dynamic_shapes(case: Case, options: dict[str, Any]) -> None:
    f = calling(case, options)
    once = compiled(f, dynamic=True)
    for shape in ((3, 7), (4, 16), (9, 5)):
        x = torch.randn(shape).mul(3)
        with torch.compiler.set_stance("default" if shape == (3, 7) else "fail_on_recompile"):
            got = results(once, x)
        assert_agree(got, results(f, x))


@every_turn
def test_layouts(options: dict[str, Any], cases: list[Case]) -> None:
    layouts = ["channels_last", "transposed", "columns", "scalar", "empty"]
    f = together([calling(case, options) for case in cases])
    inputs = [laid_out(layout, torch.float32) for layout in layouts]
    pairs = zip(results_of_all(compiled(f), inputs), results_of_all(f, inputs), strict=True)
    for layout, case, (got, want) in zip(layouts, cases, pairs, strict=True):
        assert_agree(got, want, layout)
        assert got[0].stride() == want[0].stride(), layout
        # The gradient is laid out as torch's operators do it: copy_ hands it on as it comes, and
        # softplus's own, which is in the formula, was contiguous in torch 2.10.
        if not options.get("inplace") and case.a.name != "softplus":
            assert got[1].stride() == want[1].stride(), layout


# Of the functions, `test_forward_and_backward` has all, and `test_a_network` has them in place.
@mish_mostly
def test_without_grad(case: Case) -> None:
    x = torch.randn(5, 33)
    want = case.call(x)
    with torch.no_grad():
        for options in ({}, {"save": "output"}):
            got = compiled(lambda x, o=options: case.call(x, **o))(x)
            torch.testing.assert_close(got, want)
        over, out = x.clone(), torch.empty_like(x)
        assert compiled(lambda x: case.call(x, inplace=True))(over) is over
        assert compiled(lambda x, out: case.call(x, out=out))(x, out) is out
    torch.testing.assert_close(over, want)
    torch.testing.assert_close(out, want)


@typical_case
def test_the_input_is_changed_in_place(case: Case) -> None:
    """With grad too: what the caller holds, and what a view of it shows."""

    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        h = x * 1
        view = h[1:]
        return case.call(h, inplace=True), view

    for run in (f, compiled(f)):
        y, view = run(torch.randn(5, requires_grad=True))
        torch.testing.assert_close(view, y[1:])


@slow
@every_saving
def test_a_network(options: dict[str, Any]) -> None:
    acts = [getattr(mishkit, case.a.module_name)(**options) for case in DEFAULTS]
    net = nn.Sequential(nn.Linear(6, 6), *(m for a in acts for m in (a, nn.Linear(6, 6))))
    x = torch.randn(4, 6)
    assert_agree(results(compiled(net), x), results(net, x))


@typical_case
def test_misuse_is_told_under_compile_too(case: Case) -> None:
    with pytest.raises(Exception, match='save must be "input", "output" or "copy"'):
        compiled(lambda x: case.call(x, save="nonsense"))(torch.ones(3))
    with pytest.raises(Exception, match="expected a tensor of float32, float64"):
        compiled(case.call)(torch.ones(3, dtype=torch.int64))


@pytest.mark.parametrize("case", mostly_slow(TURNLESS + JUMPING, 2), ids=str)
def test_refusals_reach_the_user_of_compiled_code(case: Case) -> None:
    for options in ({"save": "output"}, {"inplace": True}):
        with pytest.raises(Exception, match=r" where .* alone"):
            compiled(calling(case, options))(torch.randn(3, requires_grad=True))
    x = torch.randn(3)
    torch.testing.assert_close(compiled(calling(case, {}))(x), calling(case, {})(x))


WRITES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "over the output": lambda x, y: y.mul_(2),
    "over a view of it": lambda x, y: y[1:].zero_(),
    "a residual": lambda x, y: y.add_(x),
    "through out=": lambda x, y: torch.sin(x.detach(), out=y.detach()),
}
# Where compiled code keeps the output.
DECODED = [case for case in TYPICAL if not case.a.iterates(*case.parameters)]
decoded_mostly = pytest.mark.parametrize("case", mostly_slow(DECODED, 1), ids=str)
decoded_case = pytest.mark.parametrize("case", DECODED, ids=str)
backends = pytest.mark.parametrize("backend", mostly_slow(["eager", "aot_eager"], ["aot_eager"]))


@backends
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@decoded_mostly
def test_an_output_written_over_is_refused(
    case: Case, write: Callable[[Tensor, Tensor], object], backend: str
) -> None:
    """As uncompiled: the output was kept for backward. In place, what is kept is out of reach."""

    def kept(x: Tensor) -> Tensor:
        y = case.call(x, save="output")
        write(x, y)
        return y

    x = torch.randn(7, requires_grad=True)
    for run in (kept, compiled(kept, backend)):
        with pytest.raises(Exception, match="modified by an inplace operation"):
            run(x).sum().backward()

    def in_place(x: Tensor, **options: Any) -> Tensor:
        y = case.call(x * 1, **options)
        write(x, y)
        return y

    writing = functools.partial(in_place, inplace=True)
    assert_agree(results(compiled(writing, backend), x), results(in_place, x))


@backends
def test_an_output_written_over_after_compiled_code(backend: str) -> None:
    y = compiled(lambda x: mishkit.mish(x, save="output"), backend)(torch.randn(5).requires_grad_())
    with torch.no_grad():
        y.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@decoded_case
def test_second_derivatives_from_the_output_are_refused(case: Case) -> None:
    """Also where they would be lost in a sum: with backends that leave autograd to torch."""
    x = torch.randn(5, requires_grad=True)
    y = compiled(lambda x: case.call(x, save="output"), "eager")(x)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="a second derivative needs"):
        (y + gradient.square()).sum().backward()


# ---- torch.export ----


def assert_exported(case: Case, strict: bool, options: dict[str, Any]) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return case.call(x * 1, **options)

    x = torch.randn(4, 8)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Net(), (x,), dynamic_shapes=({0: batch},), strict=strict)
    for form in (program, program.run_decompositions()):
        called = [node.target for node in form.graph.nodes if node.op == "call_function"]
        assert called and {target.namespace for target in called} == {"aten"}
        for count in (4, 7):
            x = torch.randn(count, 8)
            torch.testing.assert_close(form.module()(x), case.call(x))


@pytest.mark.parametrize("case", mostly_slow(DEFAULTS + OTHERS, TYPICAL), ids=str)
def test_export_has_torchs_operators_alone(case: Case) -> None:
    assert_exported(case, strict=False, options={})


@mish_mostly
@every_saving
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non_strict"])
def test_export_in_every_way(case: Case, strict: bool, options: dict[str, Any]) -> None:
    assert_exported(case, strict, options)


# ---- the operators ----

SAMPLES: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: torch.randn(3, 5),
    "channels_last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "gaps": lambda: torch.randn(4, 6)[:, ::2],
    "empty": lambda: torch.randn(0, 3),
}


def arguments(case: Case, ending: str, x: Tensor) -> tuple[Any, ...]:
    """What the operator of that ending takes, from its schema."""
    operator = getattr(torch.ops.mishkit, case.a.name + ending).default
    y, side = getattr(torch.ops.mishkit, case.a.name + "_packed")(x, *case.parameters)
    known = {"input": x, "output": y, "side": side, "out": torch.empty_like(x)}
    tensors = [a.name for a in operator._schema.arguments if str(a.type) == "Tensor"]
    # A gradient need not be laid out as the input.
    return *(known.get(name, torch.randn(x.shape)) for name in tensors), *case.parameters


def check_operator(case: Case, ending: str, sample: str) -> None:
    operator = getattr(torch.ops.mishkit, case.a.name + ending).default
    opcheck(operator, arguments(case, ending, SAMPLES[sample]()))


# What is registered is the same for all values of the parameters.
@pytest.mark.parametrize("case", mostly_slow(DEFAULTS, 2), ids=str)
@pytest.mark.parametrize("ending", SCHEMAS)
def test_opcheck(case: Case, ending: str) -> None:
    check_operator(case, ending, "channels_last")


@pairwise({"case": TYPICAL, "ending": list(SCHEMAS), "sample": list(SAMPLES)})
def test_opcheck_of_every_layout(case: Case, ending: str, sample: str) -> None:
    check_operator(case, ending, sample)


@pairwise({"case": DEFAULTS, "ending": list(SCHEMAS), "sample": list(SAMPLES)})
def test_fake_and_meta_tensors(case: Case, ending: str, sample: str) -> None:
    """The same shapes, dtypes and strides as real ones, without computing."""
    operator = getattr(torch.ops.mishkit, case.a.name + ending).default
    real = arguments(case, ending, SAMPLES[sample]())

    def described(result: Any) -> list[Any]:
        tensors = result if isinstance(result, tuple) else (result,)
        return [(t.shape, t.dtype, t.stride()) for t in tensors if t is not None]

    want = described(operator(*real))
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) if isinstance(t, Tensor) else t for t in real]
        assert described(operator(*fake)) == want
    meta = [t.to("meta") if isinstance(t, Tensor) else t for t in real]
    assert described(operator(*meta)) == want


@every_function
@every_saving
def test_public_calls_on_meta_tensors(case: Case, options: dict[str, Any]) -> None:
    leaf = torch.randn(4, 3, device="meta", requires_grad=True)
    y = case.call(leaf * 1, **options)
    y.sum().backward()
    assert y.is_meta and y.shape == (4, 3) and leaf.grad is not None
    assert leaf.grad.is_meta and leaf.grad.shape == (4, 3)


@every_function
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(case: Case, mode: str) -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        y = case.call(x)
        return y, torch.autograd.grad(y.sum(), x)[0]

    traced = make_fx(f, tracing_mode=mode)(torch.randn(3, 5, requires_grad=True))
    x = torch.randn(3, 5, requires_grad=True)
    assert_agree(traced(x), f(x))


def test_typical_cases_are_what_they_claim() -> None:
    assert any(c.turn is not None for c in TYPICAL) and any(c.parameters for c in TYPICAL)
