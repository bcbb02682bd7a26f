"""The Deep Parsing Network's own layers in plain torch: any dtype, differentiable, slow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def local_quadratic_filter(
    input: Tensor,
    image: Tensor,
    weights: Tensor,
    kernel_size: tuple[int, int],
    *,
    multiply: bool = True,
) -> Tensor:
    """The sum over the window written out, one offset at a time; weights (2,)."""
    height, width = input.shape[-2:]
    total = torch.zeros_like(input)
    ones = torch.ones_like(image[:, :1])
    for down in range(-(kernel_size[0] // 2), kernel_size[0] - kernel_size[0] // 2):
        for right in range(-(kernel_size[1] // 2), kernel_size[1] - kernel_size[1] // 2):
            if abs(down) >= height or abs(right) >= width:
                continue
            colour = (image - _shifted(image, down, right)).square().sum(1, keepdim=True)
            colour = colour * _shifted(ones, down, right)
            weight = weights[0] * colour + weights[1] * (down**2 + right**2)
            total = total + weight * _shifted(input, down, right)
    return input * total if multiply else total


def block_min_pool(input: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Minima over consecutive channels and the first index of each."""
    blocks = input.unflatten(1, (-1, block_size))
    indices = (blocks == blocks.amin(2, keepdim=True)).to(torch.uint8).argmax(2)
    return blocks.gather(2, indices[:, :, None])[:, :, 0], indices.to(torch.uint8)


def mixture_mean_field(log_unary: Tensor, penalty: Tensor, *, log: bool = True) -> Tensor:
    """(Log-)softmax of the unary less the smallest penalty of each label."""
    mixtures = penalty.shape[1] // log_unary.shape[1]
    logits = log_unary - block_min_pool(penalty, mixtures)[0]
    return logits.log_softmax(1) if log else logits.softmax(1)


def _shifted(x: Tensor, down: int, right: int) -> Tensor:
    """Element (y + down, x + right) at (y, x), 0 outside."""
    return F.pad(x, (max(0, -right), max(0, right), max(0, -down), max(0, down)))[
        ...,
        max(0, down) : max(0, down) + x.shape[-2],
        max(0, right) : max(0, right) + x.shape[-1],
    ]
