"""The native dense convolution for CUDA, and what it takes.

The public call is atrous_conv2d, which asks :func:`takes` first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segkern import _load
from segkern.ops._conv_autograd import call_convolution, register_convolution
from segkern.ops._convolution import Epilogue, Window, wants_grad

# csrc/atrous_conv/dense.h
_MAX_TAPS = 256
_MAX_EXTENT = 2**30
_VECTOR = 8


def takes(x: Tensor, weight: Tensor, window: Window, epilogue: Epilogue) -> bool:
    """Whether the kernel runs this convolution of one group.

    float16 and bfloat16, input channels a multiple of 8, at most 256 taps; with autograd also
    output channels a multiple of 8, stride 1 and less than 2**31 pixels.
    """
    if x.dtype not in (torch.float16, torch.bfloat16) or x.shape[1] % _VECTOR:
        return False
    if weight.shape[2] * weight.shape[3] > _MAX_TAPS or x.shape[1] > _MAX_EXTENT // _MAX_TAPS:
        return False
    if any(x.shape[2 + i] + 2 * window.padding[i] > _MAX_EXTENT for i in range(2)):
        return False
    if not wants_grad(x, weight, *epilogue.tensors()):
        return True
    height, width = (x.shape[2 + i] + 2 * window.padding[i] for i in range(2))
    small = x.shape[0] * height * width < 2**31
    return small and weight.shape[0] % _VECTOR == 0 and window.stride == [1, 1]


def dense_conv2d(x: Tensor, weight: Tensor, window: Window, epilogue: Epilogue) -> Tensor:
    """Checked arguments that the kernel takes; the result is channels-last."""
    _load.require_cuda("atrous_conv2d")
    return call_convolution("dense_conv2d", x, weight, window, epilogue)


def _empty_channels_last(like: Tensor, sizes: Sequence[int]) -> Tensor:
    return like.new_empty(sizes).contiguous(memory_format=torch.channels_last)


register_convolution("dense_conv2d", _empty_channels_last, _empty_channels_last)
