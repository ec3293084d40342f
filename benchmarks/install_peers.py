"""Install the packages of the extra `peers` one by one: who fails is absent, and the rest come.

    python benchmarks/install_peers.py torch==2.13.0

Every call names torch again, so that no package can move it. timm, and the torchvision that it
imports, are taken without what they need: that would bring another build of torch.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

from packaging.requirements import Requirement

ALONE = {"timm": ("torchvision", "huggingface_hub", "safetensors", "pyyaml")}
"""Installed with --no-deps, and what of these is needed all the same."""


def wanted() -> list[Requirement]:
    """What the extra adds, on this system, beside mishkit's own extras."""
    found = map(Requirement, importlib.metadata.requires("mishkit") or ())
    return [
        one
        for one in found
        if one.name != "mishkit"
        and one.marker is not None
        and "peers" in str(one.marker)
        and one.marker.evaluate({"extra": "peers"})
    ]


def commands(one: Requirement, torch: str) -> list[list[str]]:
    """pip's arguments for one package."""
    text = f"{one.name}{one.specifier}"
    if one.name not in ALONE:
        return [["install", "-qq", torch, text]]
    vision, *others = ALONE[one.name]
    return [["install", "-qq", "--no-deps", text, vision], ["install", "-qq", torch, *others]]


def main(torch: str) -> None:
    """Install them all; print who could not be."""
    for one in wanted():
        for command in commands(one, torch):
            done = subprocess.run([sys.executable, "-m", "pip", *command], capture_output=True)
            if done.returncode:
                last = done.stderr.decode().strip().splitlines()[-1:]
                print(f"absent: {one.name}: {' '.join(last)}")
                break


if __name__ == "__main__":
    main(*sys.argv[1:])
