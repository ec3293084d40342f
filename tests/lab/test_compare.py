"""`mishkit compare`: what it measures, what it concludes, what it writes, and how it goes on."""

import dataclasses
import io
import json
import math
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
from rich.console import Console
from scipy import stats
from typer.testing import CliRunner

import mishkit as mk
from mishkit.lab import LabError
from mishkit.lab.common import contenders
from mishkit.lab.study import (
    compare,
    data,
    intervals,
    networks,
    report,
    sweep,
    text,
    training,
    trial,
    verdicts,
)
from mishkit.lab.study.comparison import Comparison, choose
from mishkit.lab.study.settings import Settings, Trial
from mishkit.lab.study.trial import Watcher
from mishkit_cli import app

TINY = Settings(
    activations=("torch_relu_inplace", "torch_mish", "mish"),
    data=("digits",),
    train_samples=96,
    test_samples=40,
    channels=4,
    epochs=2,
    seeds=2,
    lr=(5e-3,),
    batch_size=32,
    accelerator="cpu",
    threads=1,  # small tensors, and other tests may be running
)


def run(
    settings: Settings, folder: Path, watcher: Watcher | None = None, runner: object = None
) -> Comparison:
    with sweep.StopRequest() as stop:
        watcher = watcher or Watcher()
        return compare.compare(
            dataclasses.replace(settings, output=folder),
            "mishkit compare",
            sweep.Store(folder, settings.shared(1)),
            runner or sweep.one_by_one(watcher, stop.is_set),
            watcher,
        )


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return run(TINY, tmp_path_factory.mktemp("result"))


def numbers(result: Comparison) -> list[tuple]:
    """Everything of a comparison that is not a time."""
    return [
        (settings.id, {name: value for name, value in measured.items() if name not in trial.TIMES})
        for settings, measured in result.done
    ]


def rows(folder: Path) -> dict[str, dict]:
    """What the file of a sweep says of each trial, times apart."""
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    return {
        line["trial"]: {k: v for k, v in line["result"].items() if k not in trial.TIMES}
        for line in lines
    }


# ---- trials --------------------------------------------------------------------------------------


def test_a_trial_is_a_function_of_its_settings(result: Comparison):
    settings, measured = result.done[-1]
    through_json = json.loads(json.dumps(settings.to_json()))
    assert Trial.from_json(through_json) == settings
    again = json.loads(json.dumps(trial.run(through_json), allow_nan=False))
    assert again.keys() == measured.keys()
    changed = {name for name in again if again[name] != measured[name]}
    assert changed <= trial.TIMES


def test_the_id_stands_for_the_settings_but_not_for_places():
    base = TINY.trial("final", "digits", "mish", 5e-3, 0, 1)
    ids = {
        dataclasses.replace(base, **{name: value}).id
        for name, value in {
            "seed": 1, "lr": 1e-3, "phase": "tune", "data": "mnist", "activation": "h_mish",
            "epochs": 3, "train_samples": 97, "model": "timm:x", "options": ("a=1",), "code": "f",
        }.items()
    }  # fmt: skip
    assert len(ids | {base.id}) == 11
    assert dataclasses.replace(base, data_root="/elsewhere", download=True).id == base.id


def test_another_seed_gives_other_numbers(result: Comparison):
    finals = result.finals
    assert finals[finals["activation"] == "mish"]["train_loss"].nunique() == 2


def test_every_training_is_done_and_in_turn(result: Comparison):
    assert result.is_complete
    done = [(settings.activation, settings.seed) for settings, _ in result.done]
    first = [("torch_relu_inplace", 0), ("torch_mish", 0), ("mish", 0)]
    assert done == [*first, ("torch_mish", 1), ("mish", 1), ("torch_relu_inplace", 1)]
    for _, measured in result.done:
        assert len(measured["accuracy"]) == len(measured["seconds"]) == 2
        assert measured["steps"] == 2 * 96 // 32
        assert measured["step_ms"] >= max(measured["forward_ms"], measured["backward_ms"]) > 0


