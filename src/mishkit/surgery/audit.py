"""How much memory the activations of a model cost, and where keeping the output saves some."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.checkpoint import checkpoint

from .._progress import progress, step
from ..functions import ACTIVATIONS
from ..memory import KeptBytes
from ..recompute.model import suspended
from ._state import Storage, undisturbed
from .evaluated import computes
from .keepers import keepers_of
from .report import CODE, LEAN, LEAN_FUNCTIONAL, AdvisedCalls, Report, Site, readable
from .slots import Slot, slots
from .watch import BY_HAND, FUNCTION, GATE, SCRIPTED, VIEWS, Call, Trace, Use, tensors_of, watch


def audit(model: nn.Module, *inputs: Any, **kwargs: Any) -> Report:
    """Find every activation in a model, and what autograd keeps because of it.

    Runs one forward pass with gradients, ``model(*inputs, **kwargs)``, in the model's current mode
    and under any autocast active around the call. A second pass with `torch.utils.checkpoint` and a
    third one within `mishkit.recompute` are run for comparison. Nothing is changed: parameters,
    buffers and module attributes are restored, and so are the inputs and the random number
    generators of torch, numpy and Python. If it takes more than two seconds, a line on the terminal
    says how far it is (``MISHKIT_PROGRESS=0`` turns that off).

    An activation that keeps its input costs memory twice if the next operation keeps the
    activation's output anyway, as Linear, Conv, normalisation, pooling and products do. There,
    keeping the output and one bit per element (``save="output"``) saves the input. It does not pay
    off before dropout, a residual addition, a frozen layer or a cast, or if something else keeps
    the input. The audit does not rely on such rules: it looks at what this pass really keeps,
    storage by storage.

    An audit needs no data. With parameters and inputs made under
    ``torch._subclasses.FakeTensorMode()``, it takes no memory, and reports what real tensors would
    keep on the device that the fake ones name. ``torch.device("meta")`` stands for no particular
    device: on it, attention keeps the results of every step, while a CPU's kernel keeps only a row
    of sums.

    Parameters
    ----------
    model : torch.nn.Module
        in training mode, if you want to know about training; a compiled model is audited in its
        uncompiled form
    *inputs, **kwargs
        arguments of the model. Sizes matter if the control flow depends on them.

    Returns
    -------
    Report
        `sites` with the advice for each, and the bytes kept: `kept` now, `after_lean` with `lean`
        alone, `lean` with all the advice followed, `checkpointed`; ``print`` and notebooks show a
        table, and ``to_json()`` returns everything. `keepers` says for every byte which operator of
        which module keeps it, and whether `mishkit.recompute` could do without it.

    Raises
    ------
    TypeError
        if `model` is not a module
    ValueError
        if its parameters are not initialized yet, as in lazy modules
    """
    with progress("mishkit.audit", steps=1):
        planned = plan(model, inputs, kwargs)
        root = getattr(model, "_orig_mod", model)
        step("a pass that recomputes")
        keepers = keepers_of(root, planned.trace, inputs, kwargs)
    return dataclasses.replace(planned.report, keepers=keepers)


@dataclass(eq=False)
class Unit:
    """Calls that can only be changed together: all calls of one module, or all calls of one
    function from one line of code in one module.
    """

    calls: list[Call]
    slots: list[Slot] = field(default_factory=list)
    lean: bool = False
    saving: int = 0
    """Bytes that the change saves."""
    possible: int = 0
    """Bytes that the change would save if the call were one of ours."""
    inplace: bool = False
    """Whether the result overwrites the input, or may do so."""

    @property
    def gates(self) -> bool:
        """Whether every output is a factor of a product and nothing else: see `Call.gates`."""
        return all(call.gates for call in self.calls)

    @property
    def by(self) -> str:
        """What can change it: LEAN, LEAN_FUNCTIONAL or CODE; empty if nothing can."""
        if self.slots:
            return LEAN
        if any(call.module is not None or call.kind for call in self.calls):
            return ""
        if all(call.known.save is not None for call in self.calls):
            return CODE
        return LEAN_FUNCTIONAL if all(call.function for call in self.calls) else ""


@dataclass(frozen=True)
class Plan:
    """A report, and the units that `lean` would change."""

    report: Report
    units: list[Unit]
    trace: Trace


@suspended()
def plan(
    model: nn.Module, inputs: Iterable[Any], kwargs: dict[str, Any], *, inplace: bool = False
) -> Plan:
    """The audit, with what `lean` needs to follow the advice.

    A model that recomputes runs as if it did not.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"mishkit.audit: the model must be a Module, not {type(model).__name__}")
    model = getattr(model, "_orig_mod", model)
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError(
            "mishkit.audit: the model has parameters that are not initialized yet; call it once"
        )
    inputs = tuple(inputs)
    step("a forward pass", more=1)
    trace = watch(model, inputs, kwargs, inplace=inplace)
    units = _units(model, trace)
    ledger = _Ledger(trace)
    after_lean, lean = ledger.decide(units)
    if inplace:
        _allow_inplace(units, trace, model, inputs, kwargs)
    sites = tuple(_site(unit, trace) for unit in units)
    names = _blocks(model, {call.place.module for call in trace.calls})
    report = Report(
        sites=sites,
        kept=trace.kept,
        lean=lean,
        checkpointed=_checkpointed(model, names, inputs, kwargs),
        blocks=names,
        after_lean=after_lean,
        advised=AdvisedCalls(
            (call.owner, call.place.line, call.function)
            for unit in units
            if unit.lean and unit.by == LEAN_FUNCTIONAL
            for call in unit.calls
        ),
    )
    return Plan(report, units, trace)


