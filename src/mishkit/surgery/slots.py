"""Where a model holds its activations, and putting others in their place.

A slot is a place that holds an activation: a submodule, or an attribute that is a function, as the
`activation` of `torch.nn.TransformerEncoderLayer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from .known import Known, identify, identify_function


@dataclass(frozen=True, eq=False)
class Slot:
    """A place that holds an activation, or another module."""

    name: str
    """The path of the submodule or attribute within the model."""
    owner: nn.Module
    attribute: str
    value: nn.Module | Callable[..., Any]
    """What was found in it. Several slots may share one module."""
    known: Known | None
    """What it computes; None for other modules."""

    def put(self, value: nn.Module | Callable[..., Any]) -> None:
        """Put a module or a function here, which `restore` takes back.

        Between modules, hooks and mode go over, so that handles of hooks still remove them.
        """
        current = getattr(self.owner, self.attribute)
        if value is current:
            return
        if isinstance(current, nn.Module) and isinstance(value, nn.Module):
            _take_over(current, value)
            # In a tuple, or it would be a submodule.
            vars(value)[_REPLACED] = vars(current).get(_REPLACED, (current,))
        else:
            _remember(self.owner, self.attribute)
        if isinstance(self.owner, nn.TransformerEncoderLayer) and self.attribute == "activation":
            # Its fused inference goes by a number, not by the activation.
            _remember(self.owner, "activation_relu_or_gelu")
            self.owner.activation_relu_or_gelu = 0
        setattr(self.owner, self.attribute, value)


def slots(model: nn.Module, prefix: str = "") -> Iterator[Slot]:
    """Every submodule, and every attribute that is a known function, under each of its names.

    What is below a known module, or a blend of two (`Anneal`), is its own affair. The model itself
    is no slot: nothing holds it.
    """
    for attribute, value in list(vars(model).items()):
        if callable(value) and not isinstance(value, nn.Module):
            called = identify_function(value)
            if called is not None:
                yield Slot(prefix + attribute, model, attribute, value, called)
    for attribute, child in list(model._modules.items()):
        if child is not None:
            known = identify(child)
            yield Slot(prefix + attribute, model, attribute, child, known)
            if known is None and not getattr(child, "_is_blend", False):
                yield from slots(child, f"{prefix}{attribute}.")


def restore(model: nn.Module) -> list[str]:
    """Put back whatever `Slot.put` replaced anywhere in the model; the names of these places."""
    restored = []
    for path, owner in model.named_modules():
        for attribute, original in vars(owner).pop(_REPLACED_ATTRIBUTES, {}).items():
            setattr(owner, attribute, original)
            if callable(original):
                restored.append(f"{path}.{attribute}".lstrip("."))
    for slot in list(slots(model)):
        if isinstance(slot.value, nn.Module) and _REPLACED in vars(slot.value):
            (original,) = vars(slot.value)[_REPLACED]
            _take_over(slot.value, original)
            setattr(slot.owner, slot.attribute, original)
            restored.append(slot.name)
    return restored


_REPLACED = "_mishkit_replaced"
_REPLACED_ATTRIBUTES = "_mishkit_replaced_attributes"
"""Where a module keeps what it replaced, and where one keeps what functions in it replaced."""

_HOOKS = (
    *(name for name in vars(nn.Module()) if name.endswith("_hooks")),
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_is_full_backward_hook",
)


def _take_over(old: nn.Module, new: nn.Module) -> None:
    for name in dict.fromkeys(_HOOKS):
        vars(new)[name] = vars(old)[name]
    new.train(old.training)  # and what is in it


def _remember(owner: nn.Module, attribute: str) -> None:
    """What the attribute was before anything was put there."""
    replaced = vars(owner).setdefault(_REPLACED_ATTRIBUTES, {})
    replaced.setdefault(attribute, getattr(owner, attribute))