def test_contenders_share_weights_and_batches():
    """A contender that computes the same function in the same way gets the same numbers."""
    settings = dataclasses.replace(TINY, epochs=1)
    seen = [
        trial.run(settings.trial("final", "digits", name, 5e-3, 0, 1).to_json())["train_loss"]
        for name in ("torch_relu", "torch.nn.ReLU", "torch.nn.functional.relu")
    ]
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("spec", ["digits", "sklearn:digits"])
def test_networks_learn(spec: str):
    settings = dataclasses.replace(TINY, train_samples=640, test_samples=200, channels=8, epochs=10)
    for name in ("torch_relu_inplace", "mish"):
        measured = trial.run(settings.trial("final", spec, name, 5e-3, 0, 1).to_json())
        assert measured["accuracy"][-1] > 0.8
        assert measured["model"] == ("mlp" if spec.startswith("sklearn") else "seven-layer")


def test_kept_bytes_are_those_of_the_network(result: Comparison):
    """Counted by hand: a convolution keeps its input, ReLU its output, Mish its input.

    ReLU's output is the next convolution's input; Mish's output is too, but at the last site, where
    the mean over space keeps nothing. So ReLU costs one tensor a site, and Mish two but one.
    """
    pixels = [8 * 8] * 2 + [4 * 4] * 2 + [2 * 2] * 3
    one_each = 4 * 4 * sum(pixels)  # float32
    summary = verdicts.summarise(result).set_index("activation")
    of_head = summary.loc["torch_relu_inplace", "kept_bytes"] - one_each
    last = 4 * 4 * 2 * 2
    assert 0 <= of_head <= 200  # the head: pooled features and log-probabilities
    for mish in ("torch_mish", "mish"):
        assert summary.loc[mish, "kept_bytes"] == pytest.approx(2 * one_each - last + of_head)
    assert summary.loc["torch_relu_inplace", "kept_ratio"] == 1


def test_precision_is_fabrics():
    kept = {}
    for precision in ("32-true", "bf16-true"):
        settings = dataclasses.replace(TINY, precision=precision, epochs=1)
        chosen = settings.trial("final", "digits", "torch_mish", 1e-3, 0, 1)
        kept[precision] = trial.run(chosen.to_json())["kept_bytes"]
    assert 0.5 <= kept["bf16-true"] / kept["32-true"] < 0.55


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


# ---- models --------------------------------------------------------------------------------------

MODEL = """
import torch
from torch import nn

def build(num_classes, in_chans):
    return nn.Sequential(
        nn.Conv2d(in_chans, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 4, 1), nn.Sigmoid(),
        nn.Flatten(), nn.LazyLinear(num_classes) if False else nn.Linear(144, num_classes),
    )

class Shortcut(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)

    def forward(self, x):
        x = self.first(x.flatten(1))
        return self.last(self.act(x) + x)

def bare(): return nn.Linear(64, 10)
def scores(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.ReLU())
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MODEL)
    return path


def build(name: str, activation: str, seed: int = 0, spec: str = "digits") -> tuple:
    loaded = data.load(spec, train_samples=40, test_samples=10)
    return networks.build(name, (), loaded, 4, contenders.find(activation), seed)


def test_any_model_gets_the_activation_at_every_site_but_gates(model: Path):
    network, name, sites = build(f"{model}:build", "mish")
    import mishkit

    assert (name, sites) == (f"{model}:build", 1)
    assert isinstance(network[2], mishkit.Mish) and isinstance(network[4], nn.Sigmoid)
    other = build(f"{model}:build", "torch_gelu")[0]
    assert torch.equal(network[0].weight, other[0].weight)
    assert not torch.equal(network[0].weight, build(f"{model}:build", "mish", 1)[0][0].weight)


@pytest.mark.usefixtures("torchvision")
def test_a_model_of_timm_takes_the_channels_and_classes_of_the_data():
    pytest.importorskip("timm")
    network, _, sites = build("timm:resnet18", "mish_inplace")
    assert network.conv1.in_channels == 1 and network.fc.out_features == 10
    assert sites == 17 and not any(type(m) is nn.ReLU for m in network.modules())


def sentences(n: int = 320) -> data.Labelled:
    """Of up to 12 words; good ones hold the word 7."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(8, 100, (n, 12), generator=generator)
    labels = torch.arange(n) % 2
    words[labels == 1, 2] = 7
    words[::3, 5:] = 0
    cut = n * 3 // 4
    parts = words[:cut], labels[:cut], words[cut:], labels[cut:]
    return data.Labelled("sentences", "", *parts, classes=2)


