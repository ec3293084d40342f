"""A U-Net for sequences of actions, like that of Diffusion Policy, with Mish in every block."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions; the diffusion time gives a scale and a shift in between."""

    def __init__(self, inside: int, outside: int, width: int) -> None:
        super().__init__()
        self.first = _convolution(inside, outside)
        self.time = nn.Sequential(
            nn.Mish(), nn.Linear(width, 2 * outside), nn.Unflatten(1, (-1, 1))
        )
        self.second = _convolution(outside, outside)
        self.around = nn.Conv1d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(time).chunk(2, dim=1)
        return self.second(scale * self.first(x) + shift) + self.around(x)


def _convolution(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(inside, outside, 5, padding=2), nn.GroupNorm(8, outside), nn.Mish()
    )


class DiffusionUNet(nn.Module):
    """One step of denoising, at a fixed time."""

    def __init__(self, channels: int = 16, widths: tuple[int, ...] = (128, 256, 512)) -> None:
        super().__init__()
        self.register_buffer("step", torch.linspace(-1, 1, 64)[None])
        time = 128
        self.embed = nn.Sequential(nn.Linear(64, 4 * time), nn.Mish(), nn.Linear(4 * time, time))
        pairs = list(zip((channels, *widths), widths, strict=False))
        self.down = nn.ModuleList(Block(inside, outside, time) for inside, outside in pairs)
        self.shrink = nn.ModuleList(nn.Conv1d(w, w, 3, 2, 1) for w in widths[:-1])
        self.middle = Block(widths[-1], widths[-1], time)
        self.grow = nn.ModuleList(nn.ConvTranspose1d(w, w, 4, 2, 1) for w in reversed(widths[1:]))
        ups = list(zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True))
        self.up = nn.ModuleList(Block(inside + outside, outside, time) for inside, outside in ups)
        self.last = nn.Sequential(
            _convolution(widths[0], widths[0]), nn.Conv1d(widths[0], channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        time = self.embed(self.step)
        skips = []
        for i, block in enumerate(self.down):
            x = block(x, time)
            if i < len(self.shrink):
                skips.append(x)
                x = self.shrink[i](x)
        x = self.middle(x, time)
        for block, grow in zip(self.up, self.grow, strict=True):
            x = block(torch.cat([grow(x), skips.pop()], dim=1), time)
        return self.last(x)
