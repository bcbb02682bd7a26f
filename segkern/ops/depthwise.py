"""The native depthwise convolution: fake kernels and autograd. The public call is atrous_conv2d."""

from __future__ import annotations

import torch
from torch import Tensor

from segkern import _load
from segkern.ops._convolution import (
    ACTIVATIONS,
    Epilogue,
    Window,
    accumulator,
    conv_length,
    per_channel,
)
from segkern.ops._pooling import empty_like_layout

_forward = torch.ops.segkern.depthwise_conv2d.default
_grad_input = torch.ops.segkern._depthwise_conv2d_grad_input.default
_grad_weight = torch.ops.segkern._depthwise_conv2d_grad_weight.default


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


def _setup_forward(ctx, inputs, output):
    input, weight, scale, shift, residual, slope, *window, activation = inputs
    ctx.window = window
    ctx.shift_dtype = None if shift is None else shift.dtype
    ctx.activation = ACTIVATIONS[activation]
    relu = ctx.activation == "relu"
    # Only what the gradient of the epilogue reads; PReLU's input is computed again from these.
    prelu = ctx.activation == "prelu"
    ctx.save_for_backward(
        input,
        weight,
        scale,
        shift if prelu else None,
        residual if prelu else None,
        slope,
        output if relu else None,
    )


def _backward_forward(ctx, grad):
    input, weight, scale, shift, residual, slope, output = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wide = accumulator(input.dtype)
    grads = [None] * 10
    plain = None
    if ctx.activation == "prelu" or needs[2]:
        plain = _forward(input, weight, None, None, None, None, *ctx.window, 0).to(wide)
    if ctx.activation == "relu":
        grad = torch.where(output > 0, grad, 0)
    elif ctx.activation == "prelu":
        before = plain
        if scale is not None:
            before = before * per_channel(scale, plain)
        if shift is not None:
            before = before + per_channel(shift, plain)
        if residual is not None:
            before = before + residual
        if needs[5]:
            sums = torch.where(before > 0, 0, before * grad).sum((0, 2, 3))
            grads[5] = (sums.sum(0, keepdim=True) if slope.numel() == 1 else sums).to(slope.dtype)
        grad = torch.where(before > 0, grad, grad * per_channel(slope, before)).to(input.dtype)
    if needs[4]:
        grads[4] = grad
    if needs[3]:
        grads[3] = grad.to(wide).sum((0, 2, 3)).to(ctx.shift_dtype)
    if needs[2]:
        grads[2] = (plain * grad).sum((0, 2, 3)).to(scale.dtype)
    if needs[0] or needs[1]:
        if scale is not None:
            grad = (grad * per_channel(scale, plain if plain is not None else grad.to(wide))).to(
                input.dtype
            )
        if needs[0]:
            grads[0] = _grad_input(grad, weight, *input.shape[2:], *ctx.window)
        if needs[1]:
            grads[1] = _grad_weight(grad, input, *weight.shape[2:], *ctx.window)
    return tuple(grads)


# The convolution and its two gradients are bilinear, and each is made of the other two: that is
# all of the derivatives of any order.
def _setup_grad_input(ctx, inputs, output):
    grad, weight, _, _, *ctx.window = inputs
    ctx.save_for_backward(grad, weight)


def _backward_grad_input(ctx, upper):
    grad, weight = ctx.saved_tensors
    of_grad = of_weight = None
    if ctx.needs_input_grad[0]:
        of_grad = _forward(upper, weight, None, None, None, None, *ctx.window, 0)
    if ctx.needs_input_grad[1]:
        of_weight = _grad_weight(grad, upper, *weight.shape[2:], *ctx.window)
    return of_grad, of_weight, None, None, None, None, None


def _setup_grad_weight(ctx, inputs, output):
    grad, input, _, _, *ctx.window = inputs
    ctx.save_for_backward(grad, input)


def _backward_grad_weight(ctx, upper):
    grad, input = ctx.saved_tensors
    of_grad = of_input = None
    if ctx.needs_input_grad[0]:
        of_grad = _forward(input, upper, None, None, None, None, *ctx.window, 0)
    if ctx.needs_input_grad[1]:
        of_input = _grad_input(grad, upper, *input.shape[2:], *ctx.window)
    return of_grad, of_input, None, None, None, None, None


torch.library.register_autograd(
    "segkern::depthwise_conv2d", _backward_forward, setup_context=_setup_forward
)
torch.library.register_autograd(
    "segkern::_depthwise_conv2d_grad_input", _backward_grad_input, setup_context=_setup_grad_input
)
torch.library.register_autograd(
    "segkern::_depthwise_conv2d_grad_weight",
    _backward_grad_weight,
    setup_context=_setup_grad_weight,
)
