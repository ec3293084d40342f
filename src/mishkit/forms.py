"""The forms that a function can be exported in: each computes it in standard ONNX operators.

What is fast differs from runtime to runtime. ONNX Runtime takes several times as long for the
operator ``Mish`` as for the same function by ``Sigmoid``, while OpenVINO has a kernel for ``Mish``.
So each function has several forms, and `mishkit.functions._fastest` says which is fastest where.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

STANDARD = "standard"
"""The form in the function's own operator, where the opset has one."""


@dataclass(frozen=True)
class Form:
    """One way to write a function in standard ONNX operators."""

    name: str
    write: Callable[..., Any]
    """Writes f: write(writer, *parameters), see `mishkit.activation.OnnxWriter`."""
    float32: float
    """The largest error in float32, |y − f(x)| / max(1, |f(x)|), where every operator rounds."""
    float16: float
    """The same in float16."""
