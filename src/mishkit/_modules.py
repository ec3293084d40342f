"""What the modules of `mishkit.modules` share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ._calls import SAVE, Save
from .activation import Activation
from .functions import ACTIVATIONS

OPTIONS = ("inplace", "save", "trainable", "num_parameters")
"""Arguments that a module's repr shows only if they differ from the default."""


standard = tuple(getattr(nn, a.module_name) for a in ACTIVATIONS.values() if a.torch_function)
"""torch's classes that ours derive from, where torch has the function."""


class Unscriptable(nn.Module):
    """Base of our modules, which torch.jit.script can't compile."""

    way_out: ClassVar[str] = "torch.jit.trace the model"

    def __prepare_scriptable__(self) -> nn.Module:
        """Called by torch.jit.script, which can't compile functions with keyword arguments."""
        raise RuntimeError(
            f"{type(self).__name__}: torch.jit.script can't compile mishkit's modules; "
            f"{self.way_out}"
        )


class ActivationModule(Unscriptable):
    """An activation function as a module. Its arguments are attributes, passed on at each call.

    Input and output can have any shape. There are no parameters and no state unless the class says
    so.
    """

    activation: ClassVar[Activation]
    """The definition of the function."""
    function: ClassVar[Callable[..., Tensor]]
    """The function of `mishkit.functional`."""
    arguments: ClassVar[Mapping[str, Any]]
    """The arguments of the constructor, with their defaults."""
    parameter_names: ClassVar[tuple[str, ...]]
    """Which of the arguments are parameters of the function."""

    way_out = "torch.jit.trace the model, or put torch's modules back (mishkit.unswap)"
    __jit_ignored_attributes__: ClassVar = ["inplace", "save"]

    inplace: bool
    save: Save

    def __init_subclass__(cls) -> None:
        if "activation" in vars(cls):
            _, *parameters = inspect.signature(cls.__init__).parameters.values()
            cls.arguments = {parameter.name: parameter.default for parameter in parameters}
            cls.parameter_names = tuple(p.name for p in cls.activation.parameters)

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        for name, value in arguments.items():
            is_number = name in self.parameter_names and isinstance(value, Tensor)
            setattr(self, name, float(value) if is_number else value)
        if self.save not in SAVE:
            raise ValueError(
                f'{type(self).__name__}: save must be "input", "output" or "copy", '
                f"not {self.save!r}"
            )
        if not isinstance(self.inplace, bool):
            raise TypeError(
                f"{type(self).__name__}: inplace must be True or False, not {self.inplace!r}"
            )
        self._check(float(getattr(self, name)) for name in self.parameter_names)

    def __prepare_scriptable__(self) -> nn.Module:
        """Called by torch.jit.script, which compiles torch's own functions, if there is one."""
        return self if isinstance(self, standard) else super().__prepare_scriptable__()

    def _check(self, values: Iterable[float]) -> None:
        """Raise ValueError for parameters that this module can't compute with."""
        parameters = tuple(values)
        self.activation.check(*parameters)
        if self.save == "output":
            self.activation.turn_at(*parameters)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name, default in self.arguments.items():
            if not hasattr(self, name):  # pickled before there was such an argument
                setattr(self, name, default)

    def forward(self, input: Tensor) -> Tensor:
        options = {name: getattr(self, name) for name in self.arguments}
        return type(self).function(input, **options)

    def extra_repr(self) -> str:
        """The arguments in the style of torch.nn: parameters always, options only where set."""
        shown = []
        for name, default in self.arguments.items():
            value = getattr(self, name)
            if isinstance(value, nn.Parameter) or (name in OPTIONS and value == default):
                continue
            shown.append(f"{name}={value!r}")
        return ", ".join(shown)


class TrainableModule(ActivationModule):
    """An activation function whose parameters are either plain numbers or trained.

    Input and output can have any shape. If `num_parameters` is more than 1, dimension 1 must have
    that many channels, as in `torch.nn.PReLU`. Trained parameters are `torch.nn.Parameter`s of
    shape () or (num_parameters,). Fixed ones are Python numbers: converting the module's dtype does
    not round them, and they have no keys in the state_dict. If a checkpoint has such keys, because
    it comes from a trained module or from the package that published `APTx`, its values are loaded.
    """

    trainable: bool
    num_parameters: int

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        name = type(self).__name__
        if self.num_parameters < 1 or (self.num_parameters > 1 and not self.trainable):
            raise ValueError(
                f"{name}: num_parameters={self.num_parameters} needs to be 1, or more where "
                "trainable=True"
            )
        if self.trainable and (self.save == "output" or (self.inplace and self.save != "copy")):
            raise ValueError(
                f'{name}: save="output" and inplace=True exclude trainable=True; the gradients of '
                'the parameters need the input, or with save="copy" a copy'
            )
        if not self.trainable:
            return
        shape = () if self.num_parameters == 1 else (self.num_parameters,)
        for parameter in self.parameter_names:
            initial = torch.full(shape, float(getattr(self, parameter)))
            delattr(self, parameter)
            setattr(self, parameter, nn.Parameter(initial))

    def forward(self, input: Tensor) -> Tensor:
        values = [getattr(self, name) for name in self.parameter_names]
        return type(self).function(input, *values, inplace=self.inplace, save=self.save)

    def take_numbers(
        self, state_dict: Mapping[str, Any], prefix: str, error_msgs: list[str]
    ) -> Mapping[str, Any]:
        """Load the fixed parameters found in a state_dict; returns the state_dict without them."""
        own = {} if self.trainable else {prefix + name: name for name in self.parameter_names}
        present = state_dict.keys() & own.keys()
        if not present:
            return state_dict
        try:
            numbers = {own[key]: _number(state_dict[key]) for key in present}
            self._check(numbers.get(name, getattr(self, name)) for name in self.parameter_names)
        except (RuntimeError, TypeError, ValueError) as error:
            error_msgs.append(f"{type(self).__name__}, {', '.join(sorted(present))}: {error}")
        else:
            for name, number in numbers.items():
                setattr(self, name, number)
        return {key: value for key, value in state_dict.items() if key not in present}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(
            self.take_numbers(state_dict, prefix, args[-1]), prefix, *args
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        vars(self).pop("_numbers", None)
        if not self.trainable:  # older pickles keep the numbers in buffers
            for name in self._buffers.keys() & {*self.parameter_names}:
                number: Any = self._buffers.pop(name)
                vars(self)[name] = float(number)


def _number(value: Any) -> float:
    count = value.numel() if isinstance(value, Tensor) else 1
    if count != 1:
        raise ValueError(
            f"there are {count} numbers, one a channel; only a module with trainable=True and "
            f"num_parameters={count} has as many"
        )
    return float(value)
