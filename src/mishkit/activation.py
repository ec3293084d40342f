"""What an activation function must say about itself.

Every function of the family is one `Activation` in one file of `mishkit.functions`. Operators,
autograd rules, modules, tests, benchmarks and documentation are loops over the table of these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Parameter:
    """A scalar parameter of an activation function, fixed for one call."""

    name: str
    default: float
    meaning: str
    nonzero: bool = False


@dataclass(frozen=True)
class Activation:
    """One activation function in plain torch, with its derivatives.

    The four formulas take float32 or float64 tensors (16-bit types are converted around them) and
    the parameters as floats, work on any device, never return NaN for a finite input and return
    their limits at ±inf.
    """

    name: str
    """The function's name: `mishkit.<name>`, and its operators `mishkit::<name>...`."""
    module_name: str
    """The name of its `torch.nn.Module`."""
    formula: str
    """f(x) in Unicode, for documentation."""
    source: str
    """The paper or specification that defines it."""
    f: Callable[..., Tensor]
    """f(x, *parameters), differentiable by autograd to any order."""
    df: Callable[..., Tensor]
    """f'(x, *parameters), differentiable by autograd."""
    d2f: Callable[..., Tensor]
    """f''(x, *parameters), differentiable by autograd."""
    df_y: Callable[..., Tensor]
    """f' from the output: df_y(y, right, saved, *parameters).

    `right` is the decoded side (bool; ignored where the function is monotone) and `saved` the
    dtype that y was rounded to before it was converted.
    """
    turn: float | None
    """The input at which f has its minimum; None for a monotone function."""
    portable: Callable[..., Tensor]
    """f as one operator of torch's own (or the shortest expression), for export to other tools."""
    parameters: tuple[Parameter, ...] = ()
    torch_function: str | None = None
    """The function's name in `torch.nn.functional`, if torch has it under the same arguments."""

    @property
    def defaults(self) -> tuple[float, ...]:
        """The parameters' default values, in order."""
        return tuple(parameter.default for parameter in self.parameters)

    def check(self, *values: float) -> None:
        """Raise ValueError for parameters that the formula can't take."""
        for parameter, value in zip(self.parameters, values, strict=True):
            if parameter.nonzero and value == 0:
                raise ValueError(f"mishkit.{self.name}: {parameter.name} must not be zero")
