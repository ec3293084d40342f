"""The README's picture and the sentence below it: the time of Mish, and what a network keeps.

    python benchmarks/headline.py    # half a minute; the times are those of `make peers`

The bytes are counted here, from the allocator's events, for resnet50: with ReLU in place as its
authors have it, with torch's Mish, and with Mish after `mk.lean`.
"""

from __future__ import annotations

import lean_models
import pages
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from peer_adapters import BACKWARD, EXISTING, FORWARD, FRESH, OURS
from peer_page import RESULTS, Cell, Times, machines, times
from torch import nn

from mishkit._torchvision import mend_torchvision
from mishkit.lab.calculus.drawing import style

FIGURE = pages.DOCS / "figures" / "headline.svg"
COLORS = {"torch Mish": "#c44e52", "torch ReLU": "#8c8c8c", "mishkit Mish": "#3b5bdb"}
"""The contenders."""
SMALL, LARGE = 1 << 16, 1 << 24
"""Elements of a call: in the cache, and far beyond it."""


def results() -> dict[str, Times]:
    """The timings by CPU."""
    return {machine.name: times(machine.rows) for machine in machines(RESULTS)}


def nanoseconds(timed: Times, contender: str, memory: str, size: int, *directions: str) -> float:
    """The time of an element on one thread."""
    peer = {"torch Mish": "torch", "mishkit Mish": OURS}.get(contender, contender)
    cells = (Cell("mish", "float32", direction, memory, size, 1) for direction in directions)
    return sum(timed[cell][peer].min for cell in cells)


def kept() -> dict[str, int]:
    """Bytes that resnet50 keeps between the passes of a training step."""
    mish, images = lean_models.build("resnet50, Mish")
    relu, _ = lean_models.build("resnet50")
    for module in relu.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    return {
        "torch Mish": lean_models.alive(lean_models.TORCH, mish, images),
        "torch ReLU": lean_models.alive(lean_models.TORCH, relu, images),
        "mishkit Mish": lean_models.alive(lean_models.LEAN, mish, images),
    }


def draw(timed: dict[str, Times], memory: dict[str, int]) -> None:
    """Two panels: nanoseconds an element, and MiB."""
    with style():
        # Narrow, so that the letters are large enough on a phone.
        figure = Figure((5.4, 3.8), layout="constrained")
        top, bottom = figure.subplots(2, 1)
        spent = {
            name: [nanoseconds(t, name, FRESH, LARGE, FORWARD, BACKWARD) for t in timed.values()]
            for name in COLORS
        }
        _bars(top, spent, "Time, forward and backward (ns an element)")
        in_mib = {name: [count / 2**20] for name, count in memory.items()}
        _bars(bottom, in_mib, "Activation memory of resnet50 (MiB)")
        FIGURE.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(FIGURE, metadata={"Date": None})


def _bars(panel: Axes, values: dict[str, list[float]], title: str) -> None:
    """A bar per contender: the middle of its values, and a line over their range."""
    for name, numbers in values.items():
        low, high = min(numbers), max(numbers)
        middle = (low + high) / 2
        panel.barh(name, middle, color=COLORS[name], height=0.62)
        if low < high:
            panel.hlines(name, low, high, color="black", linewidth=1.5)
        panel.annotate(
            pages.span(numbers, digits=3),
            (high, name),
            (4, 0),
            textcoords="offset points",
            va="center",
        )
    panel.set_title(title)
    panel.invert_yaxis()
    panel.margins(x=0.2)
    panel.grid(visible=False)
    panel.tick_params(axis="y", length=0)
    panel.xaxis.set_visible(False)
    panel.spines["bottom"].set_visible(False)


def sentence(timed: dict[str, Times], memory: dict[str, int]) -> str:
    """What the picture shows, and where the gain is least."""

    def ratio(contender: str) -> str:
        """How many times as fast ours is, forward and backward, into fresh memory."""
        place = FRESH, LARGE, FORWARD, BACKWARD
        numbers = [
            nanoseconds(t, contender, *place) / nanoseconds(t, "mishkit Mish", *place)
            for t in timed.values()
        ]
        return pages.span(numbers)

    ours = memory["mishkit Mish"]
    cached = [
        nanoseconds(t, "mishkit Mish", EXISTING, SMALL, FORWARD)
        / nanoseconds(t, "torch ReLU", EXISTING, SMALL, FORWARD)
        for t in timed.values()
    ]
    return (
        f"On one thread of {' and '.join(timed)}, Mish forward and backward is "
        f"{ratio('torch Mish')} times as\n"
        f"fast as torch's, and {ratio('torch ReLU')} times as fast as torch's "
        "ReLU, where every result gets memory of its own\n(64 MiB, as in training). "
        f"It gains least in the cache: there it takes {pages.span(cached)} times ReLU's time.\n"
        f"resnet50 with Mish keeps {ours / memory['torch Mish']:.2f} of the bytes that it keeps "
        f"with torch's Mish,\nand {ours / memory['torch ReLU']:.2f} of those with ReLU in place.\n"
    )


def main() -> None:
    """Count the bytes, draw the picture and write the sentence."""
    mend = mend_torchvision()  # held for as long as this runs
    torch.set_num_threads(1)
    timed, memory = results(), kept()
    del mend
    draw(timed, memory)
    pages.put(pages.README, "headline", sentence(timed, memory))
    print(f"written: {FIGURE}, {pages.README}")


if __name__ == "__main__":
    main()
