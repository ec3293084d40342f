"""Going over from one activation to another little by little, while a model is trained.

`Anneal` puts a `Blend`, or where there are functions a `BlendedFunction`, in the place of each
activation that its rules name: (1 − t)·old(x) + t·new(x), with one t for all of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._mode import is_exporting
from .._modules import TrainableModule, Unscriptable
from ..functions import ACTIVATIONS
from ..ops.blend import Fraction, call, function, mix
from .known import Known, identify, identify_function
from .slots import Slot, put_all
from .swap import describe, explained, resolve

Schedule = Callable[[float], float]

_ANNEAL = "mishkit.Anneal"


def _linear(progress: float) -> float:
    return progress


def _cosine(progress: float) -> float:
    return (1 - math.cos(math.pi * progress)) / 2


SCHEDULES: dict[str, Schedule] = {"linear": _linear, "cosine": _cosine}
"""What t is by progress, from 0 to 1."""


# ---- sites -------------------------------------------------------------------------------------


class Blend(Unscriptable):
    """(1 − t)·old(x) + t·new(x), in the place of the module `old`.

    Where mishkit has both functions, with parameters that are not trained, one kernel computes
    both, which keeps its input; otherwise both modules are called. Never in place, whatever `old`
    and `new` say. Input: what both take.

    The parameters, buffers and submodules of `old` are this module's own, under their own names, so
    that a state_dict keeps its keys; those of `new`, if it has any, are below `new`.
    """

    way_out = "torch.jit.trace the model once the annealing is finished"

    _is_blend = True

    def __init__(self, old: nn.Module, new: nn.Module, t: Fraction) -> None:
        super().__init__()
        # The very dictionaries of `old`, so that what moves or replaces a tensor here does there.
        for name in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
            vars(self)[name] = vars(old)[name]
        vars(self)["_modules"] = dict(old._modules)
        self._both = (old, new)  # in a tuple, or they would be submodules
        self._t = t
        if [*new.parameters(), *new.buffers()]:
            self.add_module("new", new)
        # And not train(), which would tell the submodules: these have modes of their own.
        self.training = old.training
        if new.training != old.training:
            new.train(old.training)
        known = [identify(module) for module in self._both]
        self._fused = _are_fused(known) and not (old._parameters or new._parameters)
        may_change = any(one is not None and one.parameters for one in known)
        self._numbers = None if may_change or not self._fused else self._read()

    @property
    def fraction(self) -> float:
        """t: how far on the way from old to new."""
        return self._t.value

    def forward(self, input: Tensor) -> Tensor:
        if self._fused:
            return call(input, self._numbers or self._read(), self._t)
        old, new = self._both
        # Hooks of the old module are this one's as long as it is here.
        return _both_called(input, old.forward, new, self._both, self._t)

    def _read(self) -> tuple[Any, ...]:
        """Both functions, with what their parameters are now."""
        old, new = self._both
        return (*_function(identify(old)), *_function(identify(new)))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for module, below in zip(self._both, ("", "new."), strict=True):
            if isinstance(module, TrainableModule):
                state_dict = module.take_numbers(state_dict, prefix + below, args[-1])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> Blend:
        """As any module; `old` and `new` follow."""
        super().train(mode)
        old, new = self._both
        old.training = mode  # its submodules are this one's
        new.train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Blend:
        super()._apply(fn, recurse)
        self._t.place(fn(torch.empty(0)).device)
        return self

    def extra_repr(self) -> str:
        """t, and what goes over into what."""
        old, new = map(describe, self._both)
        return f"t={self.fraction:g}, {old} -> {new}"


class BlendedFunction:
    """(1 − t)·old(x) + t·new(x), in the place of the function `old`: see `Blend`."""

    def __init__(self, old: Callable[..., Tensor], new: Callable[..., Tensor], t: Fraction) -> None:
        self._both = (old, new)
        self._t = t
        known = [identify_function(one) for one in self._both]
        fused = _are_fused(known)
        self._numbers = (*_function(known[0]), *_function(known[1])) if fused else None

    def __call__(self, input: Tensor) -> Tensor:
        if self._numbers is not None:
            return call(input, self._numbers, self._t)
        return _both_called(input, *self._both, self._both, self._t)

    def __repr__(self) -> str:
        old, new = self._both
        return f"BlendedFunction(t={self._t.value:g}, {old!r} -> {new!r})"


def _blends(model: nn.Module) -> list[tuple[Slot, Blend | BlendedFunction]]:
    """Every blend in a model, and where it is."""
    found: list[tuple[Slot, Blend | BlendedFunction]] = []
    for path, owner in model.named_modules():
        for attribute, value in {**vars(owner), **owner._modules}.items():
            if isinstance(value, (Blend, BlendedFunction)):
                name = f"{path}.{attribute}".lstrip(".")
                found.append((Slot(name, owner, attribute, value, None), value))
    return found


def _are_fused(known: Sequence[Known | None]) -> bool:
    return all(one is not None and one.ours for one in known)


def _function(known: Known | None) -> tuple[Any, ...]:
    """As the kernel takes it."""
    assert known is not None
    values = known.values
    ACTIVATIONS[known.function].check(*values)
    return function(known.function, *values)


def _both_called(
    x: Tensor,
    old: Callable[[Tensor], Tensor],
    new: Callable[[Tensor], Tensor],
    owners: tuple[Any, Any],
    t: Fraction,
) -> Tensor:
    """The blend of any two functions; `owners` know whether they work in place."""

    def of(which: int) -> Tensor:
        writes = _works_in_place(owners[which])
        return (old, new)[which](x.clone() if writes else x)

    if torch.compiler.is_compiling() and not is_exporting():
        return mix(of(0), of(1), t.on(x.device))
    value = t.value
    if 0 < value < 1:
        return mix(of(0), of(1), value)
    wanted, other = (1, 0) if value else (0, 1)
    y = of(wanted)
    if not _is_trained(owners[other]):
        return y
    # DDP waits for the gradients of all parameters, even if they are 0.
    return torch.where(torch.ones((), dtype=torch.bool, device=y.device), y, of(other))


def _works_in_place(owner: Any) -> bool:
    if isinstance(owner, nn.Module):
        return bool(getattr(owner, "inplace", False))
    known = identify_function(owner)
    return known is not None and known.inplace


def _is_trained(owner: Any) -> bool:
    return isinstance(owner, nn.Module) and any(p.requires_grad for p in owner.parameters())


# ---- the whole model ---------------------------------------------------------------------------


class Anneal:
    """Take a model from one activation to another little by little, while it is trained.

    Each site that the rules name computes (1 − t)·old(x) + t·new(x), with one t for all: 0 at
    first, and 1 after `steps` calls of `step`. `finish` leaves the new activations alone, as
    `mishkit.swap` would have put them. `mishkit.unswap` takes the model back to what it was, from
    there or on the way.

    Copies by `copy.deepcopy`, as the averages that `torch.optim.swa_utils.AveragedModel` and others
    keep, go along with the model: t is the same in them, always. ``finish(copy)`` puts the new
    activations in them. What is to stay as it is now is copied with this,
    ``copy.deepcopy((model, anneal))``, or pickled.

    Where mishkit has both functions a site is one kernel, which computes in float32 (float64 for
    float64), keeps its input for backward and is differentiable to any order. torch.compile
    compiles a model once for all t; torch.export exports it with the t of the moment.

    A model's parameters stay what and where they are, and so do the keys of its state_dict. New
    activations that have parameters or buffers have them below the site's name and ``new`` until
    `finish`; make the optimizer after this.

    Parameters
    ----------
    model : torch.nn.Module
        the model, whose modules and attributes are replaced; not an activation itself
    rules : mapping
        what becomes of what, as for `mishkit.swap`
    steps : int
        how many steps there are from the old activations to the new
    schedule : "linear", "cosine" or callable, default "linear"
        t by progress p, which is the share of the steps that is done: p, (1 − cos πp)/2, or a
        function that gives a number from 0 to 1 for it, and 1 for 1

    Attributes
    ----------
    sites : list of str
        the names of the places that are annealed
    left : dict
        the names of places that the rules are for by their class, but that do something else, and
        why: see `mishkit.swap`
    steps, count : int
        how many steps there are, and how many were taken

    Raises
    ------
    ValueError
        if the rules name no site, or one that is being annealed already, or `steps` or `schedule`
        is none; and for what `mishkit.swap` refuses. The model is untouched then.
    TypeError
        if `model` is no module, or as `mishkit.swap`
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Mapping[Any, Any],
        steps: int,
        schedule: str | Schedule = "linear",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"{_ANNEAL}: the model must be a module, not {type(model).__name__}")
        self.steps = _checked_steps(steps)
        self._schedule = _checked_schedule(schedule)
        self.count = 0
        found, _, self.left = resolve(model, rules, _ANNEAL)
        for slot, _ in found:
            if isinstance(slot.value, (Blend, BlendedFunction)):
                raise ValueError(f'{_ANNEAL}: "{slot.name}" is being annealed already')
        if not found:
            left = "".join(f"; {name} is left: {reason}" for name, reason in self.left.items())
            raise ValueError(f"{_ANNEAL}: there is nothing in the model for {dict(rules)!r}{left}")
        devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
        self._t = Fraction(_at(self._schedule, 0.0), (d for d in devices if d.type != "meta"))
        blends: dict[int, Blend] = {}
        self._sites: list[tuple[Slot, Any, Any]] = []
        for slot, new in found:
            old = slot.value
            blend: Any
            if isinstance(old, nn.Module):
                # What several places share they go on sharing.
                blend = blends.get(id(old)) or blends.setdefault(id(old), Blend(old, new, self._t))
            else:
                blend = BlendedFunction(old, new, self._t)
            self._sites.append((slot, blend, blend._both[1]))
        with explained(_ANNEAL):
            put_all((slot, blend) for slot, blend, _ in self._sites)

    @property
    def sites(self) -> list[str]:
        """The names of the places that are annealed."""
        return [slot.name for slot, _, _ in self._sites]

    @property
    def fraction(self) -> float:
        """t, from 0 (the old activations) to 1 (the new)."""
        return self._t.value

    @property
    def done(self) -> bool:
        """Whether all steps were taken."""
        return self.count >= self.steps

    def step(self) -> None:
        """Go on by one step, after each of the optimizer's; once `done`, nothing happens."""
        if not self.done:
            self._go_to(self.count + 1, self.steps, self._schedule)

    def finish(self, *copies: nn.Module) -> list[str]:
        """Put the new activations alone in their places, at once; the names of these places.

        Hooks and mode go over. What was put in a place since, or taken back by `mishkit.unswap`, is
        left as it is. Calling it twice is fine.

        Parameters
        ----------
        *copies : torch.nn.Module
            deep copies of the model, or what holds such, in which the same is done: averages of it.
            They compute the new activations anyway from now on, with the old ones beside them.

        Raises
        ------
        TypeError
            if a copy is no module
        ValueError
            if the `forward` of a place was replaced

        Whatever is raised, nothing has changed.
        """
        found = [
            (slot, new)
            for slot, blend, new in self._sites
            if getattr(slot.owner, slot.attribute, None) is blend
        ]
        changes = list(found)
        for one in copies:
            if not isinstance(one, nn.Module):
                raise TypeError(f"{_ANNEAL}: a copy must be a module, not {type(one).__name__}")
            changes += [(s, b._both[1]) for s, b in _blends(one) if b._t is self._t]
        with explained(_ANNEAL):
            put_all(changes)
        self._go_to(self.steps, self.steps, self._schedule)
        return [slot.name for slot, _ in found]

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on from here: plain numbers and a string.

        "count", "steps" and "schedule"; the last is None for a schedule that is a function. The
        model's own state_dict is the model's affair.
        """
        names = {function: name for name, function in SCHEDULES.items()}
        return {
            "count": self.count,
            "steps": self.steps,
            "schedule": names.get(self._schedule),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was called, with its steps and its schedule.

        Raises ValueError, and changes nothing, for what `state_dict` did not give.
        """
        wanted = {"count", "steps", "schedule"}
        if not isinstance(state, Mapping) or set(state) != wanted:
            raise ValueError(
                f"{_ANNEAL}: a state has {', '.join(sorted(wanted))}, and not {state!r}"
            )
        steps, count, schedule = (state[name] for name in ("steps", "count", "schedule"))
        steps = _checked_steps(steps)
        if not isinstance(count, int) or not 0 <= count <= steps:
            raise ValueError(f"{_ANNEAL}: count must be from 0 to {steps}, not {count!r}")
        function = self._schedule if schedule is None else _checked_schedule(schedule)
        self._go_to(count, steps, function)

    def _go_to(self, count: int, steps: int, schedule: Schedule) -> None:
        self._t.set(_at(schedule, count / steps))
        self.count, self.steps, self._schedule = count, steps, schedule

    def __deepcopy__(self, memo: dict[int, Any]) -> Anneal:
        """Of its own: the copies of its blends, made with it, go by this copy from now on."""
        copied = memo[id(self)] = object.__new__(type(self))
        vars(copied).update(copy.deepcopy(vars(self), memo))
        copied._t = self._t.another()
        for _, blend, _ in copied._sites:
            blend._t = copied._t
        return copied

    def __repr__(self) -> str:
        sites = f"{len(self._sites)} site{'' if len(self._sites) == 1 else 's'}"
        return f"Anneal({sites}, step {self.count} of {self.steps}, t={self.fraction:g})"


def _checked_steps(steps: int) -> int:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"{_ANNEAL}: steps must be a number of at least 1, not {steps!r}")
    return steps


def _checked_schedule(schedule: str | Schedule) -> Schedule:
    if callable(schedule):
        last = _at(schedule, 1.0)
        if last != 1:
            raise ValueError(f"{_ANNEAL}: the schedule must end with 1, not {last:g}")
        return schedule
    if schedule not in SCHEDULES:
        known = ", ".join(f'"{name}"' for name in SCHEDULES)
        raise ValueError(f"{_ANNEAL}: the schedule must be {known} or a function, not {schedule!r}")
    return SCHEDULES[schedule]


def _at(schedule: Schedule, progress: float) -> float:
    t = float(schedule(progress))
    if not -1e-6 <= t <= 1 + 1e-6:
        raise ValueError(
            f"{_ANNEAL}: the schedule must give a number from 0 to 1, not {t!r} for {progress}"
        )
    # 1 − 2⁻²⁴ is the last number before 1 that counts.
    return 0.0 if t < 0 else 1.0 if t > 1 - 1e-7 else t