def test_sentences_go_through_a_transformer():
    loaded = sentences()
    models = {
        name: networks.build("auto", (), loaded, 4, contenders.find(name), 0)
        for name in ("torch_relu", "mish")
    }
    network, name, sites = models["mish"]
    assert (name, sites) == ("transformer", 2)
    assert sum(type(m) is mk.Mish for m in network.modules()) == sites
    for ours, theirs in zip(
        network.state_dict().items(), models["torch_relu"][0].state_dict().items(), strict=True
    ):
        assert ours[0] == theirs[0] and torch.equal(ours[1], theirs[1]), ours[0]
    first, second = network.layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)
    # What stands where there is no word makes no difference.
    network.eval()
    short = loaded.train_inputs[:1]
    assert short[0, 5:].eq(0).all()
    before = network(short)
    with torch.no_grad():
        network.words.weight[0] = 1e3
        network.places[5:] = -1e3
    torch.testing.assert_close(network(short), before)
    with pytest.raises(LabError, match="mlp does not take sentences"):
        networks.build("mlp", (), loaded, 4, contenders.find("mish"), 0)


@pytest.mark.parametrize("activation", ["torch_relu_inplace", "mish_inplace"])
def test_the_transformer_learns_a_word(activation: str):
    loaded = sentences()
    network, _, _ = networks.build("auto", (), loaded, 4, contenders.find(activation), 0)
    fabric = trial.launch("cpu", "auto", "1", 1, "32-true")
    trained = training.train(
        fabric, network, loaded, epochs=8, batch_size=16, lr=1e-2, seed=0,
        on_epoch=lambda number, epoch: None, is_stopping=lambda: False,
    )  # fmt: skip
    assert trained.epochs[-1].accuracy > 0.95


def test_a_model_of_ones_own_hears_how_many_words_there_are(tmp_path: Path):
    path = tmp_path / "bag.py"
    path.write_text(
        "from torch import nn\n"
        "def build(num_classes, num_tokens):\n"
        "    return nn.Sequential(nn.EmbeddingBag(num_tokens, num_classes), nn.ReLU())\n"
    )
    network, _, sites = networks.build(
        f"{path}:build", (), sentences(), 4, contenders.find("mish"), 0
    )
    assert network[0].num_embeddings == text.TOKENS and sites == 1


def test_warming_up_leaves_the_statistics_of_normalisations(model: Path):
    """Or a contender's kept bytes would depend on what a seed's first batch did thrice."""
    network, _, _ = build(f"{model}:build", "mish")
    loaded = data.load("digits", train_samples=40, test_samples=10)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    training._warm_up(
        trial.launch("cpu", "auto", "1", 1, "32-true"),
        network, loaded.train_inputs, loaded.train_labels,
    )  # fmt: skip
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, before[name]), name


@pytest.mark.parametrize(
    ("name", "activation", "spec", "message"),
    [
        ("{}:Shortcut", "mish_inplace", "digits", "needs what mish_inplace overwrites"),
        ("{}:bare", "mish", "digits", "no activation that can be replaced|itself"),
        ("{}:scores", "mish", "digits", "a score for each of the 10 classes"),
        ("{}:build", "mish", "sklearn:wine", "does not take sklearn:wine"),
        ("mlp", "mish", "digits", "mlp does not take digits"),
        ("seven-layer", "mish", "sklearn:wine", "seven-layer does not take"),
        ("hf:gpt", "mish", "digits", "a tensor of scores"),
        ("sevenlayer", "mish", "digits", "what is"),
    ],
)
def test_a_model_that_does_not_fit_is_one_clear_line(
    model: Path, name: str, activation: str, spec: str, message: str
):
    with pytest.raises(LabError, match=message) as caught:
        build(name.format(model), activation, spec=spec)
    assert "\n" not in str(caught.value)


def test_a_model_file_that_changes_is_noticed(model: Path):
    settings = dataclasses.replace(TINY, model=f"{model}:build", epochs=1)
    before = settings.trial("final", "digits", "mish", 5e-3, 0, 1)
    model.write_text(MODEL + "\n")
    with pytest.raises(LabError, match="has changed since the sweep began"):
        trial.run(before.to_json())


