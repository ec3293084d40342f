"""What the activations of a model cost in memory, and where keeping the output instead pays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..functions import ACTIVATIONS
from ..memory import KeptBytes
from ._columns import aligned
from .slots import Slot, slots
from .watch import Call, Storage, Trace, Use, tensors_of, undisturbed, watch


@dataclass(frozen=True)
class Site:
    """One place in a model where an activation is applied, once or several times in a pass."""

    name: str
    """The path of the module, or of the attribute that is a function; for a call of a function, of
    the module around it."""
    line: str
    """For a call of a function: the file and the line."""
    function: str
    """Our name for it, or torch's."""
    how: str
    """The module's class; "call" for a function; "by hand" where it is put together from others."""
    calls: int
    shape: tuple[int, ...]
    """Of the first call's output."""
    dtype: torch.dtype
    kept: int
    """Bytes that autograd keeps because this site asks for them, by distinct storage."""
    alone: int
    """Those of them that nobody else keeps."""
    output_kept_by: tuple[str, ...]
    """Who else keeps the output: operator and module."""
    input_kept_by: tuple[str, ...]
    """Who else keeps what this site keeps."""
    advice: str
    """"output": keep the output and the side instead; or "leave"."""
    reason: str
    """Why."""
    saving: int
    """Bytes that following the advice saves, beside the other sites of which the same is said."""
    inplace: bool
    """Whether the result may be written over the input: it is already, or nobody else reads it."""

    @property
    def where(self) -> str:
        """The name, and the line of a call."""
        if not self.line:
            return self.name
        path, _, number = self.line.rpartition(":")
        return f"{self.name or '(model)'} ({Path(path).name}:{number})"

    @property
    def verdict(self) -> str:
        """What it is, the advice and the reason, in a line."""
        advice = "output, in place" if self.advice == "output" and self.inplace else self.advice
        shape, dtype = "×".join(map(str, self.shape)), str(self.dtype).removeprefix("torch.")
        return f"{self.how}, {shape} {dtype}: {advice}, {self.reason}"


@dataclass(frozen=True)
class Report:
    """What an audit found: print it, or read its parts."""

    sites: tuple[Site, ...]
    """In the order of the first call."""
    kept: int
    """Bytes that autograd keeps between forward and backward, by distinct storage, without
    parameters, buffers and inputs."""
    lean: int
    """The same once the advice is followed."""
    checkpointed: int | None
    """The same with `torch.utils.checkpoint` around each block, as things are; None if there are
    no blocks, or one of them can't be checkpointed."""
    blocks: tuple[str, ...]
    """The blocks: modules within containers that hold activations."""

    @property
    def ratio(self) -> float:
        """Bytes kept once the advice is followed, over those kept now."""
        return self.lean / self.kept if self.kept else 1.0

    @property
    def lines(self) -> frozenset[str]:
        """The lines of code whose calls should keep the output, as file:number."""
        return frozenset(s.line for s in self.sites if s.line and s.advice == "output")

    def __str__(self) -> str:
        rows = [("site", "function", "kept", "alone", "saves")]
        for site in self.sites:
            times = f" ×{site.calls}" if site.calls > 1 else ""
            saves = readable(site.saving) if site.advice == "output" else "–"
            counts = (readable(site.kept), readable(site.alone), saves)
            rows.append((site.where, site.function + times, *counts))
        head, *lines = aligned(rows, numbers=(2, 3, 4))
        texts = [f"{line}\n    {s.verdict}" for line, s in zip(lines, self.sites, strict=True)]
        return "\n".join([head, *texts, "", *self.summary()])

    def summary(self) -> list[str]:
        """The totals, a line each."""
        pays = sum(site.advice == "output" for site in self.sites)
        lines = [
            f"{len(self.sites)} sites, {pays} of which pay",
            f"kept for backward: {readable(self.kept)}",
            f"when lean: {readable(self.lean)}, {self.ratio:.3f} of that",
        ]
        if self.checkpointed is not None:
            lines.append(
                f"with torch.utils.checkpoint around {len(self.blocks)} blocks instead: "
                f"{readable(self.checkpointed)}, and a second forward pass"
            )
        return lines


