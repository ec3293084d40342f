"""Which units of a model are tied together, for `prune`: torch-pruning's graph, with our sites."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .._state import undisturbed
from ..slots import Slot
from .run import Call, floating_tensors, run, tapped


@dataclass
class Cut:
    """Units that are removed together: those of one layer, and everything tied to them.

    Two cuts may have units in common, for example if one layer's output is added to those of two.
    """

    root: nn.Module
    units: int
    makes: tuple[int, str]
    """The entry of `touched` for the side of the root on which its units lie."""
    obstacle: str = ""
    """Why none of its units can be removed."""
    sites: dict[Call, dict[int, int]] = field(default_factory=dict)
    """For each site: the root unit of each of its units."""
    readers: dict[nn.Module, dict[int, int]] = field(default_factory=dict)
    """For each Linear or Conv that reads them: the root unit of each of its inputs."""
    touched: dict[tuple[int, str], dict[int, int]] = field(default_factory=dict)
    """For everything that is narrowed: the root unit of each index."""
    removed: list[int] = field(default_factory=list)
    why_not: dict[int, str] = field(default_factory=dict)
    """For root units that are silent but stay: the reason."""
    folds: dict[nn.Module, dict[int, float]] = field(default_factory=dict)
    """For each reader: the constants that its bias absorbs, by input."""

    def refuse(self, reason: str) -> None:
        """Keep all of its units."""
        self.why_not.update(dict.fromkeys(self.removed, reason))
        self.removed, self.folds = [], {}


def _where(dep: Any) -> tuple[int, str]:
    """What an item of torch-pruning's groups narrows, and on which side."""
    return id(dep.target), dep.handler.__name__


