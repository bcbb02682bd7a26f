"""What the operators on boxes share: forms of boxes, sizes, numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import torch
from torch import Tensor

Boxes = Union[Tensor, Sequence[Tensor]]


def check_floating(op: str, name: str, value: object, dims: int) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{op}: {name} must be floating, got {value.dtype}")
    if value.dim() != dims:
        raise ValueError(f"{op}: {name} must have {dims} axes, got {tuple(value.shape)}")


def box_rows(op: str, rois: Boxes, like: Tensor) -> Tensor:
    """(K, 5) of image, x1, y1, x2, y2 from that or a list of (K_i, 4), one an image of the batch;
    in float32, or float64 where `like` is, without a gradient."""
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    if not isinstance(rois, Tensor):
        rois = list(rois)
        for boxes in rois:
            if not isinstance(boxes, Tensor) or boxes.dim() != 2 or boxes.shape[1] != 4:
                given = tuple(boxes.shape) if isinstance(boxes, Tensor) else type(boxes).__name__
                raise ValueError(f"{op}: rois must be (K, 5) or a list of (K, 4), got {given}")
        numbered = [
            torch.cat([boxes.new_full((boxes.shape[0], 1), image), boxes], 1)
            for image, boxes in enumerate(b.detach().to(wide) for b in rois)
        ]
        return torch.cat(numbered) if numbered else like.new_zeros((0, 5), dtype=wide)
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(f"{op}: rois must be (K, 5) or a list of (K, 4), got {tuple(rois.shape)}")
    return rois.detach().to(wide)


def number(op: str, name: str, value: object) -> float:
    """A finite positive number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{op}: {name} must be positive and finite, got {value}")
    return float(value)


def sampling(op: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{op}: sampling_ratio must be an integer, got {type(value).__name__}")
    if value > 1024:
        raise ValueError(f"{op}: sampling_ratio must be at most 1024, got {value}")
    return max(value, 0)
