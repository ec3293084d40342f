"""Keep outputs instead of inputs where an audit says that this saves memory."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._checkpoint import in_checkpoint
from .._progress import make_room, progress, step
from ..functional import FUNCTIONS
from ..memory import has_data
from ..recompute.model import attach, detach
from .audit import Unit, can_compute, plan
from .budget import Point, curve_of
from .norms import norms_in
from .report import LEAN, AdvisedCalls, Report, readable
from .slots import Slot, put_all
from .watch import convertible, line_of_model, on_modules, tensors_of, watch


def lean(
    model: nn.Module,
    *inputs: Any,
    recompute: bool | None = None,
    inplace: bool = False,
    budget: float | None = None,
    **kwargs: Any,
) -> Report:
    """Make a model keep less between the forward and the backward pass.

    From then on the model's own forward pass keeps nothing that the backward pass can recompute
    cheaply, as within `mishkit.recompute`, and activations for which mishkit has a faster kernel
    get it. Those whose output the pass only multiplies by another tensor, as SwiGLU does, are
    computed together with that product, by `mishkit.gate`. On CPUs, RMS norms that a model computes
    step by step, as those of transformers do, run in one pass. Gradients stay exact: nothing is
    rounded that was not before. Module names, state_dict, hooks and training mode stay the same;
    `mishkit.unswap` undoes everything.

    A model without data, on ``torch.device("meta")`` or under a FakeTensorMode, is changed in the
    same way, and its report counts the bytes that it would keep.

    With ``recompute=False`` activations keep their outputs instead, where an audit says that this
    saves memory (see `audit`). ReLU, SiLU, GELU, Mish, Hardswish and Softplus from torch, timm and
    transformers, modules without parameters that compute these by hand, and mishkit's own modules,
    become mishkit's with ``save="output"``. This saves less and takes no longer. Gradients are
    those of the rounded output: see `mishkit.functional`. For function calls, use
    `lean_functional`.

    Parameters
    ----------
    model : torch.nn.Module
        changed in place
    *inputs, **kwargs
        arguments of the model, as in training
    recompute : bool, optional
        Whether to recompute; by default True, unless `inplace`. Hooks on the model do that, in
        every thread. Copies, pickles and the state_dict work as before. Activations get kernels
        with ``save="input"``, or with ``save="copy"`` if they work in place. Under torch.compile,
        torch.export and the transforms of torch.func, without gradients, and within
        `torch.utils.checkpoint`, the model runs as before.
    inplace : bool, default False
        With ``recompute=False``: also overwrite an activation's input where nothing else needs it.
        This saves no more of what is kept between the passes, but allocates less. The input must
        come from torch's Linear, Conv, BatchNorm, LayerNorm, GroupNorm or RMSNorm, and the
        activation must take that very tensor, whole, in the same ``forward``. Nothing else may read
        it, hold it after the pass or have a hook on it, in training and in eval mode alike; the
        model is run in both modes to check. Other inputs or options, and hooks and checkpoints
        added later, are not seen: leave this off if they matter. Modules that already work in place
        keep doing so.
    budget : int or float, optional
        How much the model may keep, as a number of bytes, or as a share from 0 to 1 of what it
        keeps now. Only as much is recomputed as this requires, beginning with what takes the least
        time for each byte saved, as a few passes measure it. If recomputing everything else is not
        enough, the matrix products of linear layers run again too, where their input is kept or
        cheap to recompute. The report's `curve` shows what other budgets would cost.

    Returns
    -------
    Report
        The audit before the change. `changed` lists the sites that were changed. The first line
        that ``print`` shows says how many there are, and how many sites need more than `lean`.

    Raises
    ------
    TypeError
        if `model` is not a module
    ValueError
        if its parameters are not initialized yet, as in lazy modules; if both `inplace` and
        `recompute` are given; if there is a `budget` without `recompute`, or it is not positive,
        or there is nothing to measure because tensors are fake or on the meta device

    Warns
    -----
    UserWarning
        if recomputing saves nothing here; the model is then left as it was. If the model keeps more
        than the budget even when it recomputes all that it can.

    If anything is raised, nothing has been changed.
    """
    recompute = not inplace if recompute is None else recompute
    if recompute and inplace:
        raise ValueError("mishkit.lean: recompute=True and inplace=True exclude each other")
    if budget is not None and not (recompute and budget > 0):
        raise ValueError("mishkit.lean: budget must be positive, and needs recompute=True")
    if budget is not None and not all(map(has_data, _tensors(model, inputs, kwargs))):
        raise ValueError("mishkit.lean: a budget needs times, and meta and fake tensors take none")
    with progress("mishkit.lean", steps=0):
        if recompute:
            return _recompute(model, inputs, kwargs, budget)
        planned = plan(model, inputs, kwargs, inplace=inplace)
    units = [unit for unit in planned.units if unit.lean and unit.by == LEAN]
    put_all(_changes(units, exact=False))
    changed = tuple(site.name for site in planned.report.sites if site.by == LEAN)
    return dataclasses.replace(planned.report, changed=changed)


def _tensors(model: nn.Module, inputs: Any, kwargs: Any) -> Iterator[Tensor]:
    yield from tensors_of((inputs, kwargs))
    if isinstance(model, nn.Module):
        yield from model.parameters()
        yield from model.buffers()


def _recompute(
    model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], budget: float | None
) -> Report:
    planned = plan(model, inputs, kwargs)
    changes = _changes([unit for unit in planned.units if can_compute(unit)], exact=True)
    norms = list(norms_in(model))
    before = [(slot, slot.value) for slot, _ in changes + norms]
    root = getattr(model, "_orig_mod", model)
    unchanged = dataclasses.replace(
        planned.report,
        recomputes=True,
        changed=(),
        lean=planned.report.kept,
        after_lean=planned.report.kept,
    )
    limit = int(budget * planned.report.kept) if isinstance(budget, float) else budget
    if limit is not None and limit >= planned.report.kept:
        return unchanged

    def put_back() -> None:
        detach(root)
        put_all(before)

    put_all(changes + norms)
    try:
        points: tuple[Point, ...] = ()
        choice = None
        if limit is not None:
            with curve_of(root, inputs, kwargs, limit) as curve:
                points, choice = tuple(curve.points), curve.choice()
        attach(root, choice)
        step("a pass that recomputes", more=1)
        kept = watch(root, inputs, kwargs).kept
    except BaseException:
        put_back()
        raise
    if kept >= planned.report.kept:
        put_back()
        _warn("nothing that this model keeps can be recomputed")
        return unchanged
    if limit is not None and kept > limit:
        _warn(
            f"the model keeps {readable(kept)} at least, more than the budget of {readable(limit)}"
        )
    return dataclasses.replace(
        unchanged,
        changed=tuple(slot.name for slot, _ in changes),
        norms=tuple(slot.name.removesuffix(".forward") for slot, _ in norms),
        lean=kept,
        after_lean=kept,
        curve=points,
    )


def _warn(message: str) -> None:
    make_room()
    warnings.warn(f"mishkit.lean: {message}", stacklevel=4)


def _changes(units: list[Unit], *, exact: bool) -> list[tuple[Slot, Any]]:
    """What goes into the slots: one replacement per unit, even if several slots hold the unit.

    The replacements work from the input if `exact`, otherwise from the output.
    """
    replacements = [(unit, _replacement(unit, exact)) for unit in units]
    return [(slot, new) for unit, new in replacements for slot in unit.slots]


def _replacement(unit: Unit, exact: bool) -> nn.Module | Callable[..., Tensor]:
    slot: Slot = unit.slots[0]
    known = slot.known
    assert known is not None
    if exact and unit.gates and not unit.inplace:
        return known.gating_module() if isinstance(slot.value, nn.Module) else known.gating_call()
    make = known.module if isinstance(slot.value, nn.Module) else known.call
    save = ("copy" if unit.inplace else "input") if exact else "output"
    return make(inplace=unit.inplace, save=save)


@contextmanager
def lean_functional(report: Report | None = None) -> Iterator[None]:
    """Make torch's activation functions keep their outputs; for models that call them.

    ``with mishkit.lean_functional(): loss = model(x).sum()`` replaces `torch.nn.functional.silu`,
    gelu, mish, hardswish and softplus, however they are imported, by mishkit's with
    ``save="output"``. This affects everything computed forward inside the block, including in
    modules. The backward pass may come later. The setting is per thread. For calls of mishkit's own
    functions, pass ``save="output"`` yourself. Whatever `torch.utils.checkpoint` runs is left
    alone, because it runs again in the backward pass, outside this context.

    Parameters
    ----------
    report : Report, optional
        From an audit. Only the calls for which the report advises it are changed; they are
        identified by module, line of code and function, in the audited model or in parts of it.
        Without a report all calls are changed, which costs memory where it does not pay off: one
        bit per element, or the whole output if something else keeps the input.

    Raises
    ------
    TypeError
        if `report` is not a Report
    ValueError
        if `report` was pickled and so no longer knows the modules of its model
    """
    if report is not None and not isinstance(report, Report):
        raise TypeError(
            f"mishkit.lean_functional: report must be of an audit, not {type(report).__name__}"
        )
    if report is not None and report.advised.is_lost:
        raise ValueError(
            "mishkit.lean_functional: a report that was pickled does not know its model; audit it"
        )
    with ExitStack() as stack:
        if report is None:
            stack.enter_context(_Lean())
        else:
            advised = _Advised(report.advised)
            for handle in on_modules(advised.before, advised.after):
                stack.callback(handle.remove)
            stack.enter_context(advised)
        yield


class _Lean(TorchFunctionMode):
    """Replaces all of torch's functions that ours can stand in for."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = convertible(func, args, kwargs)
        if not name or in_checkpoint() or not self.takes(name):
            return func(*args, **kwargs)
        return FUNCTIONS[name](*args, **kwargs, save="output")

    def takes(self, function: str) -> bool:
        """Whether to change this call."""
        return True


class _Advised(_Lean):
    """The same, but only for the calls that a report advises to change."""

    def __init__(self, calls: AdvisedCalls) -> None:
        super().__init__()
        self.calls, self.thread = calls, get_ident()
        self.modules: list[nn.Module] = []

    def before(self, module: nn.Module, args: Any) -> None:
        """Called before a module's forward."""
        if get_ident() == self.thread:
            self.modules.append(module)

    def after(self, module: nn.Module, *_args_and_output: Any) -> None:
        """Called when the module's forward returns or raises."""
        if get_ident() == self.thread and self.modules and self.modules[-1] is module:
            self.modules.pop()

    def takes(self, function: str) -> bool:
        """Whether the report advises the change for this function on this line in this module."""
        module = self.modules[-1] if self.modules else None
        return self.calls.has(module, line_of_model(), function)
