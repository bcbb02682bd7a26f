"""Atrous spatial pyramid pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segkern import ops
from segkern.nn.atrous import ConvNormAct, NormLayer, SeparableConv2d


class PoolBranch(torch.nn.Sequential):
    """Image pooling: global average, 1x1 convolution, norm, activation; (N, C, 1, 1) out.

    Numbered as torchvision's ``ASPPPooling``, so that state dicts fit: convolution ``1``,
    norm ``2``.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_layer: NormLayer) -> None:
        block = ConvNormAct(in_channels, out_channels, 1, norm_layer=norm_layer)
        super().__init__(torch.nn.AdaptiveAvgPool2d(1), *block)


class ASPP(torch.nn.Module):
    """Parallel atrous convolutions over one map, image pooling, and a projection of them all.

    The projection is accumulated branch by branch, so that the concatenation of the branches is
    never in memory, and the image-pooling branch enters it as one bias an image.

    Args:
        in_channels: Channels of the map.
        rates: One 3x3 branch a rate, beside the 1x1 branch.
        out_channels: Of each branch and of the projection.
        separable: Depthwise separable branches (DeepLab v3+).
        image_pooling: Whether there is an image-pooling branch.
        norm_layer: Makes the batch norm of each branch and of the projection.
        dropout: Probability after the projection, in training.

    State dict, as torchvision's: ``convs.0`` the 1x1 branch, ``convs.1`` onwards the rates, then
    image pooling, ``project``. Batch norm of the pooled branch needs two images in training.

    L.-C. Chen et al., arXiv:1706.05587 and 1802.02611.

    Example:
        >>> import torch
        >>> head = ASPP(16, (2, 4), out_channels=8).eval()
        >>> head(torch.zeros(1, 16, 9, 9)).shape
        torch.Size([1, 8, 9, 9])
    """

    def __init__(
        self,
        in_channels: int,
        rates: Sequence[int] = (6, 12, 18),
        out_channels: int = 256,
        *,
        separable: bool = False,
        image_pooling: bool = True,
        norm_layer: NormLayer = torch.nn.BatchNorm2d,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        branches: list[torch.nn.Module] = [
            ConvNormAct(in_channels, out_channels, 1, norm_layer=norm_layer)
        ]
        make = SeparableConv2d if separable else ConvNormAct
        branches += [
            make(in_channels, out_channels, 3, dilation=rate, norm_layer=norm_layer)
            for rate in rates
        ]
        if image_pooling:
            branches.append(PoolBranch(in_channels, out_channels, norm_layer))
        self.convs = torch.nn.ModuleList(branches)
        projection = ConvNormAct(
            len(branches) * out_channels, out_channels, 1, norm_layer=norm_layer
        )
        self.project = torch.nn.Sequential(*projection, torch.nn.Dropout(dropout))

    def forward(self, input: Tensor) -> Tensor:
        size = input.shape[2:]
        outputs = [
            branch(input).expand(-1, -1, *size) if isinstance(branch, PoolBranch) else branch(input)
            for branch in self.convs
        ]
        return self.project(torch.cat(outputs, 1))
