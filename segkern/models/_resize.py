"""Resampling and padding as Caffe's and DeepLab's networks do them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from segkern import ops
from segkern.models._sizes import check_image


def resize_corners(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corner pixels onto corner pixels: Caffe's ``Interp``, in one resampling."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return ops.resize_bilinear(x, size, align_corners=True)


def resize_centres(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear with half-pixel centres and without anti-aliasing."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return ops.resize_bilinear(x, size)


def interp_size(length: int, shrink: int = 1, zoom: int = 1) -> int:
    """Length after Caffe's ``Interp``: every shrink-th sample, then zoom - 1 between two."""
    kept = (length - 1) // shrink + 1
    return kept + (kept - 1) * (zoom - 1)


def pad_to_grid(network: str, image: Tensor, multiple: int, remainder: int) -> Tensor:
    """Pad the bottom and the right with zeros until H and W are ``k * multiple + remainder``.

    Zero is the mean pixel once the mean is subtracted. ``image`` itself where nothing is missing.
    """
    check_image(network, image)
    pad_h = (remainder - image.shape[-2]) % multiple
    pad_w = (remainder - image.shape[-1]) % multiple
    if pad_h == 0 and pad_w == 0:
        return image
    return functional.pad(image, (0, pad_w, 0, pad_h))


def reflect(image: Tensor, before: int, after: tuple[int, int]) -> Tensor:
    """Mirror at the borders without repeating them, over and over where the pad is longer.

    Args:
        image: ``(N, C, H, W)``.
        before: Rows added at the top, columns at the left.
        after: Rows added at the bottom, columns at the right.
    """
    height, width = image.shape[-2:]
    return mirrored_window(image, (-before, -before), (height + after[0], width + after[1]))


def mirrored_window(image: Tensor, first: tuple[int, int], last: tuple[int, int]) -> Tensor:
    """The window of rows and columns ``first`` to ``last``, mirrored where it leaves the image.

    Args:
        image: ``(N, C, H, W)``.
        first: First row and column, below 0 where the window begins before the image.
        last: Row and column after the last.
    """
    mirrored = image
    for axis, begin, end in ((-2, first[0], last[0]), (-1, first[1], last[1])):
        length = image.shape[axis]
        period = max(2 * (length - 1), 1)
        source = torch.arange(begin, end, device=image.device) % period
        mirrored = mirrored.index_select(axis, torch.minimum(source, 2 * (length - 1) - source))
    return in_layout_of(image, mirrored)


def as_it_is(x: Tensor) -> Tensor:
    """``x``: what is done to a window where nothing is to be done."""
    return x


def in_layout_of(like: Tensor, x: Tensor) -> Tensor:
    """``x`` in channels last where ``like`` is."""
    if like.is_contiguous() or not like.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous(memory_format=torch.channels_last)
