"""Every model's forward pass under `recompute`: for programs that are not changed."""

from __future__ import annotations

import threading
import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from .._mode import are_transforms_active
from .context import recompute


class _Calls(threading.local):
    """The calls of modules that are running in this thread, the innermost last."""

    def __init__(self) -> None:
        self.running: list[tuple[nn.Module, AbstractContextManager[None] | None]] = []


_calls = _Calls()


def recompute_everywhere() -> None:
    """From now on, run every module's forward pass under `recompute` if gradients are wanted.

    The outermost module that is called decides, so a loss or a part that is called by itself
    recomputes, too. Modules within compiled code are left to the compiler.
    """
    # That hooks are called for the compiled module and for the module itself does no harm here.
    warnings.filterwarnings(
        "ignore", r"Using `torch.compile\(module\)` when there are global hooks"
    )
    register_module_forward_pre_hook(_enter)
    register_module_forward_hook(_leave, always_call=True)


def _enter(module: nn.Module, inputs: Any) -> None:
    if torch.compiler.is_compiling():
        return
    is_wanted = not _calls.running and torch.is_grad_enabled() and not are_transforms_active()
    context = recompute() if is_wanted else None
    if context is not None:
        context.__enter__()
    _calls.running.append((module, context))


def _leave(module: nn.Module, inputs: Any, output: Any) -> None:
    if torch.compiler.is_compiling():
        return
    # Called after an error too, even one that was raised before `_enter` was called.
    if _calls.running and _calls.running[-1][0] is module:
        context = _calls.running.pop()[1]
        if context is not None:
            context.__exit__(None, None, None)
