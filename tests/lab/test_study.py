"""The study that is kept in docs: its page says what its tables hold, and so does its report."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from common import ROOT

pytest.importorskip("pandas", reason="the lab's dependencies are an extra")

from mishkit.lab.common import formats
from mishkit.lab.study import intervals, verdicts

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return __import__("study")
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_the_page_is_made_from_the_tables(study: ModuleType) -> None:
    assert study.page(*study.tables(study.FOLDER)) == study.PAGE.read_text(encoding="utf-8")


def test_the_summary_is_made_from_the_trials(study: ModuleType) -> None:
    """Means, differences on equal seeds and verdicts, computed anew from the rows of trials."""
    summary, trials, epochs = study.tables(study.FOLDER)
    final = trials[trials["phase"] == "final"]
    assert len(summary) == len(study.ACTIVATIONS) * len(study.DATA)
    pairs = len(summary) - len(study.DATA)
    last = epochs.loc[epochs.groupby("trial")["epoch"].idxmax()].set_index("trial")["accuracy"]
    for row in summary.to_dict("records"):
        own = final[final["trial"].isin(row["trials"].split())].set_index("seed").sort_index()
        assert set(own["data"]) == {row["data"]} and set(own["activation"]) == {row["activation"]}
        assert len(own) == int(study.SETTINGS["--seeds"]) and set(own["lr"]) == {row["lr"]}
        assert (last[own["trial"]].to_numpy() == own["accuracy"].to_numpy()).all()
        estimate = intervals.interval(100 * own["accuracy"])
        assert (estimate.mean, estimate.half) == pytest.approx(
            (row["accuracy"], row["accuracy_half"])
        )
        base = final[(final["data"] == row["data"]) & (final["activation"] == study.BASELINE)]
        gaps = 100 * (own["accuracy"] - base.set_index("seed").sort_index()["accuracy"])
        wide = intervals.interval(gaps, 1 - 0.05 / pairs)
        if row["activation"] == study.BASELINE:
            assert row["accuracy_verdict"] == verdicts.BASE
            continue
        told = abs(wide.mean) > wide.half
        word = verdicts.BETTER if wide.mean > 0 else verdicts.WORSE
        assert row["accuracy_verdict"] == (word if told else verdicts.OPEN)


def test_the_rates_are_those_that_tuned_best(study: ModuleType) -> None:
    summary, trials, _ = study.tables(study.FOLDER)
    tuned = trials[trials["phase"] == "tune"]
    scores = tuned.groupby(["data", "activation", "lr"])["accuracy"].mean()
    for row in summary.to_dict("records"):
        of_rates = scores[row["data"], row["activation"]]
        assert list(of_rates.index) == [float(lr) for lr in study.SETTINGS["--lr"].split(",")]
        assert of_rates[row["lr"]] == pytest.approx(of_rates.max(), abs=1e-12)


def test_the_report_holds_the_numbers_of_the_tables(study: ModuleType) -> None:
    """Every mean names the trials that it comes from, and they give it."""
    report = (study.FOLDER / "report.html").read_text(encoding="utf-8")
    trials = study.tables(study.FOLDER)[1].set_index("trial")
    title = r'title="mean of (\w+) over \d+ final trials of trials.csv: ([^"]+)">'
    traced = re.findall(title + r"\s*([^<]+?)\s*<small>± ([^<]+)<", report)
    assert len(traced) == 4 * len(study.ACTIVATIONS) * len(study.DATA)
    for column, ids, mean, half in traced:
        values = trials.loc[ids.split(), column] * (100 if column == "accuracy" else 1)
        estimate = intervals.interval(values)
        wanted = formats.with_half(estimate.mean, estimate.half, 4 if column == "accuracy" else 3)
        assert f"{mean} ± {half}" == wanted, column


def test_what_runs_the_study_asks_for_all_of_it(study: ModuleType) -> None:
    words = study.command(Path("data"), Path("out"))
    assert [words[i + 1] for i, word in enumerate(words) if word == "-a"] == [*study.ACTIVATIONS]
    assert [words[i + 1] for i, word in enumerate(words) if word == "--data"] == [*study.DATA]


def test_the_readme_says_what_the_tables_hold(study: ModuleType) -> None:
    summary, *_ = study.tables(study.FOLDER)
    readme = (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")
    assert f"<!-- study: begin -->\n{study.for_readme(summary)}<!-- study: end -->" in readme