# ---- the sweep -----------------------------------------------------------------------------------

SEARCH = dataclasses.replace(
    TINY, activations=("torch_relu", "mish"), lr=(1e-2, 1e-4), seeds=1, tuning_seeds=1, epochs=2
)


def test_rates_are_searched_on_training_data_alone(tmp_path: Path):
    result = run(SEARCH, tmp_path)
    tuned = result.trials[result.trials["phase"] == "tune"]
    assert len(tuned) == 4 and len(result.finals) == 2
    assert set(tuned["seed"]) == {1000} and set(result.finals["seed"]) == {0}
    assert set(tuned["train_size"]) == {77} and set(tuned["test_size"]) == {19}  # of the 96
    assert set(result.finals["train_size"]) == {96} and set(result.finals["test_size"]) == {40}
    for (_, activation), choice in result.choices.items():
        own = tuned[tuned["activation"] == activation]
        assert choice.lr == own.sort_values("lr").set_index("lr")["accuracy"].idxmax()
        assert choice.at_edge
        assert set(result.finals[result.finals["activation"] == activation]["lr"]) == {choice.lr}
    page = report.render(result)
    assert "At the edge of the grid" in page


def test_of_equal_rates_the_lowest_is_taken():
    settings = dataclasses.replace(SEARCH, lr=(1e-3, 1e-2, 1e-1), activations=("mish",))
    done = [
        (settings.trial("tune", "digits", "mish", lr, 1000, 1), {"accuracy": [accuracy]})
        for lr, accuracy in ((1e-3, 0.4), (1e-2, 0.5), (1e-1, 0.5))
    ]
    choice = choose(settings, done)["digits", "mish"]
    assert choice.lr == 1e-2 and not choice.at_edge


class _InterruptAfter(Watcher):
    """Presses Ctrl-C in the midst of the training after `count` finished ones."""

    def __init__(self, count: int) -> None:
        self.left = count

    def trial(self, trial: Trial, result: dict) -> None:
        self.left -= 1

    def epoch(self, trial: Trial, number: int, accuracy: float) -> None:
        if self.left == 0:
            self.left = -1
            signal.raise_signal(signal.SIGINT)


def test_after_ctrl_c_the_same_command_goes_on(result: Comparison, tmp_path: Path):
    before = signal.getsignal(signal.SIGINT)
    partial = run(TINY, tmp_path, _InterruptAfter(4))
    assert signal.getsignal(signal.SIGINT) is before
    assert not partial.is_complete
    assert numbers(partial) == numbers(result)[:4]
    page = report.render(partial)
    assert re.search(r"Stopped after 4 of\s+6 final trainings", page)
    assert "1 of 2 seeds" in page
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"trial": "cut sho')  # as by a crash while it was written

    class Count(Watcher):
        trained = 0

        def trial(self, trial: Trial, result: dict) -> None:
            self.trained += 1

    count = Count()
    assert numbers(run(TINY, tmp_path, count)) == numbers(result)
    assert count.trained == 2
    more = run(dataclasses.replace(TINY, seeds=3), tmp_path, count)
    assert count.trained == 2 + 3 and more.is_complete
    assert len(rows(tmp_path)) == 9


@pytest.mark.parametrize("changed", [{"epochs": 3}, {"train_samples": 90}, {"threads": 2}])
def test_other_settings_are_not_mixed_in(tmp_path: Path, changed: dict):
    other = dataclasses.replace(TINY, **changed)
    (name,) = changed
    sweep.Store(tmp_path, other.shared(1))  # in which nothing was finished
    stored = TINY.trial("final", "digits", "mish", 5e-3, 0, 1)
    ((_, result),) = made_up({"mish": [[0.5]]}).done
    sweep.Store(tmp_path, TINY.shared(1)).add(stored, result)
    with pytest.raises(LabError, match=f"holds a sweep with {name} .*--fresh"):
        sweep.Store(tmp_path, other.shared(1))
    assert stored in sweep.Store(tmp_path, TINY.shared(1))
    assert stored not in sweep.Store(tmp_path, other.shared(1), fresh=True)


