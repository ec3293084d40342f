"""Text that the benchmarks write into pages between two marks."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def put(path: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of that name; ValueError where they are missing."""
    begin, end = (f"<!-- {name}: {side} -->" for side in ("begin", "end"))
    before, found_begin, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"{path} has no {begin} … {end}")
    path.write_text(f"{before}{begin}\n{text}{end}{after}", encoding="utf-8")