# ---- who decides what ----


def _units(model: nn.Module, trace: Trace) -> list[Unit]:
    held: dict[int, list[Slot]] = {}
    for slot in slots(model):
        if slot.known is not None:
            held.setdefault(id(slot.value), []).append(slot)
    units: dict[Any, Unit] = {}
    for call in trace.calls:
        holder = call.module
        function = call.function or call.known.function
        key = id(holder) if holder is not None else (call.place, call.kind, function)
        holder_slots = [holder] if isinstance(holder, Slot) else held.get(id(holder), [])
        units.setdefault(key, Unit([], holder_slots)).calls.append(call)
    names = {id(module): name for name, module in model.named_modules()}
    for unit in units.values():
        method = _method(unit, names)
        if method is not None:
            unit.slots = [method]
        unit.inplace = all(call.known.inplace for call in unit.calls)
    return list(units.values())


def _method(unit: Unit, names: dict[int, str]) -> Slot | None:
    """The method of the enclosing module that computes the function of a gate and nothing else,
    like `gelu` in diffusers' GEGLU: an attribute can take its place. None if there is no such
    method.
    """
    first = unit.calls[0]
    owner, method, known = first.owner, first.method, first.known
    if owner is None or not method or unit.by != LEAN_FUNCTIONAL or not unit.gates:
        return None
    if any((call.owner, call.method) != (owner, method) for call in unit.calls):
        return None
    function = getattr(owner, method)
    if method in vars(owner) or id(owner) not in names or not known.ours:
        return None
    if not computes(function, known.function, known.values):
        return None
    name = f"{names[id(owner)]}.{method}".lstrip(".")
    return Slot(name, owner, method, function, known)


def _allow_inplace(
    units: list[Unit], trace: Trace, model: nn.Module, inputs: tuple[Any, ...], kwargs: Any
) -> None:
    """Let changed units overwrite their inputs where nothing else needs these: neither in the
    model's current mode nor when the whole model is in training or in eval mode.
    """
    calls = list(trace.calls)
    modes = {module.training for module in model.modules()}
    for training in (True, False):
        if modes == {training}:
            continue  # already watched
        step("a pass in training mode" if training else "a pass in eval mode", more=1)
        with undisturbed(model):
            model.train(training)
            try:
                trace = watch(model, inputs, kwargs, inplace=True)
            except Exception:  # e.g. batch norm refuses to train with one value per channel
                return
        calls += trace.calls
    missed = {_holder(call) for call in calls if not call.alone}
    for unit in units:
        alone = not any(_holder(call) in missed for call in unit.calls)
        unit.inplace = unit.inplace or (unit.lean and unit.by == LEAN and alone)


