"""Find the activations of an ONNX model by what they compute, and replace them."""

from .recognise import Site, sites
from .rewrite import swap

__all__ = ["Site", "sites", "swap"]
