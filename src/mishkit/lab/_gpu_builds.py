"""The kernels of the GPU backend as `_gpu_code` compiles them."""

from __future__ import annotations

import torch

from mishkit.backends import triton
from mishkit.functions import ACTIVATIONS

from ._gpu_code import Build

BODIES = ("forward", "forward_packed", "backward", "backward_packed", "double_backward")
TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
MANY = 1 << 24
"""Elements of a tensor that is large enough for the configuration of large ones."""


def find(function: str, body: str, dtype: str, target: str) -> Build | None:
    """The build of a body with the function's default parameters, for a large tensor."""
    a, kind = ACTIVATIONS[function], getattr(torch, dtype)
    if body == "forward_packed" and a.turn is None:
        return None
    launch = triton.launch(a, body, kind, *a.defaults)
    element = TYPES[dtype]
    signature: dict[str, object] = {
        name: "*u8" if name == "side" and a.turn is not None else f"*{element}"
        for name in launch.tensors
    }
    signature |= {"count": "i32", "c": ("fp32",) * len(launch.numbers)}
    if launch.turn is not None:
        signature["turn"] = "fp32"
    block = triton.block_of(kind, MANY)
    constexprs = {**launch.constants, "BLOCK": block}
    signature |= dict.fromkeys(constexprs, "constexpr")
    side = 1 / 8 if "side" in launch.tensors and a.turn is not None else 0
    return Build(
        launch.kernel,
        signature,
        constexprs,
        num_warps=triton.WARPS,
        elements=block,
        bytes_per_element=launch.traffic * kind.itemsize + side,
        aligned=(*launch.tensors, "count"),
    )