def _holder(call: Call) -> Any:
    """A key for the module or attribute behind a call, the same in every pass."""
    slot = call.module
    return (id(slot.owner), slot.attribute) if isinstance(slot, Slot) else id(slot)


class _Ledger:
    """What keeps which storage, and what changes if some calls keep their outputs instead."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.size = dict(trace.sizes)
        self.sides = 0
        node_of = {node: call for call in trace.calls for node in call.nodes}
        self.own: dict[int, set[Storage]] = {id(call): set() for call in trace.calls}
        # How many holders each storage has. Each call counts as one, and everything else together
        # as one.
        self.holders: Counter[Storage] = Counter()
        kept_elsewhere = set()
        for saved in trace.saved:
            if saved.node in node_of:
                self.own[id(node_of[saved.node])].add(saved.storage)
            else:
                kept_elsewhere.add(saved.storage)
        self.holders.update(kept_elsewhere)
        for storages in self.own.values():
            self.holders.update(storages)
        for call in trace.calls:
            # The size of an output that nothing keeps is that of its elements.
            self.size.setdefault(call.output, call.elements * call.dtype.itemsize)

    def total(self) -> int:
        kept = (storage for storage, count in self.holders.items() if count > 0)
        return sum(self.size[storage] for storage in kept) + self.sides

    def decide(self, units: list[Unit]) -> tuple[int, int]:
        """Choose the units worth changing; returns the bytes kept after `lean`, and with all.

        The units that `lean` changes are chosen first, so that they pay off without changes to
        function calls. Those are chosen on top.
        """
        totals = []
        for by in (LEAN, LEAN_FUNCTIONAL, CODE):
            self._choose([unit for unit in units if unit.by == by and can_keep_output(unit)])
            totals.append(self.total())
        for unit in units:
            if not unit.lean and not any(call.unsuited for call in unit.calls):
                unit.possible = max(0, self._try([unit]))
        return totals[0], totals[-1]

    def _choose(self, units: list[Unit]) -> None:
        """Try units one by one, then groups that share what they keep and only pay off together."""
        while True:
            undecided = [unit for unit in units if not unit.lean]
            sharing: dict[Storage, list[Unit]] = {}
            for unit in undecided:
                for storage in {s for call in unit.calls for s in self.own[id(call)]}:
                    sharing.setdefault(storage, []).append(unit)
            groups = [[unit] for unit in undecided]
            groups += [group for group in sharing.values() if len(group) > 1]
            taken = [self._take(group) for group in groups]
            if not any(taken):
                return

    def _take(self, units: list[Unit]) -> bool:
        """Change these units if that saves anything; each is credited with an equal share."""
        if any(unit.lean for unit in units):
            return False
        saving = self._try(units)
        if saving <= 0:
            return False
        for call in _with_gradient(units):
            self._swap(call, +1)
        for i, unit in enumerate(units):
            unit.lean, unit.saving = True, (saving + i) // len(units)
        return True

    def _try(self, units: list[Unit]) -> int:
        """Bytes saved if these units keep their outputs."""
        calls = _with_gradient(units)
        before = self._bytes_of(calls)
        for call in calls:
            self._swap(call, +1)
        after = self._bytes_of(calls)
        for call in calls:
            self._swap(call, -1)
        return before - after

    def _bytes_of(self, calls: list[Call]) -> int:
        touched = {s for call in calls for s in (*self.own[id(call)], call.output)}
        return sum(self.size[s] for s in touched if self.holders[s] > 0) + self.sides

    def _swap(self, call: Call, sign: int) -> None:
        """Replace what the call keeps by its output and side, or undo that."""
        for storage in self.own[id(call)]:
            self.holders[storage] -= sign
        if call.output not in self.trace.given:
            self.holders[call.output] += sign
        self.sides += sign * side_bytes(call)


def _with_gradient(units: list[Unit]) -> list[Call]:
    return [call for unit in units for call in unit.calls if call.nodes]


def side_bytes(call: Call) -> int:
    """The size of a call's side bits: 0 if the function is monotone."""
    known = ACTIVATIONS.get(call.known.function)
    monotone = known is not None and known.turn is None
    return 0 if monotone else (call.elements + 7) // 8


