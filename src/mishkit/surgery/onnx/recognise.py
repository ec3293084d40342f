"""Find the nodes of an ONNX model that compute a known function.

A site is one node, or a few nodes between one value and another, whose other inputs are all
constants. Its function is found by evaluating the nodes, so it does not matter how it is written.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from ...functions import ACTIVATIONS
from ..known import FUNCTION_NAMES, Known

LARGEST = 12
"""The most nodes a site may have: the longest way to write GELU has nine."""
_DOMAINS = ("", "ai.onnx")
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
    """The opset of the enclosing graph or function; 0 if that uses no standard operators."""

    @property
    def output(self) -> ir.Value:
        return self.nodes[0].outputs[0]

    @property
    def name(self) -> str:
        """The name of the last node, or of its output if the node has none."""
        return self.nodes[0].name or self.output.name or ""

    @property
    def path(self) -> str:
        """The path of the module that the site came from, if PyTorch's exporter recorded it."""
        noted = self.nodes[0].metadata_props.get("pkg.torch.onnx.name_scopes", "[]")
        try:
            return str(ast.literal_eval(noted)[-2])
        except (ValueError, SyntaxError, IndexError, TypeError):
            return ""

    def __str__(self) -> str:
        types = ", ".join(node.op_type for node in reversed(self.nodes))
        return f"{named(self.known)} ({types})"


def sites(model: ir.Model) -> list[Site]:
    """Every site of the model, its subgraphs and functions, in order; no two share a node."""
    found: list[Site] = []
    graphs = [(model.graph, model.opset_imports)]
    graphs += [(function.graph, function.opset_imports) for function in model.functions.values()]
    for graph, imports in graphs:
        opset = next((imports[domain] for domain in _DOMAINS if domain in imports), 0)
        taken: set[ir.Node] = set()
        here = []
        # From the end, so that a node with tanh(softplus(x)) inside is seen before these two are.
        for node in reversed(list(ir.traversal.RecursiveGraphIterator(graph))):
            if node not in taken and node.op_type != "Identity":
                site = _recognise(node, opset)
                if site is not None:
                    taken.update(site.nodes)
                    here.append(site)
        found += reversed(here)
    return found


def _recognise(last: ir.Node, opset: int) -> Site | None:
    """The smallest site that ends with this node, if there is one."""
    if not _is_elementwise(last):
        return None
    nodes = [last]
    while len(nodes) <= LARGEST:
        given = _inputs(nodes)
        if len(given) == 1:
            (x,) = given
            known = _computed(nodes, x)
            is_float = x.dtype is None or x.dtype.is_floating_point()
            if known is not None and is_float and _is_broadcast_free(nodes, x):
                return Site(tuple(nodes), x, known, opset)
        further = [node for value in given if (node := _hidden_producer(value, nodes)) is not None]
        if not further:
            return None
        nodes.append(further[-1])
    return None


def _is_elementwise(node: ir.Node) -> bool:
    return node.domain in _DOMAINS and node.op_type in _OPERATORS and len(node.outputs) == 1


