"""SOLO: instances as classes of the cells of a grid, each cell with a mask of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segkern.models._instances.images import Size
from segkern.models._instances.solo_levels import (
    double,
    output,
    tower,
    with_coordinates,
)
from segkern.models._instances.solo_network import (
    PRIOR_BIAS,
    Owed,
    SOLONetwork,
    SOLOOptions,
    register_solo,
)
from segkern.models._instances.solo_recipes import FULL_1X
from segkern.models._resize import resize_centres
from segkern.ops import dynamic_conv

PAPER = (
    "X. Wang, T. Kong, C. Shen, Y. Jiang, L. Li: SOLO: Segmenting Objects by Locations, ECCV 2020, "
    "arXiv:1912.04488"
)


@dataclass(frozen=True)
class SOLOConfig(SOLOOptions):
    """Options of :class:`SOLO`, see :class:`SOLOOptions`."""


class SOLOOutput(NamedTuple):
    """Of each level ``category`` (N, K, S, S) logits and ``features`` (N, C, H, W) of masks."""

    category: list[Tensor]
    features: list[Tensor]


class SOLOHead(nn.Module):
    """Category and mask towers shared by the levels, and a 1x1 mask convolution for each.

    Attributes:
        masks: Of level l a convolution to S_l^2 channels, row by row; its rows are taken one by
            one, so it is not called.
    """

    def __init__(self, channels: int, config: SOLOConfig, grids: list[int]) -> None:
        super().__init__()
        width = config.head_channels
        self.grids = grids
        self.mask_tower = tower(channels + 2, width, config.depth)
        self.category_tower = tower(channels, width, config.depth)
        self.masks = nn.ModuleList(output(width, grid**2, 1, PRIOR_BIAS) for grid in grids)
        self.category = output(width, config.num_classes - 1, 3, PRIOR_BIAS)

    def forward(self, maps: list[Tensor]) -> SOLOOutput:
        category = [
            self.category(self.category_tower(resize_centres(features, (grid, grid))))
            for features, grid in zip(maps, self.grids, strict=True)
        ]
        return SOLOOutput(category, [self.mask_tower(with_coordinates(f)) for f in maps])


class SOLO(SOLONetwork):
    """SOLO.

    Args:
        config: See :class:`SOLOConfig`.

    Forward takes a list of float32 (3, H, W) RGB images in 0..1 of any sizes on one device, and in
    training a dict for each: ``boxes`` float (n, 4), x1, y1, x2, y2 in pixels, with x1 < x2 and
    y1 < y2; ``labels`` int64 (n,) from 1; ``masks`` uint8 or bool (n, H, W). n may be 0, other
    keys are ignored. It returns

    - in training, a dict of two losses, whose sum is to be minimised: ``loss_category`` and
      ``loss_mask``, the latter weighted by 3;
    - in evaluation, a dict for each image, by falling score: ``boxes`` float32 (n, 4) around the
      masks, ``labels`` (n,), ``scores`` float32 (n,), ``masks`` bool (n, H, W) at the image's size.

    Raises (forward):
        TypeError, ValueError: images or targets of another form, with values that are not finite,
            boxes without extent, labels out of range; the message names the argument.

    Training draws from torch's generator; evaluation is deterministic on the CPU.

    Paper: arXiv:1912.04488.

    Of the S^2 masks of a level only those that are needed are computed: in training those of the
    cells that an instance takes, at evaluation those of the cells that pass the threshold. The
    mask convolution, 1x1, runs before the enlargement by 2, with which it commutes.

    Deviations from the release:
        - An image is resized to sizes rounded down, as torchvision does, not to the nearest.
        - Scale ranges are compared with the annotated sides; the release's are a pixel smaller.
        - On the exact border of two cells an instance takes the later, where the release's
          division of floats may give the one before.
        - A batch without a positive cell has a mask loss of 0; the release fails.
        - Instances without a pixel at the image's own size are not returned.
        - Frozen batch norm has a constant scale and shift too; the release trains them.
    """

    def __init__(self, config: SOLOConfig) -> None:
        super().__init__("solo", config)
        grids = [level.grid for level in self.levels]
        self.head = SOLOHead(config.channels, config, grids)

    def run_head(self, pyramid: list[Tensor], maps: list[Tensor]) -> SOLOOutput:
        return self.head(maps)

    def mask_losses(self, output: SOLOOutput, owed: Owed) -> Tensor:
        losses = []
        for n, level in enumerate(self.levels):
            cells = owed.cells(n)
            logits = self._logits(output, n, torch.cat(cells), [len(c) for c in cells])
            rows = torch.cat(owed.rows(n))
            losses.append(owed.losses(logits, rows, level.mask_stride, from_logits=True))
        return torch.cat(losses)

    def masks_of(self, output: SOLOOutput, image: int, cells: Tensor, size: Size) -> Tensor:
        masks = output.features[0].new_empty((cells.shape[0], *size), dtype=torch.float32)
        for n, (places, own) in enumerate(self.split_cells(cells)):
            one = SOLOOutput([], [features[image : image + 1] for features in output.features])
            soft = self._logits(one, n, own, [len(own)]).float().sigmoid()
            masks[places] = resize_centres(soft[None], size)[0]
        return masks

    def _logits(self, output: SOLOOutput, n: int, cells: Tensor, counts: list[int]) -> Tensor:
        """Masks (k, 2 H, 2 W) of cells of level n, those of the first image first."""
        conv = self.head.masks[n]
        maps = dynamic_conv(output.features[n], conv.weight[cells].flatten(1), counts)
        maps = maps + conv.bias[cells].to(maps.dtype)[:, None, None]
        if maps.shape[0] == 0:
            return maps.new_zeros((0, *(2 * side for side in maps.shape[1:]))) + maps.sum()
        return double(maps[None])[0]


@register_solo(
    SOLOConfig,
    parameters=36_301_232,
    paper=PAPER,
    recipe=FULL_1X,
    reported={
        "COCO val2017 mask AP, ResNet-50, 1x": 32.9,
        "COCO val2017 mask AP, ResNet-50, 3x": 35.8,
        "COCO val2017 mask AP, ResNet-101, 3x": 37.1,
    },
)
def solo(config: SOLOConfig) -> SOLO:
    """SOLO on ResNet-50, 36.3 M parameters at 80 classes of things."""
    return SOLO(config)
