"""Trains BERT with the Trainer of transformers. GELU."""

from steps import Steps  # first, as it mends torchvision

# isort: split
import tempfile

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

model = BertForSequenceClassification(
    BertConfig(
        vocab_size=1000,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
    )
)
data = [
    {"input_ids": torch.randint(0, 1000, (128,)), "labels": torch.tensor(i % 2)} for i in range(256)
]


class Times(TrainerCallback):
    def on_step_end(self, *arguments: object, **keywords: object) -> None:
        steps.end()


steps = Steps()
with tempfile.TemporaryDirectory() as folder:
    settings = TrainingArguments(
        folder,
        max_steps=8,
        per_device_train_batch_size=16,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    trained = Trainer(model, settings, train_dataset=data, callbacks=[Times()]).train()
steps.loss = trained.training_loss
steps.report()
