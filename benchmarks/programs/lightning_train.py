"""Fits timm's EfficientNet with Lightning. SiLU, in place."""

from steps import Steps  # first, as it mends torchvision

# isort: split
import logging
import warnings

import pytorch_lightning as pl
import timm
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

warnings.filterwarnings("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = timm.create_model("efficientnet_b0", num_classes=10)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Times(pl.Callback):
    def on_train_batch_end(self, trainer: object, model: object, outputs: dict, *_: object) -> None:
        steps.end(float(outputs["loss"]))


model = Classifier()
data = TensorDataset(torch.randn(64, 3, 128, 128), torch.randint(0, 10, (64,)))
trainer = pl.Trainer(
    max_steps=7,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    callbacks=[Times()],
)
steps = Steps()
trainer.fit(model, DataLoader(data, batch_size=8))
steps.report()
