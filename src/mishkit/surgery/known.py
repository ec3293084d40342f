"""Recognise the activation that a module or function computes: ours, torch's or others'.

Modules are recognised by their exact class, since a subclass may do anything, or else by evaluating
them (`evaluated`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from .._modules import ActivationModule, TrainableModule
from ..functional import FUNCTIONS
from ..functions import ACTIVATIONS
from ..modules import MODULES
from . import deferred
from .evaluated import function_of


@dataclass(frozen=True)
class Known:
    """An activation function, and the values of its parameters."""

    function: str
    """Our name for it, or the name in `torch.nn.functional` if we have no such function."""
    parameters: Mapping[str, float] = field(default_factory=dict)
    inplace: bool = False
    save: str | None = None
    """What our own modules and functions keep for the backward pass; None for others."""
    state: bool = False
    """Whether there are trainable parameters or buffers, which a replacement would lose."""

    @property
    def ours(self) -> bool:
        """Whether mishkit has this function."""
        return self.function in ACTIVATIONS

    @property
    def copies(self) -> bool:
        """Whether it copies its input when it overwrites it. Torch does so unless it computes the
        gradient from the output. The next operation may then overwrite the output too.
        """
        if self.save is not None:
            return self.save == "copy"
        return self.function not in _FROM_OUTPUT

    @property
    def values(self) -> tuple[float, ...]:
        """The parameter values of one of our functions, in order; defaults for those not given."""
        parameters = ACTIVATIONS[self.function].parameters
        return tuple(float(self.parameters.get(p.name, p.default)) for p in parameters)

    def module(self, *, inplace: bool = False, save: str = "input") -> ActivationModule:
        """Our module for it."""
        kind = MODULES[ACTIVATIONS[self.function].module_name]
        return kind(**self.parameters, inplace=inplace, save=save)

    def gating_module(self) -> ActivationModule:
        """Our module for it that computes it together with a product."""
        return deferred.GATING[self.function](**self.parameters)

    def gating_call(self) -> Callable[..., Tensor]:
        """The same as a function that can be pickled."""
        return deferred.call(self.function, self.parameters)

    def call(self, *, inplace: bool = False, save: str = "input") -> Callable[..., Tensor]:
        """Our function for it, in a form that can be pickled."""
        options = {**self.parameters, "inplace": inplace, "save": save}
        return functools.partial(FUNCTIONS[self.function], **options)


def identify(module: nn.Module) -> Known | None:
    """The activation that this module computes; None if it computes none or may have been altered.

    A module whose `forward` was replaced is not identified by its class. Attributes missing in
    modules from old pickles are taken to have torch's defaults.
    """
    if "forward" in vars(module):
        return None
    kind = type(module)
    if kind in _OUR_CLASSES:
        return _ours(module)
    known = _read(kind, module)
    if known is None:
        by_hand = function_of(module)
        return None if by_hand is None else Known(*by_hand)
    inplace = bool(getattr(module, "inplace", False))
    return Known(known.function, known.parameters, inplace, state=_has_state(module))


def function_of_class(kind: type[nn.Module], module: Any) -> str:
    """The function that a module of this known class computes unless it is altered."""
    if kind in _OUR_CLASSES:
        return _our_function(module)
    known = _read(kind, module)
    assert known is not None
    return known.function


def _read(kind: type[nn.Module], module: nn.Module) -> Known | None:
    """What a module computes, according to its class, which isn't ours."""
    reader = _CLASSES.get(_full_name(kind))
    function = reader(module) if callable(reader) else reader
    return None if function is None else Known(function, _parameters(function, module))


def _parameters(function: str, module: nn.Module) -> dict[str, float]:
    """The parameters of one of our functions, which torch's modules have under the same names."""
    known = ACTIVATIONS[function].parameters if function in ACTIVATIONS else ()
    return {p.name: getattr(module, p.name, p.default) for p in known}


def altered(module: nn.Module) -> tuple[type[nn.Module], str] | None:
    """The class of a known activation, and how the module was altered so that it isn't one."""
    parametrized = "parametrizations" in module._modules and is_parametrized(module)
    kind = type_before_parametrizations(module) if parametrized else type(module)
    if not is_known_class(kind):
        return None
    if parametrized:
        return kind, "it is parametrized"
    return (kind, "its forward was replaced") if "forward" in vars(module) else None


def is_known_class(kind: type[nn.Module]) -> bool:
    """Whether modules of this class are activations that `identify` recognises."""
    return kind in _OUR_CLASSES or _full_name(kind) in _CLASSES


