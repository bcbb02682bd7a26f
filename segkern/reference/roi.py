"""The box operators in plain torch, sample by sample: any dtype, differentiable, slow."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def axis_matrix(
    low: float,
    high: float,
    scale: float,
    bins: int,
    size: int,
    *,
    mode: str = "align",
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """(bins, size) weights of one axis of a box. Modes: align, pinv, pinv_mean, norm, gather."""
    matrix = torch.zeros(bins, size, dtype=torch.float64)
    if mode == "gather":
        length = (high - low) * scale
        if length > 0:
            centre = (torch.arange(size).double() + 0.5 - low * scale) / length * bins - 0.5
            return (1 - (centre - torch.arange(bins).double()[:, None]).abs()).clamp(min=0)
        return matrix
    offset = 0.5 if aligned else 0.0
    start = low * scale - offset
    length = high * scale - offset - start
    if not aligned:
        length = max(length, 1.0)
    step = length / bins
    grid = sampling_ratio if sampling_ratio > 0 else math.ceil(step)
    for p in range(bins):
        for sample in range(grid):
            at = start + p * step + (sample + 0.5) * step / grid
            if not -1.0 <= at <= size:
                continue
            first = min(int(max(at, 0.0)), size - 1)
            share = max(at, 0.0) - first if first < size - 1 else 0.0
            square = (1 - share) ** 2 + share**2 if mode.startswith("pinv") else 1.0
            matrix[p, first] += (1 - share) / square
            if share > 0:
                matrix[p, first + 1] += share / square
    if mode in ("align", "pinv_mean"):
        return matrix / max(grid, 1)
    if mode == "norm":
        return matrix / matrix.sum(0).where(matrix.sum(0) > 0, 1)
    return matrix


def _matrices(roi: Tensor, bins, size, scale: float, **options) -> tuple[Tensor, Tensor]:
    x1, y1, x2, y2 = roi[1:].tolist()
    return (
        axis_matrix(y1, y2, scale, bins[0], size[0], **options),
        axis_matrix(x1, x2, scale, bins[1], size[1], **options),
    )


def roi_align(
    input: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    *,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """RoIAlign of one map; rois (K, 5)."""
    found = []
    for roi in rois:
        down, across = _matrices(
            roi,
            output_size,
            input.shape[2:],
            spatial_scale,
            sampling_ratio=sampling_ratio,
            aligned=aligned,
        )
        found.append(down.to(input) @ input[int(roi[0])] @ across.to(input).T)
    return torch.stack(found) if found else input.new_zeros(0, input.shape[1], *output_size)


def roi_upsample(
    input: Tensor,
    rois: Tensor,
    output_size: tuple[int, int, int],
    *,
    spatial_scale: float = 1.0,
    mode: str = "gather",
    reduction: str = "mean",
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """RoIUpsample; mode also pinv_mean."""
    images, *size = output_size
    total = input.new_zeros(images, input.shape[1], *size)
    count = input.new_zeros(images, 1, *size)
    largest = input.new_zeros(images, input.shape[1], *size)
    for bins, roi in zip(input, rois):
        image = int(roi[0])
        if not 0 <= image < images:
            continue
        down, across = _matrices(
            roi,
            bins.shape[1:],
            size,
            spatial_scale,
            mode=mode,
            sampling_ratio=sampling_ratio,
            aligned=aligned,
        )
        place = torch.zeros(images, 1, 1, 1, dtype=input.dtype)
        place[image] = 1
        written = place * (down.to(input).T @ bins @ across.to(input))
        covered = place * ((down.sum(0) > 0)[:, None] & (across.sum(0) > 0))
        larger = (covered > 0) & ((count == 0) | (written > largest))
        largest = torch.where(larger, written, largest)
        total = total + written
        count = count + covered
    if reduction == "max":
        return largest
    return total / count.clamp(min=1) if reduction == "mean" else total
