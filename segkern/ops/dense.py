"""The native dense convolutions for CUDA, and what they take.

The public call is atrous_conv2d. It asks :func:`takes` before it runs the portable kernel, and
:func:`check_wgmma` before the one for Hopper, which runs only where the table is told so by name.
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
_VECTOR_BYTES = 16


@torch.compiler.assume_constant_result
def tf32_allowed() -> bool:
    """Whether torch lets convolutions of float32 round their factors to TF32."""
    return torch.backends.cudnn.conv.fp32_precision == "tf32"


def takes(x: Tensor, weight: Tensor, window: Window, epilogue: Epilogue) -> bool:
    """Whether the portable kernel runs this convolution of one group.

    float16 and bfloat16, and float32 where torch lets convolutions use TF32 (by default it does:
    ``torch.backends.cudnn.allow_tf32``, ``torch.backends.cudnn.conv.fp32_precision``); input
    channels a multiple of 8, of 4 for float32, at most 256 taps; with autograd also output channels
    such a multiple, stride 1 and less than 2**31 pixels.
    """
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return False
    vector = _VECTOR_BYTES // x.element_size()
    if x.shape[1] % vector or (x.dtype == torch.float32 and not tf32_allowed()):
        return False
    if weight.shape[2] * weight.shape[3] > _MAX_TAPS or x.shape[1] > _MAX_EXTENT // _MAX_TAPS:
        return False
    if any(x.shape[2 + i] + 2 * window.padding[i] > _MAX_EXTENT for i in range(2)):
        return False
    if not wants_grad(x, weight, *epilogue.tensors()):
        return True
    height, width = (x.shape[2 + i] + 2 * window.padding[i] for i in range(2))
    small = x.shape[0] * height * width < 2**31
    return small and weight.shape[0] % vector == 0 and window.stride == [1, 1]


def check_wgmma(op: str, x: Tensor, weight: Tensor, window: Window, epilogue: Epilogue) -> None:
    """Raises ValueError or TypeError with what the kernel for Hopper does not take of a call.

    It takes what :func:`takes` allows, of stride 1, and less than 2**31 output pixels times blocks
    of 128 output channels. That the GPU is of compute capability 9.0 is found out at the launch.
    """
    kernel = "for the kernel 'wgmma'"
    if x.dtype not in (torch.float16, torch.bfloat16):
        raise TypeError(f"{op}: x must be float16 or bfloat16 {kernel}, got {x.dtype}")
    if x.shape[1] % 8:
        raise ValueError(f"{op}: x must have a multiple of 8 channels {kernel}, got {x.shape[1]}")
    if window.stride != [1, 1]:
        raise ValueError(f"{op}: stride must be 1 {kernel}, got {window.stride}")
    if weight.shape[2] * weight.shape[3] > _MAX_TAPS:
        raise ValueError(
            f"{op}: weight must have at most {_MAX_TAPS} taps {kernel}, got "
            f"{weight.shape[2]}x{weight.shape[3]}"
        )
    training = wants_grad(x, weight, *epilogue.tensors())
    if training and weight.shape[0] % 8:
        raise ValueError(
            f"{op}: weight must have a multiple of 8 output channels {kernel} with "
            f"autograd, got {weight.shape[0]}"
        )
    if not takes(x, weight, window, epilogue):
        raise ValueError(f"{op}: x must be smaller {kernel}, got {tuple(x.shape)}")
    if not x.is_cuda:
        raise ValueError(
            f"{op}: x must be on a GPU of compute capability 9.0 {kernel}, got {x.device}"
        )


def dense_conv2d(
    x: Tensor, weight: Tensor, window: Window, epilogue: Epilogue, *, wgmma: bool = False
) -> Tensor:
    """Checked arguments that the kernel takes; the result is channels-last."""
    _load.require_cuda("atrous_conv2d")
    name = "wgmma_conv2d" if wgmma else "dense_conv2d"
    return call_convolution(name, x, weight, window, epilogue)


def _empty_channels_last(like: Tensor, sizes: Sequence[int]) -> Tensor:
    return like.new_empty(sizes).contiguous(memory_format=torch.channels_last)


for _name in ("dense_conv2d", "wgmma_conv2d"):
    register_convolution(_name, _empty_channels_last, _empty_channels_last)
