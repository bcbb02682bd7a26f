"""From instances that overlap and classes of pixels to one panoptic map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segkern import ops

VOID = 0


def fuse_panoptic(
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    semantic: Tensor,
    *,
    num_stuff: int,
    score_threshold: float = 0.5,
    overlap: float = 0.5,
    stuff_area: int = 4096,
    precedence: Sequence[tuple[int, int]] = (),
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Gives every pixel to one segment at most, instances first.

    Instances that score enough are taken by falling score, the first of equals first. One of which
    more than ``overlap`` is taken already is left out, else it gets its pixels that are still free.
    Then each class of stuff, ascending, gets its free pixels, if they are at least ``stuff_area``.
    All others are void.

    Args:
        masks: (n, H, W), bool, or probabilities of which at least 0.5 are in the mask.
        labels: int64 (n,), classes of things, from 1.
        scores: (n,).
        semantic: int64 (H, W), 0 for any thing and 1 to num_stuff for stuff.
        num_stuff: classes of stuff.
        score_threshold: least score of an instance.
        overlap: most of an instance's area that may be taken already.
        stuff_area: least pixels of a stuff segment.
        precedence: pairs (upper, lower) of things' labels: pixels that an instance of lower holds
            count as free for one of upper, which takes them over.

    Returns:
        ids, int64 (H, W): things numbered from 1 by falling score, stuff after them by class, 0
        for void; and the segments in that order, dicts of ``id``, ``label``, ``isthing``, ``score``
        (None for stuff) and ``area`` in pixels, which is positive.

    Raises:
        ValueError: shapes that do not go together, a free pixel of a class beyond num_stuff.

    Deterministic. After the heuristic of Kirillov et al., arXiv:1801.00868, appendix.
    """
    count = masks.shape[0]
    if masks.dim() != 3 or labels.shape != (count,) or scores.shape != (count,):
        raise ValueError(
            "fuse_panoptic: masks, labels and scores must be (n, H, W), (n,) and (n,), got "
            f"{tuple(masks.shape)}, {tuple(labels.shape)} and {tuple(scores.shape)}"
        )
    if semantic.shape != masks.shape[1:]:
        raise ValueError(
            f"fuse_panoptic: semantic must be {tuple(masks.shape[1:])} as the masks, "
            f"got {tuple(semantic.shape)}"
        )
    order = scores.sort(descending=True, stable=True)[1]
    order = order[scores[order] >= score_threshold]
    labels, scores = labels[order], scores[order]
    ids = _place_things(masks, order, labels, overlap, precedence)
    things = len(order)

    free = ids == VOID
    classes = torch.where(free, semantic, VOID)
    pixels = torch.bincount(classes.flatten(), minlength=num_stuff + 1)
    if len(pixels) > num_stuff + 1:
        raise ValueError(
            f"fuse_panoptic: semantic must be from 0 to {num_stuff}, got {len(pixels) - 1}"
        )
    is_kept = pixels >= max(1, stuff_area)
    is_kept[VOID] = False
    stuff = torch.arange(things, things + num_stuff + 1, device=ids.device) * is_kept
    ids = torch.where(free, stuff[classes], ids)

    # Ids 1 to things + num_stuff, of which those with pixels are kept, in this order.
    areas = torch.bincount(ids.flatten(), minlength=things + num_stuff + 1)
    is_used = areas > 0
    is_used[VOID] = False
    number = torch.where(is_used, is_used.cumsum(0), VOID)
    segments: list[dict[str, Any]] = []
    named = zip(labels.tolist(), scores.tolist(), strict=True)
    listed = [(label, True, score) for label, score in named]
    listed += [(label, False, None) for label in range(1, num_stuff + 1)]
    for (label, isthing, score), area in zip(listed, areas[1:].tolist(), strict=True):
        if area:
            segments.append(
                {
                    "id": len(segments) + 1,
                    "label": label,
                    "isthing": isthing,
                    "score": score,
                    "area": area,
                }
            )
    return number[ids], segments


def _place_things(
    masks: Tensor,
    order: Tensor,
    labels: Tensor,
    overlap: float,
    precedence: Sequence[tuple[int, int]],
) -> Tensor:
    """Ids (H, W): the place in ``order`` from 1 of the instance that has a pixel, 0 for none."""
    ids = torch.zeros(masks.shape[1:], dtype=torch.int64, device=masks.device)
    if len(order) == 0:
        return ids
    chosen = masks[order]
    chosen = chosen >= 0.5 if chosen.is_floating_point() else chosen.bool()
    packed = ops.pack_masks(chosen)
    # Row i: whether the holder of a pixel, by id, does not give way to instance i.
    holds = torch.ones(len(order), len(order) + 1, dtype=torch.bool, device=masks.device)
    holds[:, VOID] = False
    for upper, lower in precedence:
        holds[:, 1:] &= ~((labels == upper)[:, None] & (labels == lower)[None])
    keeps_all = not precedence
    # One wait for the device; an instance is then worked on within its box.
    for i, (x1, y1, x2, y2) in enumerate(packed.boxes.tolist()):
        window = ids[y1:y2, x1:x2]
        own = chosen[i, y1:y2, x1:x2]
        is_taken = window > VOID if keeps_all else holds[i][window]
        shared = (own & is_taken).sum() / packed.areas[i].clamp(min=1).double()
        gets = own & ~is_taken & (shared <= overlap)
        window.copy_(torch.where(gets, i + 1, window))
    return ids
