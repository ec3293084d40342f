"""Make torchvision importable next to a torch that its library was not built for."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path

import torch


@functools.cache  # the operators last as long as the library object
def mend_torchvision() -> torch.library.Library | None:
    """Define the two operators without which torchvision can't be imported, if its library does not
    load. PyPI's build is for CUDA and does not work with a torch for CPUs. Call this before
    anything that imports torchvision, as timm, transformers and Lightning do. Returns None if there
    is nothing to fix.
    """
    if "torchvision" in sys.modules:
        return None
    # Submodules left by a failed import of torchvision would not be bound to the package again.
    for name in [name for name in sys.modules if name.startswith("torchvision.")]:
        del sys.modules[name]
    spec = importlib.util.find_spec("torchvision")
    try:
        for library in Path(spec.origin).parent.glob("_C*") if spec and spec.origin else ():
            torch.ops.load_library(library)
    except OSError:
        if hasattr(torch.ops.torchvision, "nms"):
            return None  # someone else has fixed it
        mended = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            mended.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return mended
    return None
