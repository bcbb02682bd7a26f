"""Dice loss of masks, with its gradient in closed form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# Elements worked on at a time, of temporary values: what stays in the cache of a CPU's core, and
# enough to fill a GPU.
_CPU_ELEMENTS = 1 << 16
_CUDA_ELEMENTS = 1 << 26


def dice_loss(
    masks: Tensor,
    target: Tensor,
    *,
    rows: Tensor | None = None,
    from_logits: bool = False,
    eps: float = 1e-3,
) -> Tensor:
    """One minus the Dice coefficient of each predicted mask and its target.

    With P probabilities and Q the target: 1 - 2 sum(P Q) / (sum(P^2) + sum(Q^2) + 2 eps).

    Args:
        masks: (N, ...) probabilities, or logits with ``from_logits``, floating.
        target: (N, ...) of the same pixels: bool, or 0 and 1 of any dtype. With ``rows`` (G, ...).
        rows: (N,) int64, the row of ``target`` that each mask is compared with; targets that
            several masks share are held once.
        from_logits: whether to take the sigmoid of ``masks``.
        eps: added to each sum of squares, above 0.

    Returns:
        (N,), float32, or float64 for float64 masks. A mask without pixels has loss 1.

    Raises:
        TypeError, ValueError: an argument of the wrong form, dtype, shape or range.
        IndexError: a row that ``target`` has not.

    Differentiable in ``masks``; keeps its arguments and two numbers a mask for the backward pass.
    Computed in float32 or wider, under autocast too. Deterministic. Wang et al., SOLO,
    arXiv:1912.04488, equation 3; Milletari et al., arXiv:1606.04797.

    Example:
        >>> import torch
        >>> from segkern.losses import dice_loss
        >>> dice_loss(torch.tensor([[0.1, 0.5, 0.9, 0.3]]), torch.tensor([[0, 1, 1, 0]]))
        tensor([0.1145])
    """
    _check(masks, target, rows, from_logits, eps)
    if rows is None:
        rows = torch.arange(masks.shape[0], device=masks.device)
    with torch.autocast(masks.device.type, enabled=False):
        return _DiceLoss.apply(
            masks.flatten(1), target.flatten(1), rows, bool(from_logits), float(eps)
        )


class _DiceLoss(torch.autograd.Function):
    """Loss of each row of (N, M) masks, a few rows at a time.

    With a = sum(P Q) and T the denominator, dL/dP = -2 Q / T + 4 a P / T^2.
    """

    @staticmethod
    def forward(
        ctx: Any, masks: Tensor, target: Tensor, rows: Tensor, from_logits: bool, eps: float
    ) -> Tensor:
        wide = torch.float64 if masks.dtype == torch.float64 else torch.float32
        shared = masks.new_empty(masks.shape[0], dtype=wide)
        squares = torch.empty_like(shared)
        for part in _parts(masks):
            p = _probabilities(masks[part], from_logits, wide)
            q = target[rows[part]].to(wide)
            squares[part] = (q * q).sum(1) + (p * p).sum(1)
            shared[part] = p.mul_(q).sum(1)
        squares += 2 * eps
        ctx.save_for_backward(masks, target, rows, shared, squares)
        ctx.from_logits, ctx.eps = from_logits, eps
        return 1 - 2 * shared / squares

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        masks, target, rows, shared, squares = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            return _slope_of_all(grad, masks, target[rows], ctx), None, None, None, None
        of_target = (-2 * grad / squares)[:, None]
        of_mask = (4 * grad * shared / squares**2)[:, None]
        gradient = torch.empty_like(masks)
        for part in _parts(masks):
            p = _probabilities(masks[part], ctx.from_logits, grad.dtype)
            slope = target[rows[part]].to(grad.dtype).mul_(of_target[part])
            slope.addcmul_(of_mask[part], p)
            if ctx.from_logits:
                slope.mul_(p).mul_(p.neg_().add_(1))
            gradient[part] = slope
        return gradient, None, None, None, None


def _slope_of_all(grad: Tensor, masks: Tensor, target: Tensor, ctx: Any) -> Tensor:
    """The gradient, with everything that it depends on in the graph."""
    p = _probabilities(masks, ctx.from_logits, grad.dtype)
    q = target.to(grad.dtype)
    shared = (p * q).sum(1, keepdim=True)
    squares = (p * p + q * q).sum(1, keepdim=True) + 2 * ctx.eps
    slope = (4 * shared * p / squares**2 - 2 * q / squares) * grad[:, None]
    return (slope * p * (1 - p) if ctx.from_logits else slope).to(masks.dtype)


def _probabilities(masks: Tensor, from_logits: bool, dtype: torch.dtype) -> Tensor:
    """A tensor of its own."""
    return masks.to(dtype).sigmoid() if from_logits else masks.to(dtype, copy=True)


def _parts(masks: Tensor) -> list[slice]:
    """Slices of rows of at most so many elements, one row at least."""
    count, pixels = masks.shape
    most = _CUDA_ELEMENTS if masks.is_cuda else _CPU_ELEMENTS
    step = max(1, most // max(1, pixels))
    return [slice(first, first + step) for first in range(0, count, step)]


def _check(masks: Tensor, target: Tensor, rows: Tensor | None, from_logits: bool, eps: float):
    op = "dice_loss"
    for name, value in (("masks", masks), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor, got {type(value).__name__}")
    if not masks.is_floating_point():
        raise TypeError(f"{op}: masks must be floating, got {masks.dtype}")
    if masks.dim() < 2:
        raise ValueError(f"{op}: masks must be (N, ...), got {tuple(masks.shape)}")
    if target.shape[1:] != masks.shape[1:] or target.dim() != masks.dim():
        raise ValueError(
            f"{op}: target must have masks of {tuple(masks.shape[1:])}, got {tuple(target.shape)}"
        )
    if rows is None and target.shape[0] != masks.shape[0]:
        raise ValueError(f"{op}: target must be {tuple(masks.shape)}, got {tuple(target.shape)}")
    if rows is not None:
        if not isinstance(rows, Tensor) or rows.dtype != torch.int64:
            raise TypeError(f"{op}: rows must be an int64 Tensor, got {rows!r}")
        if tuple(rows.shape) != (masks.shape[0],):
            raise ValueError(f"{op}: rows must be ({masks.shape[0]},), got {tuple(rows.shape)}")
    for name, value in (("target", target), ("rows", rows)):
        if value is not None and value.device != masks.device:
            raise ValueError(f"{op}: {name} must be on {masks.device}, got {value.device}")
    if not isinstance(from_logits, bool):
        raise TypeError(f"{op}: from_logits must be a bool, got {from_logits!r}")
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeError(f"{op}: eps must be a number, got {eps!r}")
    if not 0 < eps < math.inf:
        raise ValueError(f"{op}: eps must be finite and above 0, got {eps}")
