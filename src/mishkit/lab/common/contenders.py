"""The activations that an experiment can compare, by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mishkit as mk

from .. import LabError
from .errors import told
from .imports import imported

DEFAULT = (
    "torch_relu_inplace",
    "composed_mish",
    "torch_mish",
    "mish",
    "mish_inplace",
    "h_mish",
)
"""What `mishkit compare` compares if no names are given."""


@dataclass(frozen=True)
class Contender:
    """One activation, with the name that selects it."""

    name: str
    label: str
    function: str
    """The mathematical function; contenders that share it differ only in how it is computed."""
    make: Callable[[], nn.Module]
    """Creates the module for one site."""


class Elementwise(nn.Module):
    """Wraps a plain function Tensor → Tensor in a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, input: Tensor) -> Tensor:
        return self.function(input)


def composed_mish(x: Tensor) -> Tensor:
    """Mish as people write it by hand: x·tanh(softplus(x)), three operators."""
    return x * torch.tanh(F.softplus(x))


def registry() -> dict[str, Contender]:
    """All named contenders: torch's own, the composed ones, and every function of mishkit.

    Each function of mishkit comes in three versions: plain, ``_output`` (the backward pass works
    from the output and one bit per element, ``save="output"``) and ``_inplace`` (the same,
    overwriting its input).
    """
    contenders = [
        Contender("torch_relu", "torch ReLU", "relu", nn.ReLU),
        Contender("torch_relu_inplace", "torch ReLU in place", "relu", lambda: nn.ReLU(True)),
        Contender("torch_silu", "torch SiLU", "silu", nn.SiLU),
        Contender("torch_gelu", "torch GELU", "gelu", nn.GELU),
        Contender("torch_mish", "torch Mish", "mish", nn.Mish),
        Contender("composed_mish", "Mish by hand", "mish", lambda: Elementwise(composed_mish)),
    ]
    names = {function: name for name, function in mk.functional.FUNCTIONS.items()}
    for title, module in mk.modules.MODULES.items():
        name, label = names[module.function], f"mishkit {title}"
        contenders += [
            Contender(name, label, name, module),
            Contender(f"{name}_output", f"{label} from output", name, _with(module, save="output")),
            Contender(f"{name}_inplace", f"{label} in place", name, _with(module, inplace=True)),
        ]
    return {contender.name: contender for contender in contenders}


def _with(module: Callable[..., nn.Module], **options: object) -> Callable[[], nn.Module]:
    return lambda: module(**options)


def find(spec: str) -> Contender:
    """The contender called `spec`: a name from the registry, or anything that can be imported.

    ``package.module:attribute`` or ``package.module.attribute`` may name a module class whose
    constructor needs no arguments, a module, or a function Tensor → Tensor.
    """
    known = registry()
    if spec in known:
        return known[spec]
    separator = ":" if ":" in spec else "."
    path, mark, attribute = spec.rpartition(separator)
    if not (mark and path and attribute):
        raise LabError(
            f"unknown activation {spec!r}; there are {', '.join(sorted(known))}, "
            "and anything importable, such as torch.nn:GELU"
        )
    contender = Contender(spec, attribute, spec, _maker(spec, _import(spec, path, attribute)))
    _check(contender)
    return contender


def _import(spec: str, path: str, attribute: str) -> object:
    try:
        return getattr(imported(path), attribute)
    except AttributeError:
        raise LabError(f"activation {spec!r}: {path!r} has no {attribute!r}") from None


def _maker(spec: str, target: object) -> Callable[[], nn.Module]:
    if isinstance(target, type) and issubclass(target, nn.Module):
        return target
    if isinstance(target, nn.Module):
        return lambda: copy.deepcopy(target)
    if callable(target):
        return lambda: Elementwise(target)
    raise LabError(f"activation {spec!r} is neither a module nor a function")


def _check(contender: Contender) -> None:
    """Try a user's contender once, so that it fails here and not in the middle of training."""
    x = torch.linspace(-1, 1, 8).reshape(1, 2, 2, 2)
    try:
        y = contender.make()(x.clone())
    except Exception as error:
        raise LabError(f"activation {contender.name!r} does not work: {told(error)}") from error
    if not isinstance(y, Tensor) or y.shape != x.shape:
        raise LabError(f"activation {contender.name!r} does not keep the shape of its input")