def audit(model: nn.Module, *inputs: Any, **kwargs: Any) -> Report:
    """Find every activation in a model and what autograd keeps because of it.

    Runs one forward pass with gradients, ``model(*inputs, **kwargs)``, in the model's present mode
    and under the autocast around the call, and a second one with `torch.utils.checkpoint` for
    comparison. Nothing is changed: buffers, such as running statistics, and the state of random
    numbers are put back.

    An activation that keeps its input pays twice where the next operation keeps its output anyway,
    as Linear, Conv, normalisation, pooling and products do. There, keeping the output and one bit
    an element (``save="output"``) saves the input. It does not pay before dropout, a residual
    addition, a frozen layer or a cast, or where someone else keeps the input. The audit goes by
    what is really kept in this pass, storage by storage, not by such rules.

    Parameters
    ----------
    model : torch.nn.Module
        in training mode if training is meant; a compiled one is looked at as it was before
    *inputs, **kwargs
        what it takes. Sizes matter where the control flow depends on them.

    Returns
    -------
    Report
        `sites` with the advice for each, `kept` now, `lean` when the advice is followed,
        `checkpointed`; ``print`` shows a table

    Raises
    ------
    TypeError
        if `model` is no module
    """
    return plan(model, inputs, kwargs).report


@dataclass(eq=False)
class Unit:
    """Calls that can only be changed together: of one module, or from one line of code."""

    calls: list[Call]
    slots: list[Slot] = field(default_factory=list)
    lean: bool = False


@dataclass(frozen=True)
class Plan:
    """A report, and what it means for the model."""

    report: Report
    units: list[Unit]
    inplace: dict[int, bool]
    """By the id of a unit."""


def plan(model: nn.Module, inputs: Iterable[Any], kwargs: dict[str, Any]) -> Plan:
    """The audit, with what `lean` needs to follow it."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"mishkit.audit: the model must be a Module, not {type(model).__name__}")
    model = getattr(model, "_orig_mod", model)
    inputs = tuple(inputs)
    trace = watch(model, inputs, kwargs)
    units = _units(model, trace)
    ledger = _Ledger(trace)
    ledger.decide(units)
    inplace = {id(unit): _may_write(unit, trace) for unit in units}
    sites = tuple(_site(unit, calls, trace, inplace[id(unit)]) for unit, calls in _in_order(units))
    names = _blocks(model, {call.place.module for call in trace.calls})
    kept, lean = trace.kept, ledger.total()
    del trace, ledger  # and with them every tensor that was kept
    report = Report(sites, kept, lean, _checkpointed(model, names, inputs, kwargs), names)
    return Plan(report, units, inplace)


# ---- who decides what ----


def _units(model: nn.Module, trace: Trace) -> list[Unit]:
    held: dict[int, list[Slot]] = {}
    for slot in slots(model):
        if slot.known is not None:
            held.setdefault(id(slot.value), []).append(slot)
    units: dict[Any, Unit] = {}
    for call in trace.calls:
        key = id(call.module) if call.module is not None else call.place.line
        holder = call.module
        found = [holder] if isinstance(holder, Slot) else held.get(id(holder), [])
        units.setdefault(key, Unit([], found)).calls.append(call)
    return list(units.values())


class _Ledger:
    """Who keeps which storage, and what changes if some keep their outputs instead."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.size = dict(trace.sizes)
        self.sides = 0
        node_of = {node: call for call in trace.calls for node in call.nodes}
        self.own: dict[int, set[Storage]] = {id(call): set() for call in trace.calls}
        # How many keep it: a call counts once, and so does everything else together.
        self.holders: Counter[Storage] = Counter()
        others = set()
        for one in trace.saved:
            if one.node in node_of:
                self.own[id(node_of[one.node])].add(one.storage)
            else:
                others.add(one.storage)
        self.holders.update(others)
        for storages in self.own.values():
            self.holders.update(storages)
        for call in trace.calls:
            # An output that nobody keeps is as large as its elements.
            self.size.setdefault(call.y, call.elements * call.dtype.itemsize)

    def total(self) -> int:
        kept = (storage for storage, count in self.holders.items() if count > 0)
        return sum(self.size[storage] for storage in kept) + self.sides

    def decide(self, units: list[Unit]) -> None:
        """Choose the units that pay, one by one, then those that pay together as they share what
        they keep."""
        while True:
            undecided = [unit for unit in units if not unit.lean and can_keep_output(unit)]
            sharing: dict[Storage, list[Unit]] = {}
            for unit in undecided:
                for storage in {s for call in unit.calls for s in self.own[id(call)]}:
                    sharing.setdefault(storage, []).append(unit)
            groups = [[unit] for unit in undecided]
            groups += [group for group in sharing.values() if len(group) > 1]
            tried = [self._try(group) for group in groups]
            if not any(tried):
                return

    def _try(self, units: list[Unit]) -> bool:
        if any(unit.lean for unit in units):
            return False
        calls = [call for unit in units for call in unit.calls if call.nodes]
        before = self._bytes_of(calls)
        for call in calls:
            self._swap(call, +1)
        if calls and self._bytes_of(calls) < before:
            for unit in units:
                unit.lean = True
            return True
        for call in calls:
            self._swap(call, -1)
        return False

    def _bytes_of(self, calls: list[Call]) -> int:
        touched = {s for call in calls for s in (*self.own[id(call)], call.y)}
        return sum(self.size[s] for s in touched if self.holders[s] > 0) + self.sides

    def _swap(self, call: Call, sign: int) -> None:
        """Keep the output and the side for what was kept, or back."""
        for storage in self.own[id(call)]:
            self.holders[storage] -= sign
        if call.y not in self.trace.given:
            self.holders[call.y] += sign
        self.sides += sign * side_bytes(call)


