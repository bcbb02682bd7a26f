"""Convolution of each image's features with kernels of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def dynamic_conv(
    features: Tensor, kernels: Tensor, counts: Sequence[int], *, kernel_size: int = 1
) -> Tensor:
    """Convolves each image with its own kernels, as many as it has; the masks of SOLOv2.

    Kernels of 1x1 are one matrix product an image, (n, E) by (E, H W), written in place into the
    result; those of 3x3 one convolution an image with zero padding of 1. No bias.

    Args:
        features: (N, E, H, W), floating.
        kernels: (M, E kernel_size^2), those of image 0 first, then of image 1 and so on; a kernel
            of 3x3 is (E, 3, 3) flattened. M may be 0.
        counts: how many kernels each image has; N ints, at least 0, with sum M.
        kernel_size: 1 or 3.

    Returns:
        (M, H, W), in the dtype of the features.

    Raises:
        TypeError, ValueError: an argument of the wrong form, dtype, shape or range.

    Differentiable any number of times. Under autocast features and kernels are cast
    to its dtype. Deterministic where torch's products and convolutions are. Wang et al., SOLOv2,
    arXiv:2003.10152, section 3.2.1.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> features = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]], [[[5.0, 6.0]], [[7.0, 8.0]]]])
        >>> kernels = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
        >>> ops.dynamic_conv(features, kernels, [2, 1])[:, 0]
        tensor([[ 1.,  2.],
                [ 4.,  6.],
                [14., 16.]])
    """
    sizes = _check(features, kernels, counts, kernel_size)
    device = features.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        features, kernels = features.to(dtype), kernels.to(dtype)
    if kernel_size == 1:
        count, channels, height, width = features.shape
        flat = features.reshape(count, channels, height * width)
        return _PerImageProduct.apply(flat, kernels, sizes).view(kernels.shape[0], height, width)
    maps = [
        _convolve3x3(image, own) for image, own in zip(features, kernels.split(sizes), strict=True)
    ]
    return torch.cat(maps) if maps else features.new_zeros((0, *features.shape[2:]))


def _convolve3x3(image: Tensor, kernels: Tensor) -> Tensor:
    """(E, H, W) with (n, 9 E) kernels; torch has no convolution for n = 0."""
    if kernels.shape[0] == 0:
        return image[:0] + kernels.sum()
    weight = kernels.reshape(kernels.shape[0], image.shape[0], 3, 3)
    return F.conv2d(image[None], weight, padding=1)[0]


class _PerImageProduct(torch.autograd.Function):
    """(n_i, E) by (E, P) of each image, each product written where it belongs."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, kernels: Tensor, sizes: list[int]) -> Tensor:
        ctx.save_for_backward(features, kernels)
        ctx.sizes = sizes
        masks = features.new_empty(kernels.shape[0], features.shape[2])
        for image, own, out in zip(features, kernels.split(sizes), masks.split(sizes), strict=True):
            torch.mm(own, image, out=out)
        return masks

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, kernels = ctx.saved_tensors
        of_features = of_kernels = None
        owns, parts = kernels.split(ctx.sizes), grad.split(ctx.sizes)
        if torch.is_grad_enabled():  # a second derivative is wanted
            pairs = [(own.T, part) for own, part in zip(owns, parts)]
            of_features = torch.stack([a @ b for a, b in pairs]) if pairs else features
            pairs = [(part, image.T) for image, part in zip(features, parts)]
            of_kernels = torch.cat([a @ b for a, b in pairs]) if pairs else kernels
            return of_features, of_kernels, None
        if ctx.needs_input_grad[0]:
            of_features = torch.empty_like(features)
            for own, part, out in zip(owns, parts, of_features):
                torch.mm(own.T, part, out=out)
        if ctx.needs_input_grad[1]:
            of_kernels = torch.empty_like(kernels)
            for image, part, out in zip(features, parts, of_kernels.split(ctx.sizes)):
                torch.mm(part, image.T, out=out)
        return of_features, of_kernels, None


def _check(features: Tensor, kernels: Tensor, counts: Sequence[int], kernel_size: int) -> list[int]:
    op = "dynamic_conv"
    for name, value, rank, shape in (
        ("features", features, 4, "(N, E, H, W)"),
        ("kernels", kernels, 2, "(M, E k k)"),
    ):
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{op}: {name} must be floating, got {value.dtype}")
        if value.dim() != rank:
            raise ValueError(f"{op}: {name} must be {shape}, got {tuple(value.shape)}")
    if kernels.device != features.device:
        raise ValueError(f"{op}: kernels must be on {features.device}, got {kernels.device}")
    if kernels.dtype != features.dtype and not torch.is_autocast_enabled(features.device.type):
        raise TypeError(f"{op}: kernels must be {features.dtype}, got {kernels.dtype}")
    if kernel_size not in (1, 3) or isinstance(kernel_size, bool):
        raise ValueError(f"{op}: kernel_size must be 1 or 3, got {kernel_size!r}")
    values = features.shape[1] * kernel_size**2
    if kernels.shape[1] != values:
        raise ValueError(
            f"{op}: kernels must have {values} values for {features.shape[1]} channels and "
            f"kernel_size {kernel_size}, got {kernels.shape[1]}"
        )
    if isinstance(counts, (str, Tensor)) or not isinstance(counts, Sequence):
        raise TypeError(f"{op}: counts must be a list of ints, got {type(counts).__name__}")
    sizes = list(counts)
    if any(isinstance(n, bool) or not isinstance(n, (int, torch.SymInt)) for n in sizes):
        raise TypeError(f"{op}: counts must be a list of ints, got {counts!r}")
    if len(sizes) != features.shape[0] or any(n < 0 for n in sizes):
        raise ValueError(
            f"{op}: counts must be {features.shape[0]} numbers of at least 0, got {counts!r}"
        )
    if sum(sizes) != kernels.shape[0]:
        raise ValueError(
            f"{op}: counts must add up to the {kernels.shape[0]} kernels, got {counts!r}"
        )
    return sizes
