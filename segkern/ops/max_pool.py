"""Max pooling that keeps the positions of its maxima in 2 bits, 8 bits or torch's 64."""

from __future__ import annotations

import torch
from torch import Tensor

from segkern import _load
from segkern.ops._pooling import (
    FORMATS,
    IntPair,
    check_features,
    check_format_fits,
    empty_like_layout,
    format_number,
    format_of,
    index_columns,
    pair,
    pooled_length,
    window_arguments,
)


def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    *,
    ceil_mode: bool = False,
    index_format: str = "offset",
) -> tuple[Tensor, Tensor]:
    """Max pooling with the positions of the maxima, for unpooling and for its own backward.

    The values are torch's to the bit: of equal elements the first in raster order wins, a NaN in
    a window makes it NaN, padding counts as -infinity. Dilation and padding together can leave a
    window without an element: it gives -infinity, code 0 or flat index -1, and no gradient.

    Args:
        input: (N, C, H, W) or (C, H, W), float64, float32, float16 or bfloat16; N may be 0.
            Contiguous and channels-last tensors are pooled as they lie, others are copied once.
        kernel_size: window, one integer or (height, width).
        stride: step between windows; None means `kernel_size`.
        padding: rows and columns added on each side, at most half the window.
        dilation: step between the elements of a window.
        ceil_mode: also count windows that reach over the far edge.
        index_format: how positions are stored. Its dtype names the format, so that every
            consumer knows it:

            - ``"offset"``: uint8, one ``kh * kernel_w + kw`` a window (up to 256 elements);
            - ``"packed"``: int32 words along a row of windows, 2 bits a window of up to 4
              elements or 4 bits up to 16, lowest bits first: (N, C, Ho, ceil(Wo / 16 or 8));
            - ``"flat"``: int64, ``h * W + w`` in the input plane, as torch returns.

    Returns:
        ``(output, indices)``: output (N, C, Ho, Wo) in the input's dtype, indices as above, both
        in the input's memory format.

    Raises:
        ValueError, TypeError: an argument of the wrong form, dtype or rank.
        RuntimeError: the input is too small for the window; no kernels for the device.

    Deterministic on every device, and so is its backward. Under autocast it keeps the input's
    dtype. The 2-bit storage is from SegNet (Badrinarayanan et al., arXiv:1511.00561).

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> x = torch.tensor([[[[1.0, 2.0, 0.0, 0.0], [4.0, 3.0, 0.0, 0.0]]]])
        >>> y, indices = ops.max_pool2d_with_indices(x, 2)
        >>> y.tolist(), indices.tolist()
        ([[[[4.0, 0.0]]]], [[[[2, 0]]]])
    """
    op = "max_pool2d_with_indices"
    check_features(op, "input", input)
    window = window_arguments(op, kernel_size, stride, padding, dilation)
    number = format_number(op, index_format)
    check_format_fits(op, window[0], index_format)
    if input.is_cuda:
        _load.require_cuda(op)
    return torch.ops.segkern.max_pool2d_with_indices.default(
        input, *window, bool(ceil_mode), number
    )


def convert_pool_indices(
    indices: Tensor,
    index_format: str,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    *,
    input_size: IntPair,
    output_size: IntPair,
) -> Tensor:
    """The same pooling indices in another format.

    Args:
        indices: indices of a pooling, in any format of :func:`max_pool2d_with_indices`.
        index_format: the format wanted: ``"offset"``, ``"packed"`` or ``"flat"``.
        kernel_size, stride, padding, dilation: those of the pooling.
        input_size: (H, W) of the pooled input.
        output_size: (Ho, Wo) of the pooled output.

    Returns:
        Tensor of the dtype that names `index_format`, in the memory format of `indices`.

    Raises:
        ValueError, TypeError: an argument of the wrong form.
        RuntimeError: sizes that do not fit together; on the CPU also a flat index that is not in
            its own window, or a code beyond the window. On CUDA such an index becomes code 255
            (offset), -1 (flat) or 0 (packed), because looking would stall the stream.

    Deterministic.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> x = torch.rand(1, 2, 6, 8)
        >>> _, packed = ops.max_pool2d_with_indices(x, 2, index_format="packed")
        >>> flat = ops.convert_pool_indices(packed, "flat", 2, input_size=(6, 8),
        ...                                 output_size=(3, 4))
        >>> torch.equal(flat, torch.nn.functional.max_pool2d(x, 2, return_indices=True)[1])
        True
    """
    op = "convert_pool_indices"
    if not isinstance(indices, Tensor):
        raise TypeError(f"{op}: indices must be a Tensor, got {type(indices).__name__}")
    window = window_arguments(op, kernel_size, stride, padding, dilation)
    number = format_number(op, index_format)
    check_format_fits(op, window[0], index_format)
    check_format_fits(op, window[0], format_of(op, indices))
    if indices.is_cuda:
        _load.require_cuda(op)
    return torch.ops.segkern.convert_pool_indices.default(
        indices,
        *window,
        *pair(op, "input_size", input_size, 1),
        *pair(op, "output_size", output_size, 1),
        number,
    )


