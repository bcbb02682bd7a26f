"""Non-maximum suppression of boxes, at fixed sizes and without a copy to the host."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from segkern import _load
from segkern.ops.masks import check_vector
from segkern.ops.matrix_nms import check_limit


def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, *, post: int | None = None
) -> tuple[Tensor, Tensor]:
    """Boxes that overlap no better box which stays.

    Args:
        boxes: (N, 4), x1, y1, x2, y2, floating; the width is x2 - x1. Overlaps are computed in
            float32, in float64 for float64 boxes. A box with a NaN overlaps none.
        scores: (N,), floating. A box whose score is not finite takes no part.
        iou_threshold: from 0 to 1; a box goes if an IoU exceeds it.
        post: the size of the result, at least 1; None for N.

    Returns:
        ``(indices, count)``: indices int64 (post,), by falling score and, at equal scores, in the
        order given, -1 beyond the count; count int64 (), how many there are.
        ``indices[:count]`` is what torchvision.ops.nms returns; that slice waits for the device.

    Raises:
        TypeError, ValueError: an argument of the wrong form, dtype, rank or range.
        RuntimeError: no kernels for the device.

    Not differentiable. Deterministic on every device. Waits for no device. On CUDA the pairs take
    N^2 / 8 bytes.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> boxes = [[6, 3, 8, 7], [3, 6, 9, 11], [3, 7, 10, 12], [1, 4, 13, 7]]
        >>> scores = torch.tensor([0.6, 0.9, 0.7, 0.2])
        >>> ops.nms(torch.tensor(boxes).float(), scores, 0.3)
        (tensor([ 1,  0,  3, -1]), tensor(3))
    """
    return _suppress("nms", boxes, scores, None, iou_threshold, post)


def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    iou_threshold: float,
    *,
    post: int | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`nms` within each class.

    Classes are told apart by their labels. Boxes are not moved apart by offsets, which in float16
    would round them.

    Args:
        boxes: (N, 4), as for :func:`nms`.
        scores: (N,), as for :func:`nms`.
        labels: (N,), any integer dtype; they are only compared.
        iou_threshold: from 0 to 1; a box goes if an IoU exceeds it.
        post: the size of the result, at least 1; None for N.

    Returns:
        ``(indices, count)`` as :func:`nms`, over all classes.

    Raises:
        TypeError, ValueError: an argument of the wrong form, dtype, rank or range.
        RuntimeError: no kernels for the device.

    Not differentiable. Deterministic on every device. Waits for no device.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).repeat(3, 1)
        >>> scores, labels = torch.tensor([0.5, 0.9, 0.7]), torch.tensor([1, 1, 2])
        >>> ops.batched_nms(boxes, scores, labels, 0.5)
        (tensor([ 1,  2, -1]), tensor(2))
    """
    op = "batched_nms"
    if not isinstance(boxes, Tensor):
        raise TypeError(f"{op}: boxes must be a Tensor, got {type(boxes).__name__}")
    check_vector(op, "labels", labels, boxes)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{op}: labels must be of an integer dtype, got {labels.dtype}")
    return _suppress(op, boxes, scores, labels, iou_threshold, post)


def _suppress(
    op: str,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    iou_threshold: float,
    post: int | None,
) -> tuple[Tensor, Tensor]:
    if not isinstance(boxes, Tensor):
        raise TypeError(f"{op}: boxes must be a Tensor, got {type(boxes).__name__}")
    if not boxes.is_floating_point():
        raise TypeError(f"{op}: boxes must be floating, got {boxes.dtype}")
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{op}: boxes must be (N, 4), got {tuple(boxes.shape)}")
    check_vector(op, "scores", scores, boxes)
    if not scores.is_floating_point():
        raise TypeError(f"{op}: scores must be floating, got {scores.dtype}")
    if isinstance(iou_threshold, bool) or not isinstance(iou_threshold, (int, float)):
        raise TypeError(f"{op}: iou_threshold must be a number, got {iou_threshold!r}")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"{op}: iou_threshold must be from 0 to 1, got {iou_threshold}")
    size = check_limit(op, "post", post, boxes.shape[0])
    if boxes.is_cuda:
        _load.require_cuda(op)

    finite = torch.isfinite(scores)
    ranked, order = torch.sort(
        scores.detach().masked_fill(~finite, -math.inf), descending=True, stable=True
    )
    boxes = boxes.detach()[order]
    keep = torch.ops.segkern._nms.default(
        boxes if boxes.dtype == torch.float64 else boxes.float(),
        None if labels is None else labels.to(torch.int64)[order],
        ranked > -math.inf,
        float(iou_threshold),
    )
    kept, place = torch.sort(keep.to(torch.uint8), descending=True, stable=True)
    indices = order[place].masked_fill(kept == 0, -1)[:size]
    indices = F.pad(indices, (0, size - indices.shape[0]), value=-1)
    return indices, (indices >= 0).sum()


@torch.library.register_fake("segkern::_nms")
def _nms_fake(boxes, labels, live, iou_threshold):
    return torch.empty_like(live)
