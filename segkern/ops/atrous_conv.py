"""Atrous (dilated) convolution with its epilogue: dense, grouped and depthwise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from segkern.ops import conv_table, dense, grouped
from segkern.ops._convolution import (
    PADDING_MODES,
    Epilogue,
    Padding,
    Window,
    apply_epilogue,
    apply_epilogue_,
    autocast_dtype,
    check_feature_map,
    check_weight,
    conv_length,
    conv_window,
    lower,
    make_epilogue,
    output_plane,
    wants_grad,
)
from segkern.ops._pooling import IntPair
from segkern.ops._relayout import to_layout
from segkern.ops.depthwise import depthwise_conv2d
from segkern.ops.separable import is_pointwise, separable_conv2d


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
    """``activation((conv(x, weight) + bias) * scale + shift + residual)``.

    Every rate is allowed, also beyond the map: taps that meet only padding are left out. The
    kernel is chosen by :mod:`segkern.ops.conv_table`.

    Args:
        x: (N, C_in, H, W), float64, float32, float16 or bfloat16; N may be 0. Contiguous and
            channels-last tensors are read as they lie, others are copied once.
        weight: (C_out, C_in / groups, kh, kw), in the dtype of `x`.
        bias: (C_out,) or None.
        stride, dilation: one integer or (height, width), at least 1.
        padding: one integer or (height, width), at least 0; ``"same"`` (stride 1) or ``"valid"``.
        groups: divides C_in and C_out; C_in makes the convolution depthwise.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``; all but zeros
            pad a copy of `x`.
        scale, shift: (C_out,) or None: a batch norm's affine map, of any floating dtype.
        residual: added before the activation: the output's shape, the dtype of `x`.
        activation: None, ``"relu"`` or ``"prelu"``.
        activation_weight: the slope of PReLU, (C_out,) or (1,).

    Returns:
        (N, C_out, Ho, Wo) in the dtype and memory format of `x`.

    Raises:
        ValueError, TypeError: an argument of the wrong form, dtype, device or size, or an output
            without a pixel.

    Deterministic where the kernel is ours (on the CPU for any number of threads), else as torch's
    convolution. On CUDA the kernels of this package run only where :mod:`segkern.ops.conv_table`
    is told so; float32 is then rounded to TF32 in dense convolutions, if torch allows convolutions
    that (``torch.backends.cudnn.allow_tf32``). Differentiable in every tensor; without autograd the
    epilogue is part of the convolution. Under autocast it runs in autocast's dtype. A weight that
    is not finite may turn outputs to NaN that lie less than 16 pixels from those it reaches.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> x = torch.rand(1, 8, 33, 33)
        >>> y = ops.atrous_conv2d(x, torch.rand(8, 1, 3, 3), padding=36, dilation=36, groups=8,
        ...                       activation="relu")
        >>> y.shape
        torch.Size([1, 8, 33, 33])
    """
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
        op,
        x,
        channels,
        (x.shape[0], channels, *plane),
        bias,
        scale,
        shift,
        residual,
        activation,
        activation_weight,
    )
    return run_convolution(x, weight, window, groups, epilogue)


def run_convolution(
    x: Tensor, weight: Tensor, window: Window, groups: int, epilogue: Epilogue
) -> Tensor:
    """A checked convolution by the kernel that the table names."""
    depthwise = groups == x.shape[1] == weight.shape[0] and groups > 1
    pointwise = groups == 1 and is_pointwise(weight, window)
    kind = (
        "depthwise"
        if depthwise
        else "grouped"
        if groups > 1
        else "pointwise"
        if pointwise
        else "dense"
    )
    channels_last = suggest_memory_format(x) == torch.channels_last
    per_group = max(weight.shape[1], weight.shape[0] // groups)
    choice = conv_table.choose(kind, x, window.dilation, channels_last, per_group)
    if choice == "segkern" and depthwise:
        return depthwise_conv2d(x, weight, window, epilogue)
    if choice == "segkern" and pointwise and not wants_grad(x, weight, *epilogue.tensors()):
        return separable_conv2d(x, None, Epilogue(), weight, epilogue, window)
    if choice == "segkern" and kind == "grouped":
        if grouped.takes(x, weight, window, groups, epilogue):
            return grouped.grouped_conv2d(x, weight, window, groups, epilogue)
    if choice == "segkern" and kind == "dense" and dense.takes(x, weight, window, epilogue):
        y = dense.dense_conv2d(x, weight, window, epilogue)
        return y if channels_last else y.contiguous()
    if choice == "wgmma":
        dense.check_wgmma("atrous_conv2d", x, weight, window, epilogue)
        y = dense.dense_conv2d(x, weight, window, epilogue, wgmma=True)
        return y if channels_last else y.contiguous()
    return _torch_convolution(
        x, weight, window, groups, epilogue, choice == "torch_channels_last" and not channels_last
    )


def _torch_convolution(
    x: Tensor,
    weight: Tensor,
    window: Window,
    groups: int,
    epilogue: Epilogue,
    through_channels_last: bool,
) -> Tensor:
    """torch's convolution, without the taps that meet only padding, and the epilogue."""
    dtype = x.dtype
    training = wants_grad(x, weight, *epilogue.tensors())
    weight, window = _trim(x, weight, window)
    bias = None
    if not training:
        # A norm is folded into a kernel that is smaller than the output; the rest is the bias.
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        if epilogue.scale is not None and weight[0].numel() < pixels:
            scale = epilogue.scale.to(torch.promote_types(epilogue.scale.dtype, dtype))
            weight = (weight * scale.view(-1, 1, 1, 1)).to(dtype)
            epilogue = epilogue._replace(scale=None)
        if epilogue.scale is None and epilogue.shift is not None:
            bias = epilogue.shift.to(dtype)
            epilogue = epilogue._replace(shift=None)
    elif epilogue.scale is None and epilogue.shift is not None:
        bias = epilogue.shift.to(dtype)
        epilogue = epilogue._replace(shift=None)
    if through_channels_last:
        x = to_layout(x, True)
    with torch.autocast(x.device.type, enabled=False):
        y = torch.conv2d(x, weight, bias, window.stride, window.padding, window.dilation, groups)
        y = apply_epilogue(y, epilogue, dtype) if training else apply_epilogue_(y, epilogue)
    return to_layout(y, False) if through_channels_last else y


def _trim(x: Tensor, weight: Tensor, window: Window) -> tuple[Tensor, Window]:
    """The kernel without the rows and columns that meet only padding, where that is exact."""
    padding = list(window.padding)
    ranges = []
    for i in range(2):
        length, taps = x.shape[2 + i], weight.shape[2 + i]
        stride, pad, rate = window.stride[i], window.padding[i], window.dilation[i]
        if not isinstance(length, int):  # symbolic: a test would specialise it
            ranges.append((0, taps))
            continue
        outputs = conv_length(length, taps, stride, pad, rate)
        reach = (outputs - 1) * stride
        met = [k for k in range(taps) if -pad + k * rate < length and reach - pad + k * rate >= 0]
        first, last = (met[0], met[-1] + 1) if met else (0, 1)
        inner = pad - first * rate
        fits = inner >= 0 and conv_length(length, last - first, stride, inner, rate) == outputs
        if fits:
            padding[i] = inner
        ranges.append((first, last) if fits else (0, taps))
    (top, bottom), (left, right) = ranges
    if (bottom - top, right - left) == tuple(weight.shape[2:]):
        return weight, window
    return weight[:, :, top:bottom, left:right], window._replace(padding=padding)
