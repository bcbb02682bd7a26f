"""What SOLO is taught: which cells are responsible for which instance, and the masks they owe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from segkern.models._instances.images import Size, Target
from segkern.models._instances.solo_levels import Level

# Share of a box's sides that the region of responsible cells has.
REGION = 0.2

# Fractions of a pixel are counted in parts of 2048, as OpenCV does for bytes.
_PARTS = 2048


class Assignment(NamedTuple):
    """One image's targets.

    Attributes:
        labels: int64 (cells of all levels,), 0 for background; levels in order, cells by rows.
        cells: Per level int64 (k,), the cell of each pair of a cell and an instance.
        instances: Per level int64 (k,), the instance of each pair.
    """

    labels: Tensor
    cells: list[Tensor]
    instances: list[Tensor]


def assign(
    target: Target, levels: Sequence[Level], padded: Size, *, shared: bool = False
) -> Assignment:
    """Assigns the instances of an image to cells.

    An instance belongs to the levels in whose range the square root of its box's area lies. There
    it takes the cell of its mask's centre of mass, and those of the eight around it that a box of
    0.2 of its sides about that centre touches. Of instances that take one cell, the last gives the
    label.

    Args:
        target: boxes (n, 4), labels (n,) and masks (n, h, w) in the batch's pixels. An instance
            whose mask is empty is left out.
        levels: the network's.
        padded: (height, width) of the batch, over which grids lie.
        shared: whether a cell owes the masks of all instances that took it, as SOLOv2's, one pair
            for each in the order of the instances; otherwise that of the last alone, pairs in the
            order of the cells.

    Returns:
        :class:`Assignment` on the masks' device. Waits for the device once.
    """
    device = target["masks"].device
    regions = _regions(target, levels, padded).tolist()
    labels_of = target["labels"].tolist()
    labels = torch.zeros(sum(level.cells for level in levels), dtype=torch.int64)
    cells, instances = [], []
    first = 0
    for level, of_level in zip(levels, regions, strict=True):
        pairs: list[tuple[int, int]] = []
        for instance, (top, bottom, left, right) in enumerate(of_level):
            pairs += [
                (row * level.grid + column, instance)
                for row in range(top, bottom + 1)
                for column in range(left, right + 1)
            ]
        last = dict(pairs)
        for cell, instance in last.items():
            labels[first + cell] = labels_of[instance]
        taken = pairs if shared else sorted(last.items())
        table = torch.tensor(taken, dtype=torch.int64).reshape(-1, 2).to(device)
        cells.append(table[:, 0])
        instances.append(table[:, 1])
        first += level.cells
    return Assignment(labels.to(device), cells, instances)


def _regions(target: Target, levels: Sequence[Level], padded: Size) -> Tensor:
    """First and last row, first and last column of each instance's cells, (levels, n, 4) int64.

    The first row lies beyond the last where an instance has no cells.
    """
    masks = target["masks"] != 0
    height, width = masks.shape[-2:]
    device = masks.device
    boxes = target["boxes"].double()
    sides = boxes[:, 2:] - boxes[:, :2]
    size = sides.prod(dim=1).sqrt()
    area = masks.sum(dim=(1, 2))
    # Sums of indices are whole numbers, so the centre is rounded once.
    middle = (
        torch.stack(
            [
                (masks.sum(dim=2) * torch.arange(height, device=device)).sum(dim=1),
                (masks.sum(dim=1) * torch.arange(width, device=device)).sum(dim=1),
            ],
            dim=1,
        )
        / area.clamp(min=1)[:, None].double()
    )
    half = 0.5 * REGION * sides.flip(1)
    extent = torch.tensor(padded, dtype=torch.float64, device=device)
    regions = []
    for level in levels:
        own, low, high = (
            (place * level.grid / extent).floor().long()
            for place in (middle, middle - half, middle + half)
        )
        low = torch.maximum(low.clamp(min=0), own - 1)
        high = torch.minimum(high.clamp(max=level.grid - 1), own + 1)
        taught = (area > 0) & (size >= level.smallest) & (size <= level.largest)
        high = torch.where(taught[:, None], high, low - 1)
        regions.append(torch.stack([low, high], dim=2).flatten(1))
    return torch.stack(regions)


def shrink_masks(masks: Tensor, stride: int, size: Size) -> Tensor:
    """Masks at a stride, in the upper left corner of a canvas.

    They are resized to int(side / stride + 0.5), one pixel at least, bilinearly as OpenCV resizes
    bytes, in whole numbers: for an even stride that divides the side a pixel is 1 where at least
    two of the four in the middle of its block are.

    Args:
        masks: (n, h, w) 0 and 1, bool or uint8.
        stride: pixels of the masks per pixel of the result.
        size: (height, width) of the canvas.

    Returns:
        uint8 (n, *size), 0 and 1.

    Example:
        >>> import torch
        >>> from segkern.models._instances.solo_targets import shrink_masks
        >>> shrink_masks(torch.tensor([[[1, 0, 0, 0], [0, 1, 0, 1]]]), 2, (1, 3))
        tensor([[[1, 0, 0]]], dtype=torch.uint8)
    """
    count, height, width = masks.shape
    canvas = masks.new_zeros((count, *size), dtype=torch.uint8)
    rows, row_parts = _taps(height, stride, masks.device)
    columns, column_parts = _taps(width, stride, masks.device)
    beside = (columns + 1).clamp(max=width - 1)

    def blended(of_rows: Tensor) -> Tensor:
        taken = masks[:, of_rows]
        left, right = (taken[:, :, at].to(torch.int32) for at in (columns, beside))
        return ((_PARTS - column_parts) * left + column_parts * right) >> 4

    upper, lower = blended(rows), blended((rows + 1).clamp(max=height - 1))
    down = row_parts[:, None]
    small = ((((_PARTS - down) * upper) >> 16) + ((down * lower) >> 16) + 2) >> 2
    canvas[:, : small.shape[1], : small.shape[2]] = small.to(torch.uint8)
    return canvas


def _taps(side: int, stride: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each pixel of the resized side, the first source pixel and the second's share of 2048.

    Positions are rounded to float32 before they are split, as OpenCV has them.
    """
    length = max(1, math.floor(side / stride + 0.5))
    places = (torch.arange(length, dtype=torch.float64) + 0.5) * (side / length) - 0.5
    places = places.float()
    first = places.floor()
    parts = ((places - first) * _PARTS).round()
    parts[(first < 0) | (first >= side - 1)] = 0
    first = first.long().clamp(0, side - 1)
    return first.to(device), parts.to(device=device, dtype=torch.int32)
