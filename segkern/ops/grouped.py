"""The native convolution with few channels a group, on the CPU; public as atrous_conv2d."""

from __future__ import annotations

from torch import Tensor

from segkern.ops._conv_autograd import (
    call_convolution,
    contiguous_empty,
    register_convolution,
)
from segkern.ops._convolution import Epilogue, Window

#: Most channels of a group, of inputs and of outputs.
MAX_CHANNELS = 32


def takes(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether the kernel runs this convolution: on the CPU, at most 32 channels a group."""
    most = max(weight.shape[1], weight.shape[0] // groups)
    return x.device.type == "cpu" and most <= MAX_CHANNELS


def grouped_conv2d(
    x: Tensor, weight: Tensor, window: Window, groups: int, epilogue: Epilogue
) -> Tensor:
    """Checked arguments that the kernel takes; the result is contiguous."""
    return call_convolution("grouped_conv2d", x, weight, window, epilogue, groups)


register_convolution("grouped_conv2d", contiguous_empty)