def can_keep_output(unit: Unit) -> bool:
    """Whether our function can replace every call and work from the output."""
    return not any(call.overwritten or _obstacle(unit, call) for call in unit.calls)


def can_compute(unit: Unit) -> bool:
    """Whether a module of ours can stand in for every call, from the input, and is worth it."""
    known = unit.calls[0].known
    if not unit.slots or not known.ours:
        return False
    # torch's own is as fast, except in a gate.
    if ACTIVATIONS[known.function].made_of == "lines" and not unit.gates:
        return False
    if known.state and not known.parameters:  # they are trained
        return False
    return not any(call.unsuited or call.kind for call in unit.calls)


def _obstacle(unit: Unit, call: Call) -> str:
    """Why a call can't keep its output instead; empty if it can."""
    known = call.known
    if call.unsuited:
        return (
            f"mishkit has no kernels for {call.unsuited} tensors: torch's own function computes it"
        )
    if call.kind == SCRIPTED:
        return "it is scripted"
    if call.kind == GATE:
        return "a gate needs both inputs, and keeps nothing else"
    if call.kind in (BY_HAND, FUNCTION):
        by_hand = call.kind == BY_HAND
        how = "put together by hand" if by_hand else "an autograd.Function of its own"
        ours = f'"{known.function}"' if by_hand else "what it computes"
        if all(member.only for member in unit.calls):
            return f"it is {how}: mishkit.swap it for {ours} first"
        return f"it is {how}: call mishkit's function for {ours} there"
    if not known.ours:
        return "mishkit has no such function"
    if known.state and not known.parameters:  # the parameters are trained
        return "the gradients of its parameters need the input"
    try:
        ACTIVATIONS[known.function].turn_at(*known.values)
    except ValueError:
        return "with these parameters the output does not determine the gradient"
    if isinstance(call.module, nn.Module) and not unit.slots:
        return "no module holds it, which could hold another"
    if not unit.by:
        return "lean_functional does not see how it is called"
    return ""


# ---- what the report says ----


def _site(unit: Unit, trace: Trace) -> Site:
    calls = unit.calls
    first = calls[0]
    nodes = {node for call in calls for node in call.nodes}
    size = trace.sizes
    own = {saved.storage for saved in trace.saved if saved.node in nodes}
    elsewhere = [saved for saved in trace.saved if saved.node not in nodes]
    shared = {saved.storage for saved in elsewhere} & own

    def keepers(storages: set[Storage]) -> tuple[str, ...]:
        holding = (saved for saved in elsewhere if saved.storage in storages)
        uses = (
            Use(trace.operators.get(saved.node, ""), saved.module, saved.node) for saved in holding
        )
        return tuple(dict.fromkeys(_who(use, trace) for use in uses))

    outputs = {call.output for call in calls}
    output_kept_by, input_kept_by = keepers(outputs), keepers(own - outputs)
    return Site(
        name=first.place.module,
        line=first.place.line,
        function=first.known.function,
        how=type(first.module).__name__
        if isinstance(first.module, nn.Module)
        else first.kind or "call",
        calls=len(calls),
        shape=first.shape,
        dtype=first.dtype,
        kept=sum(size[s] for s in own),
        alone=sum(size[s] for s in own - shared),
        output_kept_by=output_kept_by,
        input_kept_by=input_kept_by,
        advice="output" if unit.lean else "leave",
        reason=_reason(unit, trace, own, output_kept_by, input_kept_by),
        saving=unit.saving,
        inplace=unit.inplace,
        gate=unit.gates,
        by=unit.by if unit.lean else "",
    )


