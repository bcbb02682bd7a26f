"""Attention of AUNet: what the foreground branch has found tells the background branch where to
look."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segkern.models._options import check_choice
from segkern.nn.roi import RoIUpsample

MODES, REDUCTIONS = ("gather", "norm", "pinv"), ("mean", "sum", "max")


class BackgroundSelect(nn.Module):
    """Weights channels by what they hold on the average over the map, from 0 to 1.

    Two 1x1 convolutions over the channels' means, the first with ReLU and ``channels // reduction``
    outputs, the second with a sigmoid: a squeeze and excitation.

    Forward takes (N, channels, H, W) and returns the same shape.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        if channels < reduction:
            raise ValueError(
                f"BackgroundSelect: channels must be at least reduction, {reduction}, "
                f"got {channels}"
            )
        self.squeeze = nn.Conv2d(channels, channels // reduction, 1)
        self.excite = nn.Conv2d(channels // reduction, channels, 1)
        nn.init.kaiming_normal_(self.squeeze.weight, mode="fan_out", nonlinearity="relu")
        nn.init.kaiming_normal_(self.excite.weight, mode="fan_out", nonlinearity="sigmoid")
        nn.init.zeros_(self.squeeze.bias)
        nn.init.zeros_(self.excite.bias)

    def forward(self, features: Tensor) -> Tensor:
        means = features.mean((2, 3), keepdim=True)
        return features * self.excite(self.squeeze(means).relu()).sigmoid()


class ProposalAttention(nn.Module):
    """Raises features where region proposals see no object.

    With the attention M = sigmoid(1x1 convolution of the proposals' features) in (0, 1), features S
    become S (1 - M) + S, and then what :class:`BackgroundSelect` makes of them.

    Args:
        channels: of the features.
        proposal_channels: of the hidden features of the proposal head.
        reduction: of the channels in the selection.

    Forward takes features (N, channels, H, W) and (N, proposal_channels, H, W) and returns the
    shape of the first. Gradients reach both. Li et al., arXiv:1812.03904, section 3.2.

    Example:
        >>> import torch
        >>> from segkern.models._instances.attention import ProposalAttention
        >>> attend = ProposalAttention(32, 8)
        >>> tuple(attend(torch.zeros(1, 32, 6, 5), torch.zeros(1, 8, 6, 5)).shape)
        (1, 32, 6, 5)
    """

    def __init__(self, channels: int, proposal_channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.attend = _attention_layer(proposal_channels)
        self.select = BackgroundSelect(channels, reduction)

    def forward(self, features: Tensor, proposals: Tensor) -> Tensor:
        return self.select(_turn_away(features, self.attend(proposals)))


class MaskAttention(nn.Module):
    """Raises features where the mask head sees no object.

    As :class:`ProposalAttention`, the attention being that of the mask head's features, which
    :class:`segkern.nn.RoIUpsample` brings back to the map. Sums and means of boxes commute with
    the 1x1 convolution, so that the boxes are reduced to one channel before they are brought back;
    a maximum does not, and is made of all channels.

    Args:
        channels: of the features.
        roi_channels: of the boxes' features.
        reduction: of the channels in the selection.
        spatial_scale: pixels of the features per pixel that boxes are given in.
        mode, roi_reduction: ``mode`` and ``reduction`` of :func:`segkern.ops.roi_upsample`.

    Forward takes features (N, channels, H, W), the boxes' (K, roi_channels, h, w), and their boxes,
    (K_i, 4) of each image; it returns the shape of the first. Where no box is, and where K is 0,
    the attention is that of zeros. Gradients reach both features. Li et al., arXiv:1812.03904,
    section 3.3.
    """

    def __init__(
        self,
        channels: int,
        roi_channels: int,
        reduction: int = 16,
        *,
        spatial_scale: float = 0.25,
        mode: str = "gather",
        roi_reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_choice("MaskAttention", "mode", mode, MODES)
        check_choice("MaskAttention", "roi_reduction", roi_reduction, REDUCTIONS)
        self.attend = _attention_layer(roi_channels)
        self.upsample = RoIUpsample(spatial_scale, mode, roi_reduction)
        self.select = BackgroundSelect(channels, reduction)

    def forward(self, features: Tensor, rois: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        return self.select(_turn_away(features, self.logits(features.shape, rois, boxes)))

    def logits(self, shape: Sequence[int], rois: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """(N, 1, H, W) attention before the sigmoid, for features of ``shape``."""
        size = (shape[0], *shape[2:])
        if self.upsample.reduction == "max":
            return self.attend(self.upsample(rois, boxes, size))
        one_channel = F.conv2d(rois, self.attend.weight)
        return self.upsample(one_channel, boxes, size) + self.attend.bias[:, None, None]


def _attention_layer(channels: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, 1, 1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def _turn_away(features: Tensor, logits: Tensor) -> Tensor:
    """Features S with attention M: S (1 - M) + S."""
    return features * (2 - torch.sigmoid(logits))
