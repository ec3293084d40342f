"""The Triton backend: kernels for GPUs, where torch has them and Triton is installed."""

from __future__ import annotations

import importlib.util

import torch


def available() -> bool:
    """Whether torch was built for GPUs and Triton is there; it is imported at the first use."""
    has_gpus = torch.version.cuda or torch.version.hip
    return bool(has_gpus and importlib.util.find_spec("triton"))
