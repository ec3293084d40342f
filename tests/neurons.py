"""The APTx layer in float64, and how far from it an implementation may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Errors of one term in units of its magnitude, and of the sums of up to a thousand of them in
# float32: those of 16-bit types are computed in it too. The rounding of the result comes on top.
TERM = {torch.float64: 3e-15, torch.float32: 1e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}
NAMES = ("output", "grad_input", "grad_alpha", "grad_beta", "grad_gamma", "grad_delta")


def formula(
    x: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, delta: Tensor | None = None
) -> Tensor:
    """As the published package writes it: inputs (batch, in), batch × out × in elements."""
    wide = x.unsqueeze(-2)
    y = ((alpha + torch.tanh(beta * wide)) * gamma * wide).sum(-1)
    return y if delta is None else y + delta


def arguments(batch: int, dims_in: int, dims_out: int, dtype: torch.dtype) -> list[Tensor]:
    """Input, α, β, γ, δ and a gradient of the output."""
    shapes = [(batch, dims_in), *[(dims_out, dims_in)] * 3, (dims_out,), (batch, dims_out)]
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def exact(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Output and gradients (`NAMES`) of `arguments`, in float64 by autograd."""
    leaves = [t.detach().double().requires_grad_() for t in tensors[:5]]
    y = formula(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, tensors[5].double())]


def magnitudes(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sums of the magnitudes of the terms of each of `exact`."""
    x, alpha, beta, gamma, delta, g = (t.double().abs() for t in tensors)
    rise = alpha + 1
    return [
        x @ (rise * gamma).mT + delta,
        g @ (gamma * rise) + x * (g @ (gamma * beta)),
        gamma * (g.mT @ x),
        gamma * (g.mT @ x.square()),
        rise * (g.mT @ x),
        g.sum(0),
    ]


def assert_exact(got: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """`got` are those of `NAMES`, in order, within the errors above."""
    pairs = zip(NAMES, got, exact(tensors), magnitudes(tensors), strict=False)
    for name, result, want, magnitude in pairs:
        dtype = tensors[0].dtype
        assert result.dtype == dtype and result.shape == want.shape, name
        info = torch.finfo(dtype)
        rounding = info.eps * want.abs() + info.smallest_normal * info.eps
        error = (result.double() - want).abs()
        excess = error - TERM[dtype] * magnitude - rounding
        assert not result.numel() or excess.max() <= 0, f"{name}: {excess.max()} too much"


def assert_saturates(
    compute: Callable[[list[Tensor]], list[Tensor]],
    dtype: torch.dtype,
    *,
    large: float,
    least: float,
) -> None:
    """No finite βx gives NaN, though it may overflow: the limits of tanh are reached exactly.

    `compute` returns `NAMES` for `arguments`. Results must be exact for β up to `large`: beyond it
    kernels leave β unscaled, so that it counts for less. `least` is the smallest x.
    """
    largest = torch.finfo(dtype).max
    x = torch.tensor([largest, 1e4, 3, 1e-3, 0, least], dtype=torch.float64)
    x = torch.cat([x, -x]).to(dtype).unsqueeze(1)
    for top in (large, largest):
        beta = torch.tensor([top, 1e4, 1, 0, -1, -top], dtype=torch.float64).to(dtype)
        beta = beta.unsqueeze(1)
        gamma = torch.full_like(beta, 0.25)
        for alpha in (torch.full_like(beta, -1), torch.zeros_like(beta), torch.ones_like(beta)):
            tensors = [x, alpha, beta, gamma, torch.zeros(6, dtype=dtype)]
            # Gradients of the largest x, and of 3.
            for row in (torch.eye(12, 1), torch.eye(12)[:, 2:3]):
                y, *gradients = compute([*tensors, row.to(dtype).expand(12, 6)])
                assert y.isfinite().all() and gradients[0].isfinite().all()
                assert not any(g.isnan().any() for g in gradients)
            if top == large:
                assert_exact([y], [*tensors, torch.zeros(12, 6, dtype=dtype)])
