"""Move a model gradually from one activation to another during training.

`Anneal` replaces each activation that its rules match by a `Blend`, or by a `BlendedFunction` for a
function attribute: (1 − t)·old(x) + t·new(x), with the same t everywhere.
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
"""t as a function of progress; both go from 0 to 1."""


# ---- sites -------------------------------------------------------------------------------------


class Blend(Unscriptable):
    """(1 − t)·old(x) + t·new(x), in the place of the module `old`.

    If mishkit has both functions and their parameters are not trained, one kernel computes both and
    keeps its input; otherwise both modules are called. Never works in place, whatever `old` and
    `new` say. Accepts any input that both accept.

    The parameters, buffers and submodules of `old` are also this module's, under the same names, so
    the keys of a state_dict stay the same. Those of `new`, if it has any, are under `new`.
    """

    way_out = "torch.jit.trace the model once the annealing is finished"

    _is_blend = True

    def __init__(self, old: nn.Module, new: nn.Module, t: Fraction) -> None:
        super().__init__()
        # Share the dictionaries of `old`, so that moving or replacing a tensor here does so there
        # too.
        for name in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
            vars(self)[name] = vars(old)[name]
        vars(self)["_modules"] = dict(old._modules)
        self._both = (old, new)  # a tuple, so that they don't become submodules
        self._t = t
        if [*new.parameters(), *new.buffers()]:
            self.add_module("new", new)
        # Set directly: train() would also change the submodules, which have modes of their own.
        self.training = old.training
        if new.training != old.training:
            new.train(old.training)
        known = [identify(module) for module in self._both]
        self._fused = _are_fused(known) and not (old._parameters or new._parameters)
        may_change = any(activation is not None and activation.parameters for activation in known)
        self._numbers = None if may_change or not self._fused else self._read()

    @property
    def fraction(self) -> float:
        """t: how far the module has moved from old to new."""
        return self._t.value

    def forward(self, input: Tensor) -> Tensor:
        if self._fused:
            return call(input, self._numbers or self._read(), self._t)
        old, new = self._both
        # While this module is in place, it has the hooks of the old one, so call forward directly.
        return _both_called(input, old.forward, new, self._both, self._t)

    def _read(self) -> tuple[Any, ...]:
        """Both functions, with the current values of their parameters."""
        old, new = self._both
        return (*_function(identify(old)), *_function(identify(new)))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for module, below in zip(self._both, ("", "new."), strict=True):
            if isinstance(module, TrainableModule):
                state_dict = module.take_numbers(state_dict, prefix + below, args[-1])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> Blend:
        """As for any module; `old` and `new` follow."""
        super().train(mode)
        old, new = self._both
        old.training = mode  # its submodules are also this module's
        new.train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Blend:
        super()._apply(fn, recurse)
        self._t.place(fn(torch.empty(0)).device)
        return self

    def extra_repr(self) -> str:
        """t, the old and the new activation."""
        old, new = map(describe, self._both)
        return f"t={self.fraction:g}, {old} -> {new}"


class BlendedFunction:
    """(1 − t)·old(x) + t·new(x), in the place of the function `old`: see `Blend`."""

    def __init__(self, old: Callable[..., Tensor], new: Callable[..., Tensor], t: Fraction) -> None:
        self._both = (old, new)
        self._t = t
        known = [identify_function(activation) for activation in self._both]
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
    """Every blend in a model, with its slot."""
    blends: list[tuple[Slot, Blend | BlendedFunction]] = []
    for path, owner in model.named_modules():
        for attribute, value in {**vars(owner), **owner._modules}.items():
            if isinstance(value, (Blend, BlendedFunction)):
                name = f"{path}.{attribute}".lstrip(".")
                blends.append((Slot(name, owner, attribute, value, None), value))
    return blends


def _are_fused(known: Sequence[Known | None]) -> bool:
    return all(activation is not None and activation.ours for activation in known)


def _function(known: Known | None) -> tuple[Any, ...]:
    """A function in the form that the kernel takes."""
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
    """The blend of any two functions; `owners` tell whether they work in place."""

    def value_of(index: int) -> Tensor:
        writes = _works_in_place(owners[index])
        return (old, new)[index](x.clone() if writes else x)

    if torch.compiler.is_compiling() and not is_exporting():
        return mix(value_of(0), value_of(1), t.on(x.device))
    value = t.value
    if 0 < value < 1:
        return mix(value_of(0), value_of(1), value)
    final, other = (1, 0) if value else (0, 1)
    y = value_of(final)
    if not _is_trained(owners[other]):
        return y
    # DDP waits for the gradients of all parameters, even if they are 0.
    return torch.where(torch.ones((), dtype=torch.bool, device=y.device), y, value_of(other))


def _works_in_place(owner: Any) -> bool:
    if isinstance(owner, nn.Module):
        return bool(getattr(owner, "inplace", False))
    known = identify_function(owner)
    return known is not None and known.inplace


def _is_trained(owner: Any) -> bool:
    return isinstance(owner, nn.Module) and any(p.requires_grad for p in owner.parameters())


# ---- the whole model ---------------------------------------------------------------------------


class Anneal:
    """Move a model gradually from one activation to another during training.

    Each site that the rules match computes (1 − t)·old(x) + t·new(x), with the same t everywhere: 0
    at first, and 1 after `steps` calls of `step`. `finish` leaves only the new activations, as
    `mishkit.swap` would have put them in. `mishkit.unswap` restores the original model, after that
    or at any time before.

    Copies made with `copy.deepcopy`, such as the averages that
    `torch.optim.swa_utils.AveragedModel` and others keep, follow the model: they always have the
    same t. ``finish(copy)`` puts the new activations into them. To copy a model so that its t no
    longer follows, copy both, ``copy.deepcopy((model, anneal))``, or pickle them.

    If mishkit has both functions, a site is one kernel. It computes in float32 (float64 for
    float64), keeps its input for the backward pass and is differentiable to any order.
    torch.compile compiles a model once for all t; torch.export exports it with the current t.

    A model's parameters and the keys of its state_dict stay the same. New activations with
    parameters or buffers have these under the site's name and ``new`` until `finish`; create the
    optimizer after the `Anneal`.

    Parameters
    ----------
    model : torch.nn.Module
        the model, whose modules and attributes are replaced; not itself an activation
    rules : mapping
        what to replace by what, as for `mishkit.swap`
    steps : int
        how many steps it takes from the old activations to the new
    schedule : "linear", "cosine" or callable, default "linear"
        t as a function of progress p, the share of the steps that are done: p, (1 − cos πp)/2, or a
        function that returns a number from 0 to 1 for p, and 1 for 1

    Attributes
    ----------
    sites : list of str
        the names of the sites being annealed
    left : dict
        sites that a rule matches by class but that do something else, by name, with the reasons:
        see `mishkit.swap`
    steps, count : int
        the total number of steps, and the number taken

    Raises
    ------
    ValueError
        if the rules match no site or a site that is already being annealed, if `steps` or
        `schedule` is invalid, and for what `mishkit.swap` rejects. The model is then unchanged.
    TypeError
        if `model` is not a module, or as for `mishkit.swap`
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
        resolved, _, self.left = resolve(model, rules, _ANNEAL)
        for slot, _ in resolved:
            if isinstance(slot.value, (Blend, BlendedFunction)):
                raise ValueError(f'{_ANNEAL}: "{slot.name}" is being annealed already')
        if not resolved:
            reasons = "".join(f"; {name} is left: {reason}" for name, reason in self.left.items())
            raise ValueError(
                f"{_ANNEAL}: there is nothing in the model for {dict(rules)!r}{reasons}"
            )
        devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
        self._t = Fraction(_at(self._schedule, 0.0), (d for d in devices if d.type != "meta"))
        blends: dict[int, Blend] = {}
        self._sites: list[tuple[Slot, Any, Any]] = []
        for slot, new in resolved:
            old = slot.value
            blend: Any
            if isinstance(old, nn.Module):
                # What several sites share stays shared.
                blend = blends.get(id(old)) or blends.setdefault(id(old), Blend(old, new, self._t))
            else:
                blend = BlendedFunction(old, new, self._t)
            self._sites.append((slot, blend, blend._both[1]))
        with explained(_ANNEAL):
            put_all((slot, blend) for slot, blend, _ in self._sites)

    @property
    def sites(self) -> list[str]:
        """The names of the sites being annealed."""
        return [slot.name for slot, _, _ in self._sites]

    @property
    def fraction(self) -> float:
        """t, from 0 (the old activations) to 1 (the new)."""
        return self._t.value

    @property
    def done(self) -> bool:
        """Whether all steps have been taken."""
        return self.count >= self.steps

    def step(self) -> None:
        """Advance by one step; call it after each optimizer step. Does nothing once `done`."""
        if not self.done:
            self._go_to(self.count + 1, self.steps, self._schedule)

    def finish(self, *copies: nn.Module) -> list[str]:
        """Put only the new activations in place, at once; returns the names of the sites.

        Hooks and training mode are carried over. A site that was replaced since, or restored by
        `mishkit.unswap`, is left as it is. Calling it twice is fine.

        Parameters
        ----------
        *copies : torch.nn.Module
            deep copies of the model, such as averages of it, or modules that contain such copies;
            the same is done in them. They compute the new activations from now on anyway, but would
            still hold the old ones.

        Raises
        ------
        TypeError
            if a copy is not a module
        ValueError
            if the `forward` of a site was replaced

        If anything is raised, nothing has changed.
        """
        current = [
            (slot, new)
            for slot, blend, new in self._sites
            if getattr(slot.owner, slot.attribute, None) is blend
        ]
        changes = list(current)
        for copied in copies:
            if not isinstance(copied, nn.Module):
                raise TypeError(f"{_ANNEAL}: a copy must be a module, not {type(copied).__name__}")
            changes += [(s, b._both[1]) for s, b in _blends(copied) if b._t is self._t]
        with explained(_ANNEAL):
            put_all(changes)
        self._go_to(self.steps, self.steps, self._schedule)
        return [slot.name for slot, _ in current]

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to continue from here: plain numbers and a string.

        The keys are "count", "steps" and "schedule", which is None if the schedule is a function.
        The model's own state is not included; save it with the model's state_dict.
        """
        names = {function: name for name, function in SCHEDULES.items()}
        return {
            "count": self.count,
            "steps": self.steps,
            "schedule": names.get(self._schedule),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the point at which `state_dict` was called, with its steps and schedule.

        Raises ValueError and changes nothing if `state` did not come from `state_dict`.
        """
        keys = {"count", "steps", "schedule"}
        if not isinstance(state, Mapping) or set(state) != keys:
            raise ValueError(f"{_ANNEAL}: a state has {', '.join(sorted(keys))}, and not {state!r}")
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
        """An independent copy: blends copied along with it follow this copy from now on."""
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
    # Anything closer to 1 than 1 − 2⁻²⁴, the last float32 before 1, counts as 1.
    return 0.0 if t < 0 else 1.0 if t > 1 - 1e-7 else t
