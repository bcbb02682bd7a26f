"""Features of pixels: positions and colours over the widths of a Gaussian."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Union

import torch
from torch import Tensor

from segkern.ops._arrays import as_tensor, constants

Widths = Union[float, Sequence[float], Tensor]


def image_features(image: Any, *, sxy: Widths, srgb: Widths | None = None) -> Tensor:
    """Features of an image's pixels: positions x, y, (z), then colours, over their widths.

    These are what :func:`dense_crf` builds its lattices from; the order is part of the definition.

    Args:
        image: (N, C, H, W) or (C, H, W), or volumes (N, C, D, H, W); uint8 or floating, any number
            of channels. A tensor or an array.
        sxy: width of the positions in pixels: a number, or (sx, sy), (sx, sy, sz) for volumes; or a
            tensor of such numbers, to which a gradient flows if it wants one.
        srgb: width of the colours in the image's units, a number or one per channel, or a tensor;
            None leaves the colours out.

    Returns:
        (N, P, d) float32 features, P = H * W; without colours (1, P, d), as all images share them.

    Raises:
        TypeError, ValueError: an argument of the wrong form; widths that are not positive and
            finite. A tensor of widths on CUDA is not looked at, as that would stall the stream:
            there such widths make features NaN.

    Differentiable in widths that are tensors and in floating images. Deterministic.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> image = torch.randint(0, 256, (3, 4, 6), dtype=torch.uint8)
        >>> ops.image_features(image, sxy=80.0, srgb=13.0).shape
        torch.Size([1, 24, 5])
    """
    op = "image_features"
    pixels = as_tensor(op, "image", image)
    if pixels.dim() == 3:
        pixels = pixels[None]
    if pixels.dim() not in (4, 5) or pixels.is_complex():
        raise ValueError(
            f"{op}: image must be real (N, C, H, W), (C, H, W) or (N, C, D, H, W), "
            f"got {pixels.dtype} {tuple(pixels.shape)}"
        )
    if srgb is None:
        return position_features(op, tuple(pixels.shape[2:]), sxy, pixels.device)
    return bilateral_features(op, pixels, sxy, srgb)


def position_features(
    op: str, size: Sequence[int], sxy: Widths, device: torch.device | None = None
) -> Tensor:
    """(1, P, d) pixel positions over their widths, the last axis of `size` first: x, y, (z)."""
    planes = _position_planes(op, size, sxy, device)
    return torch.stack(planes).flatten(1)[None].transpose(1, 2)


def bilateral_features(op: str, image: Tensor, sxy: Widths, srgb: Widths) -> Tensor:
    """(N, P, d + C) positions and then colours of (N, C, *size) images, over their widths."""
    batch, channels, *size = image.shape
    positions = torch.stack(_position_planes(op, size, sxy, image.device))
    divisors = check_widths(op, "srgb", srgb, channels)
    if not isinstance(divisors, Tensor):
        divisors = constants(divisors, image.device)
    divisors = divisors.to(image.device).view(-1, *[1] * len(size))
    values = image.float() if image.is_floating_point() else image
    planes = [positions.expand(batch, *positions.shape), values / divisors]
    return torch.cat(planes, 1).flatten(2).transpose(1, 2)


def check_widths(op: str, name: str, value: Widths, count: int) -> list[float] | Tensor:
    """`count` positive numbers; or, from a tensor, a float32 tensor of them, NaN where it is not.

    A tensor's numbers are looked at only where that stalls nothing.
    """
    wanted = f"{op}: {name} must be positive and finite, one number or {count}, got "
    if isinstance(value, Tensor):
        # Compared one by one: torch.compile takes no symbolic size for a member of a tuple.
        length = value.shape[0] if value.dim() == 1 else 1
        if value.is_complex() or value.dim() > 1 or (length != 1 and length != count):
            raise ValueError(f"{wanted}{value.dtype} {tuple(value.shape)}")
        widths = value.float().expand(count)
        good = (widths > 0) & (widths < math.inf)
        if not value.is_cuda and not torch.compiler.is_compiling() and not bool(good.all()):
            raise ValueError(f"{wanted}{value.tolist()}")
        return torch.where(good, widths, math.nan)
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{wanted}{value!r}")
    try:
        one = isinstance(value, Real) or getattr(value, "ndim", 1) == 0
        given = [float(value)] * count if one else [float(v) for v in value]
    except (TypeError, ValueError):
        raise TypeError(f"{wanted}{value!r}") from None
    if len(given) != count or not all(0 < v < math.inf for v in given):
        raise ValueError(f"{wanted}{value!r}")
    return given


def _position_planes(
    op: str, size: Sequence[int], sxy: Widths, device: torch.device | None
) -> list[Tensor]:
    widths = check_widths(op, "sxy", sxy, len(size))
    if isinstance(widths, Tensor):
        widths = widths.to(device).unbind()
    planes = []
    for i, width in enumerate(widths):
        length = size[len(size) - 1 - i]
        steps = torch.arange(length, device=device, dtype=torch.float32) / width
        planes.append(steps.view([-1] + [1] * i).expand(*size))
    return planes
