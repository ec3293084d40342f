"""Export in the form that is fastest in the runtime that the model is for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .activation import Activation
from .forms import STANDARD, Form
from .functions._fastest import FASTEST

FAST = "fast"
RUNTIMES = tuple(FASTEST)
"""The runtimes in which the forms were timed; ``"fast"`` alone means the first."""


@contextmanager
def export_form(form: str) -> Iterator[None]:
    """Within this context, torch.export and torch.onnx.export write mishkit's functions in a form.

    Every form computes the same function in standard operators. In ``"standard"``, which is the
    default, that is one operator where there is one: Mish becomes ``Mish``. In ``"fast"`` it is
    whatever takes the least time: for ONNX Runtime, Mish becomes ``Sigmoid`` and five operators of
    arithmetic, which take a tenth of the time. In float16 every form is finite for finite inputs.
    What runs eagerly or is compiled is not affected.

    Parameters
    ----------
    form : str
        ``"standard"``; ``"fast"``, for ONNX Runtime; or ``"fast:RUNTIME"``, where RUNTIME is one of
        `mishkit.export.RUNTIMES`

    Raises
    ------
    ValueError
        if there is no such form

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), mk.Mish())
    >>> with mk.export_form("fast"):
    ...     program = torch.export.export(model, (torch.randn(1, 4),))
    """
    check(form, "mishkit.export_form")
    global _form
    before, _form = _form, form
    try:
        yield
    finally:
        _form = before


_form = STANDARD
"""The form for exports; a global, as TorchDynamo can read no context variable."""


def check(form: str, caller: str, others: str = "") -> None:
    """Raise ValueError unless this is a form; `others` says what else the caller takes."""
    if form not in (STANDARD, FAST, *(f"{FAST}:{runtime}" for runtime in RUNTIMES)):
        raise ValueError(
            f'{caller}: a form is "{STANDARD}", "{FAST}"{others} or "{FAST}:RUNTIME" with one of '
            f"{', '.join(RUNTIMES)}, not {form!r}"
        )


def chosen(a: Activation, form: str) -> Form:
    """The form of a function that `form`, which has been checked, stands for."""
    if form == STANDARD:
        return a.form()
    return a.form(FASTEST[form.partition(":")[2] or RUNTIMES[0]].get(a.name, STANDARD))


def exported(a: Activation, x: Tensor, parameters: Sequence[Any]) -> Tensor:
    """f(x) in torch's own operators, in the form that the context asks for."""
    form = chosen(a, _form)
    if form.name == STANDARD:
        return portable(a, x, parameters)
    result: Tensor = form.write(TorchWriter(x), *parameters)
    return result


def portable(a: Activation, x: Tensor, parameters: Sequence[Any]) -> Tensor:
    """f(x) in torch's own operators, as few as there are."""
    return a.portable(x, *parameters)


@dataclass(frozen=True)
class TorchWriter:
    """Computes a form in torch's operators, each of which rounds to x's dtype."""

    x: Any
    """A tensor."""
    lacks: frozenset[str] = frozenset()
    """The operators that the opset does not have."""

    def __call__(self, operator: str, *inputs: Any, **attributes: Any) -> Any:
        return OPERATORS[operator](*inputs, **attributes)

    def has(self, operator: str) -> bool:
        return operator not in self.lacks

    def scaled(self, x: Any, factor: Any) -> Any:
        return x if isinstance(factor, float) and factor == 1 else x * factor

    def clip(self, x: Any, low: float, high: float) -> Any:
        return torch.clamp(x, low, high)

    def swish(self, beta: Any) -> Any:
        return self.x * torch.sigmoid(self.scaled(self.x, beta))

    def hard(self, slope: float, middle: float) -> Any:
        if (slope, middle) == (1 / 6, 0.5) and self.has("HardSwish"):
            return F.hardswish(self.x)
        return self.x * _hard_sigmoid(self.x, alpha=slope, beta=middle)


def _clip(x: Tensor, low: Any = None, high: Any = None, *, min: Any = None, max: Any = None) -> Any:
    """Bounds are attributes before opset 11."""
    low, high = (low if min is None else min), (high if max is None else max)
    return x if low is None and high is None else torch.clamp(x, low, high)


def _least(x: Any, y: Any) -> Tensor:
    return torch.minimum(x, y) if isinstance(y, Tensor) else torch.clamp_max(x, y)


def _greatest(x: Any, y: Any) -> Tensor:
    return torch.maximum(x, y) if isinstance(y, Tensor) else torch.clamp_min(x, y)


def _hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def _swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return x * torch.sigmoid(alpha * x)


def _selu(x: Tensor, *, alpha: float = 1.67326319, gamma: float = 1.05070102) -> Tensor:
    return gamma * F.elu(x, alpha)


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "And": torch.logical_and,
    "Celu": lambda x, *, alpha=1.0: F.celu(x, alpha),
    "Clip": _clip,
    "Div": torch.div,
    "Elu": lambda x, *, alpha=1.0: F.elu(x, alpha),
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Gelu": lambda x, *, approximate="none": F.gelu(x, approximate=approximate),
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "LeakyRelu": lambda x, *, alpha=0.01: F.leaky_relu(x, alpha),
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "Max": _greatest,
    "Min": _least,
    "Mish": F.mish,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Pow": torch.pow,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Selu": _selu,
    "Sigmoid": torch.sigmoid,
    "Softplus": lambda x: F.softplus(x, threshold=40),
    "Softsign": F.softsign,
    "Sub": lambda x, y: x - y,
    "Swish": _swish,
    "Tanh": torch.tanh,
    "Where": torch.where,
}
"""ONNX's elementwise operators that activations consist of, in torch, with ONNX's own defaults."""
