"""Remove the units that an activation with a flat part has silenced.

Silence is seen, not derived: the model runs on real inputs, and what each layer reads is watched. A
unit goes if every layer that reads it reads 0 from it, whatever stands between; so ties through
residuals, products and depthwise convolutions need no rules of their own. torch-pruning finds
what is tied. What it cannot see (a softmax, a mean over the units) shows in the outputs: every
removal is tried, and taken back if they change.
"""

from __future__ import annotations

import contextlib
import fnmatch
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ._columns import aligned
from .slots import Slot, slots
from .watch import tensors_of

FLAT = frozenset(
    {"relu", "relu6", "h_mish", "hard_mish", "hardswish", "hardsigmoid", "hardshrink", "softshrink"}
)
"""Functions that are exactly 0 on a whole range, by formula and not by underflow."""

COMPARED = 8
"""How many batches are kept, with their outputs, to compare the pruned model with the original."""
ROUNDING = 128
"""How far an output may move by a different order of summation: times eps times the largest."""


@dataclass(frozen=True)
class PrunedSite:
    """What was found at one activation, and what became of it."""

    name: str
    """Its path in the model; `#2` behind it is the second call of a module that is used twice."""
    function: str
    units: int
    """How many channels or features it had."""
    silent_units: tuple[int, ...]
    """Those whose output was silent."""
    removed_units: tuple[int, ...]
    """Those removed, or that would be in a dry run. A unit may go that is silent only later on."""
    why_not: str
    """Why silent units were left; empty if none were."""

    @property
    def silent(self) -> int:
        """How many units are silent."""
        return len(self.silent_units)

    @property
    def removed(self) -> int:
        """How many units were removed."""
        return len(self.removed_units)


@dataclass(frozen=True)
class PruneReport:
    """What `mishkit.prune` found and did; `print` shows it as a table."""

    sites: tuple[PrunedSite, ...]
    parameters_before: int
    parameters_after: int
    macs_before: int
    """Multiply-accumulates of all matrix products, convolutions and attention on the example
    inputs, by operator (`torch.utils.flop_counter`, halved), so functional calls count too."""
    macs_after: int
    max_change: float
    """The greatest absolute change of any output, on the first batches that were watched."""
    max_output: float
    """The greatest absolute output before, to hold it against."""
    compared: int
    """On how many batches these were found."""
    dry_run: bool

    @property
    def silent(self) -> int:
        """Silent units, summed over the sites."""
        return sum(site.silent for site in self.sites)

    @property
    def removed(self) -> int:
        """Removed units, summed over the sites: tied sites count the same unit each."""
        return sum(site.removed for site in self.sites)

    def __str__(self) -> str:
        rows = [("site", "function", "units", "silent", "removed", "why not")]
        rows += [
            (s.name, s.function, f"{s.units:,}", f"{s.silent:,}", f"{s.removed:,}", s.why_not)
            for s in self.sites
        ]
        lines = aligned(rows, numbers=(2, 3, 4))
        batches = "1 batch" if self.compared == 1 else f"{self.compared} batches"
        lines += [
            "",
            _before_after("parameters", self.parameters_before, self.parameters_after),
            _before_after("MACs", self.macs_before, self.macs_after),
            f"greatest change of an output: {self.max_change:.3g} (outputs up to "
            f"{self.max_output:.3g}, {batches})",
        ]
        if self.dry_run:
            lines.append("dry run: the model is as it was")
        return "\n".join(lines)


def _before_after(what: str, before: int, after: int) -> str:
    less = f" (-{(before - after) / before:.1%})" if after < before else ""
    return f"{what:<11}{before:,} -> {after:,}{less}"


