"""Where a form other than the standard one is fastest, by benchmarks/runtimes.py."""

from __future__ import annotations

FASTEST: dict[str, dict[str, str]] = {
    "onnxruntime": {
        "elu": "exp",
        "softplus": "sigmoid",
        "mish": "sigmoid",
    },
    "openvino": {
        "h_mish": "clip",
        "hard_mish": "clip",
    },
    "opencv": {
        "softplus": "sigmoid",
        "gelu_tanh": "sigmoid",
    },
    "ncnn": {
        "softplus": "sigmoid",
    },
    "mnn": {
        "elu": "exp",
        "gelu": "erf",
        "gelu_tanh": "sigmoid",
        "mish": "sigmoid",
    },
    "tract": {
        "elu": "exp",
        "gelu_tanh": "sigmoid",
    },
    "litert": {
        "hardswish": "clip",
    },
}
