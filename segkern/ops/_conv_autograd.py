"""What a native convolution needs: fake kernels, and autograd of its epilogue and of any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from segkern.ops._convolution import (
    ACTIVATIONS,
    Epilogue,
    Window,
    accumulator,
    conv_length,
    per_channel,
)

#: Makes an output of given sizes that is laid out as the operator's.
EmptyLike = Callable[[Tensor, Sequence[int]], Tensor]


def call_convolution(
    name: str, x: Tensor, weight: Tensor, window: Window, epilogue: Epilogue, *groups: int
) -> Tensor:
    """``segkern::name`` of checked arguments; `groups` where its schema has them."""
    return getattr(torch.ops.segkern, name).default(
        x,
        weight,
        epilogue.scale,
        epilogue.shift,
        epilogue.residual,
        epilogue.slope,
        *window,
        *groups,
        ACTIVATIONS.index(epilogue.activation),
    )


def register_convolution(
    name: str,
    empty: EmptyLike,
    empty_weight: EmptyLike = Tensor.new_empty,
    depthwise: bool = False,
) -> None:
    """Registers fake kernels and autograd for ``segkern::name`` and its two gradients,
    ``_name_grad_input`` and ``_name_grad_weight``.

    Their schemas are those of the depthwise ones, with the groups after the dilation where a call
    can have several. `empty` lays out the output and the gradient of the input, `empty_weight` that
    of the weight.
    """
    _register_fakes(name, empty, empty_weight, depthwise)
    _register_autograd(name)


def _register_fakes(name: str, empty: EmptyLike, empty_weight: EmptyLike, depthwise: bool) -> None:
    @torch.library.register_fake(f"segkern::{name}")
    def _forward_fake(input, weight, scale, shift, residual, slope, *window):
        stride, padding, dilation = window[:3]
        plane = [
            conv_length(input.shape[2 + i], weight.shape[2 + i], stride[i], padding[i], dilation[i])
            for i in range(2)
        ]
        torch._check(
            plane[0] > 0 and plane[1] > 0,
            lambda: f"{name}: input must be large enough for its kernel",
        )
        return empty(input, [input.shape[0], weight.shape[0], *plane])

    @torch.library.register_fake(f"segkern::_{name}_grad_input")
    def _grad_input_fake(grad, weight, input_h, input_w, stride, padding, dilation, groups=1):
        channels = weight.shape[0 if depthwise else 1] * groups
        return empty(grad, [grad.shape[0], channels, input_h, input_w])

    @torch.library.register_fake(f"segkern::_{name}_grad_weight")
    def _grad_weight_fake(grad, input, kernel_h, kernel_w, stride, padding, dilation, groups=1):
        channels = 1 if depthwise else input.shape[1] // groups
        return empty_weight(input, [grad.shape[1], channels, kernel_h, kernel_w])


class EpilogueGrads(NamedTuple):
    """Gradients of the convolution before an epilogue and of the epilogue's tensors, or None."""

    conv: Tensor
    scale: Tensor | None
    shift: Tensor | None
    residual: Tensor | None
    slope: Tensor | None


def epilogue_grads(
    grad: Tensor,
    epilogue: Epilogue,
    output: Tensor | None,
    plain: Tensor | None,
    shift_dtype: torch.dtype | None,
    needs: Sequence[bool],
) -> EpilogueGrads:
    """The gradients of ``activation(plain * scale + shift + residual)``.

    Args:
        grad: of the output.
        epilogue: shift and residual may be left out unless the activation is PReLU.
        output: of the epilogue, for ReLU.
        plain: the convolution, in the accumulating dtype, for PReLU and a gradient of scale.
        shift_dtype: of the shift.
        needs: whether scale, shift, residual and slope want a gradient.
    """
    dtype, wide = grad.dtype, accumulator(grad.dtype)
    scale, shift, residual, activation, slope = epilogue
    of_scale = of_shift = of_slope = None
    if activation == "relu":
        grad = torch.where(output > 0, grad, 0)
    elif activation == "prelu":
        before = plain
        if scale is not None:
            before = before * per_channel(scale, plain)
        if shift is not None:
            before = before + per_channel(shift, plain)
        if residual is not None:
            before = before + residual
        if needs[3]:
            sums = torch.where(before > 0, 0, before * grad).sum((0, 2, 3))
            if slope.numel() == 1:
                sums = sums.sum(0, keepdim=True)
            of_slope = sums.to(slope.dtype)
        grad = torch.where(before > 0, grad, grad * per_channel(slope, before)).to(dtype)
    if needs[1]:
        of_shift = grad.to(wide).sum((0, 2, 3)).to(shift_dtype)
    if needs[0]:
        of_scale = (plain * grad).sum((0, 2, 3)).to(scale.dtype)
    conv = grad
    if scale is not None:
        conv = (grad.to(wide) * scale.to(wide).view(1, -1, 1, 1)).to(dtype)
    return EpilogueGrads(conv, of_scale, of_shift, grad if needs[2] else None, of_slope)


def _register_autograd(name: str) -> None:
    _forward = getattr(torch.ops.segkern, name).default
    _grad_input = getattr(torch.ops.segkern, f"_{name}_grad_input").default
    _grad_weight = getattr(torch.ops.segkern, f"_{name}_grad_weight").default

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
        plain = None
        if ctx.activation == "prelu" or needs[2]:
            plain = _forward(input, weight, None, None, None, None, *ctx.window, 0)
            plain = plain.to(accumulator(input.dtype))
        epilogue = Epilogue(scale, shift, residual, ctx.activation, slope)
        found = epilogue_grads(grad, epilogue, output, plain, ctx.shift_dtype, needs[2:6])
        of_input = of_weight = None
        if needs[0]:
            of_input = _grad_input(found.conv, weight, *input.shape[2:], *ctx.window)
        if needs[1]:
            of_weight = _grad_weight(found.conv, input, *weight.shape[2:], *ctx.window)
        rest = [None] * (len(ctx.window) + 1)
        return (of_input, of_weight, *found[1:], *rest)

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
        return (of_grad, of_weight, *[None] * (2 + len(ctx.window)))

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
        return (of_grad, of_input, *[None] * (2 + len(ctx.window)))

    for operator, backward, setup in (
        (name, _backward_forward, _setup_forward),
        (f"_{name}_grad_input", _backward_grad_input, _setup_grad_input),
        (f"_{name}_grad_weight", _backward_grad_weight, _setup_grad_weight),
    ):
        torch.library.register_autograd(f"segkern::{operator}", backward, setup_context=setup)
