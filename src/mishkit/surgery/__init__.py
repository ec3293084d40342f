"""What a user does to the activations of a model that exists: audit, lean, swap, anneal, prune."""

from .audit import audit
from .lean import lean, lean_functional

__all__ = ["audit", "lean", "lean_functional"]
