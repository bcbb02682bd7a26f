"""ResNet trunks with holes: torchvision's blocks and names, strides and rates by output stride."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segkern.models.backbones.atrous import residual_rates, use_atrous

# Blocks of layers 1 to 4, bottlenecks. resnet17, which torchvision lacks, is for trials.
RESNETS = {
    "resnet17": (2, 1, 1, 1),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}

# The same of torchvision's basic blocks, which have no form with holes.
BASIC_RESNETS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
}

PLANES = (64, 128, 256, 512)
EXPANSION = 4


class ResNet(nn.Module):
    """The convolutional part of a ResNet of torchvision's blocks, at a given output stride.

    The names are torchvision's, so its ImageNet weights load. With the stem ``"deep"`` they are
    those of hszhao/semseg: ``conv1, bn1, conv2, bn2, conv3, bn3``. ``layer5`` to ``layer7`` are the
    copies of layer 4 of DeepLab v3's cascade.

    Args:
        network: Name of the network for error messages.
        name: ``"resnet50"``, ``"resnet101"``, ``"resnet152"`` or ``"resnet17"``; of basic blocks,
            at output stride 32 only, ``"resnet18"`` or ``"resnet34"``.
        in_channels: Channels of the image.
        output_stride: Ratio of the image's size to that of the features: 8, 16 or 32.
        stem: ``"plain"``, a 7x7 convolution, or ``"deep"``, three 3x3.
        multi_grid: Unit rates of the blocks of layer 4 and of its copies; ``None`` is ones.
        stride_in: ``"3x3"`` as torchvision, ``"1x1"`` as the original. A layer whose stride was
            removed is the à-trous form of either, see
            :func:`segkern.models.backbones.atrous.residual_rates`.
        exact: Whether it is; otherwise its first block has the rate of the others also with
            ``stride_in="3x3"``.
        ceil_pool: Round the size after the stem's pool up, as Caffe.
        layers: 4, or up to 7 for a cascade.
        width: Factor on all channels.
        momentum: Share of the new value in the running statistics of batch norm.

    Forward returns the features, ``(N, channels, H / output_stride, W / output_stride)``, and the
    low-level ones of :meth:`stage1`; of bottlenecks only. :meth:`stages` returns every layer's.
    """

    def __init__(
        self,
        network: str,
        name: str,
        in_channels: int,
        *,
        output_stride: int = 16,
        stem: str = "plain",
        multi_grid: Sequence[int] | None = None,
        stride_in: str = "3x3",
        exact: bool = True,
        ceil_pool: bool = False,
        layers: int = 4,
        width: float = 1.0,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        for key, value, allowed in (
            ("backbone", name, (*RESNETS, *BASIC_RESNETS)),
            ("stem", stem, ("plain", "deep")),
            ("stride_in", stride_in, ("1x1", "3x3")),
        ):
            if value not in allowed:
                shown = ", ".join(map(repr, allowed))
                raise ValueError(f"{network}: {key} must be one of {shown}, got {value!r}")
        is_basic = name in BASIC_RESNETS
        if is_basic and output_stride != 32:
            raise ValueError(f"{network}: output_stride must be 32 of {name}, got {output_stride}")
        blocks = BASIC_RESNETS[name] if is_basic else RESNETS[name]
        expansion = 1 if is_basic else EXPANSION
        planes = [scale_channels(p, width) for p in PLANES]
        grid = (1,) * blocks[3] if multi_grid is None else tuple(multi_grid)
        keeps_rate = exact and stride_in == "3x3"
        plan = residual_rates(network, blocks, output_stride, grid, exact=keeps_rate, layers=layers)
        channels = self._make_stem(stem, in_channels, planes[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=ceil_pool)
        for i, layer in enumerate(plan, start=1):
            width_of = planes[min(i, 4) - 1]
            made = _make_layer(channels, width_of, layer, stride_in, is_basic)
            setattr(self, f"layer{i}", made)
            channels = expansion * width_of
        self.stem, self.layers, self.channels = stem, layers, channels
        self.low_channels = expansion * planes[0]
        self.stage_channels = tuple(expansion * p for p in planes)
        use_atrous(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x, low = self.stage1(self.run_stem(image))
        for i in range(2, self.layers + 1):
            x = getattr(self, f"layer{i}")(x)
        return x, low

    def run_stem(self, image: Tensor) -> Tensor:
        """Stem and pool: a quarter of the image's size."""
        x = self.relu(self.bn1(self.conv1(image)))
        if self.stem == "deep":
            x = self.relu(self.bn2(self.conv2(x)))
            x = self.relu(self.bn3(self.conv3(x)))
        return self.maxpool(x)

    def stages(self, image: Tensor) -> list[Tensor]:
        """The pooled stem and each layer's features, first to last."""
        outputs = [self.run_stem(image)]
        for i in range(1, self.layers + 1):
            outputs.append(getattr(self, f"layer{i}")(outputs[-1]))
        return outputs

    def stage1(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Layer 1, and the second block's last convolution after batch norm, before the sum.

        That tensor is DeepLab v3+'s low-level one, ``block1/unit_2/.../conv3`` of the release.
        """
        first, second, *rest = self.layer1
        x = first(x)
        low = second.relu(second.bn1(second.conv1(x)))
        low = second.relu(second.bn2(second.conv2(low)))
        low = second.bn3(second.conv3(low))
        x = torch.relu(low + x)
        for block in rest:
            x = block(x)
        return x, low

    def _make_stem(self, stem: str, in_channels: int, planes: int) -> int:
        """The stem's layers; returns its channels."""
        if stem == "plain":
            self.conv1 = nn.Conv2d(in_channels, planes, 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(planes)
            return planes
        widths = (in_channels, planes, planes, 2 * planes)
        for i in range(1, 4):
            conv = nn.Conv2d(
                widths[i - 1], widths[i], 3, stride=2 if i == 1 else 1, padding=1, bias=False
            )
            setattr(self, f"conv{i}", conv)
            setattr(self, f"bn{i}", nn.BatchNorm2d(widths[i]))
        return widths[-1]


def scale_channels(channels: int, width: float) -> int:
    """``channels * width``, at least 4."""
    return channels if width == 1 else max(4, round(channels * width))


def _make_layer(channels: int, planes: int, layer, stride_in: str, is_basic: bool) -> nn.Sequential:
    make = _torchvision_block("BasicBlock" if is_basic else "Bottleneck")
    out_channels = make.expansion * planes
    blocks = []
    for i, rate in enumerate(layer.rates):
        stride = layer.stride if i == 0 else 1
        downsample = None
        if stride != 1 or channels != out_channels:
            downsample = nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        block = make(channels, planes, stride, downsample, dilation=rate)
        if stride_in == "1x1" and not is_basic:
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
        blocks.append(block)
        channels = out_channels
    return nn.Sequential(*blocks)


def _torchvision_block(name: str) -> type[nn.Module]:
    try:
        from torchvision.models import resnet
    except ImportError as error:
        raise ImportError("segkern.models: networks on a ResNet need torchvision") from error
    return getattr(resnet, name)
