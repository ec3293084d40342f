"""Evaluate nodes of an ONNX model in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from ...export import OPERATORS

STANDARD_DOMAINS = ("", "ai.onnx")
MICROSOFT = "com.microsoft"
CASTS = ("Cast", "CastLike")
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
PASSING = ("Identity", *CASTS, QUANTIZE, DEQUANTIZE)
"""Operators that only round or clamp values. No site ends with one of them."""
BIASED = ("BiasGelu", "FastGelu")
"""ONNX Runtime's operators that may add a bias to x first."""
_FINEST = 100
"""Quantised values may be off by one quantisation step, but by no more than one part in this many.
"""


class UnknownError(Exception):
    """An operator or attribute that can't be evaluated."""


def is_elementwise(node: ir.Node) -> bool:
    """Whether `evaluate` knows what the node computes, element by element."""
    return _operator(node) is not None and len(node.outputs) == 1


def _operator(node: ir.Node) -> Callable[..., Tensor] | None:
    if node.domain == MICROSOFT:
        return _MICROSOFT.get(node.op_type)
    return _OPERATORS.get(node.op_type) if node.domain in STANDARD_DOMAINS else None


def constant(value: ir.Value) -> Any:
    """A constant's tensor; None if the value is not constant, or its data is elsewhere."""
    if value.is_graph_input():  # the caller may pass something else
        return None
    try:
        tensor = ir.convenience.get_const_tensor(value)
    except Exception:  # attributes that do not fit
        return None
    return None if isinstance(tensor, ir.ExternalTensor) and tensor.base_dir == "" else tensor


def number(value: ir.Value) -> Tensor | None:
    """The value of a constant with one element."""
    tensor = constant(value)
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    try:
        return torch.tensor(float(tensor.numpy().reshape(())), dtype=torch.float64)
    except Exception:  # data that does not fit its dtype and shape, or is not there
        return None


def constants(nodes: Sequence[ir.Node]) -> Iterator[Any]:
    """The constants of one element that the nodes read."""
    for node in nodes:
        for value in node.inputs:
            if value is not None and number(value) is not None:
                yield ir.convenience.get_const_tensor(value)


def dtype_of(value: ir.Value, x: ir.Value, nodes: Sequence[ir.Node]) -> ir.DataType | None:
    """The dtype that the nodes give a value; None if it is x's."""
    node = value.producer()
    if value is x or node is None or node not in nodes:
        return None
    if node.op_type == "Cast":
        to = node.attributes.get("to")
        dtype = None if to is None or to.is_ref() else ir.DataType(to.value)
        return None if dtype == x.dtype else dtype
    inputs = node.inputs[1:] if node.op_type in ("CastLike", "Where") else node.inputs
    remaining = [n for n in nodes if n is not node]
    # All inputs of an operator have the same dtype, so the first one tells.
    dtypes = [dtype_of(v, x, remaining) for v in inputs if v is not None and number(v) is None]
    return dtypes[0] if dtypes and None not in dtypes else None


def evaluate(
    value: ir.Value, nodes: Sequence[ir.Node], computed: dict[ir.Value, Tensor | None]
) -> Tensor:
    """A value that the nodes compute from those in `computed`, to which the results are added.

    Raises
    ------
    UnknownError
        if a node does not compute it, or does not do so element by element
    """
    if value in computed:
        ready = computed[value]
        if ready is None:  # the value depends on itself
            raise UnknownError
        return ready
    scalar = number(value)
    if scalar is not None:
        return scalar
    node = value.producer()
    if node is None or node not in nodes or not is_elementwise(node):
        raise UnknownError
    computed[value] = None
    inputs = node.inputs[:1] if node.op_type == "CastLike" else node.inputs
    arguments = [None if source is None else evaluate(source, nodes, computed) for source in inputs]
    if node.op_type == QUANTIZE:
        result = _quantized(node, *arguments)
    else:
        attributes = {}
        for name, attribute in node.attributes.items():
            if attribute.is_ref():
                raise UnknownError
            attributes[name] = attribute.value
        operator = _operator(node)
        assert operator is not None
        try:
            result = operator(*arguments, **attributes)
        except (TypeError, RuntimeError, ValueError, OverflowError):  # arguments that no site has
            raise UnknownError from None
    if not isinstance(result, Tensor):
        raise UnknownError
    computed[value] = result
    return result


def tolerance(nodes: Sequence[ir.Node]) -> float:
    """The error that rounding the constants and quantisation may cause."""
    steps = [0.0]
    for node in nodes:
        if node.op_type == QUANTIZE and node.inputs[1] is not None:
            scale = number(node.inputs[1])
            steps.append(min(abs(float(scale)), 1 / _FINEST) if scale is not None else 0.0)
    return max([*steps, *(4 * _eps(tensor.dtype) for tensor in constants(nodes))])


def _eps(dtype: ir.DataType) -> float:
    halves = {ir.DataType.FLOAT16: torch.float16, ir.DataType.BFLOAT16: torch.bfloat16}
    return torch.finfo(halves[dtype]).eps if dtype in halves else 0.0


def _cast(x: Tensor, *, to: int, **_: Any) -> Tensor:
    """A cast to a floating dtype; rounding is ignored."""
    if not ir.DataType(to).is_floating_point():
        raise UnknownError
    return x.double()


def _quantized(node: ir.Node, x: Any, scale: Any, zero: Any = None) -> Tensor:
    """Quantised values, clamped to the integers' range but not rounded."""
    kind = node.attributes.get("output_dtype")
    if zero is not None and node.inputs[2] is not None:
        dtype = constant(node.inputs[2]).dtype
    else:
        stated = None if kind is None or kind.is_ref() else kind.value
        dtype = ir.DataType(stated) if stated else ir.DataType.UINT8
    if not isinstance(dtype, ir.DataType) or "INT" not in dtype.name or x is None or scale is None:
        raise UnknownError
    low, high = -(2 ** (dtype.bitwidth - 1)), 2 ** (dtype.bitwidth - 1) - 1
    if dtype.name.startswith("UINT"):
        low, high = 0, high - low
    bounded: Tensor = (x / scale + (0 if zero is None else zero)).clamp(low, high)
    return bounded


def _dequantized(x: Tensor, scale: Tensor, zero: Any = None, **_: Any) -> Tensor:
    return (x - (0 if zero is None else zero)) * scale


def _bias_gelu(x: Tensor, _bias: Any = None) -> Tensor:
    return F.gelu(x)


def _fast_gelu(x: Tensor, _bias: Any = None) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    if not math.isfinite(alpha):
        raise UnknownError
    return x * torch.sigmoid(alpha * x)


_OPERATORS: dict[str, Callable[..., Tensor]] = {
    **OPERATORS,
    "Cast": _cast,
    "CastLike": lambda x, **_: x.double(),
    QUANTIZE: _quantized,
    DEQUANTIZE: _dequantized,
}
_MICROSOFT: dict[str, Callable[..., Tensor]] = {
    "BiasGelu": _bias_gelu,
    "FastGelu": _fast_gelu,
    "Gelu": F.gelu,
    "QuickGelu": _quick_gelu,
}
"""Operators that ONNX Runtime's optimizer writes. The caller adds the bias."""
