"""Averages over the cells of several grids in one pass: the pooling of a spatial pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segkern import _load
from segkern.ops._convolution import check_feature_map
from segkern.ops._pooling import empty_like_layout

#: The most grids, and the most cells a side of one and of all together.
MAX_GRIDS, MAX_BINS, MAX_ALL_BINS = 8, 64, 128


def pyramid_pool(input: Tensor, bins: Sequence[int] = (1, 2, 3, 6)) -> tuple[Tensor, ...]:
    """A map's averages over 1x1, 2x2, 3x3 and 6x6 cells, or other grids, all in one pass.

    The values of :func:`torch.nn.functional.adaptive_avg_pool2d` for each grid, to rounding: cell
    ``i`` of ``b`` along an axis of ``n`` pixels holds pixels ``floor(i * n / b)`` to
    ``ceil((i + 1) * n / b) - 1``, so that cells share pixels where ``b`` does not divide ``n``. The
    map is read once for all grids, and its gradient written once.

    Args:
        input: (N, C, H, W), float64, float32, float16 or bfloat16; N and C may be 0. Contiguous
            and channels-last maps are read as they lie, others are copied once. Half types are
            summed in float32.
        bins: cells a side of each grid, 1 to 64; 1 to 8 of them, at most 128 together. The default
            is PSPNet's.

    Returns:
        For each of `bins` a tensor (N, C, b, b) in the input's dtype and order of axes: views of
        one tensor, dense within an image.

    Raises:
        TypeError, ValueError: an argument of the wrong form, dtype or rank.
        RuntimeError: maps without a row or a column; no kernels for the device.

    Differentiable any number of times. Deterministic on every device, and so is its backward, as
    torch's on CUDA is not: a pixel sums the gradients of its cells in a fixed order, on any number
    of threads. Under autocast the input's dtype is kept. Zhao et al., arXiv:1612.01105.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> x = torch.arange(16.0).view(1, 1, 4, 4)
        >>> whole, quarters = ops.pyramid_pool(x, (1, 2))
        >>> whole.item(), quarters.flatten().tolist()
        (7.5, [2.5, 4.5, 10.5, 12.5])
    """
    op = "pyramid_pool"
    check_feature_map(op, "input", input)
    sides = list(bins) if isinstance(bins, Sequence) else [bins]
    if any(isinstance(b, bool) or not isinstance(b, int) for b in sides):
        raise TypeError(f"{op}: bins must be integers, got {bins!r}")
    if not 1 <= len(sides) <= MAX_GRIDS or any(not 1 <= b <= MAX_BINS for b in sides):
        raise ValueError(
            f"{op}: bins must be 1 to {MAX_GRIDS} numbers from 1 to {MAX_BINS}, got {bins!r}"
        )
    if sum(sides) > MAX_ALL_BINS:
        raise ValueError(f"{op}: bins must add up to at most {MAX_ALL_BINS}, got {bins!r}")
    if input.is_cuda:
        _load.require_cuda(op)
    packed = torch.ops.segkern.pyramid_pool.default(input, sides)
    parts = packed.squeeze(-1).split([b * b for b in sides], dim=2)
    return tuple(part.unflatten(2, (b, b)) for part, b in zip(parts, sides, strict=True))


@torch.library.register_fake("segkern::pyramid_pool")
def _pyramid_fake(input, bins):
    return empty_like_layout(input, [*input.shape[:2], sum(b * b for b in bins), 1])


@torch.library.register_fake("segkern::_pyramid_pool_backward")
def _pyramid_backward_fake(grad, bins, input_h, input_w):
    return empty_like_layout(grad, [*grad.shape[:2], input_h, input_w])


def _setup(ctx, inputs, output):
    maps, ctx.bins = inputs
    ctx.size = tuple(maps.shape[-2:])


def _backward(ctx, grad):
    back = torch.ops.segkern._pyramid_pool_backward.default
    return back(grad, ctx.bins, *ctx.size), None


def _setup_backward(ctx, inputs, output):
    ctx.bins = inputs[1]


def _backward_of_backward(ctx, grad):
    return torch.ops.segkern.pyramid_pool.default(grad, ctx.bins), None, None, None


torch.library.register_autograd("segkern::pyramid_pool", _backward, setup_context=_setup)
torch.library.register_autograd(
    "segkern::_pyramid_pool_backward", _backward_of_backward, setup_context=_setup_backward
)
