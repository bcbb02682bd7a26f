"""The heads of Mask R-CNN: layers over the bins of boxes, under torchvision's names."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn


class BoxHead(nn.Module):
    """Two fully connected layers with ReLU.

    Forward takes (K, channels, size, size) and returns (K, width).
    """

    def __init__(self, channels: int, size: int, width: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(channels * size * size, width)
        self.fc7 = nn.Linear(width, width)

    def forward(self, bins: Tensor) -> Tensor:
        return self.fc7(self.fc6(bins.flatten(1)).relu()).relu()


class ConvBoxHead(nn.Sequential):
    """Four 3x3 convolutions with batch norm and one fully connected layer, each with ReLU.

    Forward as of :class:`BoxHead`.
    """

    def __init__(self, channels: int, size: int, width: int, depth: int = 4) -> None:
        super().__init__(
            *(_conv_block(channels, channels, normalise=True) for _ in range(depth)),
            nn.Flatten(),
            nn.Linear(channels * size * size, width),
            nn.ReLU(inplace=True),
        )


class BoxPredictor(nn.Module):
    """Class logits (K, num_classes), background first, and offsets (K, classes, 4).

    With `agnostic` there is one box for all classes, so that classes is 1; otherwise num_classes,
    of which the background's is never used.
    """

    def __init__(self, width: int, num_classes: int, agnostic: bool = False) -> None:
        super().__init__()
        self.cls_score = nn.Linear(width, num_classes)
        self.bbox_pred = nn.Linear(width, 4 * (1 if agnostic else num_classes))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(features), self.bbox_pred(features).unflatten(1, (-1, 4))


class MaskHead(nn.Sequential):
    """Four 3x3 convolutions with ReLU, and batch norm if asked for: (K, C, h, w) to its width."""

    def __init__(self, channels: int, width: int, *, depth: int = 4, normalise: bool) -> None:
        super().__init__(
            *(_conv_block(width if i else channels, width, normalise) for i in range(depth))
        )


class MaskPredictor(nn.Sequential):
    """The logits of one class for each box, at twice the size of its bins.

    Forward takes (K, width, h, w) and the classes int64 (K,), and returns (K, 2h, 2w). Of the last
    layer, 1x1 with one channel a class, only the channel of each box's class is computed.
    """

    def __init__(self, width: int, num_classes: int, agnostic: bool = False) -> None:
        logits = nn.Conv2d(width, 1 if agnostic else num_classes, 1)
        super().__init__(
            OrderedDict(
                conv5_mask=nn.ConvTranspose2d(width, width, 2, 2),
                relu=nn.ReLU(inplace=True),
                mask_fcn_logits=logits,
            )
        )
        self.agnostic = agnostic
        for layer in (self.conv5_mask, logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        features = self.relu(self.conv5_mask(features))
        if self.agnostic:
            labels = torch.zeros_like(labels)
        weight = self.mask_fcn_logits.weight[labels].flatten(1)[:, None]
        bias = self.mask_fcn_logits.bias[labels][:, None, None]
        size = features.shape[-2:]
        return torch.baddbmm(bias, weight, features.flatten(2)).view(-1, *size)


def _conv_block(in_channels: int, out_channels: int, normalise: bool) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=not normalise)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    norm = (nn.BatchNorm2d(out_channels),) if normalise else ()
    return nn.Sequential(conv, *norm, nn.ReLU(inplace=True))
