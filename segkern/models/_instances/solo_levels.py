"""Levels of SOLO: grids, strides and ranges of size, the features of each, and towers over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segkern.models._options import as_tuple
from segkern.models._resize import resize_centres

# Strides of the five maps that a pyramid's P2 to P6 become.
STRIDES = (8, 8, 16, 32, 32)

# Of the paper's full networks; pairs of pixels, both ends inclusive.
GRIDS = (40, 36, 24, 16, 12)
SCALE_RANGES = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
# Of networks for images with a shorter side of 512 and of 448.
SCALE_RANGES_512 = ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))
SCALE_RANGES_448 = ((1, 56), (28, 112), (56, 224), (112, 448), (224, 896))

GROUPS = 32


@dataclass(frozen=True)
class Level:
    """One level.

    Attributes:
        grid: Cells a side, S.
        stride: Pixels of the image per feature.
        smallest: Least square root of a box's area that this level is taught.
        largest: Largest.
    """

    grid: int
    stride: int
    smallest: float
    largest: float

    @property
    def cells(self) -> int:
        return self.grid**2

    @property
    def mask_stride(self) -> int:
        """Pixels of the image per pixel of the masks that SOLO's own mask branch makes."""
        return self.stride // 2


def set_level_options(config: Any) -> None:
    """Turn what JSON made lists in a config's options of levels into tuples."""
    as_tuple(config, "min_size", "levels", "grids", "scale_ranges")
    ranges = tuple(tuple(r) if isinstance(r, list) else r for r in config.scale_ranges)
    object.__setattr__(config, "scale_ranges", ranges)


def make_levels(
    network: str,
    levels: Sequence[int],
    grids: Sequence[int],
    scale_ranges: Sequence[tuple[float, float]],
) -> tuple[Level, ...]:
    """Levels from a network's options.

    Args:
        network: Name for error messages.
        levels: Which of the five maps are used, each of 0 to 4, rising.
        grids: Cells a side of each.
        scale_ranges: Range of each.

    Raises:
        ValueError: If an option is of the wrong form, length or range.
    """
    used = tuple(levels)
    if not used or any(not _is_int(n) or not 0 <= n < len(STRIDES) for n in used):
        raise ValueError(f"{network}: levels must be ints from 0 to 4, got {levels!r}")
    if any(later <= earlier for earlier, later in zip(used, used[1:], strict=False)):
        raise ValueError(f"{network}: levels must rise, got {levels!r}")
    for name, values in (("grids", grids), ("scale_ranges", scale_ranges)):
        if len(values) != len(used):
            raise ValueError(f"{network}: {name} must have {len(used)} entries, got {values!r}")
    if any(not _is_int(s) or s < 1 for s in grids):
        raise ValueError(f"{network}: grids must be positive ints, got {grids!r}")
    if any(len(r) != 2 or not 0 <= r[0] <= r[1] for r in scale_ranges):
        raise ValueError(
            f"{network}: scale_ranges must be pairs 0 <= low <= high, got {scale_ranges!r}"
        )
    return tuple(
        Level(s, STRIDES[n], low, high)
        for n, s, (low, high) in zip(used, grids, scale_ranges, strict=True)
    )


def split_features(pyramid: Sequence[Tensor]) -> list[Tensor]:
    """The five maps, at strides 8, 8, 16, 32, 32, of P2 to P6 of images padded to 32.

    The first is P2 averaged over blocks of 2x2, the last P6 enlarged to the size of P5.
    """
    p2, p3, p4, p5, p6 = pyramid
    finest = resize_centres(p2, [length // 2 for length in p2.shape[-2:]])
    return [finest, p3, p4, p5, resize_centres(p6, p5.shape[-2:])]


def double(maps: Tensor) -> Tensor:
    """Bilinear at twice the size."""
    return resize_centres(maps, [2 * length for length in maps.shape[-2:]])


def coordinates(maps: Tensor) -> tuple[Tensor, Tensor]:
    """x and y of each pixel of (N, C, H, W) maps as (N, 1, H, W), from -1 to 1 at the borders."""
    height, width = maps.shape[-2:]
    x = torch.linspace(-1, 1, width, device=maps.device, dtype=maps.dtype)
    y = torch.linspace(-1, 1, height, device=maps.device, dtype=maps.dtype)
    shape = (maps.shape[0], 1, height, width)
    return x.view(1, 1, 1, -1).expand(shape), y.view(1, 1, -1, 1).expand(shape)


def with_coordinates(maps: Tensor) -> Tensor:
    """The maps and two channels more, x and then y. Liu et al., arXiv:1807.03247."""
    return torch.cat([maps, *coordinates(maps)], dim=1)


class ConvGroupNorm(nn.Module):
    """3x3 convolution without bias, group norm of 32 groups, ReLU."""

    def __init__(self, in_channels: int, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
        nn.init.normal_(self.conv.weight, std=0.01)
        self.gn = nn.GroupNorm(GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        gn = self.gn
        # nn.GroupNorm refuses a group of one value, at evaluation too; it becomes the bias here.
        normal = torch.group_norm(self.conv(x), gn.num_groups, gn.weight, gn.bias, gn.eps)
        return torch.relu_(normal)


def tower(in_channels: int, channels: int, depth: int) -> nn.Sequential:
    """So many 3x3 convolutions of so many channels, see :class:`ConvGroupNorm`."""
    return nn.Sequential(
        *(ConvGroupNorm(in_channels if i == 0 else channels, channels) for i in range(depth))
    )


def output(in_channels: int, channels: int, kernel: int, bias: float) -> nn.Conv2d:
    """A last convolution: weights of N(0, 0.01), and a constant bias."""
    conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, bias)
    return conv


def check_sizes(network: str, options: dict[str, int]) -> None:
    """Raise unless each channel number is a multiple of the norm's groups.

    Raises:
        ValueError: Naming the option.
    """
    for name, value in options.items():
        if not _is_int(value) or value < GROUPS or value % GROUPS:
            raise ValueError(
                f"{network}: {name} must be a positive multiple of {GROUPS}, got {value!r}"
            )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