def prune(
    model: nn.Module,
    *inputs: Any,
    data: Iterable[Any] | None = None,
    sites: str | Iterable[str] | None = None,
    threshold: float = 0.0,
    fraction: float = 0.0,
    dry_run: bool = False,
    progress: bool = True,
) -> PruneReport:
    """Remove the units that are silent on real inputs, so that the layers become narrower.

    A unit is a channel of a convolution or a feature of a linear layer. It is silent at an
    activation if ``|y| <= threshold`` there at all positions of all samples, or at all but a
    fraction of them. It is removed, with all that is tied to it, if every Linear or Conv that reads
    it reads a silent input, or a constant that its bias can take up; otherwise it stays, and the
    report says why. With the defaults the outputs on the watched inputs stay the same to rounding:
    every removal is tried, and taken back if they do not. On other inputs a unit may not be silent,
    so that the data should be like those the model will meet.

    The model is changed in place: parameters are replaced by smaller ones, so that an optimizer
    must be made anew. Its modes, hooks, `requires_grad` and buffers stay as they were; BatchNorm's
    lose the removed channels. While it is watched it runs in eval mode without grad. The result can
    be trained, and saved whole. Needs ``pip install "mishkit[prune]"``.

    Parameters
    ----------
    model : torch.nn.Module
        a model in any floating dtype, on any device
    *inputs : Tensor or other arguments
        example inputs of any shape, with which the model is traced and its MACs are counted: called
        as ``model(*inputs)``, or ``model(**inputs[0])`` if there is one and it is a mapping
    data : iterable of batches, optional
        the real inputs, on the model's device: a batch is a tensor, a tuple or list of positional
        arguments or a mapping of keyword arguments, without labels. Without it, `inputs` are
        watched
    sites : str or iterable of str, optional
        names of activations, or patterns as ``"blocks.*.act"``; by default all with a flat part at
        0 (relu, h_mish, hard_mish, hardswish, ...). Activations are modules that are known, and
        functions that modules hold as attributes; not calls such as ``F.relu(x)`` in a `forward`
    threshold : float, default 0.0
        how large a silent output may be
    fraction : float, default 0.0
        the share of positions at which a silent unit may exceed the threshold, below 1
    dry_run : bool, default False
        report what would be removed, and leave the model as it was
    progress : bool, default True
        show a progress bar over `data` on a terminal, if rich is installed

    Returns
    -------
    PruneReport
        each site's units, silent, removed and why not; parameters, MACs and the change of the
        outputs

    Raises
    ------
    ValueError
        if a pattern in `sites` matches no activation, there are no inputs or `data` is empty, or
        `threshold` or `fraction` is out of its range
    TypeError
        if `data` is a tensor or a mapping, which is no iterable of batches
    ModuleNotFoundError
        without the extra ``prune``
    """
    if not inputs:
        raise ValueError("mishkit.prune: give inputs, with which the model is traced")
    if isinstance(data, Tensor | Mapping):
        raise TypeError(
            f"mishkit.prune: data must be an iterable of batches, as [batch], not a single "
            f"{type(data).__name__}"
        )
    if not threshold >= 0:
        raise ValueError(f"mishkit.prune: threshold must not be below 0, but is {threshold}")
    if not 0 <= fraction < 1:
        raise ValueError(f"mishkit.prune: fraction must be in [0, 1), but is {fraction}")
    chosen = _chosen(model, sites)
    try:
        import torch_pruning  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in ("torch_pruning", "numpy"):
            raise
        raise ModuleNotFoundError(
            f'mishkit.prune needs {error.name}: pip install "mishkit[prune]"', name=error.name
        ) from None
    example = inputs[0] if len(inputs) == 1 and isinstance(inputs[0], Mapping) else inputs
    batches = [example] if data is None else data
    before = _Snapshot(model)
    with before.leniently():
        try:
            work = _Work(model, chosen, example, threshold, fraction)
            report = work.run(batches, dry_run, progress and data is not None)
        except BaseException:
            before.restore()
            raise
        if dry_run:
            before.restore()
    return report


