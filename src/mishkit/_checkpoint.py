"""Detects `torch.utils.checkpoint`, within which we must not change what is saved."""

from __future__ import annotations

import sys
from types import FrameType

import torch.utils.checkpoint


def in_checkpoint() -> bool:
    """Whether this runs within torch's checkpoint, reentrant or not, in the forward pass or in its
    rerun in backward, which must find that as many tensors are saved.

    The stack shows both kinds. Only one of them uses saved-tensor hooks, and other hooks may hide
    it.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            return True
        frame = frame.f_back
    return False
