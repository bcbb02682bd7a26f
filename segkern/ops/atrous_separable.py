"""Depthwise atrous convolution and pointwise convolution in one call."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from segkern.ops import conv_table
from segkern.ops._convolution import (
    Epilogue,
    Padding,
    Window,
    autocast_dtype,
    check_activation,
    check_channels,
    check_feature_map,
    check_weight,
    conv_window,
    lower,
    make_epilogue,
    output_plane,
)
from segkern.ops._pooling import IntPair
from segkern.ops.atrous_conv import run_convolution
from segkern.ops.separable import separable_conv2d, takes


def atrous_separable_conv2d(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    *,
    stride: IntPair = 1,
    padding: Padding = 0,
    dilation: IntPair = 1,
    depthwise_scale: Tensor | None = None,
    depthwise_shift: Tensor | None = None,
    depthwise_activation: str | None = None,
    depthwise_activation_weight: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    activation_weight: Tensor | None = None,
) -> Tensor:
    """Depthwise convolution, norm, activation, pointwise convolution, norm, activation.

    ``hidden = act1(depthwise(x) * depthwise_scale + depthwise_shift)`` and
    ``act2(pointwise(hidden) * scale + shift + residual)``. Where the fused kernel runs (kind
    ``"separable"`` of :mod:`segkern.ops.conv_table`) the hidden map is never in memory as a whole;
    on the CPU `x` is read once. A backward pass makes the hidden map again instead of keeping it.
    On CUDA the fused kernel takes float16, bfloat16 and, where torch allows TF32, float32, with
    channels a multiple of 16 bytes, and is not the default.

    Args:
        x: (N, C, H, W), float64, float32, float16 or bfloat16.
        depthwise_weight: (C, 1, kh, kw), in the dtype of `x`.
        pointwise_weight: (C_out, C, 1, 1), in the dtype of `x`.
        stride, padding, dilation: of the depthwise convolution, as in
            :func:`segkern.ops.atrous_conv2d`.
        depthwise_scale, depthwise_shift, depthwise_activation_weight: (C,) or None.
        scale, shift, activation_weight: (C_out,) or None.
        residual: the output's shape, or None.
        depthwise_activation, activation: None, ``"relu"`` or ``"prelu"``.

    Returns:
        (N, C_out, Ho, Wo) in the dtype and memory format of `x`.

    Raises:
        ValueError, TypeError: an argument of the wrong form, dtype, device or size.

    Differentiable, any number of times. Deterministic on the CPU for any number of threads, its
    backward for a given number. Under autocast in autocast's dtype.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> x = torch.rand(1, 8, 17, 17)
        >>> ops.atrous_separable_conv2d(x, torch.rand(8, 1, 3, 3), torch.rand(4, 8, 1, 1),
        ...                             padding=6, dilation=6).shape
        torch.Size([1, 4, 17, 17])
    """
    op = "atrous_separable_conv2d"
    check_feature_map(op, "x", x)
    dtype = autocast_dtype(x)
    x, residual = lower(dtype, x), lower(dtype, residual)
    depthwise, pointwise = lower(dtype, depthwise_weight), lower(dtype, pointwise_weight)
    channels = x.shape[1]
    check_weight(op, "depthwise_weight", depthwise, x, channels)
    check_weight(op, "pointwise_weight", pointwise, x, 1)
    if depthwise.shape[0] != channels:
        raise ValueError(
            f"{op}: depthwise_weight must be ({channels}, 1, kh, kw), got {tuple(depthwise.shape)}"
        )
    if tuple(pointwise.shape[2:]) != (1, 1):
        raise ValueError(
            f"{op}: pointwise_weight must be (C_out, {channels}, 1, 1), "
            f"got {tuple(pointwise.shape)}"
        )
    kernel = list(depthwise.shape[2:])
    window, extra = conv_window(op, kernel, stride, padding, dilation)
    if any(extra):
        x = torch.nn.functional.pad(x, extra)
    plane = output_plane(op, x, kernel, window)
    for name, tensor in (
        ("depthwise_scale", depthwise_scale),
        ("depthwise_shift", depthwise_shift),
    ):
        check_channels(op, name, tensor, channels, x)
    check_activation(op, depthwise_activation, depthwise_activation_weight, channels, x)
    inner = Epilogue(
        depthwise_scale, depthwise_shift, None, depthwise_activation, depthwise_activation_weight
    )
    outer = make_epilogue(
        op,
        x,
        pointwise.shape[0],
        (x.shape[0], pointwise.shape[0], *plane),
        None,
        scale,
        shift,
        residual,
        activation,
        activation_weight,
    )
    return run_separable(x, depthwise, inner, pointwise, outer, window)


def run_separable(
    x: Tensor,
    depthwise: Tensor,
    inner: Epilogue,
    pointwise: Tensor,
    outer: Epilogue,
    window: Window,
) -> Tensor:
    """A checked separable convolution by the kernels that the table names."""
    channels_last = suggest_memory_format(x) == torch.channels_last
    choice = conv_table.choose("separable", x, window.dilation, channels_last)
    if choice == "segkern" and takes(x, window):
        return separable_conv2d(x, depthwise, inner, pointwise, outer, window)
    hidden = run_convolution(x, depthwise, window, x.shape[1], inner)
    return run_convolution(hidden, pointwise, Window([1, 1], [0, 0], [1, 1]), 1, outer)
