"""What may be concluded from a comparison.

Everything is computed from the table of trials. Intervals are Student's, with n − 1 degrees of
freedom: mean ± t·s/√n. Activations are compared with the baseline by the differences on equal
seeds, which share the initial weights and the order of the samples. A verdict needs at least
`ENOUGH` seeds, and a difference that is distinct from zero even when all comparisons of the sweep
are jointly held to 95 % (Bonferroni: each interval has a confidence of 1 − 0.05/m).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from .comparison import Comparison
from .intervals import CONFIDENCE, interval

ENOUGH = 3
MOST_NAMED = 3
"""Up to this many activations with the same verdict are named in a sentence; more are counted."""
BETTER, WORSE, OPEN, FEW, BASE = "better", "worse", "not told apart", "too few seeds", "baseline"


def summarise(result: Comparison) -> pd.DataFrame:
    """One row for each data set and activation that has a finished final trial.

    `x` is the mean of column x in `trials.csv` over the final trials, and `x_half` the half-width
    of its 95 % interval (accuracies are in percent, losses in nats). `step_ratio` is the geometric
    mean of the ratios to the baseline on equal seeds, with the ends of its interval.
    `accuracy_diff` and `budget_diff` are mean differences to the baseline on equal seeds; `_half`
    is their 95 % interval, and `_wide` the interval on which verdicts are based. `budget_s` and
    `epochs_to_target` are means over the `reached` trials that got to the target, and are compared
    only if all trials did.
    """
    finals = result.finals
    base_name = result.baseline.name
    pairs = max(
        1,
        sum(
            data in set(finals["data"]) and contender.name != base_name
            for data in result.settings.datasets
            for contender in result.contenders
        ),
    )
    rows: list[dict[str, Any]] = []
    for data in result.settings.datasets:
        base = _finals_of(finals, data, base_name)
        for contender in result.contenders:
            own = _finals_of(finals, data, contender.name)
            if own.empty:
                continue
            choice = result.choices[data, contender.name]
            is_base = contender.name == base_name
            paired = own.join(base.add_suffix("_base"), how="inner")
            steps = interval(np.log(paired["step_ms"] / paired["step_ms_base"]))
            row: dict[str, Any] = {
                "data": data,
                "model": own["model"].iloc[0],
                "activation": contender.name,
                "label": contender.label,
                "lr": choice.lr,
                "lr_at_edge": choice.at_edge,
                "seeds": len(own),
                **_mean("forward_ms", own["forward_ms"]),
                **_mean("backward_ms", own["backward_ms"]),
                **_mean("step_ms", own["step_ms"]),
                "step_ratio": math.exp(steps.mean),
                "step_ratio_low": math.exp(steps.mean - steps.half),
                "step_ratio_high": math.exp(steps.mean + steps.half),
                "kept_bytes": float(own["kept_bytes"].mean()),
                "kept_ratio": float((paired["kept_bytes"] / paired["kept_bytes_base"]).mean()),
                **_mean("epoch_s", own["epoch_s"]),
                **_mean("accuracy", 100 * own["accuracy"]),
                **_mean("loss", own["loss"].astype("float64")),
                "diverged": int(own["train_loss"].isna().sum()),
                "target": result.targets[data],
                "reached": int(own["budget_s"].notna().sum()),
                **_mean("epochs_to_target", own["epochs_to_target"].astype("float64").dropna()),
                **_mean("budget_s", own["budget_s"].astype("float64").dropna()),
            }
            accuracy = 100 * (paired["accuracy"] - paired["accuracy_base"])
            budget = (paired["budget_s"] - paired["budget_s_base"]).astype("float64")
            row |= _difference("accuracy", accuracy, pairs, is_base, 1)
            row |= _difference("budget", budget, pairs, is_base, -1)
            row["trials"] = " ".join(own["trial"])
            rows.append(row)
    return pd.DataFrame(rows)


def _finals_of(finals: pd.DataFrame, data: str, activation: str) -> pd.DataFrame:
    chosen = finals[(finals["data"] == data) & (finals["activation"] == activation)]
    return chosen.set_index("seed").sort_index()


def _mean(name: str, values: pd.Series) -> dict[str, float]:
    estimate = interval(values)
    return {name: estimate.mean, f"{name}_half": estimate.half}


def _difference(
    name: str, values: pd.Series, pairs: int, is_base: bool, good: int
) -> dict[str, Any]:
    if values.isna().any():  # some trial did not reach the target
        values = values.iloc[:0]
    estimate = interval(values)
    wide = interval(values, 1 - (1 - CONFIDENCE) / pairs)
    if is_base:
        verdict = BASE
    elif estimate.n < ENOUGH:
        verdict = FEW if estimate.n else "–"
    elif abs(wide.mean) > wide.half > 0:  # without any spread there is no basis for a verdict
        verdict = BETTER if good * wide.mean > 0 else WORSE
    else:
        verdict = OPEN
    return {
        f"{name}_diff": estimate.mean,
        f"{name}_diff_half": estimate.half,
        f"{name}_diff_wide": wide.half,
        f"{name}_verdict": verdict,
    }


def headline(summary: pd.DataFrame, base: str) -> str:
    """The result on accuracy, in one sentence that the intervals support; `base` is the baseline's
    label.
    """
    compared = summary[summary["accuracy_verdict"] != BASE]
    if compared.empty:
        return f"{summary['label'].iloc[0]} alone: nothing to compare it with"
    if (compared["accuracy_verdict"] == FEW).any() or (compared["accuracy_verdict"] == "–").any():
        return "Too few seeds to tell accuracies apart"
    several = summary["data"].nunique() > 1
    total = compared["activation"].nunique()
    findings = []
    for verdict, word in ((BETTER, "above"), (WORSE, "below")):
        rows = compared[compared["accuracy_verdict"] == verdict]
        for data, group in rows.groupby("data", sort=False):
            on_data = f" on {data}" if several else ""
            names = _who(group["label"], total)
            findings.append(f"{names} {_ends(group)} {word} {base}{on_data}")
    seeds = int(compared["seeds"].min())
    if not findings and several:
        return (
            f"In none of {len(compared)} comparisons do {seeds} seeds tell the accuracy from that "
            f"of {base}"
        )
    if not findings:
        return f"{seeds} seeds do not tell the accuracies of these {len(summary)} activations apart"
    undecided = int((compared["accuracy_verdict"] == OPEN).sum())
    ending = ""
    if undecided:
        noun = "comparison" if several else "activation"
        ending = f"; {undecided} other {noun}{'s are' if undecided > 1 else ' is'} not told apart"
    return f"In accuracy, {'; '.join(findings)}{ending}"


def budget(summary: pd.DataFrame, base: str) -> list[str]:
    """What can be said about the time to the target: one sentence per verdict and data set."""
    several = summary["data"].nunique() > 1
    compared = summary.loc[summary["budget_verdict"] != BASE, "activation"].nunique()
    sentences = []
    for verdict, words in ((BETTER, "less"), (WORSE, "more")):
        rows = summary[summary["budget_verdict"] == verdict]
        for data, group in rows.groupby("data", sort=False):
            needs = "needs" if len(group) == 1 else "need"
            on_data = f" on {data}" if several else ""
            sentences.append(
                f"{_who(group['label'], compared)} {needs} {words} time to the target than "
                f"{base}{on_data}."
            )
    return sentences


def _who(labels: Iterable[str], total: int) -> str:
    """The activations' names, or how many there are if there are too many to name."""
    names = list(labels)
    return listed(names) if len(names) <= MOST_NAMED else f"{len(names)} of {total} activations"


def _ends(group: pd.DataFrame) -> str:
    gaps = group["accuracy_diff"].abs()
    low, high = f"{gaps.min():.1f}", f"{gaps.max():.1f}"
    points = low if low == high else f"{low} to {high}"
    return f"{'ends' if len(group) == 1 else 'end'} {points} points"


def listed(names: Iterable[str]) -> str:
    """Join names, for example "one, two and three"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
