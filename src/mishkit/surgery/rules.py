"""Replacement rules: a mapping from functions, classes and patterns to activations.

A rule's key says which sites it matches, and its value what to put there.
"""

from __future__ import annotations

import copy
import difflib
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from .._modules import ActivationModule
from ..functional import FUNCTIONS
from ..functions import ACTIVATIONS
from ..gates import gate
from ..modules import MODULES
from ..registry import get
from .known import FUNCTION_NAMES, Known, altered, function_of_class, identify
from .slots import Slot

_NAMES = {a.module_name: name for name, a in ACTIVATIONS.items()} | {
    name: name for name in FUNCTION_NAMES
}


@dataclass(frozen=True)
class Key:
    """Which sites a rule matches."""

    given: Any
    """The key as given in the mapping."""
    function: str | None = None
    """The function that a site computes,"""
    kind: type[nn.Module] | None = None
    """or the class of its module,"""
    pattern: str | None = None
    """or a pattern for its path."""

    def matches(self, name: str) -> bool:
        """Whether this is a pattern and matches the path."""
        return self.pattern is not None and fnmatchcase(name, self.pattern)

    def leaves(self, slot: Slot) -> str:
        """Why a slot that the rule matches is left alone; empty if there is no match, or no reason.

        A module that has been altered is not an activation that could be replaced. Its class still
        tells whether the rule matches it.
        """
        alteration = altered(slot.value) if isinstance(slot.value, nn.Module) else None
        if alteration is None:
            return ""
        kind, reason = alteration
        if self.function is not None:
            is_for = function_of_class(kind, slot.value) == self.function
        else:
            is_for = kind is self.kind or self.matches(slot.name)
        return reason if is_for else ""

    def takes(self, slot: Slot) -> bool:
        """Whether the rule matches this slot and does not leave it alone."""
        if self.function is not None:
            return slot.known is not None and slot.known.function == self.function
        if self.kind is not None:
            return type(slot.value) is self.kind
        return self.matches(slot.name) and (slot.known is not None or self._names(slot.value))

    def _names(self, value: Any) -> bool:
        """Whether an unknown module is meant: a leaf without state whose name has no wildcard."""
        assert self.pattern is not None
        own_name = self.pattern.rpartition(".")[2]
        bare = not any((value._modules, value._parameters, value._buffers))
        return bare and not any(letter in own_name for letter in "*?[")


@dataclass(frozen=True)
class Value:
    """What a rule puts in."""

    given: Any
    """The value as given in the mapping."""
    name: str | None = None
    """The name of one of our functions,"""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """with the arguments for its module;"""
    make: Callable[[Any], Any] | None = None
    """or a callable that makes a replacement from the old module or function."""

    @property
    def gates(self) -> bool:
        """Whether it is `mishkit.gate`: the function stays, and waits for a product."""
        return self.given is gate

    def gating(self, known: Known | None) -> Known:
        """The function of a site, which `mishkit.gate` has to be able to compute."""
        if known is None or not known.ours or (known.state and not known.parameters):
            raise ValueError("mishkit.gate has no such function, or not with trained parameters")
        if known.inplace:
            raise ValueError("it works in place, which a gate does not")
        return known

    def module(self, old: nn.Module, known: Known | None) -> nn.Module:
        """A replacement for a module; `inplace` and `save` are carried over where possible."""
        if self.gates:
            return self.gating(known).gating_module()
        if self.make is not None:
            new = self.make(old)
            if not isinstance(new, nn.Module):
                raise TypeError(f"{self.given!r} must make a module, not {type(new).__name__}")
            return new
        assert self.name is not None
        return get(self.name, **{**self._kept(known), **self.arguments})

    def function(self, old: Callable[..., Any], known: Known | None) -> Callable[..., Any]:
        """A replacement for a function."""
        if self.gates:
            return self.gating(known).gating_call()
        if self.make is not None:
            new = self.make(old)
            if not isinstance(new, nn.Module):
                if not callable(new):
                    raise TypeError(f"{self.given!r} must make a function")
                return new
            return _as_function(new)
        assert self.name is not None
        return _as_function(get(self.name, **{**self._kept(known), **self.arguments}))

    def _kept(self, known: Known | None) -> dict[str, Any]:
        """The arguments of the old activation that also apply to the new one."""
        if known is None:
            return {}
        assert self.name is not None
        same = known.function == self.name
        kept: dict[str, Any] = dict(known.parameters) if same else {}
        if known.inplace:
            kept["inplace"] = True
        try:
            get(self.name, **{**kept, **self.arguments, "save": "output"})
            needs_input = False
        except ValueError:
            needs_input = True
        inplace = known.inplace and self.arguments.get("inplace", True)
        if inplace and (needs_input or known.copies):
            kept["save"] = "copy"
        if known.save == "output" and not needs_input:
            kept["save"] = "output"
        return kept


