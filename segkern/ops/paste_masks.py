"""Pasting the masks of boxes into whole images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segkern.ops._boxes import check_floating
from segkern.ops.roi_upsample import roi_upsample


def paste_masks(
    masks: Tensor,
    boxes: Tensor,
    image_size: Sequence[int],
    *,
    threshold: float | None = 0.5,
    memory_limit: int = 2**28,
) -> Tensor:
    """Interpolates each box's mask at the centres of the pixels of an image of its own.

    A mask lies in its box cell by cell and is 0 beyond it, as in detectron2 (grid_sample with zero
    padding). Values are made for as many masks at a time as `memory_limit` allows, then compared.

    Args:
        masks: (N, h, w) or (N, 1, h, w) probabilities, floating.
        boxes: (N, 4) x1, y1, x2, y2 in pixels of the image.
        image_size: (H, W).
        threshold: pixels of at least this value are True; None returns the values.
        memory_limit: bytes of values at a time, at least those of one image.

    Returns:
        (N, H, W), bool, or of the dtype of `masks` where threshold is None. No gradient with a
        threshold; without one that of roi_upsample.

    Raises:
        ValueError, TypeError: an argument of the wrong form.

    Deterministic. Boxes of zero or negative size or with a NaN give an empty mask.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> ops.paste_masks(torch.ones(1, 2, 2), torch.tensor([[1.0, 0.0, 3.0, 1.0]]), (2, 4)).int()
        tensor([[[0, 1, 1, 0],
                 [0, 0, 0, 0]]], dtype=torch.int32)
    """
    op = "paste_masks"
    if isinstance(masks, Tensor) and masks.dim() == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    check_floating(op, "masks", masks, 3)
    if not isinstance(boxes, Tensor) or boxes.shape != (masks.shape[0], 4):
        given = tuple(boxes.shape) if isinstance(boxes, Tensor) else type(boxes).__name__
        raise ValueError(f"{op}: boxes must be ({masks.shape[0]}, 4), got {given}")
    if boxes.device != masks.device:
        raise ValueError(f"{op}: boxes must be on {masks.device}, got {boxes.device}")
    size = list(image_size) if isinstance(image_size, Sequence) else [image_size]
    if len(size) != 2 or any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in size):
        raise ValueError(f"{op}: image_size must be two sizes (H, W), got {image_size!r}")
    if isinstance(memory_limit, bool) or not isinstance(memory_limit, int) or memory_limit < 1:
        raise ValueError(
            f"{op}: memory_limit must be a positive number of bytes, got {memory_limit!r}"
        )
    count = masks.shape[0]
    wide = torch.float64 if masks.dtype == torch.float64 else torch.float32
    values = masks if threshold is None else masks.detach().to(wide)
    rows = boxes.detach().to(wide)
    together = max(1, memory_limit // max(1, size[0] * size[1] * values.element_size()))
    parts = []
    for first in range(0, count, together):
        chunk = values[first : first + together, None]
        image = torch.arange(chunk.shape[0], dtype=wide, device=masks.device)[:, None]
        rois = torch.cat([image, rows[first : first + together]], 1)
        pasted = roi_upsample(chunk, rois, (chunk.shape[0], *size), reduction="sum")[:, 0]
        parts.append(pasted if threshold is None else pasted >= threshold)
    if not parts:
        return masks.new_zeros((0, *size), dtype=masks.dtype if threshold is None else torch.bool)
    return parts[0] if len(parts) == 1 else torch.cat(parts)
