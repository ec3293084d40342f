"""Which mode of torch a call runs in: compiled, exported, traced, transformed.

The public functions inline some of these checks, since a function call costs 50 ns.
"""

from __future__ import annotations

import torch
import torch.autograd.forward_ad as forward_ad

from ._torch_private import are_transforms_active as are_transforms_active
from ._torch_private import is_exporting as is_exporting
from ._torch_private import is_tracing as is_tracing

compiler = torch.compiler
is_dynamo_compiling = torch.compiler.is_dynamo_compiling
is_grad_enabled = torch.is_grad_enabled


def is_transformed() -> bool:
    """Whether a torch.func transform or forward mode is active and may ask for any derivative."""
    return are_transforms_active() or forward_ad._current_level >= 0


def wants_standard() -> bool:
    """Whether torch.export or torch.jit.trace is recording the calls as a program.

    That program may also run elsewhere, so it may contain only torch's own operators.
    """
    return is_exporting() or (not torch.compiler.is_compiling() and is_tracing())
