"""The public functions: torch's own where torch has them, their options, and misuse."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from common import (
    DEFAULTS,
    FURTHER,
    KERNELS,
    LAYOUTS,
    TYPICAL,
    Case,
    Engine,
    assert_rounds,
    assert_same_bits,
    every_case,
    every_dtype,
    every_function,
    every_saving,
    every_undecodable,
    laid_out,
    typical_case,
)
from pairwise import pairwise
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import mishkit
from mishkit.activation import DTYPES
from mishkit.functions import ACTIVATIONS

TORCHS = [case for case in DEFAULTS if case.a.torch_function]


def both(case: Case, **options: Any) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Our function and torch's."""
    name = case.a.torch_function
    assert name is not None
    return getattr(mishkit, case.a.name), getattr(F, name)


# ---- values ----


@every_dtype
@every_case
def test_the_function_is_its_formula(case: Case, dtype: torch.dtype) -> None:
    x = torch.randn(4, 33).mul(4).to(dtype)
    assert_rounds(case.call(x), case.exactly("f", x))


@pytest.mark.parametrize("case", TORCHS, ids=str)
@every_saving
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_torchs_own(case: Case, options: dict[str, Any], dtype: torch.dtype) -> None:
    ours, theirs = both(case)
    x = torch.randn(40, 33, dtype=dtype).mul(4)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, want = ours(a * 1, **options), theirs(b * 1)
    torch.testing.assert_close(got, want)
    grad = torch.randn_like(x)
    got.backward(grad), want.backward(grad)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=5e-4)


@pytest.mark.parametrize("arguments", [(2,), (2, 30), (-1.5, 20.0), (0.1, math.inf)], ids=str)
@every_saving
def test_softplus_takes_torchs_arguments(
    arguments: tuple[float, ...], options: dict[str, Any]
) -> None:
    x = torch.linspace(-30, 30, 501, dtype=torch.float64)
    want = F.softplus(x, *arguments)
    torch.testing.assert_close(mishkit.softplus(x.clone(), *arguments, **options), want)
    named = dict(zip(("beta", "threshold"), arguments, strict=False))
    torch.testing.assert_close(mishkit.softplus(input=x.clone(), **named, **options), want)


@pytest.mark.parametrize("arguments", [(2, 3), (0.1, 0.5), (1, -2.5), (-2, -30)], ids=str)
@pytest.mark.parametrize("options", [{}, {"inplace": True}], ids=str)
def test_softplus_with_a_low_threshold(
    arguments: tuple[float, ...], options: dict[str, Any]
) -> None:
    """Where f jumps."""
    x = torch.linspace(-30, 30, 501, dtype=torch.float64)
    want = F.softplus(x, *arguments)
    torch.testing.assert_close(mishkit.softplus(x.clone(), *arguments, **options), want)


@every_dtype
def test_softplus_without_a_threshold_does_not_overflow(dtype: torch.dtype) -> None:
    x = torch.tensor([-1e4, 89.0, 750.0, 3e4]).to(dtype).requires_grad_()
    for call in (mishkit.softplus, torch.compile(mishkit.softplus, backend="eager")):
        for options in ({}, {"save": "output"}):
            y = call(x, threshold=math.inf, **options)
            assert torch.equal(y, x.clamp_min(0))
            (gradient,) = torch.autograd.grad(y.sum(), x)
            assert gradient.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@every_saving
def test_gelu_takes_torchs_arguments(approximate: str, options: dict[str, Any]) -> None:
    x = torch.linspace(-30, 30, 501, dtype=torch.float64)
    want = F.gelu(x, approximate=approximate)
    torch.testing.assert_close(mishkit.gelu(x, approximate=approximate, **options), want)


@every_saving
def test_inplace_may_follow_by_position(options: dict[str, Any]) -> None:
    x = torch.randn(5)
    for call in (mishkit.relu, mishkit.silu, mishkit.mish):
        y = x.clone()
        assert call(y, True) is y
    y = x.clone()
    assert mishkit.softplus(y, 1, 20, True) is y


