"""Filtering a window by squared differences of colour and position: DPN's local convolution."""

from __future__ import annotations

from typing import Union

import torch
from torch import Tensor

from segkern import _load
from segkern.ops._pooling import IntPair, pair

Weight = Union[float, Tensor]


def local_quadratic_filter(
    input: Tensor,
    image: Tensor,
    colour_weight: Weight,
    position_weight: Weight,
    kernel_size: IntPair = 50,
    *,
    multiply: bool = True,
) -> Tensor:
    """Sums over a window around each pixel, weighted by squared differences: local convolution.

    For pixel j and label v, over the pixels z of the window of j,

        out_j(v) = q_j(v) * sum_z (w1 |I_j - I_z|^2 + w2 |x_j - x_z|^2) q_z(v)

    which is the filter of the Deep Parsing Network's layer b12: a kernel of its own at each pixel,
    shared by all labels. Its time does not depend on the window: the squares are expanded into box
    sums, kept in double, so that what cancels costs no digits of the result.

    Args:
        input: q, (N, L, H, W), float64, float32, float16 or bfloat16.
        image: I, (N, C, H, W) with 1 to 4 channels, floating; kept in float32, or in float64 where
            `input` is. It gets no gradient.
        colour_weight: w1, a number or a tensor of one element, in the units of 1 / colour^2.
        position_weight: w2 likewise, in 1 / pixel^2.
        kernel_size: window, one integer or (height, width). A window of k reaches from -(k // 2)
            to k - 1 - k // 2, so 50 from -25 to 24; pixels outside the image count 0.
        multiply: include the factor q_j(v); otherwise the sum alone.

    Returns:
        Tensor of the shape and dtype of `input`, contiguous.

    Raises:
        ValueError, TypeError: an argument of the wrong form, dtype or rank.
        RuntimeError: an image of another batch, size or device, or with more than 4 channels; on
            CUDA, a window of more than 192 columns; no kernels for the device.

    Differentiable once, in `input` and the two weights. Deterministic on every device. Under
    autocast it keeps the input's dtype. A NaN or an infinity in a plane or in the image may make
    any result of that plane NaN. Liu et al., "Semantic Image Segmentation via Deep Parsing
    Network", arXiv:1509.02634.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> q, image = torch.ones(1, 1, 1, 3), torch.tensor([[[[0.0, 0.0, 2.0]]]])
        >>> ops.local_quadratic_filter(q, image, 1.0, 10.0, kernel_size=3)
        tensor([[[[10., 24., 14.]]]])
    """
    op = "local_quadratic_filter"
    for name, value in (("input", input), ("image", image)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{op}: {name} must be floating, got {value.dtype}")
        if value.dim() != 4:
            raise ValueError(f"{op}: {name} must have 4 axes, got {tuple(value.shape)}")
    kernel = pair(op, "kernel_size", kernel_size, 1)
    if input.is_cuda:
        _load.require_cuda(op)
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    weights = torch.stack(
        [
            _weight(op, "colour_weight", colour_weight, input.device),
            _weight(op, "position_weight", position_weight, input.device),
        ]
    )
    return torch.ops.segkern.local_quadratic_filter.default(
        input, image.detach().to(wide), weights, kernel, bool(multiply)
    )


def _weight(op: str, name: str, value: Weight, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        if value.numel() != 1 or not value.is_floating_point() or value.device != device:
            raise ValueError(
                f"{op}: {name} must be a number or a floating tensor of one element on {device}, "
                f"got {tuple(value.shape)} {value.dtype} on {value.device}"
            )
        return value.reshape(()).double()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {name} must be a number or a Tensor, got {type(value).__name__}")
    return torch.full((), float(value), dtype=torch.float64, device=device)


@torch.library.register_fake("segkern::local_quadratic_filter")
def _local_filter_fake(input, image, weights, kernel_size, multiply):
    torch._check(
        image.shape[0] == input.shape[0] and image.shape[2:] == input.shape[2:],
        lambda: "local_quadratic_filter: image must have the batch and size of input",
    )
    torch._check(
        1 <= image.shape[1] <= 4,
        lambda: "local_quadratic_filter: image must have 1 to 4 channels",
    )
    return torch.empty_like(input, memory_format=torch.contiguous_format)


@torch.library.register_fake("segkern::_local_quadratic_filter_backward")
def _local_filter_backward_fake(grad, input, image, weights, kernel_size, multiply):
    return torch.empty_like(input, memory_format=torch.contiguous_format), weights.new_empty((2,))


def _setup_local_filter(ctx, inputs, output):
    input, image, weights, kernel_size, multiply = inputs
    ctx.save_for_backward(input, image, weights)
    ctx.options = (kernel_size, multiply)


def _backward_local_filter(ctx, grad):
    grad_input, grad_weights = torch.ops.segkern._local_quadratic_filter_backward.default(
        grad, *ctx.saved_tensors, *ctx.options
    )
    return grad_input, None, grad_weights, None, None


torch.library.register_autograd(
    "segkern::local_quadratic_filter", _backward_local_filter, setup_context=_setup_local_filter
)


def _refuse_second_derivative(ctx, *grads):
    raise RuntimeError("local_quadratic_filter: second derivatives are not available")


torch.library.register_autograd(
    "segkern::_local_quadratic_filter_backward",
    _refuse_second_derivative,
    setup_context=lambda ctx, inputs, output: None,
)
