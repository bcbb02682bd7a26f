"""Cross entropy per pixel with class weights, under each of the conventions papers use."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

REDUCTIONS = ("pixels", "weights", "batch", "none")


def segmentation_loss(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    reduction: str = "pixels",
    label_smoothing: float = 0.0,
    check_range: bool | None = None,
) -> Tensor:
    """Cross entropy of a map of class scores.

    With l the loss of a pixel that is not ignored and w the weight of its class, the reductions are

    - ``"pixels"``: sum(w l) / number of pixels not ignored (Caffe-SegNet);
    - ``"weights"``: sum(w l) / sum(w) (torch's ``mean``; Torch7, so ENet);
    - ``"batch"``: sum(w l) / number of images (Caffe's ``normalize: false``, so FCN);
    - ``"none"``: w l of each pixel, 0 where ignored.

    A batch with every pixel ignored gives 0 and a gradient of 0. Computed in float32 or wider,
    under autocast too. No host synchronisation on CUDA unless ``check_range`` asks for one.
    Deterministic: the same input gives the same bits.

    Args:
        logits: (N, C, H, W), any floating dtype.
        target: (N, H, W), any integer dtype; classes in [0, C) or ``ignore_index``.
        weight: (C,), on the device of ``logits``; None is 1 for all classes.
        ignore_index: label of the pixels left out.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        check_range: whether to look for labels out of range. None: on the CPU only, since reading
            the answer from a GPU waits for it. Unchecked on CUDA, such a label stops the kernel
            with a device-side assertion.

    Returns:
        a scalar, or (N, H, W) for ``"none"``; float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or a label out of range.

    Example:
        >>> logits = torch.zeros(1, 4, 2, 2)
        >>> target = torch.tensor([[[0, 1], [3, 255]]])
        >>> round(segmentation_loss(logits, target).item(), 4)  # ln 4
        1.3863
    """
    _check(logits, target, weight, reduction, label_smoothing)
    if reads_labels(target) if check_range is None else check_range:
        check_labels("segmentation_loss", target, logits.shape[1], ignore_index)

    with torch.autocast(logits.device.type, enabled=False):
        scores = logits if logits.dtype == torch.float64 else logits.float()
        weights = None if weight is None else weight.to(scores.dtype)
        labels = target.long()
        # Reducing ourselves keeps to torch's deterministic kernel.
        loss = F.cross_entropy(
            scores,
            labels,
            weights,
            ignore_index=ignore_index,
            reduction="none",
            label_smoothing=label_smoothing,
        )
        return reduce_pixels(loss, labels, weights, ignore_index, reduction)


def reduce_pixels(
    losses: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str
) -> Tensor:
    """Weighted losses (N, H, W), 0 where ignored, to what ``reduction`` says."""
    if reduction == "none":
        return losses
    if reduction == "batch":
        return losses.sum() / max(losses.shape[0], 1)
    counted = target != ignore_index
    if reduction == "pixels" or weight is None:
        return losses.sum() / counted.sum().clamp(min=1)
    weights = weight.to(losses.dtype)
    total = (weights[target.long().masked_fill(~counted, 0)] * counted).sum()
    return losses.sum() / total.clamp(min=torch.finfo(total.dtype).tiny)


class SegmentationLoss(nn.Module):
    """`segmentation_loss` with its options kept.

    Args:
        weight: (C,) or None. A buffer: it moves with the module but is in no state dict.
        ignore_index, reduction, label_smoothing, check_range: see `segmentation_loss`.

    Shape:
        logits (N, C, H, W) and target (N, H, W) to a scalar; (N, H, W) for ``"none"``.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = 255,
        reduction: str = "pixels",
        label_smoothing: float = 0.0,
        check_range: bool | None = None,
    ) -> None:
        super().__init__()
        check_reduction("SegmentationLoss", reduction)
        self.register_buffer("weight", weight, persistent=False)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.check_range = check_range

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return segmentation_loss(
            logits,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            check_range=self.check_range,
        )

    def extra_repr(self) -> str:
        weighted = "" if self.weight is None else f"classes={self.weight.numel()}, "
        return f"{weighted}ignore_index={self.ignore_index}, reduction={self.reduction!r}"


def check_scores(name: str, logits: Tensor, target: Tensor) -> None:
    """Raise ValueError unless they are (N, C, H, W) floats and (N, H, W) integers together."""
    if logits.dim() != 4 or logits.shape[1] == 0 or not logits.is_floating_point():
        raise ValueError(
            f"{name}: logits must be (N, C, H, W) and floating point, "
            f"got {tuple(logits.shape)} {logits.dtype}"
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise ValueError(f"{name}: target must hold integers, got {target.dtype}")
    wanted = (logits.shape[0], *logits.shape[2:])
    if tuple(target.shape) != wanted:
        raise ValueError(
            f"{name}: target must be (N, H, W) = {tuple(wanted)} for logits "
            f"{tuple(logits.shape)}, got {tuple(target.shape)}"
        )
    if target.device != logits.device:
        raise ValueError(
            f"{name}: target must be on {logits.device} like logits, got {target.device}"
        )


def check_reduction(name: str, reduction: str) -> None:
    """Raise ValueError unless ``reduction`` is one of `REDUCTIONS`."""
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"{name}: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}"
        )


def _check(
    logits: Tensor, target: Tensor, weight: Tensor | None, reduction: str, label_smoothing: float
) -> None:
    check_scores("segmentation_loss", logits, target)
    if weight is not None:
        classes = logits.shape[1]
        if tuple(weight.shape) != (classes,) or not weight.is_floating_point():
            raise ValueError(
                f"segmentation_loss: weight must be floating point of shape ({classes},), "
                f"got {tuple(weight.shape)} {weight.dtype}"
            )
        if weight.device != logits.device:
            raise ValueError(
                f"segmentation_loss: weight must be on {logits.device} like logits, "
                f"got {weight.device}"
            )
    check_reduction("segmentation_loss", reduction)
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            f"segmentation_loss: label_smoothing must be in [0, 1), got {label_smoothing}"
        )


def reads_labels(target: Tensor) -> bool:
    """Whether labels can be looked at without waiting for a device or breaking a graph."""
    return target.device.type == "cpu" and not torch.compiler.is_compiling()


def check_labels(name: str, target: Tensor, classes: int, ignore_index: int) -> None:
    """Raise ValueError where a label is neither a class nor ``ignore_index``; reads the answer."""
    bad = (target != ignore_index) & ((target < 0) | (target >= classes))
    if bad.any():
        raise ValueError(
            f"{name}: target must be in [0, {classes}) or {ignore_index}, "
            f"got {target[bad].unique().tolist()[:8]}"
        )
