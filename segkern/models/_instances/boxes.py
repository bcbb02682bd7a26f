"""Boxes (x1, y1, x2, y2): overlaps, clipping, and the offsets that networks predict."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Largest predicted logarithm of a ratio of sizes.
MAX_LOG_RATIO = math.log(1000.0 / 16)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of each of ``a`` (A, 4) with each of ``b`` (B, 4), as (A, B)."""
    width = torch.min(a[:, None, 2], b[None, :, 2]).sub_(torch.max(a[:, None, 0], b[None, :, 0]))
    inter = torch.min(a[:, None, 3], b[None, :, 3]).sub_(torch.max(a[:, None, 1], b[None, :, 1]))
    inter.clamp_(min=0).mul_(width.clamp_(min=0))
    union = torch.add(_areas(a)[:, None], _areas(b)[None], out=width).sub_(inter)
    return inter.div_(union)


def clip_boxes(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Boxes (..., 4) within an image of ``size`` (height, width)."""
    height, width = size
    x = boxes[..., 0::2].clamp(0, width)
    y = boxes[..., 1::2].clamp(0, height)
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), -1)


def at_least(boxes: Tensor, side: float) -> Tensor:
    """Whether both sides of boxes (n, 4) are at least ``side`` long; not of boxes with a NaN."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= side).all(1)


def encode_boxes(boxes: Tensor, anchors: Tensor, weights: Sequence[float]) -> Tensor:
    """Offsets (n, 4) from ``anchors`` (n, 4) to ``boxes`` (n, 4).

    The centre moves by the first two times the anchor's size; the other two are logarithms of the
    ratios of the sizes. All are multiplied by ``weights``.

    Example:
        >>> import torch
        >>> from segkern.models._instances.boxes import encode_boxes
        >>> anchor, box = torch.tensor([[0.8, 1.1, 3.2, 2.8]]), torch.tensor([[1.0, 1, 3, 3]])
        >>> encode_boxes(box, anchor, (10, 10, 5, 5))
        tensor([[ 0.0000,  0.2941, -0.9116,  0.8126]])
    """
    size, anchor_size = boxes[:, 2:] - boxes[:, :2], anchors[:, 2:] - anchors[:, :2]
    centre, anchor_centre = boxes[:, :2] + 0.5 * size, anchors[:, :2] + 0.5 * anchor_size
    weight = boxes.new_tensor(weights)
    shift = weight[:2] * (centre - anchor_centre) / anchor_size
    return torch.cat((shift, weight[2:] * torch.log(size / anchor_size)), 1)


def decode_boxes(offsets: Tensor, anchors: Tensor, weights: Sequence[float]) -> Tensor:
    """The boxes (..., 4) that ``offsets`` (..., 4) from ``anchors`` (..., 4) lead to.

    The inverse of :func:`encode_boxes`, in float32 or wider; a size grows 62.5-fold at most.
    """
    offsets = offsets if offsets.dtype == torch.float64 else offsets.float()
    anchors = anchors.to(offsets.dtype)
    offsets = offsets / offsets.new_tensor(weights)
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    centre = offsets[..., :2] * anchor_size + (anchors[..., :2] + 0.5 * anchor_size)
    half = 0.5 * (torch.exp(offsets[..., 2:].clamp(max=MAX_LOG_RATIO)) * anchor_size)
    return torch.cat((centre - half, centre + half), -1)


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
