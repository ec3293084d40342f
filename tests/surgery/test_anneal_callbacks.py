"""Annealing within real trainings, by Lightning and by transformers."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mishkit as mk

RULES = {"gelu": "h_mish", "leaky_relu": ("swish", {"trainable": True})}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 4), nn.LeakyReLU(), nn.Linear(4, 1)
        )
        self.seen: list[float] = []

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        if self.training:
            self.seen.append(getattr(self.layers[1], "fraction", 1.0))
        y = self.layers(x)
        return y if labels is None else {"loss": (y - labels).square().mean(), "logits": y}


def data(count: int = 16) -> TensorDataset:
    x = torch.randn(count, 3)
    return TensorDataset(x, x.sum(1, keepdim=True))


def assert_finished(network: Network) -> None:
    first, second = network.layers[1], network.layers[3]
    assert type(first) is mk.HMish and type(second) is mk.Swish
    assert float(second.beta.detach()) != 1  # it was trained


@pytest.mark.parametrize(
    ("module", "packages", "message"),
    [
        (
            "lightning",
            ("lightning", "lightning.pytorch", "pytorch_lightning"),
            "lightning or pytor",
        ),
        ("transformers", ("transformers",), "needs transformers"),
    ],
)
def test_a_missing_package_is_named(
    module: str, packages: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in packages:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"mishkit.surgery.{module}", raising=False)
    with pytest.raises(ModuleNotFoundError, match=f"{message}.*pip install"):
        importlib.import_module(f"mishkit.surgery.{module}")


# ---- Lightning -----------------------------------------------------------------------------------


@pytest.fixture
def lightning(torchvision: None) -> Any:
    return pytest.importorskip("pytorch_lightning")


def lit(lightning: Any) -> Any:
    class Lit(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Network()

        def training_step(self, batch: Any, index: int) -> Tensor:
            return self.net(*batch)["loss"]

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    return Lit()


def trainer(lightning: Any, path: Path, callback: Any, **options: Any) -> Any:
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "logger"), False)
    return lightning.Trainer(
        accelerator="cpu",
        default_root_dir=path,
        callbacks=[callback],
        **{"enable_checkpointing": False, **quiet, **options},
    )


quiet_lightning = pytest.mark.filterwarnings(
    "ignore:.*(num_workers|Checkpoint directory|logging interval).*",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
)


@quiet_lightning
def test_lightning_steps_with_the_optimizer(lightning: Any, tmp_path: Path) -> None:
    from mishkit.surgery.lightning import AnnealCallback

    # 8 batches, accumulated in twos: 4 steps an epoch.
    callback, module = AnnealCallback(RULES, steps=0.5), lit(lightning)
    train = trainer(lightning, tmp_path, callback, max_epochs=2, accumulate_grad_batches=2)
    train.fit(module, DataLoader(data(), batch_size=2))
    assert callback.anneal.steps == 4 and callback.anneal.done
    assert module.net.seen[:8] == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]
    assert module.net.seen[8:] == [1] * 8
    assert_finished(module.net)


@quiet_lightning
def test_lightning_resumes(lightning: Any, tmp_path: Path) -> None:
    from mishkit.surgery.lightning import AnnealCallback

    path = tmp_path / "half.ckpt"
    callback, module = AnnealCallback(RULES, steps=6, schedule="cosine"), lit(lightning)
    first = trainer(lightning, tmp_path, callback, max_epochs=1)
    with pytest.warns(UserWarning, match=r"ended at t = 0\.25, after 2 of 6"):
        first.fit(module, DataLoader(data(8), batch_size=4))
    first.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=False)
    assert "net.layers.3.new.beta" in checkpoint["state_dict"]
    assert checkpoint["callbacks"]["AnnealCallback[gelu, leaky_relu]"]["count"] == 2

    again, resumed = AnnealCallback(RULES, steps=0.9), lit(lightning)
    trainer(lightning, tmp_path, again, max_epochs=4).fit(
        resumed, DataLoader(data(8), batch_size=4), ckpt_path=path
    )
    assert again.anneal.steps == 6 and again.anneal.state_dict()["schedule"] == "cosine"
    assert resumed.net.seen[:4] == pytest.approx([0.25, 0.5, 0.75, 0.9330127])
    assert_finished(resumed.net)


@quiet_lightning
def test_lightning_without_end_wants_a_number(lightning: Any, tmp_path: Path) -> None:
    from mishkit.surgery.lightning import AnnealCallback

    with pytest.raises(ValueError, match="AnnealCallback: steps must be an int"):
        AnnealCallback(RULES, steps=0)
    train = trainer(lightning, tmp_path, AnnealCallback(RULES, steps=0.5), max_epochs=-1)
    with pytest.raises(ValueError, match="share of all steps"):
        train.fit(lit(lightning), DataLoader(data(), batch_size=4))


# ---- transformers --------------------------------------------------------------------------------


@pytest.fixture
def transformers(torchvision: None) -> Any:
    pytest.importorskip("accelerate")
    return pytest.importorskip("transformers")


def hf_trainer(
    transformers: Any, path: Path, callback: Any, network: Network, **options: Any
) -> Any:
    def collate(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        x, y = zip(*rows, strict=True)
        return {"x": torch.stack(x), "labels": torch.stack(y)}

    given = {
        "output_dir": str(path),
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "optim": "sgd",
        "learning_rate": 0.01,
        "per_device_train_batch_size": 2,
        "logging_strategy": "no",
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        **options,
    }
    return transformers.Trainer(
        network,
        transformers.TrainingArguments(**given),
        collate,
        train_dataset=data(),
        callbacks=[callback],
    )


quiet_transformers = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning"
)


@quiet_transformers
def test_transformers_steps_with_the_optimizer(transformers: Any, tmp_path: Path) -> None:
    from mishkit.surgery.transformers import AnnealCallback

    callback, network = AnnealCallback(RULES, steps=0.5), Network()
    trainer = hf_trainer(
        transformers,
        tmp_path,
        callback,
        network,
        num_train_epochs=2,
        gradient_accumulation_steps=2,
    )
    assert "layers.3.new.beta" in network.state_dict()
    trainer.train()
    assert callback.anneal.steps == 4 and callback.anneal.done
    assert network.seen[:8] == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]
    assert_finished(network)
    assert "_mishkit_anneal" not in vars(network)


@quiet_transformers
@pytest.mark.parametrize("anew", [False, True], ids=["callback", "callback made anew"])
def test_transformers_resumes(anew: bool, transformers: Any, tmp_path: Path) -> None:
    from mishkit.surgery.transformers import AnnealCallback

    saving = {"save_strategy": "steps", "save_steps": 2}
    callback = AnnealCallback(RULES, steps=6, schedule="cosine")
    first = hf_trainer(transformers, tmp_path, callback, Network(), max_steps=2, **saving)
    with pytest.warns(UserWarning, match=r"ended at t = 0\.25, after 2 of 6"):
        first.train()

    network = Network()
    second = hf_trainer(
        transformers,
        tmp_path,
        AnnealCallback(RULES, steps=0.9),
        network,
        max_steps=8,
        restore_callback_states_from_checkpoint=anew,
        **saving,
    )
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    (restored,) = [c for c in second.callback_handler.callbacks if isinstance(c, AnnealCallback)]
    assert restored.anneal.steps == 6 and restored.anneal.state_dict()["schedule"] == "cosine"
    assert network.seen[:4] == pytest.approx([0.25, 0.5, 0.75, 0.9330127])
    assert_finished(network)


@quiet_transformers
def test_transformers_wants_new_parameters_early(transformers: Any, tmp_path: Path) -> None:
    from mishkit.surgery.transformers import AnnealCallback

    trainer = hf_trainer(
        transformers, tmp_path, transformers.trainer_callback.PrinterCallback(), Network()
    )
    trainer.add_callback(AnnealCallback(RULES, steps=3))
    with pytest.raises(ValueError, match="not in the optimizer"):
        trainer.train()
