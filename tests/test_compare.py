"""`mishkit compare`: what it measures, what it writes, and how it behaves when interrupted."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("lightning_fabric", reason="the lab's dependencies are an extra")

import pandas as pd
from lightning_fabric import Fabric

from mishkit.lab import LabError, compare, contenders, data, environment, report, training
from mishkit.lab.compare import Comparison, Settings
from mishkit.lab.training import Epoch, Recipe, Run, Watcher

TINY = Settings(
    activations=("torch_relu_inplace", "torch_mish", "mish"),
    data="digits",
    train_samples=96,
    test_samples=40,
    channels=4,
    epochs=2,
    seeds=2,
    batch_size=32,
    accelerator="cpu",
    threads=1,  # small tensors, and other tests may be running
)


def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def load(settings: Settings) -> data.Images:
    return data.load(
        settings.data,
        seed=settings.first_seed,
        train_samples=settings.train_samples,
        test_samples=settings.test_samples,
    )


def run(settings: Settings = TINY, watcher: Watcher | None = None) -> Comparison:
    return compare.compare(
        fabric(), settings, "mishkit compare", load(settings), watcher or Watcher()
    )


@pytest.fixture(scope="module")
def result() -> Comparison:
    return run()


def numbers(result: Comparison) -> list[tuple]:
    """Everything of a comparison that is not a time."""
    return [
        (
            *(one.activation, one.seed, one.kept_bytes),
            *((e.number, e.train_loss, e.test_loss, e.test_accuracy) for e in one.epochs),
        )
        for one in result.runs
    ]


def test_the_same_seed_gives_the_same_numbers(result: Comparison):
    assert numbers(run()) == numbers(result)


def test_another_seed_gives_other_numbers(result: Comparison):
    losses = {one.epochs[0].train_loss for one in result.runs if one.activation == "mish"}
    assert len(losses) == 2


def test_every_training_is_done_and_in_turn(result: Comparison):
    assert result.is_complete
    done = [(one.activation, one.seed) for one in result.runs]
    first = [("torch_relu_inplace", 0), ("torch_mish", 0), ("mish", 0)]
    assert done == [*first, ("torch_mish", 1), ("mish", 1), ("torch_relu_inplace", 1)]
    for one in result.runs:
        assert len(one.epochs) == 2
        assert len(one.forward) == len(one.backward) == 2 * 96 // 32
        assert all(seconds > 0 for seconds in (*one.forward, *one.backward))


def test_contenders_share_weights_and_batches():
    """A contender that computes the same function in the same way gets the same numbers."""
    seen = {}
    for name in ("torch_relu", "torch.nn.ReLU", "torch.nn.functional.relu"):
        settings = dataclasses.replace(TINY, activations=(name,), seeds=1, epochs=1)
        seen[name] = numbers(run(settings))[0][3:]
    assert len(set(seen.values())) == 1


def test_networks_learn():
    settings = dataclasses.replace(
        TINY, train_samples=640, test_samples=200, channels=8, epochs=10, seeds=1, target=0.7
    )
    summary = compare.summarise(run(settings))
    assert (summary["accuracy_mean"] > 80).all()
    assert (summary["reached"] == 1).all()


def test_kept_bytes_are_those_of_the_network(result: Comparison):
    """Counted by hand: a convolution keeps its input, ReLU its output, Mish its input.

    ReLU's output is the next convolution's input; Mish's output is too, but at the last site, where
    the mean over space keeps nothing. So ReLU costs one tensor a site, and Mish two but one.
    """
    pixels = [8 * 8] * 2 + [4 * 4] * 2 + [2 * 2] * 3
    one_each = 4 * 4 * sum(pixels)  # float32
    summary = compare.summarise(result).set_index("activation")
    rest = summary.loc["torch_relu_inplace", "kept_bytes"] - one_each
    last = 4 * 4 * 2 * 2
    assert 0 <= rest <= 200  # the head: pooled features and log-probabilities
    for mish in ("torch_mish", "mish"):
        assert summary.loc[mish, "kept_bytes"] == pytest.approx(2 * one_each - last + rest)
    assert summary.loc["torch_relu_inplace", "kept_ratio"] == 1


def made_up(accuracies: dict[str, list[list[float]]], **changes: object) -> Comparison:
    """A comparison with given accuracies, by activation, seed and epoch, and simple times."""
    settings = dataclasses.replace(
        TINY,
        activations=tuple(accuracies),
        seeds=max(map(len, accuracies.values())),
        target=0.9,
        **changes,
    )
    runs = [
        Run(
            name, seed, 1024.0 * (1 + number), [0.001, 0.003], [0.004 * (1 + number)] * 2,
            [Epoch(e, 0.5, 0.5, accuracy, 2.0) for e, accuracy in enumerate(by_epoch, 1)],
        )
        for number, (name, seeds) in enumerate(accuracies.items())
        for seed, by_epoch in enumerate(seeds)
    ]  # fmt: skip
    entrants = [contenders.find(name) for name in accuracies]
    facts = environment.describe()
    return Comparison(settings, "mishkit compare", facts, entrants, load(TINY), 1, runs)


def test_the_table_says_what_was_measured():
    result = made_up(
        {
            "torch_relu": [[0.80, 0.91, 0.93], [0.90, 0.92, 0.95]],
            "mish": [[0.70, 0.80, 0.90], [0.70, 0.80, 0.85]],
            "h_mish": [[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]],
        }
    )
    relu, mish, h_mish = compare.summarise(result).to_dict("records")
    assert relu["forward_ms_mean"] == pytest.approx(2.0)
    assert (relu["forward_ms_min"], relu["forward_ms_max"]) == (1.0, 3.0)
    assert relu["epochs_to_target_mean"] == 1.5 and relu["seconds_to_target_mean"] == 3.0
    assert relu["reached"] == 2 and mish["reached"] == 1 and h_mish["reached"] == 0
    assert mish["seconds_to_target_mean"] == 6.0
    assert h_mish["seconds_to_target_mean"] != h_mish["seconds_to_target_mean"]  # NaN
    assert relu["accuracy_mean"] == pytest.approx(94) and relu["accuracy_min"] == 93
    assert mish["step_ratio"] == pytest.approx((2 + 8) / (2 + 4))
    assert mish["kept_ratio"] == 2 and relu["kept_ratio"] == 1


def test_what_never_reached_the_target_shows_a_dash(capsys: pytest.CaptureFixture[str]):
    from mishkit.lab import console

    result = made_up({"torch_relu": [[0.95], [0.96]], "mish": [[0.5], [0.5]]})
    console.show(result)
    shown = capsys.readouterr().out
    assert re.search(r"mishkit Mish\s+2\.00 ± 0\.00\s+–\s+–", shown)
    assert "2 seeds" in shown
    page = report.render(result)
    assert page.count("not reached") == 2


def test_accuracy_is_ranked_only_beyond_chance():
    close = made_up({"torch_relu": [[0.90], [0.92], [0.91]], "mish": [[0.92], [0.91], [0.91]]})
    apart = made_up({"torch_relu": [[0.90], [0.92], [0.91]], "mish": [[0.95], [0.97], [0.965]]})
    assert report.chance(close, compare.summarise(close))["beyond"] == []
    assert report.chance(apart, compare.summarise(apart))["beyond"] == ["mishkit Mish"]
    assert "does not rank the activations" in report.render(close)
    single = made_up({"torch_relu": [[0.9]], "mish": [[0.9]]})
    assert report.chance(single, compare.summarise(single)) is None


class _Links(HTMLParser):
    """Collects all that a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "srcset", "data")
            and not (value or "").startswith("#")
        ]


