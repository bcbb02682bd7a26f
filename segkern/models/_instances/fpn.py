"""A feature pyramid, and a ResNet that ends with one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from segkern.models._options import check_choice
from segkern.models.backbones.resnet import ResNet
from segkern.nn import freeze_batch_norm

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101")

# Strides of P2 to P6.
STRIDES = (4, 8, 16, 32, 64)

# The order in which a trunk is thawed.
_TRAINED_FIRST = ("layer4", "layer3", "layer2", "layer1", "conv1")


class FeaturePyramid(nn.Module):
    """Feature pyramid network: maps of one width from those of a trunk.

    Each level is a 1x1 convolution of the trunk's map plus the coarser level enlarged by nearest
    neighbour to its size, then a 3x3 convolution; no activation.

    Args:
        in_channels: of the trunk's maps, fine to coarse.
        out_channels: of every level.
        extra: "pool" adds a level with every second pixel of the coarsest; None none.
        normalise: whether batch norm follows each convolution, which then has no bias.

    Forward takes a list of (N, C_i, H_i, W_i), fine to coarse, and returns a list of
    (N, out_channels, H_i, W_i), and the extra level.

    The state dict has torchvision's names. Weights are uniform with variance 1 / fan-in, biases 0.
    Lin et al., arXiv:1612.03144.

    Example:
        >>> import torch
        >>> from segkern.models._instances.fpn import FeaturePyramid
        >>> maps = FeaturePyramid([4, 8], 16)([torch.zeros(1, 4, 8, 6), torch.zeros(1, 8, 4, 3)])
        >>> [tuple(level.shape[1:]) for level in maps]
        [(16, 8, 6), (16, 4, 3), (16, 2, 2)]
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        extra: str | None = "pool",
        *,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        check_choice("FeaturePyramid", "extra", extra, ("pool", None))
        self.extra = extra
        self.inner_blocks = nn.ModuleList(
            _conv(channels, out_channels, 1, normalise) for channels in in_channels
        )
        self.layer_blocks = nn.ModuleList(
            _conv(out_channels, out_channels, 3, normalise) for _ in in_channels
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        merged = self.inner_blocks[-1](maps[-1])
        levels = [self.layer_blocks[-1](merged)]
        for i in range(len(self.inner_blocks) - 2, -1, -1):
            lateral = self.inner_blocks[i](maps[i])
            merged = lateral + F.interpolate(merged, size=lateral.shape[-2:], mode="nearest")
            levels.insert(0, self.layer_blocks[i](merged))
        if self.extra == "pool":
            levels.append(levels[-1][:, :, ::2, ::2])
        return levels


class ResNetFPN(nn.Module):
    """A ResNet's layers 1 to 4 and their pyramid, see :func:`resnet_fpn`.

    Attributes:
        body: The ResNet, torchvision's names.
        fpn: The pyramid.
        out_channels: Channels of each level.
    """

    def __init__(self, body: ResNet, fpn: FeaturePyramid, out_channels: int) -> None:
        super().__init__()
        self.body, self.fpn, self.out_channels = body, fpn, out_channels

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.fpn(self.body.stages(image)[1:])


def resnet_fpn(
    network: str,
    backbone: str,
    *,
    channels: int = 256,
    norm: str = "batch",
    trainable_layers: int = 5,
    width: float = 1.0,
    stride_in: str = "3x3",
    norm_in_fpn: bool = False,
) -> ResNetFPN:
    """A ResNet with a feature pyramid, levels P2 to P6 at strides 4 to 64.

    Args:
        network: Name for error messages.
        backbone: One of ``BACKBONES``.
        channels: Of each level.
        norm: ``"batch"``, or ``"frozen"`` for the trunk's batch norm as a constant scale and shift.
        trainable_layers: How many of layers 4, 3, 2, 1 and the stem are trained, 0 to 5.
        width: Factor on the trunk's channels.
        stride_in: Convolution of a bottleneck with the stride: ``"3x3"`` or ``"1x1"``.
        norm_in_fpn: Batch norm in the pyramid.

    Returns:
        A module whose forward takes (N, 3, H, W), H and W multiples of 32, and returns a list of
        five (N, channels, H / s, W / s), sizes rounded up.

    Raises:
        ValueError: If an argument is not one of those above.
    """
    check_choice(network, "backbone", backbone, BACKBONES)
    check_choice(network, "norm", norm, ("batch", "frozen"))
    check_choice(network, "trainable_layers", trainable_layers, tuple(range(6)))
    body = ResNet(network, backbone, 3, output_stride=32, stride_in=stride_in, width=width)
    if norm == "frozen":
        freeze_batch_norm(body)
    freeze_layers(body, trainable_layers)
    pyramid = FeaturePyramid(body.stage_channels, channels, normalise=norm_in_fpn)
    return ResNetFPN(body, pyramid, channels)


def freeze_layers(body: ResNet, trainable_layers: int) -> None:
    """Stop the training of all but the last layers of a trunk, see :func:`resnet_fpn`."""
    trained = _TRAINED_FIRST[:trainable_layers] + (("bn1",) if trainable_layers == 5 else ())
    for name, parameter in body.named_parameters():
        if not name.startswith(trained):
            parameter.requires_grad_(False)


def _conv(in_channels: int, out_channels: int, kernel: int, normalise: bool) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=not normalise)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels)) if normalise else nn.Sequential(conv)
