"""mishkit's functions in ONNX's standard operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

OLDEST = 9
"""The first opset that has all that is written."""


@dataclass
class Writer:
    """Writes nodes that compute something of x, in the operators of an opset."""

    x: ir.Value
    opset: int
    dtype: ir.DataType | None
    """That of x; None where it is not known."""
    nodes: list[ir.Node] = field(default_factory=list)

    @property
    def has_hard_sigmoid(self) -> bool:
        """Whether the operator takes the dtype, and ONNX Runtime runs it."""
        if self.dtype == ir.DataType.BFLOAT16:
            return self.opset >= 22
        return self.dtype != ir.DataType.DOUBLE

    def __call__(self, operator: str, *inputs: ir.Value | float, **attributes: Any) -> ir.Value:
        given = [self.number(one) if isinstance(one, (int, float)) else one for one in inputs]
        return self._add(operator, given, attributes)

    def number(self, value: float) -> ir.Value:
        """A constant of x's type."""
        tensor = ir.tensor(float(value), dtype=self.dtype or ir.DataType.FLOAT)
        constant = self._add("Constant", [], {"value": tensor})
        if self.dtype is None and self.opset >= 15:
            return self._add("CastLike", [constant, self.x], {})
        return constant

    def scaled(self, x: ir.Value, factor: float) -> ir.Value:
        return x if factor == 1 else self("Mul", x, factor)

    def clip(self, x: ir.Value, low: float, high: float) -> ir.Value:
        if self.opset < 11:
            return self("Clip", x, min=float(low), max=float(high))
        return self("Clip", x, low, high)

    def _add(
        self, operator: str, inputs: Sequence[ir.Value], attributes: dict[str, Any]
    ) -> ir.Value:
        node = ir.node(operator, inputs, attributes)
        self.nodes.append(node)
        return node.outputs[0]


def _write_softplus(w: Writer, beta: float, threshold: float) -> ir.Value:
    # Beyond the threshold ln(1 + exp(beta·x))/beta is x anyway, but for 2e-9.
    return w.scaled(w("Softplus", w.scaled(w.x, beta)), 1 / beta)


def _write_swish(w: Writer, beta: float = 1.0) -> ir.Value:
    if w.opset >= 24:
        return w("Swish", w.x, alpha=float(beta))
    return w("Mul", w.x, w("Sigmoid", w.scaled(w.x, beta)))


def _write_gelu(w: Writer) -> ir.Value:
    if w.opset >= 20:
        return w("Gelu", w.x)
    both = w("Add", w("Erf", w("Mul", w.x, math.sqrt(0.5))), 1.0)
    return w("Mul", w.x, w("Mul", both, 0.5))


def _write_gelu_tanh(w: Writer) -> ir.Value:
    if w.opset >= 20:
        return w("Gelu", w.x, approximate="tanh")
    root = math.sqrt(2 / math.pi)
    slope = w("Add", w("Mul", w("Mul", w.x, w.x), 0.044715 * root), root)
    both = w("Add", w("Tanh", w("Mul", w.x, slope)), 1.0)
    return w("Mul", w.x, w("Mul", both, 0.5))


def _write_mish(w: Writer) -> ir.Value:
    if w.opset >= 18:
        return w("Mish", w.x)
    return w("Mul", w.x, w("Tanh", w("Softplus", w.x)))


def _write_hard(w: Writer, slope: float, middle: float) -> ir.Value:
    """x·max(0, min(1, slope·x + middle)), which is what hard forms are."""
    if w.has_hard_sigmoid:
        return w("Mul", w.x, w("HardSigmoid", w.x, alpha=slope, beta=middle))
    return w("Mul", w.x, w.clip(w("Add", w("Mul", w.x, slope), middle), 0, 1))


def _write_hardswish(w: Writer) -> ir.Value:
    if w.opset >= 14 and w.has_hard_sigmoid:
        return w("HardSwish", w.x)
    return _write_hard(w, 1 / 6, 0.5)


def _write_hard_mish(w: Writer, k: float) -> ir.Value:
    return _write_hardswish(w) if k == 6 else _write_hard(w, 1 / k, 3 / k)


def _write_piecewise_swish(w: Writer) -> ir.Value:
    return w("Mul", w.x, w("Sigmoid", w("Add", w.x, w("Relu", w.x))))


def _write_linear_swish(w: Writer) -> ir.Value:
    weight = w("Mul", w("Sigmoid", w("Mul", w.x, 1.25)), 2.0)
    return w("Mul", w.x, w("Min", weight, 1.0))


def _write_aptx(w: Writer, alpha: float, beta: float, gamma: float) -> ir.Value:
    if alpha == 1 and gamma == 0.5:
        return _write_swish(w, 2 * beta)
    weight = w("Add", w("Tanh", w.scaled(w.x, beta)), alpha)
    return w("Mul", w.x, w.scaled(weight, gamma))


WRITERS: dict[str, Callable[..., ir.Value]] = {
    "relu": lambda w: w("Relu", w.x),
    "softplus": _write_softplus,
    "silu": _write_swish,
    "gelu": _write_gelu,
    "gelu_tanh": _write_gelu_tanh,
    "mish": _write_mish,
    "h_mish": lambda w: _write_hard(w, 0.5, 1.0),
    "hard_mish": _write_hard_mish,
    "hardswish": _write_hardswish,
    "swish": _write_swish,
    "piecewise_swish": _write_piecewise_swish,
    "linear_swish": _write_linear_swish,
    "aptx": _write_aptx,
}
"""Our functions in ONNX's standard operators."""