@pytest.mark.slow
def test_worker_processes_give_the_same_rows(tmp_path: Path):
    serial, parallel = tmp_path / "serial", tmp_path / "parallel"
    settings = dataclasses.replace(SEARCH, epochs=1)
    run(settings, serial)
    with sweep.in_processes(1, lambda: False) as runner:
        run(settings, parallel, runner=runner)
        # A mistake in a trial is told as it is in this process.
        wrong = settings.trial("final", "digits", "mush", 1e-3, 0, 1)
        with pytest.raises(LabError, match="unknown activation 'mush'"):
            list(runner([wrong]))
    assert len(rows(serial)) == 6 and rows(serial) == rows(parallel)


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_ray_cluster_gives_the_same_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("ray")
    settings = dataclasses.replace(SEARCH, epochs=1)
    on_ray = dataclasses.replace(settings, ray="local", workers=1, output=tmp_path / "ray")
    assert compare.main(on_ray, "mishkit compare") == 0
    assert "report.html" in capsys.readouterr().out
    run(settings, tmp_path / "here")
    assert rows(tmp_path / "ray") == rows(tmp_path / "here")


def test_without_ray_its_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(LabError, match=r"ray is not installed: pip install .*ray"),
        sweep.on_ray("local", 1, 1, 0, lambda: False),
    ):
        pass


# ---- intervals and verdicts ----------------------------------------------------------------------


def test_an_interval_is_students():
    values = [0.1, 0.4, 0.35, 0.8, 0.2]
    estimate = intervals.interval(values)
    low, high = stats.t.interval(0.95, 4, loc=estimate.mean, scale=stats.sem(values))
    assert (estimate.mean - estimate.half, estimate.mean + estimate.half) == pytest.approx(
        (low, high)
    )
    assert math.isnan(intervals.interval([1.0]).half) and math.isnan(intervals.interval([]).mean)


def made_up(accuracies: dict[str, list[list[float]]], **changes: object) -> Comparison:
    """A comparison with given accuracies, by activation, seed and epoch, and simple times."""
    settings = dataclasses.replace(
        TINY,
        activations=tuple(accuracies),
        **{"target": (0.9,), "seeds": max(map(len, accuracies.values())), **changes},
    )
    done = []
    for number, (name, seeds) in enumerate(accuracies.items()):
        for seed, accuracy in enumerate(seeds):
            measured = {
                "model": "seven-layer", "sites": 7, "parameters": 100, "source": "made up",
                "train_size": 96, "test_size": 40, "shape": [1, 8, 8], "classes": 10, "steps": 6,
                "kept_bytes": 1024.0 * (1 + number), "forward_ms": 2.0, "threads": 1,
                "backward_ms": 4.0 * (1 + number), "step_ms": 2 + 4.0 * (1 + number),
                "step_ms_p10": 1.0, "step_ms_p90": 9.0, "train_loss": [0.5] * len(accuracy),
                "loss": [0.5] * len(accuracy), "accuracy": accuracy, "processor": "made up",
                "seconds": [2.0] * len(accuracy), "torch": "2", "mishkit": "0", "finished": "now",
            }  # fmt: skip
            done.append((settings.trial("final", "digits", name, 5e-3, seed, 1), measured))
    return Comparison(settings, "mishkit compare", {"mishkit": "0"}, done)


def test_the_table_says_what_was_measured():
    result = made_up(
        {
            "torch_relu": [[0.80, 0.91, 0.93], [0.90, 0.92, 0.95]],
            "mish": [[0.70, 0.80, 0.90], [0.70, 0.80, 0.85]],
            "h_mish": [[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]],
        }
    )
    relu, mish, h_mish = verdicts.summarise(result).to_dict("records")
    assert relu["epochs_to_target"] == 1.5 and relu["budget_s"] == 3.0
    assert relu["budget_s_half"] == pytest.approx(12.706 * 1.0, rel=1e-3)  # of 2 and 4
    assert relu["reached"] == 2 and mish["reached"] == 1 and h_mish["reached"] == 0
    assert mish["budget_s"] == 6.0 and math.isnan(h_mish["budget_s"])
    assert mish["budget_verdict"] == "–"  # one seed did not get there
    assert relu["accuracy"] == pytest.approx(94)
    assert mish["accuracy_diff"] == pytest.approx(((90 - 93) + (85 - 95)) / 2)
    assert mish["step_ratio"] == pytest.approx((2 + 8) / (2 + 4))
    assert mish["kept_ratio"] == 2 and relu["kept_ratio"] == 1


