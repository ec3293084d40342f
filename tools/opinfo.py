"""Runs tests/opinfo with torch's own kernels and with ours, and compares the outcomes.

    python tools/opinfo.py [PYTEST ARGUMENTS]

Both runs have to pass, with the very same tests passed, skipped and expected to fail.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def outcomes(kernels: str, arguments: list[str]) -> dict[str, str]:
    """The outcome of each test; ends the program if a test failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/opinfo"]
        pytest = subprocess.run(
            [*command, f"--junitxml={report}", *arguments],
            cwd=ROOT,
            env={**os.environ, "MISHKIT_OPINFO": kernels},
            text=True,
            capture_output=True,
        )
        if pytest.returncode:
            sys.exit(f"{pytest.stdout}{pytest.stderr}\nopinfo: failed with {kernels}'s kernels")
        cases = ElementTree.parse(report).iter("testcase")
        return {f"{case.get('classname')}.{case.get('name')}": _outcome(case) for case in cases}


def _outcome(case: ElementTree.Element) -> str:
    skipped = case.find("skipped")
    return "passed" if skipped is None else f"skipped: {skipped.get('message')}"


def main() -> None:
    """Run both and print how many tests passed and were skipped."""
    torchs, ours = (outcomes(kernels, sys.argv[1:]) for kernels in ("torch", "mishkit"))
    differences = [name for name in sorted({*torchs, *ours}) if torchs.get(name) != ours.get(name)]
    for name in differences:
        print(f"{name}: {torchs.get(name)} with torch's kernels, {ours.get(name)} with ours")
    counts = Counter(outcome.partition(":")[0] for outcome in ours.values())
    if differences or not counts["passed"]:
        sys.exit("opinfo: the outcomes differ" if differences else "opinfo: no test has run")
    summary = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    print(f"opinfo: {summary}; the same with torch's kernels and with ours")


if __name__ == "__main__":
    main()