def names_of_class(kind: type[nn.Module]) -> frozenset[str]:
    """What a known class gives its modules: attributes, parameters, buffers and submodules.

    Anything else that a module has was added later by its user or a tool.
    """
    if kind not in _NAMES:
        _NAMES[kind] = _names_of(kind)
    return _NAMES[kind]


_NAMES: dict[type[nn.Module], frozenset[str]] = {}


def _names_of(kind: type[nn.Module]) -> frozenset[str]:
    examples = [kind()]
    if issubclass(kind, TrainableModule):
        examples.append(kind(trainable=True))
    return frozenset(name for module in examples for name in contents(module))


def contents(module: nn.Module) -> dict[str, tuple[str, Any]]:
    """Everything a module holds beyond what every module has: by name, the registry and the value.

    Plain attributes have the registry "".
    """
    held = {name: ("", value) for name, value in vars(module).items() if name not in _EVERY_MODULE}
    for registry in REGISTRIES:
        entries = getattr(module, registry, {}).items()
        held.update({name: (registry, value) for name, value in entries})
    return held


REGISTRIES = ("_parameters", "_buffers", "_modules")
_EVERY_MODULE = frozenset(vars(nn.Module()))


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _has_state(module: nn.Module) -> bool:
    """Whether the module has parameters or buffers that its known class defines."""
    held = {*module._parameters, *module._buffers}
    return bool(held) and not held.isdisjoint(names_of_class(type(module)))


def identify_function(function: Callable[..., Any]) -> Known | None:
    """The activation that this function computes, if it is one of torch's or ours."""
    keywords: Mapping[str, Any] = {}
    called: Any = function
    if isinstance(function, functools.partial):
        if function.args:
            return None
        called, keywords = function.func, function.keywords
    if called is deferred.deferred:
        return Known(
            keywords["function"],
            {n: v for n, v in keywords.items() if n != "function"},
            save="input",
        )
    try:
        name = _FUNCTIONS.get(called)
    except TypeError:  # not hashable
        return None
    if name is None:
        return None
    options = dict(keywords)
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


def _ours(module: Any) -> Known:
    name = _our_function(module)
    trained = any(name in module._parameters for name in module.parameter_names)
    values = {p: getattr(module, p) for p in module.parameter_names}
    parameters = {} if trained else {p: float(value) for p, value in values.items()}
    return Known(name, parameters, bool(module.inplace), module.save, _has_state(module))


def _our_function(module: Any) -> str:
    name: str = module.activation.name
    is_tanh = name == "gelu" and getattr(module, "approximate", "none") == "tanh"
    return "gelu_tanh" if is_tanh else name


Reader = str | Callable[[Any], str]
"""What a class computes: a function's name, or a callable that asks the module."""


def _prefixed(module: str, classes: Mapping[str, Reader]) -> dict[str, Reader]:
    return {f"{module}.{name}": reader for name, reader in classes.items()}


def _gelu(module: Any) -> str:
    return "gelu_tanh" if getattr(module, "approximate", "none") == "tanh" else "gelu"


_CLASSES: dict[str, Reader] = {
    **_prefixed(
        "torch.nn.modules.activation",
        {
            "ReLU": "relu",
            "ReLU6": "relu6",
            "LeakyReLU": "leaky_relu",
            "ELU": "elu",
            "SiLU": "silu",
            "Mish": "mish",
            "Hardswish": "hardswish",
            "GELU": _gelu,
            "Softplus": "softplus",
            # We have none of these, but they can be swapped for functions that we do have.
            "CELU": "celu",
            "Hardshrink": "hardshrink",
            "Hardsigmoid": "hardsigmoid",
            "Hardtanh": "hardtanh",
            "LogSigmoid": "logsigmoid",
            "PReLU": "prelu",
            "RReLU": "rrelu",
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
            "QuickGELUActivation": "quick_gelu",
            "ReLUSquaredActivation": "relu2",
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
            "QuickGELU": "quick_gelu",
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
"""What each class computes, by its full name, so that no such library has to be imported."""

_OUR_CLASSES = frozenset((*MODULES.values(), *deferred.GATING.values()))
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
"""What each function computes."""

_FROM_OUTPUT = frozenset(
    ("celu", "elu", "hardtanh", "leaky_relu", "relu", "relu6", "rrelu", "selu", "sigmoid", "tanh")
)
"""Functions whose gradient torch computes from the output when they work in place."""

FUNCTION_NAMES = (
    frozenset(_FUNCTIONS.values())
    | {reader for reader in _CLASSES.values() if isinstance(reader, str)}
    | ACTIVATIONS.keys()
)
"""All function names that a slot can have."""
