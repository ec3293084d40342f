"""In which mode of torch a call is made: compiled, exported, traced, transformed.

The public functions ask some of these questions in place, since a call costs 50 ns.
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
    """Whether a transform of torch.func or forward mode is at work, and may ask for anything."""
    return are_transforms_active() or forward_ad._current_level >= 0


def wants_standard() -> bool:
    """Whether a program is made of what is called, by torch.export or torch.jit.trace.

    It runs elsewhere too, so it has torch's own operators alone.
    """
    return is_exporting() or (not torch.compiler.is_compiling() and is_tracing())
