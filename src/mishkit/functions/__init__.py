"""The table of activation functions: one line a function.

Order is the order of documentation: baselines first, then the family.
"""

from __future__ import annotations

from ..activation import Activation
from . import (
    aptx,
    elu,
    gelu,
    gelu_tanh,
    h_mish,
    hard_mish,
    hardswish,
    leaky_relu,
    linear_swish,
    mish,
    piecewise_swish,
    quick_gelu,
    relu,
    relu2,
    relu6,
    silu,
    softplus,
    swish,
)

ACTIVATIONS: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        relu.activation,
        relu6.activation,
        relu2.activation,
        leaky_relu.activation,
        elu.activation,
        softplus.activation,
        silu.activation,
        gelu.activation,
        gelu_tanh.activation,
        quick_gelu.activation,
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
