"""The exact Gaussian filter over a grid in plain torch: any dtype, differentiable, slow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def separable_gaussian(values: Tensor, widths: Sequence[float | Tensor]) -> Tensor:
    """(N, C, *size) values times exp(-|p_i - p_j|^2 / 2), positions over widths, x first."""
    for i, width in enumerate(widths):
        axis = values.dim() - 1 - i
        steps = torch.arange(values.shape[axis], dtype=values.dtype, device=values.device)
        kernel = torch.exp(-0.5 * ((steps[:, None] - steps) / width) ** 2)
        values = torch.tensordot(values, kernel, ([axis], [0])).movedim(-1, axis)
    return values
