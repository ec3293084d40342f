"""Networks for `make gpu`, written out so that they need neither timm nor transformers.

Each has the layers and the number of parameters of the network whose name it bears. Weights are
random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---- ResNet --------------------------------------------------------------------------------------


def _conv_norm(
    ins: int, outs: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    padding = kernel // 2
    conv = nn.Conv2d(ins, outs, kernel, stride, padding, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outs)]


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut."""

    def __init__(self, ins: int, width: int, stride: int) -> None:
        super().__init__()
        outs = 4 * width
        self.body = nn.Sequential(
            *(*_conv_norm(ins, width, 1), nn.Mish()),
            *(*_conv_norm(width, width, 3, stride), nn.Mish()),
            *_conv_norm(width, outs, 1),
        )
        changes = stride != 1 or ins != outs
        self.shortcut = (
            nn.Sequential(*_conv_norm(ins, outs, 1, stride)) if changes else nn.Identity()
        )
        self.act = nn.Mish()

    def forward(self, x: Tensor) -> Tensor:
        """x and its change, activated."""
        return self.act(self.body(x) + self.shortcut(x))


def resnet(depths: Sequence[int] = (3, 4, 6, 3), width: int = 64, classes: int = 1000) -> nn.Module:
    """ResNet-50 with Mish in place of ReLU."""
    layers: list[nn.Module] = [*_conv_norm(3, width, 7, 2), nn.Mish(), nn.MaxPool2d(3, 2, 1)]
    ins = width
    for stage, depth in enumerate(depths):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            layers.append(Bottleneck(ins, width << stage, stride))
            ins = 4 * (width << stage)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(ins, classes))


# ---- EfficientNet --------------------------------------------------------------------------------


