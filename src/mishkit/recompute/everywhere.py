"""Every model's forward pass under `recompute`: for programs that are not changed."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from .model import Passes

_passes = Passes()


def recompute_everywhere() -> None:
    """From now on, run every module's forward pass under `recompute` if gradients are wanted.

    The outermost module that is called decides, so a loss or a part that is called by itself
    recomputes, too. Modules within compiled code are left to the compiler.
    """
    # Hooks run for the compiled module and for the module itself, which does no harm here.
    warnings.filterwarnings(
        "ignore", r"Using `torch.compile\(module\)` when there are global hooks"
    )
    register_module_forward_pre_hook(_enter)
    register_module_forward_hook(_leave, always_call=True)


def _enter(module: nn.Module, inputs: Any) -> None:
    if not torch.compiler.is_compiling():
        _passes.begin(module, None, wanted=not _passes.running)


def _leave(module: nn.Module, inputs: Any, output: Any) -> None:
    if not torch.compiler.is_compiling():
        _passes.end(module)
