"""The native convolution of small groups, and what it takes.

The public call is atrous_conv2d, which asks :func:`takes` first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from segkern import _load
from segkern.ops._conv_autograd import call_convolution, register_convolution
from segkern.ops._convolution import Epilogue, Window, conv_length, wants_grad
from segkern.ops._pooling import empty_like_layout
from segkern.ops._relayout import to_layout

#: Most channels of a group, of inputs and of outputs.
MAX_CHANNELS = 32


def takes(x: Tensor, weight: Tensor, window: Window, groups: int, epilogue: Epilogue) -> bool:
    """Whether the kernel runs this convolution: at most 32 input and 32 output channels a group.

    On CUDA with autograd also less than 2**31 output pixels. Any dtype, layout, kernel, stride and
    rate.
    """
    if max(weight.shape[1], weight.shape[0] // groups) > MAX_CHANNELS:
        return False
    if not x.is_cuda or not wants_grad(x, weight, *epilogue.tensors()):
        return True
    height, width = (
        conv_length(
            x.shape[2 + i],
            weight.shape[2 + i],
            window.stride[i],
            window.padding[i],
            window.dilation[i],
        )
        for i in range(2)
    )
    return x.shape[0] * height * width < 2**31


def grouped_conv2d(
    x: Tensor, weight: Tensor, window: Window, groups: int, epilogue: Epilogue
) -> Tensor:
    """Checked arguments that the kernel takes; the result has the layout of `x`."""
    if x.is_cuda:
        _load.require_cuda("atrous_conv2d")
        return call_convolution("grouped_conv2d", x, weight, window, epilogue, groups)
    y = call_convolution("grouped_conv2d", to_layout(x, False), weight, window, epilogue, groups)
    return to_layout(y, suggest_memory_format(x) == torch.channels_last)


register_convolution("grouped_conv2d", empty_like_layout)
