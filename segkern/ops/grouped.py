"""The native convolution of small groups for CUDA: its fake kernels, autograd, and what it takes.

The public call is atrous_conv2d, which asks :func:`takes` first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segkern import _load
from segkern.ops._conv_autograd import register_convolution
from segkern.ops._convolution import ACTIVATIONS, Epilogue, Window, conv_length, wants_grad
from segkern.ops._pooling import empty_like_layout

# Channels of a group, of the input and of the output, for which the kernel is made.
_MOST = 32


def takes(x: Tensor, weight: Tensor, groups: int, window: Window, epilogue: Epilogue) -> bool:
    """Whether the kernel runs this convolution: at most 32 input and 32 output channels a group.

    With autograd also less than 2**31 output pixels. Any dtype, layout, kernel, stride and rate.
    """
    if weight.shape[1] > _MOST or weight.shape[0] // groups > _MOST:
        return False
    if not wants_grad(x, weight, *epilogue.tensors()):
        return True
    height, width = (
        conv_length(
            x.shape[2 + i],
            weight.shape[2 + i],
            window.stride[i],
            window.padding[i],
            window.dilation[i],
        )
        for i in range(2)
    )
    return x.shape[0] * height * width < 2**31


def grouped_conv2d(
    x: Tensor, weight: Tensor, window: Window, groups: int, epilogue: Epilogue
) -> Tensor:
    """Checked arguments that the kernel takes; the result has the layout of `x`."""
    _load.require_cuda("atrous_conv2d")
    return torch.ops.segkern.grouped_conv2d.default(
        x,
        weight,
        epilogue.scale,
        epilogue.shift,
        epilogue.residual,
        epilogue.slope,
        *window,
        groups,
        ACTIVATIONS.index(epilogue.activation),
    )


@torch.library.register_fake("segkern::grouped_conv2d")
def _grouped_fake(
    input, weight, scale, shift, residual, slope, stride, padding, dilation, groups, activation
):
    plane = [
        conv_length(input.shape[2 + i], weight.shape[2 + i], stride[i], padding[i], dilation[i])
        for i in range(2)
    ]
    torch._check(
        plane[0] > 0 and plane[1] > 0,
        lambda: "grouped_conv2d: input must be large enough for its kernel",
    )
    return empty_like_layout(input, [input.shape[0], weight.shape[0], *plane])


@torch.library.register_fake("segkern::_grouped_conv2d_grad_input")
def _grad_input_fake(grad, weight, input_h, input_w, stride, padding, dilation, groups):
    return empty_like_layout(grad, [grad.shape[0], groups * weight.shape[1], input_h, input_w])


@torch.library.register_fake("segkern::_grouped_conv2d_grad_weight")
def _grad_weight_fake(grad, input, kernel_h, kernel_w, stride, padding, dilation, groups):
    return input.new_empty((grad.shape[1], input.shape[1] // groups, kernel_h, kernel_w))


register_convolution("grouped_conv2d")
