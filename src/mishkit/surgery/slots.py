"""Find the places where a model holds its activations, and put others there.

A slot is a place that holds an activation: a submodule, or an attribute that is a function, such as
the `activation` of `torch.nn.TransformerEncoderLayer`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .known import (
    REGISTRIES,
    Known,
    altered,
    contents,
    identify,
    identify_function,
    is_known_class,
    names_of_class,
)


@dataclass(frozen=True, eq=False)
class Slot:
    """A place that holds an activation, or another module: a submodule, attribute or method."""

    name: str
    """The path of the submodule or attribute within the model."""
    owner: nn.Module
    attribute: str
    value: nn.Module | Callable[..., Any]
    """What it holds. Several slots may share one module."""
    known: Known | None
    """The function that it computes; None for other modules."""

    def put(self, value: nn.Module | Callable[..., Any]) -> None:
        """Put something into this slot: see `put_all`."""
        put_all([(self, value)])


class Refused(ValueError):
    """A module can't be replaced because its forward is no longer that of its class."""


def put_all(changes: Iterable[tuple[Slot, nn.Module | Callable[..., Any]]]) -> None:
    """Put modules and functions into these slots, all or none; `restore` undoes it.

    A module that replaces another gets its hooks, its training mode and whatever the old one's
    class does not define: submodules, buffers, parameters and attributes added by users or tools,
    such as the observers of quantisation. So handles of hooks still remove them, and hooks find
    what they need. Raises `Refused` if a forward was replaced, and passes on whatever the owners
    raise.
    """
    with _all_or_nothing() as touch:
        for slot, value in changes:
            try:
                _put(slot.owner, slot.attribute, value, touch)
            except Refused as error:
                raise Refused(f'"{slot.name}" is left: {error}') from None


def slots(model: nn.Module, prefix: str = "") -> Iterator[Slot]:
    """Every submodule, and every attribute that is a known function, under each of its names.

    Does not descend into known modules and blends (`Anneal`). The model itself is not a slot, since
    nothing holds it.
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
            if known is None and not (getattr(child, "_is_blend", False) or altered(child)):
                yield from slots(child, f"{prefix}{attribute}.")


def restore(model: nn.Module) -> list[str]:
    """Put back everything that `put_all` replaced anywhere in the model; returns the slots' names.

    All or nothing. Whatever was carried over from a module is carried back.
    """
    restored = []
    with _all_or_nothing() as touch:
        for path, owner in list(model.named_modules()):
            if _REPLACED_ATTRIBUTES in vars(owner):
                touch(owner)
            for attribute, original in vars(owner).pop(_REPLACED_ATTRIBUTES, {}).items():
                if original == _OF_CLASS:
                    delattr(owner, attribute)
                else:
                    setattr(owner, attribute, original)
                if callable(original) or original == _OF_CLASS:
                    restored.append(f"{path}.{attribute}".lstrip("."))
        for slot in list(slots(model)):
            if isinstance(slot.value, nn.Module) and _REPLACED in vars(slot.value):
                original = vars(slot.value)[_REPLACED][0]
                touch(slot.owner, *original.modules())
                try:
                    _give_back(slot.value, original)
                except Refused as error:
                    raise Refused(f'"{slot.name}" is left: {error}') from None
                setattr(slot.owner, slot.attribute, original)
                restored.append(slot.name)
    return restored


_REPLACED = "_mishkit_replaced"
_REPLACED_ATTRIBUTES = "_mishkit_replaced_attributes"
"""Where a replacement keeps the module that it replaced, with the names of its own contents; and
where an owner keeps the functions that were replaced in it.
"""

_OF_CLASS = "of the class"
"""What is remembered of an attribute that was a method of the owner's class."""

_OF_ONE_MODULE = (_REPLACED, _REPLACED_ATTRIBUTES, "_apply", "_compiled_call_impl")
"""Attributes that must not be carried over to another module."""

_HOOKS = (
    *(name for name in vars(nn.Module()) if name.endswith("_hooks")),
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_is_full_backward_hook",
)


