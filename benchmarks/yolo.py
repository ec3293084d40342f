"""YOLOv3-SPP, from the blocks of its published configuration, with any activation.

Darknet-53, spatial pyramid pooling, and detections at three scales, for 80 classes. It has
62,998,749 parameters; with its norms merged into the convolutions, 6.29719e7, as ultralytics/yolov3
prints.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Act = Callable[[], nn.Module]
DEPTHS = (1, 2, 8, 8, 4)
"""Residual blocks of Darknet-53, at each of five scales."""
OUTPUTS = 3 * (80 + 5)
"""Numbers of each place: three boxes with their classes."""


def conv(ins: int, outs: int, kernel: int, act: Act, stride: int = 1) -> nn.Sequential:
    """A convolution, its norm, and the activation."""
    layer = nn.Conv2d(ins, outs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outs), act())


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int, act: Act) -> None:
        super().__init__()
        half = channels // 2
        self.body = nn.Sequential(conv(channels, half, 1, act), conv(half, channels, 3, act))

    def forward(self, x: Tensor) -> Tensor:
        """x and its change."""
        return x + self.body(x)


class Pyramid(nn.Module):
    """The input beside its maxima over windows of three sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = nn.ModuleList(nn.MaxPool2d(size, 1, size // 2) for size in (5, 9, 13))

    def forward(self, x: Tensor) -> Tensor:
        """Four times the channels."""
        return torch.cat([*(pool(x) for pool in reversed(self.pools)), x], 1)


class Head(nn.Module):
    """What looks at one scale: features for the next one, and detections."""

    def __init__(self, ins: int, width: int, act: Act, *, pyramid: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(ins, width, 1, act), conv(width, 2 * width, 3, act)]
        layers.append(conv(2 * width, width, 1, act))
        if pyramid:
            layers += [Pyramid(), conv(4 * width, width, 1, act)]
        layers += [conv(width, 2 * width, 3, act), conv(2 * width, width, 1, act)]
        self.features = nn.Sequential(*layers)
        self.detect = nn.Sequential(
            conv(width, 2 * width, 3, act), nn.Conv2d(2 * width, OUTPUTS, 1)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and detections."""
        features = self.features(x)
        return features, self.detect(features)


class Up(nn.Module):
    """Fewer channels, at twice the scale."""

    def __init__(self, ins: int, act: Act) -> None:
        super().__init__()
        self.conv, self.scale = conv(ins, ins // 2, 1, act), nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        """Four times the places."""
        return self.scale(self.conv(x))


class YOLOv3SPP(nn.Module):
    """Detections at three scales, the coarsest first."""

    def __init__(self, act: Act) -> None:
        super().__init__()
        stages, channels = [], 32
        for depth in DEPTHS:
            down = conv(channels, 2 * channels, 3, act, stride=2)
            channels *= 2
            stages.append(nn.Sequential(down, *(Residual(channels, act) for _ in range(depth))))
        self.first, self.stages = conv(3, 32, 3, act), nn.ModuleList(stages)
        self.coarse = Head(1024, 512, act, pyramid=True)
        self.to_middle, self.middle = Up(512, act), Head(256 + 512, 256, act)
        self.to_fine, self.fine = Up(256, act), Head(128 + 256, 128, act)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Of images whose sides are multiples of 32."""
        x, scales = self.first(x), []
        for stage in self.stages:
            x = stage(x)
            scales.append(x)
        features, coarse = self.coarse(scales[-1])
        features, middle = self.middle(torch.cat([self.to_middle(features), scales[-2]], 1))
        _, fine = self.fine(torch.cat([self.to_fine(features), scales[-3]], 1))
        return [coarse, middle, fine]
