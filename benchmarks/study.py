"""Which activation is worth its price: runs `mishkit compare` and writes docs/study.md.

    python benchmarks/study.py                # an hour and a half on two cores; Ctrl-C, and go on
    python benchmarks/study.py --page-only    # the page anew, from docs/study

Data from packages, under `--data-root`: Fashion-MNIST (Debian's dataset-fashion-mnist), mlbench
(Debian's r-cran-mlbench, unpacked) and the source distribution of vaderSentiment. The page and its
figures are made from the tables alone, and say no more than their verdicts.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent))

import pages
from pages import DOCS, markdown

from mishkit.lab.calculus.drawing import COLOURS, style
from mishkit.lab.common import formats
from mishkit.lab.study import verdicts
from mishkit.lab.study.settings import Settings

PAGE, FOLDER, FIGURES = DOCS / "study.md", DOCS / "study", DOCS / "figures"
KEPT = ("report.html", "trials.csv", "epochs.csv", "summary.csv")

BASELINE = "torch_relu_inplace"
FUNCTIONS = (
    *("mish", "h_mish", "hard_mish", "aptx"),
    *("silu", "piecewise_swish", "linear_swish", "hardswish"),
    *("gelu", "softplus"),
)
"""All in place; not swish, which is silu for β = 1, and not gelu_tanh, within 5e-4 of gelu."""
ACTIVATIONS = (BASELINE, *(f"{name}_inplace" for name in FUNCTIONS))
DATA = {
    "fashion-mnist": "photographs of clothes",
    "mlbench:LetterRecognition": "a table: 16 properties of printed letters",
    "mlbench:Satellite": "a table: a satellite's view of fields",
    "vader:movie": "sentences of film reviews, rated as good or bad",
}
SETTINGS = {
    "--train-samples": "8000",
    "--epochs": "5",
    "--lr": "5e-4,2e-3,8e-3,3.2e-2",
    "--tuning-seeds": "2",
    "--seeds": "8",
    "--threads": "1",
    "--baseline": BASELINE,
}
"""The options that differ from the defaults of `mishkit compare`."""


def command(root: Path, output: Path) -> list[str]:
    """The command that runs or continues the study."""
    words = ["compare"]
    for name in ACTIVATIONS:
        words += ["-a", name]
    for name in DATA:
        words += ["--data", name]
    for name, value in SETTINGS.items():
        words += [name, value]
    return [*words, "--data-root", str(root), "--output", str(output)]


# ---- the page ----


def tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The summary, with short labels, the trials and the epochs."""
    # The names of trials are hexadecimal: some look like numbers.
    summary, trials, epochs = (
        pd.read_csv(folder / f"{name}.csv", dtype={"trial": str})
        for name in ("summary", "trials", "epochs")
    )
    return summary.assign(label=summary["label"].map(short)), trials, epochs


def base_of(summary: pd.DataFrame) -> str:
    """What to call the baseline."""
    return str(summary.loc[summary["accuracy_verdict"] == verdicts.BASE, "label"].iloc[0])


