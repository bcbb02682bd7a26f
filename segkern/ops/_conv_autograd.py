"""Autograd of a native convolution: of its epilogue, and of any order of the convolution itself."""

from __future__ import annotations

import torch

from segkern.ops._convolution import ACTIVATIONS, accumulator, per_channel


def register_convolution(name: str) -> None:
    """Registers autograd for ``segkern::name`` and its two gradients, ``_name_grad_input`` and
    ``_name_grad_weight``, which have the arguments of the depthwise ones; what all three take
    behind the dilation (the groups) goes along with the window.
    """
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
        wide = accumulator(input.dtype)
        grads = [None] * (7 + len(ctx.window))
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
                if slope.numel() == 1:
                    sums = sums.sum(0, keepdim=True)
                grads[5] = sums.to(slope.dtype)
            grad = torch.where(before > 0, grad, grad * per_channel(slope, before)).to(input.dtype)
        if needs[4]:
            grads[4] = grad
        if needs[3]:
            grads[3] = grad.to(wide).sum((0, 2, 3)).to(ctx.shift_dtype)
        if needs[2]:
            grads[2] = (plain * grad).sum((0, 2, 3)).to(scale.dtype)
        if needs[0] or needs[1]:
            if scale is not None:
                grad = (grad.to(wide) * scale.to(wide).view(1, -1, 1, 1)).to(input.dtype)
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
        return of_grad, of_weight, None, None, *(None for _ in ctx.window)

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
        return of_grad, of_input, None, None, *(None for _ in ctx.window)

    for operator, backward, setup in (
        (name, _backward_forward, _setup_forward),
        (f"_{name}_grad_input", _backward_grad_input, _setup_grad_input),
        (f"_{name}_grad_weight", _backward_grad_weight, _setup_grad_weight),
    ):
        torch.library.register_autograd(f"segkern::{operator}", backward, setup_context=setup)