def _chosen(model: nn.Module, patterns: str | Iterable[str] | None) -> list[Slot]:
    """The slots to be watched, one for each activation, though it may have several names."""
    found = [slot for slot in slots(model) if slot.known is not None]
    if patterns is None:
        chosen = [slot for slot in found if slot.known and slot.known.function in FLAT]
    else:
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        chosen = []
        for pattern in patterns:
            matched = [slot for slot in found if fnmatch.fnmatchcase(slot.name, pattern)]
            if not matched:
                there = ", ".join(slot.name for slot in found) or "none"
                raise ValueError(
                    f'mishkit.prune: "{pattern}" is no activation of this model; it has {there}'
                )
            chosen += matched
    once: dict[Any, Slot] = {}
    for slot in chosen:
        module = isinstance(slot.value, nn.Module)
        once.setdefault(id(slot.value) if module else (id(slot.owner), slot.attribute), slot)
    return list(once.values())


# ---- running the model ---------------------------------------------------------------------------


def _run(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)


def _tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors in an output of any structure."""
    return [tensor for tensor in tensors_of(output) if tensor.is_floating_point()]


def _outputs(model: nn.Module, batch: Any) -> list[Tensor]:
    with torch.no_grad():
        return [tensor.clone() for tensor in _tensors(_run(model, batch))]


def _macs(model: nn.Module, batch: Any) -> int:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter knows no fused attention of CPUs; this is two matrix products.
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter, torch.no_grad():
        _run(model, batch)
    return counter.get_total_flops() // 2


def _progress(batches: Iterable[Any], shown: bool) -> Iterable[Any]:
    if not shown or not sys.stderr.isatty():
        return batches
    try:
        from rich.console import Console
        from rich.progress import track
    except ModuleNotFoundError:
        return batches
    total = len(batches) if isinstance(batches, Sized) else None
    return track(batches, "watching", total=total, console=Console(stderr=True), transient=True)


class _Snapshot:
    """What the modules of a model hold. Pruning puts new tensors in the place of the old ones, so
    that references suffice to go back."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.held = [(module, self._copy(module)) for module in model.modules()]

    @staticmethod
    def _copy(module: nn.Module) -> dict[str, Any]:
        return {k: v.copy() if isinstance(v, dict) else v for k, v in vars(module).items()}

    def restore(self) -> None:
        for module, held in self.held:
            now = vars(module)
            for name in now.keys() - held.keys():
                del now[name]
            for name, value in held.items():
                # A dict stays the same object: handles of hooks refer to theirs.
                if isinstance(value, dict) and isinstance(now.get(name), dict):
                    now[name].clear()
                    now[name].update(value)
                else:
                    now[name] = value

    @contextlib.contextmanager
    def leniently(self) -> Iterator[None]:
        """Eval mode, gradients for all parameters, which tracing needs, and no fused
        transformer layers, which call no activation; and back."""
        modes = [(module, module.training) for module, _ in self.held]
        flags = {
            (module, name): parameter.requires_grad
            for module, _ in self.held
            for name, parameter in module._parameters.items()
            if parameter is not None
        }
        fused = torch.backends.mha.get_fastpath_enabled()
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            for module, _ in modes:
                module.training = False
            for module, name in flags:
                parameter = module._parameters[name]
                if parameter is not None and parameter.is_floating_point():
                    parameter.requires_grad_()
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            for module, mode in modes:
                module.training = mode
            for (module, name), flag in flags.items():
                parameter = module._parameters[name]
                if parameter is not None:
                    parameter.requires_grad_(flag)


Call = tuple[int, int]
"""A site: the place of its slot in the list, and the number of the call within one run."""