def compared(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows that are compared with the baseline."""
    return summary[summary["accuracy_verdict"] != verdicts.BASE]


def short(label: str) -> str:
    """The label without the words that all labels have in common."""
    return label.removeprefix("mishkit ").removesuffix(" in place")


def results(rows: pd.DataFrame, base: str) -> str:
    """One data set."""
    target = f"{100 * rows['target'].iloc[0]:g}"
    head = (
        *("activation", "rate", "accuracy, %", f"against {base}", ""),
        *("step", "kept", f"epochs to {target} %", "time to it, s", ""),
    )
    return markdown(head, (cells(row) for row in rows.to_dict("records")))


def cells(row: dict) -> list[str]:
    """One activation."""
    is_base = row["accuracy_verdict"] == verdicts.BASE
    step = formats.ratio(row["step_ratio"])
    if not is_base:
        step += f" ({formats.between(row['step_ratio_low'], row['step_ratio_high'])})"
    reached = f"{row['reached']} of {row['seeds']} seeds"
    late = row["reached"] < row["seeds"]
    return [
        row["label"],
        f"{row['lr']:g}{' (edge)' if row['lr_at_edge'] else ''}",
        formats.with_half(row["accuracy"], row["accuracy_half"], 4),
        formats.NONE
        if is_base
        else formats.signed(row["accuracy_diff"], row["accuracy_diff_half"]),
        "" if is_base else emphasised(row["accuracy_verdict"], row["accuracy_verdict"]),
        step,
        formats.ratio(row["kept_ratio"]),
        reached if late else f"{row['epochs_to_target']:.1f}",
        formats.NONE if late else formats.with_half(row["budget_s"], row["budget_s_half"]),
        "" if is_base else emphasised(row["budget_verdict"], row["budget_verdict"]),
    ]


def emphasised(text: str, verdict: str) -> str:
    """In bold if the verdict is better or worse."""
    return f"**{text}**" if verdict in (verdicts.BETTER, verdicts.WORSE) else text


def overview(summary: pd.DataFrame) -> str:
    """The difference in accuracy, a row per activation and a column per data set."""
    others = compared(summary)
    body = []
    for label, rows in others.groupby("label", sort=False):
        by_data = rows.set_index("data").to_dict("index")
        differences = (by_data[data] for data in summary["data"].unique())
        body.append((str(label), *map(difference, differences)))
    return markdown(("points", *summary["data"].unique()), body)


def difference(row: dict) -> str:
    """The difference in accuracy to the baseline, with the interval behind the verdict."""
    text = formats.signed(row["accuracy_diff"], row["accuracy_diff_wide"])
    return emphasised(text, row["accuracy_verdict"])


def counted(summary: pd.DataFrame) -> str:
    """How many comparisons came out better, worse, or neither."""
    others = compared(summary)
    better, worse = (
        int((others["accuracy_verdict"] == verdict).sum())
        for verdict in (verdicts.BETTER, verdicts.WORSE)
    )
    return (
        f"Of {len(others)} comparisons of accuracy, {better} came out better than "
        f"{base_of(summary)}, {worse} worse, and {len(others) - better - worse} can't be told "
        "apart"
    )


def prices(summary: pd.DataFrame) -> str:
    """The time and the kept memory of a step, as ranges over the activations of a data set."""
    others = compared(summary)
    body = []
    for data, rows in others.groupby("data", sort=False):
        least, most = rows.loc[rows["step_ratio"].idxmin()], rows.loc[rows["step_ratio"].idxmax()]
        kept = rows["kept_ratio"]
        body.append(
            (
                str(data),
                *(f"{formats.ratio(r['step_ratio'])} {r['label']}" for r in (least, most)),
                f"{formats.ratio(kept.min())} to {formats.ratio(kept.max())}",
            )
        )
    return markdown(("data", "cheapest step", "dearest step", "kept for backward"), body)


def page(summary: pd.DataFrame, trials: pd.DataFrame, epochs: pd.DataFrame) -> str:
    """The page of the documentation."""
    base = base_of(summary)
    final = trials[trials["phase"] == "final"]
    trial = final.iloc[0]
    parts = []
    for data, rows in summary.groupby("data", sort=False):
        first = final[final["data"] == data].iloc[0]
        parts.append(
            f"## {data}\n\n{DATA[str(data)].capitalize()}; {first['train_size']:,} samples to "
            f"train with, {first['test_size']:,} to test, {first['classes']} classes. Model: "
            f"{first['model']}, {first['sites']} activations, {first['parameters']:,} parameters, "
            f"{first['steps']:,} steps.\n\n{results(rows, base)}"
        )
    edges = summary[summary["lr_at_edge"]]
    return TEMPLATE.format(
        headline=verdicts.headline(summary, base),
        counted=counted(summary),
        budget=" ".join(verdicts.budget(summary, base))
        or f"For no activation is the time to the target told apart from {base}'s.",
        overview=overview(summary),
        prices=prices(summary),
        base=base,
        functions=", ".join(FUNCTIONS),
        parts="\n\n".join(parts),
        edges=(
            "The chosen rate lies at the edge of the grid, so a better one may lie beyond it, for "
            + "; ".join(
                f"{verdicts.listed(rows['label'])} on {data}"
                for data, rows in edges.groupby("data", sort=False)
            )
            + "."
            if len(edges)
            else "No chosen rate lies at the edge of the grid."
        ),
        trials=len(trials),
        tuned=len(trials) - len(final),
        minutes=f"{epochs['seconds'].sum() / 60:.0f}",
        pairs=len(compared(summary)),
        epochs=trial["epochs"],
        rates=SETTINGS["--lr"].replace(",", ", "),
        samples=f"{int(SETTINGS['--train-samples']):,}",
        channels=Settings.channels,
        seeds=SETTINGS["--seeds"],
        tuning=SETTINGS["--tuning-seeds"],
        machine=f"{trial['processor']}, threads: {trial['threads']}, torch {trial['torch']}, "
        f"mishkit {trial['mishkit']}; {final['finished'].max()[:10]}",
    )


def for_readme(summary: pd.DataFrame) -> str:
    """What the README says about the study."""
    return f"{verdicts.headline(summary, base_of(summary))}.\n"


TEMPLATE = """# The study: which activation is worth its price

**{headline}.**

{counted}. {budget}

The activations are {functions},
each in place. They are compared with {base} in place: on images, on two tables and on sentences,
with a learning rate tuned for each. `python benchmarks/study.py` makes this page with
`mishkit compare`, whose method has [its own page](compare.md). Every number here comes from
[summary.csv](study/summary.csv), or is a count of rows in [trials.csv](study/trials.csv) and
[epochs.csv](study/epochs.csv). [The report](study/report.html) shows the same results with curves,
the search for the learning rates, and every trial.

## Accuracy

Differences from {base} on equal seeds. ± is the interval that the verdicts are based on: with 95 %
confidence, all {pairs} intervals hold at once. Bold differences are told apart from 0.

{overview}

In green, better; in orange, worse; in grey, not told apart. Thin lines are the intervals of the
table, thick ones 95 % intervals of each number by itself.

![Differences in accuracy to {base}, in points, a panel a data set](figures/study-accuracy.svg)

## Price

The time of a training step and the bytes kept for the backward pass, divided by those of {base}.

{prices}

The time of a step, divided by that of {base}, with 95 % intervals:

![The time of a step, a panel a data set](figures/study-price.svg)

{parts}

In these tables, ± and ranges are 95 % intervals of each number by itself. *Step* is the time of
the forward and backward pass of one batch, and *kept* is what autograd holds for the backward pass,
both divided by {base}'s on equal seeds.

## How far this reaches

- The settings are small enough for two cores: {epochs} epochs, at most {samples} training samples,
  networks {channels} channels wide. Other sizes may give other results.
- The intervals are over {seeds} seeds, which set the weights and the order of samples. They say
  nothing about other test data.
- The learning rate was chosen from {rates}, with {tuning} further seeds, on a fifth of the training
  data. {edges}
- The rates are tuned for the accuracy at the end, not for the time to the target, which also
  depends on them. Where the rate of {base} is not that of the others, this is part of the
  difference.
- The functions work in place and compute the gradient from the output, which suits these networks.
- {trials} training runs, {tuned} of them for the search; {minutes} minutes of training in all, one
  run at a time. {machine}.
"""


# ---- the figures ----


def draw(summary: pd.DataFrame, folder: Path) -> None:
    """Both figures."""
    others = compared(summary)
    folder.mkdir(parents=True, exist_ok=True)
    draw_rows(others, accuracy, 0, folder / "study-accuracy.svg")
    draw_rows(others, step, 1, folder / "study-price.svg")


def draw_rows(
    rows: pd.DataFrame,
    draw_row: Callable[[Axes, int, dict], None],
    base: float,
    path: Path,
) -> None:
    """A panel a data set, with a row an activation, and a line where the baseline is.

    The panels stand below one another, so that the page shows them whole on a telephone.
    """
    datasets = list(rows["data"].unique())
    with style():
        figure = Figure((4.6, 2.5 * len(datasets)), layout="constrained")
        panels = figure.subplots(len(datasets), 1, squeeze=False)[:, 0]
        for panel, data in zip(panels, datasets, strict=True):
            of_data = rows[rows["data"] == data].to_dict("records")
            for place, row in enumerate(of_data):
                draw_row(panel, place, row)
            panel.axvline(base, color="black", linewidth=1)
            panel.set_title(data)
            panel.set_yticks(range(len(of_data)), [row["label"] for row in of_data])
            panel.set_ylim(len(of_data) - 0.5, -0.5)
            panel.tick_params(axis="y", length=0)
            panel.grid(visible=False, axis="y")
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def accuracy(panel: Axes, place: int, row: dict) -> None:
    """The difference in accuracy, and both of its intervals."""
    colour = {verdicts.BETTER: COLOURS[2], verdicts.WORSE: COLOURS[1]}.get(
        row["accuracy_verdict"], "#777777"
    )
    middle = row["accuracy_diff"]
    for half, width in (("wide", 1.2), ("half", 4)):
        ends = [middle + sign * row[f"accuracy_diff_{half}"] for sign in (-1, 1)]
        panel.plot(ends, [place, place], color=colour, linewidth=width)
    panel.plot(middle, place, "o", color=colour, markersize=6, markeredgecolor="black")


def step(panel: Axes, place: int, row: dict) -> None:
    """The time of a step, and its interval."""
    ends = row["step_ratio_low"], row["step_ratio_high"]
    panel.plot(ends, [place, place], color=COLOURS[0], linewidth=1.2)
    panel.plot(row["step_ratio"], place, "o", color=COLOURS[0], markersize=6)


def main(
    page_only: Annotated[bool, typer.Option("--page-only", help="From docs/study.")] = False,
    data_root: Annotated[Path, typer.Option(help="Where the data are.")] = Path("data"),
    output: Annotated[Path, typer.Option(help="Where trials are kept.")] = Path("mishkit-study"),
    readme: Annotated[Path, typer.Option(help="Where the headline goes, too.")] = pages.README,
) -> None:
    """Run the study, or continue it, and write its page."""
    if not page_only:
        comparison = subprocess.run([sys.executable, "-m", "mishkit", *command(data_root, output)])
        if comparison.returncode:
            raise SystemExit(comparison.returncode)
        FOLDER.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            shutil.copyfile(output / name, FOLDER / name)
    frames = tables(FOLDER)
    draw(frames[0], FIGURES)
    PAGE.write_text(page(*frames), encoding="utf-8")
    pages.put(readme, "study", for_readme(frames[0]))
    print(f"written: {PAGE}, {FOLDER}, {FIGURES}/study-*.svg, {readme}")


if __name__ == "__main__":
    typer.run(main)
