"""What mishkit runs on: `mishkit env`, and the names of the files of results."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from ._version import __version__
from .backends import cpu

_ARCHITECTURES = {
    "AuthenticAMD": (
        (25, range(0x10, 0x20), "Zen 4"),
        (25, range(0x60, 0x80), "Zen 4"),
        (25, range(0xA0, 0xB0), "Zen 4"),
        (25, range(0x100), "Zen 3"),
        (23, range(0x30, 0x100), "Zen 2"),
        (26, range(0x100), "Zen 5"),
    ),
    "GenuineIntel": (
        (6, range(85, 86), "Skylake or Cascade Lake"),
        (6, range(106, 107), "Ice Lake"),
        (6, range(143, 144), "Sapphire Rapids"),
        (6, range(207, 208), "Emerald Rapids"),
        (6, range(173, 175), "Granite Rapids"),
    ),
}
"""Server CPUs by family and model number; the first line that matches counts."""


def environment() -> dict[str, Any]:
    """Versions, the system, the CPU, the kernels and the GPU, with the keys of ``--json``.

    ``kernels`` is the instruction set in use, or "none" for plain torch, for the reason
    ``why_no_kernels``. Packages that are not installed have the version None.
    """
    isa = cpu.isa()
    return {
        "mishkit": __version__,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch_cpu": torch.backends.cpu.get_cpu_capability(),
        "kernels": isa,
        "kernels_available": cpu.isas(),
        "why_no_kernels": why_no_kernels() if isa == "none" else None,
        "compiler": cpu.compiler(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda,
        "path": str(Path(__file__).parent),
    }


def as_text(facts: dict[str, Any]) -> str:
    """A line for each fact."""
    texts = {name: _shown(value) for name, value in facts.items() if name != "why_no_kernels"}
    if facts["why_no_kernels"]:
        texts["kernels"] = f"none, plain torch: {facts['why_no_kernels']}"
    width = max(map(len, texts))
    return "\n".join(f"{name.replace('_', ' '):{width}}  {text}" for name, text in texts.items())


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return "none" if value is None else str(value)


def print_environment(*, as_json: bool) -> None:
    """Print it on stdout."""
    facts = environment()
    text = json.dumps(facts, indent=2, ensure_ascii=False) if as_json else as_text(facts)
    sys.stdout.write(f"{text}\n")


def why_no_kernels() -> str:
    """Why plain torch is used, in one line."""
    if os.environ.get(cpu.VARIABLE) == "none":
        return f"{cpu.VARIABLE}=none is set"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cpu.load()
    return str(caught[0].message).partition(": ")[2] if caught else "they were loaded just now"


# ---- the CPU ----


def cpu_name() -> str:
    """The CPU's model; in a virtual machine, whose name says less, with its architecture."""
    info = _cpuinfo()
    name = info.get("model name") or platform.processor() or platform.machine()
    name = re.sub(r"\((R|TM)\)|\bCPU\b|\bProcessor\b|\d+-Core|@.*", " ", name, flags=re.IGNORECASE)
    name = " ".join(name.split())
    if re.search(r"\d{3}", name) or "cpu family" not in info:
        return name
    family, model = int(info["cpu family"]), int(info["model"])
    for number, models, architecture in _ARCHITECTURES.get(info.get("vendor_id", ""), ()):
        if family == number and model in models:
            return f"{name} ({architecture})"
    return f"{name} (family {family}, model {model})"


def _cpuinfo() -> dict[str, str]:
    """The first CPU in Linux's list of them."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text(errors="replace").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def slug(*names: str) -> str:
    """Names as part of a file name, for example amd-epyc-zen-5-avx512."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(names).lower()).strip("-")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
