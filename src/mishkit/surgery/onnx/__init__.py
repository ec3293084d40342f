"""Find the activations of an ONNX model by what they compute, and replace them."""

from .near import NearMiss
from .recognise import Site, sites
from .rewrite import survey, swap

__all__ = ["NearMiss", "Site", "sites", "survey", "swap"]
