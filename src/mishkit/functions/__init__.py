"""The table of activation functions: one line a function.

Order is the order of documentation: baselines first, then the family.
"""

from __future__ import annotations

from ..activation import Activation
from . import gelu, gelu_tanh, h_mish, mish, relu, silu, softplus

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
    )
}
