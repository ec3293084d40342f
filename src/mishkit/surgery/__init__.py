"""What you can do to the activations of an existing model: audit, lean, swap, anneal, prune."""

from .anneal import Anneal
from .audit import audit
from .lean import lean, lean_functional
from .prune import prune
from .swap import swap, unswap

__all__ = ["Anneal", "audit", "lean", "lean_functional", "prune", "swap", "unswap"]
