"""The activations of an ONNX model, by what they compute, and others in their place."""

from .recognise import Site, sites
from .rewrite import swap

__all__ = ["Site", "sites", "swap"]
