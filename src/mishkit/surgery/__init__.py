"""What a user does to the activations of a model that exists: audit, lean, swap, anneal, prune."""

from .anneal import Anneal
from .audit import audit
from .lean import lean, lean_functional
from .prune import prune
from .swap import swap, unswap

__all__ = ["Anneal", "audit", "lean", "lean_functional", "prune", "swap", "unswap"]