def test_what_never_reached_the_target_shows_a_dash(capsys: pytest.CaptureFixture[str]):
    from mishkit.lab.study import console

    result = made_up({"torch_relu": [[0.95], [0.96]], "mish": [[0.5], [0.5]]})
    console.show(result)
    shown = capsys.readouterr().out
    assert re.search(r"mishkit Mish\s+0\.005\s+–\s+–", shown)
    assert "2 seeds" in shown
    assert report.render(result).count("not reached") == 2


@pytest.mark.parametrize("width", [40, 60, 80])
def test_no_name_is_broken_in_a_narrow_terminal(width: int, monkeypatch: pytest.MonkeyPatch):
    from mishkit.lab.study import console

    out = Console(file=io.StringIO(), width=width, highlight=False)
    monkeypatch.setattr(console, "_console", out)
    console.show(made_up({"torch_relu": [[0.95], [0.96]], "composed_mish": [[0.5], [0.5]]}))
    assert isinstance(out.file, io.StringIO)
    tables = out.file.getvalue().partition("Too few seeds")[0]
    words = tables.split()
    assert {"torch", "ReLU", "Mish", "by", "hand", "0.005", "2.00", "activation"} <= {
        word.strip(":") for word in words
    }
    assert "…" not in tables and max(map(len, tables.splitlines())) <= width


CLOSE = {"torch_relu": [[0.90], [0.92], [0.91]], "mish": [[0.92], [0.91], [0.91]]}
APART = {"torch_relu": [[0.90], [0.92], [0.91]], "mish": [[0.95], [0.97], [0.965]]}
BELOW = {"torch_relu": [[0.95], [0.97], [0.965]], "mish": [[0.90], [0.92], [0.91]]}


@pytest.mark.parametrize(
    ("accuracies", "verdict", "headline"),
    [
        (
            CLOSE,
            "not told apart",
            "do not tell the accuracies of these 2 activations apart",
        ),
        (APART, "better", "In accuracy, mishkit Mish ends 5.2 points above torch ReLU"),
        (BELOW, "worse", "In accuracy, mishkit Mish ends 5.2 points below torch ReLU"),
        ({"torch_relu": [[0.5]] * 3, "mish": [[0.6]] * 3}, "not told apart", "do not tell"),
        ({name: seeds[:2] for name, seeds in APART.items()}, "too few seeds", "Too few seeds"),
        ({"torch_relu": [[0.9]]}, None, "nothing to compare it with"),
    ],
)
def test_conclusions_are_those_that_the_intervals_allow(
    accuracies: dict, verdict: str | None, headline: str
):
    result = made_up(accuracies)
    summary = verdicts.summarise(result)
    assert headline in verdicts.headline(summary, result.baseline.label)
    assert headline in report.render(result)
    if verdict is not None:
        assert list(summary["accuracy_verdict"]) == ["baseline", verdict]


def test_many_comparisons_widen_the_intervals_of_verdicts():
    """Each would do alone; together they do not."""
    seeds = {"torch_relu": [[0.90], [0.90], [0.90], [0.90]]}
    other = [[0.910], [0.915], [0.925], [0.930]]
    alone = verdicts.summarise(made_up({**seeds, "mish": other}))
    assert alone["accuracy_verdict"][1] == "better"
    assert alone["accuracy_diff_wide"][1] == alone["accuracy_diff_half"][1]
    names = ("mish", "h_mish", "torch_mish", "torch_gelu", "torch_silu", "hard_mish", "swish")
    many = verdicts.summarise(made_up({**seeds, **dict.fromkeys(names, other)}))
    assert set(many["accuracy_verdict"][1:]) == {"not told apart"}
    assert (many["accuracy_diff_half"][1:] < many["accuracy_diff"][1:]).all()


def test_the_target_is_a_point_below_the_baseline_unless_given():
    assert made_up(APART, target=()).targets == {"digits": 0.9}
    assert made_up(APART, target=(), baseline="mish").targets == {"digits": 0.95}
    assert made_up(APART, target=(0.5,)).targets == {"digits": 0.5}


