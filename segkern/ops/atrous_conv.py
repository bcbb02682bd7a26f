"""Atrous (dilated) convolution with its epilogue: dense, grouped and depthwise."""

from __future__ import annotations

import torch
from torch import Tensor

from segkern.ops._convolution import (
    PADDING_MODES,
    Padding,
    apply_epilogue,
    autocast_dtype,
    check_feature_map,
    check_weight,
    conv_window,
    lower,
    make_epilogue,
    output_plane,
)
from segkern.ops._pooling import IntPair


def atrous_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: IntPair = 1,
    padding: Padding = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    activation_weight: Tensor | None = None,
) -> Tensor:
    """``activation((conv(x, weight) + bias) * scale + shift + residual)``."""
    op = "atrous_conv2d"
    check_feature_map(op, "x", x)
    dtype = autocast_dtype(x)
    x, weight, residual = lower(dtype, x), lower(dtype, weight), lower(dtype, residual)
    check_weight(op, "weight", weight, x, groups)
    kernel = list(weight.shape[2:])
    window, extra = conv_window(op, kernel, stride, padding, dilation)
    if padding_mode not in PADDING_MODES:
        raise ValueError(
            f"{op}: padding_mode must be one of {', '.join(map(repr, PADDING_MODES))}, "
            f"got {padding_mode!r}"
        )
    if padding_mode != "zeros":
        (top, left), (below, right) = window.padding, (extra[3], extra[1])
        sides = [left, left + right, top, top + below]
        x = torch.nn.functional.pad(x, sides, mode=padding_mode)
        window = window._replace(padding=[0, 0])
    elif any(extra):
        x = torch.nn.functional.pad(x, extra)
    plane = output_plane(op, x, kernel, window)
    channels = weight.shape[0]
    epilogue = make_epilogue(
        op, x, channels, (x.shape[0], channels, *plane), bias, scale, shift, residual,
        activation, activation_weight,
    )
    y = torch.conv2d(x, weight, None, window.stride, window.padding, window.dilation, groups)
    return apply_epilogue(y, epilogue, x.dtype)
