"""Focal loss of sigmoid classifiers, with its gradient in closed form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

REDUCTIONS = ("sum", "mean", "none")

# Above this softplus(x) is x to the last bit of a double.
_LINEAR = 40.0


def sigmoid_focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "sum",
) -> Tensor:
    """Binary cross entropy of every logit, weighted down where it is classified well.

    With p = sigmoid(z): -alpha (1 - p)^gamma ln p where the target is 1, and
    -(1 - alpha) p^gamma ln(1 - p) where it is 0. Both logarithms are taken of logits, so no logit
    is too large, and the gradient is the closed form, finite for every gamma.

    Args:
        logits: any shape, floating.
        target: of the same shape, bool or 0 and 1 of any dtype; or labels, an integer tensor of the
            shape of ``logits`` without its last axis: 0 is background, whose row is all 0, and k is
            class k, whose row is 1 in column k - 1.
        alpha: weight of the positives, in [0, 1].
        gamma: exponent, at least 0; 0 is cross entropy.
        reduction: "sum", "mean" over all logits, or "none".

    Returns:
        A scalar, or a tensor like ``logits`` for "none"; float32, or float64 for float64 logits.
        Of no logits "sum" is 0 and "mean" too.

    Raises:
        TypeError, ValueError: an argument of the wrong form, dtype, shape or range. Values of the
            target are not looked at: a label beyond the classes is background.

    Differentiable in ``logits``; keeps them and a byte each for the backward pass. Computed in
    float32 or wider, under autocast too. Deterministic. Lin et al., arXiv:1708.02002, equation 5.

    Example:
        >>> import torch
        >>> from segkern.losses import sigmoid_focal_loss
        >>> logits = torch.tensor([[0.0, -2.0], [2.0, -1.0]])
        >>> sigmoid_focal_loss(logits, torch.tensor([1, 0]), reduction="none").round(decimals=4)
        tensor([[0.0433, 0.0014],
                [1.2376, 0.0170]])
    """
    positive = _positives(logits, target)
    _check_numbers(alpha, gamma, reduction)
    with torch.autocast(logits.device.type, enabled=False):
        scores = logits if logits.dtype == torch.float64 else logits.float()
        losses = _FocalLoss.apply(scores, positive, float(alpha), float(gamma))
        if reduction == "none":
            return losses
        total = losses.sum()
        return total if reduction == "sum" else total / max(losses.numel(), 1)


class _FocalLoss(torch.autograd.Function):
    """Loss of each logit.

    With x = z for a negative and -z for a positive, q = sigmoid(x) is the share of the probability
    that is wrong, the loss w q^gamma softplus(x), and its derivative in x
    w q^gamma (gamma (1 - q) softplus(x) + q).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, positive: Tensor, alpha: float, gamma: float) -> Tensor:
        ctx.save_for_backward(logits, positive)
        ctx.alpha, ctx.gamma = alpha, gamma
        wrong = torch.where(positive, -logits, logits)
        # Not in place: torch.compile would lose the gradient of what is returned.
        losses = F.softplus(wrong, threshold=_LINEAR) * _power(wrong.sigmoid(), gamma)
        return losses * _choose(positive, alpha, 1 - alpha, losses)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, positive = ctx.saved_tensors
        wrong = torch.where(positive, -logits, logits)
        share = wrong.sigmoid()
        # 1 - q as a sigmoid of its own, exact where q is near 1.
        slope = ctx.gamma * F.softplus(wrong, threshold=_LINEAR) * torch.sigmoid(-wrong) + share
        slope = slope * _power(share, ctx.gamma)
        return slope * _choose(positive, -ctx.alpha, 1 - ctx.alpha, slope) * grad, None, None, None


def _choose(positive: Tensor, yes: float, no: float, like: Tensor) -> Tensor:
    return torch.where(positive, like.new_full((), yes), like.new_full((), no))


def _power(base: Tensor, exponent: float) -> Tensor:
    return base * base if exponent == 2 else base.pow(exponent)


def _positives(logits: Tensor, target: Tensor) -> Tensor:
    """Where the target is 1, bool of the shape of ``logits``."""
    op = "sigmoid_focal_loss"
    for name, value in (("logits", logits), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor, got {type(value).__name__}")
    if not logits.is_floating_point():
        raise TypeError(f"{op}: logits must be floating, got {logits.dtype}")
    if target.device != logits.device:
        raise ValueError(f"{op}: target must be on {logits.device}, got {target.device}")
    if target.shape == logits.shape:
        return target if target.dtype == torch.bool else target != 0
    if logits.dim() == 0 or target.shape != logits.shape[:-1]:
        raise ValueError(
            f"{op}: target must be {tuple(logits.shape)}, or labels of that shape without its last "
            f"axis, got {tuple(target.shape)}"
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"{op}: target must hold integer labels, got {target.dtype}")
    classes = torch.arange(1, logits.shape[-1] + 1, device=logits.device)
    return target[..., None] == classes


def _check_numbers(alpha: float, gamma: float, reduction: str) -> None:
    op = "sigmoid_focal_loss"
    for name, value in (("alpha", alpha), ("gamma", gamma)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{op}: {name} must be a number, got {value!r}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"{op}: alpha must be in [0, 1], got {alpha}")
    if not 0 <= gamma < math.inf:
        raise ValueError(f"{op}: gamma must be finite and at least 0, got {gamma}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"{op}: reduction must be one of {REDUCTIONS}, got {reduction!r}")