class Squeeze(nn.Module):
    """Channels weighted by what they hold on average."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """x times its weights."""
        weights = self.up(self.act(self.down(x.mean((2, 3), keepdim=True))))
        return x * weights.sigmoid()


class Inverted(nn.Module):
    """An inverted bottleneck with squeeze and excitation."""

    def __init__(self, ins: int, outs: int, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = ins * expand
        widened = [*_conv_norm(ins, wide, 1), nn.SiLU()] if expand != 1 else []
        self.body = nn.Sequential(
            *widened,
            *(*_conv_norm(wide, wide, kernel, stride, groups=wide), nn.SiLU()),
            Squeeze(wide, max(1, ins // 4)),
            *_conv_norm(wide, outs, 1),
        )
        self.adds = stride == 1 and ins == outs

    def forward(self, x: Tensor) -> Tensor:
        """The change of x, added to x where the shapes are the same."""
        y = self.body(x)
        return x + y if self.adds else y


B0 = (
    (1, 16, 1, 3, 1),
    (2, 24, 6, 3, 2),
    (2, 40, 6, 5, 2),
    (3, 80, 6, 3, 2),
    (3, 112, 6, 5, 1),
    (4, 192, 6, 5, 2),
    (1, 320, 6, 3, 1),
)
"""Stages of EfficientNet-B0: blocks, channels, expansion, kernel, stride."""


def efficientnet(
    stages: Sequence[tuple[int, int, int, int, int]] = B0, head: int = 1280, classes: int = 1000
) -> nn.Module:
    """EfficientNet-B0."""
    layers: list[nn.Module] = [*_conv_norm(3, 32, 3, 2), nn.SiLU()]
    ins = 32
    for blocks, outs, expand, kernel, stride in stages:
        for block in range(blocks):
            layers.append(Inverted(ins, outs, expand, kernel, 1 if block else stride))
            ins = outs
    layers += [*_conv_norm(ins, head, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(head, classes))


# ---- transformers --------------------------------------------------------------------------------


def _heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention of several heads, of which some may share keys and values."""

    def __init__(self, width: int, heads: int, shared: int, bias: bool, turns: bool) -> None:
        super().__init__()
        size = width // heads
        self.heads, self.shared, self.turns = heads, shared, turns
        self.query = nn.Linear(width, width, bias)
        self.key = nn.Linear(width, size * shared, bias)
        self.value = nn.Linear(width, size * shared, bias)
        self.out = nn.Linear(width, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """What each place takes from the others, or from those before it."""
        query = _heads(self.query(x), self.heads)
        key, value = (_heads(layer(x), self.shared) for layer in (self.key, self.value))
        if self.turns:
            query, key = turned(query), turned(key)
        if self.shared != self.heads:
            repeats = self.heads // self.shared
            key, value = (one.repeat_interleave(repeats, 1) for one in (key, value))
        y = F.scaled_dot_product_attention(query, key, value, is_causal=self.turns)
        return self.out(y.transpose(1, 2).flatten(2))


def turned(x: Tensor) -> Tensor:
    """Rotary positions: the halves of each head as the coordinates of points that turn."""
    half, length = x.shape[-1] // 2, x.shape[-2]
    speed = torch.exp(torch.arange(half, device=x.device) * (-math.log(1e4) / half))
    angle = torch.arange(length, device=x.device)[:, None] * speed
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class GELUBlock(nn.Module):
    """A block of a ViT."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attention = Attention(width, heads, heads, bias=True, turns=False)
        self.up, self.act, self.down = (
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Attention, then two layers at each place, each added."""
        x = x + self.attention(self.before(x))
        return x + self.down(self.act(self.up(self.between(x))))


class ViT(nn.Module):
    """A vision transformer of 16×16 patches."""

    def __init__(
        self,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        side: int = 224,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        places = (side // 16) ** 2 + 1
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.first = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.places = nn.Parameter(torch.randn(1, places, width) * 0.02)
        self.blocks = nn.Sequential(*(GELUBlock(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """The scores of the classes."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


class RootMeanSquare(nn.Module):
    """RMSNorm as Llama's code writes it: in float32, and then in the input's type."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """x over the root of the mean of its squares."""
        wide = x.float()
        normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
        return self.weight * normal.to(x.dtype)


class GatedBlock(nn.Module):
    """A block of a Llama."""

    def __init__(self, width: int, heads: int, shared: int, inner: int) -> None:
        super().__init__()
        self.before, self.between = RootMeanSquare(width), RootMeanSquare(width)
        self.attention = Attention(width, heads, shared, bias=False, turns=True)
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.act, self.down = nn.SiLU(), nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attention, then a gated layer at each place, each added."""
        x = x + self.attention(self.before(x))
        y = self.between(x)
        return x + self.down(self.act(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """A language model like Llama 3.2 1B in shape, with fewer layers and words."""

    def __init__(
        self,
        width: int = 2048,
        depth: int = 8,
        heads: int = 32,
        shared: int = 8,
        inner: int = 8192,
        words: int = 32000,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.blocks = nn.Sequential(
            *(GatedBlock(width, heads, shared, inner) for _ in range(depth))
        )
        self.norm, self.head = RootMeanSquare(width), nn.Linear(width, words, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """The scores of the next word at each place."""
        return self.head(self.norm(self.blocks(self.words(tokens))))


# ---- which, and how large ------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A network, a small one of its kind for dry runs, and the shape of a sample."""

    build: Callable[[], nn.Module]
    small: Callable[[], nn.Module]
    batch: int
    sample: tuple[int, ...]
    small_sample: tuple[int, ...]
    words: int = 0
    """How many words there are, if samples are rows of words."""

    def made(self, device: str, batch: int, is_dry: bool) -> tuple[nn.Module, Tensor]:
        """The network in training mode, and an input."""
        torch.manual_seed(0)
        with torch.device(device):
            model = (self.small if is_dry else self.build)().train()
            shape = (batch, *(self.small_sample if is_dry else self.sample))
            given = torch.randint(0, 64, shape) if self.words else torch.randn(shape)
        if given.dim() == 4:  # images; convolutions are fastest so
            model, given = (one.to(memory_format=torch.channels_last) for one in (model, given))
        return model, given


_TINY_B0 = ((1, 16, 1, 3, 1), (2, 24, 6, 3, 2))
NETWORKS = {
    "resnet50, Mish": Network(
        resnet, lambda: resnet((1, 1), 8, 10), 128, (3, 224, 224), (3, 32, 32)
    ),
    "efficientnet_b0": Network(
        efficientnet, lambda: efficientnet(_TINY_B0, 32, 10), 128, (3, 224, 224), (3, 32, 32)
    ),
    "vit_base": Network(ViT, lambda: ViT(32, 2, 2, 32, 10), 128, (3, 224, 224), (3, 32, 32)),
    "Llama": Network(Llama, lambda: Llama(64, 2, 4, 2, 128, 64), 4, (2048,), (64,), words=32000),
}
