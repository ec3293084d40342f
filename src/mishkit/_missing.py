"""What to install if a package is missing, worded the same everywhere."""

from __future__ import annotations

import re
from importlib import metadata

import torch

_DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}
"""Packages whose install name differs from their import name."""
_NEED_TORCHVISION = frozenset(("timm", "torchvision"))


def install(module: str, extra: str | None = None) -> str:
    """The command that installs a missing module, and whatever else of an extra is missing.

    It names packages, never mishkit, which may not be on any index. Each release of torchvision
    needs one particular release of torch. For modules that need torchvision, the installed torch is
    named as well, or pip might replace a CPU build by gigabytes of GPU build.
    """
    name = module.partition(".")[0]
    distribution = _DISTRIBUTIONS.get(name, name.replace("_", "-"))
    packages = [distribution]
    if extra is not None:
        requirements = {_name(text): text for text in _requirements(extra)}
        packages = [requirements.get(distribution, distribution)]
        packages += [text for package, text in requirements.items() if not _is_installed(package)]
    if name in _NEED_TORCHVISION:
        packages.append(f"torch=={torch.__version__}")
    return "pip install " + " ".join(map(_quoted, dict.fromkeys(packages)))


def _requirements(extra: str) -> list[str]:
    """What mishkit's metadata lists for the extra, without markers."""
    try:
        declared = metadata.requires("mishkit") or []
    except metadata.PackageNotFoundError:  # used without being installed
        return []
    requirements = []
    for text in declared:
        requirement, _, marker = text.partition(";")
        if not re.search(rf"""extra == ["']{extra}["']""", marker):
            continue
        nested = re.fullmatch(r"mishkit\[(.*)\]", requirement.strip())
        requirements += _requirements(nested[1]) if nested else [requirement.strip()]
    return requirements


def _name(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None
    return match[0]


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _quoted(requirement: str) -> str:
    return f'"{requirement}"' if re.search("[<>=]", requirement) else requirement
