"""Keeping nothing for the backward pass that can be made again: `mishkit.recompute`."""

from .context import recompute

__all__ = ["recompute"]
