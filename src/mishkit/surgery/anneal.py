"""Going over from one activation to another little by little, while a model is trained.

`Anneal` puts a `Blend`, or where there are functions a `BlendedFunction`, in the place of each
activation that its rules name: (1 − t)·old(x) + t·new(x), with one t for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._blend_ops import Fraction, call, function, mix
from ..modules import TrainableModule
from ..ops import is_exporting
from .known import Known, identify, identify_function
from .slots import Slot
from .swap import resolve

Schedule = Callable[[float], float]

_ANNEAL = "mishkit.Anneal"


def _linear(progress: float) -> float:
    return progress


def _cosine(progress: float) -> float:
    return (1 - math.cos(math.pi * progress)) / 2


SCHEDULES: dict[str, Schedule] = {"linear": _linear, "cosine": _cosine}
"""What t is by progress, from 0 to 1."""


# ---- sites -------------------------------------------------------------------------------------


class Blend(nn.Module):
    """(1 − t)·old(x) + t·new(x), in the place of the module `old`.

    Where mishkit has both functions, with parameters that are not trained, one kernel computes
    both, which keeps its input; otherwise both modules are called. Never in place, whatever `old`
    and `new` say. Input: what both take.

    The parameters, buffers and submodules of `old` are this module's own, under their own names, so
    that a state_dict keeps its keys; those of `new`, if it has any, are below `new`.
    """

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
        self.train(old.training)
        known = [identify(module) for module in self._both]
        self._fused = _are_fused(known) and not (old._parameters or new._parameters)
        self._numbers: tuple[Any, ...] | None = None
        if self._fused and not any(one is not None and one.state for one in known):
            self._numbers = (*_function(known[0]), *_function(known[1]))

    @property
    def fraction(self) -> float:
        """t: how far on the way from old to new."""
        return self._t.value

    def forward(self, input: Tensor) -> Tensor:
        numbers = self._numbers or self._read()
        if numbers is not None:
            return call(input, numbers, self._t)
        old, new = self._both
        # Hooks of the old module are this one's as long as it is here.
        return _both_called(input, old.forward, new, self._both, self._t)

    def _read(self) -> tuple[Any, ...] | None:
        """The functions with parameters from buffers, which may have changed."""
        if not self._fused:
            return None
        compiling = torch.compiler.is_compiling()
        numbers: list[Any] = []
        for module in self._both:
            if not isinstance(module, TrainableModule):
                numbers += _function(identify(module))
            elif compiling:  # which reads tensors when it runs
                own = (getattr(module, name) for name in module.parameter_names)
                numbers += function(module.activation.name, *own)
            else:
                numbers += function(module.activation.name, *module._values())
        if not compiling and any(isinstance(number, Tensor) for number in numbers):
            return None  # within a transform of theirs
        return tuple(numbers)

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
        old, new = self._both
        return f"t={self.fraction:g}, {old!r} -> {new!r}"


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


def _are_fused(known: Sequence[Known | None]) -> bool:
    return all(one is not None and one.ours for one in known)


def _function(known: Known | None) -> tuple[Any, ...]:
    """As the kernel takes it."""
    assert known is not None
    return function(known.function, *known.values)


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
        found, _ = resolve(model, rules, _ANNEAL)
        for slot, _ in found:
            if isinstance(slot.value, (Blend, BlendedFunction)):
                raise ValueError(f'{_ANNEAL}: "{slot.name}" is being annealed already')
        if not found:
            raise ValueError(f"{_ANNEAL}: there is nothing in the model for {dict(rules)!r}")
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
        for slot, blend, _ in self._sites:
            slot.put(blend)

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
            self.count += 1
            self._update()

    def finish(self) -> list[str]:
        """Put the new activations alone in their places, at once; the names of these places.

        Hooks and mode go over. What was put in a place since, or taken back by `mishkit.unswap`, is
        left as it is. Calling it twice is fine.
        """
        self.count = self.steps
        self._update()
        finished = []
        for slot, blend, new in self._sites:
            if getattr(slot.owner, slot.attribute, None) is blend:
                slot.put(new)
                finished.append(slot.name)
        return finished

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
        if schedule is not None:
            self._schedule = _checked_schedule(schedule)
        self.steps, self.count = steps, count
        self._update()

    def _update(self) -> None:
        self._t.set(_at(self._schedule, self.count / self.steps))

    def __repr__(self) -> str:
        return (
            f"Anneal({len(self._sites)} sites, step {self.count} of {self.steps}, "
            f"t={self.fraction:g})"
        )


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
