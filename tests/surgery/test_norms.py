"""RMS norms that `lean` makes run in one pass: which they are, what they compute, and back."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import KERNELS
from torch import Tensor, nn

import mishkit as mk
from mishkit.surgery.norms import rms_norm_of

pytestmark = pytest.mark.skipif(not KERNELS, reason="no kernels here")
WIDTH = 24


class StepByStep(nn.Module):
    """As in Llama, which computes in float32."""

    def __init__(self, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.variance_epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        variance = wide.pow(2).mean(-1, keepdim=True)
        return self.weight * (wide * torch.rsqrt(variance + self.variance_epsilon)).to(x.dtype)


class WithOffset(StepByStep):
    """As in Gemma."""

    def forward(self, x: Tensor) -> Tensor:
        root = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.variance_epsilon)
        return (x.float() * root * (1 + self.weight.float())).type_as(x)


class OfColumns(StepByStep):
    """A norm of another dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(0, keepdim=True) + 1e-6) * self.weight


class Centred(StepByStep):
    """A layer norm."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (WIDTH,), self.weight)


class Detached(StepByStep):
    """Right values with another gradient."""

    def forward(self, x: Tensor) -> Tensor:
        root = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (x * root.detach())


class Failing(StepByStep):
    def forward(self, x: Tensor) -> Tensor:
        raise ZeroDivisionError


NORMS: dict[str, tuple[Callable[[], nn.Module], float | None, float]] = {
    "Llama": (StepByStep, 1e-6, 0.0),
    "large epsilon": (lambda: StepByStep(0.25), 0.25, 0.0),
    "Gemma": (WithOffset, 1e-6, 1.0),
    "torch": (lambda: nn.RMSNorm(WIDTH, 1e-5), 1e-5, 0.0),
    "torch, no epsilon": (lambda: nn.RMSNorm(WIDTH), None, 0.0),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "another dimension": OfColumns,
    "layer norm": Centred,
    "detached": Detached,
    "failing": Failing,
    "no weight": lambda: nn.RMSNorm(WIDTH, elementwise_affine=False),
    "two dimensions": lambda: nn.RMSNorm((2, WIDTH)),
    "PReLU": lambda: nn.PReLU(WIDTH),
    "linear": lambda: nn.Linear(WIDTH, 1, bias=False),
}


class Network(nn.Module):
    """A norm between two layers, as in a language model."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, WIDTH), norm, nn.Linear(WIDTH, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.norm(self.first(x)))
        return y


def network(norm: Callable[[], nn.Module]) -> Network:
    torch.manual_seed(0)
    return Network(norm())


