"""torch.func and forward mode: every derivative that they ask for, whatever the call saves."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from common import DEFAULTS, SAVING, Case, every_case, every_function, every_saving
from pairwise import pairwise
from torch import Tensor, nn
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)

import mishkit


def points() -> Tensor:
    return torch.tensor([-5.1, -2.7, -1.7, -1.05, -0.6, 0.3, 0.9, 4.3], dtype=torch.float64)


def assert_close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def calling(case: Case, options: dict[str, Any]) -> Any:
    return lambda x: case.call(x * 1 if options else x, **options)


@every_case
@every_saving
def test_first_derivatives(case: Case, options: dict[str, Any]) -> None:
    f, x = calling(case, options), points()
    df = case.exactly("df", x)
    tangent = torch.randn_like(x)
    assert_close(vmap(f)(x), case.exactly("f", x))
    assert_close(grad(lambda x: f(x).sum())(x), df)
    assert_close(vmap(grad(f))(x), df)
    assert_close(jacrev(f)(x), df.diag())
    assert_close(jacfwd(f)(x), df.diag())
    assert_close(jvp(f, (x,), (tangent,))[1], tangent * df)
    assert_close(vjp(f, x)[1](tangent)[0], tangent * df)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the attributes of its graph
        assert_close(linearize(f, x)[1](tangent), tangent * df)


@every_case
@every_saving
def test_second_derivatives(case: Case, options: dict[str, Any]) -> None:
    f, x = calling(case, options), points()
    d2f = case.exactly("d2f", x)
    total = lambda x: f(x).sum()  # noqa: E731
    assert_close(hessian(total)(x), d2f.diag())
    assert_close(jacrev(jacrev(total))(x), d2f.diag())
    if not options.get("inplace"):  # there, torch's own fail too: "ZeroTensors are immutable"
        assert_close(jacfwd(jacfwd(total))(x), d2f.diag())
    assert_close(jacrev(jacfwd(total))(x), d2f.diag())
    assert_close(vmap(grad(grad(f)))(x), d2f)
    assert_close(vmap(hessian(f))(x), d2f)
    tangent = torch.randn_like(x)
    assert_close(jvp(grad(total), (x,), (tangent,))[1], tangent * d2f)


@every_function
def test_third_derivatives(case: Case) -> None:
    x = points()
    third = vmap(grad(grad(grad(case.call))))(x)
    want = vmap(grad(grad(grad(lambda x: case.exactly("f", x)))))(x)
    assert_close(third, want)


@pairwise(
    {
        "case": DEFAULTS,
        "options": SAVING,
        "dims": [(0, 0), (1, 1), (0, None), (None, 0), (-1, 0)],
    }
)
def test_vmap_over_any_dimension(
    case: Case, options: dict[str, Any], dims: tuple[int | None, int | None]
) -> None:
    """Of the input and of the gradient, apart."""
    x, g = torch.randn(4, 4, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
    f = calling(case, options)

    def pullback(f: Any) -> Tensor:
        pull = lambda x, g: vjp(f, x)[1](g)[0]  # noqa: E731
        batched = [t if dim is not None else t[0] for t, dim in zip((x, g), dims, strict=True)]
        return vmap(pull, in_dims=dims)(*batched)

    assert_close(pullback(f), pullback(lambda x: case.exactly("f", x)))


@pairwise({"case": DEFAULTS, "options": SAVING, "requires_grad": [False, True]})
def test_a_dual_tensor_keeps_its_tangent(
    case: Case, options: dict[str, Any], requires_grad: bool
) -> None:
    x, tangent = points().requires_grad_(requires_grad), torch.randn(8, dtype=torch.float64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        y = calling(case, options)(dual)
        primal, got = forward_ad.unpack_dual(y)
        assert got is not None
        assert_close(primal.detach(), case.exactly("f", points()))
        assert_close(got.detach(), tangent * case.exactly("df", points()))
        with torch.no_grad():
            got = forward_ad.unpack_dual(calling(case, options)(dual)).tangent
            assert got is not None
            assert_close(got, tangent * case.exactly("df", points()))


@every_function
def test_out_under_transforms(case: Case) -> None:
    x, tangent = points(), torch.randn(8, dtype=torch.float64)
    with forward_ad.dual_level():
        out = torch.zeros_like(x)
        assert case.call(x, out=out) is out
        assert_close(out, case.exactly("f", x))
        case.call(forward_ad.make_dual(x, tangent), out=out)
        got = forward_ad.unpack_dual(out).tangent
        assert got is not None
        assert_close(got, tangent * case.exactly("df", x))


@every_function
@every_saving
def test_a_module_as_a_function_of_its_parameters(case: Case, options: dict[str, Any]) -> None:
    act = getattr(mishkit, case.a.module_name)(**options)
    net = nn.Sequential(nn.Linear(3, 5), act, nn.Linear(5, 1)).double()
    batch = torch.randn(7, 3, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(net, parameters, (x,)).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, batch)
    net.zero_grad()
    net(batch).square().sum().backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(each[name].sum(0), p.grad, rtol=1e-5, atol=1e-5)


@every_saving
def test_an_ensemble(options: dict[str, Any]) -> None:
    nets = [nn.Sequential(nn.Linear(3, 4), mishkit.Mish(**options)).double() for _ in range(3)]
    parameters, buffers = stack_module_state(nets)
    x = torch.randn(6, 3, dtype=torch.float64)

    def call(p: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
        return functional_call(nets[0], (p, b), (x,))

    assert_close(vmap(call)(parameters, buffers), torch.stack([net(x) for net in nets]))