def _reason(
    unit: Unit,
    trace: Trace,
    own: set[Storage],
    output_kept_by: tuple[str, ...],
    input_kept_by: tuple[str, ...],
) -> str:
    """The reason for the advice, in a few words."""
    calls = unit.calls
    if unit.lean:
        why = f"as {output_kept_by[0]} keeps it" if output_kept_by else "as it takes less"
        return f'{why}: call it with save="output"' if unit.by == CODE else why
    if not any(call.nodes for call in calls):
        return "as no gradient passes here"
    if not own:
        return "as it keeps nothing"
    output = sum(call.elements * call.dtype.itemsize + side_bytes(call) for call in calls)
    if own & {call.output for call in calls} and sum(trace.sizes[s] for s in own) <= output:
        return "as it keeps its output already"
    obstacles = list(filter(None, (_obstacle(unit, call) for call in calls)))
    if obstacles:
        saves = ""
        if unit.possible and calls[0].kind in (BY_HAND, FUNCTION):
            saves = f", then keeping the output saves {readable(unit.possible)}"
        return f"as {obstacles[0]}{saves}"
    writers = [call.overwritten for call in calls if call.overwritten is not None]
    if writers:
        return f"as {_who(writers[0], trace)} writes over its output"
    if input_kept_by:
        return f"as {input_kept_by[0]} keeps its input"
    readers = [use for call in calls for use in call.y_uses if use.operator not in VIEWS]
    # Prefer a reader that has a gradient, since that one might have kept it.
    readers.sort(key=lambda use: use.node is None)
    who = f"{_who(readers[0], trace)} does not keep" if readers else "nobody keeps"
    return f"as {who} its output"


_WORDS = {
    "_to_copy": "a cast",
    "add": "an addition",
    "addmm": "a linear layer",
    "bmm": "a matrix product",
    "cat": "a concatenation",
    "clone": "a copy",
    "convolution": "a convolution",
    "mean": "a mean",
    "mm": "a matrix product",
    "mul": "a product",
}


def _who(use: Use, trace: Trace) -> str:
    """The name of the module, if it does nothing else; otherwise the operator and its place."""
    kind = trace.kinds.get(use.module)
    if kind is not None:
        return f"{kind} {use.module}".rstrip()
    name = use.operator.removesuffix("_")
    operation = _WORDS.get(name, name)
    return f"{operation} in {use.module}" if use.module else operation


# ---- for comparison: recomputing ----


def _blocks(model: nn.Module, places: set[str]) -> tuple[str, ...]:
    """Items of containers that hold activations and are not containers themselves."""
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    modules = dict(model.named_modules())
    blocks: list[str] = []
    for name, module in modules.items():
        parent = modules.get(name.rpartition(".")[0])
        is_block = isinstance(parent, containers) and not isinstance(module, containers)
        holds = any(place.startswith(f"{name}.") for place in places)
        if is_block and holds and not any(name.startswith(f"{block}.") for block in blocks):
            blocks.append(name)
    return tuple(blocks)


def _checkpointed(
    model: nn.Module, blocks: tuple[str, ...], inputs: tuple[Any, ...], kwargs: dict[str, Any]
) -> int | None:
    """Bytes kept with a checkpoint around each block."""
    if not blocks:
        return None
    step("a pass with checkpoints", more=1)
    excluded = [*model.parameters(), *model.buffers(), *tensors_of((inputs, kwargs))]
    with ExitStack() as stack:
        for name in blocks:
            stack.enter_context(_checkpoint(model.get_submodule(name)))
        kept = stack.enter_context(KeptBytes(exclude=excluded))
        stack.enter_context(undisturbed(model, inputs, kwargs))
        stack.enter_context(torch.enable_grad())
        try:
            output = model(*inputs, **kwargs)
        except Exception:  # a model may do anything that can't be done twice
            return None
    del output
    return kept.total


@contextmanager
def _checkpoint(module: nn.Module) -> Iterator[None]:
    forward, own = module.forward, vars(module).get("forward")
    module.forward = partial(checkpoint, forward, use_reentrant=False)
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
