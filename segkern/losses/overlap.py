"""Losses on the overlap of a class's probabilities with its pixels: dice and Lovasz-softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from segkern.losses.cross_entropy import check_labels, check_scores, reads_labels


def soft_dice_loss(
    logits: Tensor, target: Tensor, *, ignore_index: int = 255, smooth: float = 1.0
) -> Tensor:
    """1 - dice of the probabilities, averaged over the classes that the target holds.

    The dice of a class is (2 sum p g + s) / (sum p + sum g + s) over the pixels of the whole batch
    that are not ignored, p being the softmax and g 1 on its pixels.

    Args:
        logits: (N, C, H, W), any floating dtype.
        target: (N, H, W), any integer dtype; classes in [0, C) or ``ignore_index``.
        ignore_index: label of the pixels left out.
        smooth: s, at least 0.

    Returns:
        a scalar, float32, or float64 for float64 logits; 0 where every pixel is ignored.
        Deterministic, without host synchronisation.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or on the CPU a label out of range.

    Paper: Milletari, Navab and Ahmadi, arXiv:1606.04797 equation 3, with plain sums in place of
    sums of squares.

    Example:
        >>> logits = torch.tensor([[[[9.0, -9.0]], [[-9.0, 9.0]]]])
        >>> round(soft_dice_loss(logits, torch.tensor([[[0, 1]]])).item(), 4)
        0.0
    """
    _check("soft_dice_loss", logits, target, ignore_index)
    if not smooth >= 0:
        raise ValueError(f"soft_dice_loss: smooth must be at least 0, got {smooth!r}")
    probabilities, truth, _ = _flat(logits, target, ignore_index)
    both = (probabilities * truth).sum(1)
    pixels = truth.sum(1)
    total = probabilities.sum(1) + pixels
    # A class of the target has pixels, so that the divisor is no zero where it counts.
    dice = (2 * both + smooth) / (total + smooth).clamp(min=torch.finfo(total.dtype).tiny)
    return _over_present(1 - dice, pixels > 0)


def lovasz_softmax_loss(logits: Tensor, target: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Lovasz extension of 1 - IoU, averaged over the classes that the target holds.

    For each class the errors |g - p| are sorted over the batch, descending, and multiplied with
    the growth of 1 - IoU as pixels become wrong in this order.

    Args:
        logits: (N, C, H, W), any floating dtype.
        target: (N, H, W), any integer dtype; classes in [0, C) or ``ignore_index``.
        ignore_index: label of the pixels left out.

    Returns:
        a scalar, float32, or float64 for float64 logits; 0 where every pixel is ignored.
        Deterministic, without host synchronisation. Memory for five maps of the logits' size.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or on the CPU a label out of range.

    Paper: Berman, Rannen Triki and Blaschko, arXiv:1705.08790 section 3.2.

    Example:
        >>> logits = torch.zeros(1, 2, 1, 2)
        >>> round(lovasz_softmax_loss(logits, torch.tensor([[[0, 1]]])).item(), 4)
        0.5
    """
    _check("lovasz_softmax_loss", logits, target, ignore_index)
    probabilities, truth, counted = _flat(logits, target, ignore_index)
    # Ignored pixels have error 0 and come last, where they add nothing.
    errors = (truth - probabilities).abs() * counted
    errors, order = errors.sort(dim=1, descending=True, stable=True)
    truth = truth.gather(1, order)
    pixels = truth.sum(1, keepdim=True)
    missed = truth.cumsum(1)
    union = pixels + torch.arange(1, truth.shape[1] + 1, device=truth.device) - missed
    loss = 1 - (pixels - missed) / union
    growth = torch.cat([loss[:, :1], loss.diff(dim=1)], dim=1)
    return _over_present((errors * growth).sum(1), pixels[:, 0] > 0)


def _check(name: str, logits: Tensor, target: Tensor, ignore_index: int) -> None:
    check_scores(name, logits, target)
    if reads_labels(target):
        check_labels(name, target, logits.shape[1], ignore_index)


def _flat(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities and truth (C, N H W), both 0 where ignored, and (N H W) whether counted."""
    with torch.autocast(logits.device.type, enabled=False):
        scores = logits if logits.dtype == torch.float64 else logits.float()
        counted = (target != ignore_index).flatten()
        probabilities = scores.softmax(1).transpose(0, 1).flatten(1) * counted
        classes = torch.arange(logits.shape[1], device=target.device)[:, None]
        truth = ((target.flatten() == classes) & counted).to(scores.dtype)
        return probabilities, truth, counted


def _over_present(losses: Tensor, present: Tensor) -> Tensor:
    """Mean over the classes that are there; 0 where none is."""
    # Not a product with the mask alone, which would keep NaN of classes that are not there.
    return losses.where(present, 0.0).sum() / present.sum().clamp(min=1)