def test_the_report_is_one_self_contained_file(result: Comparison, tmp_path: Path):
    moved = dataclasses.replace(
        result, settings=dataclasses.replace(result.settings, output=tmp_path / "out")
    )
    path = report.write(moved)
    page = path.read_text(encoding="utf-8")
    links = _Links()
    links.feed(page)
    assert links.fetched == []
    assert links.tags.count("svg") == 4
    assert not {"script", "link", "img", "iframe"} & set(links.tags)
    assert not re.search(r"url\((?!#)|@import", page)
    assert "var(--c0)" in page and "prefers-color-scheme: dark" in page
    assert torch.__version__ in page and "mishkit compare" in page
    for contender in moved.contenders:
        assert contender.label in page
    # Ids are unique over all figures, so that no figure borrows another's shapes.
    referred = set(re.findall(r"url\(#([^)]+)\)|xlink:href=\"#([^\"]+)\"", page))
    for name in {one or other for one, other in referred}:
        assert page.count(f'id="{name}"') == 1

    assert len(pd.read_csv(path.parent / "summary.csv")) == 3
    assert len(pd.read_csv(path.parent / "epochs.csv")) == 3 * 2 * 2
    assert len(pd.read_csv(path.parent / "steps.csv")) == 3 * 2 * 6
    stored = json.loads((path.parent / "results.json").read_text())
    assert stored["complete"] and stored["settings"]["epochs"] == 2
    assert [row["activation"] for row in stored["summary"]] == list(TINY.activations)


def test_what_was_asked_for_is_escaped(result: Comparison):
    page = report.render(dataclasses.replace(result, command="mishkit <script>alert(1)</script>"))
    assert "<script>" not in page


class _InterruptAfter(Watcher):
    """Presses Ctrl-C in the midst of the training after `count` finished ones."""

    def __init__(self, count: int) -> None:
        self.left = count

    def run(self, run: Run) -> None:
        self.left -= 1

    def step(self) -> None:
        if self.left == 0:
            self.left = -1
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_keeps_what_is_done(result: Comparison):
    before = signal.getsignal(signal.SIGINT)
    partial = run(watcher=_InterruptAfter(4))
    assert signal.getsignal(signal.SIGINT) is before
    assert not partial.is_complete
    assert numbers(partial) == numbers(result)[:4]
    page = report.render(partial)
    assert re.search(r"Stopped after 4 of\s+6 trainings", page)
    assert "1 of 2 seeds" in page