def parse(rules: Mapping[Any, Any], caller: str) -> list[tuple[Key, Value]]:
    """Parse the rules. Whether a pattern matches anything depends on the model.

    Raises TypeError and ValueError, with messages that begin with the caller's name.
    """
    if not isinstance(rules, Mapping):
        raise TypeError(f"{caller}: rules must be a mapping, not {type(rules).__name__}")
    return [(_key(key, caller), _value(value, caller)) for key, value in rules.items()]


def unknown(given: str, paths: Iterable[str]) -> str:
    """An error message for a key that matches nothing, with suggestions."""
    near = difflib.get_close_matches(given, [*_NAMES, *paths], n=3)
    meant = f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
    return f'"{given}" is neither a function nor does any site have such a name{meant}'


def _key(key: Any, caller: str) -> Key:
    if isinstance(key, str):
        if key in _NAMES:
            return Key(key, function=_NAMES[key])
        return Key(key, pattern=key)
    if isinstance(key, type) and issubclass(key, nn.Module):
        return Key(key, kind=key)
    raise TypeError(
        f"{caller}: a rule is for a function's name, a pattern or a class of modules, not {key!r}"
    )


def _value(value: Any, caller: str) -> Value:
    if isinstance(value, str):
        return _named(value, *_split(value, caller), caller)
    if isinstance(value, tuple):
        try:
            name, arguments = value
            arguments = dict(arguments)
        except (TypeError, ValueError):
            raise ValueError(
                f"{caller}: a pair must be a name and its arguments, not {value!r}"
            ) from None
        return _named(value, name, arguments, caller)
    if isinstance(value, nn.Module):
        return Value(value, make=functools.partial(_copy, value))
    if isinstance(value, type) and issubclass(value, nn.Module):
        if value in MODULES.values():
            return _named(value, value.__name__, {}, caller)
        return Value(value, make=functools.partial(_new, value))
    if callable(value):
        return Value(value, make=value)
    raise TypeError(
        f"{caller}: what takes a site's place must be a name, a pair of one and its arguments, a "
        f"module or its class, or a function of the old module, not {value!r}"
    )


def _named(given: Any, name: str, arguments: dict[str, Any], caller: str) -> Value:
    try:
        module = get(name, **arguments)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{caller}: {str(error).removeprefix('mishkit.get: ')}") from None
    assert isinstance(module, ActivationModule)
    return Value(given, module.activation.name, arguments)


def _split(text: str, caller: str) -> tuple[str, dict[str, float]]:
    """For example, ``"hard_mish:k=5"`` gives hard_mish and {"k": 5.0}."""
    name, _, pairs = text.partition(":")
    arguments = {}
    for pair in pairs.split(",") if pairs else ():
        parameter, _, number = pair.partition("=")
        try:
            arguments[parameter.strip()] = float(number)
        except ValueError:
            raise ValueError(
                f'{caller}: parameters are written as in "hard_mish:k=5", not "{text}"'
            ) from None
    return name, arguments


def _copy(module: nn.Module, _old: Any) -> nn.Module:
    return copy.deepcopy(module)


def _new(kind: type[nn.Module], _old: Any) -> nn.Module:
    return kind()


def _as_function(module: nn.Module) -> Callable[..., Any]:
    """A function that computes the same as a module, for a slot that can't hold a module."""
    known = identify(module)
    if known is not None and known.save is not None and (known.parameters or not known.state):
        if known.parameters or known.inplace or known.save != "input":
            return known.call(inplace=known.inplace, save=known.save)
        return FUNCTIONS[known.function]
    if any(True for _ in (*module.parameters(), *module.buffers())):
        raise ValueError(f"{module} has parameters, which a function can't hold")
    return module.forward
