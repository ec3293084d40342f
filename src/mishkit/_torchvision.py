"""torchvision beside a torch that its library was not built for."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path

import torch


@functools.cache  # the operators last as long as what defines them
def mend_torchvision() -> torch.library.Library | None:
    """Give torchvision the two operators without which it can't be imported, where its library does
    not load: PyPI's is built for CUDA, and does not go with a torch for CPUs. Call it before what
    imports torchvision: timm, transformers and Lightning do. None where there is nothing to mend.
    """
    if "torchvision" in sys.modules:
        return None
    spec = importlib.util.find_spec("torchvision")
    try:
        for library in Path(spec.origin).parent.glob("_C*") if spec and spec.origin else ():
            torch.ops.load_library(library)
    except OSError:
        if hasattr(torch.ops.torchvision, "nms"):
            return None  # someone else mended it
        mended = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            mended.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return mended
    return None
