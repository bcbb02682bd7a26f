"""SOLOv2: each cell of a grid predicts the kernel that draws its mask out of shared features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segkern.models._instances.images import Size
from segkern.models._instances.solo_levels import (
    SCALE_RANGES_448,
    ConvGroupNorm,
    check_sizes,
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
from segkern.models._instances.solo_recipes import FULL_3X, LIGHT_3X
from segkern.models._options import check_choice
from segkern.models._resize import resize_centres
from segkern.ops import dynamic_conv

PAPER = (
    "X. Wang, R. Zhang, T. Kong, L. Li, C. Shen: SOLOv2: Dynamic and Fast Instance Segmentation, "
    "NeurIPS 2020, arXiv:2003.10152"
)

# Pixels of the image per pixel of the mask features, for all levels.
MASK_STRIDE = 4


@dataclass(frozen=True)
class SOLOv2Config(SOLOOptions):
    """Options of :class:`SOLOv2`: those of :class:`SOLOOptions`, and

    Attributes:
        feature_channels: Of each level's path to the mask features, a multiple of 32.
        mask_channels: Of the mask features, E, a multiple of 32.
        kernel_size: Of the dynamic kernels, 1 or 3.
    """

    head_channels: int = 512
    depth: int = 4
    feature_channels: int = 128
    mask_channels: int = 256
    kernel_size: int = 1
    min_size: int | tuple[int, ...] = (640, 672, 704, 736, 768, 800)


@dataclass(frozen=True)
class SOLOv2LightConfig(SOLOv2Config):
    """Options of the light :class:`SOLOv2` for short sides of 448."""

    head_channels: int = 256
    depth: int = 2
    mask_channels: int = 128
    scale_ranges: tuple[tuple[float, float], ...] = SCALE_RANGES_448
    min_size: int | tuple[int, ...] = (352, 384, 416, 480, 512, 448)
    max_size: int = 768


class SOLOv2Output(NamedTuple):
    """Of each level ``category`` (N, K, S, S) and ``kernels`` (N, D, S, S); ``features``.

    ``features`` are (N, E, H / 4, W / 4), at least 0.
    """

    category: list[Tensor]
    kernels: list[Tensor]
    features: Tensor


class SOLOv2Head(nn.Module):
    """Category and kernel towers, shared by the levels."""

    def __init__(self, channels: int, config: SOLOv2Config, grids: list[int]) -> None:
        super().__init__()
        width = config.head_channels
        values = config.mask_channels * config.kernel_size**2
        self.grids = grids
        self.kernel_tower = tower(channels + 2, width, config.depth)
        self.category_tower = tower(channels, width, config.depth)
        self.kernels = output(width, values, 3, 0.0)
        self.category = output(width, config.num_classes - 1, 3, PRIOR_BIAS)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Category logits and kernels of each level."""
        category, kernels = [], []
        for features, grid in zip(maps, self.grids, strict=True):
            small = resize_centres(with_coordinates(features), (grid, grid))
            kernels.append(self.kernels(self.kernel_tower(small)))
            category.append(self.category(self.category_tower(small[:, :-2])))
        return category, kernels


class MaskFeatures(nn.Module):
    """The unified mask features: P2 to P5 brought to a quarter of the image's size and added.

    Args:
        channels: Of P2 to P5.
        inner: Of each path.
        out_channels: Of the features.

    Forward takes the pyramid and returns (N, out_channels, H / 4, W / 4). P5 has coordinates.
    """

    def __init__(self, channels: int, inner: int, out_channels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            tower(channels + (2 if level == 3 else 0), inner, max(level, 1)) for level in range(4)
        )
        self.fuse = ConvGroupNorm(inner, out_channels, kernel=1)

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        total = self.levels[0](pyramid[0])
        for level in (1, 2, 3):
            x = with_coordinates(pyramid[level]) if level == 3 else pyramid[level]
            for layer in self.levels[level]:
                x = double(layer(x))
            total = total + x
        return self.fuse(total)


class SOLOv2(SOLONetwork):
    """SOLOv2, and its light form.

    Args:
        name: ``"solov2"`` or ``"solov2_light"``.
        config: See :class:`SOLOv2Config`.

    Call, results, errors and deviations from the release as those of
    :class:`segkern.models.solo.SOLO`. Two instances that take one cell are both compared with its
    mask, and the later gives its label. The deformable forms are not here. Paper:
    arXiv:2003.10152.
    """

    shared_cells = True
    logit_masks = True
    whole_pyramid = True

    def __init__(self, name: str, config: SOLOv2Config) -> None:
        super().__init__(name, config)
        check_choice(name, "kernel_size", config.kernel_size, (1, 3))
        own = ("feature_channels", "mask_channels")
        check_sizes(name, {option: getattr(config, option) for option in own})
        self.kernel_size = config.kernel_size
        grids = [level.grid for level in self.levels]
        self.head = SOLOv2Head(config.channels, config, grids)
        self.mask_features = MaskFeatures(
            config.channels, config.feature_channels, config.mask_channels
        )

    def run_head(self, pyramid: list[Tensor], maps: list[Tensor]) -> SOLOv2Output:
        category, kernels = self.head(maps)
        return SOLOv2Output(category, kernels, self.mask_features(pyramid))

    def mask_losses(self, output: SOLOv2Output, owed: Owed) -> Tensor:
        kernels, rows = [], []
        of_levels = [(owed.cells(n), owed.rows(n)) for n in range(len(self.levels))]
        for image in range(output.features.shape[0]):
            for n, (cells, instances) in enumerate(of_levels):
                kernels.append(output.kernels[n][image].flatten(1).T[cells[image]])
                rows.append(instances[image])
        per_image = len(of_levels)
        counts = [
            sum(len(cells) for cells in rows[first : first + per_image])
            for first in range(0, len(rows), per_image)
        ]
        logits = dynamic_conv(
            output.features, torch.cat(kernels), counts, kernel_size=self.kernel_size
        )
        return owed.losses(logits, torch.cat(rows), MASK_STRIDE, from_logits=True)

    def masks_of(self, output: SOLOv2Output, image: int, cells: Tensor, size: Size) -> Tensor:
        kernels = torch.cat([level[image].flatten(1) for level in output.kernels], dim=1)
        return dynamic_conv(
            output.features[image : image + 1],
            kernels.T[cells],
            [len(cells)],
            kernel_size=self.kernel_size,
        )


@register_solo(
    SOLOv2Config,
    parameters=46_592_912,
    paper=PAPER,
    recipe=FULL_3X,
    reported={
        "COCO val2017 mask AP, ResNet-50, 1x": 34.8,
        "COCO val2017 mask AP, ResNet-50, 3x": 37.5,
        "COCO val2017 mask AP, ResNet-101, 3x": 39.1,
    },
)
def solov2(config: SOLOv2Config) -> SOLOv2:
    """SOLOv2 on ResNet-50, 46.6 M parameters at 80 classes of things."""
    return SOLOv2("solov2", config)


@register_solo(
    SOLOv2LightConfig,
    parameters=31_340_560,
    paper=PAPER,
    recipe=LIGHT_3X,
    reported={
        "COCO val2017 mask AP, ResNet-18, short side 448": 29.6,
        "COCO val2017 mask AP, ResNet-34, short side 448": 32.0,
        "COCO val2017 mask AP, ResNet-50, short side 448": 33.7,
    },
)
def solov2_light(config: SOLOv2LightConfig) -> SOLOv2:
    """Light SOLOv2 on ResNet-50 for short sides of 448, 31.3 M parameters."""
    return SOLOv2("solov2_light", config)
