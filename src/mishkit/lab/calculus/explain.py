"""`mishkit explain`: show an analysis on the terminal."""

from __future__ import annotations

import rich.progress
from rich.console import Console

from ..common.bars import progress_bar
from ..common.formats import print_json
from ..common.named import Named
from .analysis import WIDTH
from .analyze import analyze_named


def main(named: Named, against: Named | None, *, cost: bool, as_json: bool) -> None:
    """Analyse and print."""
    out = Console(highlight=False)
    columns = rich.progress.SpinnerColumn(), rich.progress.TextColumn("{task.description}")
    with progress_bar(*columns) as bar:
        bar.add_task(f"analysing {named}", total=None)
        analysis = analyze_named(named, against, cost=cost)
    if as_json:
        print_json(analysis.to_json())
    else:
        if not out.is_terminal:
            out.width = max(WIDTH, out.width)
        out.print(analysis)