@contextlib.contextmanager
def _tapped(
    chosen: Sequence[Slot], see: Callable[[Call, Tensor], None]
) -> Iterator[Callable[[], None]]:
    """Show every output of these activations to `see`; yields what begins a new run."""
    calls: Counter[int] = Counter()
    undo: list[Callable[[], object]] = []

    def seen(place: int, output: Any) -> None:
        calls[place] += 1
        if isinstance(output, Tensor):
            see((place, calls[place]), output)

    def tap(place: int, slot: Slot) -> None:
        if isinstance(slot.value, nn.Module):
            hook = slot.value.register_forward_hook(lambda module, args, y: seen(place, y))
            undo.append(hook.remove)
            return

        def called(*args: Any, **kwargs: Any) -> Any:
            output = slot.value(*args, **kwargs)
            seen(place, output)
            return output

        held = vars(slot.owner)
        held[slot.attribute] = called
        undo.append(lambda: held.update({slot.attribute: slot.value}))

    try:
        for place, slot in enumerate(chosen):
            tap(place, slot)
        yield calls.clear
    finally:
        for one in undo:
            one()


@dataclass
class _Reading:
    """What was seen of each unit, at one place."""

    low: Tensor
    high: Tensor
    active: Tensor
    positions: int

    @classmethod
    def of(cls, x: Tensor, dim: int, threshold: float) -> _Reading | None:
        if not x.numel():
            return None
        rows = x.detach().movedim(dim, -1).reshape(-1, x.shape[dim])
        low, high = (bound.double().cpu() for bound in torch.aminmax(rows, dim=0))
        # Not "> threshold": a NaN is active.
        active = (~(rows.abs() <= threshold)).sum(0).cpu()
        return cls(low, high, active, len(rows))

    def add(self, other: _Reading) -> None:
        self.low = torch.minimum(self.low, other.low)
        self.high = torch.maximum(self.high, other.high)
        self.active = self.active + other.active
        self.positions += other.positions

    def silent(self, fraction: float) -> list[bool]:
        return (self.active <= fraction * self.positions).tolist()

    def constant(self, unit: int, eps: float) -> float | None:
        """The value of a unit that has but one, to rounding."""
        low, high = float(self.low[unit]), float(self.high[unit])
        same = high - low <= 8 * eps * max(abs(low), abs(high)) < float("inf")
        return (low + high) / 2 if same else None


def _channels(layer: nn.Module) -> int:
    """The dimension of a layer's input that holds the units, from the last."""
    return -1 if isinstance(layer, nn.Linear) else -1 - len(layer.kernel_size)  # type: ignore[arg-type]


# ---- what is tied to what ------------------------------------------------------------------------


@dataclass
class _Cut:
    """Units that go together: a layer that makes them, and all that is tied to it."""

    root: nn.Module
    units: int
    obstacle: str = ""
    """Why none of its units can go."""
    sites: dict[Call, dict[int, int]] = field(default_factory=dict)
    """By site: the root unit of each of its units."""
    readers: dict[nn.Module, dict[int, int]] = field(default_factory=dict)
    """By Linear or Conv that reads them: the root unit of each of its inputs."""
    touched: dict[tuple[int, str], dict[int, int]] = field(default_factory=dict)
    """By everything that is narrowed: the root unit of each index."""
    removed: list[int] = field(default_factory=list)
    why_not: dict[int, str] = field(default_factory=dict)
    """By root unit: why it stays, though it is silent."""
    folds: dict[nn.Module, dict[int, float]] = field(default_factory=dict)
    """By reader: the constants that its bias takes up, by input."""

    def refuse(self, why: str) -> None:
        self.why_not.update(dict.fromkeys(self.removed, why))
        self.removed, self.folds = [], {}


def _where(dep: Any) -> tuple[int, str]:
    """What an item of torch-pruning's groups narrows, and which side of it."""
    return id(dep.target), dep.handler.__name__


