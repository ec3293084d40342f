"""Results as HTML for notebooks: without scripts, and in the colours of the page around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

# Text has the colour of the page, and all else is a translucent grey or blue, so that the same HTML
# is legible on light and on dark pages, whichever way a notebook chooses its theme.
_STYLE = """<style>
.mishkit-result { font: 14px/1.45 system-ui, sans-serif; max-width: 60em; }
.mishkit-result p { margin: .3em 0; }
.mishkit-result table { border-collapse: collapse; width: 100%; margin: .5em 0; }
.mishkit-result th, .mishkit-result td { text-align: left; vertical-align: top;
  padding: .25em .6em .25em 0; border-bottom: 1px solid rgba(128, 128, 128, .35);
  overflow-wrap: anywhere; white-space: normal; font-size: 14px; background: none; }
.mishkit-result .number { text-align: right; white-space: nowrap; padding: .25em .2em .25em .8em; }
.mishkit-result small { display: block; font-size: 12px; opacity: .8; }
.mishkit-result .bar { height: 6px; background: rgba(128, 128, 128, .25); margin-bottom: .5em; }
.mishkit-result .bar div { height: 6px; background: #3987c9; }
.mishkit-result .label { display: flex; justify-content: space-between; gap: 1em; }
.mishkit-result summary { cursor: pointer; }
.mishkit-result pre { overflow-x: auto; font-size: 12px; background: none; color: inherit; }
</style>"""


def html_block(*parts: str) -> str:
    """The parts as one block, with their style."""
    return f'{_STYLE}\n<div class="mishkit-result">\n' + "\n".join(parts) + "\n</div>"


def html_paragraph(text: str, *, strong: bool = False) -> str:
    """A line of text."""
    return f"<p><strong>{escape(text)}</strong></p>" if strong else f"<p>{escape(text)}</p>"


def html_cell(text: str, note: str) -> str:
    """A cell of a table with a note in smaller letters below."""
    return f"{escape(text)}<small>{escape(note)}</small>"


def html_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = (), most: int = 0
) -> str:
    """A table whose cells are HTML already; rows beyond the first `most` are folded away."""
    every = [_row(cells, "td", numbers) for cells in rows]
    head_row = _row([escape(text) for text in head], "th", numbers) if head else ""
    shown, folded = (every[:most], every[most:]) if most else (every, [])
    parts = [_table(head_row, shown)]
    if folded:
        parts.append(
            f"<details><summary>{len(folded)} more</summary>{_table(head_row, folded)}</details>"
        )
    return "\n".join(parts)


def _table(head_row: str, rows: Sequence[str]) -> str:
    head = f"<thead>{head_row}</thead>" if head_row else ""
    return f"<table>{head}<tbody>" + "\n".join(rows) + "</tbody></table>"


def _row(cells: Sequence[str], tag: str, numbers: Sequence[int]) -> str:
    written = (
        f'<{tag} class="number">{cell}</{tag}>' if place in numbers else f"<{tag}>{cell}</{tag}>"
        for place, cell in enumerate(cells)
    )
    return f"<tr>{''.join(written)}</tr>"


def html_bar(label: str, value: str, share: float) -> str:
    """A quantity and a bar as long as its share of the width."""
    percent = 100 * min(max(share, 0.0), 1.0)
    return (
        f'<div class="label"><span>{escape(label)}</span><span>{escape(value)}</span></div>'
        f'<div class="bar"><div style="width: {percent:.1f}%"></div></div>'
    )


def html_text(text: str) -> str:
    """Text as it is, in a monospaced font."""
    return f"<pre>{escape(text)}</pre>"
