"""Bilinear resampling of whole maps, with a backward that is the same bits every time."""

from __future__ import annotations

import torch
from torch import Tensor

from segkern import _load
from segkern.ops._convolution import check_feature_map
from segkern.ops._pooling import IntPair, empty_like_layout, pair


def resize_bilinear(input: Tensor, size: IntPair, align_corners: bool = False) -> Tensor:
    """Maps at another size, every pixel interpolated between the four around its place.

    The values of :func:`torch.nn.functional.interpolate` with ``mode="bilinear"`` and
    ``antialias=False``, to rounding: where a map shrinks, pixels between the samples count for
    nothing. Pixel ``o`` of an axis of ``n`` pixels lies at ``(o + 0.5) * m / n - 0.5`` of the
    input's ``m``, and not before its first or behind its last; with `align_corners` at
    ``o * (m - 1) / (n - 1)``.

    Args:
        input: (N, C, H, W), float64, float32, float16 or bfloat16; N and C may be 0. Contiguous
            and channels-last maps are read as they lie, others are copied once. Half types are
            interpolated in float32 and rounded once.
        size: height and width of the result, at least 1; one integer for both.
        align_corners: put the centres of the corner pixels on each other instead of their corners.

    Returns:
        (N, C, *size) in the input's dtype and memory format.

    Raises:
        TypeError, ValueError: an argument of the wrong form, dtype or rank.
        RuntimeError: maps without a row or a column; no kernels for the device.

    Differentiable any number of times; the gradient is the exact adjoint. Deterministic on every
    device, and so is its backward: a pixel sums the output pixels that read it in a fixed order,
    on any number of threads. What has a weight of 0 is not read: an infinity or a NaN stays within
    the pixels interpolated from it. Under autocast the input's dtype is kept.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> x = torch.tensor([[[[0.0, 4.0]]]])
        >>> ops.resize_bilinear(x, (1, 4)).tolist()
        [[[[0.0, 1.0, 3.0, 4.0]]]]
        >>> ops.resize_bilinear(x, (1, 3), align_corners=True).tolist()
        [[[[0.0, 2.0, 4.0]]]]
    """
    op = "resize_bilinear"
    check_feature_map(op, "input", input)
    height, width = pair(op, "size", size, 1)
    if input.is_cuda:
        _load.require_cuda(op)
    return torch.ops.segkern.resize_bilinear.default(input, height, width, bool(align_corners))


@torch.library.register_fake("segkern::resize_bilinear")
def _resize_fake(input, output_h, output_w, align_corners):
    return empty_like_layout(input, [*input.shape[:2], output_h, output_w])


@torch.library.register_fake("segkern::_resize_bilinear_backward")
def _resize_backward_fake(grad, input_h, input_w, align_corners):
    return empty_like_layout(grad, [*grad.shape[:2], input_h, input_w])


def _setup(ctx, inputs, output):
    maps, _, _, align_corners = inputs
    ctx.size, ctx.align_corners = tuple(maps.shape[-2:]), align_corners


def _backward(ctx, grad):
    back = torch.ops.segkern._resize_bilinear_backward.default
    return back(grad, *ctx.size, ctx.align_corners), None, None, None


def _backward_of_backward(ctx, grad):
    forward = torch.ops.segkern.resize_bilinear.default
    return forward(grad, *ctx.size, ctx.align_corners), None, None, None


torch.library.register_autograd("segkern::resize_bilinear", _backward, setup_context=_setup)
torch.library.register_autograd(
    "segkern::_resize_bilinear_backward", _backward_of_backward, setup_context=_setup
)
