"""The modified aligned Xception of DeepLab v3+, as the authors released it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from segkern.models.backbones.atrous import OUTPUT_STRIDES
from segkern.models.backbones.resnet import scale_channels
from segkern.nn import ConvNormAct, SeparableConv2d

# Units of the middle flow. xception20 is for trials.
XCEPTIONS = {"xception20": 1, "xception41": 8, "xception65": 16}

NORM_EPS = 1e-3


class Unit(nn.Module):
    """Three separable convolutions beside a shortcut, without an activation after the sum.

    Args:
        in_channels: Channels of the input.
        channels: Output channels of the three convolutions.
        stride: Of the third depthwise convolution, and of the shortcut.
        rates: Dilation of each of the three depthwise convolutions.
        shortcut: ``"conv"``, a 1x1 convolution with batch norm; ``"sum"``, the input; ``"none"``.
        activation_in_separable: ReLU after each depthwise and each pointwise convolution instead
            of before each pair. The release does so in the last unit only, the paper says
            everywhere.
        norm_layer: Makes the batch norms.

    Forward returns the output and what the second convolution gave.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        *,
        stride: int = 1,
        rates: Sequence[int] = (1, 1, 1),
        shortcut: str = "conv",
        activation_in_separable: bool = False,
        norm_layer: partial,
    ) -> None:
        super().__init__()
        act = "relu" if activation_in_separable else None
        self.pre_activation = not activation_in_separable
        widths = (in_channels, *channels)
        for i in range(1, 4):
            layer = SeparableConv2d(
                widths[i - 1],
                widths[i],
                stride=stride if i == 3 else 1,
                dilation=rates[i - 1],
                norm_layer=norm_layer,
                depthwise_activation=act,
                activation=act,
            )
            setattr(self, f"conv{i}", layer)
        self.kind = shortcut
        self.shortcut = None
        if shortcut == "conv":
            self.shortcut = ConvNormAct(
                in_channels, widths[-1], 1, stride, norm_layer=norm_layer, activation=None
            )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        second = self.conv2(self._activated(self.conv1(self._activated(x))))
        y = self.conv3(self._activated(second))
        if self.shortcut is not None:
            return y + self.shortcut(x), second
        return (y + x if self.kind == "sum" else y), second

    def _activated(self, x: Tensor) -> Tensor:
        return torch.relu(x) if self.pre_activation else x


class Xception(nn.Module):
    """Entry, middle and exit flow of Xception-41 or -65, at a given output stride.

    A unit beyond the output stride has stride 1 and keeps the rate in force before it; the rate
    doubles after it.

    Args:
        network: Name of the network for error messages.
        name: ``"xception65"``, ``"xception41"`` or ``"xception20"``.
        in_channels: Channels of the image.
        output_stride: 8, 16 or 32.
        multi_grid: Factors on the rates of the last unit's three convolutions.
        width: Factor on all channels.
        momentum: Share of the new value in the running statistics of batch norm.

    Forward returns the features and the low-level ones at a quarter of the image's size: what the
    second convolution of ``block2`` gives, before a ReLU.
    """

    def __init__(
        self,
        network: str,
        name: str,
        in_channels: int,
        *,
        output_stride: int = 16,
        multi_grid: Sequence[int] = (1, 1, 1),
        width: float = 1.0,
        momentum: float = 3e-4,
    ) -> None:
        super().__init__()
        if len(multi_grid) != 3 or any(unit < 1 for unit in multi_grid):
            raise ValueError(
                f"{network}: multi_grid must be 3 positive ints, one per convolution of the last "
                f"unit, got {tuple(multi_grid)}"
            )
        if output_stride not in OUTPUT_STRIDES:
            raise ValueError(
                f"{network}: output_stride must be one of "
                f"{', '.join(map(str, OUTPUT_STRIDES))}, got {output_stride!r}"
            )
        norm = partial(nn.BatchNorm2d, eps=NORM_EPS, momentum=momentum)
        scaled = partial(scale_channels, width=width)
        stem = [scaled(32), scaled(64)]
        self.conv1 = ConvNormAct(in_channels, stem[0], 3, 2, 1, norm_layer=norm)
        self.conv2 = ConvNormAct(stem[0], stem[1], 3, 1, 1, norm_layer=norm)
        # Stride and rate of the three entry units, the middle flow and the two exit units.
        strides, rates = _plan((2, 2, 2, 1, 2, 1), output_stride)
        channels = stem[1]
        for i, planes in enumerate((128, 256, 728)):
            planes = scaled(planes)
            unit = Unit(channels, [planes] * 3, stride=strides[i], rates=rates[i], norm_layer=norm)
            setattr(self, f"block{i + 1}", unit)
            channels = planes
        self.middle = nn.ModuleList(
            Unit(channels, [channels] * 3, rates=rates[3], shortcut="sum", norm_layer=norm)
            for _ in range(XCEPTIONS[name])
        )
        wide = scaled(1024)
        self.exit1 = Unit(
            channels, [channels, wide, wide], stride=strides[4], rates=rates[4], norm_layer=norm
        )
        self.channels = scaled(2048)
        self.exit2 = Unit(
            wide,
            [scaled(1536), scaled(1536), self.channels],
            rates=[rate * unit for rate, unit in zip(rates[5], multi_grid, strict=True)],
            shortcut="none",
            activation_in_separable=True,
            norm_layer=norm,
        )
        self.low_channels = scaled(256)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # Of the fan-in, which is right for depthwise convolutions too.
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv2(self.conv1(image))
        x, _ = self.block1(x)
        x, low = self.block2(x)
        x, _ = self.block3(x)
        for unit in self.middle:
            x, _ = unit(x)
        x, _ = self.exit1(x)
        x, _ = self.exit2(x)
        return x, low


def _plan(strides: Sequence[int], output_stride: int) -> tuple[list[int], list[list[int]]]:
    """Stride and rates of each unit after a stem of stride 2."""
    kept, rates = [], []
    total, rate = 2, 1
    for stride in strides:
        rates.append([rate] * 3)
        if stride > 1 and total >= output_stride:
            kept.append(1)
            rate *= stride
        else:
            kept.append(stride)
            total *= stride
    return kept, rates
