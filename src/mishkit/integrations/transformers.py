"""Callbacks for the `Trainer` of transformers."""

from ..surgery.transformers import AnnealCallback, LeanCallback

__all__ = ["AnnealCallback", "LeanCallback"]
