"""The networks that the contenders are compared in: two of our own, or any model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

import mishkit as mk
from mishkit.surgery.known import FUNCTION_NAMES

from . import LabError, models
from .contenders import Contender
from .data import Labelled

STRIDES = (1, 1, 2, 1, 2, 1, 1)
UNITS_A_CHANNEL = 8
"""How many units a layer of `mlp` has, by channel of `seven_layers`."""
GATES = frozenset(("sigmoid", "hardsigmoid", "logsigmoid"))
"""Functions that weight or bound something: no place for an activation that grows."""
OWN = ("auto", "seven-layer", "mlp")


def build(
    name: str,
    options: Sequence[str],
    data: Labelled,
    channels: int,
    contender: Contender,
    seed: int,
) -> tuple[nn.Module, str, int]:
    """The model called `name` for this data with `contender` in it; its name; its sites.

    "auto" is the seven-layer network for images and the MLP for tables; any other name is one of
    `models.KINDS`, whose activations give way to the contender wherever surgery reaches them, gates
    (sigmoid and its like) apart. `seed` decides the first weights, whatever the contender.

    Raises
    ------
    LabError
        if there is no such model, if it does not take this data or return a score a class, if it
        has no site, or if it needs what an activation in place overwrites
    """
    images = len(data.shape) == 3
    if name == "auto":
        name = "seven-layer" if images else "mlp"
    if name in OWN:
        if options:
            raise LabError(f"the model {name} has no options; --channels says how wide it is")
        if images != (name == "seven-layer"):
            raise LabError(f"the model {name} does not take {data.name}; auto takes both")
        if images:
            network: nn.Module = seven_layers(data.classes, data.shape[0], channels, contender.make)
        else:
            network = mlp(data.classes, data.shape[0], UNITS_A_CHANNEL * channels, contender.make)
        initialise(network, seed)
        return network, name, len(STRIDES) if images else MLP_LAYERS
    network = models.build(
        name, options, seed=seed, num_classes=data.classes, in_chans=data.shape[0]
    )
    make = _maker(contender)
    replaced = mk.swap(network, dict.fromkeys(sorted(FUNCTION_NAMES - GATES), make))
    if not replaced:
        raise LabError(f"{name} has no activation that can be replaced")
    _try(network, name, data, contender)
    return network, name, len(replaced)


def _maker(contender: Contender) -> Callable[[Any], nn.Module]:
    return lambda old: contender.make()


@torch.no_grad()
def _try(network: nn.Module, name: str, data: Labelled, contender: Contender) -> None:
    """One pass over two samples, and where the contender works in place, another without."""
    x = data.train_inputs[:2]
    network.eval()
    try:
        scores = network(x.clone())
    except Exception as error:  # whatever a model may raise
        reason = " ".join(str(error).split())
        raise LabError(f"{name} does not take {data.name}, {tuple(x.shape)}: {reason}") from error
    if not isinstance(scores, torch.Tensor) or scores.shape != (len(x), data.classes):
        raise LabError(f"{name} does not return a score for each of the {data.classes} classes")
    in_place: list[Any] = [
        module for module in network.modules() if getattr(module, "inplace", False)
    ]
    if in_place and getattr(contender.make(), "inplace", False):
        for module in in_place:
            module.inplace = False
        same = torch.equal(scores, network(x.clone()))
        for module in in_place:
            module.inplace = True
        if not same:
            raise LabError(f"{name} needs what {contender.name} overwrites in place")
    network.train()


MLP_LAYERS = 3


def mlp(
    classes: int, features: int, units: int, activation: Callable[[], nn.Module]
) -> nn.Sequential:
    """Three layers of `units` with an activation each, and a linear classifier.

    Input (n, features), output (n, classes).
    """
    layers: list[nn.Module] = []
    width = features
    for _ in range(MLP_LAYERS):
        layers += [nn.Linear(width, units), activation()]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, classes))


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

    Layers after He et al. (2015): normal with variance 2/fan_in, which keeps the second moment of a
    ReLU network from layer to layer. E f(x)² under N(0, 1) is 0.500 for ReLU, 0.452 for Mish and
    0.564 for H-Mish, so one rule serves them all. The classifier, which comes last, has variance
    1/fan_in. Biases are zero.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        # kaiming_normal_ gives variance 2/fan_in for "relu" and 1/fan_in for "linear".
        gain: Literal["relu", "linear"] = "linear" if layer is layers[-1] else "relu"
        nn.init.kaiming_normal_(layer.weight, nonlinearity=gain, generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