class _Graph:
    """torch-pruning's dependency graph of a model, and where the sites are in it."""

    def __init__(self, model: nn.Module, example: Any, chosen: Sequence[Slot]) -> None:
        import torch_pruning as tp

        self.types = tp.ops.OPTYPE
        self.sites: dict[Call, Any] = {}
        self.shapes: dict[Call, torch.Size] = {}
        functions: dict[Call, Any] = {}

        def see(call: Call, output: Tensor) -> None:
            functions[call] = output.grad_fn
            self.shapes[call] = output.shape

        def forward(model: nn.Module, example: Any) -> list[Tensor]:
            begin()
            return [y for y in _tensors(_run(model, example)) if y.grad_fn is not None]

        self.dependencies = tp.DependencyGraph()
        with _tapped(chosen, see) as begin, torch.enable_grad():
            self.dependencies.build_dependency(model, example, forward_fn=forward, verbose=False)
        self.names = {module: name for name, module in model.named_modules()}
        nodes = {node.grad_fn: node for node in self.dependencies.module2node.values()}
        self.sites = {call: nodes.get(function) for call, function in functions.items()}
        holders = [(id(p), m) for m in self.names for p in m._parameters.values() if p is not None]
        self.holders = Counter(parameter for parameter, _ in holders)

    def makers(self, call: Call) -> list[nn.Module]:
        """The nearest layers before a site whose outputs its units are."""
        found: dict[nn.Module, None] = {}
        node = self.sites[call]
        waiting, met = [] if node is None else [node], set()
        while waiting:
            node = waiting.pop()
            if id(node) in met:
                continue
            met.add(id(node))
            if node.type != self.types.OUTPUT and node.module in self.names:
                found[node.module] = None
            else:
                waiting += node.inputs
        return list(found)

    def group(self, root: nn.Module, units: Iterable[int]) -> Any:
        pruner = self.dependencies.get_pruner_of_module(root)
        return self.dependencies.get_pruning_group(root, pruner.prune_out_channels, list(units))

    def cut(self, root: nn.Module) -> _Cut:
        """What goes with the units of a layer."""
        cut = _Cut(root, self.dependencies.get_out_channels(root))
        calls: dict[int, list[Call]] = {}
        for call, node in self.sites.items():
            calls.setdefault(id(node), []).append(call)
        for item in self.group(root, range(cut.units)):
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
            done = str(module)
            for sign in ("Softmax", "LayerNorm", "GroupNorm", "RmsNorm", "Bmm", "ScaledDotProduct"):
                if sign in done:
                    operation = done.split("(")[-1].rstrip("0)").removesuffix("Backward")
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

    def fits(self, cut: _Cut) -> bool:
        """Whether removing these units of the root removes these alone, and leaves others."""
        group = self.group(cut.root, cut.removed)
        gone = set(cut.removed)
        for dep, indices in group:
            units = cut.touched.get(_where(dep), {})
            if any(units.get(index) not in gone for index in indices):
                return False
        return bool(self.dependencies.check_pruning_group(group))

    def remove(self, cut: _Cut) -> None:
        self.group(cut.root, cut.removed).prune(record_history=False)


# ---- the work ------------------------------------------------------------------------------------


