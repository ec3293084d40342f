"""Replace ONNX sites by rules."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from torch import nn

from ...export import FAST, check, chosen
from ...forms import STANDARD
from ...functions import ACTIVATIONS
from ...registry import get
from ..known import Known, identify
from ..replacements import Replacement, Replacements
from ..rules import Key, Value, unknown
from .evaluate import MICROSOFT, PASSING, STANDARD_DOMAINS, constants
from .files import check_can_be_saved, opened, save
from .near import NearMiss, near_misses
from .recognise import Site, completed, is_close, named, scopes, sites
from .write import OLDEST, Writer, exists

_SWAP = "mishkit.swap"
OPSET = "opset"
"""The kind of form that uses only the operators of an older opset."""


def swap(
    model: Any,
    rules: Sequence[tuple[Key, Value]],
    output: str | os.PathLike[str] | None,
    form: str = STANDARD,
    *,
    needs_match: bool = False,
) -> Replacements:
    """Rewrite an ONNX model by rules; see `mishkit.surgery.swap.swap_onnx`."""
    limit = _limit(form)
    targets = [(_target(value), value) for _, value in rules]
    for key, _ in rules:
        if key.kind is not None:
            raise ValueError(
                f"{_SWAP}: an ONNX model has no classes such as {key.kind.__name__}; "
                "name the function"
            )
    whole = opened(model)
    if output is not None:
        check_can_be_saved(whole, os.fspath(output))
    try:
        replacements = _rewrite(whole.model, rules, targets, form, limit)
    except RecursionError:
        raise ValueError(f"{_SWAP}: the ONNX model can't be read: it is nested too deep") from None
    whole.update()
    is_matched = len(replacements.unused) < len(rules)
    if output is not None and (is_matched or not needs_match):
        replacements.left.update(save(whole, os.fspath(output)))
    return replacements


def survey(model: Any) -> tuple[list[Site], list[NearMiss]]:
    """The sites of an ONNX model, and its near misses."""
    graph = opened(model).model
    all_sites = sites(graph)
    return all_sites, near_misses(graph, all_sites)


def _limit(form: str) -> int | None:
    """The opset that a form asks for, or None; raises ValueError for an unknown form."""
    kind, _, number = form.partition(":")
    if kind == OPSET and number.isascii() and number.isdigit() and int(number) >= OLDEST:
        return int(number)
    check(form, _SWAP, f', "{OPSET}:N" with N from {OLDEST} on')
    return None


def _target(value: Value) -> Known:
    """The function that a rule puts in, with numbers for all its parameters."""
    replacement = value.given
    if isinstance(replacement, type):
        replacement = replacement()
    module = get(value.name, **value.arguments) if value.name is not None else replacement
    known = identify(module) if isinstance(module, nn.Module) else None
    if known is None or not known.ours or (known.state and not known.parameters):
        raise ValueError(
            f"{_SWAP}: in an ONNX model one of mishkit's activations can take a site's place, with "
            f"numbers for parameters, not {value.given!r}"
        )
    return completed(known)


def _kept(known: Known, target: Known, value: Value) -> Known:
    """The target. If it is the site's own function, it keeps the site's parameters, unless the rule
    gives them.
    """
    if value.name is None or known.function != target.function:
        return target
    kept = {p: v for p, v in known.parameters.items() if p not in value.arguments}
    return dataclasses.replace(target, parameters={**target.parameters, **kept})


def _rewrite(
    model: ir.Model,
    rules: Sequence[tuple[Key, Value]],
    targets: Sequence[tuple[Known, Value]],
    form: str,
    limit: int | None,
) -> Replacements:
    all_sites = sites(model)
    missed = near_misses(model, all_sites)
    chosen: list[tuple[Site, Known]] = []
    used_rules = set()
    for site in all_sites:
        rule = _rule_for(site, rules)
        if rule is not None:
            chosen.append((site, _kept(site.known, *targets[rule])))
            used_rules.add(rule)
    for key, _ in rules:
        places: list[Site | NearMiss] = [*all_sites, *missed]
        if key.pattern is not None and not any(_takes(key, place) for place in places):
            raise ValueError(f"{_SWAP}: {unknown(key.pattern, [site.name for site in all_sites])}")
    too_old = [site for site, _ in chosen if 0 < site.opset < OLDEST]
    if too_old and len(too_old) == len(chosen):
        raise ValueError(
            f"{_SWAP}: the model is of opset {too_old[0].opset}; it must be of {OLDEST} "
            "or later: onnx.version_converter.convert_version changes that"
        )
    chosen = [(site, target) for site, target in chosen if site not in too_old]
    taken_names = _Names(model)
    replacements = []
    # From the end, since one site's input may be another's output.
    for site, target in reversed(chosen):
        new = _written(site, target, form, limit)
        if _is_pointless(site, target, new, form):
            _discard(new.nodes)
            continue
        types = ", ".join(node.op_type for node in _computing(new.nodes))
        replacements.append(Replacement(site.name, str(site), f"{named(target)} ({types})"))
        _put(site, new.nodes, new.result, taken_names)
    if any(node.domain == MICROSOFT for site, _ in chosen for node in site.nodes):
        _forget_microsoft(model)
    return Replacements(
        reversed(replacements),
        [key.given for i, (key, _) in enumerate(rules) if i not in used_rules],
        {
            **{site.name: f"it is of opset {site.opset}, before {OLDEST}" for site in too_old},
            **{miss.name: str(miss) for miss in missed if _rule_for(miss, rules) is not None},
        },
    )


@dataclasses.dataclass(frozen=True)
class _Written:
    nodes: list[ir.Node]
    result: ir.Value


def _written(site: Site, target: Known, form: str, limit: int | None) -> _Written:
    """The nodes that compute the target of the site's input, and their result."""
    # If the model names no opset, use the operators of the oldest, which mean the same in all.
    opset = site.opset or OLDEST
    writer = Writer(site.input, site.opset, _dtype(site), min(opset, limit or opset))
    if site.bias is not None:
        writer.x = writer("Add", site.input, site.bias)
    activation = ACTIVATIONS[target.function]
    chosen_form = activation.form() if limit is not None else chosen(activation, form)
    result = chosen_form.write(writer, **target.parameters)
    return _Written(writer.nodes, result)


