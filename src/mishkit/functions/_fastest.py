"""The fastest form of each function in each runtime. Written by benchmarks/runtimes.py."""

from __future__ import annotations

FASTEST: dict[str, dict[str, str]] = {
    "onnxruntime": {
        "relu": "standard",
        "softplus": "sigmoid",
        "silu": "standard",
        "gelu": "standard",
        "gelu_tanh": "standard",
        "mish": "sigmoid",
        "h_mish": "standard",
        "hard_mish": "standard",
        "hardswish": "standard",
        "swish": "standard",
        "piecewise_swish": "standard",
        "linear_swish": "standard",
        "aptx": "sigmoid",
    },
}