class Graph:
    """torch-pruning's dependency graph of a model, and where our sites are in it."""

    def __init__(self, model: nn.Module, example: Any, chosen: Sequence[Slot]) -> None:
        import torch_pruning as tp

        self.types = tp.ops.OPTYPE
        self.shapes: dict[Call, torch.Size] = {}
        functions: dict[Call, Any] = {}

        def see(call: Call, output: Tensor) -> None:
            functions[call] = output.grad_fn
            self.shapes[call] = output.shape

        def forward(model: nn.Module, example: Any) -> list[Tensor]:
            begin()
            return [y for y in floating_tensors(run(model, example)) if y.grad_fn is not None]

        self.dependencies = tp.DependencyGraph()
        with undisturbed(model, example), tapped(chosen, see) as begin, torch.enable_grad():
            self.dependencies.build_dependency(model, example, forward_fn=forward, verbose=False)
        self.names = {module: name for name, module in model.named_modules()}
        nodes = {node.grad_fn: node for node in self.dependencies.module2node.values()}
        self.sites: dict[Call, Any] = {
            call: nodes.get(function) for call, function in functions.items()
        }
        holders = [(id(p), m) for m in self.names for p in m._parameters.values() if p is not None]
        self.holders = Counter(parameter for parameter, _ in holders)

    def cuts(self) -> list[Cut]:
        """The groups of units at the sites, each group once."""
        cuts: dict[frozenset[Any], Cut] = {}
        for call in self.sites:
            for maker in self._makers(call):
                cut = self._cut(maker)
                key = frozenset((where, frozenset(units)) for where, units in cut.touched.items())
                cuts.setdefault(key, cut)
        return list(cuts.values())

    def _makers(self, call: Call) -> list[nn.Module]:
        """The nearest layers before a site that make its units."""
        makers: dict[nn.Module, None] = {}
        node = self.sites[call]
        waiting, met = [] if node is None else [node], set()
        while waiting:
            node = waiting.pop()
            if id(node) in met:
                continue
            met.add(id(node))
            if node.type != self.types.OUTPUT and node.module in self.names:
                makers[node.module] = None
            else:
                waiting += node.inputs
        return list(makers)

    def _group(self, root: nn.Module, units: Iterable[int]) -> Any:
        pruner = self.dependencies.get_pruner_of_module(root)
        return self.dependencies.get_pruning_group(root, pruner.prune_out_channels, list(units))

    def _cut(self, root: nn.Module) -> Cut:
        """Everything that is removed with the units of a layer."""
        width = self.dependencies.get_out_channels(root)
        group = self._group(root, range(width))
        cut = Cut(root, width, makes=_where(group[0].dep))
        calls: dict[int, list[Call]] = {}
        for call, node in self.sites.items():
            calls.setdefault(id(node), []).append(call)
        for item in group:
            node = item.dep.target
            roots = item.root_idxs or item.idxs
            units = dict(zip(item.idxs, roots, strict=True))
            cut.obstacle = cut.obstacle or self._obstacle(node)
            if None in roots:
                cut.obstacle = cut.obstacle or "torch-pruning loses track of its units"
            cut.touched.setdefault(_where(item.dep), {}).update(units)
            for call in calls.get(id(node), ()):
                cut.sites.setdefault(call, {}).update(units)
            if self._reads(item.dep):
                cut.readers.setdefault(node.module, {}).update(units)
        if not cut.readers:
            cut.obstacle = cut.obstacle or "no layer reads it"
        return cut

    def _reads(self, dep: Any) -> bool:
        if dep.target.type not in (self.types.CONV, self.types.LINEAR):
            return False
        pruner = self.dependencies.get_pruner_of_module(dep.target.module)
        return bool(dep.handler == pruner.prune_in_channels)

    def _obstacle(self, node: Any) -> str:
        """Why no unit can be removed there, whatever its values."""
        module, types = node.module, self.types
        name = self.names.get(module, "") if isinstance(module, nn.Module) else ""
        if node.type == types.OUTPUT:
            return "the model puts it out"
        if node.type in (types.LN, types.GN):
            return f"{name} ({type(module).__name__}) normalises over the units"
        if node.type in (types.MHA, types.LSTM):
            return f"{name} ({type(module).__name__}) ties its units"
        if node.type == types.ELEMENTWISE and not name:
            text = str(module)
            for sign in ("Softmax", "LayerNorm", "GroupNorm", "RmsNorm", "Bmm", "ScaledDotProduct"):
                if sign in text:
                    operation = text.split("(")[-1].rstrip("0)").removesuffix("Backward")
                    return f"{operation} mixes the units"
        groups = getattr(module, "groups", 1)
        if groups != 1 and not module.in_channels == module.out_channels == groups:
            return f"{name} is a grouped convolution"
        if name and node.type != types.ELEMENTWISE:
            own = module._parameters
            if "weight" not in own and not hasattr(module, "affine"):
                return f"the weight of {name} is no parameter"
            if any(self.holders[id(p)] > 1 for p in own.values() if p is not None):
                return f"{name} shares its weights"
        return ""

    def fits(self, cut: Cut) -> bool:
        """Whether removing these units of the root removes no others, and leaves some."""
        group = self._group(cut.root, cut.removed)
        gone = set(cut.removed)
        for dep, indices in group:
            units = cut.touched.get(_where(dep), {})
            if any(units.get(index) not in gone for index in indices):
                return False
        return bool(self.dependencies.check_pruning_group(group))

    def remove(self, cuts: Iterable[Cut]) -> None:
        """Narrow the layers as decided."""
        gone: dict[tuple[int, str], set[int]] = {}
        for cut in cuts:
            removed, before = set(cut.removed), sorted(gone.get(cut.makes, ()))
            # The layer now numbers its units without those already removed.
            units = [
                unit - bisect.bisect(before, unit) for unit in cut.removed if unit not in before
            ]
            if units:
                self._group(cut.root, units).prune(record_history=False)
            for where, roots in cut.touched.items():
                gone.setdefault(where, set()).update(i for i, r in roots.items() if r in removed)
