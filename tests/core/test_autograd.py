"""Gradients through autograd: numerically, to every order that is promised, and around hazards."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import (
    DECODED,
    DEFAULTS,
    OTHERS,
    SAVING,
    TURNING,
    Case,
    assert_rounds,
    every_case,
    every_function,
    every_saving,
    from_output,
    typical_case,
)
from pairwise import pairwise
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import mishkit
from mishkit.activation import DTYPES


def points() -> Tensor:
    """On both sides of every bend, and on none of them."""
    x = [-21.3, -5.1, -2.7, -1.7, -1.05, -0.6, -0.2, 0.3, 0.9, 1.6, 4.3, 22.7]
    return torch.tensor(x, dtype=torch.float64).reshape(3, 4).requires_grad_()


def calling(case: Case, options: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """The function of a leaf; in place, on a copy of it."""
    return lambda x: case.call(x * 1 if options.get("inplace") else x, **options)


# ---- numerically ----


@pairwise({"case": DEFAULTS + OTHERS, "dtype": DTYPES, "options": SAVING})
def test_the_gradient_is_the_formulas(
    case: Case, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    x = torch.randn(5, 41).mul(3).to(dtype).requires_grad_()
    (got,) = torch.autograd.grad(calling(case, options)(x).sum(), x)
    assert_rounds(got, case.exactly("df", x.detach()), extra=DECODED[dtype] if options else 0)


@every_case
def test_gradcheck(case: Case) -> None:
    assert gradcheck(
        case.call,
        points(),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@every_case
def test_gradgradcheck(case: Case) -> None:
    assert gradgradcheck(case.call, points(), check_fwd_over_rev=True, check_batched_grad=True)


@every_case
@from_output
def test_gradcheck_from_the_output(case: Case, options: dict[str, Any]) -> None:
    assert gradcheck(calling(case, options), points(), check_batched_grad=True, atol=1e-4)


def derivatives(f: Callable[[Tensor], Tensor], x: Tensor, order: int) -> Tensor:
    y = f(x)
    for _ in range(order):
        if not y.requires_grad:
            return torch.zeros_like(x)
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    return y


@every_case
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_derivatives_of_higher_order(case: Case, order: int) -> None:
    got = derivatives(case.call, points(), order)
    want = derivatives(lambda x: case.exactly("f", x), points(), order)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@every_function
@from_output
def test_a_second_derivative_from_the_output_is_refused(
    case: Case, options: dict[str, Any]
) -> None:
    x = points()
    (gradient,) = torch.autograd.grad(calling(case, options)(x).sum(), x, create_graph=True)
    torch.testing.assert_close(gradient, case.exactly("df", x), rtol=0, atol=1e-6)
    with pytest.raises(RuntimeError, match=rf'mishkit\.{case.a.name}: .*save="input"'):
        gradient.sum().backward()


@every_function
@every_saving
def test_batches_of_gradients(case: Case, options: dict[str, Any]) -> None:
    x = points()
    grads = torch.randn(5, *x.shape, dtype=x.dtype)
    y = calling(case, options)(x)
    (got,) = torch.autograd.grad(y, x, grads, is_grads_batched=True)
    torch.testing.assert_close(got, grads * case.exactly("df", x.detach()), rtol=0, atol=1e-6)


@every_function
@every_saving
def test_an_input_that_needs_no_gradient(case: Case, options: dict[str, Any]) -> None:
    x = torch.randn(5)
    assert not case.call(x.clone(), **options).requires_grad
    with torch.no_grad():
        assert not case.call((points() * 1).float(), **options).requires_grad


# ---- hazards ----


@pairwise(
    {
        "case": DEFAULTS,
        "options": {name: SAVING[name] for name in ("output", "inplace")},
        "overwrite": {
            "add_": lambda y: y.add_(1),
            "through_a_view": lambda y: y[0].zero_(),
            "dropout": nn.Dropout(0.5, inplace=True),
            "relu": nn.ReLU(inplace=True),
            "detached": lambda y: y.detach().mul_(2),
        },
    }
)
def test_overwriting_the_output_is_caught(
    case: Case, options: dict[str, Any], overwrite: Callable[[Tensor], Tensor]
) -> None:
    x = points()
    y = calling(case, options)(x)
    overwrite(y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@every_function
@from_output
def test_overwriting_with_ours_is_caught(case: Case, options: dict[str, Any]) -> None:
    y = calling(case, options)(points())
    with torch.no_grad():
        mishkit.mish(y, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@every_function
def test_what_others_saved_of_the_input_is_known_to_be_overwritten(case: Case) -> None:
    x = points() * 1
    y = x.sin() + case.call(x, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@every_function
@every_saving
def test_overwriting_the_input_afterwards(case: Case, options: dict[str, Any]) -> None:
    """Harmless where the output was saved, caught where the input was."""
    leaf = points()
    x = leaf * 1
    y = case.call(x, **options)
    if not options:
        x.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
    elif y is not x:
        x.zero_()
        y.sum().backward()
        torch.testing.assert_close(leaf.grad, case.exactly("df", points()), rtol=0, atol=1e-6)


@every_function
@every_saving
def test_backward_twice(case: Case, options: dict[str, Any]) -> None:
    x = points()
    y = calling(case, options)(x)
    y.sum().backward(retain_graph=True)
    once = x.grad.clone()
    y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


# ---- what others do with saved tensors ----

HOOKS = {
    "save_on_cpu": lambda: torch.autograd.graph.save_on_cpu(),
    "contiguous": lambda: torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.clone(memory_format=torch.contiguous_format), lambda t: t
    ),
    "reversed": lambda: torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.permute(tuple(reversed(range(t.dim())))).contiguous(),
        lambda t: t.permute(tuple(reversed(range(t.dim())))),
    ),
}
LAYOUTS = {
    "contiguous": lambda x: x.clone(),
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "columns": lambda x: torch.cat([x, x], 2)[:, :, 1::2],
}


# What is saved is laid out by the first, and laid out anew by the second.
@pairwise(
    {
        "case": TURNING,
        "options": SAVING,
        "layout,hooks": list(itertools.product(LAYOUTS, HOOKS)),
    }
)
def test_saved_tensors_may_come_back_in_another_layout(
    case: Case, options: dict[str, Any], layout: str, hooks: str
) -> None:
    leaf = torch.randn(3, 5, 4, 6, dtype=torch.float64).mul(2).requires_grad_()
    with HOOKS[hooks]():
        y = case.call(LAYOUTS[layout](leaf), **options)
    (got,) = torch.autograd.grad(y.square().sum(), leaf)
    (want,) = torch.autograd.grad(case.call(LAYOUTS[layout](leaf)).square().sum(), leaf)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pairwise(
    {
        "case": DEFAULTS,
        "options": SAVING,
        "use_reentrant": {"reentrant": True, "not_reentrant": False},
    }
)
def test_checkpoint(case: Case, options: dict[str, Any], use_reentrant: bool) -> None:
    block = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8))

    def run(x: Tensor) -> Tensor:
        return block[1](case.call(block[0](x), **options))

    def gradients(y: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(y.square().sum(), [x, *block.parameters()]))

    x = torch.randn(4, 8, requires_grad=True)
    want = gradients(run(x))
    block.zero_grad()
    y = checkpoint(run, x, use_reentrant=use_reentrant)
    y.square().sum().backward()
    got = [x.grad, *(p.grad for p in block.parameters())]
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


@pairwise({"case": DEFAULTS, "options": SAVING, "dtype": [torch.bfloat16, torch.float16]})
def test_autocast(case: Case, options: dict[str, Any], dtype: torch.dtype) -> None:
    first, second = nn.Linear(8, 32), nn.Linear(32, 4)
    x = torch.randn(16, 8)
    with torch.autocast("cpu", dtype=dtype):
        h = first(x)
        y = case.call(h, **options)
        assert y.dtype == dtype
        z = second(y)
    z.float().square().sum().backward()
    got = [p.grad.clone() for p in (*first.parameters(), *second.parameters())]
    first.zero_grad(), second.zero_grad()
    second(case.call(first(x))).square().sum().backward()
    want = [p.grad for p in (*first.parameters(), *second.parameters())]
    for g, w in zip(got, want, strict=True):
        assert g.dtype == torch.float32
        assert (g - w).norm() <= 0.05 * w.norm()


@every_saving
def test_backward_in_many_threads(options: dict[str, Any]) -> None:
    """Forward and backward of one module from several threads, as a server would."""
    module = nn.Sequential(nn.Linear(32, 64), mishkit.Mish(**options), nn.Linear(64, 8))
    batches = [torch.randn(16, 32) for _ in range(8)]

    def gradient(batch: Tensor) -> Tensor:
        x = batch.clone().requires_grad_()
        return torch.autograd.grad(module(x).square().sum(), x)[0]

    want = [gradient(batch) for batch in batches]
    got: list[Tensor | None] = [None] * len(batches)

    def work(i: int) -> None:
        for _ in range(20):
            got[i] = gradient(batches[i])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


@typical_case
@every_saving
def test_hooks_and_retained_gradients(case: Case, options: dict[str, Any]) -> None:
    seen = []
    x = points()
    h = x * 1
    y = case.call(h, **options)
    y.retain_grad()
    y.register_hook(seen.append)
    y.sum().backward()
    assert len(seen) == 1 and torch.equal(y.grad, torch.ones_like(y))
    torch.testing.assert_close(x.grad, case.exactly("df", points()), rtol=0, atol=1e-6)