@every_function
def test_the_signature_and_the_docstring(case: Case) -> None:
    function = getattr(mishkit, case.a.name)
    names = list(inspect.signature(function).parameters)
    assert names[0] == "input" and {"inplace", "save", "out"} <= set(names)
    assert names[1 : 1 + len(case.parameters)] == [p.name for p in case.a.parameters]
    assert function.__name__ == case.a.name
    assert function.__module__ in ("mishkit", "mishkit.functional")
    assert case.a.source in function.__doc__


def test_everything_public_is_named() -> None:
    expected = {*ACTIVATIONS, *(a.module_name for a in ACTIVATIONS.values())}
    assert expected <= set(mishkit.__all__)
    assert all(hasattr(mishkit, name) for name in mishkit.__all__)


# ---- inplace= ----


@pairwise(
    {
        "case": DEFAULTS,
        "dtype": DTYPES,
        "needs_grad": {"without_grad": False, "with_grad": True},
    }
)
def test_in_place(case: Case, dtype: torch.dtype, needs_grad: bool) -> None:
    leaf = torch.randn(3, 47).mul(4).to(dtype).requires_grad_(needs_grad)
    x = leaf * 1
    y = case.call(x, inplace=True)
    assert y is x
    assert_same_bits(y.detach(), case.call(leaf).detach())
    assert y.requires_grad == needs_grad


@pairwise(
    {
        "kernels": KERNELS,
        "case": TYPICAL,
        "layout": [name for name in LAYOUTS if not re.match("expanded|windows", name)],
    }
)
def test_in_place_on_any_layout(kernels: Engine, case: Case, layout: str) -> None:
    x = laid_out(layout, torch.float32)
    want, strides, version = case.call(x), x.stride(), x._version
    assert case.call(x, inplace=True) is x
    assert x.stride() == strides and x._version > version
    assert_same_bits(x, want)


@typical_case
@pytest.mark.parametrize(
    "layout", ["columns", "strided_row", "transposed", "channels_last_columns"]
)
def test_in_place_on_a_view_changes_its_base(case: Case, layout: str) -> None:
    """Gradients reach the base, around the view and through it."""
    view = laid_out(layout, torch.float64)
    leaf = torch.randn(view.untyped_storage().nbytes() // 8, dtype=torch.float64)
    leaf.requires_grad_()
    place = view.shape, view.stride(), view.storage_offset()
    weight = torch.linspace(-1, 1, leaf.numel(), dtype=torch.float64)
    gradients = []
    for inplace in (True, False):
        base = leaf * 1
        y = case.call(torch.as_strided(base, *place), inplace=inplace)
        if not inplace:
            base = base.index_put((torch.as_strided(torch.arange(leaf.numel()), *place),), y)
        gradients += torch.autograd.grad((base * weight).sum(), leaf)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-6)


@typical_case
def test_in_place_within_no_grad_and_inference_mode(case: Case) -> None:
    leaf = torch.randn(5, requires_grad=True)
    want = case.call(leaf.detach())
    with torch.no_grad():  # as torch's own: nothing is recorded, so a leaf may change
        assert case.call(leaf, inplace=True) is leaf
    assert_same_bits(leaf.detach(), want)
    with torch.inference_mode():
        x = torch.randn(5)
        want = case.call(x)
        for options in ({"save": "output"}, {"out": torch.empty(5)}, {"inplace": True}):
            assert_same_bits(case.call(x, **options), want)


# ---- out= ----


@every_dtype
@every_function
def test_out(case: Case, dtype: torch.dtype) -> None:
    x = torch.randn(3, 47).mul(4).to(dtype)
    want, out = case.call(x), torch.empty_like(x)
    assert case.call(x, out=out) is out
    assert_same_bits(out, want)
    assert case.call(x, out=x) is x
    assert_same_bits(x, want)


