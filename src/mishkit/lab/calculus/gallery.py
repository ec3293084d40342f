"""`mishkit plot --gallery docs`: a page with a figure and the facts for every function."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from mishkit.functions import ACTIVATIONS

from ..common.bars import progress_bar
from ..common.files import whole_file
from ..common.named import find
from . import drawing
from .analysis import facts
from .analyze import analyze_named

HEAD = """# Gallery

Every function with its default parameters: f, f′ and f″, and what follows from its definition.
`make gallery` makes this page; `mishkit explain NAME` and `mishkit plot NAME` do the same for any
parameters. Each of them can also gate a second tensor, f(x)·u: see [gates](gates.md).
"""
REFERENCE = "mish"
"""The function that the others are compared with."""


def main(folder: Path) -> None:
    """Write gallery.md and gallery/NAME.svg into a folder."""
    page = [HEAD]
    page.append(" · ".join(f"[{name}](#{name})" for name in ACTIVATIONS) + "\n")
    out = Console()
    with progress_bar() as bar:
        task = bar.add_task("drawing", total=len(ACTIVATIONS))
        for name in ACTIVATIONS:
            bar.update(task, description=name)
            page.append(_section(name, folder))
            bar.update(task, advance=1)
    path = folder / "gallery.md"
    with whole_file(path) as file:
        file.write("\n".join(page))
    out.print(f"Gallery: {path}", highlight=False)


def _section(name: str, folder: Path) -> str:
    named = find(name)
    a = named.activation
    reference = None if name == REFERENCE else find(REFERENCE)
    analysis = analyze_named(named, reference)
    picture = folder / "gallery" / f"{name}.svg"
    drawing.save([drawing.of_named(named)], picture)
    values = ", ".join(f"{p.name} = {p.default:g}" for p in a.parameters)
    rows = [f"| {label} | {_cell(text)} |" for label, text in facts(analysis)]
    return "\n".join(
        (
            f"## {name}\n",
            f"{a.formula}" + (f", with {values}" if values else "") + f". {a.source}.\n",
            f"![{name}, its first and its second derivative](gallery/{name}.svg)\n",
            "| | |",
            "|---|---|",
            *rows,
            "",
        )
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
