"""Lean training by one line, in Lightning and in transformers, and with accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mishkit as mk
from mishkit._torchvision import mend_torchvision


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 512), nn.SiLU(), nn.Linear(512, 1))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        y = self.layers(x)
        return y if labels is None else {"loss": (y - labels).square().mean(), "logits": y}


def data(count: int = 16) -> TensorDataset:
    x = torch.randn(count, 3)
    return TensorDataset(x, x.sum(1, keepdim=True))


def assert_lean(network: Network, recompute: bool) -> None:
    act = network.layers[1]
    assert type(act) is mk.SiLU and act.save == ("input" if recompute else "output")
    assert not network.layers[0]._forward_hooks and not network.layers[0]._forward_pre_hooks


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_lightning(recompute: bool, tmp_path: Path) -> None:
    mend_torchvision()
    pl = pytest.importorskip("pytorch_lightning")

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.criterion = Network(), nn.MSELoss()

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            x, y = batch
            return self.criterion(self.net(x), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-2)

    module, callback = Module(), mk.integrations.lightning.Lean(recompute=recompute)
    trainer = pl.Trainer(
        max_steps=3,
        accelerator="cpu",
        callbacks=[callback],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data(), batch_size=4))
    assert callback.reports.keys() == {"net"}
    assert callback.reports["net"].changed == ("layers.1",)
    assert_lean(module.net, recompute)


@pytest.mark.filterwarnings("ignore")
def test_transformers(tmp_path: Path) -> None:
    mend_torchvision()
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    callback = mk.integrations.transformers.LeanCallback()
    from transformers import Trainer, TrainingArguments

    network, x = Network(), torch.randn(16, 3)
    rows = [{"x": row, "labels": row.sum(0, keepdim=True)} for row in x]
    settings = TrainingArguments(
        str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    Trainer(network, settings, train_dataset=rows, callbacks=[callback]).train()
    assert callback.reports[""].changed == ("layers.1",)
    assert_lean(network, recompute=True)


def test_there_is_no_other_integration() -> None:
    with pytest.raises(AttributeError, match="no attribute 'keras'"):
        mk.integrations.keras  # noqa: B018
