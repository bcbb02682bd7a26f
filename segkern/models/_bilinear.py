"""Transposed convolutions that upsample bilinearly, fixed or learnt from there on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

UPSAMPLINGS = ("fixed", "intermediate", "learnt")


def bilinear_kernel(size: int, device: torch.device | None = None) -> Tensor:
    """``(size, size)`` float64: the weights of Caffe's bilinear filler, exact for sizes used here.

    Example:
        >>> bilinear_kernel(4)[0] * 16
        tensor([1., 3., 3., 1.], dtype=torch.float64)
    """
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    taps = 1 - (torch.arange(size, dtype=torch.float64, device=device) - centre).abs() / factor
    return taps[:, None] * taps


class BilinearUpsample(nn.Module):
    """A transposed convolution of every channel by itself with the bilinear kernel.

    The same as a dense one with that kernel on its diagonal and zeros elsewhere. Nothing is learnt
    and nothing is in the state dict.

    Args:
        stride: Factor.
        kernel: Size of the kernel. ``(h, w)`` becomes ``((h - 1) * stride + kernel, ...)``.
    """

    def __init__(self, stride: int, kernel: int) -> None:
        super().__init__()
        self.stride = stride
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        planes = x.reshape(-1, 1, *x.shape[-2:])
        weight = bilinear_kernel(self.kernel, x.device).to(x.dtype)[None, None]
        planes = functional.conv_transpose2d(planes, weight, stride=self.stride)
        return planes.reshape(*x.shape[:2], *planes.shape[-2:])


def make_upsampling(channels: int, stride: int, kernel: int, learnt: bool) -> nn.Module:
    """A :class:`BilinearUpsample`, or a dense transposed convolution that starts as one."""
    if not learnt:
        return BilinearUpsample(stride, kernel)
    layer = nn.ConvTranspose2d(channels, channels, kernel, stride=stride, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        index = torch.arange(channels)
        layer.weight[index, index] = bilinear_kernel(kernel).to(layer.weight)
    return layer
