"""Functions as they are named on the command line: `mish`, `HardMish`, `hard_mish:k=3`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mishkit.activation import Activation
from mishkit.functions import ACTIVATIONS

from .. import LabError


@dataclass(frozen=True)
class Named:
    """A function with values for all its parameters."""

    activation: Activation
    values: tuple[float, ...]

    @property
    def parameters(self) -> dict[str, float]:
        """The parameter values by name."""
        names = (p.name for p in self.activation.parameters)
        return dict(zip(names, self.values, strict=True))

    def __str__(self) -> str:
        """For example `hard_mish:k=3`; parameters at their defaults are left out."""
        pairs = zip(self.activation.parameters, self.values, strict=True)
        changed = ",".join(f"{p.name}={value:g}" for p, value in pairs if value != p.default)
        return f"{self.activation.name}:{changed}" if changed else self.activation.name

    @property
    def is_default(self) -> bool:
        """Whether every parameter has its default value."""
        return self.values == self.activation.defaults


def find(text: str, parameters: Mapping[str, float] | None = None) -> Named:
    """The function with this name; parameters may also be in the name. Raises LabError.

    ``find("hard_mish:k=3")`` and ``find("HardMish", {"k": 3})`` are the same.
    """
    name, _, given = text.partition(":")
    by_name = {a.name: a for a in ACTIVATIONS.values()}
    by_name |= {a.module_name: a for a in ACTIVATIONS.values()}
    if name not in by_name:
        near = difflib.get_close_matches(name.lower(), ACTIVATIONS, n=1)
        meant = f'; did you mean "{near[0]}"?' if near else "."
        raise LabError(f'there is no function "{name}"{meant} There are {", ".join(ACTIVATIONS)}')
    activation = by_name[name]
    known = [p.name for p in activation.parameters]
    values = dict(zip(known, activation.defaults, strict=True))
    for key, value in {**pairs(given.split(",") if given else ()), **(parameters or {})}.items():
        if key not in values:
            has = f"has {', '.join(known)}" if known else "has none"
            raise LabError(f'{activation.name} has no parameter "{key}"; it {has}')
        values[key] = float(value)
    try:
        activation.check(*values.values())
    except ValueError as error:
        raise LabError(str(error).removeprefix("mishkit.")) from None
    return Named(activation, tuple(values.values()))


def finite(text: str) -> float:
    """Parse a finite number; raises ValueError for inf and nan too."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not finite")
    return number


def pairs(texts: Sequence[str]) -> dict[str, float]:
    """For example ["k=3", "b=2.8"] -> {"k": 3.0, "b": 2.8}."""
    values = {}
    for text in texts:
        key, is_pair, value = text.partition("=")
        try:
            if not is_pair:
                raise ValueError
            values[key.strip()] = finite(value)
        except ValueError:
            raise LabError(f'"{text}" is not NAME=NUMBER, a finite one') from None
    return values


def options(texts: Sequence[str]) -> dict[str, float]:
    """For example ["--k", "3", "--beta=-1"] -> {"k": 3.0, "beta": -1.0}."""
    remaining, assignments = list(texts), []
    while remaining:
        option = remaining.pop(0)
        if not option.startswith("--"):
            raise LabError(f'"{option}" is no option; parameters are given as --NAME VALUE')
        key = option[2:]
        if "=" not in key:
            if not remaining:
                raise LabError(f"{option} needs a value")
            key += f"={remaining.pop(0)}"
        assignments.append(key)
    return pairs(assignments)
