"""Cross entropy that dwells on the pixels a network is bad at: OHEM and focal loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from segkern.losses.cross_entropy import (
    check_reduction,
    check_scores,
    reduce_pixels,
    segmentation_loss,
)


def ohem_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean cross entropy of the hard pixels of a batch (online hard example mining).

    Kept are the pixels whose true class has a probability of at most t, the larger of
    ``threshold`` and the ``min_kept``-th smallest such probability; all, where fewer count.

    Args:
        logits: (N, C, H, W), any floating dtype.
        target: (N, H, W), any integer dtype; classes in [0, C) or ``ignore_index``.
        weight: (C,) factor on the loss of each class's pixels; None is 1.
        ignore_index: label of the pixels left out.
        threshold: in [0, 1].
        min_kept: pixels of the batch kept at least.
        label_smoothing: as in :func:`segmentation_loss`.

    Returns:
        a scalar, float32, or float64 for float64 logits: the sum over kept pixels divided by
        their number; 0 where every pixel is ignored. Deterministic, without host synchronisation.

    Raises:
        ValueError: shapes, dtypes or numbers that do not fit, or on the CPU a label out of range.

    Example:
        >>> logits = torch.tensor([[[[4.0, 0.0]], [[0.0, 0.0]]]])
        >>> loss = ohem_cross_entropy(logits, torch.tensor([[[0, 1]]]), min_kept=1)
        >>> round(loss.item(), 4)  # ln 2: the first pixel is easy
        0.6931
    """
    check_scores("ohem_cross_entropy", logits, target)
    if not 0 <= threshold <= 1:
        raise ValueError(f"ohem_cross_entropy: threshold must be in [0, 1], got {threshold!r}")
    if isinstance(min_kept, bool) or not isinstance(min_kept, int) or min_kept < 1:
        raise ValueError(f"ohem_cross_entropy: min_kept must be an int from 1, got {min_kept!r}")
    losses = segmentation_loss(
        logits,
        target,
        weight=weight,
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    counted = target != ignore_index
    if losses.numel() == 0:
        return losses.sum()
    true = _true_probability(logits.detach(), target, counted)
    ordered = true.masked_fill(~counted, math.inf).flatten()
    hardest = ordered.kthvalue(min(min_kept, ordered.numel())).values
    kept = counted & (true <= hardest.clamp(min=threshold))
    return (losses * kept).sum() / kept.sum().clamp(min=1)


def focal_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    gamma: float = 2.0,
    reduction: str = "pixels",
) -> Tensor:
    """Focal loss over classes that exclude one another: w (1 - p)^gamma times the cross entropy.

    p is the softmax probability of the true class, w the weight of the class. For the sigmoid form
    of detectors see ``sigmoid_focal_loss``.

    Args:
        logits, target, weight, ignore_index, reduction: as in :func:`segmentation_loss`.
        gamma: at least 0; 0 is the cross entropy.

    Returns:
        a scalar, or (N, H, W) for ``"none"``; float32, or float64 for float64 logits.
        Deterministic, without host synchronisation.

    Raises:
        ValueError: shapes, dtypes or numbers that do not fit, or on the CPU a label out of range.

    Paper: Lin et al., arXiv:1708.02002 equation 5.

    Example:
        >>> logits = torch.zeros(1, 2, 1, 1)
        >>> loss = focal_cross_entropy(logits, torch.zeros(1, 1, 1, dtype=torch.int64))
        >>> round(loss.item(), 4)  # ln 2 / 4
        0.1733
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(f"focal_cross_entropy: gamma must be at least 0, got {gamma!r}")
    check_reduction("focal_cross_entropy", reduction)
    losses = segmentation_loss(
        logits, target, weight=weight, ignore_index=ignore_index, reduction="none"
    )
    counted = target != ignore_index
    # Below float32's resolution of 1 - p the power has no finite gradient for gamma < 1.
    tiny = torch.finfo(torch.float32).eps
    missing = (1 - _true_probability(logits, target, counted)).clamp(min=tiny)
    return reduce_pixels(losses * missing**gamma, target, weight, ignore_index, reduction)


def _true_probability(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Probability (N, H, W) of the true class; that of class 0 where ignored."""
    with torch.autocast(logits.device.type, enabled=False):
        scores = logits if logits.dtype == torch.float64 else logits.float()
        labels = target.long().masked_fill(~counted, 0)
        return scores.softmax(1).gather(1, labels[:, None])[:, 0]
