"""Writes a function in standard ONNX operators; see `mishkit.activation.OnnxWriter`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx_ir as ir

OLDEST = 9
"""The first opset that has all the operators we write."""


@functools.cache
def exists(operator: str, opset: int) -> bool:
    """Whether this opset has this standard operator."""
    try:
        onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return False
    return True


@dataclass
class Writer:
    """Writes the nodes of a function of x, using the operators of an opset."""

    x: ir.Value
    opset: int
    """The opset that defines the nodes; 0 if it is not known."""
    dtype: ir.DataType | None
    """The dtype of x; None if it is not known."""
    limit: int
    """The opset that must have the operators too; at most `opset`."""
    nodes: list[ir.Node] = field(default_factory=list)

    def has(self, operator: str) -> bool:
        """Whether the operator can be written."""
        return exists(operator, self.limit)

    @property
    def has_hard_sigmoid(self) -> bool:
        """Whether the operator accepts the dtype, and ONNX Runtime can run it."""
        if self.dtype == ir.DataType.BFLOAT16:
            return self.limit >= 22
        return self.dtype != ir.DataType.DOUBLE

    def __call__(self, operator: str, *inputs: ir.Value | float, **attributes: Any) -> ir.Value:
        values = [
            self.number(value) if isinstance(value, (int, float)) else value for value in inputs
        ]
        return self._add(operator, values, attributes)

    def number(self, value: float) -> ir.Value:
        """A constant with x's dtype."""
        tensor = ir.tensor(float(value), dtype=self.dtype or ir.DataType.FLOAT)
        constant = self._add("Constant", [], {"value": tensor})
        if self.dtype is None and self.limit >= 15:
            return self._add("CastLike", [constant, self.x], {})
        return constant

    def scaled(self, x: ir.Value, factor: float) -> ir.Value:
        return x if factor == 1 else self("Mul", x, factor)

    def clip(self, x: ir.Value, low: float, high: float) -> ir.Value:
        # Since opset 11 the bounds are inputs.
        if self.opset >= 11 and self.limit >= 11:
            return self("Clip", x, low, high)
        if 0 < self.opset < 11:
            return self("Clip", x, min=float(low), max=float(high))
        return self("Min", self("Max", x, low), high)

    def swish(self, beta: float) -> ir.Value:
        """x·sigmoid(beta·x)."""
        if self.has("Swish"):
            return self("Swish", self.x, alpha=float(beta))
        return self("Mul", self.x, self("Sigmoid", self.scaled(self.x, beta)))

    def hard(self, slope: float, middle: float) -> ir.Value:
        """x·max(0, min(1, slope·x + middle)), the general form of the hard functions."""
        if (slope, middle) == (1 / 6, 0.5) and self.has("HardSwish") and self.has_hard_sigmoid:
            return self("HardSwish", self.x)
        if self.has_hard_sigmoid:
            return self("Mul", self.x, self("HardSigmoid", self.x, alpha=slope, beta=middle))
        return self("Mul", self.x, self.clip(self("Add", self("Mul", self.x, slope), middle), 0, 1))

    def _add(
        self, operator: str, inputs: Sequence[ir.Value], attributes: dict[str, Any]
    ) -> ir.Value:
        node = ir.node(operator, inputs, attributes)
        self.nodes.append(node)
        return node.outputs[0]
