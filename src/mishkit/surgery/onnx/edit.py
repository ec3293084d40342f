"""Write what changed in a model's intermediate form into the ModelProto that it was read from."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir


@dataclass(frozen=True)
class _Scope:
    """A graph or function as read: in both forms, with its nodes and constants in order."""

    proto: Any
    graph: ir.Graph
    nodes: list[ir.Node]
    initializers: frozenset[str]


class Edits:
    """The state of a ModelProto when its intermediate form was made, to find later changes.

    Parts that have not changed are left as they are, valid or not.
    """

    def __init__(self, proto: onnx.ModelProto, model: ir.Model) -> None:
        self._proto, self._model = proto, model
        self._imports = frozenset(model.opset_imports)
        self._scopes = list(_scopes(proto.graph, model.graph))
        for function in proto.functions:
            key = (function.domain, function.name, function.overload)
            if key in model.functions:
                self._scopes += _scopes(function, model.functions[key].graph)

    def apply(self) -> None:
        """Write the changes into the ModelProto."""
        for scope in self._scopes:
            _update(scope)
        gone = self._imports - {*self._model.opset_imports}
        _drop(self._proto.opset_import, gone, "domain")


def _scopes(proto: Any, graph: ir.Graph) -> Iterator[_Scope]:
    """A graph or function, and the graphs inside."""
    nodes = list(graph)
    if len(nodes) != len(proto.node):
        raise ValueError("its nodes can't be told apart")
    yield _Scope(proto, graph, nodes, frozenset(graph.initializers))
    for node_proto, node in zip(proto.node, nodes, strict=True):
        for attribute in node_proto.attribute:
            parsed = node.attributes.get(attribute.name)
            if parsed is None or parsed.is_ref():
                continue
            if parsed.type == ir.AttributeType.GRAPH:
                yield from _scopes(attribute.g, parsed.value)
            elif parsed.type == ir.AttributeType.GRAPHS:
                for inner, inner_graph in zip(attribute.graphs, parsed.value, strict=True):
                    yield from _scopes(inner, inner_graph)


def _update(scope: _Scope) -> None:
    proto, graph = scope.proto, scope.graph
    current, original = list(graph), {*scope.nodes}
    kept = {*current}
    if kept == original:
        return
    for i in reversed(range(len(scope.nodes))):
        if scope.nodes[i] not in kept:
            del proto.node[i]
    added = [node for node in current if node not in original]
    for i, node in enumerate(current):
        if node not in original:
            proto.node.insert(i, ir.to_proto(node))
    written = {value.name for node in current for value in node.outputs}
    gone = {v.name for node in scope.nodes if node not in kept for v in node.outputs} - written
    _drop(proto.value_info, gone)
    if not isinstance(proto, onnx.GraphProto):
        return
    _drop(proto.initializer, scope.initializers - {*graph.initializers})
    stated = {entry.name for entry in (*proto.value_info, *proto.output)}
    for value in (value for node in added for value in node.outputs):
        if value.type is not None and value.name not in stated:
            proto.value_info.append(ir.to_proto(value))


def _drop(entries: Any, names: Set[str | None], key: str = "name") -> None:
    for i in reversed(range(len(entries))):
        if getattr(entries[i], key) in names:
            del entries[i]
