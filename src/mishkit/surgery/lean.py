"""Keeping outputs instead of inputs, where an audit says that it pays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..functional import FUNCTIONS
from .audit import Report, Unit, plan
from .known import identify_function
from .slots import Slot, put_all
from .watch import line_of_model


def lean(model: nn.Module, *inputs: Any, inplace: bool = True, **kwargs: Any) -> Report:
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
    inplace : bool, default True
        Also write over the input where the audit has seen that nobody else reads it. What control
        flow these inputs do not reach is not seen: choose False where that matters. Modules that
        work in place already go on to.

    Returns
    -------
    Report
        The audit before the change. The sites with the advice ``"output"`` and no `line` have
        changed.

    Raises
    ------
    TypeError
        if `model` is no module
    """
    found = plan(model, inputs, kwargs)
    changes: list[tuple[Slot, Any]] = []
    for unit in found.units:
        if unit.lean and unit.slots:
            replacement = _replacement(unit, inplace and found.inplace[id(unit)])
            changes += [(slot, replacement) for slot in unit.slots]
    put_all(changes)
    return found.report


def _replacement(unit: Unit, inplace: bool) -> nn.Module | Callable[..., Tensor]:
    slot: Slot = unit.slots[0]
    known = slot.known
    assert known is not None
    inplace = inplace or known.inplace
    if not isinstance(slot.value, nn.Module):
        return known.call(inplace=inplace, save="output")
    return known.module(inplace=inplace, save="output")


@contextmanager
def lean_functional(report: Report | None = None) -> Iterator[None]:
    """Within it, torch's activation functions keep their outputs: for models that call them.

    ``with mishkit.lean_functional(): loss = model(x).sum()`` turns `torch.nn.functional.silu`,
    gelu, mish, hardswish and softplus, however they are imported, into mishkit's with
    ``save="output"``, in the forward pass of everything within, modules included. The backward
    pass may come later. Threads have it each for themselves. Calls of mishkit's own functions take
    ``save="output"`` themselves.

    Parameters
    ----------
    report : Report, optional
        Of an audit: only calls from lines of code where it advises to. Without it, all calls, which
        costs memory where it does not pay: one bit an element, or the whole output where the input
        is kept by someone else.

    Raises
    ------
    TypeError
        if `report` is none
    """
    if report is not None and not isinstance(report, Report):
        raise TypeError(
            f"mishkit.lean_functional: report must be of an audit, not {type(report).__name__}"
        )
    with _Lean(None if report is None else report.lines):
        yield


class _Lean(TorchFunctionMode):
    def __init__(self, lines: frozenset[str] | None) -> None:
        super().__init__()
        self.lines = lines

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        ours = _counterpart(func, args, kwargs)
        if ours is None or (self.lines is not None and line_of_model() not in self.lines):
            return func(*args, **kwargs)
        return ours(*args, **kwargs, save="output")


def _counterpart(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[..., Tensor] | None:
    """Our function, where it takes these arguments and there is something to win."""
    known = identify_function(func)
    if known is None or known.function not in _WORTH or "out" in kwargs:
        return None
    if len(args) != 1 or not isinstance(args[0], Tensor) or not args[0].requires_grad:
        return None
    return FUNCTIONS[known.function]


_WORTH = frozenset(("silu", "gelu", "mish", "hardswish", "softplus"))
"""Those of torch that do not keep their outputs already."""