def side_bytes(call: Call) -> int:
    """What the sides of a call take: nothing where the function is monotone."""
    known = ACTIVATIONS.get(call.known.function)
    return 0 if known is None or known.turn is None else (call.elements + 7) // 8


def can_keep_output(unit: Unit) -> bool:
    """Whether ours can stand in for every call and work from the output."""
    return not any(call.overwritten or _obstacle(call) for call in unit.calls)


def _obstacle(call: Call) -> str:
    """Why a call can't keep its output instead; empty if it can."""
    known = call.known
    if call.by_hand:
        return f'it is put together by hand: mishkit.swap it for "{known.function}" first'
    if not known.ours:
        return "mishkit has no such function"
    if known.state and not known.parameters:  # they are trained
        return "the gradients of its parameters need the input"
    try:
        ACTIVATIONS[known.function].turn_at(*known.values)
    except ValueError:
        return "with these parameters the output does not determine the gradient"
    return ""


def _may_write(unit: Unit, trace: Trace) -> bool:
    """Whether the unit writes over its input already, or nobody else can miss that."""
    if all(call.known.inplace for call in unit.calls):
        return True
    mine = {node for call in unit.calls for node in call.nodes}
    kept_by_others = {one.storage for one in trace.saved if one.node not in mine}
    hooked = any(
        isinstance(slot.value, nn.Module)
        and (slot.value._forward_hooks or slot.value._forward_pre_hooks)
        for slot in unit.slots
    )
    return not hooked and all(
        call.wants_grad
        and call.whole
        and not call.x_uses
        and call.x not in kept_by_others
        and call.x not in trace.outputs
        and call.x not in trace.given
        for call in unit.calls
    )


# ---- what is said of it ----


def _in_order(units: list[Unit]) -> Iterator[tuple[Unit, list[Call]]]:
    """A site each: calls from one line of code, but in different modules, are several sites."""
    for unit in units:
        by_place: dict[Any, list[Call]] = {}
        for call in unit.calls:
            by_place.setdefault(call.place, []).append(call)
        for calls in by_place.values():
            yield unit, calls


def _site(unit: Unit, calls: list[Call], trace: Trace, inplace: bool) -> Site:
    first = calls[0]
    nodes = {node for call in calls for node in call.nodes}
    size = trace.sizes
    own = {one.storage for one in trace.saved if one.node in nodes}
    others = [one for one in trace.saved if one.node not in nodes]
    shared = {one.storage for one in others} & own

    def keepers(storages: set[Storage]) -> tuple[str, ...]:
        found = (one for one in others if one.storage in storages)
        uses = (Use(trace.operators.get(one.node, ""), one.module, one.node) for one in found)
        return tuple(dict.fromkeys(_who(use, trace) for use in uses))

    outputs = {call.y for call in calls}
    output_kept_by, input_kept_by = keepers(outputs), keepers(own - outputs)
    kept, alone = sum(size[s] for s in own), sum(size[s] for s in own - shared)
    saving = 0
    if unit.lean:
        new = sum(side_bytes(call) for call in calls)
        new += sum(
            call.elements * call.dtype.itemsize
            for call in calls
            if call.y not in {one.storage for one in others}
        )
        saving = alone - new
    reason = _reason(unit, calls, trace, own, output_kept_by, input_kept_by)
    how = type(first.module).__name__ if isinstance(first.module, nn.Module) else "call"
    return Site(
        name=first.place.module,
        line=first.place.line,
        function=first.known.function,
        how="by hand" if first.by_hand else how,
        calls=len(calls),
        shape=tuple(first.shape),
        dtype=first.dtype,
        kept=kept,
        alone=alone,
        output_kept_by=output_kept_by,
        input_kept_by=input_kept_by,
        advice="output" if unit.lean else "leave",
        reason=reason,
        saving=saving,
        inplace=inplace,
    )


