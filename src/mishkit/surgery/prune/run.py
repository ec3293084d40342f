"""Run a model for `prune` and observe it: its outputs, its MACs, the values of its units.

Everything done to the model for this purpose is undone afterwards.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..._torch_private import DropoutNd
from .._state import undisturbed
from ..slots import Slot
from ..watch import tensors_of

Call = tuple[int, int]
"""A site: the index of its slot in the list, and the number of the call within one run."""


def run(model: nn.Module, batch: Any) -> Any:
    """The model's output; a mapping holds keyword arguments, a tuple or list positional ones."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)


def floating_tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors in an output of any structure."""
    return [tensor for tensor in tensors_of(output) if tensor.is_floating_point()]


def outputs_of(model: nn.Module, batch: Any) -> list[Tensor]:
    """Copies of the floating-point tensors in the model's output; the model is left as it was."""
    with undisturbed(model, batch):
        return copied_outputs_of(model, batch)


def copied_outputs_of(model: nn.Module, batch: Any) -> list[Tensor]:
    """The same, but without undoing what the run changes in the model and its hooks' state."""
    with torch.no_grad():
        return [tensor.clone() for tensor in floating_tensors(run(model, batch))]


def training_outputs_of(model: nn.Module, batch: Any, seed: int = 0) -> list[Tensor]:
    """The same in training mode, except for dropout layers, which are random."""
    with undisturbed(model, batch):
        for module in model.modules():
            module.training = not isinstance(module, DropoutNd)
        torch.manual_seed(seed)
        return copied_outputs_of(model, batch)


def macs_of(model: nn.Module, batch: Any) -> int:
    """The multiply-accumulates of one run, counted by operator."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter does not know the fused attention of CPUs; MATH uses two matrix products.
    counter = FlopCounterMode(display=False)
    with undisturbed(model, batch), sdpa_kernel(SDPBackend.MATH), counter, torch.no_grad():
        run(model, batch)
    return counter.get_total_flops() // 2


def with_progress(batches: Iterable[Any], shown: bool) -> Iterable[Any]:
    """The batches, with a progress bar if wanted, on a terminal and if rich is installed."""
    if not shown or not sys.stderr.isatty():
        return batches
    try:
        from rich.console import Console
        from rich.progress import track
    except ModuleNotFoundError:
        return batches
    total = len(batches) if isinstance(batches, Sized) else None
    return track(batches, "watching", total=total, console=Console(stderr=True), transient=True)


class Snapshot:
    """What the modules of a model hold. Pruning replaces tensors by new ones, so references are
    enough for going back.
    """

    def __init__(self, model: nn.Module) -> None:
        self.held = [(module, self._copy(module)) for module in model.modules()]

    @staticmethod
    def _copy(module: nn.Module) -> dict[str, Any]:
        return {k: v.copy() if isinstance(v, dict) else v for k, v in vars(module).items()}

    def restore(self) -> None:
        """Go back, removing whatever was added since."""
        for module, held in self.held:
            current = vars(module)
            for name in current.keys() - held.keys():
                del current[name]
            for name, value in held.items():
                # Keep the dict objects: handles of hooks refer to them.
                if isinstance(value, dict) and isinstance(current.get(name), dict):
                    current[name].clear()
                    current[name].update(value)
                else:
                    current[name] = value

    @contextlib.contextmanager
    def leniently(self) -> Iterator[None]:
        """Temporarily use eval mode, gradients for all parameters, which tracing needs, and no
        fused transformer layers, since these call no activation.
        """
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


@contextlib.contextmanager
def tapped(
    chosen: Sequence[Slot], see: Callable[[Call, Tensor], None]
) -> Iterator[Callable[[], None]]:
    """Show every output of these activations to `see`; yields a function that starts a new run."""
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

        attributes = vars(slot.owner)
        attributes[slot.attribute] = called
        undo.append(lambda: attributes.update({slot.attribute: slot.value}))

    try:
        for place, slot in enumerate(chosen):
            tap(place, slot)
        yield calls.clear
    finally:
        for action in undo:
            action()


@dataclass
class Reading:
    """What was observed of each unit at one place; empty if the number of units varies."""

    low: Tensor
    high: Tensor
    active: Tensor
    positions: int

    @classmethod
    def of(cls, x: Tensor, dim: int, threshold: float) -> Reading | None:
        """The reading of one tensor, whose units lie along `dim`; None if the tensor is empty."""
        if not x.numel():
            return None
        x = torch.atleast_1d(x.detach())
        if x.ndim < -dim:
            rows = x.new_empty(1, 0)
        else:
            rows = x.movedim(dim, -1).reshape(-1, x.shape[dim])
        low, high = (bound.double().cpu() for bound in torch.aminmax(rows, dim=0))
        # Not "> threshold": a NaN is active.
        active = (~(rows.abs() <= threshold)).sum(0).cpu()
        return cls(low, high, active, len(rows))

    def add(self, other: Reading) -> None:
        """Add what was observed at the same place in another run."""
        if len(self.low) != len(other.low):
            self.low = self.high = self.active = self.low[:0]
            return
        self.low = torch.minimum(self.low, other.low)
        self.high = torch.maximum(self.high, other.high)
        self.active = self.active + other.active
        self.positions += other.positions

    def silent(self, fraction: float) -> list[bool]:
        """For each unit: whether no more than this fraction of positions exceeded the threshold."""
        return (self.active <= fraction * self.positions).tolist()

    def constant(self, unit: int, eps: float) -> float | None:
        """The value of a unit that is constant to rounding; None if it is not."""
        low, high = float(self.low[unit]), float(self.high[unit])
        is_constant = high - low <= 8 * eps * max(abs(low), abs(high)) < float("inf")
        return (low + high) / 2 if is_constant else None


def channels(layer: nn.Module) -> int:
    """The dimension of a layer's input that holds the units, counted from the end."""
    return -1 if isinstance(layer, nn.Linear) else -1 - len(layer.kernel_size)  # type: ignore[arg-type]