# ---- the report ----------------------------------------------------------------------------------


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


def test_the_report_is_one_self_contained_file(tmp_path: Path):
    result = run(SEARCH, tmp_path)
    path = report.write(result)
    page = path.read_text(encoding="utf-8")
    links = _Links()
    links.feed(page)
    assert set(links.fetched) == set(report.TABLES)  # to be clicked, none is fetched
    assert links.tags.count("svg") == 5
    assert not {"script", "link", "img", "iframe"} & set(links.tags)
    assert not re.search(r"url\((?!#)|@import", page)
    assert "var(--c0)" in page and "prefers-color-scheme: dark" in page
    assert torch.__version__ in page and "mishkit compare" in page
    for contender in result.contenders:
        assert contender.label in page
    # Ids are unique over all figures, so that no figure borrows another's shapes.
    referred = set(re.findall(r"url\(#([^)]+)\)|xlink:href=\"#([^\"]+)\"", page))
    for name in {url or link for url, link in referred}:
        assert page.count(f'id="{name}"') == 1

    trials = pd.read_csv(tmp_path / "trials.csv", dtype={"trial": str})
    assert len(trials) == 6 and list(trials["trial"]) == [
        settings.id for settings, _ in result.done
    ]
    assert len(pd.read_csv(tmp_path / "epochs.csv")) == 6 * 2
    for name in trials["trial"]:
        assert page.count(f'id="trial-{name}"') == 1


def test_every_number_is_traced_to_rows_of_the_table(tmp_path: Path):
    """The rows that a number names in its title give it."""
    result = made_up(APART, output=tmp_path)
    page = report.write(result).read_text(encoding="utf-8")
    trials = pd.read_csv(tmp_path / "trials.csv", dtype={"trial": str}).set_index("trial")
    title = r'title="mean of (\w+) over (?:the )?\d+ final trials[^:]*: ([\w ]+)">'
    traced = re.findall(title + r"\s*([^<]+)<small>± ([^<]+)<", page)
    assert len(traced) == 2 * 6
    for column, ids, mean, half in traced:
        values = trials.loc[ids.split(), column] * (100 if column == "accuracy" else 1)
        rounding = 0.51 * 10 ** -len(mean.strip().partition(".")[2])
        assert float(mean) == pytest.approx(values.mean(), abs=rounding)
        spread = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        assert float(half) == pytest.approx(spread, abs=rounding)


def test_what_was_asked_for_is_escaped(result: Comparison):
    page = report.render(dataclasses.replace(result, command="mishkit <script>alert(1)</script>"))
    assert "<script>" not in page


# ---- contenders and the command line -------------------------------------------------------------


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
        ("no.such.module:thing", "can't be imported"),
        ("torch.nn.Linear", "does not work"),
        ("torch.sum", "does not keep the shape"),
        ("torch:pi", "neither a module nor a function"),
    ],
)
def test_a_wrong_activation_is_one_clear_line(spec: str, message: str):
    with pytest.raises(LabError, match=message) as caught:
        contenders.find(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 100}, "more than the 96 samples"),
        ({"precision": "7-bit"}, "refuses these settings"),
        ({"baseline": "silu"}, "none of the activations"),
        ({"lr": (0.0,)}, "learning rates above 0"),
        ({"target": (0.5, 0.6)}, "once for each --data"),
        ({"workers": 2, "devices": "2"}, "--devices spreads each"),
        ({"activations": ()}, "no activation"),
    ],
)
def test_wrong_settings_are_one_clear_line(changed: dict, message: str, tmp_path: Path):
    with pytest.raises(LabError, match=message):
        compare.main(dataclasses.replace(TINY, output=tmp_path, **changed), "")


def python(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **environment},
    )


