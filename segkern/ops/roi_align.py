"""Reading boxes of feature maps on a grid of their own: RoIAlign, on one map or a pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Union

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from segkern import _load
from segkern.ops._boxes import Boxes, box_rows, check_floating, number, sampling
from segkern.ops._pooling import IntPair, pair


def roi_align(
    input: Union[Tensor, Sequence[Tensor]],
    rois: Boxes,
    output_size: IntPair,
    *,
    spatial_scale: Union[float, Sequence[float]] = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
) -> Tensor:
    """Means of bilinear samples over the bins of boxes: RoIAlign.

    A box is cut into output_size bins, a bin holds sampling_ratio^2 samples on a regular grid, and
    a sample interpolates four pixels. Samples up to one pixel outside the map read its border,
    farther ones count 0. On a pyramid each box is read from one level, chosen in the same call:

        k = floor(canonical_level + log2(sqrt(w h) / canonical_size) + 1e-6)

    clamped to the levels given, where level k has scale 2^-k. The sampling grid is a product of
    two axes, so a box costs its pixels and bins, not its samples.

    Args:
        input: (N, C, H, W), float64, float32, float16 or bfloat16; or up to 8 of them, fine to
            coarse, with the same N and C. Half types are summed in float32.
        rois: (K, 5) rows of image, x1, y1, x2, y2 in image pixels; or a list of (K_i, 4), one an
            image. Kept in float32, or in float64 where `input` is. They get no gradient.
        output_size: bins, one integer or (height, width).
        spatial_scale: pixels of the map per image pixel; one number a level, each half the last.
        sampling_ratio: samples a bin along each axis, at most 1024; 0 or less takes one a pixel,
            rounded up.
        aligned: pixel centres lie at half integers of the image, and boxes keep their size. False
            is the older rule: centres at integers and sizes of at least one pixel of the map.
        canonical_size, canonical_level: the level rule; without meaning on one map.

    Returns:
        (K, C, *output_size), in the dtype and memory format of the (first) input.

    Raises:
        ValueError, TypeError: an argument of the wrong form.
        RuntimeError: levels of unlike batch, channels, dtype or device; on the CPU, a box whose
            image is not in the batch (on CUDA such a box reads 0); no kernels for the device.

    Deterministic on every device, backward too: each pixel gathers from the boxes over it, in their
    order. Differentiable once, in `input`. Boxes with a NaN or a coordinate beyond 2^23 pixels of
    the map read 0; so do boxes of zero or negative size, if aligned and sampling_ratio is 0. With a
    fixed ratio boxes of negative size are read backwards. He et al., "Mask R-CNN",
    arXiv:1703.06870; the level rule is from Lin et al., arXiv:1612.03144.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> x = torch.arange(25.0).view(1, 1, 5, 5)
        >>> ops.roi_align(x, torch.tensor([[0.0, 1.0, 1.0, 3.0, 3.0]]), 2)
        tensor([[[[ 6.,  7.],
                  [11., 12.]]]])
    """
    op = "roi_align"
    inputs = [input] if isinstance(input, Tensor) else list(input)
    if not 1 <= len(inputs) <= 8:
        raise ValueError(f"{op}: input must have 1 to 8 levels, got {len(inputs)}")
    for level in inputs:
        check_floating(op, "input", level, 4)
    bins = pair(op, "output_size", output_size, 1)
    given = list(spatial_scale) if isinstance(spatial_scale, Sequence) else [spatial_scale]
    scales = [number(op, "spatial_scale", scale) for scale in given]
    if len(scales) != len(inputs):
        raise ValueError(
            f"{op}: spatial_scale must have one number a level, {len(inputs)}, got {len(scales)}"
        )
    size = number(op, "canonical_size", canonical_size)
    rows = box_rows(op, rois, inputs[0])
    if inputs[0].is_cuda:
        _load.require_cuda(op)
    return torch.ops.segkern.roi_align.default(
        inputs,
        rows,
        *bins,
        scales,
        _level_sizes(op, scales, size, canonical_level),
        sampling(op, sampling_ratio),
        bool(aligned),
    )


def _level_sizes(op: str, scales: list[float], size: float, canonical: int) -> list[float]:
    """The least sqrt(w h) of a box of each level but the first."""
    if len(scales) == 1:
        return []
    for fine, coarse in zip(scales, scales[1:]):
        if not math.isclose(fine, 2 * coarse, rel_tol=1e-6):
            raise ValueError(f"{op}: spatial_scale must halve from level to level, got {scales}")
    first = round(-math.log2(scales[0]))
    if not math.isclose(scales[0], 2.0**-first, rel_tol=1e-6):
        raise ValueError(f"{op}: spatial_scale must be powers of 2 on a pyramid, got {scales}")
    levels = range(first + 1, first + len(scales))
    return [size * 2.0 ** (level - canonical - 1e-6) for level in levels]


@torch.library.register_fake("segkern::roi_align")
def _roi_align_fake(
    inputs, rois, output_h, output_w, spatial_scales, level_sizes, sampling_ratio, aligned
):
    first = inputs[0]
    shape = (rois.shape[0], first.shape[1], output_h, output_w)
    return torch.empty(
        shape,
        dtype=first.dtype,
        device=first.device,
        memory_format=suggest_memory_format(first),
    )


@torch.library.register_fake("segkern::_roi_align_backward")
def _roi_align_backward_fake(
    grad, rois, sizes, spatial_scales, level_sizes, sampling_ratio, aligned, channels_last
):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return [
        torch.empty(
            (sizes[0], sizes[1], sizes[k], sizes[k + 1]),
            dtype=grad.dtype,
            device=grad.device,
            memory_format=layout,
        )
        for k in range(2, len(sizes), 2)
    ]


def _setup_roi_align(ctx, inputs, output):
    maps, rois, _, _, scales, level_sizes, sampling_ratio, aligned = inputs
    ctx.save_for_backward(rois)
    ctx.sizes = [*maps[0].shape[:2], *(size for level in maps for size in level.shape[2:])]
    ctx.options = (scales, level_sizes, sampling_ratio, aligned)
    ctx.channels_last = suggest_memory_format(maps[0]) == torch.channels_last


def _backward_roi_align(ctx, grad):
    grads = torch.ops.segkern._roi_align_backward.default(
        grad, *ctx.saved_tensors, ctx.sizes, *ctx.options, ctx.channels_last
    )
    # torch takes an empty list for one of tensors.
    level_sizes = None if ctx.options[1] else []
    return grads, None, None, None, None, level_sizes, None, None


torch.library.register_autograd(
    "segkern::roi_align", _backward_roi_align, setup_context=_setup_roi_align
)


def _refuse_second_derivative(ctx, *grads):
    raise RuntimeError("roi_align: second derivatives are not available")


torch.library.register_autograd(
    "segkern::_roi_align_backward",
    _refuse_second_derivative,
    setup_context=lambda ctx, inputs, output: None,
)