def _put(owner: nn.Module, attribute: str, value: Any, touch: Callable[..., None]) -> None:
    current = getattr(owner, attribute)
    if value is current:
        return
    touch(owner)
    if isinstance(current, nn.Module) and isinstance(value, nn.Module):
        touch(*value.modules())
        original = vars(current).get(_REPLACED, (current,))[0]
        if value is original:
            _give_back(current, value)
        else:
            extras = _extras(current)
            own = _own_beside(extras, value)
            _take_over(current, value, {name: extras[name] for name in extras if name not in own})
            # In a tuple, so that it does not become a submodule. Whatever moves or converts the new
            # module has to do the same to the original.
            vars(value)[_REPLACED] = (original, own)
            vars(value)["_apply"] = functools.partial(_apply_to_both, value)
    elif _is_of_class(owner, attribute, value):
        vars(owner).pop(attribute, None)
        vars(owner).get(_REPLACED_ATTRIBUTES, {}).pop(attribute, None)
        return
    else:
        _remember(owner, attribute)
    is_encoder = isinstance(owner, nn.TransformerEncoderLayer) and attribute == "activation"
    if is_encoder and "activation_relu_or_gelu" in vars(owner):
        # Its fused inference path goes by a number, not by the activation.
        _remember(owner, "activation_relu_or_gelu")
        vars(owner)["activation_relu_or_gelu"] = 0
    setattr(owner, attribute, value)


def _own_beside(extras: dict[str, tuple[str, Any]], value: nn.Module) -> frozenset[str]:
    """The contents that are a module's own, not copied from one that has these extras."""
    if is_known_class(type(value)):
        names = names_of_class(type(value))
        return frozenset(name for name in contents(value) if name in names or name not in extras)
    return frozenset(
        name
        for name, (_, thing) in contents(value).items()
        if name not in extras or thing is not extras[name][1]
    )


def _extras(module: nn.Module) -> dict[str, tuple[str, Any]]:
    """The contents of a module that were added by a user or a tool."""
    record = vars(module).get(_REPLACED, ())
    kind = type(module)
    if len(record) == 2:
        own = record[1]
    elif is_known_class(kind):
        own = names_of_class(kind)
    else:  # unknown class
        return {}
    extras = {name: held for name, held in contents(module).items() if name not in own}
    if "forward" in extras:
        raise Refused("its forward was replaced; undo that first")
    return {name: held for name, held in extras.items() if name not in _OF_ONE_MODULE}


def _give_back(replacement: nn.Module, original: nn.Module) -> None:
    """Give back what `_put` carried over and what was added since, but not what was removed."""
    extras = _extras(replacement)
    for name, (registry, _) in _extras(original).items():
        if name not in extras:
            (getattr(original, registry) if registry else vars(original)).pop(name)
    _take_over(replacement, original, extras)


def _take_over(old: nn.Module, new: nn.Module, extras: dict[str, tuple[str, Any]]) -> None:
    for name in dict.fromkeys(_HOOKS):
        vars(new)[name] = vars(old)[name]
    if new.training != old.training:
        new.train(old.training)  # with its submodules
    for name, (registry, value) in extras.items():
        for place in (vars(new), *(getattr(new, registry_name) for registry_name in REGISTRIES)):
            place.pop(name, None)
        (getattr(new, registry) if registry else vars(new))[name] = value
        if registry == "_buffers" and name in old._non_persistent_buffers_set:
            new._non_persistent_buffers_set.add(name)


def _apply_to_both(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
    """Like `torch.nn.Module._apply`, for a module and the one that it replaced."""
    type(module)._apply(module, fn, recurse)
    vars(module)[_REPLACED][0]._apply(fn, recurse)
    return module


def _is_of_class(owner: nn.Module, attribute: str, value: Any) -> bool:
    """Whether a value is the method that the owner has from its class."""
    method = getattr(type(owner), attribute, None)
    return inspect.isfunction(method) and value == method.__get__(owner)


def _remember(owner: nn.Module, attribute: str) -> None:
    """Record the attribute's value before anything was put there."""
    replaced = vars(owner).setdefault(_REPLACED_ATTRIBUTES, {})
    is_own = attribute in vars(owner) or attribute in owner._modules
    replaced.setdefault(attribute, getattr(owner, attribute) if is_own else _OF_CLASS)


@contextmanager
def _all_or_nothing() -> Iterator[Callable[..., None]]:
    """Yields a function to call on modules before changing them; if anything is raised, these
    modules are restored.
    """
    before: dict[int, list[tuple[Any, Any]]] = {}

    def touch(*modules: nn.Module) -> None:
        for module in modules:
            if id(module) not in before:
                held = vars(module)
                # Keep the dict objects, as others may refer to them.
                parts = (held, *(held.get(name) for name in _CONTAINERS))
                before[id(module)] = [(p, p.copy()) for p in parts if isinstance(p, (dict, set))]

    try:
        yield touch
    except BaseException:
        for parts in before.values():
            for part, copied in parts:
                part.clear()
                part.update(copied)
        raise


_CONTAINERS = (*REGISTRIES, "_non_persistent_buffers_set", _REPLACED_ATTRIBUTES)
