"""Keep nothing for the backward pass that can be recomputed cheaply: `mishkit.recompute`."""

from .context import recompute

__all__ = ["recompute"]
