"""The background branch of panoptic networks: classes of pixels from a pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segkern.models._resize import resize_centres
from segkern.nn.upsample import BilinearUpsample

IGNORE = 255
# Of group norm.
GROUPS = 32


class BackgroundBranch(nn.Module):
    """The semantic branch of panoptic feature pyramid networks.

    Each level goes through 3x3 convolutions with group norm and ReLU, with a bilinear enlargement
    by two after each, until it has stride 4 (the level of stride 4 through one without); their sum
    is fused, and a 1x1 convolution makes logits of it.

    Args:
        in_channels: of the levels.
        channels: of the branch, a multiple of 32.
        num_classes: of pixels.
        levels: how many, from stride 4.

    `fuse` takes the levels, fine to coarse, each twice as large as the next, and returns
    (N, channels, H, W) at stride 4; `predict` makes logits (N, num_classes, H, W) of that. Forward
    is both. Kirillov et al., arXiv:1901.02446.

    Example:
        >>> import torch
        >>> from segkern.models._instances.background import BackgroundBranch
        >>> branch = BackgroundBranch(8, 32, 5, levels=2)
        >>> maps = [torch.zeros(1, 8, 16, 12), torch.zeros(1, 8, 8, 6)]
        >>> tuple(branch(maps).shape)
        (1, 5, 16, 12)
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int, levels: int = 4) -> None:
        super().__init__()
        if channels < 1 or channels % GROUPS:
            raise ValueError(
                f"BackgroundBranch: channels must be a multiple of {GROUPS}, got {channels}"
            )
        self.scales = nn.ModuleList(_path(in_channels, channels, i) for i in range(levels))
        self.predict = nn.Conv2d(channels, num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.predict.bias)

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        first, *others = (path(level) for path, level in zip(self.scales, maps, strict=True))
        for other in others:
            first = first + other
        return first

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.predict(self.fuse(maps))


def enlarge(logits: Tensor, factor: int = 4) -> Tensor:
    """(N, C, H, W) to (N, C, factor * H, factor * W), bilinearly with half-pixel centres."""
    return resize_centres(logits, [factor * length for length in logits.shape[-2:]])


def background_loss(logits: Tensor, semantic: Sequence[Tensor]) -> Tensor:
    """Mean cross-entropy over the labelled pixels of a batch; 0 where there are none.

    Args:
        logits: (N, C, H, W) of the padded batch.
        semantic: int64 (h, w) of each image, 255 for no label; the padding has none.
    """
    labels = torch.full(
        (logits.shape[0], *logits.shape[2:]), IGNORE, dtype=torch.int64, device=logits.device
    )
    for slot, own in zip(labels, semantic, strict=True):
        slot[: own.shape[0], : own.shape[1]] = own
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


def classes_of_pixels(
    logits: Tensor, sizes: Sequence[tuple[int, int]], original: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """The class of each pixel of the images that were given, int64 (H, W) of each.

    Args:
        logits: (N, C, H, W) of the padded batch.
        sizes, original: (height, width) of each image in the batch and as given; the logits of an
            image are resized bilinearly from the one to the other.
    """
    found = []
    for own, size, given in zip(logits, sizes, original, strict=True):
        own = own[None, :, : size[0], : size[1]]
        found.append(resize_centres(own, given)[0].argmax(0))
    return found


def _path(in_channels: int, channels: int, doublings: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(max(1, doublings)):
        conv = nn.Conv2d(channels if i else in_channels, channels, 3, padding=1, bias=False)
        layers += [conv, nn.GroupNorm(GROUPS, channels), nn.ReLU(inplace=True)]
        if doublings:
            layers.append(BilinearUpsample(scale_factor=2))
    return nn.Sequential(*layers)
