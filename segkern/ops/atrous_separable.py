"""Depthwise atrous convolution and pointwise convolution in one call."""

from __future__ import annotations

from torch import Tensor

from segkern.ops._convolution import Padding
from segkern.ops._pooling import IntPair
from segkern.ops.atrous_conv import atrous_conv2d


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
    """Depthwise, norm, activation, pointwise, norm, activation."""
    hidden = atrous_conv2d(
        x,
        depthwise_weight,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=x.shape[1],
        scale=depthwise_scale,
        shift=depthwise_shift,
        activation=depthwise_activation,
        activation_weight=depthwise_activation_weight,
    )
    return atrous_conv2d(
        hidden,
        pointwise_weight,
        scale=scale,
        shift=shift,
        residual=residual,
        activation=activation,
        activation_weight=activation_weight,
    )
