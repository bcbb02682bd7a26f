"""The native separable and pointwise convolution; public calls are in atrous_separable."""

from __future__ import annotations

import torch
from torch import Tensor

from segkern import _load
from segkern.ops._conv_autograd import call_convolution, epilogue_grads
from segkern.ops._convolution import ACTIVATIONS, Epilogue, Window, accumulator, conv_length
from segkern.ops._pooling import empty_like_layout
from segkern.ops.dense import tf32_allowed

# csrc/atrous_conv/separable_launch.cuh
_MAX_EXTENT = 2**29


def is_pointwise(weight: Tensor, window: Window) -> bool:
    """Whether a dense convolution is a product over the channels of each pixel."""
    return (
        tuple(weight.shape[2:]) == (1, 1) and window.stride == [1, 1] and window.padding == [0, 0]
    )


def takes(x: Tensor, window: Window) -> bool:
    """Whether the fused kernel of the device of `x` runs a separable convolution.

    On CUDA float16, bfloat16, and float32 where torch lets convolutions use TF32; channels a
    multiple of 8, of 4 for float32. On the CPU everything.
    """
    if not x.is_cuda:
        return True
    if x.dtype == torch.float64 or x.shape[1] * x.element_size() % 16:
        return False
    if any(x.shape[2 + i] + 2 * window.padding[i] > _MAX_EXTENT for i in range(2)):
        return False
    return x.dtype != torch.float32 or tf32_allowed()


def separable_conv2d(
    x: Tensor,
    depthwise: Tensor | None,
    inner: Epilogue,
    weight: Tensor,
    outer: Epilogue,
    window: Window,
) -> Tensor:
    """Checked arguments to the native operator. Autograd keeps no hidden map: it is made again."""
    if x.is_cuda:
        _load.require_cuda("atrous_separable_conv2d")
    return torch.ops.segkern.separable_conv2d.default(
        x,
        depthwise,
        inner.scale,
        inner.shift,
        inner.slope,
        weight,
        outer.scale,
        outer.shift,
        outer.residual,
        outer.slope,
        *window,
        ACTIVATIONS.index(inner.activation),
        ACTIVATIONS.index(outer.activation),
    )


@torch.library.register_fake("segkern::separable_conv2d")
def _separable_fake(
    input,
    depthwise_weight,
    depthwise_scale,
    depthwise_shift,
    depthwise_slope,
    weight,
    scale,
    shift,
    residual,
    slope,
    stride,
    padding,
    dilation,
    depthwise_activation,
    activation,
):
    plane = list(input.shape[2:])
    if depthwise_weight is not None:
        plane = [
            conv_length(plane[i], depthwise_weight.shape[2 + i], stride[i], padding[i], dilation[i])
            for i in range(2)
        ]
    return empty_like_layout(input, [input.shape[0], weight.shape[0], *plane])


def _setup(ctx, inputs, output):
    (
        input,
        depthwise,
        depthwise_scale,
        depthwise_shift,
        depthwise_slope,
        weight,
        scale,
        shift,
        residual,
        slope,
        *ctx.window,
        inner,
        outer,
    ) = inputs
    ctx.activations = ACTIVATIONS[inner], ACTIVATIONS[outer]
    ctx.shift_dtypes = [None if t is None else t.dtype for t in (depthwise_shift, shift)]
    prelu = ctx.activations[1] == "prelu"
    ctx.save_for_backward(
        input,
        depthwise,
        depthwise_scale,
        depthwise_shift,
        depthwise_slope,
        weight,
        scale,
        shift if prelu else None,
        residual if prelu else None,
        slope,
        output if ctx.activations[1] == "relu" else None,
    )


def _backward(ctx, grad):
    input, taps, scale1, shift1, slope1, weight, scale, shift, residual, slope, output = (
        ctx.saved_tensors
    )
    needs = ctx.needs_input_grad
    first, second = ctx.activations
    wide = accumulator(input.dtype)
    inner = Epilogue(scale1, shift1, None, first, slope1)
    hidden = input
    if taps is not None:
        hidden = call_convolution("depthwise_conv2d", input, taps, Window(*ctx.window), inner)
    plain = None
    if second == "prelu" or needs[6]:
        plain = torch.conv2d(hidden, weight).to(wide)
    outer = Epilogue(scale, shift, residual, second, slope)
    found = epilogue_grads(grad, outer, output, plain, ctx.shift_dtypes[1], needs[6:10])
    of_outer = found[1:]
    of_hidden, of_weight, _ = torch.ops.aten.convolution_backward(
        found.conv,
        hidden,
        weight,
        None,
        [1, 1],
        [0, 0],
        [1, 1],
        False,
        [0, 0],
        1,
        [any(needs[:5]), needs[5], False],
    )
    rest = [None] * (len(ctx.window) + 2)
    if taps is None:
        return (of_hidden, None, None, None, None, of_weight, *of_outer, *rest)
    of_input = of_taps = None
    of_inner = (None, None, None)
    if any(needs[:5]):
        plain = None
        if first == "prelu" or needs[2]:
            bare = call_convolution(
                "depthwise_conv2d", input, taps, Window(*ctx.window), Epilogue()
            )
            plain = bare.to(wide)
        wanted = (needs[2], needs[3], False, needs[4])
        found = epilogue_grads(of_hidden, inner, hidden, plain, ctx.shift_dtypes[0], wanted)
        of_inner = (found.scale, found.shift, found.slope)
        if needs[0]:
            of_input = torch.ops.segkern._depthwise_conv2d_grad_input.default(
                found.conv, taps, *input.shape[2:], *ctx.window
            )
        if needs[1]:
            of_taps = torch.ops.segkern._depthwise_conv2d_grad_weight.default(
                found.conv, input, *taps.shape[2:], *ctx.window
            )
    return (of_input, of_taps, *of_inner, of_weight, *of_outer, *rest)


torch.library.register_autograd("segkern::separable_conv2d", _backward, setup_context=_setup)
