"""Decoupled SOLO: a cell's mask is the product of its column's and its row's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segkern.models._instances.images import Size
from segkern.models._instances.solo_levels import (
    SCALE_RANGES_512,
    coordinates,
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
from segkern.models._instances.solo_recipes import FULL_1X, LIGHT_3X
from segkern.models._resize import resize_centres
from segkern.models.solo import PAPER


@dataclass(frozen=True)
class DecoupledSOLOConfig(SOLOOptions):
    """Options of :class:`DecoupledSOLO`, see :class:`SOLOOptions`."""


@dataclass(frozen=True)
class DecoupledSOLOLightConfig(SOLOOptions):
    """Options of the light :class:`DecoupledSOLO`, see :class:`SOLOOptions`."""

    depth: int = 4
    scale_ranges: tuple[tuple[float, float], ...] = SCALE_RANGES_512
    min_size: int | tuple[int, ...] = (352, 384, 416, 448, 480, 512)
    max_size: int = 852


class DecoupledOutput(NamedTuple):
    """Of each level ``category`` (N, K, S, S), ``x`` and ``y`` (N, S, H, W), all logits.

    Column j of the grid is channel j of ``x``, row i channel i of ``y``.
    """

    category: list[Tensor]
    x: list[Tensor]
    y: list[Tensor]


class DecoupledHead(nn.Module):
    """Towers shared by the levels, and two 3x3 mask convolutions for each.

    Args:
        channels: Of the levels' maps.
        config: The network's.
        grids: Cells a side of each level.
        light: Whether one tower, with both coordinates, makes the masks of columns and rows.
    """

    def __init__(self, channels: int, config: SOLOOptions, grids: list[int], light: bool) -> None:
        super().__init__()
        width, depth = config.head_channels, config.depth
        self.grids, self.light = grids, light
        if light:
            self.mask_tower = tower(channels + 2, width, depth)
        else:
            self.x_tower = tower(channels + 1, width, depth)
            self.y_tower = tower(channels + 1, width, depth)
        self.category_tower = tower(channels, width, depth)
        self.x_masks = nn.ModuleList(output(width, grid, 3, PRIOR_BIAS) for grid in grids)
        self.y_masks = nn.ModuleList(output(width, grid, 3, PRIOR_BIAS) for grid in grids)
        self.category = output(width, config.num_classes - 1, 3, PRIOR_BIAS)

    def forward(self, maps: list[Tensor]) -> DecoupledOutput:
        result = DecoupledOutput([], [], [])
        for n, (features, grid) in enumerate(zip(maps, self.grids, strict=True)):
            small = resize_centres(features, (grid, grid))
            result.category.append(self.category(self.category_tower(small)))
            of_x, of_y = self._mask_features(features)
            result.x.append(self.x_masks[n](of_x))
            result.y.append(self.y_masks[n](of_y))
        return result

    def _mask_features(self, features: Tensor) -> tuple[Tensor, Tensor]:
        if self.light:
            shared = double(self.mask_tower(with_coordinates(features)))
            return shared, shared
        x, y = coordinates(features)
        of_x = double(self.x_tower(torch.cat([features, x], dim=1)))
        return of_x, double(self.y_tower(torch.cat([features, y], dim=1)))


class DecoupledSOLO(SOLONetwork):
    """Decoupled SOLO, 2 S masks a level in place of S^2, and its light form.

    Args:
        name: ``"decoupled_solo"`` or ``"decoupled_solo_light"``.
        config: See :class:`DecoupledSOLOConfig`.

    Call, results, errors and deviations from the release as those of
    :class:`segkern.models.solo.SOLO`. Paper: arXiv:1912.04488 section 4; the light form is the
    release's, one tower of four convolutions for both masks.
    """

    def __init__(self, name: str, config: SOLOOptions) -> None:
        super().__init__(name, config)
        grids = [level.grid for level in self.levels]
        self.head = DecoupledHead(config.channels, config, grids, name.endswith("light"))

    def run_head(self, pyramid: list[Tensor], maps: list[Tensor]) -> DecoupledOutput:
        return self.head(maps)

    def mask_losses(self, output: DecoupledOutput, owed: Owed) -> Tensor:
        losses = []
        for n, level in enumerate(self.levels):
            cells = owed.cells(n)
            images = torch.cat([torch.full_like(own, i) for i, own in enumerate(cells)])
            rows, columns = _split(torch.cat(cells), level.grid)
            soft = output.x[n][images, columns].sigmoid() * output.y[n][images, rows].sigmoid()
            of_rows = torch.cat(owed.rows(n))
            losses.append(owed.losses(soft, of_rows, level.mask_stride, from_logits=False))
        return torch.cat(losses)

    def masks_of(self, output: DecoupledOutput, image: int, cells: Tensor, size: Size) -> Tensor:
        masks = output.x[0].new_empty((cells.shape[0], *size), dtype=torch.float32)
        for n, (places, own) in enumerate(self.split_cells(cells)):
            if len(own) == 0:
                continue
            rows, columns = _split(own, self.levels[n].grid)
            # Enlarged before the product, each map once.
            x = resize_centres(output.x[n][image, None].float().sigmoid(), size)[0]
            y = resize_centres(output.y[n][image, None].float().sigmoid(), size)[0]
            masks[places] = x[columns] * y[rows]
        return masks


def _split(cells: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Row and column of each cell."""
    return cells // grid, cells % grid


@register_solo(
    DecoupledSOLOConfig,
    parameters=40_028_560,
    paper=PAPER,
    recipe=FULL_1X,
    reported={
        "COCO val2017 mask AP, ResNet-50, 1x": 33.9,
        "COCO val2017 mask AP, ResNet-50, 3x": 36.4,
        "COCO val2017 mask AP, ResNet-101, 3x": 37.9,
    },
)
def decoupled_solo(config: DecoupledSOLOConfig) -> DecoupledSOLO:
    """Decoupled SOLO on ResNet-50, 40.0 M parameters at 80 classes of things."""
    return DecoupledSOLO("decoupled_solo", config)


@register_solo(
    DecoupledSOLOLightConfig,
    parameters=32_354_192,
    paper=PAPER,
    recipe=LIGHT_3X,
    reported={"COCO val2017 mask AP, ResNet-50, 3x, short side 512": 33.0},
)
def decoupled_solo_light(config: DecoupledSOLOLightConfig) -> DecoupledSOLO:
    """Light Decoupled SOLO on ResNet-50 for short sides of 512, 32.4 M parameters."""
    return DecoupledSOLO("decoupled_solo_light", config)
