"""Max unpooling: each value back to the position that pooling took it from, zeros elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segkern import _load
from segkern.ops._pooling import (
    IntPair,
    check_fake_indices,
    check_features,
    check_format_fits,
    check_indices_beside,
    empty_like_layout,
    format_of,
    index_columns,
    window_arguments,
)


def _plane_size(
    input: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    output_size: Sequence[int] | None,
) -> tuple[int, int]:
    """(H, W) of the unpooled plane: the default, or `output_size` within a stride of it."""
    default = [
        (input.shape[i - 2] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel[i] - 1) + 1
        for i in range(2)
    ]
    if output_size is None:
        return default[0], default[1]
    size = list(output_size) if isinstance(output_size, Sequence) else [output_size]
    if len(size) == input.dim():
        size = size[-2:]
    if len(size) != 2 or not all(isinstance(length, (int, torch.SymInt)) for length in size):
        raise ValueError(
            f"max_unpool2d: output_size must be (H, W) or the whole output shape of "
            f"{input.dim()} numbers, got {output_size!r}"
        )
    if torch.compiler.is_exporting():
        # Sizes are symbols, and the exporter cannot prove this for all of them; the native host
        # checks what matters, that each window starts inside the plane, at run time.
        return size[0], size[1]
    for i in range(2):
        low, high = default[i] - stride[i], default[i] + stride[i]
        if not low < size[i] < high:
            raise ValueError(
                f"max_unpool2d: output_size must lie between {(low + 1, high - 1)} along axis "
                f"{i - 2}, got {size[i]}"
            )
    return size[0], size[1]


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    *,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Writes each value of `input` to the position that `indices` names, zeros elsewhere.

    Where windows overlap, several may name one position: then the last of them in raster order
    wins, its value is written, and only it receives the position's gradient. That is what a
    sequential scatter does, and it holds on every device and for any number of threads.

    Args:
        input: (N, C, Ho, Wo) or (C, Ho, Wo), float64, float32, float16 or bfloat16.
        indices: from :func:`max_pool2d_with_indices` in any of its formats, which the dtype
            names, or int64 from torch. Flat indices may name any position of the plane.
        kernel_size, stride, padding, dilation: those of the pooling.
        output_size: (H, W) of the plane, or the whole output shape; None means the smallest
            plane that the windows cover. Needed where the pooling did not cover it exactly
            (45 -> 23 -> 45).

    Returns:
        (N, C, H, W) or (C, H, W) in the input's dtype and memory format. Where windows tile the
        plane, each element is written once, without a zero fill.

    Raises:
        ValueError, TypeError: an argument of the wrong form, dtype or rank; an `output_size` a
            stride or more away from the default.
        RuntimeError: sizes of input and indices that do not fit; on the CPU an index out of
            range (corrupt, or of another shape). On CUDA such an entry is dropped: it is never
            an out-of-bounds write, and looking for it would stall the stream.

    Deterministic on every device, forward and backward. Under autocast it keeps the input's
    dtype. Paper: SegNet (Badrinarayanan et al., arXiv:1511.00561).

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> x = torch.tensor([[[[1.0, 2.0], [4.0, 3.0]]]])
        >>> y, indices = ops.max_pool2d_with_indices(x, 2, index_format="packed")
        >>> ops.max_unpool2d(y, indices, 2).tolist()
        [[[[0.0, 0.0], [4.0, 0.0]]]]
    """
    op = "max_unpool2d"
    check_features(op, "input", input)
    check_indices_beside(op, indices, input)
    window = window_arguments(op, kernel_size, stride, padding, dilation)
    check_format_fits(op, window[0], format_of(op, indices))
    plane = _plane_size(input, *window, output_size)
    if input.is_cuda:
        _load.require_cuda(op)
    return torch.ops.segkern.max_unpool2d.default(input, indices, *window, *plane)


@torch.library.register_fake("segkern::max_unpool2d")
def _max_unpool_fake(input, indices, kernel_size, stride, padding, dilation, output_h, output_w):
    columns = index_columns(input.shape[-1], kernel_size, format_of("max_unpool2d", indices))
    check_fake_indices("max_unpool2d", indices, input, columns)
    return empty_like_layout(input, [*input.shape[:-2], output_h, output_w])


@torch.library.register_fake("segkern::_max_unpool2d_backward")
def _max_unpool_backward_fake(
    grad, indices, kernel_size, stride, padding, dilation, pooled_h, pooled_w, winners_only
):
    return empty_like_layout(grad, [*grad.shape[:-2], pooled_h, pooled_w])


def _setup_max_unpool(ctx, inputs, output):
    input, indices, *window, _, _ = inputs
    ctx.save_for_backward(indices)
    ctx.window = window
    ctx.pooled = tuple(input.shape[-2:])


def _backward_max_unpool(ctx, grad):
    (indices,) = ctx.saved_tensors
    grad_input = torch.ops.segkern._max_unpool2d_backward.default(
        grad, indices, *ctx.window, *ctx.pooled, True
    )
    return grad_input, None, None, None, None, None, None, None


def _setup_max_unpool_backward(ctx, inputs, output):
    grad, indices, *window, _, _, winners_only = inputs
    ctx.save_for_backward(indices)
    ctx.window = window
    ctx.plane = tuple(grad.shape[-2:])
    ctx.winners_only = winners_only


def _backward_max_unpool_backward(ctx, grad):
    (indices,) = ctx.saved_tensors
    # The transpose of a gather: the winners' scatter, or the sum over all windows.
    transpose = (
        torch.ops.segkern.max_unpool2d
        if ctx.winners_only
        else torch.ops.segkern._max_pool2d_backward
    )
    grad_grad = transpose.default(grad, indices, *ctx.window, *ctx.plane)
    return grad_grad, None, None, None, None, None, None, None, None


torch.library.register_autograd(
    "segkern::max_unpool2d", _backward_max_unpool, setup_context=_setup_max_unpool
)
torch.library.register_autograd(
    "segkern::_max_unpool2d_backward",
    _backward_max_unpool_backward,
    setup_context=_setup_max_unpool_backward,
)
