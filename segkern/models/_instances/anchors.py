"""The anchors of a pyramid: boxes of a few shapes at every pixel of every level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Anchors:
    """Boxes of one size and several ratios around the pixels of each level of a pyramid.

    An anchor of size s and ratio r is s / sqrt(r) wide and s * sqrt(r) high; their order is (row,
    column, ratio). They may lie partly outside the image.

    Args:
        sizes: one a level, fine to coarse, in pixels of the image.
        ratios: height / width.
        strides: pixels of the image between those of a level; None takes the whole part of the
            image's size over the level's, on each axis, as torchvision.
        rounded: whether corners are rounded to whole pixels before they are shifted, as
            torchvision.
        offset: of the centres in the pixels of a level; 0.5 puts them in the middle of a pixel.

    Example:
        >>> import torch
        >>> from segkern.models._instances.anchors import Anchors
        >>> Anchors([32], (0.5, 1.0, 2.0))((8, 4), [torch.zeros(1, 1, 2, 1)])[0][:4]
        tensor([[-23., -11.,  23.,  11.],
                [-16., -16.,  16.,  16.],
                [-11., -23.,  11.,  23.],
                [-23.,  -7.,  23.,  15.]])
    """

    def __init__(
        self,
        sizes: Sequence[float],
        ratios: Sequence[float],
        *,
        strides: Sequence[int] | None = None,
        rounded: bool = True,
        offset: float = 0.0,
    ) -> None:
        self.strides, self.offset = strides, offset
        self.shapes = [_shapes(size, ratios, rounded) for size in sizes]
        self.per_pixel = len(ratios)

    def __call__(self, size: Sequence[int], maps: Sequence[Tensor]) -> list[Tensor]:
        """Anchors of levels (N, C, H, W) of images of ``size``: (H * W * ratios, 4) each."""
        anchors = []
        for i, (level, shapes) in enumerate(zip(maps, self.shapes, strict=True)):
            height, width = level.shape[-2:]
            stride = (
                (size[0] // height, size[1] // width)
                if self.strides is None
                else (self.strides[i],) * 2
            )
            y, x = (
                (torch.arange(n, dtype=torch.float32, device=level.device) + self.offset) * step
                for n, step in zip((height, width), stride, strict=True)
            )
            y, x = torch.meshgrid(y, x, indexing="ij")
            centres = torch.stack((x, y, x, y), -1).view(-1, 1, 4)
            anchors.append((centres + shapes.to(level.device)).view(-1, 4))
        return anchors


def _shapes(size: float, ratios: Sequence[float], rounded: bool) -> Tensor:
    """Anchors around 0, (ratios, 4)."""
    root = torch.tensor(tuple(ratios), dtype=torch.float32).sqrt()
    width, height = 1 / root * float(size), root * float(size)
    shapes = torch.stack((-width, -height, width, height), 1) / 2
    return shapes.round() if rounded else shapes
