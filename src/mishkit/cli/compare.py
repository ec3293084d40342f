"""`mishkit compare`: train networks with several activations."""

from __future__ import annotations

import shlex
import sys

import typer

from mishkit.lab.study.settings import Settings

from ._options import takes
from .app import app


@app.command(epilog="For example: mishkit compare -a torch_relu -a mish --data digits --seeds 3")
@takes(Settings)
def compare(settings: Settings) -> None:
    """Train a network on real data with each activation, and report costs and results.

    Searches for the best learning rate of each activation, then trains with several seeds. Prints
    the time per step, the bytes kept for the backward pass, the epochs and seconds to a target
    accuracy, and the final accuracy with its difference to the baseline, all with 95 % intervals.
    Writes report.html, trials.csv, epochs.csv and summary.csv. After Ctrl-C the finished trials are
    kept, and the same command continues from there.
    """
    from mishkit.lab.study import compare as lab

    command = shlex.join(["mishkit", *sys.argv[1:]])
    raise typer.Exit(lab.main(settings, command=command))
