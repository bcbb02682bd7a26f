"""What data sets of single objects have in common: the sample, its truth and its description."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segkern.data._base import IGNORE_INDEX, sample_seed
from segkern.data._rle import encode_masks
from segkern.data._samples import SampledDataset

Target = dict[str, Tensor]
InstanceTransform = Callable[..., tuple[Tensor, Target]]
Segment = dict[str, Any]

TASKS = ("instance", "panoptic")
_PER_OBJECT = ("boxes", "labels", "masks", "iscrowd", "area")


class InstanceDataset(SampledDataset):
    """Base of the data sets of instances and of panoptic segments.

    ``dataset[i]`` is ``(image, target)`` after ``transform``: the image (3, H, W) uint8 RGB, and a
    dict of

    - ``boxes`` (n, 4) float32, x1 y1 x2 y2 in pixels, a pixel covering [x, x + 1);
    - ``labels`` (n,) int64, 1 .. num_classes - 1, class k being ``class_names[k - 1]``;
    - ``masks`` (n, H, W) uint8, 0 or 1;
    - ``iscrowd`` (n,) bool, True where one mask covers a group whose members are not told apart;
    - ``area`` (n,) float32, pixels, as the annotation gives it;
    - ``image_id`` () int64;
    - ``semantic`` (H, W) int64, panoptic sets only: 0 = any thing, 1 .. num_stuff = stuff, 255 =
      not labelled.

    The training split drops crowds, and objects without a pixel, from its targets, and images
    without any object that is no crowd from itself; the other splits keep everything. n may be 0
    there, and after a crop. With ``images_only`` set the target is ``image_id`` alone and nothing
    else is decoded, for evaluation against `coco_truth`.

    Args:
        categories: dicts with ``id``, ``name``, ``isthing`` and ``color`` (3 numbers, 0 .. 255);
            the things among them, in this order, have labels 1, 2, ..., and so has the stuff.
        task: ``"instance"`` or ``"panoptic"``.
        training: whether crowds are dropped from the targets.
        transform: called as ``transform(image, target, generator=g)``, where the generator's seed
            is a function of (seed, epoch, index) alone. See `segkern.transforms.instances`.
        seed: the base seed of all random choices.

    Attributes:
        task (str), categories (list[dict]), class_names, category_ids (lists of the K things),
        palette ((K, 3) uint8), num_classes (K + 1), stuff_names, stuff_ids, stuff_palette,
        num_stuff (empty and 0 in sets of instances), ignore_index (255), images_only (False),
        mask_limit (bytes that the masks of a training sample in COCO's forms may take; of an image
        with more, as many objects as fit are drawn anew in each epoch; 1 GiB).
    """

    ignore_index = IGNORE_INDEX
    images_only = False
    mask_limit = 1 << 30

    def __init__(
        self,
        categories: Sequence[dict[str, Any]],
        *,
        task: str,
        training: bool,
        transform: InstanceTransform | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(transform, seed)
        if task not in TASKS:
            name = type(self).__name__
            raise ValueError(f"{name}: task must be one of {', '.join(TASKS)}, got {task!r}")
        self.task = task
        self.training = training
        self.categories = [
            {
                "id": int(c["id"]),
                "name": str(c["name"]),
                "isthing": bool(c["isthing"]),
                "color": [int(v) for v in c["color"]],
            }
            for c in categories
        ]
        things = [c for c in self.categories if c["isthing"]]
        stuff = [c for c in self.categories if not c["isthing"]]
        self.class_names = [c["name"] for c in things]
        self.category_ids = [c["id"] for c in things]
        self.palette = _palette(things)
        self.num_classes = len(things) + 1
        self.stuff_names = [c["name"] for c in stuff]
        self.stuff_ids = [c["id"] for c in stuff]
        self.stuff_palette = _palette(stuff)
        self.num_stuff = len(stuff)

    def load(self, index: int) -> tuple[Tensor, Target]:
        """Sample ``index`` before the transform and with its crowds."""
        raise NotImplementedError

    def load_image(self, index: int) -> Tensor:
        """The image of sample ``index`` alone, before the transform."""
        return self.load(index)[0]

    def most_masks(self, index: int) -> int:
        """The number of masks of sample ``index`` that ``mask_limit`` allows, at least 1."""
        height, width = self.image_size(index)
        return max(self.mask_limit // (height * width), 1)

    def load_training(self, index: int, generator: torch.Generator) -> tuple[Tensor, Target]:
        """`load` without crowds and objects that have no pixel."""
        image, target = self.load(index)
        kept = ~target["iscrowd"] & (target["area"] > 0)
        return image, target if kept.all() else select_objects(target, kept)

    def image_id(self, index: int) -> int:
        """The number of sample ``index`` in `coco_truth`."""
        raise NotImplementedError

    def image_size(self, index: int) -> tuple[int, int]:
        """(H, W) of sample ``index`` before the transform, without reading its pixels."""
        raise NotImplementedError

    def panoptic(self, index: int) -> tuple[Tensor, list[Segment]]:
        """The panoptic truth of sample ``index``, before the transform.

        Returns:
            ids (H, W) int64 with 0 = void, and a dict of ``id``, ``category_id``, ``iscrowd`` (0 or
            1), ``area`` (pixels) and ``bbox`` (x, y, width, height) for each other id.

        Raises:
            ValueError: this is a set of instances.
        """
        raise ValueError(f"{type(self).__name__}: no panoptic truth in a data set of instances")

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """The objects of sample ``index`` in COCO's form, apart from their ``id``."""
        _, target = self.load(index)
        return encode_target(target, self.category_ids)

    def coco_truth(self) -> dict[str, Any]:
        """The truth of all samples, crowds included, in the form of a COCO instances file.

        Returns:
            a dict with ``images``, ``annotations`` (numbered from 1; polygons or compressed RLE)
            and ``categories``, the things alone.

        Raises:
            DatasetError: pycocotools is missing.
        """
        images, annotations = [], []
        for index in range(len(self)):
            height, width = self.image_size(index)
            number = self.image_id(index)
            images.append(
                {
                    "id": number,
                    "file_name": self.sample_name(index),
                    "height": height,
                    "width": width,
                }
            )
            for entry in self.annotations(index):
                annotations.append({**entry, "id": len(annotations) + 1, "image_id": number})
        categories = [
            {"id": number, "name": name}
            for number, name in zip(self.category_ids, self.class_names, strict=True)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        self.check_index(index)
        generator = torch.Generator()
        generator.manual_seed(sample_seed(self.seed, self.epoch, index))
        if self.images_only:
            image = self.load_image(index)
            target = {"image_id": torch.tensor(self.image_id(index), dtype=torch.int64)}
        elif self.training:
            image, target = self.load_training(index, generator)
        else:
            image, target = self.load(index)
        if self.transform is not None:
            image, target = self.transform(image, target, generator=generator)
        return image, target


def draw_objects(number: int, most: int, generator: torch.Generator) -> np.ndarray:
    """At most ``most`` of the positions 0 .. number - 1, drawn at random, ascending."""
    if number <= most:
        return np.arange(number)
    return torch.randperm(number, generator=generator)[:most].sort().values.numpy()


def select_objects(target: Target, chosen: Tensor) -> Target:
    """The target with some of its objects: those of a (n,) bool, or of indices in their order."""
    return {k: v[chosen] if k in _PER_OBJECT else v for k, v in target.items()}


def make_target(
    masks: Tensor,
    labels: Sequence[int],
    iscrowd: Sequence[bool],
    image_id: int,
    *,
    boxes: Tensor | None = None,
    area: Sequence[float] | None = None,
) -> Target:
    """A target from its parts; boxes and areas are those of the masks where not given.

    Args:
        masks: (n, H, W) uint8.
        labels, iscrowd, area: n of each.
        boxes: (n, 4).
    """
    if area is None:
        areas = masks.sum(dim=(1, 2), dtype=torch.int64).to(torch.float32)
    else:
        areas = torch.tensor(area, dtype=torch.float32)
    return {
        "boxes": mask_boxes(masks) if boxes is None else boxes.to(torch.float32),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks,
        "iscrowd": torch.tensor(iscrowd, dtype=torch.bool),
        "area": areas,
        "image_id": torch.tensor(image_id, dtype=torch.int64),
    }


def mask_boxes(masks: Tensor) -> Tensor:
    """The smallest boxes around the masks: (n, H, W) -> (n, 4) float32; zeros where a mask is."""
    number, height, width = masks.shape
    boxes = torch.zeros(number, 4, dtype=torch.float32)
    if masks.numel() == 0:
        return boxes
    for axis, size, low, high in ((1, width, 0, 2), (2, height, 1, 3)):
        touched = masks.amax(dim=axis) > 0
        first = touched.to(torch.uint8).argmax(dim=1)
        last = size - touched.flip(1).to(torch.uint8).argmax(dim=1)
        some = touched.any(dim=1)
        boxes[:, low] = torch.where(some, first, 0).to(torch.float32)
        boxes[:, high] = torch.where(some, last, 0).to(torch.float32)
    return boxes


def encode_target(target: Target, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """A target's objects as COCO annotations without ``id`` and ``image_id``."""
    corners = target["boxes"].tolist()
    return [
        {
            "category_id": category_ids[label - 1],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": area,
            "iscrowd": int(crowd),
            "segmentation": rle,
        }
        for (x1, y1, x2, y2), label, area, crowd, rle in zip(
            corners,
            target["labels"].tolist(),
            target["area"].tolist(),
            target["iscrowd"].tolist(),
            encode_masks(target["masks"]),
            strict=True,
        )
    ]


def check_length(title: str, length: int | None) -> None:
    """Refuse a length below 1."""
    if length is not None and length < 1:
        raise ValueError(f"{title}: length must be at least 1, got {length}")


def _palette(categories: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.array([c["color"] for c in categories], dtype=np.uint8).reshape(len(categories), 3)
