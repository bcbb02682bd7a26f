"""COCO's average precision and recall of boxes and masks, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from segkern.data._rle import Rle

COCO_NAMES = (
    "AP",
    "AP50",
    "AP75",
    "APs",
    "APm",
    "APl",
    "AR1",
    "AR10",
    "AR100",
    "ARs",
    "ARm",
    "ARl",
)
"""The twelve numbers in pycocotools' order."""

KINDS = ("bbox", "segm")


@dataclass
class _Found:
    """What was found in one image: boxes (n, 4) as x, y, width, height, and encoded masks."""

    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray | None
    masks: list[Rle] | None


class CocoEvaluation:
    """Results of a network gathered image by image, and the twelve numbers of COCO from them.

    AP is the mean over IoU thresholds .50, .55, .., .95, classes and 101 points of recall; AP50 and
    AP75 are those at one threshold; s, m and l count objects of up to 32^2, 96^2 and more pixels;
    AR1, AR10 and AR100 are the mean recall with so many results per image and class. Crowds cost
    nothing and earn nothing. A number is -1 where no object counts towards it. Images of the truth
    without an update count as images where nothing was found.

    Masks are encoded as they come, so that memory grows with their outlines, not with their pixels.
    The numbers do not depend on the order of the updates.

    Args:
        truth: a dict in the form of a COCO instances file, as ``dataset.coco_truth()`` gives it. It
            is not changed.
        category_ids: the ``category_id`` of labels 1, 2, ...; other categories are left out.
        kinds: which of ``"bbox"`` and ``"segm"``.

    Raises:
        DatasetError: pycocotools is missing.
        ValueError: an unknown kind.

    Example:
        >>> box = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 2, 3], "area": 6}
        >>> image = {"id": 1, "height": 8, "width": 8}
        >>> truth = {"images": [image], "annotations": [box], "categories": [{"id": 7}]}
        >>> evaluation = CocoEvaluation(truth, [7], kinds=("bbox",))
        >>> boxes, one = torch.tensor([[1.0, 1.0, 3.0, 4.0]]), torch.ones(1)
        >>> evaluation.update([1], [{"boxes": boxes, "labels": one.long(), "scores": one}])
        >>> round(evaluation.compute()["bbox"]["AP"], 6)
        1.0
    """

    def __init__(
        self,
        truth: Mapping[str, Any],
        category_ids: Sequence[int],
        kinds: Sequence[str] = KINDS,
    ) -> None:
        if not kinds or any(kind not in KINDS for kind in kinds):
            raise ValueError(
                f"CocoEvaluation: kinds must be some of {', '.join(KINDS)}, got {kinds!r}"
            )
        _rle().coco_masks()
        self.truth = truth
        self.category_ids = [int(number) for number in category_ids]
        self.kinds = tuple(kinds)
        self._sizes = {int(i["id"]): (int(i["height"]), int(i["width"])) for i in truth["images"]}
        self._found: dict[int, _Found] = {}
        self._class_ap: dict[str, list[float | None]] = {}

    def update(
        self, image_ids: Sequence[int] | Tensor, results: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """Add the results of some images.

        Args:
            image_ids: their ids in the truth, each of which may come once.
            results: for each a dict of ``labels`` (n,), 1 .. K; ``scores`` (n,); ``boxes`` (n, 4),
                x1 y1 x2 y2, where boxes are asked for; ``masks`` (n, H, W) or (n, 1, H, W) where
                masks are, at the size of the image in the truth: bool or integers, or float, of
                which at least 0.5 is inside. n may be 0.

        Raises:
            ValueError: an image that is unknown or came before, or a result of another form.
        """
        numbers = [int(number) for number in image_ids]
        if len(numbers) != len(results):
            raise ValueError(
                "CocoEvaluation: results must be one for each of the "
                f"{len(numbers)} image_ids, got {len(results)}"
            )
        for number, result in zip(numbers, results, strict=True):
            if number not in self._sizes:
                raise ValueError(f"CocoEvaluation: image_ids must be in the truth, got {number}")
            if number in self._found:
                raise ValueError(f"CocoEvaluation: image {number} was added before")
            self._found[number] = self._read(number, result)

    def merge(self, other: CocoEvaluation) -> None:
        """Add the results that another evaluation of the same truth gathered."""
        twice = sorted(self._found.keys() & other._found.keys())
        if twice:
            raise ValueError(f"CocoEvaluation: images {twice[:8]} are in both evaluations")
        self._found.update(other._found)

    def results(self) -> list[dict[str, Any]]:
        """All results as COCO's json has them, in order of the images' ids.

        Returns:
            dicts of ``image_id``, ``category_id``, ``score`` and, of what was asked for, ``bbox``
            (x, y, width, height) and ``segmentation`` (``size`` and a string of ``counts``).
        """
        return list(self._entries(self.kinds))

    def compute(self) -> dict[str, dict[str, float]]:
        """The numbers of the results so far: ``{"bbox": {"AP": ..., ...}, "segm": {...}}``."""
        return {kind: self._evaluate(kind) for kind in self.kinds}

    def class_ap(self, kind: str) -> list[float | None]:
        """AP of each label, 1 first, at the last `compute`; None where no object counts."""
        if kind not in self._class_ap:
            raise ValueError(f"CocoEvaluation: no AP of {kind!r} has been computed yet")
        return list(self._class_ap[kind])

    def _read(self, number: int, result: Mapping[str, Tensor]) -> _Found:
        labels, scores = self._field(result, "labels"), self._field(result, "scores")
        count = len(labels)
        if scores.shape != (count,) or labels.dim() != 1:
            raise ValueError(
                "CocoEvaluation: labels and scores must be (n,), got "
                f"{tuple(labels.shape)} and {tuple(scores.shape)}"
            )
        classes = labels.cpu().numpy().astype(np.int64)
        if count and not 1 <= classes.min() <= classes.max() <= len(self.category_ids):
            raise ValueError(
                f"CocoEvaluation: labels must be in 1 .. {len(self.category_ids)}, got "
                f"{classes.min()} .. {classes.max()}"
            )
        confidence = scores.detach().cpu().double().numpy()
        if not np.isfinite(confidence).all():
            raise ValueError(
                f"CocoEvaluation: scores must be finite, in image {number} some are not"
            )
        boxes = masks = None
        if "bbox" in self.kinds:
            corners = self._field(result, "boxes")
            if corners.shape != (count, 4):
                raise ValueError(
                    f"CocoEvaluation: boxes must be ({count}, 4), got {tuple(corners.shape)}"
                )
            boxes = corners.detach().cpu().double().numpy().copy()
            boxes[:, 2:] -= boxes[:, :2]
        if "segm" in self.kinds:
            soft = self._field(result, "masks")
            if soft.dim() == 4 and soft.shape[1] == 1:
                soft = soft[:, 0]
            if soft.shape != (count, *self._sizes[number]):
                raise ValueError(
                    "CocoEvaluation: masks must be (n, H, W) or (n, 1, H, W) with n, H, W = "
                    f"{(count, *self._sizes[number])} in image {number}, got "
                    f"{tuple(result['masks'].shape)}"
                )
            masks = _rle().encode_masks(soft.detach())
        return _Found(classes, confidence, boxes, masks)

    @staticmethod
    def _field(result: Mapping[str, Tensor], name: str) -> Tensor:
        if not isinstance(result.get(name), Tensor):
            raise ValueError(
                f"CocoEvaluation: results must have a tensor {name!r}, got {sorted(result)}"
            )
        return result[name]

    def _entries(self, kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
        for number in sorted(self._found):
            found = self._found[number]
            for index, label in enumerate(found.labels.tolist()):
                entry: dict[str, Any] = {
                    "image_id": number,
                    "category_id": self.category_ids[label - 1],
                    "score": float(found.scores[index]),
                }
                if "bbox" in kinds and found.boxes is not None:
                    entry["bbox"] = found.boxes[index].tolist()
                if "segm" in kinds and found.masks is not None:
                    entry["segmentation"] = found.masks[index]
                yield entry

    def _evaluate(self, kind: str) -> dict[str, float]:
        from pycocotools.cocoeval import COCOeval

        # pycocotools reports its progress on the standard output.
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(
                _index(self.truth, list(_truth_of(self.truth, kind))),
                _index(self.truth, list(self._detections(kind))),
                kind,
            )
            evaluation.params.catIds = self.category_ids
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        # pycocotools sorts the categories it was given.
        order = {number: k for k, number in enumerate(evaluation.params.catIds)}
        precision = evaluation.eval["precision"][:, :, :, 0, 2]
        per_class = []
        for number in self.category_ids:
            values = precision[:, :, order[number]]
            per_class.append(float(values.mean()) if (values > -1).all() else None)
        self._class_ap[kind] = per_class
        return dict(zip(COCO_NAMES, map(float, evaluation.stats), strict=True))

    def _detections(self, kind: str) -> Iterator[dict[str, Any]]:
        """The results with the fields that pycocotools' own loader would give them."""
        area = _rle().coco_masks().area
        for number, entry in enumerate(self._entries((kind,)), start=1):
            if kind == "bbox":
                pixels = entry["bbox"][2] * entry["bbox"][3]
            else:
                pixels = float(area(entry["segmentation"]))
            yield {**entry, "id": number, "area": pixels, "iscrowd": 0}


def _rle() -> ModuleType:
    """Imported late: the other measures do without what data sets need."""
    from segkern.data import _rle

    return _rle


def _truth_of(truth: Mapping[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    """Copies of the annotations, which pycocotools writes to, numbered from 1.

    The number 0 would pass for "not matched".
    """
    for number, entry in enumerate(truth["annotations"], start=1):
        copy = {**entry, "id": number, "iscrowd": int(entry.get("iscrowd", 0))}
        if kind == "bbox":
            copy.pop("segmentation", None)
        yield copy


def _index(truth: Mapping[str, Any], annotations: list[dict[str, Any]]) -> Any:
    from pycocotools.coco import COCO

    found = COCO()
    found.dataset = {
        "images": truth["images"],
        "categories": truth["categories"],
        "annotations": annotations,
    }
    found.createIndex()
    return found
