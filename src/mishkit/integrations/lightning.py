"""Callbacks for Lightning (`lightning` or `pytorch_lightning`)."""

from ..surgery.lightning import AnnealCallback, Lean

__all__ = ["AnnealCallback", "Lean"]
