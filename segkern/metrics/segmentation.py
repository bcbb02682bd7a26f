"""The figures of semantic segmentation, from one confusion matrix over the whole data set."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from segkern.metrics.boundary import TOLERANCE, boundary_f1
from segkern.metrics.confusion import confusion_matrix

ABSENT_RULES = ("skip", "zero", "one")


class SegmentationMetrics:
    """Intersection over union and its companions.

    One confusion matrix n (n_ij = pixels of class i predicted as j, ignored pixels left out) is
    summed over everything seen and reduced once, as by Long et al. (FCN, CVPR 2015). With
    t_i = sum_j n_ij and the union u_i = t_i + sum_j n_ji - n_ii:

    - ``pixel_accuracy`` = sum n_ii / sum t_i
    - ``mean_accuracy`` = mean of n_ii / t_i
    - ``iou`` = n_ii / u_i per class; ``miou`` their mean
    - ``fw_iou`` = sum (t_i iou_i) / sum t_i
    - ``boundary_f1``: mean over the images of `segkern.metrics.boundary_f1`, with a tolerance of
      0.75 % of the image diagonal (SegNet).

    A class that occurs neither in targets nor in predictions (u_i = 0) is absent; ``absent`` says
    what it counts in the two means. A class that is predicted but never true has IoU 0, and its
    accuracy, being undefined, is left out of the mean under every rule.

    Args:
        num_classes: C.
        ignore_index: label of the pixels left out. If it is one of the classes, that class is left
            out of every figure, while pixels wrongly predicted as it count against the true class.
        absent: ``"skip"`` leaves absent classes out of the means, ``"zero"`` and ``"one"`` count
            them as 0 or 1.
        boundary: whether to compute boundary F1 (some 20 ms of one core for 360x480).

    Attributes:
        confusion (Tensor): (C, C) int64 on the CPU, rows the true class.

    Example:
        >>> metrics = SegmentationMetrics(2)
        >>> metrics.update(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 1]]]))
        >>> metrics.compute()["iou"]
        [0.5, 0.5]
    """

    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int = 255,
        absent: str = "skip",
        boundary: bool = False,
    ) -> None:
        if num_classes < 1:
            raise ValueError(
                f"SegmentationMetrics: num_classes must be at least 1, got {num_classes}"
            )
        if absent not in ABSENT_RULES:
            raise ValueError(
                f"SegmentationMetrics: absent must be one of {', '.join(ABSENT_RULES)}, "
                f"got {absent!r}"
            )
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.absent = absent
        self.boundary = boundary
        self.reset()

    def reset(self) -> None:
        """Forget everything seen."""
        self.confusion = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)
        self.images = 0
        self._boundary_sum = 0.0
        self._boundary_images = 0

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            pred: (N, H, W) integers in [0, C), at ignored pixels too; N may be 0.
            target: (N, H, W) integers in [0, C) or ``ignore_index``, on the same device.

        Raises:
            ValueError: shapes, dtypes or devices that do not fit, or a class out of range; nothing
                of the batch is counted then.
        """
        if pred.dim() != 3 or target.dim() != 3:
            raise ValueError(
                "SegmentationMetrics.update: pred and target must be (N, H, W), got "
                f"{tuple(pred.shape)} and {tuple(target.shape)}"
            )
        self.confusion += confusion_matrix(
            pred, target, self.num_classes, ignore_index=self.ignore_index
        )
        self.images += pred.shape[0]
        if not self.boundary:
            return
        for pred_map, target_map in zip(pred.cpu().numpy(), target.cpu().numpy(), strict=True):
            score = boundary_f1(
                pred_map,
                target_map,
                self.num_classes,
                ignore_index=self.ignore_index,
                tolerance=TOLERANCE,
            )
            if score is not None:
                self._boundary_sum += score
                self._boundary_images += 1

    def merge(self, other: SegmentationMetrics) -> None:
        """Add what another instance with the same options has seen."""
        mine, theirs = self._options(), other._options()
        if mine != theirs:
            raise ValueError(
                f"SegmentationMetrics.merge: other must have options {mine}, got {theirs}"
            )
        self.confusion += other.confusion
        self.images += other.images
        self._boundary_sum += other._boundary_sum
        self._boundary_images += other._boundary_images

    def all_reduce(self) -> None:
        """Add up over the processes of `torch.distributed`; nothing happens where there are none.

        Every process holds the total afterwards, so call it once, before `compute`. The data must
        have been dealt out without repetition (`EpochSampler` with ``uneven="keep"``).
        """
        if not (dist.is_available() and dist.is_initialized()):
            return
        device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        counts = torch.tensor([self.images, self._boundary_images], dtype=torch.int64)
        whole = torch.cat([self.confusion.flatten(), counts]).to(device)
        scores = torch.tensor([self._boundary_sum], dtype=torch.float64, device=device)
        dist.all_reduce(whole)
        dist.all_reduce(scores)
        whole = whole.cpu()
        self.confusion = whole[:-2].view_as(self.confusion).clone()
        self.images, self._boundary_images = whole[-2:].tolist()
        self._boundary_sum = scores.item()

    def compute(self) -> dict[str, Any]:
        """The figures over everything seen.

        Returns:
            ``miou``, ``iou`` (list; None for a class left out), ``pixel_accuracy``,
            ``mean_accuracy``, ``class_accuracy`` (list; None where undefined), ``fw_iou``, with
            boundary also ``boundary_f1``; and what they rest on: ``pixels``, ``images``,
            ``ignore_index``, ``absent``. Where nothing was counted a figure is NaN.
        """
        n = self.confusion.double()
        true, predicted, hit = n.sum(1), n.sum(0), n.diag()
        union = true + predicted - hit
        left_out = torch.zeros(self.num_classes, dtype=torch.bool)
        if 0 <= self.ignore_index < self.num_classes:
            left_out[self.ignore_index] = True
        absent = (union == 0) & ~left_out
        nan = math.nan
        fill = {"skip": nan, "zero": 0.0, "one": 1.0}[self.absent]
        iou = torch.where(absent, fill, hit / union).masked_fill(left_out, nan)
        accuracy = torch.where(absent, fill, hit / true).masked_fill(left_out, nan)
        total = true.sum()
        result: dict[str, Any] = {
            "miou": iou.nanmean().item(),
            "iou": _listed(iou),
            "pixel_accuracy": (hit.sum() / total).item(),
            "mean_accuracy": accuracy.nanmean().item(),
            "class_accuracy": _listed(accuracy),
            "fw_iou": (torch.where(true > 0, true * iou, 0.0).sum() / total).item(),
        }
        if self.boundary:
            images = self._boundary_images
            result["boundary_f1"] = self._boundary_sum / images if images else nan
        result.update(
            pixels=int(total),
            images=self.images,
            ignore_index=self.ignore_index,
            absent=self.absent,
        )
        return result

    def _options(self) -> dict[str, Any]:
        return {
            "num_classes": self.num_classes,
            "ignore_index": self.ignore_index,
            "absent": self.absent,
            "boundary": self.boundary,
        }

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in self._options().items())
        return f"SegmentationMetrics({options})"


def _listed(values: Tensor) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]
