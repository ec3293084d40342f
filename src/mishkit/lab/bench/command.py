"""`mishkit bench`: select the benchmark that is asked for."""

from __future__ import annotations

from pathlib import Path

from .. import LabError
from .settings import Settings


def main(settings: Settings, csv_path: Path | None = None, folder: Path | None = None) -> int:
    """Time the functions, print tables and bars, write the CSV and add to the folder of results;
    returns 1 if a bar is missed.
    """
    if folder is not None and (settings.quick or settings.device != "cpu"):
        raise LabError("--results takes whole runs on a CPU: it goes with neither --quick nor cuda")
    # Each benchmark imports packages that the others do not need.
    if settings.paper:
        from ..code import paper

        return paper.main(settings.functions, settings.dtypes, csv_path)
    if settings.device == "cuda":
        from . import gpu

        return gpu.main(settings, csv_path)
    from . import cpu

    return cpu.main(settings, csv_path, folder)


def main_of_published(table: str, settings: Settings, functions: tuple[str, ...]) -> int:
    """Print a published table in its own layout."""
    from . import published_cpu

    return published_cpu.main(table, settings, functions)


def main_of_gates(settings: Settings, csv_path: Path | None = None) -> int:
    """The same for gates, which have their own size."""
    if settings.device == "cuda":
        raise LabError("--gate is timed on a CPU")
    from . import gate

    return gate.main(settings, csv_path)


def main_of_layer(settings: Settings, csv_path: Path | None = None) -> int:
    """The same for the APTx layer, which has its own sizes and dtypes."""
    if settings.paper:
        raise LabError("--paper is about the functions: it does not go with --neuron")
    if settings.device == "cuda":
        from . import gpu_neuron

        return gpu_neuron.main(settings.quick, csv_path)
    from . import neuron

    return neuron.main(settings.quick, csv_path)
