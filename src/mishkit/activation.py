"""What an activation function must say about itself.

Every function of the family is one `Activation` in one file of `mishkit.functions`. Operators,
autograd rules, modules, tests, benchmarks and documentation are loops over the table of these.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from ._twin import Twin

if TYPE_CHECKING:
    from .functions._branch_fit import Minimum

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Parameter:
    """A parameter of an activation function: a number, or a tensor where it can be trained."""

    name: str
    default: float
    meaning: str
    nonzero: bool = False
    positive: bool = False
    smallest: float = 0.0
    """What is nearer to 0 is refused, but for 0: products of it would leave float32."""
    largest: float = math.inf
    """What is greater in size is refused, for the same reason."""
    infinite: bool = False
    """Whether inf is a value too."""

    def check(self, value: float) -> str | None:
        """What the formula can't take about a value, if anything."""
        most = math.inf if self.infinite else sys.float_info.max
        if not -math.inf < value <= most:  # in terms that torch.compile can follow
            return "must be finite or inf" if self.infinite else "must be finite"
        if self.nonzero and value == 0:
            return "must not be zero"
        if self.positive and value <= 0:
            return "must be positive"
        if value != 0 and not self.smallest <= abs(value) <= self.largest:
            return f"must be of a size from {self.smallest:g} to {self.largest:g}, not {value:g}"
        return None


def _never(*_: float) -> bool:
    return False


def _allow(*_: float) -> None:
    pass


class Formulas(Protocol):
    """What plain torch needs of a function to compute it from its input."""

    @property
    def name(self) -> str: ...
    @property
    def f(self) -> Callable[..., Tensor]: ...
    @property
    def df(self) -> Callable[..., Tensor]: ...
    @property
    def d2f(self) -> Callable[..., Tensor]: ...
    @property
    def is_dead(self) -> bool | Callable[..., bool]: ...


class OnnxWriter(Protocol):
    """Writes nodes that compute something of x, in the operators of an ONNX opset.

    ``write("Mul", write.x, 2.0)`` writes a node and gives its output; numbers become constants of
    x's dtype, and keywords attributes.
    """

    @property
    def x(self) -> Any: ...
    @property
    def opset(self) -> int: ...
    def __call__(self, operator: str, *inputs: Any, **attributes: Any) -> Any: ...
    def scaled(self, x: Any, factor: float) -> Any: ...
    def swish(self, beta: float) -> Any: ...
    def hard(self, slope: float, middle: float) -> Any: ...


@dataclass(frozen=True, eq=False)  # each is itself alone, and quick to look up by
class Activation:
    """One activation function in plain torch, with its derivatives.

    The formulas take float32 or float64 tensors (16-bit types are converted around them) and the
    parameters as floats, work on any device, never return NaN for a finite input and return their
    limits at ±inf. Where the parameters can be trained, f, df, d2f and dp take them as tensors too,
    which broadcast with the input, and autograd differentiates towards them.
    """

    name: str
    """The function's name: `mishkit.<name>`, and its operators `mishkit::<name>...`."""
    module_name: str
    """The name of its `torch.nn.Module`."""
    formula: str
    """f(x) in Unicode, for documentation."""
    expression: str
    """f(x) and its parameters in SymPy's notation, as the source defines it: what all else is
    tested against."""
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
    turn: float | Callable[..., float] | None
    """The input at which f has its minimum, or the function of the parameters that gives it and
    raises ValueError where f has not exactly one; None for a monotone function."""
    minimum: Minimum | Callable[..., Minimum | None] | None
    """The parabola that f is beside its turn, or the function of the parameters that gives it; None
    where there is none."""
    portable: Callable[..., Tensor]
    """f as one operator of torch's own (or the shortest expression), for export to other tools."""
    twin: Twin
    """The same formulas in Triton."""
    to_onnx: Callable[..., Any]
    """Writes f in ONNX's standard operators: to_onnx(write, *parameters), see `OnnxWriter`."""
    parameters: tuple[Parameter, ...] = ()
    dp: Callable[..., tuple[Tensor, ...]] | None = None
    """The derivatives of f towards its parameters, dp(x, *parameters); None if they are fixed."""
    iterates: Callable[..., bool] = _never
    """Whether df_y must invert f step by step for these parameters, in any dtype; in float64 it
    may always."""
    is_dead: bool = False
    """Whether f' is 0 on a whole side. There no gradient passes, not even an infinite one, as in
    torch's own functions."""
    made_of: Literal["lines", "polynomials", "one exponential", "more"] = "more"
    """What the benchmarks hold its price against: lines and polynomials cost what ReLU costs,
    and an exponential with a division what Mish costs. Of lines f'' is 0, so that nothing that it
    would be multiplied by is read."""
    ulp: float = 4
    """The greatest error of f in float32 that the kernels promise."""
    check_output: Callable[..., None] = _allow
    """Raises ValueError for parameters with which one output belongs to inputs of different slopes
    on one side of the turn."""
    published: tuple[tuple[str, tuple[float, ...]], ...] = ()
    """Values of the parameters that were published for this form, each with where or as what."""
    torch_function: str | None = None
    """The function's name in `torch.nn.functional`, if torch has it under the same arguments."""

    @property
    def defaults(self) -> tuple[float, ...]:
        """The parameters' default values, in order."""
        return tuple(parameter.default for parameter in self.parameters)

    @property
    def trainable(self) -> bool:
        """Whether the parameters may be tensors, with gradients."""
        return self.dp is not None

    def turn_at(self, *parameters: float) -> float | None:
        """The turn for these parameters; ValueError where the output and the side of the turn don't
        give the gradient, as f has not exactly one minimum, or jumps."""
        self.check_output(*parameters)
        return self.turn(*parameters) if callable(self.turn) else self.turn

    def minimum_at(self, *parameters: float) -> Minimum | None:
        """The parabola that f is beside its turn for these parameters, if there is one."""
        return self.minimum(*parameters) if callable(self.minimum) else self.minimum

    def check(self, *values: float) -> None:
        """Raise ValueError for parameters that the formula can't take."""
        for parameter, value in zip(self.parameters, values, strict=True):
            wrong = parameter.check(value)
            if wrong:
                raise ValueError(f"mishkit.{self.name}: {parameter.name} {wrong}")