def rows(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(200, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and the gradients."""
    y = model(x)
    return [y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))]


def assert_close(got: list[Tensor], want: list[Tensor], relative: float = 1e-5) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        assert torch.linalg.vector_norm(a - b) <= relative * torch.linalg.vector_norm(b)


@pytest.mark.parametrize(("norm", "epsilon", "offset"), NORMS.values(), ids=NORMS)
def test_recognised(norm: Callable[[], nn.Module], epsilon: float | None, offset: float) -> None:
    module = norm()
    before = [p.clone() for p in module.parameters()]
    assert rms_norm_of(module) == ("weight", epsilon, offset)
    assert all(map(torch.equal, before, module.parameters()))


@pytest.mark.parametrize("norm", OTHERS.values(), ids=OTHERS)
def test_not_recognised(norm: Callable[[], nn.Module]) -> None:
    assert rms_norm_of(norm()) is None


def test_an_epsilon_that_changes_is_seen() -> None:
    norm = StepByStep()
    assert rms_norm_of(norm) == ("weight", 1e-6, 0.0)
    norm.variance_epsilon = 0.5
    assert rms_norm_of(norm) == ("weight", 0.5, 0.0)


@pytest.mark.parametrize("norm", [norm for norm, _, _ in NORMS.values()], ids=NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_lean_and_back(norm: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    plain = network(norm).to(dtype)
    model = copy.deepcopy(plain)
    x = rows(dtype)
    report = mk.lean(model, x)
    assert report.norms == ("norm",)
    assert "and 1 RMS norm" in str(report)
    with mk.KeptBytes(exclude=[*model.parameters(), x]) as kept:
        model(x)
    assert kept.total == report.lean < report.kept
    relative = {torch.bfloat16: 0.02, torch.float64: 1e-6}.get(dtype, 1e-5)
    assert_close(step(model, x), step(plain, x), relative)
    assert mk.unswap(model) == ["norm.forward"]
    assert "forward" not in vars(model.norm)
    assert all(map(torch.equal, step(model, x), step(plain, x)))


def test_one_pass_is_used() -> None:
    model = network(StepByStep)
    mk.lean(model, rows())
    node = model.norm(torch.ones(2, WIDTH, requires_grad=True)).grad_fn
    assert type(node).__name__ == "RmsNormBackward"
    with torch.no_grad():
        assert_close(
            [model.norm(torch.ones(2, WIDTH))],
            [StepByStep.forward(model.norm, torch.ones(2, WIDTH))],
        )


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_their_own_weight(way: Callable[[nn.Module], Any]) -> None:
    model = network(StepByStep)
    mk.lean(model, rows())
    want = step(model, rows())
    copied = way(model)
    with torch.no_grad():
        model.norm.weight.zero_()
    assert_close(step(copied, rows()), want)
    assert mk.unswap(copied) == ["norm.forward"]


def other_inputs() -> dict[str, tuple[Callable[[nn.Module], Any], Callable[[], Tensor]]]:
    """Calls that have no kernel: the module's own forward runs."""
    return {
        "mixed dtypes": (lambda m: m(torch.ones(2, WIDTH).bfloat16()), StepByStep),
        "one row": (lambda m: m(torch.ones(WIDTH)), StepByStep),
        "vmap": (lambda m: torch.vmap(m)(torch.ones(2, 3, WIDTH)), StepByStep),
        "forward derivative": (
            lambda m: torch.func.jvp(m, (torch.ones(2, WIDTH),), (torch.ones(2, WIDTH),))[1],
            StepByStep,
        ),
        "broadcast": (lambda m: m(torch.ones(2, 1)), StepByStep),
    }


@pytest.mark.parametrize("name", other_inputs())
def test_calls_without_a_kernel(name: str) -> None:
    call, norm = other_inputs()[name]
    plain = network(norm)
    model = copy.deepcopy(plain)
    mk.lean(model, rows())
    got, want = call(model.norm), call(plain.norm)
    assert got.dtype == want.dtype and torch.equal(got, want)


def test_double_backward() -> None:
    plain = network(StepByStep)
    model = copy.deepcopy(plain)
    mk.lean(model, rows())

    def penalty(model: nn.Module) -> list[Tensor]:
        x = rows().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return list(torch.autograd.grad(slope.square().sum(), list(model.parameters())[:-1]))

    assert_close(penalty(model), penalty(plain), 1e-4)


def test_compiled_code_sees_the_steps() -> None:
    model = network(StepByStep)
    want = model(rows())
    mk.lean(model, rows())
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(rows()), want)


def test_a_failed_lean_leaves_the_norms() -> None:
    class Once(Network):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            if "forward" in vars(self.norm):
                raise ZeroDivisionError
            return super().forward(x)

    model = Once(StepByStep())
    with pytest.raises(ZeroDivisionError):
        mk.lean(model, rows())
    assert "forward" not in vars(model.norm)


def test_fake_tensors_count_the_same() -> None:
    plain = network(StepByStep)
    want = mk.lean(copy.deepcopy(plain), rows()).lean
    with torch.device("meta"):
        meta = network(StepByStep)
    assert mk.lean(meta, rows().to("meta")).lean == want