@pairwise({"kernels": KERNELS, "case": TYPICAL, "layout": list(LAYOUTS)})
def test_out_of_another_layout(kernels: Engine, case: Case, layout: str) -> None:
    x = laid_out(layout, torch.float32)
    want = case.call(x)
    for out in (
        torch.empty(x.shape),
        torch.empty(x.shape[::-1]).permute(tuple(reversed(range(x.dim())))),
        torch.empty(*x.shape, 2)[..., 1],
    ):
        strides = out.stride()
        assert case.call(x, out=out) is out
        assert out.stride() == strides
        assert_same_bits(out, want)


@typical_case
def test_out_counts_as_a_change(case: Case) -> None:
    """What autograd saved of `out` is known to be overwritten."""
    out = torch.randn(5, requires_grad=True) * 1
    y = out.sin()
    with torch.no_grad():
        case.call(torch.randn(5), out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@typical_case
def test_out_that_autograd_can_not_save(case: Case) -> None:
    """An inference tensor has no version that could be counted."""
    with torch.inference_mode():
        out = torch.empty(5)
    x = torch.randn(5)
    assert case.call(x, out=out) is out
    assert_same_bits(out, case.call(x))


@pairwise({"kernels": KERNELS, "case": TYPICAL})
def test_operators_check_out(kernels: Engine, case: Case) -> None:
    """A call that writes leaves the checks to its operator."""
    write = getattr(torch.ops.mishkit, f"{case.a.name}_out")
    for mode in (nullcontext(), FakeTensorMode()):
        with mode:
            x = torch.ones(2, 3)
            for out in (torch.ones(3), torch.ones(3, 2), torch.ones(2, 3).double()):
                with pytest.raises((RuntimeError, ValueError), match="out must"):
                    write(x, out, *case.parameters)


# ---- save="copy" ----


@pairwise(
    {
        "kernels": KERNELS,
        "case": [*DEFAULTS, *FURTHER],
        "inplace": [False, True],
        "dtype": list(DTYPES),
    }
)
def test_later_code_may_write_where_a_copy_is_kept(
    kernels: Engine, case: Case, inplace: bool, dtype: torch.dtype
) -> None:
    """Over the input and the output; first and second derivatives are those from the input."""
    leaf = torch.randn(3, 5, dtype=dtype, requires_grad=True)
    results = []
    for options in ({}, {"save": "copy", "inplace": inplace}):
        x = leaf * 1
        y = case.call(x, **options)
        assert (y is x) == options.get("inplace", False)
        if not options:
            y = y * 2
        elif inplace:
            y.mul_(2)
        else:
            x.zero_()
            y.mul_(2)
        first = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)[0]
        results.append((first, torch.autograd.grad(first.square().sum(), leaf)[0]))
    for got, want in zip(*results, strict=True):
        assert_same_bits(got, want)


@typical_case
def test_a_copy_is_kept_of_views_too(case: Case) -> None:
    results = []
    for options in ({}, {"save": "copy", "inplace": True}):
        leaf = torch.linspace(-3, 3, 24).view(4, 6).requires_grad_()
        base = leaf * 1
        part = case.call(base[:, 1:4], **options)
        whole = torch.cat((base[:, :1], part, base[:, 4:]), 1) if not options else base
        results.append((whole, torch.autograd.grad(whole.square().sum(), leaf)[0]))
    for got, want in zip(*results, strict=True):
        assert_same_bits(got, want)


# ---- misuse ----


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