def _reason(
    unit: Unit,
    calls: list[Call],
    trace: Trace,
    own: set[Storage],
    output_kept_by: tuple[str, ...],
    input_kept_by: tuple[str, ...],
) -> str:
    """Why, in a few words."""
    if unit.lean:
        why = f"as {output_kept_by[0]} keeps it" if output_kept_by else "as it takes less"
        ours = calls[0].module is None and calls[0].known.save is not None
        return f'{why}: call it with save="output"' if ours else why
    if not any(call.nodes for call in calls):
        return "as no gradient passes here"
    if not own:
        return "as it keeps nothing"
    output = sum(call.elements * call.dtype.itemsize + side_bytes(call) for call in calls)
    if own & {call.y for call in calls} and sum(trace.sizes[s] for s in own) <= output:
        return "as it keeps its output already"
    obstacles = list(filter(None, (_obstacle(call) for call in unit.calls)))
    if obstacles:
        return f"as {obstacles[0]}"
    writers = [call.overwritten for call in unit.calls if call.overwritten is not None]
    if writers:
        return f"as {_who(writers[0], trace)} writes over its output"
    if input_kept_by:
        return f"as {input_kept_by[0]} keeps its input"
    readers = [use for call in calls for use in call.y_uses if use.operator not in _LOOKS]
    # Rather one that has a gradient, which might have kept it.
    readers.sort(key=lambda use: use.node is None)
    who = f"{_who(readers[0], trace)} does not keep" if readers else "nobody keeps"
    return f"as {who} its output"


_LOOKS = frozenset(
    (
        *(
            "alias",
            "as_strided",
            "chunk",
            "detach",
            "expand",
            "permute",
            "select",
            "slice",
            "split",
        ),
        *("split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view"),
        "_unsafe_view",
    )
)
"""Operators that only look at a tensor in another way."""

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
    """The module that does it, if it does nothing else, or the operator and where it is."""
    kind = trace.kinds.get(use.module)
    if kind is not None:
        return f"{kind} {use.module}".rstrip()
    name = use.operator.removesuffix("_")
    what = _WORDS.get(name, name)
    return f"{what} in {use.module}" if use.module else what


# ---- beside it: recomputing ----


def _blocks(model: nn.Module, places: set[str]) -> tuple[str, ...]:
    """Modules that are items of containers, are none themselves, and hold activations."""
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    modules = dict(model.named_modules())
    found: list[str] = []
    for name, module in modules.items():
        parent = modules.get(name.rpartition(".")[0])
        is_block = isinstance(parent, containers) and not isinstance(module, containers)
        holds = any(place.startswith(f"{name}.") for place in places)
        if is_block and holds and not any(name.startswith(f"{one}.") for one in found):
            found.append(name)
    return tuple(found)


def _checkpointed(
    model: nn.Module, blocks: tuple[str, ...], inputs: tuple[Any, ...], kwargs: dict[str, Any]
) -> int | None:
    """Bytes kept with a checkpoint around each block."""
    if not blocks:
        return None
    given = [*model.parameters(), *model.buffers(), *tensors_of((inputs, kwargs))]
    with ExitStack() as stack:
        for name in blocks:
            stack.enter_context(_checkpoint(model.get_submodule(name)))
        kept = stack.enter_context(KeptBytes(exclude=given))
        stack.enter_context(undisturbed(model))
        stack.enter_context(torch.enable_grad())
        try:
            output = model(*inputs, **kwargs)
        except Exception:  # whatever a model does that can't be done twice
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


def readable(count: int) -> str:
    """Bytes with a unit."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024  # type: ignore[assignment]
    return f"{count:.4g} GiB"
