"""Bilinear resampling and averages over cells along one axis as float64 matrices, from their
definitions."""

from __future__ import annotations

from collections.abc import Callable

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


def run_at_several_threads(run: Callable[[], list[Tensor]]) -> list[Tensor]:
    """The results of `run`, which must be the same bits on any number of threads, and twice."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = run()
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            for got, want in zip(run(), wanted, strict=True):
                assert torch.equal(got, want), f"{count} threads"
    finally:
        torch.set_num_threads(before)
    return wanted