@pytest.mark.slow
def test_two_processes_of_torchrun_give_the_rows_of_one(tmp_path: Path):
    """DDP for real: one table, one report, and the same samples in every step.

    Gradients are summed in another order, so that losses differ in their last digits.
    """
    done = python(
        "-m", "torch.distributed.run", "--nproc-per-node", 2, "--standalone",
        "-m", "mishkit", "compare", "--data", "digits", "--train-samples", 95,
        "--test-samples", 41, "--channels", 4, "--epochs", 2, "--seeds", 1, "--batch-size", 32,
        "-a", "torch_relu_inplace", "-a", "mish", "--lr", "5e-3", "--accelerator", "cpu",
        "--threads", 1, "--output", tmp_path / "two",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Report:") == 1
    settings = dataclasses.replace(
        TINY, train_samples=95, test_samples=41, seeds=1, activations=("torch_relu_inplace", "mish")
    )
    alone = run(settings, tmp_path / "one")
    assert json.loads((tmp_path / "two" / "sweep.json").read_text())["devices"] == 2
    # Another number of devices is another setting, so the ids are others; the order is the same.
    for by_one, by_two in zip(
        rows(tmp_path / "one").values(), rows(tmp_path / "two").values(), strict=True
    ):
        assert by_one["steps"] == by_two["steps"] == 2 * (95 // 32)
        for name in ("train_loss", "loss"):
            assert by_two.pop(name) == pytest.approx(by_one.pop(name), rel=1e-5)
        assert by_two.pop("accuracy") == pytest.approx(by_one.pop("accuracy"), abs=1.01 / 41)
        assert by_two.pop("kept_bytes") == pytest.approx(by_one.pop("kept_bytes"), rel=2e-3)
        assert by_one == by_two
    assert alone.is_complete


def test_the_command_line_says_what_is_wrong_in_one_line():
    done = CliRunner().invoke(app, ["compare", "-a", "mush"])
    assert done.exit_code == 1 and done.stdout == ""
    assert done.stderr.startswith("mishkit: unknown activation 'mush'")
    assert done.stderr.count("\n") == 1


def test_the_command_line_without_its_packages(tmp_path: Path):
    """Names what is missing; without typer test_packaging looks at it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys; sys.modules['lightning_fabric'] = None\n"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = python("-m", "mishkit", "compare", PYTHONPATH=path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "pip install" in done.stderr
    assert "lightning-fabric" in done.stderr and "mishkit[" not in done.stderr


def test_options_set_the_fields_of_the_settings(monkeypatch: pytest.MonkeyPatch):
    chosen: list[Settings] = []
    monkeypatch.setattr(compare, "main", lambda settings, command: chosen.append(settings))
    options = (
        "-a relu -a mish --data digits --model net.py:build --option width=3 --option depth=4 "
        "--data-root there --download --image-size 8 --train-samples 90 --test-samples 20 "
        "--channels 4 --epochs 1 --seeds 3 --seed 7 --batch-size 32 --lr 1e-2,1e-3 "
        "--tuning-seeds 1 --target 0.5 --baseline mish --threads 2 --workers 3 --ray local "
        "--precision bf16-mixed --accelerator cpu --devices 2 --strategy ddp -o here --fresh"
    )
    for arguments in ([], options.split()):
        assert CliRunner().invoke(app, ["compare", *arguments]).exit_code == 0
    given = {
        "activations": ("relu", "mish"), "data": ("digits",), "model": "net.py:build",
        "options": ("width=3", "depth=4"), "data_root": Path("there"), "download": True,
        "image_size": 8, "train_samples": 90, "test_samples": 20, "channels": 4, "epochs": 1,
        "seeds": 3, "first_seed": 7, "batch_size": 32, "lr": (1e-2, 1e-3), "tuning_seeds": 1,
        "target": (0.5,), "baseline": "mish", "threads": 2, "workers": 3, "ray": "local",
        "precision": "bf16-mixed", "accelerator": "cpu", "devices": "2", "strategy": "ddp",
        "output": Path("here"), "fresh": True,
    }  # fmt: skip
    assert set(given) == {field.name for field in dataclasses.fields(Settings)}
    assert chosen == [Settings(), Settings(**given)]


def test_version_and_help():
    from mishkit import __version__

    assert CliRunner().invoke(app, ["--version"]).stdout == f"mishkit {__version__}\n"
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0 and "compare" in shown.stdout


def test_many_names_are_counted():
    assert verdicts._who(["a", "b", "c"], 5) == "a, b and c"
    assert verdicts._who(["a", "b", "c", "d"], 5) == "4 of 5 activations"
