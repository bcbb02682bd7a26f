"""Bilinear resampling and averages over cells along one axis as float64 matrices, from their
definitions."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_matrix(pixels: int, outputs: int, align_corners: bool) -> Tensor:
    """(outputs, pixels): what each output pixel reads, a tent of width 1 at its place."""
    o = torch.arange(outputs, dtype=torch.float64)
    if align_corners:
        place = o * (pixels - 1) / max(outputs - 1, 1)
    else:
        place = ((o + 0.5) * pixels / outputs - 0.5).clamp(0, pixels - 1)
    distance = (place[:, None] - torch.arange(pixels, dtype=torch.float64)).abs()
    return (1 - distance).clamp(min=0)


def cell_matrix(pixels: int, cells: int) -> Tensor:
    """(cells, pixels): each cell's pixels, by their number."""
    matrix = torch.zeros(cells, pixels, dtype=torch.float64)
    for i in range(cells):
        begin, end = i * pixels // cells, -((i + 1) * pixels // -cells)
        matrix[i, begin:end] = 1 / (end - begin)
    return matrix
