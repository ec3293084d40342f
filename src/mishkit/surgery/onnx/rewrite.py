"""Replace ONNX sites by rules."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import onnx
import onnx_ir as ir
from torch import nn

from ...functions import ACTIVATIONS
from ...registry import get
from ..known import Known, identify
from ..replacements import Replacement, Replacements
from ..rules import Key, Value, unknown
from .files import check_can_be_saved, external_tensors, opened, save
from .recognise import Site, completed, constants, is_close, named, sites
from .write import OLDEST, Writer

_SWAP = "mishkit.swap"


def swap(
    model: Any, rules: Sequence[tuple[Key, Value]], output: str | os.PathLike[str] | None
) -> Replacements:
    """Rewrite an ONNX model by rules; see `mishkit.swap`."""
    targets = [(_target(value), value) for _, value in rules]
    for key, _ in rules:
        if key.kind is not None:
            raise ValueError(
                f"{_SWAP}: an ONNX model has no classes such as {key.kind.__name__}; "
                "name the function"
            )
    graph = opened(model)
    in_memory = isinstance(model, onnx.ModelProto)
    external = list(external_tensors(graph))
    if output is not None and external:
        check_can_be_saved(graph, in_memory)
    done = _rewrite(graph, rules, targets)
    if done and (in_memory or not external):
        proto = ir.to_proto(graph)
        onnx.checker.check_model(proto)
        if in_memory:
            model.CopyFrom(proto)
    if output is not None:
        save(graph, os.fspath(output), bool(external))
    return done


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
    return completed(known)


def _kept(known: Known, target: Known, value: Value) -> Known:
    """The target; if it is the site's own function and the rule gives no parameters, with the
    site's parameters.
    """
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
    # From the end, since one site's input may be another's output.
    for site, target in reversed(chosen):
        writer = Writer(site.input, site.opset, _dtype(site))
        result = ACTIVATIONS[target.function].to_onnx(writer, **target.parameters)
        new = [node for node in writer.nodes if node.op_type not in ("Constant", "CastLike")]
        if len(new) >= len(site.nodes) and _is_same(completed(site.known), target):
            _discard(writer.nodes)
            continue
        types = ", ".join(node.op_type for node in new)
        done.append(Replacement(site.name, str(site), f"{named(target)} ({types})"))
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
    return all(is_close(one.parameters[p], q) for p, q in other.parameters.items())


def _dtype(site: Site) -> ir.DataType | None:
    floats = [constant.dtype for constant in constants(site.nodes)]
    return site.input.dtype or site.output.dtype or next(iter(floats), None)


class _Names:
    """Generates names that are not yet used in the model."""

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
    """Put the nodes in the site's place, keeping its name and that of its output."""
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
    """Detach nodes that were written but are not used."""
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
