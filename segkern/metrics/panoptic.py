"""Panoptic quality, as the evaluator of the COCO panoptic task counts it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

VOID = 0

_TP, _FP, _FN = range(3)


class PanopticQuality:
    """Panoptic, segmentation and recognition quality.

    A map of segment ids (H, W) comes with a list of its segments; id 0 is void. With g a true and p
    a predicted segment,

    - g and p of one class match if |g and p| / (|g| + |p| - |g and p| - |p and void|) > 0.5, where
      void is the truth's; crowds do not match;
    - a match is a true positive, a true segment without one a false negative unless it is a crowd;
    - a predicted segment without one is a false positive, unless more than half of it lies on void
      and on a crowd of its class (the last one listed).

    For each class PQ = sum of matches' IoU / (TP + FP / 2 + FN / 2), SQ = sum of IoU / TP (0 where
    none match), RQ = TP / (TP + FP / 2 + FN / 2). The means are over the classes that have any of the
    three. Kirillov et al., "Panoptic Segmentation", arXiv:1801.00868.

    Args:
        categories: dicts with ``id`` and ``isthing``; other keys are ignored.

    Raises:
        ValueError: no categories, one without these keys, or an id that occurs twice.

    Attributes:
        images (int): how many were seen.

    Example:
        >>> import torch
        >>> from segkern.metrics import PanopticQuality
        >>> metric = PanopticQuality([{"id": 5, "isthing": 1}, {"id": 9, "isthing": 0}])
        >>> truth = torch.tensor([[1, 1, 1, 2, 2]])
        >>> guess = torch.tensor([[7, 7, 8, 8, 8]])
        >>> segments = [{"id": 1, "category_id": 5}, {"id": 2, "category_id": 9}]
        >>> guessed = [{"id": 7, "category_id": 5}, {"id": 8, "category_id": 9}]
        >>> metric.update(truth, segments, guess, guessed)
        >>> round(metric.compute()["All"]["pq"], 4)
        0.6667
    """

    def __init__(self, categories: Sequence[Mapping[str, Any]]) -> None:
        categories = list(categories)
        if not categories or any(not {"id", "isthing"} <= set(c) for c in categories):
            raise ValueError(
                f"PanopticQuality: categories must be dicts with id and isthing, got {categories!r}"
            )
        self.isthing = {int(c["id"]): bool(c["isthing"]) for c in categories}
        if len(self.isthing) < len(categories):
            raise ValueError("PanopticQuality: categories must have different ids")
        self._row = {category: row for row, category in enumerate(self.isthing)}
        self.reset()

    def reset(self) -> None:
        """Forget everything seen."""
        self.images = 0
        self._counts = torch.zeros(len(self.isthing), 3, dtype=torch.int64)  # TP, FP, FN
        self._iou = torch.zeros(len(self.isthing), dtype=torch.float64)

    def update(
        self,
        truth_ids: Tensor,
        truth_segments: Sequence[Mapping[str, Any]],
        ids: Tensor,
        segments: Sequence[Mapping[str, Any]],
        *,
        image: object = None,
    ) -> None:
        """Add an image.

        Args:
            truth_ids: (H, W) integers, segment ids, 0 for void.
            truth_segments: a dict for each id, with ``id``, ``category_id`` and optionally
                ``iscrowd``.
            ids, segments: the same of the prediction; its ``iscrowd`` means nothing.
            image: name in error messages; by default its number, from 0.

        Raises:
            ValueError: maps of different shapes or not of integers; an id of a map without a
                segment, a segment without pixels, an id listed twice or of an unknown category;
                the message names image and id. Nothing of the image is counted then.
        """
        where = f"PanopticQuality.update: image {self.images if image is None else image}"
        for name, value in (("truth_ids", truth_ids), ("ids", ids)):
            if not isinstance(value, Tensor) or value.dim() != 2 or value.is_floating_point():
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"{where}: {name} must be integers (H, W), got {got}")
        if truth_ids.shape != ids.shape:
            raise ValueError(
                f"{where}: ids must be of size {tuple(truth_ids.shape)} as the truth, "
                f"got {tuple(ids.shape)}"
            )
        true_keys, guess_keys, shared = _overlaps(truth_ids, ids)
        truth = self._listed(where, "truth", truth_segments, true_keys)
        guess = self._listed(where, "prediction", segments, guess_keys)
        true_row = {key: row for row, key in enumerate(true_keys)}
        guess_row = {key: row for row, key in enumerate(guess_keys)}
        table = shared.tolist()
        true_area, guess_area = shared.sum(1).tolist(), shared.sum(0).tolist()

        def common(true_id: int | None, guess_id: int) -> int:
            return table[true_row[true_id]][guess_row[guess_id]] if true_id in true_row else 0

        counts, iou = torch.zeros_like(self._counts), torch.zeros_like(self._iou)
        matched: set[int] = set()
        crowds: dict[int, int] = {}
        for true_id, segment in truth.items():
            category = segment["category_id"]
            if segment.get("iscrowd", 0):
                crowds[category] = true_id
                continue
            found = False
            for guess_id in guess:
                inter = common(true_id, guess_id)
                if not inter or guess[guess_id]["category_id"] != category:
                    continue
                union = (
                    true_area[true_row[true_id]]
                    + guess_area[guess_row[guess_id]]
                    - inter
                    - common(VOID, guess_id)
                )
                if inter / union > 0.5:
                    counts[self._row[category], _TP] += 1
                    iou[self._row[category]] += inter / union
                    matched.add(guess_id)
                    found = True
            if not found:
                counts[self._row[category], _FN] += 1
        for guess_id, segment in guess.items():
            if guess_id in matched:
                continue
            category = segment["category_id"]
            excused = common(VOID, guess_id) + common(crowds.get(category), guess_id)
            if excused / guess_area[guess_row[guess_id]] <= 0.5:
                counts[self._row[category], _FP] += 1
        self._counts += counts
        self._iou += iou
        self.images += 1

    def merge(self, other: PanopticQuality) -> None:
        """Add what another instance of the same categories has seen."""
        if self.isthing != other.isthing:
            raise ValueError("PanopticQuality.merge: other must have the same categories")
        self._counts += other._counts
        self._iou += other._iou
        self.images += other.images

    def all_reduce(self) -> None:
        """Add up over the processes of `torch.distributed`; nothing happens where there are none.

        Every process holds the total afterwards, so call it once, before `compute`.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return
        device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        images = torch.tensor([self.images], dtype=torch.int64)
        whole = torch.cat([self._counts.flatten(), images]).to(device)
        iou = self._iou.to(device)
        dist.all_reduce(whole)
        dist.all_reduce(iou)
        self._counts = whole[:-1].view_as(self._counts).cpu()
        self._iou = iou.cpu()
        self.images = int(whole[-1])

    def compute(self) -> dict[str, dict[Any, Any]]:
        """The figures over everything seen, from 0 to 1.

        Returns:
            ``"All"``, ``"Things"`` and ``"Stuff"``, each a dict of ``pq``, ``sq``, ``rq`` (means
            over the classes that occur in truth or prediction, NaN where there are none) and ``n``,
            how many these are; and ``"per_class"``, by category id, dicts of ``pq``, ``sq``, ``rq``
            (None for a class that does not occur), ``tp``, ``fp`` and ``fn``.
        """
        per_class: dict[int, dict[str, Any]] = {}
        for category, row in self._row.items():
            tp, fp, fn = self._counts[row].tolist()
            found = {"pq": None, "sq": None, "rq": None, "tp": tp, "fp": fp, "fn": fn}
            if tp + fp + fn:
                iou, cases = self._iou[row].item(), tp + fp / 2 + fn / 2
                found.update(pq=iou / cases, sq=iou / tp if tp else 0.0, rq=tp / cases)
            per_class[category] = found

        def mean(kinds: tuple[bool, ...]) -> dict[str, Any]:
            there = [
                found
                for category, found in per_class.items()
                if self.isthing[category] in kinds and found["pq"] is not None
            ]
            means = {
                name: sum(found[name] for found in there) / len(there) if there else math.nan
                for name in ("pq", "sq", "rq")
            }
            return {**means, "n": len(there)}

        return {
            "All": mean((True, False)),
            "Things": mean((True,)),
            "Stuff": mean((False,)),
            "per_class": per_class,
        }

    def _listed(
        self,
        where: str,
        side: str,
        segments: Sequence[Mapping[str, Any]],
        keys: list[int],
    ) -> dict[int, dict[str, Any]]:
        """The segments by id, checked against the ids that have pixels."""
        found: dict[int, dict[str, Any]] = {}
        for segment in segments:
            if not {"id", "category_id"} <= set(segment):
                raise ValueError(
                    f"{where}: segments of the {side} must have id and category_id, "
                    f"got {dict(segment)!r}"
                )
            key, category = int(segment["id"]), int(segment["category_id"])
            if key == VOID:
                raise ValueError(f"{where}: id 0 of the {side} is void and must not be listed")
            if key in found:
                raise ValueError(f"{where}: id {key} of the {side} must be listed once, got twice")
            if category not in self._row:
                raise ValueError(
                    f"{where}: id {key} of the {side} must have a known category, got {category}"
                )
            found[key] = {**segment, "category_id": category}
        present = set(keys) - {VOID}
        for key in sorted(present - set(found)):
            raise ValueError(f"{where}: id {key} of the {side} has pixels but is not listed")
        for key in sorted(set(found) - present):
            raise ValueError(f"{where}: id {key} of the {side} is listed but has no pixels")
        return found

    def __repr__(self) -> str:
        things = sum(self.isthing.values())
        return f"PanopticQuality(things={things}, stuff={len(self.isthing) - things})"


def _overlaps(truth: Tensor, guess: Tensor) -> tuple[list[int], list[int], Tensor]:
    """The ids of both maps, ascending, and (T, P) int64 pixels that each pair shares."""
    true_keys, true_rows = torch.unique(truth.cpu().long(), return_inverse=True)
    guess_keys, guess_rows = torch.unique(guess.cpu().long(), return_inverse=True)
    pairs = true_rows.flatten() * len(guess_keys) + guess_rows.flatten()
    shared = torch.bincount(pairs, minlength=len(true_keys) * len(guess_keys))
    return true_keys.tolist(), guess_keys.tolist(), shared.view(len(true_keys), len(guess_keys))
