"""Nodes of an ONNX model that almost compute a known function, and why they don't."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch

from ..known import Known
from .evaluate import PASSING, constant, dtype_of, is_elementwise
from .recognise import (
    CLOSE,
    Site,
    allowed,
    closest,
    elementwise_producer,
    fits,
    groups,
    inputs,
    name_of,
    named,
    path_of,
    scopes,
)


@dataclass(frozen=True)
class NearMiss:
    """Nodes that a rule might be meant for."""

    name: str
    path: str
    known: Known
    """The function that they almost compute."""
    reason: str

    def __str__(self) -> str:
        return f"{named(self.known)}, but {self.reason}"


def near_misses(model: ir.Model, sites: Sequence[Site]) -> list[NearMiss]:
    """The near misses in the model's order; none ends with a node of a site."""
    taken = {node for site in sites for node in site.nodes}
    return [
        miss
        for graph, _ in scopes(model)
        for node in ir.traversal.RecursiveGraphIterator(graph)
        if node not in taken and node.op_type not in PASSING and is_elementwise(node)
        if (miss := _near_miss(node)) is not None
    ]


def _near_miss(last: ir.Node) -> NearMiss | None:
    for nodes in groups(last, elementwise_producer):
        values = inputs(nodes)
        by_channel = {
            value: tensor
            for value in values
            if (tensor := constant(value)) is not None and tensor.size > 1
        }
        values = [value for value in values if value not in by_channel]
        if len(nodes) < 2 or len(values) != 1:
            continue
        also = {
            value: torch.tensor(_first(tensor)).double() for value, tensor in by_channel.items()
        }
        known, error = closest(nodes, values[0], also)
        if known is None or error > max(CLOSE, allowed(nodes)):
            continue
        reasons = [*_reasons(nodes, values[0])]
        if by_channel:
            reasons.append("its numbers differ by channel")
        if error > allowed(nodes):
            reasons.append(f"it is up to {error:.1g} off, next to the input and the value")
        if reasons:
            return NearMiss(name_of(last), path_of(last), known, " and ".join(reasons))
    return None


def _first(tensor: ir.TensorProtocol) -> float:
    try:
        return float(tensor.numpy().flat[0])
    except Exception:  # data that does not fit its dtype and shape, or is not there
        return float("nan")


def _reasons(nodes: Sequence[ir.Node], x: ir.Value) -> list[str]:
    shared = [
        node.op_type
        for node in nodes[1:]
        if node.outputs[0].is_graph_output()
        or any(user not in nodes for user, _ in node.outputs[0].uses())
    ]
    dtype = dtype_of(nodes[0].outputs[0], x, nodes)
    reasons = []
    if shared:
        reasons.append(f"what its {' and '.join(reversed(shared))} gives is used elsewhere, too")
    if dtype is not None:
        kinds = dtype.name, "another type" if x.dtype is None else x.dtype.name
        reasons.append(f"it gives {kinds[0]} for {kinds[1]}")
    elif not fits(nodes, x):
        reasons.append("its result may have another shape or type")
    return reasons
