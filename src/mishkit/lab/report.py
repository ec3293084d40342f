"""The report of `mishkit compare`: a self-contained HTML file, and the numbers as CSV and JSON."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from scipy.special import stdtrit  # type: ignore[import-untyped]

from . import formats, plots
from .compare import Comparison, epochs_table, results_json, steps_table, summarise


def write(result: Comparison) -> Path:
    """Writes all files into the output folder; returns the path of report.html."""
    folder = result.settings.output
    folder.mkdir(parents=True, exist_ok=True)
    summarise(result).to_csv(folder / "summary.csv", index=False)
    epochs_table(result).to_csv(folder / "epochs.csv", index=False)
    steps_table(result).to_csv(folder / "steps.csv", index=False, float_format="%.4f")
    (folder / "results.json").write_text(results_json(result), encoding="utf-8")
    path = folder / "report.html"
    path.write_text(render(result), encoding="utf-8")
    return path


def render(result: Comparison) -> str:
    """The page."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        significant=formats.significant, ratio=formats.ratio, thousands="{:,}".format
    )
    environment.globals.update(with_std=formats.with_std, between=formats.between)
    template = environment.from_string(
        (files(__package__) / "report.html.j2").read_text(encoding="utf-8")
    )
    summary = summarise(result)
    figures = [
        ("Accuracy against epoch", plots.accuracy_by_epoch(result),
         "Mean over seeds; the band is one standard deviation each way. The axis is cut below."),
        ("Accuracy against training time", plots.accuracy_by_time(result),
         "Mean accuracy over seeds at the sum of the epochs' median times, a point for each epoch; "
         "thin lines are single seeds. The axes are cut."),
        ("Time of a step", plots.step_times(result, summary),
         "Median over all steps; the whisker goes from the 10 % to the 90 % quantile."),
        ("Memory kept for backward", plots.kept_bytes(result, summary),
         "What autograd holds between forward and backward, over the whole network."),
    ]  # fmt: skip
    return template.render(
        result=result,
        settings=result.settings,
        rows=summary.to_dict("records"),
        figures=figures,
        colours={
            contender.name: number % len(plots.SERIES)
            for number, contender in enumerate(result.contenders)
        },
        chance=chance(result, summary),
        twins=twins(result),
        NONE=formats.NONE,
    )


def chance(result: Comparison, summary: pd.DataFrame) -> dict[str, Any] | None:
    """Whether the final accuracies tell the contenders apart, judged on the same seeds.

    For each contender the differences to the baseline, seed by seed, in points: their mean and the
    half-width of its 95 % confidence interval (Student's t with n − 1 degrees of freedom). `beyond`
    names those whose interval leaves zero out. None with fewer than two seeds or contenders.
    """
    accuracy = {
        contender.name: {
            run.seed: 100 * run.epochs[-1].test_accuracy for run in result.runs_of(contender)
        }
        for contender in result.contenders
    }
    base = accuracy[result.baseline.name]
    differences = []
    for contender in result.contenders:
        own = accuracy[contender.name]
        shared = sorted(base.keys() & own.keys())
        if contender == result.baseline or len(shared) < 2:
            continue
        values = np.array([own[seed] - base[seed] for seed in shared])
        error = values.std(ddof=1) / len(values) ** 0.5
        half_width = float(error * stdtrit(len(values) - 1, 0.975))
        differences.append((contender.label, float(values.mean()), half_width))
    if not differences:
        return None
    return {
        "differences": differences,
        "beyond": [label for label, mean, half_width in differences if abs(mean) > half_width],
        "gap": float(summary["accuracy_mean"].max() - summary["accuracy_mean"].min()),
        "spread": float((summary["accuracy_max"] - summary["accuracy_min"]).max()),
    }


def twins(result: Comparison) -> list[str]:
    """The labels of contenders that compute one and the same function, of the largest group."""
    groups: dict[str, list[str]] = {}
    for contender in result.contenders:
        if result.runs_of(contender):
            groups.setdefault(contender.function, []).append(contender.label)
    largest = max(groups.values(), key=len)
    return largest if len(largest) > 1 else []
