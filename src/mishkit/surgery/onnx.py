"""The activations of an ONNX model, by what they compute, and others in their place.

A site is a node, or a few nodes between one value and another, all of whose other inputs are
constants. What they compute is found by computing it: so it is known however it is written.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PureWindowsPath
from typing import Any

import onnx
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functions import ACTIVATIONS
from ..registry import get
from .known import FUNCTION_NAMES, Known, identify
from .rules import Key, Value, unknown
from .swap import Replacement, Replacements

_SWAP = "mishkit.swap"
LARGEST = 12
"""Nodes of a site, at most: the longest way to write GELU has nine."""
OLDEST = 9
"""The first opset that has all that is written."""
_DOMAINS = ("", "ai.onnx")
NEAR = 30.0
"""Up to here, in both directions, a site gives finite values."""
FAR = 1e6
"""Here a function that has a slope in the end has it."""
ROUNDING = 4 * torch.finfo(torch.float32).eps
"""What a function may be off, next to its input and value, for its constants are in float32."""


@dataclass(frozen=True, eq=False)
class Site:
    """Nodes that compute a known function."""

    nodes: tuple[ir.Node, ...]
    """In no order, but that the one with the output is first."""
    input: ir.Value
    known: Known
    opset: int
    """Of the graph or function that it is in; 0 where that has none of the standard operators."""

    @property
    def output(self) -> ir.Value:
        return self.nodes[0].outputs[0]

    @property
    def name(self) -> str:
        """That of the last node; of its output, where the node has none."""
        return self.nodes[0].name or self.output.name or ""

    @property
    def path(self) -> str:
        """The path of the module that it was in, where PyTorch's exporter noted it."""
        noted = self.nodes[0].metadata_props.get("pkg.torch.onnx.name_scopes", "[]")
        try:
            return str(ast.literal_eval(noted)[-2])
        except (ValueError, SyntaxError, IndexError, TypeError):
            return ""

    def __str__(self) -> str:
        types = ", ".join(node.op_type for node in reversed(self.nodes))
        return f"{_named(self.known)} ({types})"


def swap(
    model: Any, rules: Sequence[tuple[Key, Value]], output: str | os.PathLike[str] | None
) -> Replacements:
    """Rewrite an ONNX model by rules, see `mishkit.swap`."""
    targets = [(_target(value), value) for _, value in rules]
    for key, _ in rules:
        if key.kind is not None:
            raise ValueError(
                f"{_SWAP}: an ONNX model has no classes such as {key.kind.__name__}; "
                "name the function"
            )
    graph = _opened(model)
    in_memory = isinstance(model, onnx.ModelProto)
    external = list(_external(graph))
    if output is not None and external:
        _check_can_be_saved(graph, in_memory)
    done = _rewrite(graph, rules, targets)
    if done and (in_memory or not external):
        proto = ir.to_proto(graph)
        onnx.checker.check_model(proto)
        if in_memory:
            model.CopyFrom(proto)
    if output is not None:
        _save(graph, os.fspath(output), bool(external))
    return done


def _opened(model: Any) -> ir.Model:
    if isinstance(model, (str, os.PathLike)):
        proto = onnx.load(model, load_external_data=False)
        folder = os.path.dirname(os.path.abspath(model))
    elif isinstance(model, onnx.ModelProto):
        proto, folder = model, ""
    else:
        found = model if isinstance(model, ir.Model) else getattr(model, "model", None)
        if not isinstance(found, ir.Model):
            raise TypeError(f"{_SWAP}: an ONNX model is needed, not {type(model).__name__}")
        for tensor in _external(found):
            _check_external(tensor, os.fspath(tensor.base_dir) or os.curdir)
        return found
    try:
        opened = ir.from_proto(proto)
    except (ValueError, ir.serde.SerdeError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"{_SWAP}: the ONNX model can't be read: {cause}") from error
    for tensor in _external(opened):
        # A model in memory has no folder, so nothing of its external data is read.
        if folder:
            _check_external(tensor, folder)
            tensor.base_dir = folder
    return opened


