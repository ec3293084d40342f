"""The table of activation functions: one line a function.

Order is the order of documentation: baselines first, then the family.
"""

from __future__ import annotations

from ..activation import Activation
from . import (
    aptx,
    gelu,
    gelu_tanh,
    h_mish,
    hard_mish,
    hardswish,
    linear_swish,
    mish,
    piecewise_swish,
    relu,
    silu,
    softplus,
    swish,
)

ACTIVATIONS: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        relu.activation,
        softplus.activation,
        silu.activation,
        gelu.activation,
        gelu_tanh.activation,
        mish.activation,
        h_mish.activation,
        hard_mish.activation,
        hardswish.activation,
        swish.activation,
        piecewise_swish.activation,
        linear_swish.activation,
        aptx.activation,
    )
}