@torch.library.register_fake("segkern::max_pool2d_with_indices")
def _max_pool_fake(input, kernel_size, stride, padding, dilation, ceil_mode, index_format):
    name = list(FORMATS)[index_format]
    *lead, height, width = input.shape
    torch._check(
        all(2 * padding[i] <= kernel_size[i] for i in range(2)),
        lambda: (
            "max_pool2d_with_indices: padding must be at most half of kernel_size, "
            f"got {padding} for {kernel_size}"
        ),
    )
    out_h, out_w = (
        pooled_length(length, kernel_size[i], stride[i], padding[i], dilation[i], ceil_mode)
        for i, length in enumerate((height, width))
    )
    torch._check(
        out_h > 0 and out_w > 0,
        lambda: "max_pool2d_with_indices: input is too small for its windows",
    )
    columns = index_columns(out_w, kernel_size, name)
    return (
        empty_like_layout(input, [*lead, out_h, out_w]),
        empty_like_layout(input, [*lead, out_h, columns], FORMATS[name]),
    )


@torch.library.register_fake("segkern::_max_pool2d_backward")
def _max_pool_backward_fake(
    grad, indices, kernel_size, stride, padding, dilation, input_h, input_w
):
    return empty_like_layout(grad, [*grad.shape[:-2], input_h, input_w])


@torch.library.register_fake("segkern::convert_pool_indices")
def _convert_fake(
    indices,
    kernel_size,
    stride,
    padding,
    dilation,
    input_h,
    input_w,
    pooled_h,
    pooled_w,
    index_format,
):
    name = list(FORMATS)[index_format]
    size = [*indices.shape[:-2], pooled_h, index_columns(pooled_w, kernel_size, name)]
    return empty_like_layout(indices, size, FORMATS[name])


def _setup_max_pool(ctx, inputs, output):
    input, kernel_size, stride, padding, dilation, _, _ = inputs
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.window = (kernel_size, stride, padding, dilation)
    ctx.plane = tuple(input.shape[-2:])


def _backward_max_pool(ctx, grad, _):
    (indices,) = ctx.saved_tensors
    grad_input = torch.ops.segkern._max_pool2d_backward.default(
        grad, indices, *ctx.window, *ctx.plane
    )
    return grad_input, None, None, None, None, None, None


def _setup_max_pool_backward(ctx, inputs, output):
    grad, indices, *window, _, _ = inputs
    ctx.save_for_backward(indices)
    ctx.window = window
    ctx.pooled = tuple(grad.shape[-2:])


def _backward_max_pool_backward(ctx, grad):
    (indices,) = ctx.saved_tensors
    grad_grad = torch.ops.segkern._max_unpool2d_backward.default(
        grad, indices, *ctx.window, *ctx.pooled, False
    )
    return grad_grad, None, None, None, None, None, None, None


torch.library.register_autograd(
    "segkern::max_pool2d_with_indices", _backward_max_pool, setup_context=_setup_max_pool
)
torch.library.register_autograd(
    "segkern::_max_pool2d_backward",
    _backward_max_pool_backward,
    setup_context=_setup_max_pool_backward,
)