# ---- external data -------------------------------------------------------------------------------


def _external(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every tensor of the model whose values lie in another file."""
    return (one for one in (*_initializers(model), *_attributes(model)) if _is_external(one))


def _is_external(tensor: Any) -> bool:
    return isinstance(tensor, ir.ExternalTensor)


def _initializers(model: ir.Model) -> Iterator[Any]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            yield value.const_value


def _attributes(model: ir.Model) -> Iterator[Any]:
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in ir.traversal.RecursiveGraphIterator(graph):
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    yield attribute.value
                elif attribute.type == ir.AttributeType.TENSORS and not attribute.is_ref():
                    yield from attribute.value


def _check_external(tensor: ir.ExternalTensor, folder: str) -> None:
    """Refuse external data that isn't wholly in one file of the model's folder."""
    location = os.fspath(tensor.location)
    # Reads both kinds of separators, as the model may come from either system.
    parts = PureWindowsPath(location)
    wrong = None
    if not location or "\0" in location:
        wrong = "that is no path"
    elif parts.anchor or ".." in parts.parts:
        wrong = "outside of the model's folder"
    else:
        root = os.path.realpath(folder)
        path = os.path.realpath(os.path.join(folder, location))
        if os.path.commonpath([root, path]) != root:
            wrong = "a link to outside of the model's folder"
        elif not os.path.isfile(path):
            wrong = "where there is no file"
        elif os.stat(path).st_nlink > 1:
            wrong = "a hard link, which may be to a file outside of the model's folder"
        else:
            wrong = _wrong_extent(tensor, os.path.getsize(path))
    if wrong is not None:
        raise ValueError(
            f"{_SWAP}: the external data of {tensor.name!r} can't be read from {location!r}, "
            f"{wrong}"
        )


def _wrong_extent(tensor: ir.ExternalTensor, size: int) -> str | None:
    offset, length = tensor.offset or 0, tensor.length
    if length is not None and length != tensor.nbytes:
        return f"as its length is {length} bytes and its shape and type need {tensor.nbytes}"
    if offset + tensor.nbytes > size:
        return f"as bytes {offset} to {offset + tensor.nbytes} are needed and it has {size}"
    return None


def _check_can_be_saved(model: ir.Model, in_memory: bool) -> None:
    if in_memory:
        raise ValueError(
            f"{_SWAP}: a model in memory without its external data can't be written to a file; "
            "give the model's path, or load it with its data"
        )
    if any(_is_external(tensor) for tensor in _attributes(model)):
        raise ValueError(
            f"{_SWAP}: a model with external data in a node's attribute can't be written to a file"
        )


def _save(model: ir.Model, output: str, has_external: bool) -> None:
    """Write a whole file, then put it in its place; external data lies beside it."""
    if os.path.exists(output) and not os.path.isfile(output):
        raise ValueError(f"{_SWAP}: output={output!r} is not a file")
    folder, name = os.path.split(output)
    data = f"{name}.data"
    with tempfile.TemporaryDirectory(prefix=".mishkit-", dir=folder or os.curdir) as new:
        written = os.path.join(new, name)
        ir.save(model, written, external_data=data if has_external else None)
        if has_external:
            onnx.checker.check_model(written)
            # All tensors may have been small enough for the model's own file.
            if os.path.exists(os.path.join(new, data)):
                os.replace(os.path.join(new, data), os.path.join(folder, data))
        os.replace(written, output)


def sites(model: ir.Model) -> list[Site]:
    """Every site of the model, its subgraphs and functions, in order; they share no node."""
    found: list[Site] = []
    graphs = [(model.graph, model.opset_imports)]
    graphs += [(function.graph, function.opset_imports) for function in model.functions.values()]
    for graph, imports in graphs:
        opset = next((imports[domain] for domain in _DOMAINS if domain in imports), 0)
        taken: set[ir.Node] = set()
        here = []
        # From the end, so that what has tanh(softplus(x)) within is known before these two are.
        for node in reversed(list(ir.traversal.RecursiveGraphIterator(graph))):
            if node not in taken and node.op_type != "Identity":
                site = _recognise(node, opset)
                if site is not None:
                    taken.update(site.nodes)
                    here.append(site)
        found += reversed(here)
    return found


# ---- recognising ---------------------------------------------------------------------------------


def _recognise(last: ir.Node, opset: int) -> Site | None:
    """The smallest site that ends with this node, if one does."""
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
    """The values, constants apart, that these nodes take from others."""
    given: dict[ir.Value, None] = {}
    for node in nodes:
        for value in node.inputs:
            if value is None or value.producer() in nodes or _number(value) is not None:
                continue
            given.setdefault(value)
    return list(given)


def _hidden_producer(value: ir.Value, nodes: Sequence[ir.Node]) -> ir.Node | None:
    """The node that this value comes from, if nothing but these nodes sees the value."""
    node = value.producer()
    if node is None or value.is_graph_output() or node.graph is not nodes[0].graph:
        return None
    if not _is_elementwise(node) or any(user not in nodes for user, _ in value.uses()):
        return None
    return node


def _number(value: ir.Value) -> Tensor | None:
    """The value of a constant of one element."""
    if value.is_graph_input():  # which may be given something else
        return None
    constant = ir.convenience.get_const_tensor(value)
    if isinstance(constant, ir.ExternalTensor) and constant.base_dir == "":
        return None
    if constant is None or constant.size != 1 or constant.dtype == ir.DataType.STRING:
        return None
    return torch.tensor(float(constant.numpy().reshape(())), dtype=torch.float64)


def _is_broadcast_free(nodes: Sequence[ir.Node], x: ir.Value) -> bool:
    """Whether the result has the input's shape: a constant of more dimensions would add some."""
    rank = len(x.shape) if x.shape is not None else 1
    return all(len(c.shape) <= rank for c in _constants(nodes))


def _constants(nodes: Sequence[ir.Node]) -> Iterator[Any]:
    for node in nodes:
        for value in node.inputs:
            if value is not None and _number(value) is not None:
                yield ir.convenience.get_const_tensor(value)


def _computed(nodes: Sequence[ir.Node], x: ir.Value) -> Known | None:
    """The function that these nodes compute of x, whatever x is.

    Where the nodes give an infinity or NaN for a finite x, as ln(1 + exp(x)) does far out, they may
    stand for a function that is finite there. A bound that they keep to is part of what they are.
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
        return None  # which would be the limit of many functions
    # What constants lost in being rounded is no other function.
    tolerance = max([ROUNDING, *(4 * _eps(constant.dtype) for constant in _constants(nodes))])
    names, values = _table()
    candidates = [(Known(name), f) for name, f in zip(names, values, strict=True)]
    for name, fit in _FITS.items():
        parameters = fit(y)
        if parameters is not None:
            fitted = Known(name, parameters)
            candidates.append((fitted, _values(fitted, _grid())))
    if all(node.op_type != "Tanh" for node in nodes):
        # Scaled, SiLU is an APTx too, but is meant to be SiLU, scaled.
        candidates = [one for one in candidates if one[0].function != "aptx"]
    # Rounded, so that of two names for the same function the first counts.
    errors = [round(_distance(_grid(), y, f), 9) for _, f in candidates]
    best = min(range(len(errors)), key=errors.__getitem__)
    known = candidates[best][0]
    if errors[best] > tolerance:
        return None
    return known if _distance(points, every, _values(known, points)) <= tolerance else None


def _distance(x: Tensor, y: Tensor, f: Tensor) -> float:
    """The largest difference of what nodes give from a function of x, next to x or the function."""
    scale = (x.abs() + f.abs()).clamp_min(1e-9)
    error = torch.where(y == f, 0.0, (y - f).abs() / scale).nan_to_num(math.inf)
    error[~y.isfinite()] = 0
    # At infinity a function is often not defined; where it is, no bound may be lost.
    error[x.isinf() & f.isnan()] = 0
    error[x.isinf() & f.isinf() & y.isfinite()] = math.inf
    return float(error.max())


def _beside_constants(nodes: Sequence[ir.Node]) -> Tensor:
    """Points on both sides of where a constant of the nodes may make a difference, and between.

    Constants count, and what two of them make together: a threshold may be on 2·x + 1.
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
    except (TypeError, RuntimeError):  # other attributes or dtypes than a site has
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
"""The elementwise operators that activations are made of, with ONNX's own defaults."""


@functools.cache
def _grid() -> Tensor:
    """Points close together where functions bend, and every magnitude that float32 has."""
    near = torch.tensor([16.0, 20, 24, NEAR], dtype=torch.float64)
    powers = 2 ** torch.arange(-149, 128, dtype=torch.float64)
    largest = torch.tensor([torch.finfo(torch.float32).max, math.inf], dtype=torch.float64)
    sided = torch.cat([near, powers, FAR * torch.ones_like(near[:1]), largest])
    return torch.cat([torch.linspace(-12, 12, 241, dtype=torch.float64), sided, -sided])


@functools.cache
def _table() -> tuple[list[str], Tensor]:
    """The functions without parameters, or with their defaults, and their values; the first of
    those that are the same is the one that is meant."""
    # Without elu's twin, and those that need chance or weights.
    others = sorted(FUNCTION_NAMES - ACTIVATIONS.keys() - {"celu", "prelu", "rrelu"})
    names = [*ACTIVATIONS, *others]
    return names, torch.stack([_values(Known(name), _grid()) for name in names])


def _values(known: Known, x: Tensor) -> Tensor:
    """The function's values, in ours and in PyTorch's own."""
    if known.ours:
        return ACTIVATIONS[known.function].f(x, *_completed(known).parameters.values())
    values: Tensor = getattr(F, known.function)(x, **known.parameters)
    return values


def _at(y: Tensor, x: float) -> float:
    return float(y[int((_grid() - x).abs().argmin())])


Fit = Callable[[Tensor], dict[str, float] | None]
"""The parameters with which a function would have these values on the grid, if any."""


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
"""Functions with parameters, found from a few values."""


# ---- writing -------------------------------------------------------------------------------------


@dataclass
class _Writer:
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


def _write_softplus(w: _Writer, beta: float, threshold: float) -> ir.Value:
    # Beyond the threshold ln(1 + exp(beta·x))/beta is x anyway, but for 2e-9.
    return w.scaled(w("Softplus", w.scaled(w.x, beta)), 1 / beta)


def _write_swish(w: _Writer, beta: float = 1.0) -> ir.Value:
    if w.opset >= 24:
        return w("Swish", w.x, alpha=float(beta))
    return w("Mul", w.x, w("Sigmoid", w.scaled(w.x, beta)))


def _write_gelu(w: _Writer) -> ir.Value:
    if w.opset >= 20:
        return w("Gelu", w.x)
    both = w("Add", w("Erf", w("Mul", w.x, math.sqrt(0.5))), 1.0)
    return w("Mul", w.x, w("Mul", both, 0.5))


def _write_gelu_tanh(w: _Writer) -> ir.Value:
    if w.opset >= 20:
        return w("Gelu", w.x, approximate="tanh")
    root = math.sqrt(2 / math.pi)
    slope = w("Add", w("Mul", w("Mul", w.x, w.x), 0.044715 * root), root)
    both = w("Add", w("Tanh", w("Mul", w.x, slope)), 1.0)
    return w("Mul", w.x, w("Mul", both, 0.5))


def _write_mish(w: _Writer) -> ir.Value:
    if w.opset >= 18:
        return w("Mish", w.x)
    return w("Mul", w.x, w("Tanh", w("Softplus", w.x)))


def _write_hard(w: _Writer, slope: float, middle: float) -> ir.Value:
    """x·max(0, min(1, slope·x + middle)), which is what hard forms are."""
    if w.has_hard_sigmoid:
        return w("Mul", w.x, w("HardSigmoid", w.x, alpha=slope, beta=middle))
    return w("Mul", w.x, w.clip(w("Add", w("Mul", w.x, slope), middle), 0, 1))


def _write_hardswish(w: _Writer) -> ir.Value:
    if w.opset >= 14 and w.has_hard_sigmoid:
        return w("HardSwish", w.x)
    return _write_hard(w, 1 / 6, 0.5)


def _write_hard_mish(w: _Writer, k: float) -> ir.Value:
    return _write_hardswish(w) if k == 6 else _write_hard(w, 1 / k, 3 / k)


def _write_piecewise_swish(w: _Writer) -> ir.Value:
    return w("Mul", w.x, w("Sigmoid", w("Add", w.x, w("Relu", w.x))))


def _write_linear_swish(w: _Writer) -> ir.Value:
    weight = w("Mul", w("Sigmoid", w("Mul", w.x, 1.25)), 2.0)
    return w("Mul", w.x, w("Min", weight, 1.0))


def _write_aptx(w: _Writer, alpha: float, beta: float, gamma: float) -> ir.Value:
    if alpha == 1 and gamma == 0.5:
        return _write_swish(w, 2 * beta)
    weight = w("Add", w("Tanh", w.scaled(w.x, beta)), alpha)
    return w("Mul", w.x, w.scaled(weight, gamma))


_WRITERS: dict[str, Callable[..., ir.Value]] = {
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


# ---- replacing -----------------------------------------------------------------------------------


def _target(value: Value) -> Known:
    """The function that a rule puts in, with numbers for all its parameters."""
    given = value.given
    if isinstance(given, type):
        given = given()
    module = get(value.name, **value.arguments) if value.name is not None else given
    known = identify(module) if isinstance(module, nn.Module) else None
    if known is None or not known.ours or (known.state and not known.parameters):
        raise ValueError(
            f"{_SWAP}: in an ONNX model one of mishkit's activations can take a site's place, with "
            f"numbers for parameters, not {value.given!r}"
        )
    return _completed(known)


def _completed(known: Known) -> Known:
    if not known.ours:
        return known
    defaults = {p.name: p.default for p in ACTIVATIONS[known.function].parameters}
    return dataclasses.replace(
        known, parameters={**defaults, **known.parameters}, inplace=False, save=None
    )


def _kept(known: Known, target: Known, value: Value) -> Known:
    """The target, with the site's own parameters where it is the same function and the rule gives
    no others."""
    if value.name is None or known.function != target.function:
        return target
    kept = {p: v for p, v in known.parameters.items() if p not in value.arguments}
    return dataclasses.replace(target, parameters={**target.parameters, **kept})


def _rewrite(
    model: ir.Model,
    rules: Sequence[tuple[Key, Value]],
    targets: Sequence[tuple[Known, Value]],
) -> Replacements:
    every = sites(model)
    chosen: list[tuple[Site, Known]] = []
    used = set()
    for site in every:
        for i, (key, _) in enumerate(rules):
            if _takes(key, site):
                chosen.append((site, _kept(site.known, *targets[i])))
                used.add(i)
                break
    for key, _ in rules:
        if key.pattern is not None and not any(_takes(key, site) for site in every):
            raise ValueError(f"{_SWAP}: {unknown(key.pattern, [site.name for site in every])}")
    for site, _ in chosen:
        if site.opset < OLDEST:
            raise ValueError(
                f"{_SWAP}: the model is of opset {site.opset}; it must be of {OLDEST} "
                "or later: onnx.version_converter.convert_version changes that"
            )
    taken_names = _Names(model)
    done = []
    # From the end, as what a site takes in may be what another one gives.
    for site, target in reversed(chosen):
        writer = _Writer(site.input, site.opset, _dtype(site))
        result = _WRITERS[target.function](writer, **target.parameters)
        new = [node for node in writer.nodes if node.op_type not in ("Constant", "CastLike")]
        if len(new) >= len(site.nodes) and _is_same(_completed(site.known), target):
            _discard(writer.nodes)
            continue
        types = ", ".join(node.op_type for node in new)
        done.append(Replacement(site.name, str(site), f"{_named(target)} ({types})"))
        _put(site, writer.nodes, result, taken_names)
    return Replacements(
        reversed(done), [key.given for i, (key, _) in enumerate(rules) if i not in used]
    )


def _takes(key: Key, site: Site) -> bool:
    if key.function is not None:
        return key.function == site.known.function
    return key.matches(site.name) or (bool(site.path) and key.matches(site.path))


def _is_same(one: Known, other: Known) -> bool:
    if one.function != other.function:
        return False
    return all(_is_close(one.parameters[p], q) for p, q in other.parameters.items())


def _is_close(one: float, other: float) -> bool:
    """Whether two parameters differ by what a fit to rounded numbers may be off, at most."""
    return math.isclose(one, other, rel_tol=1e-5)


def _named(known: Known) -> str:
    """`hard_mish(k=3)`; parameters at their defaults are left out."""
    defaults = (
        {p.name: p.default for p in ACTIVATIONS[known.function].parameters} if known.ours else {}
    )
    given = ", ".join(
        f"{p}={value:.6g}"
        for p, value in known.parameters.items()
        if p not in defaults or not _is_close(value, defaults[p])
    )
    return f"{known.function}({given})" if given else known.function


def _dtype(site: Site) -> ir.DataType | None:
    floats = [constant.dtype for constant in _constants(site.nodes)]
    return site.input.dtype or site.output.dtype or next(iter(floats), None)


class _Names:
    """Names that nothing in the model has."""

    def __init__(self, model: ir.Model) -> None:
        self.taken: set[str | None] = set()
        for graph in (model.graph, *(f.graph for f in model.functions.values())):
            for value in (*graph.inputs, *graph.initializers.values()):
                self.taken.add(value.name)
            for node in ir.traversal.RecursiveGraphIterator(graph):
                self.taken.add(node.name)
                self.taken.update(value.name for value in (*node.inputs, *node.outputs) if value)

    def new(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.taken:
            count += 1
            name = f"{wanted}_{count}"
        self.taken.add(name)
        return name


def _put(site: Site, nodes: list[ir.Node], result: ir.Value, names: _Names) -> None:
    """Put the nodes in the site's place, with its name and that of its output."""
    last = site.nodes[0]
    assert last.graph is not None
    for node in nodes:
        (value,) = node.outputs
        if value is result:
            node.name = last.name
        else:
            value.name = names.new(f"{site.output.name}_{node.op_type}")
            node.name = names.new(f"{site.name}_{node.op_type}")
            if node.op_type not in ("Constant", "CastLike"):
                value.type, value.shape = site.output.type, site.output.shape
        node.doc_string = last.doc_string
        node.metadata_props.update(last.metadata_props)
    result.metadata_props.update(site.output.metadata_props)
    inputs = {value for node in site.nodes for value in node.inputs if value is not None}
    ir.convenience.replace_nodes_and_values(
        last.graph, last, site.nodes, nodes, [site.output], [result]
    )
    for value in inputs:
        _remove_if_unused(value)


def _discard(nodes: list[ir.Node]) -> None:
    """Take nodes that were written for nothing off their inputs."""
    for node in nodes:
        for i in range(len(node.inputs)):
            node.replace_input_with(i, None)


def _remove_if_unused(value: ir.Value) -> None:
    """Remove a constant that nothing uses any more."""
    if value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    node = value.producer()
    if node is not None and node.op_type == "Constant" and node.graph is not None:
        node.graph.remove(node, safe=True)
    elif value.is_initializer() and value.graph is not None and value.name is not None:
        del value.graph.initializers[value.name]
