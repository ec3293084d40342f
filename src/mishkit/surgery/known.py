"""Which activation a module or a function is: ours, torch's, or those of other libraries.

Modules are known by their exact class: a subclass may do anything.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import FUNCTIONS
from ..functions import ACTIVATIONS
from ..modules import MODULES, ActivationModule


@dataclass(frozen=True)
class Known:
    """An activation function, and the values of its parameters."""

    function: str
    """Our name for it, or torch's in `torch.nn.functional` where we have no such function."""
    parameters: Mapping[str, float] = field(default_factory=dict)
    inplace: bool = False
    save: str | None = None
    """What is kept for backward, for our own; None for the others."""
    state: bool = False
    """Whether there are parameters to be trained, or buffers, which a replacement would lose."""

    @property
    def ours(self) -> bool:
        """Whether mishkit has this function."""
        return self.function in ACTIVATIONS

    @property
    def values(self) -> tuple[float, ...]:
        """The parameters of a function of ours in order, those not given with their defaults."""
        parameters = ACTIVATIONS[self.function].parameters
        return tuple(float(self.parameters.get(p.name, p.default)) for p in parameters)

    def module(self, *, inplace: bool = False, save: str = "input") -> ActivationModule:
        """Our module for it."""
        made = MODULES[ACTIVATIONS[self.function].module_name]
        return made(**self.parameters, inplace=inplace, save=save)

    def call(self, *, inplace: bool = False, save: str = "input") -> Callable[..., Tensor]:
        """Our function for it, which can be pickled."""
        options = {**self.parameters, "inplace": inplace, "save": save}
        return functools.partial(FUNCTIONS[self.function], **options)


def identify(module: nn.Module) -> Known | None:
    """The activation that this module is; None where it is none, or may be more than its class.

    A module whose `forward` was replaced is not what its class says.
    """
    if isinstance(module, ActivationModule):
        return _ours(module)
    kind = type(module)
    reader = _CLASSES.get(f"{kind.__module__}.{kind.__qualname__}")
    if reader is None or "forward" in vars(module):
        return None
    found = reader(module) if callable(reader) else reader
    if isinstance(found, str):
        found = Known(found)
    inplace = bool(getattr(module, "inplace", False))
    state = bool(module._parameters or module._buffers)
    return Known(found.function, found.parameters, inplace, state=state)


def identify_function(function: Callable[..., Any]) -> Known | None:
    """The activation that this function is, if it is one of torch's or ours."""
    given: Mapping[str, Any] = {}
    called: Any = function
    if isinstance(function, functools.partial):
        if function.args:
            return None
        called, given = function.func, function.keywords
    try:
        name = _FUNCTIONS.get(called)
    except TypeError:  # it can't be hashed
        return None
    if name is None:
        return None
    options = dict(given)
    inplace = bool(options.pop("inplace", False))
    save = options.pop("save", "input") if called in _OURS else None
    if name == "gelu" and options.pop("approximate", "none") == "tanh":
        name = "gelu_tanh"
    if name not in ACTIVATIONS and options:
        return None
    known = {p.name for p in ACTIVATIONS[name].parameters} if name in ACTIVATIONS else set()
    if not options.keys() <= known:
        return None
    return Known(name, options, inplace, save)


def _ours(module: ActivationModule) -> Known | None:
    if "forward" in vars(module) or type(module) not in MODULES.values():
        return None
    name = module.activation.name
    if name == "gelu" and getattr(module, "approximate", "none") == "tanh":
        name = "gelu_tanh"
    state = bool(module._parameters or module._buffers)
    trained = bool(module._parameters)
    values = {p: getattr(module, p) for p in module.parameter_names}
    parameters = {} if trained else {p: float(value) for p, value in values.items()}
    inplace = bool(module.inplace)  # type: ignore[arg-type]
    return Known(name, parameters, inplace, module.save, state)


Reader = str | Known | Callable[[Any], str | Known]
"""What a class computes: the function's name, with parameters, or found out from the module."""


def _prefixed(module: str, classes: Mapping[str, Reader]) -> dict[str, Reader]:
    return {f"{module}.{name}": reader for name, reader in classes.items()}


def _gelu(module: Any) -> str:
    return "gelu_tanh" if module.approximate == "tanh" else "gelu"


def _softplus(module: Any) -> Known:
    return Known("softplus", {"beta": module.beta, "threshold": module.threshold})


_QUICK_GELU = Known("swish", {"beta": 1.702})
_CLASSES: dict[str, Reader] = {
    **_prefixed(
        "torch.nn.modules.activation",
        {
            "ReLU": "relu",
            "SiLU": "silu",
            "Mish": "mish",
            "Hardswish": "hardswish",
            "GELU": _gelu,
            "Softplus": _softplus,
            # We have none of these; they can be swapped for what we have.
            "CELU": "celu",
            "ELU": "elu",
            "Hardshrink": "hardshrink",
            "Hardsigmoid": "hardsigmoid",
            "Hardtanh": "hardtanh",
            "LeakyReLU": "leaky_relu",
            "LogSigmoid": "logsigmoid",
            "PReLU": "prelu",
            "RReLU": "rrelu",
            "ReLU6": "relu6",
            "SELU": "selu",
            "Sigmoid": "sigmoid",
            "Softshrink": "softshrink",
            "Softsign": "softsign",
            "Tanh": "tanh",
            "Tanhshrink": "tanhshrink",
        },
    ),
    **_prefixed(
        "transformers.activations",
        {
            "GELUActivation": "gelu",
            "GELUTanh": "gelu_tanh",
            "NewGELUActivation": "gelu_tanh",
            "FastGELUActivation": "gelu_tanh",
            "AccurateGELUActivation": "gelu_tanh",
            "QuickGELUActivation": _QUICK_GELU,
            "SiLUActivation": "silu",
            "MishActivation": "mish",
        },
    ),
    **_prefixed(
        "timm.layers.activations",
        {
            "Swish": "silu",
            "Mish": "mish",
            "HardSwish": "hardswish",
            "HardMish": "h_mish",
            "GELU": "gelu",
            "GELUTanh": "gelu_tanh",
            "QuickGELU": _QUICK_GELU,
            "HardSigmoid": "hardsigmoid",
            "PReLU": "prelu",
            "Sigmoid": "sigmoid",
            "Tanh": "tanh",
        },
    ),
    **_prefixed(
        "timm.layers.activations_me",
        {
            "SwishMe": "silu",
            "MishMe": "mish",
            "HardSwishMe": "hardswish",
            "HardMishMe": "h_mish",
            "HardSigmoidMe": "hardsigmoid",
        },
    ),
    "mish_cuda.MishCuda": "mish",
}
"""What a class computes, by its full name, so that none of these libraries is imported."""

_OURS = {function: name for name, function in FUNCTIONS.items()}
_FUNCTIONS: dict[Any, str] = {
    **{
        getattr(F, name): name
        for name in (
            *("celu", "elu", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh"),
            *("leaky_relu", "logsigmoid", "mish", "relu", "relu6", "rrelu", "selu", "sigmoid"),
            *("silu", "softplus", "softshrink", "softsign", "tanh", "tanhshrink"),
        )
    },
    torch.relu: "relu",
    torch.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    **_OURS,
}
"""What a function computes."""

FUNCTION_NAMES = (
    frozenset(_FUNCTIONS.values())
    | {reader for reader in _CLASSES.values() if isinstance(reader, str)}
    | ACTIVATIONS.keys()
)
"""The names of functions that a slot may have."""
