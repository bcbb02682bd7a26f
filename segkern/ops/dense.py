"""The native dense convolution for CUDA: its fake kernels, autograd, and what it takes.

The public call is atrous_conv2d, which asks :func:`takes` first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segkern import _load
from segkern.ops._conv_autograd import register_convolution
from segkern.ops._convolution import ACTIVATIONS, Epilogue, Window, conv_length, wants_grad

_forward = torch.ops.segkern.dense_conv2d.default

# csrc/atrous_conv/dense.h
_MAX_TAPS = 256
_MAX_EXTENT = 2**30
_VECTOR = 8


def takes(x: Tensor, weight: Tensor, window: Window, epilogue: Epilogue) -> bool:
    """Whether the kernel runs this convolution of one group.

    float16 and bfloat16, input channels a multiple of 8, at most 256 taps; with autograd also
    output channels a multiple of 8, stride 1 and less than 2**31 pixels.
    """
    if x.dtype not in (torch.float16, torch.bfloat16) or x.shape[1] % _VECTOR:
        return False
    if weight.shape[2] * weight.shape[3] > _MAX_TAPS or x.shape[1] > _MAX_EXTENT // _MAX_TAPS:
        return False
    if any(x.shape[2 + i] + 2 * window.padding[i] > _MAX_EXTENT for i in range(2)):
        return False
    if not wants_grad(x, weight, *epilogue.tensors()):
        return True
    height, width = (x.shape[2 + i] + 2 * window.padding[i] for i in range(2))
    small = x.shape[0] * height * width < 2**31
    return small and weight.shape[0] % _VECTOR == 0 and window.stride == [1, 1]


def dense_conv2d(x: Tensor, weight: Tensor, window: Window, epilogue: Epilogue) -> Tensor:
    """Checked arguments that the kernel takes; the result is channels-last."""
    _load.require_cuda("atrous_conv2d")
    return _forward(
        x,
        weight,
        epilogue.scale,
        epilogue.shift,
        epilogue.residual,
        epilogue.slope,
        *window,
        ACTIVATIONS.index(epilogue.activation),
    )


@torch.library.register_fake("segkern::dense_conv2d")
def _dense_fake(
    input, weight, scale, shift, residual, slope, stride, padding, dilation, activation
):
    plane = [
        conv_length(input.shape[2 + i], weight.shape[2 + i], stride[i], padding[i], dilation[i])
        for i in range(2)
    ]
    torch._check(
        plane[0] > 0 and plane[1] > 0,
        lambda: "dense_conv2d: input must be large enough for its kernel",
    )
    return input.new_empty([input.shape[0], weight.shape[0], *plane]).contiguous(
        memory_format=torch.channels_last
    )


@torch.library.register_fake("segkern::_dense_conv2d_grad_input")
def _grad_input_fake(grad, weight, input_h, input_w, stride, padding, dilation):
    sizes = [grad.shape[0], weight.shape[1], input_h, input_w]
    return grad.new_empty(sizes).contiguous(memory_format=torch.channels_last)


@torch.library.register_fake("segkern::_dense_conv2d_grad_weight")
def _grad_weight_fake(grad, input, kernel_h, kernel_w, stride, padding, dilation):
    sizes = [grad.shape[1], input.shape[1], kernel_h, kernel_w]
    return input.new_empty(sizes).contiguous(memory_format=torch.channels_last)


register_convolution("dense_conv2d")