class _Work:
    """One call of `prune`."""

    def __init__(
        self,
        model: nn.Module,
        chosen: Sequence[Slot],
        example: Any,
        threshold: float,
        fraction: float,
    ) -> None:
        self.model, self.chosen, self.example = model, chosen, example
        self.threshold, self.fraction = threshold, fraction
        self.lossy = threshold > 0 or fraction > 0
        self.kept: list[tuple[Any, list[Tensor]]] = []
        self.at_sites: dict[Call, _Reading] = {}
        self.at_readers: dict[nn.Module, _Reading] = {}

    def run(self, batches: Iterable[Any], dry_run: bool, progress: bool) -> PruneReport:
        model = self.model
        counted = sum(p.numel() for p in model.parameters()), _macs(model, self.example)
        graph = _Graph(model, self.example, self.chosen)
        cuts, without = self._cuts(graph)
        self._watch(batches, graph, cuts, progress)
        for cut in cuts:
            self._decide(graph, cut)
        cuts = [cut for cut in cuts if cut.sites]
        shapes = graph.shapes
        change = self._carry_out(graph, [cut for cut in cuts if cut.removed])
        return PruneReport(
            sites=self._sites(shapes, cuts, without),
            parameters_before=counted[0],
            parameters_after=sum(p.numel() for p in model.parameters()),
            macs_before=counted[1],
            macs_after=_macs(model, self.example),
            max_change=change,
            max_output=max((_largest(y) for _, ys in self.kept for y in ys), default=0.0),
            compared=len(self.kept),
            dry_run=dry_run,
        )

    def _cuts(self, graph: _Graph) -> tuple[list[_Cut], dict[Call, str]]:
        """The groups of units at the sites, each once, and the sites that are in none."""
        cuts: dict[frozenset[Any], _Cut] = {}
        without = {}
        for call in graph.sites:
            for maker in graph.makers(call):
                cut = graph.cut(maker)
                key = frozenset((where, frozenset(units)) for where, units in cut.touched.items())
                cuts.setdefault(key, cut)
            if not any(call in cut.sites for cut in cuts.values()):
                without[call] = "no layer before it makes its units"
        return list(cuts.values()), without

    def _watch(
        self, batches: Iterable[Any], graph: _Graph, cuts: Sequence[_Cut], progress: bool
    ) -> None:
        """Run the batches, and see what the sites give and the readers read."""
        dims = {call: self._dimension(call, shape, cuts) for call, shape in graph.shapes.items()}

        def note(readings: dict[Any, _Reading], key: Any, x: Tensor, dim: int) -> None:
            reading = _Reading.of(x, dim, self.threshold)
            if reading is None:
                return
            if key in readings:
                readings[key].add(reading)
            else:
                readings[key] = reading

        def see(call: Call, output: Tensor) -> None:
            if call in dims:
                note(self.at_sites, call, output, dims[call])

        def read(layer: nn.Module, args: Any, kwargs: Any) -> None:
            x = args[0] if args else kwargs["input"]
            note(self.at_readers, layer, x, _channels(layer))

        readers = dict.fromkeys(layer for cut in cuts for layer in cut.readers)
        hooks = [layer.register_forward_pre_hook(read, with_kwargs=True) for layer in readers]
        try:
            with _tapped(self.chosen, see) as begin:
                for batch in _progress(batches, progress):
                    begin()
                    outputs = _outputs(self.model, batch)
                    if len(self.kept) < COMPARED:
                        self.kept.append((batch, outputs))
        finally:
            for hook in hooks:
                hook.remove()
        if not self.kept:
            raise ValueError("mishkit.prune: data holds no batch")

    @staticmethod
    def _dimension(call: Call, shape: torch.Size, cuts: Sequence[_Cut]) -> int:
        """Which dimension of a site's output holds the units, from the last."""
        usual = 1 - len(shape) if len(shape) > 3 else -1
        for cut in cuts:
            if call in cut.sites:
                linear = isinstance(cut.root, nn.Linear)
                usual = -1 if linear or len(shape) < 3 else 1 - len(shape)
                units = 1 + max(max(other.sites.get(call, [0])) for other in cuts)
                if shape and shape[usual] != units and units in shape:
                    usual = list(shape).index(units) - len(shape)
                break
        return usual

    def _decide(self, graph: _Graph, cut: _Cut) -> None:
        """Which of the units that are silent somewhere can go."""
        silent: dict[int, None] = {}
        for call, units in cut.sites.items():
            if call in self.at_sites:
                there = self.at_sites[call].silent(self.fraction)
                silent.update({r: None for u, r in units.items() if u < len(there) and there[u]})
        if cut.obstacle:
            cut.why_not = dict.fromkeys(silent, cut.obstacle)
            return
        read: dict[int, list[tuple[nn.Module, int]]] = {}
        for layer, inputs in cut.readers.items():
            for index, root in inputs.items():
                read.setdefault(root, []).append((layer, index))
        quiet = {
            layer: self.at_readers[layer].silent(self.fraction)
            for layer in cut.readers
            if layer in self.at_readers
        }
        for root in sorted(silent):
            folds = []
            for layer, index in read.get(root, ()):
                name = graph.names[layer]
                if layer not in quiet or index >= len(quiet[layer]):
                    cut.why_not[root] = f"{name} was not seen to read it"
                elif not quiet[layer][index]:
                    weight: Tensor = layer.weight  # type: ignore[assignment]
                    eps = torch.finfo(weight.dtype).eps
                    constant = self.at_readers[layer].constant(index, eps)
                    if constant is None:
                        cut.why_not[root] = f"{name} reads other values than 0"
                    elif not _can_fold(layer):
                        cut.why_not[root] = f"{name} reads a constant that it can't take up"
                    else:
                        folds.append((layer, index, constant))
            if root not in cut.why_not:
                cut.removed.append(root)
                for layer, index, constant in folds:
                    cut.folds.setdefault(layer, {})[index] = constant
        if len(cut.removed) == cut.units:
            spared = cut.removed.pop(0)
            cut.why_not[spared] = "one unit is kept"
            for layer, inputs in cut.readers.items():
                for index in [i for i in cut.folds.get(layer, {}) if inputs[i] == spared]:
                    del cut.folds[layer][index]
        if cut.removed and not graph.fits(cut):
            cut.refuse("a layer tied to it would lose other units, or all")

    def _carry_out(self, graph: _Graph, cuts: Sequence[_Cut]) -> float:
        """Remove what was decided, take back what changes the outputs; the greatest change."""
        if not cuts:
            return 0.0
        start = _Snapshot(self.model)
        failure, change = self._attempt(graph, cuts)
        if failure and len(cuts) > 1:
            for cut in cuts:
                start.restore()
                alone, _ = self._attempt(self._again(), [cut])
                if alone:
                    cut.refuse(alone)
            start.restore()
            cuts = [cut for cut in cuts if cut.removed]
            failure, change = self._attempt(self._again(), cuts)
        if failure:
            start.restore()
            for cut in cuts:
                cut.refuse(failure)
            return 0.0
        return change

    def _again(self) -> _Graph:
        return _Graph(self.model, self.example, ())

    def _attempt(self, graph: _Graph, cuts: Sequence[_Cut]) -> tuple[str, float]:
        """Remove these, and compare: why it failed, if it did, and the greatest change."""
        expected = [self._masked(batch, cuts) for batch, _ in self.kept] if self.lossy else None
        try:
            for cut in cuts:  # before the inputs are counted otherwise
                for layer, constants in cut.folds.items():
                    _fold(layer, constants)
            for cut in cuts:
                graph.remove(cut)
            now = [_outputs(self.model, batch) for batch, _ in self.kept]
        except Exception as error:
            # Whatever a model may raise when its shapes are not what it counts on.
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            return f"without it the model fails: {type(error).__name__}: {first[:80]}", 0.0
        original = [outputs for _, outputs in self.kept]
        for ys, wanted in zip(now, expected or original, strict=True):
            if [y.shape for y in ys] != [y.shape for y in wanted]:
                return "without it an output has another shape", 0.0
            for y, one in zip(ys, wanted, strict=True):
                moved = _distance(y, one)
                if not moved <= ROUNDING * torch.finfo(one.dtype).eps * _largest(one):
                    return f"without it an output changes by {moved:.2g}", 0.0
        pairs = [
            pair
            for ys, before in zip(now, original, strict=True)
            for pair in zip(ys, before, strict=True)
        ]
        return "", max((_distance(y, one) for y, one in pairs), default=0.0)

    def _masked(self, batch: Any, cuts: Sequence[_Cut]) -> list[Tensor]:
        """The outputs with zeros for what is all but silent: what must come out without it."""
        zeros: dict[nn.Module, list[int]] = {}
        for cut in cuts:
            for layer, inputs in cut.readers.items():
                folded = cut.folds.get(layer, {})
                gone = set(cut.removed)
                zeros.setdefault(layer, []).extend(
                    index for index, root in inputs.items() if root in gone and index not in folded
                )

        def mask(layer: nn.Module, args: Any, kwargs: Any) -> Any:
            args = list(args) or [kwargs["input"]]
            index = torch.tensor(zeros[layer], device=args[0].device, dtype=torch.long)
            args[0] = args[0].index_fill(_channels(layer), index, 0)
            return tuple(args), {k: v for k, v in kwargs.items() if k != "input"}

        hooks = [layer.register_forward_pre_hook(mask, with_kwargs=True) for layer in zeros]
        try:
            return _outputs(self.model, batch)
        finally:
            for hook in hooks:
                hook.remove()

    def _sites(
        self, shapes: Mapping[Call, torch.Size], cuts: Sequence[_Cut], without: Mapping[Call, str]
    ) -> tuple[PrunedSite, ...]:
        found = []
        for call in sorted({*shapes, *self.at_sites, *((p, 1) for p in range(len(self.chosen)))}):
            place, number = call
            slot = self.chosen[place]
            reading = self.at_sites.get(call)
            quiet = reading.silent(self.fraction) if reading else []
            silent = [unit for unit, is_silent in enumerate(quiet) if is_silent]
            removed, reasons = [], Counter[str]()
            roots = [(cut, cut.sites[call], set(cut.removed)) for cut in cuts if call in cut.sites]
            for unit in range(len(quiet)):
                for cut, units, gone in roots:
                    if units.get(unit) in gone:
                        removed.append(unit)
                    elif unit in units and quiet[unit]:
                        reasons[cut.why_not[units[unit]]] += 1
            if call in without and silent:
                reasons[without[call]] = len(silent)
            if call not in shapes:
                reasons["it was not called with the example inputs"] = len(silent)
            elif reading is None:
                reasons["it was not called with the data"] = 0
            several = len(reasons) > 1
            why = "; ".join(f"{n}: {r}" if several else r for r, n in reasons.most_common())
            found.append(
                PrunedSite(
                    name=slot.name + (f"#{number}" if number > 1 else ""),
                    function=slot.known.function if slot.known else "",
                    units=len(quiet),
                    silent_units=tuple(silent),
                    removed_units=tuple(removed),
                    why_not=why,
                )
            )
        return tuple(found)


