"""Keeping outputs instead of inputs, where an audit says that it pays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._checkpoint import in_checkpoint
from ..functional import FUNCTIONS
from .audit import LEAN, AdvisedCalls, Report, Unit, plan
from .slots import Slot, put_all
from .watch import convertible, line_of_model, on_modules


def lean(model: nn.Module, *inputs: Any, inplace: bool = False, **kwargs: Any) -> Report:
    """Let a model's activations keep their outputs wherever that saves memory, and only there.

    Audits the model (see `audit`) and follows the advice for modules: torch's, timm's and
    transformers' ReLU, SiLU, GELU, Mish, Hardswish and Softplus, and mishkit's own, become
    mishkit's with ``save="output"``. Names of modules, state_dict, hooks and mode stay, and so do
    the outputs, to rounding. Gradients are those of the rounded output: see `mishkit.functional`.
    `mishkit.unswap` takes everything back. For calls of functions there is `lean_functional`.

    Parameters
    ----------
    model : torch.nn.Module
        is changed
    *inputs, **kwargs
        what it takes, as in training
    inplace : bool, default False
        Also write over the input where nobody can miss it, which saves no more of what is kept but
        allocates less. Torch's Linear, Conv, BatchNorm, LayerNorm, GroupNorm or RMSNorm must have
        made it, and the activation must take that very tensor, whole, in the same ``forward``.
        Nobody else may look at it, hold it after the pass or have a hook there, in training and in
        evaluation alike: the model is run in both modes. What other inputs or options would do, and
        hooks and checkpoints that come later, are not seen: leave it off where that matters.
        Modules that work in place already go on to.

    Returns
    -------
    Report
        The audit before the change; `changed` names the sites that have changed, and the first line
        that ``print`` shows says how many, and which need more than `lean`.

    Raises
    ------
    TypeError
        if `model` is no module
    ValueError
        if its parameters are not initialized yet, as those of lazy modules
    """
    found = plan(model, inputs, kwargs, inplace=inplace)
    units = [unit for unit in found.units if unit.lean and unit.by == LEAN]
    replacements = [(unit, _replacement(unit)) for unit in units]
    put_all([(slot, new) for unit, new in replacements for slot in unit.slots])
    changed = tuple(site.name for site in found.report.sites if site.by == LEAN)
    return dataclasses.replace(found.report, changed=changed)


def _replacement(unit: Unit) -> nn.Module | Callable[..., Tensor]:
    slot: Slot = unit.slots[0]
    known = slot.known
    assert known is not None
    if not isinstance(slot.value, nn.Module):
        return known.call(inplace=unit.inplace, save="output")
    return known.module(inplace=unit.inplace, save="output")


@contextmanager
def lean_functional(report: Report | None = None) -> Iterator[None]:
    """Within it, torch's activation functions keep their outputs: for models that call them.

    ``with mishkit.lean_functional(): loss = model(x).sum()`` turns `torch.nn.functional.silu`,
    gelu, mish, hardswish and softplus, however they are imported, into mishkit's with
    ``save="output"``, in the forward pass of everything within, modules included. The backward
    pass may come later. Threads have it each for themselves. Calls of mishkit's own functions take
    ``save="output"`` themselves. What `torch.utils.checkpoint` runs is left alone: it is run again
    in backward, where this is over.

    Parameters
    ----------
    report : Report, optional
        Of an audit: only calls for which it advises to, told by module, line of code and function,
        in the model that was audited or in parts of it. Without it, all calls, which costs memory
        where it does not pay: one bit an element, or the whole output where the input is kept by
        someone else.

    Raises
    ------
    TypeError
        if `report` is none
    ValueError
        if `report` was pickled, and no longer knows the modules of its model
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
    """Ours in place of all of torch's functions that ours can stand in for."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = convertible(func, args, kwargs)
        if not name or in_checkpoint() or not self.takes(name):
            return func(*args, **kwargs)
        return FUNCTIONS[name](*args, **kwargs, save="output")

    def takes(self, function: str) -> bool:
        """Whether this call is to be changed."""
        return True


class _Advised(_Lean):
    """The same for the calls of a report."""

    def __init__(self, calls: AdvisedCalls) -> None:
        super().__init__()
        self.calls, self.thread = calls, get_ident()
        self.modules: list[nn.Module] = []

    def before(self, module: nn.Module, args: Any) -> None:
        """When a module is called."""
        if get_ident() == self.thread:
            self.modules.append(module)

    def after(self, module: nn.Module, *rest: Any) -> None:
        """When it returns or raises."""
        if get_ident() == self.thread and self.modules and self.modules[-1] is module:
            self.modules.pop()

    def takes(self, function: str) -> bool:
        """Whether the report advises it for this function, called here in this module."""
        module = self.modules[-1] if self.modules else None
        return self.calls.has(module, line_of_model(), function)
