"""Whether `torch.utils.checkpoint` is at work, for what must then stay away from what is kept."""

from __future__ import annotations

import sys
from types import FrameType

import torch.utils.checkpoint


def in_checkpoint() -> bool:
    """Whether this runs within torch's checkpoint, reentrant or not, in the forward pass or again
    in backward, where it must find that as many tensors are kept.

    The stack tells both kinds: only one has hooks on saved tensors, and others may hide these.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            return True
        frame = frame.f_back
    return False