def _largest(y: Tensor) -> float:
    finite = y.double().nan_to_num(0.0, 0.0, 0.0)
    return float(finite.abs().max()) if y.numel() else 0.0


def _distance(y: Tensor, wanted: Tensor) -> float:
    """The greatest difference; what is no number must be the same in both."""
    y, wanted = y.double(), wanted.double()
    same = (y == wanted) | (y.isnan() & wanted.isnan())
    return float(torch.where(same, 0.0, (y - wanted).abs()).max()) if y.numel() else 0.0


def _can_fold(layer: nn.Module) -> bool:
    """Whether an input that is constant everywhere adds the same to each output."""
    if layer._parameters.get("bias") is None:
        return False
    if isinstance(layer, nn.Linear):
        return True
    padding: Any = layer.padding
    unpadded = padding == "valid" or (padding != "same" and not any(padding))
    plain = not getattr(layer, "transposed", False) and layer.groups == 1
    return bool(plain and (unpadded or layer.padding_mode != "zeros"))


def _fold(layer: nn.Module, constants: Mapping[int, float]) -> None:
    """Let the bias take up what these inputs add."""
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    assert weight is not None and bias is not None
    with torch.no_grad():
        index = torch.tensor(list(constants), device=weight.device)
        values = torch.tensor(list(constants.values()), device=weight.device, dtype=torch.double)
        columns = weight.index_select(1, index).double()
        # A convolution adds each of its taps.
        columns = columns.flatten(2).sum(-1) if columns.ndim > 2 else columns
        folded = (bias.double() + columns @ values).to(bias.dtype)
    layer._parameters["bias"] = nn.Parameter(folded)
