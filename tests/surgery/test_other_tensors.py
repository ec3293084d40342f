"""Models that get or make tensors for which mishkit has no kernels: nested, sparse, opaque,
quantised and complex ones. Torch's own functions compute them, and everything else goes on."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mishkit as mk

pytestmark = pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors:UserWarning",
    "ignore:Sparse CSR tensor support:UserWarning",
    "ignore:torch.quantize_per_tensor:UserWarning",
)

LENGTHS = (2, 5)


def nested(layout: torch.layout, width: int = 3) -> Tensor:
    torch.manual_seed(0)
    rows = [torch.randn(length, width) for length in LENGTHS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor(rows, layout=layout)


def numbers(tensor: Tensor) -> Tensor:
    """What is in it, as an ordinary tensor."""
    if tensor.is_nested:
        return torch.cat(tensor.unbind())
    return tensor.to_dense() if tensor.layout is not torch.strided else tensor


class ByHand(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class Packs(nn.Module):
    """Makes a nested tensor of rows of different lengths, and an ordinary one again."""

    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        self.layout = layout
        self.before, self.act, self.after = nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = [row[:length] for row, length in zip(x, LENGTHS, strict=True)]
        packed = torch.nested.as_nested_tensor(rows, layout=self.layout)
        return torch.nested.to_padded_tensor(self.after(self.act(self.before(packed))), 0.0)


class SparseWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.act, self.after = nn.SiLU(), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.act(torch.sparse.mm(self.weight.to_sparse(), x)))


class Through(nn.Module):
    """An activation of other tensors, then one of ordinary ones."""

    def __init__(self, turn: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.turn, self.back = turn, back
        self.odd, self.linear, self.act, self.after = (
            nn.ReLU(),
            nn.Linear(3, 3),
            nn.SiLU(),
            nn.Linear(3, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.act(self.linear(self.back(self.odd(self.turn(x.detach()))))))


def quantised(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)


def mlp(*activations: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), *activations, nn.Linear(8, 3))


def square() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 3)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "jagged": (lambda: mlp(nn.SiLU()), lambda: nested(torch.jagged)),
    "jagged, Mish": (lambda: mlp(nn.Mish()), lambda: nested(torch.jagged)),
    "jagged, ReLU": (lambda: mlp(nn.ReLU()), lambda: nested(torch.jagged)),
    "jagged, by hand": (lambda: mlp(ByHand()), lambda: nested(torch.jagged)),
    "jagged, mishkit's": (lambda: mlp(mk.Mish()), lambda: nested(torch.jagged)),
    "jagged, trained": (lambda: mlp(mk.APTx(trainable=True)), lambda: nested(torch.jagged)),
    "strided nested": (lambda: mlp(nn.SiLU()), lambda: nested(torch.strided)),
    "jagged within": (lambda: Packs(torch.jagged), lambda: torch.randn(2, 5, 3)),
    "strided nested within": (lambda: Packs(torch.strided), lambda: torch.randn(2, 5, 3)),
    "sparse weight": (SparseWeight, square),
    "sparse": (lambda: Through(Tensor.to_sparse, Tensor.to_dense), square),
    "sparse rows": (lambda: Through(Tensor.to_sparse_csr, Tensor.to_dense), square),
    "sparse input": (lambda: nn.Sequential(nn.ReLU()), lambda: square().to_sparse()),
    "quantised": (lambda: Through(quantised, Tensor.dequantize), square),
    "opaque": (lambda: Through(Tensor.to_mkldnn, Tensor.to_dense), square),
}


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, then the gradients."""
    output = numbers(model(x))
    if not output.requires_grad:
        return [output]
    return [output, *torch.autograd.grad(output.square().sum(), list(model.parameters()))]


def functional(model: nn.Module, x: Tensor) -> None:
    with mk.lean_functional():
        model(x)


