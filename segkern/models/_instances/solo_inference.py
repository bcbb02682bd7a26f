"""From SOLO's scores and masks to instances: points NMS, mask quality, Matrix NMS, full size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from segkern.models._instances.images import Size
from segkern.models._instances.solo_levels import Level
from segkern.models._resize import resize_centres
from segkern.ops import PackedMasks, matrix_nms, pack_masks

# Bytes of soft masks held at a time.
_MEMORY = 2**28

Detections = dict[str, Tensor]


@dataclass(frozen=True)
class Thresholds:
    """What is kept.

    Attributes:
        score: A cell's class must score above this.
        decayed: A score must reach this after Matrix NMS.
        before: How many of the best masks Matrix NMS sees.
        detections: The most instances of an image.
    """

    score: float = 0.1
    decayed: float = 0.05
    before: int = 500
    detections: int = 100


@dataclass(frozen=True)
class Sizes:
    """Height and width of the batch, of the image in it, and of the image as it was given."""

    padded: Size
    resized: Size
    original: Size


def points_nms(scores: Tensor) -> Tensor:
    """Scores (..., S, S) that are the largest of themselves and their upper and left neighbours.

    The others become 0. One-sided: the lower and right neighbours do not count.

    Example:
        >>> import torch
        >>> from segkern.models._instances.solo_inference import points_nms
        >>> points_nms(torch.tensor([[[1.0, 2, 3], [4, 9, 8], [7, 6, 5]]]))[0].int().tolist()
        [[1, 2, 3], [4, 9, 0], [7, 0, 0]]
    """
    largest = F.max_pool2d(scores, 2, stride=1, padding=1)[..., :-1, :-1]
    return scores * (scores == largest)


def flatten_cells(maps: Sequence[Tensor]) -> Tensor:
    """Levels' (N, C, S, S) as (N, cells, C): levels in order, cells by rows."""
    return torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2)


def detect(
    scores: Tensor,
    masks_of: Callable[[Tensor], Tensor],
    logits: bool,
    levels: Sequence[Level],
    thresholds: Thresholds,
    sizes: Sizes,
) -> Detections:
    """The instances of one image.

    Args:
        scores: (cells, K) probabilities after points NMS.
        masks_of: from cells (k,) int64 to their masks (k, H / 4, W / 4) over the batch's size.
        logits: whether those are logits; otherwise probabilities.
        levels: the network's.
        thresholds: what is kept.
        sizes: of the batch and of the image.

    Returns:
        boxes float32 (n, 4) around the masks, far sides exclusive, labels int64 (n,) from 1, scores
        float32 (n,), falling, and masks bool (n, H, W) of the image as it was given. A mask that
        has no pixel left there is dropped.
    """
    found, classes = (scores > thresholds.score).nonzero(as_tuple=True)
    cells, which = found.unique(return_inverse=True)
    packed = _pack(cells, masks_of, logits, sizes)
    per_cell = torch.tensor([level.cells for level in levels], device=cells.device)
    strides = torch.tensor([level.stride for level in levels], device=cells.device)
    strides = strides.repeat_interleave(per_cell)[cells]
    # An area is compared with a stride: the authors' rule, in pixels of the mask.
    quality = packed.maskness * (packed.areas > strides)
    ranked = scores[found, classes].float() * quality[which]

    ranked, order = ranked.sort(descending=True, stable=True)
    ranked, order = ranked[: thresholds.before], order[: thresholds.before]
    rows = which[order]
    best = PackedMasks(
        packed.bits[rows],
        packed.width,
        packed.areas[rows],
        packed.boxes[rows],
        packed.maskness[rows],
    )
    kept, decayed, count = matrix_nms(
        best,
        classes[order],
        ranked,
        pre=None,
        post=thresholds.detections,
        update_threshold=thresholds.decayed,
    )
    kept, decayed = kept[: int(count)], decayed[: int(count)]
    masks, boxes = _full_size(cells[rows[kept]], masks_of, logits, sizes)
    seen = boxes[:, 2] > boxes[:, 0]
    return {
        "boxes": boxes[seen],
        "labels": classes[order][kept][seen] + 1,
        "scores": decayed[seen],
        "masks": masks[seen],
    }


def _pack(
    cells: Tensor, masks_of: Callable[[Tensor], Tensor], logits: bool, sizes: Sizes
) -> PackedMasks:
    """Binary masks of cells, made a few at a time."""
    parts = []
    for some in _chunks(cells, sizes.padded[0] * sizes.padded[1] // 16):
        masks = masks_of(some)
        if logits:
            parts.append(pack_masks(masks))
            continue
        binary = masks > 0.5
        part = pack_masks(binary)
        inside = (masks * binary).sum(dim=(1, 2), dtype=torch.float32)
        parts.append(part._replace(maskness=inside / part.areas.clamp(min=1)))
    columns = zip(*((p.bits, p.areas, p.boxes, p.maskness) for p in parts), strict=True)
    bits, areas, boxes, maskness = (torch.cat(column) for column in columns)
    return PackedMasks(bits, parts[0].width, areas, boxes, maskness)


def _full_size(
    cells: Tensor, masks_of: Callable[[Tensor], Tensor], logits: bool, sizes: Sizes
) -> tuple[Tensor, Tensor]:
    """Masks at the image's own size, bool (n, H, W), and their boxes, float32 (n, 4).

    Two interpolations one after the other, to the batch's size and to the image's.
    """
    height, width = sizes.resized
    pixels = max(h * w for h, w in (sizes.padded, sizes.original))
    masks, boxes = [], []
    for some in _chunks(cells, pixels):
        soft = masks_of(some).float()
        if logits:
            soft = soft.sigmoid()
        if soft.shape[0] == 0:
            binary = torch.zeros((0, *sizes.original), dtype=torch.bool, device=cells.device)
        else:
            soft = resize_centres(soft[None], sizes.padded)[..., :height, :width]
            binary = resize_centres(soft, sizes.original)[0] > 0.5
        masks.append(binary)
        boxes.append(pack_masks(binary).boxes.float())
    return torch.cat(masks), torch.cat(boxes)


def _chunks(cells: Tensor, pixels: int) -> Sequence[Tensor]:
    """Cells in parts whose float32 masks of so many pixels fit in memory; one part at least."""
    return cells.split(max(1, _MEMORY // (4 * max(1, pixels))))
