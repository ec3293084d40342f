"""Find the nodes of an ONNX model that compute a known function.

A site is one node, or a few nodes between one value and another, whose other inputs are all
constants. Its function is found by evaluating the nodes, so it does not matter how it is written.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from ...functions import ACTIVATIONS
from ..known import FUNCTION_NAMES, Known
from .evaluate import (
    BIASED,
    DEQUANTIZE,
    MICROSOFT,
    PASSING,
    STANDARD_DOMAINS,
    UnknownError,
    constants,
    dtype_of,
    evaluate,
    is_elementwise,
    number,
    tolerance,
)

LARGEST = 14
"""The most nodes a site may have: GELU has nine in its longest spelling, and casts come on top."""
_LONGEST_NOTE = 10_000
"""Characters of a path in the model's metadata: longer ones are no paths."""
CLOSE = 0.01
"""Nodes this far off a function, next to the input and the value, are worth a word."""
NEAR = 30.0
"""Within this distance from 0, a site must give finite values."""
FAR = 1e6
"""Out here, a function that ends in a straight line has reached it."""
ROUNDING = 4 * torch.finfo(torch.float32).eps
"""How far off a function may be, next to its input and value: its constants are in float32."""


@dataclass(frozen=True, eq=False)
class Site:
    """Nodes that compute a known function."""

    nodes: tuple[ir.Node, ...]
    """In no particular order, except that the node with the output is first."""
    input: ir.Value
    known: Known
    opset: int
    """The opset of the enclosing graph or function; 0 if it states none."""
    bias: ir.Value | None = None
    """What the nodes add to the input first."""

    @property
    def output(self) -> ir.Value:
        return self.nodes[0].outputs[0]

    @property
    def name(self) -> str:
        """The name of the last node, or of its output if the node has none."""
        return name_of(self.nodes[0])

    @property
    def path(self) -> str:
        """The path of the module that the site came from, if PyTorch's exporter recorded it."""
        return path_of(self.nodes[0])

    def __str__(self) -> str:
        types = ", ".join(node.op_type for node in reversed(self.nodes))
        return f"{named(self.known)} ({types})"


def name_of(last: ir.Node) -> str:
    """The name of a site that ends with this node."""
    return last.name or last.outputs[0].name or ""


def path_of(last: ir.Node) -> str:
    """The path of the module that a site came from; empty if nobody recorded it."""
    noted = last.metadata_props.get("pkg.torch.onnx.name_scopes", "[]")
    if len(noted) > _LONGEST_NOTE:
        return ""
    try:
        return str(ast.literal_eval(noted)[-2])
    except (ValueError, SyntaxError, IndexError, TypeError, KeyError, RecursionError, MemoryError):
        return ""


def scopes(model: ir.Model) -> Iterator[tuple[ir.Graph, int]]:
    """The model's graph and those of its functions, each with its opset; 0 if none is stated."""
    graphs = [(model.graph, model.opset_imports)]
    graphs += [(function.graph, function.opset_imports) for function in model.functions.values()]
    for graph, imports in graphs:
        yield graph, next((imports[name] for name in STANDARD_DOMAINS if name in imports), 0)


def sites(model: ir.Model) -> list[Site]:
    """Every site of the model, its subgraphs and functions, in order; no two share a node."""
    every: list[Site] = []
    for graph, opset in scopes(model):
        taken: set[ir.Node] = set()
        here = []
        # From the end, so that a node with tanh(softplus(x)) inside is seen before these two are.
        for node in reversed(list(ir.traversal.RecursiveGraphIterator(graph))):
            if node not in taken and node.op_type not in PASSING:
                site = _recognise(node, opset)
                if site is not None:
                    taken.update(site.nodes)
                    here.append(site)
        every += reversed(here)
    return every


def _recognise(last: ir.Node, opset: int) -> Site | None:
    """The smallest site that ends with this node, if there is one."""
    if not is_elementwise(last):
        return None
    if last.domain == MICROSOFT and last.op_type in BIASED and len(last.inputs) > 1:
        x, bias = last.inputs[:2]
        if x is not None and bias is not None:
            function = "gelu" if last.op_type == "BiasGelu" else "gelu_tanh"
            return Site((last,), x, Known(function), opset, bias)
    for nodes in groups(last, hidden_producer):
        sources = inputs(nodes)
        if len(sources) == 1 and fits(nodes, sources[0]):
            known, error = closest(nodes, sources[0])
            if known is not None and error <= allowed(nodes):
                return Site(tuple(nodes), sources[0], known, opset)
    return None


Producer = Callable[[ir.Value, Sequence[ir.Node]], ir.Node | None]


def groups(last: ir.Node, producer: Producer) -> Iterator[list[ir.Node]]:
    """This node; then, one by one, with the nodes that `producer` finds for what they read."""
    nodes = [last]
    while len(nodes) <= LARGEST:
        yield nodes
        further = [node for value in inputs(nodes) if (node := producer(value, nodes)) is not None]
        if not further:
            return
        nodes = [*nodes, further[-1]]


