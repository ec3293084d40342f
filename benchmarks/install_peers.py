"""Install the packages of the extra `peers` one by one, and leave out those that fail.

    python benchmarks/install_peers.py torch==2.13.0

Every call names torch again, so that no package can replace it. timm, and the torchvision that it
imports, are installed without their dependencies, which would bring another build of torch.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

from packaging.requirements import Requirement

ALONE = {"timm": ("torchvision", "huggingface_hub", "safetensors", "pyyaml")}
"""Installed with --no-deps, and the dependencies that are needed all the same."""


def wanted() -> list[Requirement]:
    """The packages that the extra adds on this system, except mishkit itself."""
    declared = map(Requirement, importlib.metadata.requires("mishkit") or ())
    return [
        requirement
        for requirement in declared
        if requirement.name != "mishkit"
        and requirement.marker is not None
        and "peers" in str(requirement.marker)
        and requirement.marker.evaluate({"extra": "peers"})
    ]


def commands(requirement: Requirement, torch: str) -> list[list[str]]:
    """pip's arguments for one package."""
    text = f"{requirement.name}{requirement.specifier}"
    if requirement.name not in ALONE:
        return [["install", "-qq", torch, text]]
    vision, *beside = ALONE[requirement.name]
    return [["install", "-qq", "--no-deps", text, vision], ["install", "-qq", torch, *beside]]


def main(torch: str) -> None:
    """Install all packages; print those that could not be installed."""
    for requirement in wanted():
        for command in commands(requirement, torch):
            pip = subprocess.run([sys.executable, "-m", "pip", *command], capture_output=True)
            if pip.returncode:
                last = pip.stderr.decode().strip().splitlines()[-1:]
                print(f"absent: {requirement.name}: {' '.join(last)}")
                break


if __name__ == "__main__":
    main(*sys.argv[1:])
