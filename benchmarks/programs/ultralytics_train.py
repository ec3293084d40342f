"""Trains YOLO11n with ultralytics' own trainer, on coloured squares. SiLU, in place."""

from steps import Steps  # first, as it mends torchvision

# isort: split
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from ultralytics import YOLO

SIZE, COUNT, BATCH = 160, 56, 8


def write_data(folder: Path) -> Path:
    """Images with one square each, and their labels."""
    numbers = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for i in range(COUNT):
        pixels = numbers.integers(0, 80, (SIZE, SIZE, 3), dtype=np.uint8)
        x, y = numbers.integers(0, SIZE // 2, 2)
        pixels[y : y + SIZE // 2, x : x + SIZE // 2] = 200
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        middle = (x / SIZE + 0.25, y / SIZE + 0.25)
        (folder / "labels" / f"{i}.txt").write_text(f"0 {middle[0]} {middle[1]} 0.5 0.5\n")
    settings = folder / "data.yaml"
    settings.write_text(f"path: {folder}\ntrain: images\nval: images\nnames: [square]\n")
    return settings


def finish(trainer: object) -> None:
    """Leave before the validation, which needs operators that not every torchvision has."""
    steps.report()
    sys.exit()


with tempfile.TemporaryDirectory() as name:
    model = YOLO("yolo11n.yaml", verbose=False)
    settings = write_data(Path(name))
    steps = Steps()
    model.add_callback("on_train_batch_end", lambda trainer: steps.end(float(trainer.loss)))
    model.add_callback("on_train_epoch_end", finish)
    model.train(
        data=str(settings),
        epochs=1,
        imgsz=SIZE,
        batch=BATCH,
        workers=0,
        device="cpu",
        amp=False,
        plots=False,
        val=False,
        verbose=False,
        project=name,
        seed=0,
    )
