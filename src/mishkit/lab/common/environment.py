"""What an experiment ran on, for the top of a report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mishkit._version import __version__
from mishkit.backends import cpu

if TYPE_CHECKING:  # benchmarks measure where rich may be missing
    from rich.console import Console


def describe(device: torch.device | str = "cpu") -> dict[str, str]:
    """Versions, processor, threads, load and date, as text and in this order."""
    device = torch.device(device)
    facts = {
        "mishkit": __version__,
        "mishkit's CPU kernels": {"none": "none, plain PyTorch"}.get(cpu.isa(), cpu.isa()),
        "PyTorch": torch.__version__,
        "Lightning Fabric": version("lightning-fabric"),
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "PyTorch's threads": str(torch.get_num_threads()),
    }
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
    elif device.type != "cpu":
        facts["device"] = str(device)
    if hasattr(os, "getloadavg"):
        load, cores = os.getloadavg()[0], os.cpu_count()
        facts["load before"] = f"{load:.1f} processes on {cores} cores (mean of the last minute)"
    facts["date"] = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return facts


def version(package: str) -> str:
    """The installed version of a package, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """The commit of the sources and its date; "not a checkout" if they are installed."""
    command = ["git", "-C", str(Path(cpu.__file__).parent), "log", "-1", "--format=%h of %cs"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "not a checkout"


def processor() -> str:
    """The processor's name, and which of its instruction sets PyTorch's kernels use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def warn_of_load(out: Console) -> None:
    """Warn if other processes would disturb the timings."""
    if not hasattr(os, "getloadavg"):
        return
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > 0.5 * cores:
        out.print(
            f"Other work is going on ({load:.1f} processes in the last minute, {cores} cores): "
            "with several threads expect stalls at their barriers."
        )
