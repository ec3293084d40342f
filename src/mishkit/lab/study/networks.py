"""The networks in which the contenders are compared: three of our own, or any model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

import mishkit as mk
from mishkit.surgery.known import FUNCTION_NAMES

from .. import LabError
from ..common import models
from ..common.contenders import Contender
from ..common.errors import telling
from .data import Labelled

STRIDES = (1, 1, 2, 1, 2, 1, 1)
UNITS_A_CHANNEL = 8
"""Units in a layer of `mlp` for each channel of `seven_layers`."""
GATES = frozenset(("sigmoid", "hardsigmoid", "logsigmoid"))
"""Functions that weight or bound something; an unbounded activation can't replace them."""
OWN = ("auto", "seven-layer", "mlp", "transformer")


def build(
    name: str,
    options: Sequence[str],
    data: Labelled,
    channels: int,
    contender: Contender,
    seed: int,
) -> tuple[nn.Module, str, int]:
    """The model called `name` for this data with `contender` in it; its name; its site count.

    "auto" means the seven-layer network for images, the MLP for tables and the transformer for
    sentences. Any other name is one of `models.KINDS`; its activations are replaced by the
    contender wherever surgery reaches them, except gates (sigmoid and the like). `seed` determines
    the initial weights, whatever the contender.

    Raises
    ------
    LabError
        if there is no such model, if it does not take this data or return a score per class, if it
        has no site, or if it needs what an in-place activation overwrites
    """
    fitting = "transformer" if data.tokens else "seven-layer" if len(data.shape) == 3 else "mlp"
    if name == "auto":
        name = fitting
    if name in OWN:
        if options:
            raise LabError(f"the model {name} has no options; --channels says how wide it is")
        if name != fitting:
            raise LabError(f"the model {name} does not take {data.name}; auto takes all")
        if name == "transformer":
            width = TRANSFORMER_WIDTH_A_CHANNEL * channels
            return transformer(data, width, contender.make, seed), name, TRANSFORMER_LAYERS
        if name == "seven-layer":
            network: nn.Module = seven_layers(data.classes, data.shape[0], channels, contender.make)
        else:
            network = mlp(data.classes, data.shape[0], UNITS_A_CHANNEL * channels, contender.make)
        initialise(network, seed)
        return network, name, len(STRIDES) if name == "seven-layer" else MLP_LAYERS
    sizes = {"num_tokens": data.tokens} if data.tokens else {"in_chans": data.shape[0]}
    network = models.build(name, options, seed=seed, num_classes=data.classes, **sizes)
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
    """Try a pass over two samples; if the contender works in place, also one where it doesn't."""
    x = data.train_inputs[:2]
    network.eval()
    with telling(f"{name} does not take {data.name}, {tuple(x.shape)}"):
        scores = network(x.clone())
    if not isinstance(scores, torch.Tensor) or scores.shape != (len(x), data.classes):
        raise LabError(f"{name} does not return a score for each of the {data.classes} classes")
    in_place: list[Any] = [
        module for module in network.modules() if getattr(module, "inplace", False)
    ]
    if in_place and getattr(contender.make(), "inplace", False):
        for module in in_place:
            module.inplace = False
        is_same = torch.equal(scores, network(x.clone()))
        for module in in_place:
            module.inplace = True
        if not is_same:
            raise LabError(f"{name} needs what {contender.name} overwrites in place")
    network.train()


MLP_LAYERS = 3


def mlp(
    classes: int, features: int, units: int, activation: Callable[[], nn.Module]
) -> nn.Sequential:
    """Three layers of `units`, each with an activation, and a linear classifier.

    Input (n, features), output (n, classes).
    """
    layers: list[nn.Module] = []
    width = features
    for _ in range(MLP_LAYERS):
        layers += [nn.Linear(width, units), activation()]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, classes))


TRANSFORMER_LAYERS, TRANSFORMER_HEADS, TRANSFORMER_WIDTH_A_CHANNEL = 2, 4, 4


class Transformer(nn.Module):
    """A sentence encoder. The activation is between the two linear layers of each block, the first
    of which is four times as wide as the rest. The last block's outputs are averaged over the words
    and fed to a linear classifier.

    Input (n, length) int64, 0 for no word; output (n, classes).
    """

    def __init__(
        self,
        classes: int,
        tokens: int,
        length: int,
        width: int,
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(tokens, width, padding_idx=0)
        self.places = nn.Parameter(torch.empty(length, width))
        for table in (self.words.weight, self.places):
            nn.init.normal_(table, std=0.02)
        # Not nn.TransformerEncoder, whose layers are copies with identical weights.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                TRANSFORMER_HEADS,
                4 * width,
                0.0,  # no dropout
                activation(),
                batch_first=True,
                norm_first=True,
            )
            for _ in range(TRANSFORMER_LAYERS)
        )
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        missing = input == 0
        x = self.words(input) + self.places
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=missing)
        x = self.norm(x).masked_fill(missing[..., None], 0)
        return self.classifier(x.sum(1) / (~missing).sum(1, keepdim=True).clamp_min(1))


def transformer(
    data: Labelled, width: int, activation: Callable[[], nn.Module], seed: int
) -> Transformer:
    """`Transformer` for this data, with PyTorch's default initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Transformer(data.classes, data.tokens, data.shape[0], width, activation)


def seven_layers(
    classes: int, in_channels: int, channels: int, activation: Callable[[], nn.Module]
) -> nn.Sequential:
    """Seven convolution/activation layers, the mean over space, and a linear classifier.

    Input (n, in_channels, height, width), any height and width; output (n, classes). With few
    channels at high resolution, the activations are a large part of the work. There is no
    normalisation, so only the activation determines what the next layer sees.
    """
    layers: list[nn.Module] = []
    width = in_channels
    for stride in STRIDES:
        layers += [nn.Conv2d(width, channels, 3, stride, padding=1), activation()]
        width = channels
    return nn.Sequential(*layers, SpatialMean(), nn.Linear(channels, classes))


class SpatialMean(nn.Module):
    """(n, c, h, w) → (n, c); unlike adaptive pooling, its gradient is deterministic on CUDA."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input.mean((2, 3))


def initialise(network: nn.Module, seed: int) -> None:
    """Redraw the weights: the same for every activation, given the same seed.

    Layers follow He et al. (2015): normal with variance 2/fan_in, which preserves the second moment
    of a ReLU network from layer to layer. E f(x)² under N(0, 1) is 0.500 for ReLU, 0.452 for Mish
    and 0.564 for H-Mish, so one rule suits them all. The classifier, which comes last, has variance
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