def _is_pointless(site: Site, target: Known, replacement: _Written, form: str) -> bool:
    """Whether the site already computes the target as well as the new nodes would."""
    if site.bias is not None or not _is_same(completed(site.known), target):
        return False
    if any(node.domain not in STANDARD_DOMAINS for node in site.nodes):
        return False
    old = sorted(node.op_type for node in _computing(site.nodes))
    new = sorted(node.op_type for node in _computing(replacement.nodes))
    if form.startswith(FAST):
        return old == new
    limit = _limit(form) or site.opset
    is_there = all(exists(operator, min(limit, site.opset)) for operator in old) or site.opset == 0
    return len(new) >= len(old) and is_there


def _computing(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """The nodes, without those that only provide a constant."""
    return [node for node in nodes if node.op_type not in ("Constant", "CastLike")]


def _rule_for(site: Site | NearMiss, rules: Sequence[tuple[Key, Value]]) -> int | None:
    """The first rule that matches a site."""
    return next((i for i, (key, _) in enumerate(rules) if _takes(key, site)), None)


def _forget_microsoft(model: ir.Model) -> None:
    """Remove the import of ONNX Runtime's operators if the last of them is gone."""
    nodes = (
        node for graph, _ in scopes(model) for node in ir.traversal.RecursiveGraphIterator(graph)
    )
    if MICROSOFT in model.opset_imports and all(node.domain != MICROSOFT for node in nodes):
        del model.opset_imports[MICROSOFT]


def _takes(key: Key, site: Site | NearMiss) -> bool:
    if key.function is not None:
        return key.function == site.known.function
    return key.matches(site.name) or (bool(site.path) and key.matches(site.path))


def _is_same(known: Known, target: Known) -> bool:
    if known.function != target.function:
        return False
    return all(is_close(known.parameters[p], q) for p, q in target.parameters.items())


def _dtype(site: Site) -> ir.DataType | None:
    dtypes = [tensor.dtype for tensor in constants(site.nodes)]
    floats = [dtype for dtype in dtypes if dtype.is_floating_point()]
    is_cast = any(node.op_type in PASSING for node in site.nodes)
    return site.input.dtype or site.output.dtype or (floats[0] if floats and not is_cast else None)


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
