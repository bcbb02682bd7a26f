"""The native depthwise convolution: fake kernels and autograd. The public call is atrous_conv2d."""

from __future__ import annotations

import torch
from torch import Tensor

from segkern import _load
from segkern.ops._conv_autograd import register_convolution
from segkern.ops._convolution import ACTIVATIONS, Epilogue, Window, conv_length
from segkern.ops._pooling import empty_like_layout

_forward = torch.ops.segkern.depthwise_conv2d.default


def depthwise_conv2d(x: Tensor, weight: Tensor, window: Window, epilogue: Epilogue) -> Tensor:
    """Checked arguments to the native operator."""
    if x.is_cuda:
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


@torch.library.register_fake("segkern::depthwise_conv2d")
def _depthwise_fake(
    input, weight, scale, shift, residual, slope, stride, padding, dilation, activation
):
    plane = [
        conv_length(input.shape[2 + i], weight.shape[2 + i], stride[i], padding[i], dilation[i])
        for i in range(2)
    ]
    torch._check(
        plane[0] > 0 and plane[1] > 0,
        lambda: "depthwise_conv2d: input must be large enough for its kernel",
    )
    return empty_like_layout(input, [*input.shape[:2], *plane])


@torch.library.register_fake("segkern::_depthwise_conv2d_grad_input")
def _grad_input_fake(grad, weight, input_h, input_w, stride, padding, dilation):
    return empty_like_layout(grad, [*grad.shape[:2], input_h, input_w])


@torch.library.register_fake("segkern::_depthwise_conv2d_grad_weight")
def _grad_weight_fake(grad, input, kernel_h, kernel_w, stride, padding, dilation):
    return input.new_empty((input.shape[1], 1, kernel_h, kernel_w))


register_convolution("depthwise_conv2d")
