"""Which object a box is for, and which boxes are trained on."""

from __future__ import annotations

import torch
from torch import Tensor


def match_boxes(
    quality: Tensor, low: float, high: float, *, low_quality: bool = False
) -> tuple[Tensor, Tensor]:
    """The best object of each box, and whether the box is one.

    Args:
        quality: (G, A) overlaps of G objects with A boxes; G may be 0.
        low, high: a box is background below `low`, an object from `high` on, neither in between.
        low_quality: whether every box that overlaps an object as much as any other box does,
            exactly, is an object too. It keeps its own best object, which may be another one.
            Objects that overlap no box are left out.

    Returns:
        Indices int64 (A,), the first where several are best and 0 where there are no objects; and
        int8 (A,): 1 object, 0 background, -1 neither.

    Example:
        >>> import torch
        >>> from segkern.models._instances.matching import match_boxes
        >>> quality = [[0.15, 0.45, 0.2, 0.6], [0.3, 0.65, 0.05, 0.1], [0.05, 0.4, 0.25, 0.4]]
        >>> match_boxes(torch.tensor(quality), 0.3, 0.7, low_quality=True)
        (tensor([1, 1, 2, 0]), tensor([-1,  1,  0,  1], dtype=torch.int8))
    """
    if quality.shape[0] == 0:
        none = torch.zeros(quality.shape[1], dtype=torch.int64, device=quality.device)
        return none, none.to(torch.int8)
    best, index = quality.max(0)
    kind = (best >= high).to(torch.int8)
    kind.masked_fill_((best >= low) & (best < high), -1)
    if low_quality and quality.shape[1]:
        most = quality.amax(1, keepdim=True)
        kind.masked_fill_(((quality == most) & (most > 0)).any(0), 1)
    return index, kind


def sample_boxes(kind: Tensor, count: int, share: float) -> tuple[Tensor, Tensor]:
    """Draw boxes to train on, without replacement.

    Args:
        kind: (A,), above 0 for objects, 0 for background, below 0 for what is not drawn.
        count: how many; fewer where there are not enough.
        share: of objects at most; background makes up the rest.

    Returns:
        Indices of objects and of background, rising. Two permutations are drawn from torch's
        generator, one for each, and their first entries taken.
    """
    positive, negative = (kind > 0).nonzero()[:, 0], (kind == 0).nonzero()[:, 0]
    wanted = min(len(positive), int(count * share))
    chosen = torch.randperm(len(positive), device=kind.device)[:wanted]
    filling = torch.randperm(len(negative), device=kind.device)[: count - wanted]
    return positive[chosen].sort()[0], negative[filling].sort()[0]
