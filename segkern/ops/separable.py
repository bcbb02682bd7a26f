"""The native separable and pointwise convolution; public calls are in atrous_separable."""

from __future__ import annotations

import torch
from torch import Tensor

from segkern import _load
from segkern.ops._convolution import ACTIVATIONS, Epilogue, Window, conv_length
from segkern.ops._pooling import empty_like_layout
from segkern.ops.dense import tf32_allowed

# csrc/atrous_conv/separable_launch.cuh
_MAX_EXTENT = 2**29


def is_pointwise(weight: Tensor, window: Window) -> bool:
    """Whether a dense convolution is a product over the channels of each pixel."""
    return (
        tuple(weight.shape[2:]) == (1, 1)
        and window.stride == [1, 1]
        and window.padding == [0, 0]
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
    """Checked arguments to the native operator; without a gradient."""
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
            conv_length(
                plane[i], depthwise_weight.shape[2 + i], stride[i], padding[i], dilation[i]
            )
            for i in range(2)
        ]
    return empty_like_layout(input, [input.shape[0], weight.shape[0], *plane])


def _setup_nothing(ctx, inputs, output):
    pass


def _refuse(ctx, *grads):
    raise RuntimeError(
        "separable_conv2d: no gradient of the fused operator; call "
        "segkern.ops.atrous_separable_conv2d, which has one"
    )


torch.library.register_autograd(
    "segkern::separable_conv2d", _refuse, setup_context=_setup_nothing
)
