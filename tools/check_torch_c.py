"""Checks csrc/bind/torch_c.h, written by hand, against the headers of the installed torch.

    python tools/check_torch_c.py [HEADER] [--include DIR]

Both are compiled in one translation unit, where C++ itself is the judge: a prototype or a type
that differs from torch's is a conflicting declaration. torch's headers come first and name every
entry point, so one that torch does not have is an error too. That is done as torch 2.10, the
oldest that is served, as every version named by a MISHKIT_SINCE, and as the torch that is
installed. Nothing is linked or run.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

HEADER = Path(__file__).resolve().parent.parent / "csrc" / "bind" / "torch_c.h"
OLDEST = (2, 10)


def entry_points(header: str) -> dict[str, tuple[int, int]]:
    """The functions that the header declares, each with the first torch that has it."""
    code = re.sub(r"//[^\n]*|/\*.*?\*/|^\s*#[^\n]*", "", header, flags=re.DOTALL | re.MULTILINE)
    names = {}
    for statement in code.split(";"):
        if name := re.search(r"\b((?:aoti_)?torch_\w+)\s*\(", statement):
            since = re.search(r"MISHKIT_SINCE\((\d+), (\d+)\)", statement)
            names[name[1]] = (int(since[1]), int(since[2])) if since else OLDEST
    return names


def abi_version(version: tuple[int, int]) -> str:
    """A version the way torch's headers write it."""
    return f"(({version[0]}ULL << 56) | ({version[1]}ULL << 48))"


def complaints(header: Path, include: Path, target: tuple[int, int] | None) -> str:
    """The compiler's complaints about the header; empty if there are none."""
    lines = [
        "#include <torch/csrc/inductor/aoti_torch/c/shim.h>",
        "#include <torch/csrc/stable/c/shim.h>",
    ]
    if target:
        lines.insert(0, f"#define TORCH_TARGET_VERSION {abi_version(target)}")
    for name, since in entry_points(header.read_text()).items():
        lines += [
            f"#if TORCH_FEATURE_VERSION >= {abi_version(since)}"
            f" && TORCH_ABI_VERSION >= {abi_version(since)}",
            f"static_assert(sizeof(&::{name}) > 0);",
            "#endif",
        ]
    lines.append(f'#include "{header.resolve()}"\n')
    compiler = shlex.split(os.environ.get("CXX", "")) or [
        next(filter(shutil.which, ("c++", "g++", "clang++")), "c++")
    ]
    command = [*compiler, "-std=c++17", "-fsyntax-only", "-isystem", str(include), "-x", "c++", "-"]
    compilation = subprocess.run(command, input="\n".join(lines), text=True, capture_output=True)
    if not compilation.returncode:
        return ""
    return (
        compilation.stderr or f"{shlex.join(command)} failed with status {compilation.returncode}"
    )


def torch_include() -> Path:
    # Found without importing torch, which would take a second.
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit("check_torch_c: torch is not installed")
    return Path(spec.origin).parent / "include"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("header", nargs="?", type=Path, default=HEADER)
    parser.add_argument("--include", type=Path, help="torch's headers, if not the installed ones")
    args = parser.parse_args()
    include = args.include or torch_include()
    names = entry_points(args.header.read_text())
    if not names:
        sys.exit(f"check_torch_c: {args.header} declares no entry point")
    for target in [*sorted({OLDEST, *names.values()}), None]:
        if errors := complaints(args.header, include, target):
            version = f"torch {target[0]}.{target[1]}" if target else "the installed torch"
            print(errors, file=sys.stderr)
            print(f"check_torch_c: {args.header} does not fit {version}", file=sys.stderr)
            return 1
    print(f"check_torch_c: {len(names)} entry points fit torch's headers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
