"""The convolutions of GoogLeNet as Caffe's model zoo (BVLC GoogLeNet) has them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from segkern.models.backbones.alexnet import CaffeLRN
from segkern.models.backbones.resnet import scale_channels

# Of each block: 1x1; 3x3's reduction and 3x3; 5x5's reduction and 5x5; projection after the pool.
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class Inception(nn.Module):
    """Four branches on one map, concatenated; every convolution with bias and ReLU.

    Args:
        in_channels: Channels of the map.
        widths: Six numbers as in ``INCEPTIONS``.
    """

    def __init__(self, in_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, project = widths
        self.conv1x1 = nn.Conv2d(in_channels, one, 1)
        self.reduce3x3 = nn.Conv2d(in_channels, reduce3, 1)
        self.conv3x3 = nn.Conv2d(reduce3, three, 3, padding=1)
        self.reduce5x5 = nn.Conv2d(in_channels, reduce5, 1)
        self.conv5x5 = nn.Conv2d(reduce5, five, 5, padding=2)
        self.project = nn.Conv2d(in_channels, project, 1)
        self.channels = one + three + five + project

    def forward(self, x: Tensor) -> Tensor:
        branches = [
            self.conv1x1(x),
            self.conv3x3(functional.relu(self.reduce3x3(x))),
            self.conv5x5(functional.relu(self.reduce5x5(x))),
            self.project(functional.max_pool2d(x, 3, 1, 1)),
        ]
        return functional.relu(torch.cat(branches, dim=1))


class GoogLeNetFeatures(nn.Module):
    """``conv1`` to ``inception_5b``, all pools rounding up, without the final average pool.

    torchvision's GoogLeNet is another network: batch norm, no biases, 3x3 for 5x5.

    Args:
        in_channels: Channels of the image.
        border: Zeros around the image, the padding of ``conv1``.
        width: Factor on all channels.

    Forward returns the features at stride 32, and the pools at strides 16 and 8 by their stride.
    """

    def __init__(self, in_channels: int, border: int, width: float = 1.0) -> None:
        super().__init__()
        first, second = scale_channels(64, width), scale_channels(192, width)
        self.conv1 = nn.Conv2d(in_channels, first, 7, stride=2, padding=border)
        self.conv2_reduce = nn.Conv2d(first, first, 1)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm = CaffeLRN()
        channels = second
        self.skip_channels = {8: second}
        for name, widths in INCEPTIONS.items():
            block = Inception(channels, tuple(scale_channels(c, width) for c in widths))
            self.add_module(f"inception_{name}", block)
            channels = block.channels
            if name == "3b":
                self.skip_channels[16] = channels
        self.channels = channels

    def forward(self, image: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        x = self.norm(self.pool(functional.relu(self.conv1(image))))
        x = functional.relu(self.conv2(functional.relu(self.conv2_reduce(x))))
        pools = {8: self.pool(self.norm(x))}
        x = pools[8]
        for name in INCEPTIONS:
            x = self.get_submodule(f"inception_{name}")(x)
            if name == "3b":
                pools[16] = x = self.pool(x)
            elif name == "4e":
                x = self.pool(x)
        return x, pools