MEMORY = torch.zeros(100)
MISUSE: dict[str, tuple[Callable[[Callable[..., Tensor]], object], str]] = {
    "save": (
        lambda f: f(torch.ones(3), save="nonsense"),
        'save must be "input", "output" or "copy"',
    ),
    "in place on a leaf": (lambda f: f(leaf(3), inplace=True), "leaf that requires grad"),
    "in place on a leaf's output": (
        lambda f: f(leaf(3), inplace=True, save="output"),
        "leaf that requires grad",
    ),
    "expanded in place": (
        lambda f: f(torch.ones(1, 3).expand(4, 3), inplace=True),
        "share one place in memory",
    ),
    "expanded in place with grad": (
        lambda f: f((leaf(1, 3) * 1).expand(4, 3), inplace=True),
        "share one place in memory",
    ),
    "expanded out": (
        lambda f: f(torch.ones(4, 3), out=torch.ones(1, 3).expand(4, 3)),
        "share one place in memory",
    ),
    "overlap": (lambda f: f(MEMORY[:50], out=MEMORY[10:60]), "overlap in part"),
    "overlap from behind": (lambda f: f(MEMORY[10:60], out=MEMORY[:50]), "overlap in part"),
    "out's shape": (lambda f: f(torch.ones(3), out=torch.ones(1, 3)), "out must be"),
    "out's dtype": (lambda f: f(torch.ones(3), out=torch.ones(3).double()), "out must be"),
    "out's device": (lambda f: f(torch.ones(3), out=torch.ones(3, device="meta")), "out must be"),
    "out and grad": (lambda f: f(leaf(3), out=torch.ones(3)), "doesn't support autograd"),
    "out with grad": (lambda f: f(torch.ones(3), out=leaf(3)), "doesn't support autograd"),
    "out and inplace": (
        lambda f: f(torch.ones(3), inplace=True, out=torch.ones(3)),
        "exclude each other",
    ),
    "unknown name": (lambda f: f(torch.ones(3), slope=2), "unexpected keyword argument"),
    "no tensor": (lambda f: f(3.0), "must be a tensor, not float"),
    "a list": (lambda f: f([1.0], save="output"), "must be a tensor, not list"),
}


def assert_one_line(error: pytest.ExceptionInfo[BaseException], name: str, message: str) -> None:
    lines = str(error.value).splitlines()
    assert re.search(message, lines[0]), lines
    # torch appends where in C++ an error came from; a user's line is the first.
    assert name in lines[0] and len(lines[0]) < 160


@every_function
@pytest.mark.parametrize("misuse", MISUSE)
def test_misuse_says_so_in_one_line(case: Case, misuse: str) -> None:
    call, message = MISUSE[misuse]
    with pytest.raises((RuntimeError, ValueError, TypeError)) as error:
        call(getattr(mishkit, case.a.name))
    assert_one_line(error, case.a.name, message)


