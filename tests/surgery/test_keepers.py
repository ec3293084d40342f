"""The audit names who keeps every byte, and what of it could be recomputed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mishkit as mk
from mishkit.recompute.model import is_attached


class Residual(nn.Module):
    """x + f(x), with a gate and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.gate = nn.LayerNorm(64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.drop(self.up(y) * F.silu(self.gate(y)))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "images": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.MaxPool2d(2)
        ),
        (2, 3, 16, 16),
    ),
    "rows": (lambda: nn.Sequential(nn.Linear(64, 64), Residual(), Residual()), (64, 64)),
    "in place": (
        lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(inplace=True), nn.Linear(64, 64)),
        (64, 64),
    ),
}


@pytest.mark.parametrize(("build", "shape"), MODELS.values(), ids=MODELS)
def test_every_byte_has_a_keeper(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = build(), torch.randn(shape)
    report = mk.audit(model, x)
    assert sum(keeper.nbytes for keeper in report.keepers) == report.kept
    given = [*model.parameters(), *model.buffers(), x]
    with mk.KeptBytes(exclude=given) as kept, mk.recompute():
        model(x)
    assert kept.total == report.kept - report.recomputable
    assert not is_attached(model)


def test_who_they_are() -> None:
    build, shape = MODELS["images"]
    report = mk.audit(build(), torch.randn(shape))
    size = 2 * 8 * 16 * 16 * 4
    kept = {(k.module, k.operator): (k.nbytes, k.recomputable) for k in report.keepers}
    statistics = 2 * 8 * 4
    assert kept["1", "native_batch_norm"] == (size + statistics, 0)
    assert kept["2", "silu"] == (size, size)
    assert kept["3", "convolution"] == (size, size)
    assert f"of which {2 * size // 1024} KiB can be recomputed" in str(report)


def test_a_lean_model_is_audited_as_it_was() -> None:
    build, shape = MODELS["images"]
    model = build()
    before = mk.audit(model, torch.randn(shape))
    mk.lean(model, torch.randn(shape))
    after = mk.audit(model, torch.randn(shape))
    assert is_attached(model) and after.recomputable == before.recomputable > 0
