"""The network that the contenders are compared in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

STRIDES = (1, 1, 2, 1, 2, 1, 1)


def seven_layers(
    classes: int, in_channels: int, channels: int, activation: Callable[[], nn.Module]
) -> nn.Sequential:
    """Seven convolution/activation layers, the mean over space, and a linear classifier.

    Input (n, in_channels, height, width), any height and width; output (n, classes). Few channels
    at high resolution make the activations a large part of the work; nothing is normalised, so the
    activation alone shapes what the next layer sees.
    """
    layers: list[nn.Module] = []
    width = in_channels
    for stride in STRIDES:
        layers += [nn.Conv2d(width, channels, 3, stride, padding=1), activation()]
        width = channels
    return nn.Sequential(*layers, SpatialMean(), nn.Linear(channels, classes))


class SpatialMean(nn.Module):
    """(n, c, h, w) → (n, c); unlike adaptive pooling its gradient is deterministic on CUDA."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input.mean((2, 3))


def initialise(network: nn.Module, seed: int) -> None:
    """Draws the weights anew: the same for every activation, given the same seed.

    Convolutions after He et al. (2015): normal with variance 2/fan_in, which keeps the second
    moment of a ReLU network from layer to layer. E f(x)² under N(0, 1) is 0.500 for ReLU, 0.452 for
    Mish and 0.564 for H-Mish, so one rule serves them all. The classifier has variance 1/fan_in.
    Biases are zero.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            # kaiming_normal_ gives variance 2/fan_in for "relu" and 1/fan_in for "linear".
            gain: Literal["relu", "linear"] = "relu" if isinstance(module, nn.Conv2d) else "linear"
            nn.init.kaiming_normal_(module.weight, nonlinearity=gain, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