def inputs(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    """The values, apart from constants, that these nodes take from other nodes."""
    sources: dict[ir.Value, None] = {}
    for node in nodes:
        for value in node.inputs:
            if value is None or value.producer() in nodes or number(value) is not None:
                continue
            sources.setdefault(value)
    return list(sources)


def hidden_producer(value: ir.Value, nodes: Sequence[ir.Node]) -> ir.Node | None:
    """The node that produces this value, if only the given nodes use the value."""
    node = elementwise_producer(value, nodes)
    if (
        node is None
        or value.is_graph_output()
        or any(user not in nodes for user, _ in value.uses())
    ):
        return None
    return node


def elementwise_producer(value: ir.Value, nodes: Sequence[ir.Node]) -> ir.Node | None:
    """The node that produces this value, if it is in the same graph and works by element."""
    node = value.producer()
    if node is None or node.graph is not nodes[0].graph or not is_elementwise(node):
        return None
    return node


def fits(nodes: Sequence[ir.Node], x: ir.Value) -> bool:
    """Whether x is a floating tensor, and the result has its shape and dtype."""
    if x.dtype is not None and not x.dtype.is_floating_point():
        return False
    # Without a dtype, what is dequantised gives itself away.
    if any(node.op_type == DEQUANTIZE and node.inputs[0] is x for node in nodes):
        return False
    # A constant with more dimensions would add some.
    rank = len(x.shape) if x.shape is not None else 1
    same_shape = all(len(tensor.shape) <= rank for tensor in constants(nodes))
    return same_shape and dtype_of(nodes[0].outputs[0], x, nodes) is None


def allowed(nodes: Sequence[ir.Node]) -> float:
    """How far off these nodes may be: what rounding and quantisation explain."""
    return max(ROUNDING, tolerance(nodes))


def closest(
    nodes: Sequence[ir.Node], x: ir.Value, also: Mapping[ir.Value, Tensor] = MappingProxyType({})
) -> tuple[Known | None, float]:
    """The function closest to what these nodes compute, if any, and the largest error next to the
    input and the value. Within what is `allowed`, it is that function, whatever x is.

    If the nodes give an infinity or NaN for a finite x, as ln(1 + exp(x)) does far out, they may
    still match a function that is finite there. A bound that the nodes keep to must be part of the
    function. `also` has further values that the nodes read.
    """
    points = torch.cat([_grid(), _beside_constants(nodes)])
    try:
        every = evaluate(nodes[0].outputs[0], nodes, {x: points, **also})
    except UnknownError:
        return None, math.inf
    if every.dtype != torch.float64 or every.shape != points.shape:
        return None, math.inf
    y = every[: _grid().numel()]
    if not y[_grid().abs() <= NEAR].isfinite().all():
        return None, math.inf
    if _is_line(y):
        return None, math.inf  # a line would be the limit of many functions
    names, values = _table()
    known = [Known(name) for name in names]
    fitted = [
        Known(name, parameters) for name, fit in _FITS.items() if (parameters := fit(y)) is not None
    ]
    values = torch.cat([values, *(_values(function, _grid())[None] for function in fitted)])
    # The first of two names for the same function wins.
    errors = [max(error, ROUNDING) for error in _distances(_grid(), y, values).tolist()]
    candidates = [*zip(errors, [*known, *fitted], strict=True)]
    if all(node.op_type != "Tanh" for node in nodes):
        # A scaled SiLU is an APTx too, but should be recognised as a scaled SiLU.
        candidates = [pair for pair in candidates if pair[1].function != "aptx"]
    error, best = min(candidates, key=lambda pair: pair[0])
    if error > CLOSE:
        return None, error
    return best, max(error, float(_distances(points, every, _values(best, points)[None])))


def _distances(x: Tensor, y: Tensor, functions: Tensor) -> Tensor:
    """The largest error of the nodes' values y against each function's values, next to x or f."""
    scale = (x.abs() + functions.abs()).clamp_min(1e-9)
    error = torch.where(y == functions, 0.0, (y - functions).abs() / scale).nan_to_num(math.inf)
    at_infinity = x.isinf()
    # At infinity a function is often undefined; where it is defined, bounds must match.
    error = torch.where(at_infinity & functions.isinf() & y.isfinite(), math.inf, error)
    return torch.where(~y.isfinite() | (at_infinity & functions.isnan()), 0.0, error).amax(1)


def _beside_constants(nodes: Sequence[ir.Node]) -> Tensor:
    """Points on both sides of, and between, places where a constant may make a difference.

    Includes single constants and what pairs of them combine to: a threshold may apply to 2·x + 1.
    """
    numbers = {1.0}
    for node in nodes:
        constants_read = [number(value) for value in node.inputs if value is not None]
        attributes = [a.value for a in node.attributes.values() if not a.is_ref()]
        numbers.update(float(n) for n in constants_read if n is not None)
        numbers.update(float(a) for a in attributes if isinstance(a, (int, float)))
    single = torch.tensor([n for n in numbers if math.isfinite(n)], dtype=torch.float64)
    a, b = single[:, None], single[None, :]
    at = torch.cat([pairs.flatten() for pairs in (a + b, a - b, a * b, a / b)])
    at = at[at.isfinite()]
    at = torch.cat([single, at, -single, -at]).unique()
    step = torch.finfo(torch.float32).eps * at.abs() + torch.finfo(torch.float32).tiny
    between = (at[1:] + at[:-1]) / 2
    return torch.cat([at, at - step, at + step, at - 1, at + 1, 2 * at, between])


def _is_line(y: Tensor) -> bool:
    slope, middle = (_at(y, 12) - _at(y, -12)) / 24, _at(y, 0)
    is_near = _grid().abs() <= NEAR
    line = middle + slope * _grid()
    return bool(torch.allclose(y[is_near], line[is_near], rtol=1e-6, atol=1e-6))


@functools.cache
def _grid() -> Tensor:
    """Closely spaced points where functions bend, and every magnitude that float32 has."""
    near = torch.tensor([16.0, 20, 24, NEAR], dtype=torch.float64)
    powers = 2 ** torch.arange(-149, 128, dtype=torch.float64)
    largest = torch.tensor([torch.finfo(torch.float32).max, math.inf], dtype=torch.float64)
    sided = torch.cat([near, powers, FAR * torch.ones_like(near[:1]), largest])
    return torch.cat([torch.linspace(-12, 12, 241, dtype=torch.float64), sided, -sided])


@functools.cache
def _table() -> tuple[list[str], Tensor]:
    """The functions without parameters, or with their defaults, and their values. Of several
    identical functions, the first is used.
    """
    # Leave out celu, which is elu's twin, and those that need randomness or weights.
    torch_only = sorted(FUNCTION_NAMES - ACTIVATIONS.keys() - {"celu", "prelu", "rrelu"})
    names = [*ACTIVATIONS, *torch_only]
    return names, torch.stack([_values(Known(name), _grid()) for name in names])


def _values(known: Known, x: Tensor) -> Tensor:
    """The function's values, from our implementation or PyTorch's own."""
    if known.ours:
        return ACTIVATIONS[known.function].f(x, *completed(known).parameters.values())
    values: Tensor = getattr(F, known.function)(x, **known.parameters)
    return values


def _at(y: Tensor, x: float) -> float:
    return float(y[int((_grid() - x).abs().argmin())])


Fit = Callable[[Tensor], dict[str, float] | None]
"""The parameters with which a function would have these values on the grid, or None."""


def _fit_swish(y: Tensor) -> dict[str, float] | None:
    weight = _at(y, 1)
    return {"beta": math.log(weight / (1 - weight))} if 0.5 < weight < 1 else None


def _fit_hard_mish(y: Tensor) -> dict[str, float] | None:
    low = _at(y, -1)
    return {"k": -2 / low} if low < 0 else None


def _fit_softplus(y: Tensor) -> dict[str, float] | None:
    middle = _at(y, 0)
    return {"beta": math.log(2) / middle} if middle > 0 else None


def _fit_aptx(y: Tensor) -> dict[str, float] | None:
    left, right = _at(y, -FAR) / -FAR, _at(y, FAR) / FAR
    gamma = (right - left) / 2
    if gamma == 0:
        return None
    alpha = (right + left) / 2 / gamma
    bend = _at(y, 1) / gamma - alpha
    return {"alpha": alpha, "beta": math.atanh(bend), "gamma": gamma} if 0 < bend < 1 else None


def _fit_elu(y: Tensor) -> dict[str, float] | None:
    low = _at(y, -1)
    return {"alpha": low / math.expm1(-1)} if low < 0 else None


def _fit_leaky_relu(y: Tensor) -> dict[str, float] | None:
    slope = -_at(y, -1)
    return {"negative_slope": slope} if slope > 0 else None


_FITS: dict[str, Fit] = {
    "softplus": _fit_softplus,
    "hard_mish": _fit_hard_mish,
    "aptx": _fit_aptx,
    "swish": _fit_swish,
    "leaky_relu": _fit_leaky_relu,
    "elu": _fit_elu,
}
"""Functions with parameters, which are found from a few values."""


def is_close(a: float, b: float) -> bool:
    """Whether two parameters agree to within the error of a fit to rounded numbers."""
    return math.isclose(a, b, rel_tol=1e-5)


def named(known: Known) -> str:
    """For example `hard_mish(k=3)`; parameters at their defaults are left out."""
    defaults = (
        {p.name: p.default for p in ACTIVATIONS[known.function].parameters} if known.ours else {}
    )
    parameters = ", ".join(
        f"{p}={value:.6g}"
        for p, value in known.parameters.items()
        if p not in defaults or not is_close(value, defaults[p])
    )
    return f"{known.function}({parameters})" if parameters else known.function


def completed(known: Known) -> Known:
    if not known.ours:
        return known
    defaults = {p.name: p.default for p in ACTIVATIONS[known.function].parameters}
    return dataclasses.replace(
        known, parameters={**defaults, **known.parameters}, inplace=False, save=None
    )
