"""Matrix NMS: scores of masks decayed by their overlaps with better masks of their class."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from segkern.ops.masks import PackedMasks, check_masks, check_packed, check_vector


def matrix_nms(
    masks: Tensor | PackedMasks,
    labels: Tensor,
    scores: Tensor,
    *,
    kernel: str = "gaussian",
    sigma: float = 2.0,
    pre: int | None = 500,
    post: int | None = 100,
    score_threshold: float = 0.0,
    update_threshold: float = 0.0,
    mask_sum: Tensor | None = None,
    threshold: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Matrix NMS: every mask's score, lowered for what better masks of its class already cover.

    With u_ij the IoU of masks i and j of one class, i the better one, and c_i the largest IoU of i
    with masks better than it, the score of j is multiplied by the smallest over i of
    exp(-sigma (u_ij^2 - c_i^2)), or of (1 - u_ij) / (1 - c_i). Only pairs of one class are
    counted, and only where their boxes meet.

    Args:
        masks: (N, H, W), bool, uint8, or logits of a floating dtype, which are thresholded as they
            are read; or :class:`PackedMasks`. Only the `pre` best are packed.
        labels: (N,), any integer dtype. Labels are only compared, so any value is a class.
        scores: (N,), floating. A score that is not finite, or not above `score_threshold`, takes
            its mask out: it is neither returned nor does it lower others.
        kernel: "gaussian" or "linear". A linear kernel takes duplicates out: 1 - c_i is at least
            1e-6.
        sigma: of the Gaussian kernel, which is exp(-sigma u^2); above 0.
        pre: how many of the best masks take part, at least 1; None for all. Memory for overlaps is
            4 bytes a pair: of one class on the CPU, pre x pre on CUDA.
        post: the size of the results, at least 1; None for the number of masks that take part.
        score_threshold: scores must be above it, before; at least 0, as decay lowers only positive
            scores.
        update_threshold: scores must reach it, after.
        mask_sum: (N,), areas to use in place of the masks' own, in pixels (rounded down).
        threshold: of logits, 0.0 is probability 0.5.

    Returns:
        ``(indices, scores, count)``: indices int64 (post,) into the masks, by falling decayed score
        and, at equal scores, by falling score and then in the order given, -1 beyond the count;
        scores (post,) in the dtype of `scores`, 0 beyond; count int64 (), how many there are.
        Scores are computed in float32.

    Raises:
        TypeError, ValueError: an argument of the wrong form, dtype, rank or size.
        RuntimeError: no kernels for the device.

    Not differentiable. Deterministic on every device. Waits for no device, and sizes do not depend
    on values. Wang et al., SOLOv2, arXiv:2003.10152, section 3.3; the scores there are the class
    score times the mean probability in the mask, :attr:`PackedMasks.maskness`.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> masks = torch.tensor([[[1, 1, 1, 1]], [[0, 1, 1, 1]], [[1, 0, 0, 0]]]).bool()
        >>> labels, scores = torch.tensor([0, 0, 1]), torch.tensor([0.9, 0.8, 0.7])
        >>> indices, scores, count = ops.matrix_nms(masks, labels, scores, post=4)
        >>> indices, scores, count
        (tensor([ 0,  2,  1, -1]), tensor([0.9000, 0.7000, 0.2597, 0.0000]), tensor(3))
    """
    op = "matrix_nms"
    if isinstance(masks, PackedMasks):
        check_packed(op, "masks", masks)
        beside = masks.bits
    else:
        check_masks(op, masks, threshold)
        beside = masks
    _check(op, beside, labels, scores, mask_sum)
    if kernel not in ("gaussian", "linear"):
        raise ValueError(f"{op}: kernel must be 'gaussian' or 'linear', got {kernel!r}")
    _check_number(op, "sigma", sigma, positive=True)
    _check_number(op, "score_threshold", score_threshold)
    _check_number(op, "update_threshold", update_threshold)
    most = check_limit(op, "pre", pre, beside.shape[0])
    most = min(most, beside.shape[0])
    size = check_limit(op, "post", post, most)

    order, ranked = best_first(scores, score_threshold)
    order, ranked = order[:most], ranked[:most]
    grouped, by_class = torch.sort(labels.to(torch.int64)[order], stable=True)
    rows = order[by_class]
    if isinstance(masks, PackedMasks):
        bits, areas, boxes, kept = masks.bits, masks.areas, masks.boxes, rows
        given = mask_sum
    else:
        bits, areas, boxes, _ = torch.ops.segkern.pack_masks.default(
            masks.detach(), rows, float(threshold), False
        )
        kept = None
        given = None if mask_sum is None else mask_sum[rows]
    if given is not None:
        areas = given.detach().to(torch.int32)
    decayed = torch.ops.segkern._matrix_nms.default(
        bits, areas, boxes, kept, grouped, ranked[by_class], kernel == "linear", float(sigma)
    )
    decayed = torch.zeros_like(decayed).scatter(0, by_class, decayed)
    decayed = decayed.masked_fill(decayed < update_threshold, -math.inf)
    final, place = torch.sort(decayed, descending=True, stable=True)
    return fixed_size(order[place], final, size, scores.dtype)


def best_first(scores: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Indices by falling score, and the scores, float32 with -infinity for those left out."""
    live = scores.detach().float()
    live = live.masked_fill(~((live > threshold) & torch.isfinite(live)), -math.inf)
    ranked, order = torch.sort(live, descending=True, stable=True)
    return order, ranked


def fixed_size(
    indices: Tensor, ranked: Tensor, size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Results of a fixed size from falling scores, those of -infinity left out."""
    indices, ranked = indices[:size], ranked[:size]
    kept = ranked > -math.inf
    pad = (0, size - indices.shape[0])
    return (
        F.pad(indices.masked_fill(~kept, -1), pad, value=-1),
        F.pad(ranked.masked_fill(~kept, 0.0), pad).to(dtype),
        kept.sum(),
    )


def check_limit(op: str, name: str, value: int | None, otherwise: int) -> int:
    if value is None:
        return otherwise
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{op}: {name} must be an integer or None, got {value!r}")
    if value < 1:
        raise ValueError(f"{op}: {name} must be at least 1, got {value}")
    return value


def _check_number(op: str, name: str, value: float, *, positive: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}")
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        least = "above 0" if positive else "at least 0"
        raise ValueError(f"{op}: {name} must be finite and {least}, got {value}")


def _check(op: str, masks: Tensor, labels: Tensor, scores: Tensor, mask_sum: Tensor | None) -> None:
    check_vector(op, "labels", labels, masks)
    check_vector(op, "scores", scores, masks)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{op}: labels must be of an integer dtype, got {labels.dtype}")
    if not scores.is_floating_point():
        raise TypeError(f"{op}: scores must be floating, got {scores.dtype}")
    if mask_sum is not None:
        check_vector(op, "mask_sum", mask_sum, masks)


@torch.library.register_fake("segkern::_matrix_nms")
def _matrix_nms_fake(bits, areas, boxes, rows, labels, scores, linear, sigma):
    return torch.empty_like(scores)