def test_settings_of_torch_are_restored():
    before = torch.get_num_threads()
    with training.reproducible(1):
        assert torch.get_num_threads() == 1 and torch.are_deterministic_algorithms_enabled()
        # Else every torch.empty would be filled, and its time charged to the contender.
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_the_learning_rate_rises_and_falls():
    factor = training.rise_and_fall(100)
    rates = [factor(step) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 20) and max(rates) == 1 == rates[20]
    assert rates[:20] == sorted(rates[:20]) and rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[100] == pytest.approx(0)


def test_precision_is_fabrics():
    recipe = Recipe(epochs=1, batch_size=32, lr=1e-3, channels=4)
    kept = {}
    for precision in ("32-true", "bf16-true"):
        one = training.train(
            Fabric(accelerator="cpu", devices=1, precision=precision),
            contenders.find("torch_mish"), load(TINY), recipe, 0, Watcher(), lambda: False,
        )  # fmt: skip
        kept[precision] = one.kept_bytes
    assert 0.5 <= kept["bf16-true"] / kept["32-true"] < 0.55


def test_contenders_are_found_by_name_or_import():
    assert set(contenders.DEFAULT) <= set(contenders.registry())
    assert isinstance(contenders.find("torch.nn.GELU").make(), nn.GELU)
    assert isinstance(contenders.find("torch.nn:Tanh").make(), nn.Tanh)
    x = torch.randn(5)
    assert torch.equal(contenders.find("torch:sigmoid").make()(x), x.sigmoid())
    for contender in contenders.registry().values():
        y = contender.make()(torch.linspace(-2, 2, 8))
        assert y.shape == (8,), contender.name


@pytest.mark.parametrize("name", contenders.DEFAULT)
def test_the_default_contenders_compute_what_their_labels_say(name: str):
    x = torch.linspace(-6, 6, 97, dtype=torch.float64)
    reference = {
        "relu": x.clamp_min(0),
        "mish": x * torch.tanh(torch.log1p(x.exp())),
        "h_mish": x / 2 * (x + 2).clamp(0, 2),
    }
    contender = contenders.find(name)
    torch.testing.assert_close(contender.make()(x.clone()), reference[contender.function])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mush", "unknown activation 'mush'; there are .*torch_mish"),
        ("torch.nn.Mush", "has no 'Mush'"),
        ("no.such.module:thing", "cannot import"),
        ("torch.nn.Linear", "does not work"),
        ("torch.sum", "does not keep the shape"),
        ("torch:pi", "neither a module nor a function"),
    ],
)
def test_a_wrong_activation_is_one_clear_line(spec: str, message: str):
    with pytest.raises(LabError, match=message) as caught:
        contenders.find(spec)
    assert "\n" not in str(caught.value)


def test_wrong_sizes_are_one_clear_line():
    with pytest.raises(LabError, match="more than the 96 images"):
        compare.main(dataclasses.replace(TINY, batch_size=100), "")
    with pytest.raises(LabError, match="refuses these settings"):
        compare.main(dataclasses.replace(TINY, precision="7-bit"), "")


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mishkit", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **environment},
    )


def test_two_processes_train_one_network(tmp_path: Path):
    """Fabric's DDP for real: one table, one report, weights kept in step."""
    done = command(
        "compare", "--data", "digits", "--train-samples", 96, "--test-samples", 41,
        "--channels", 4, "--epochs", 2, "--seeds", 1, "--batch-size", 32,
        "-a", "torch_relu_inplace", "-a", "mish", "--accelerator", "cpu",
        "--devices", 2, "--strategy", "ddp", "--threads", 1, "--output", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(str(tmp_path / "report.html"))
    assert done.stdout.count("Report:") == 1
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["devices"] == 2 and stored["data"]["test"] == 41
    steps = pd.read_csv(tmp_path / "steps.csv")
    assert len(steps) == 2 * 2 * 3  # 32 images a step in all, so 16 for each process
    for epoch in stored["epochs"]:
        # The whole test set was counted once: the accuracy is a multiple of 1/41.
        hits = epoch["test_accuracy"] * 41
        assert hits == pytest.approx(round(hits), abs=1e-4)


def test_the_command_line_says_what_is_wrong_in_one_line():
    done = command("compare", "-a", "mush")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("mishkit: unknown activation 'mush'")
    assert done.stderr.count("\n") == 1


def test_the_command_line_without_its_packages(tmp_path: Path):
    """Names the extra, whichever package is the missing one."""
    for package in ("typer", "lightning_fabric"):
        hidden = tmp_path / package
        hidden.mkdir()
        (hidden / "sitecustomize.py").write_text(f"import sys; sys.modules[{package!r}] = None\n")
        path = os.pathsep.join(filter(None, [str(hidden), os.environ.get("PYTHONPATH")]))
        done = command("compare", PYTHONPATH=path)
        assert done.returncode == 1, package
        assert done.stderr.count("\n") == 1 and 'pip install "mishkit[lab]"' in done.stderr


def test_version_and_help():
    import mishkit

    assert command("--version").stdout == f"mishkit {mishkit.__version__}\n"
    shown = command("--help")
    assert shown.returncode == 0 and "compare" in shown.stdout
