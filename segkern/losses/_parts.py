"""Losses worked out a part at a time, so that temporary values are few and stay in the cache."""

from __future__ import annotations

import torch
from torch import Tensor

# Elements of a part: what stays in the cache of a CPU's core, and what fills a GPU.
CPU_ELEMENTS = 1 << 16
CUDA_ELEMENTS = 1 << 26


def parts(values: Tensor) -> list[slice]:
    """Slices of the first axis, of one entry at least; a single one when torch.compile traces."""
    count = values.shape[0]
    if torch.compiler.is_compiling():
        return [slice(0, count)]
    most = CUDA_ELEMENTS if values.is_cuda else CPU_ELEMENTS
    step = max(1, most // max(1, values[:1].numel()))
    return [slice(first, first + step) for first in range(0, count, step)]
