"""The functions as modules, with the names and arguments of `torch.nn`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from .functional import FUNCTIONS, SAVE
from .functions import ACTIVATIONS

if TYPE_CHECKING:  # what the last line of this file brings
    from ._module_types import *  # noqa: F403


class ActivationModule(nn.Module):
    """An activation function as a module: its arguments are attributes, passed at each call.

    Input and output: any shape. There are no parameters and no state.
    """

    function: ClassVar[Callable[..., Tensor]]
    """The function of `mishkit.functional`."""
    arguments: ClassVar[inspect.Signature]
    """The arguments of the constructor: those of the function, without input and out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        try:
            bound = self.arguments.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}{self.arguments}: {error}") from None
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            setattr(self, name, value)
        if self.save not in SAVE:
            raise ValueError(
                f'{type(self).__name__}: save must be "input" or "output", not {self.save!r}'
            )

    def forward(self, input: Tensor) -> Tensor:
        options = {name: getattr(self, name) for name in self.arguments.parameters}
        return type(self).function(input, **options)

    def extra_repr(self) -> str:
        """What was given, in the style of torch.nn: parameters always, options where set."""
        shown = []
        for name, argument in self.arguments.parameters.items():
            value = getattr(self, name)
            if name not in ("inplace", "save") or value != argument.default:
                shown.append(f"{name}={value!r}")
        return ", ".join(shown)


def _module(name: str, function: Callable[..., Tensor]) -> type[ActivationModule]:
    parameters = inspect.signature(function, eval_str=True).parameters
    # torch.nn.GELU takes `approximate` by position, torch.nn.functional.gelu by name.
    order = sorted(
        (p for p in parameters.values() if p.name not in ("input", "out")),
        key=lambda p: p.name in ("inplace", "save"),
    )
    either, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    arguments = [p.replace(kind=keyword if p.name == "save" else either) for p in order]
    return type(
        name,
        (ActivationModule,),
        {
            "__doc__": function.__doc__,
            "__module__": __name__,
            "function": staticmethod(function),
            "arguments": inspect.Signature(arguments),
            "__signature__": inspect.Signature(arguments),
        },
    )


MODULES = {
    activation.module_name: _module(activation.module_name, FUNCTIONS[name])
    for name, activation in ACTIVATIONS.items()
}
"""The modules by name."""
globals().update(MODULES)
