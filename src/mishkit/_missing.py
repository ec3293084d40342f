"""What to install where a package is missing, said in one way by everything that needs one."""

from __future__ import annotations

import re
from importlib import metadata

import torch

_DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}
"""Where the name to install is not the name to import."""
_NEED_TORCHVISION = frozenset(("timm", "torchvision"))


def install(module: str, extra: str | None = None) -> str:
    """The command that installs a module which is missing, and what else of an extra is missing.

    It names packages, never mishkit, which may be on no index. Every release of torchvision needs
    one release of torch: for what needs it, the torch that is installed is named beside it, or pip
    might replace a build for CPUs by gigabytes for GPUs.
    """
    name = module.partition(".")[0]
    distribution = _DISTRIBUTIONS.get(name, name.replace("_", "-"))
    packages = [distribution]
    if extra is not None:
        of_extra = {_name(text): text for text in _requirements(extra)}
        packages = [of_extra.get(distribution, distribution)]
        packages += [text for other, text in of_extra.items() if not _is_installed(other)]
    if name in _NEED_TORCHVISION:
        packages.append(f"torch=={torch.__version__}")
    return "pip install " + " ".join(map(_quoted, dict.fromkeys(packages)))


def _requirements(extra: str) -> list[str]:
    """What mishkit's metadata names for the extra, without markers."""
    try:
        found = metadata.requires("mishkit") or []
    except metadata.PackageNotFoundError:  # used from where it was unpacked
        return []
    requirements = []
    for text in found:
        requirement, _, marker = text.partition(";")
        if not re.search(rf"""extra == ["']{extra}["']""", marker):
            continue
        other = re.fullmatch(r"mishkit\[(.*)\]", requirement.strip())
        requirements += _requirements(other[1]) if other else [requirement.strip()]
    return requirements


def _name(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return found[0]


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _quoted(requirement: str) -> str:
    return f'"{requirement}"' if re.search("[<>=]", requirement) else requirement