def _inputs(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    """The values, apart from constants, that these nodes take from other nodes."""
    given: dict[ir.Value, None] = {}
    for node in nodes:
        for value in node.inputs:
            if value is None or value.producer() in nodes or _number(value) is not None:
                continue
            given.setdefault(value)
    return list(given)


def _hidden_producer(value: ir.Value, nodes: Sequence[ir.Node]) -> ir.Node | None:
    """The node that produces this value, if only the given nodes use the value."""
    node = value.producer()
    if node is None or value.is_graph_output() or node.graph is not nodes[0].graph:
        return None
    if not _is_elementwise(node) or any(user not in nodes for user, _ in value.uses()):
        return None
    return node


def _number(value: ir.Value) -> Tensor | None:
    """The value of a constant with one element."""
    if value.is_graph_input():  # the caller may pass something else
        return None
    constant = ir.convenience.get_const_tensor(value)
    if isinstance(constant, ir.ExternalTensor) and constant.base_dir == "":
        return None
    if constant is None or constant.size != 1 or constant.dtype == ir.DataType.STRING:
        return None
    return torch.tensor(float(constant.numpy().reshape(())), dtype=torch.float64)


def _is_broadcast_free(nodes: Sequence[ir.Node], x: ir.Value) -> bool:
    """Whether the result has the input's shape: a constant with more dimensions would add some."""
    rank = len(x.shape) if x.shape is not None else 1
    return all(len(c.shape) <= rank for c in constants(nodes))


def constants(nodes: Sequence[ir.Node]) -> Iterator[Any]:
    for node in nodes:
        for value in node.inputs:
            if value is not None and _number(value) is not None:
                yield ir.convenience.get_const_tensor(value)


def _computed(nodes: Sequence[ir.Node], x: ir.Value) -> Known | None:
    """The function of x that these nodes compute, whatever x is.

    If the nodes give an infinity or NaN for a finite x, as ln(1 + exp(x)) does far out, they may
    still match a function that is finite there. A bound that the nodes keep to must be part of the
    function.
    """
    points = torch.cat([_grid(), _beside_constants(nodes)])
    try:
        every = _evaluate(nodes[0].outputs[0], {x: points})
    except _UnknownError:
        return None
    if every.dtype != torch.float64 or every.shape != points.shape:
        return None
    y = every[: _grid().numel()]
    if not y[_grid().abs() <= NEAR].isfinite().all():
        return None
    if _is_line(y):
        return None  # a line would be the limit of many functions
    # Rounding of the constants must not make it a different function.
    tolerance = max([ROUNDING, *(4 * _eps(constant.dtype) for constant in constants(nodes))])
    names, values = _table()
    candidates = [(Known(name), f) for name, f in zip(names, values, strict=True)]
    for name, fit in _FITS.items():
        parameters = fit(y)
        if parameters is not None:
            fitted = Known(name, parameters)
            candidates.append((fitted, _values(fitted, _grid())))
    if all(node.op_type != "Tanh" for node in nodes):
        # A scaled SiLU is an APTx too, but should be recognised as a scaled SiLU.
        candidates = [one for one in candidates if one[0].function != "aptx"]
    # Rounded, so that the first of two names for the same function wins.
    errors = [round(_distance(_grid(), y, f), 9) for _, f in candidates]
    best = min(range(len(errors)), key=errors.__getitem__)
    known = candidates[best][0]
    if errors[best] > tolerance:
        return None
    return known if _distance(points, every, _values(known, points)) <= tolerance else None


def _distance(x: Tensor, y: Tensor, f: Tensor) -> float:
    """The largest error of the nodes' values y against a function's values f, next to x or f."""
    scale = (x.abs() + f.abs()).clamp_min(1e-9)
    error = torch.where(y == f, 0.0, (y - f).abs() / scale).nan_to_num(math.inf)
    error[~y.isfinite()] = 0
    # At infinity a function is often undefined; where it is defined, bounds must match.
    error[x.isinf() & f.isnan()] = 0
    error[x.isinf() & f.isinf() & y.isfinite()] = math.inf
    return float(error.max())


def _beside_constants(nodes: Sequence[ir.Node]) -> Tensor:
    """Points on both sides of, and between, places where a constant may make a difference.

    Includes single constants and what pairs of them combine to: a threshold may apply to 2·x + 1.
    """
    numbers = {1.0}
    for node in nodes:
        given = [one for value in node.inputs if value is not None
                 if (one := _number(value)) is not None]  # fmt: skip
        attributes = [one.value for one in node.attributes.values() if not one.is_ref()]
        numbers.update(float(one) for one in given)
        numbers.update(float(one) for one in attributes if isinstance(one, (int, float)))
    some = torch.tensor([one for one in numbers if math.isfinite(one)], dtype=torch.float64)
    one, other = some[:, None], some[None, :]
    at = torch.cat([t.flatten() for t in (one + other, one - other, one * other, one / other)])
    at = at[at.isfinite()]
    at = torch.cat([some, at, -some, -at]).unique()
    step = torch.finfo(torch.float32).eps * at.abs() + torch.finfo(torch.float32).tiny
    between = (at[1:] + at[:-1]) / 2
    return torch.cat([at, at - step, at + step, at - 1, at + 1, 2 * at, between])


def _is_line(y: Tensor) -> bool:
    slope, middle = (_at(y, 12) - _at(y, -12)) / 24, _at(y, 0)
    is_near = _grid().abs() <= NEAR
    line = middle + slope * _grid()
    return bool(torch.allclose(y[is_near], line[is_near], rtol=1e-6, atol=1e-6))


def _eps(dtype: ir.DataType) -> float:
    halves = {ir.DataType.FLOAT16: torch.float16, ir.DataType.BFLOAT16: torch.bfloat16}
    return torch.finfo(halves[dtype]).eps if dtype in halves else 0.0


class _UnknownError(Exception):
    """An operator or attribute that can't be evaluated."""


def _evaluate(value: ir.Value, computed: dict[ir.Value, Tensor]) -> Tensor:
    if value in computed:
        return computed[value]
    number = _number(value)
    if number is not None:
        return number
    node = value.producer()
    if node is None or not _is_elementwise(node):
        raise _UnknownError
    given = [None if one is None else _evaluate(one, computed) for one in node.inputs]
    attributes = {}
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            raise _UnknownError
        attributes[name] = attribute.value
    try:
        result = _OPERATORS[node.op_type](*given, **attributes)
    except (TypeError, RuntimeError):  # attributes or dtypes that no site has
        raise _UnknownError from None
    computed[value] = result
    return result


def _clip(x: Tensor, low: Any = None, high: Any = None, *, min: Any = None, max: Any = None) -> Any:
    """Bounds are attributes before opset 11."""
    low, high = (low if min is None else min), (high if max is None else max)
    return x if low is None and high is None else torch.clamp(x, low, high)


def _hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def _swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return x * torch.sigmoid(alpha * x)


def _selu(x: Tensor, *, alpha: float = 1.67326319, gamma: float = 1.05070102) -> Tensor:
    return gamma * F.elu(x, alpha)


_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "Celu": lambda x, *, alpha=1.0: F.celu(x, alpha),
    "Clip": _clip,
    "Div": torch.div,
    "Elu": lambda x, *, alpha=1.0: F.elu(x, alpha),
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Gelu": lambda x, *, approximate="none": F.gelu(x, approximate=approximate),
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "LeakyRelu": lambda x, *, alpha=0.01: F.leaky_relu(x, alpha),
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Mish": F.mish,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Pow": torch.pow,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Selu": _selu,
    "Sigmoid": torch.sigmoid,
    "Softplus": lambda x: F.softplus(x, threshold=40),
    "Softsign": F.softsign,
    "Sub": torch.sub,
    "Swish": _swish,
    "Tanh": torch.tanh,
    "Where": torch.where,
}
"""The elementwise operators that activations consist of, with ONNX's own defaults."""


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
    others = sorted(FUNCTION_NAMES - ACTIVATIONS.keys() - {"celu", "prelu", "rrelu"})
    names = [*ACTIVATIONS, *others]
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


def is_close(one: float, other: float) -> bool:
    """Whether two parameters agree to within the error of a fit to rounded numbers."""
    return math.isclose(one, other, rel_tol=1e-5)


def named(known: Known) -> str:
    """For example `hard_mish(k=3)`; parameters at their defaults are left out."""
    defaults = (
        {p.name: p.default for p in ACTIVATIONS[known.function].parameters} if known.ours else {}
    )
    given = ", ".join(
        f"{p}={value:.6g}"
        for p, value in known.parameters.items()
        if p not in defaults or not is_close(value, defaults[p])
    )
    return f"{known.function}({given})" if given else known.function


def completed(known: Known) -> Known:
    if not known.ours:
        return known
    defaults = {p.name: p.default for p in ACTIVATIONS[known.function].parameters}
    return dataclasses.replace(
        known, parameters={**defaults, **known.parameters}, inplace=False, save=None
    )