NOT_TAKEN = [
    torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


@pytest.mark.parametrize("case", [c for c in DEFAULTS if c.a.torch_function is None], ids=str)
@pytest.mark.parametrize("dtype", NOT_TAKEN, ids=str)
def test_other_dtypes_are_refused(case: Case, dtype: torch.dtype) -> None:
    """Where torch has no such function; test_tracing.py has those that it has."""
    x = torch.ones(3).to(dtype)
    for options in ({}, {"save": "output"}, {"inplace": True}, {"out": torch.empty_like(x)}):
        with pytest.raises(RuntimeError) as error:
            case.call(x, **options)
        assert_one_line(error, f"mishkit.{case.a.name}", "expected a tensor of float32, float64")
        assert str(error.value).endswith(f"got {str(dtype).removeprefix('torch.')}")


@every_function
def test_tensors_of_operators_must_match(every_engine: Engine, case: Case) -> None:
    if every_engine.name == "plain":
        pytest.skip("torch's own operators broadcast")
    x, wrong = torch.ones(8), torch.ones(7)
    _, side = every_engine.operator(case, "_packed")(x)
    calls = [("_backward", (wrong, x)), ("_double_backward", (x, wrong, x))]
    calls += [("_backward_packed", (wrong, x, side)), ("_backward", (x.double(), x))]
    if len(side):
        calls += [("_backward_packed", (x, x, bad)) for bad in (side[:0], side.int())]
    for ending, arguments in calls:
        with pytest.raises(RuntimeError, match=rf"mishkit\.{case.a.name}: the (tensors|side)"):
            every_engine.operator(case, ending)(*arguments)


@every_function
def test_parameters_that_no_formula_takes(case: Case) -> None:
    for p in case.a.parameters:
        for condition, values in {
            "must be finite": (math.nan, -math.inf, *(() if p.infinite else (math.inf,))),
            "must not be zero": (0,) if p.nonzero else (),
            "must be positive": (0, -1.5) if p.positive else (),
        }.items():
            for value in values:
                for call in (
                    lambda **given: getattr(mishkit, case.a.name)(torch.ones(3), **given),
                    getattr(mishkit, case.a.module_name),
                ):
                    with pytest.raises(ValueError, match=f"{p.name} {condition}") as error:
                        call(**{p.name: value})
                    assert_one_line(error, f"mishkit.{case.a.name}", condition)


@every_undecodable
def test_where_it_does_not_give_the_gradient_the_output_is_refused(case: Case) -> None:
    """And nothing else is: the reason and the cure are named."""
    x = torch.randn(5, 3)
    named = {p.name: v for p, v in zip(case.a.parameters, case.parameters, strict=True)}
    module = functools.partial(getattr(mishkit, case.a.module_name), **named)
    for call in (
        lambda: case.call(x, save="output"),
        lambda: case.call(leaf(3), save="output"),
        lambda: case.call(leaf(3) * 1, inplace=True),
        lambda: module(save="output"),
        lambda: module(inplace=True)(leaf(3) * 1),
    ):
        with pytest.raises(ValueError, match=r" where .* alone") as error:
            call()
        assert f"mishkit.{case.a.name}" in str(error.value) and "\n" not in str(error.value)
    assert_rounds(case.call(x), case.exactly("f", x))
    assert_rounds(module(inplace=True)(x.clone()), case.exactly("f", x))
    assert_same_bits(case.call(x, out=torch.empty_like(x)), case.call(x))


@every_function
@pytest.mark.parametrize("inplace", ["tanh", 1, 2.5])
def test_a_value_that_stands_in_the_place_of_inplace(case: Case, inplace: object) -> None:
    """As in gelu(x, "tanh"): nothing is written over."""
    for x in (torch.randn(5), torch.randn(5, requires_grad=True) * 1):
        before, version = x.detach().clone(), x._version
        for call in (
            lambda x=x: getattr(mishkit, case.a.name)(x, *case.parameters, inplace),
            lambda x=x: case.call(x, inplace=inplace, save="output"),
            lambda: getattr(mishkit, case.a.module_name)(*case.parameters, inplace=inplace),
        ):
            with pytest.raises(TypeError) as error:
                call()
            assert_one_line(error, "inplace must be True or False", repr(inplace))
        assert_same_bits(x.detach(), before)
        assert x._version == version


def test_gelu_refuses_another_approximation() -> None:
    with pytest.raises(ValueError, match='approximate must be "none" or "tanh"'):
        mishkit.gelu(torch.ones(3), approximate="erf")


@typical_case
def test_lazily_negated_tensors(case: Case) -> None:
    """A tensor whose sign torch flips on reading, as the imaginary part of a conjugate."""
    x = torch.randn(5, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    assert_same_bits(case.call(x), case.call(x.resolve_neg()))
    before = x.clone()
    for options in ({"inplace": True}, {"out": x}):
        with pytest.raises(RuntimeError, match="lazily negated"):
            case.call(x, **options)
        assert_same_bits(x.clone(), before)


def test_dtypes_are_those_of_the_documentation() -> None:
    assert all(str(d).removeprefix("torch.") in mishkit.functional.__doc__ for d in DTYPES)