def recompute(model: nn.Module, x: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these models keep nothing that can be recomputed
        mk.lean(model, x)


WAYS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "audit": mk.audit,
    "lean": lambda model, x: mk.lean(model, x, recompute=False),
    "recompute": recompute,
    "lean in place": lambda model, x: mk.lean(model, x, inplace=True),
    "swap and back": lambda model, x: (mk.swap(model, {"silu": "mish"}), mk.unswap(model)),
    "lean_functional": functional,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_the_results_stay(name: str, way: str) -> None:
    build, given = MODELS[name]
    if name == "opaque" and not torch.backends.mkldnn.is_available():
        pytest.skip("no mkldnn")
    torch.manual_seed(2)
    model, x = build(), given()
    before = numbers(x).clone()
    expected = run(copy.deepcopy(model), x)
    WAYS[way](model, x)
    for a, b in zip(run(model, x), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert torch.equal(numbers(x), before)


@pytest.mark.parametrize("name", ("jagged", "strided nested", "jagged within", "jagged, by hand"))
def test_the_audit_says_why_it_leaves_them(name: str) -> None:
    build, given = MODELS[name]
    report = mk.audit(build(), given())
    (site,) = report.sites
    assert site.advice == "leave" and site.shape == (2, -1, 8)
    assert "2×?×8 float32: leave, as mishkit has no kernels for float32" in str(report)
    assert "nested tensors: torch's own function computes it" in site.reason


def test_what_nested_tensors_share_counts_once() -> None:
    """Those of jagged layout are objects around their values, a new one for every view."""
    layer, x = nn.Linear(3, 8), nested(torch.jagged)
    with mk.KeptBytes(exclude=[*layer.parameters(), x]) as kept:
        y = layer(x)
        z = y.sigmoid() * y
    assert kept.total == 2 * sum(LENGTHS) * 8 * 4
    del z


def test_parts_of_sparse_tensors_count() -> None:
    weight = torch.eye(3).to_sparse().requires_grad_()
    x = square().requires_grad_()
    with mk.KeptBytes(exclude=[x]) as kept:
        y = torch.sparse.mm(weight, x)
    values, indices = 3 * 4, 2 * 3 * 8
    assert kept.total == values + indices
    del y


def test_what_the_audit_puts_back() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nested(torch.jagged)
            self.eye = torch.eye(3).to_sparse()

        def forward(self, x: Tensor) -> Tensor:
            self.rows.mul_(2)
            self.eye.mul_(2)
            return x

    model = nn.Sequential(Writes(), nn.SiLU())
    rows, eye = numbers(model[0].rows).clone(), model[0].eye.to_dense()
    mk.audit(model, square())
    assert torch.equal(numbers(model[0].rows), rows)
    assert torch.equal(model[0].eye.to_dense(), eye)


@pytest.mark.parametrize(
    ("make", "named"),
    (
        (lambda: nested(torch.strided), "float32 nested"),
        (lambda: square().to_sparse(), "float32 sparse_coo"),
        (lambda: square().to_sparse_csr(), "float32 sparse_csr"),
        (lambda: quantised(square()), "quint8"),
        (lambda: square().to(torch.complex64), "complex64"),
    ),
)
def test_what_torch_does_not_take_either_is_refused(make: Callable[[], Tensor], named: str) -> None:
    model = nn.Sequential(nn.SiLU())
    mk.swap(model, {"silu": "mish"})
    with pytest.raises(RuntimeError, match=rf"^mishkit\.mish: expected a tensor of .* {named}$"):
        model(make())


def test_trained_parameters_get_their_gradients_from_nested_tensors() -> None:
    layer, x = mk.APTx(trainable=True), nested(torch.jagged)
    ours = torch.autograd.grad(numbers(layer(x)).sum(), list(layer.parameters()))
    right = torch.autograd.grad(layer(numbers(x)).sum(), list(layer.parameters()))
    for a, b in zip(ours, right, strict=True):
        assert math.isclose(a.item(), b.item(), rel_tol=1e-5)


def test_trained_parameters_refuse_sparse_tensors_in_a_line() -> None:
    with pytest.raises(RuntimeError, match=r"^mishkit\.aptx: expected .* float32 sparse_coo$"):
        mk.APTx(trainable=True)(square().to_sparse())
