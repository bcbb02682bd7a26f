"""Objects that hide each other, drawn on the fly: nothing to download, nothing to store."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from segkern.data._errors import DatasetError
from segkern.data._instances import (
    TASKS,
    InstanceDataset,
    InstanceTransform,
    Segment,
    Target,
    check_length,
    make_target,
    mask_boxes,
)
from segkern.data._shapes import (
    STUFF,
    STUFF_COLOURS,
    THING_COLOURS,
    THINGS,
    VOID,
    Scene,
    draw_scene,
)

SPLIT_LENGTHS = {"train": 512, "val": 128, "test": 128}
DEFAULT_SIZE = (128, 128)
SMALLEST_SIDE = 16
_DRAWING = 1
"""Raised when the same numbers would no longer give the same scene."""


class SyntheticInstances(InstanceDataset):
    """Balls, crates, cones and rings, textured and of many sizes, before sky, hills, field, water.

    Masks are of the visible parts. About one scene in eight has a heap of one class that is a
    single crowd; a quarter have a patch without label. A scene is a function of (seed, split,
    index), in the training split also of the epoch, so that training sees new scenes in every
    epoch. The splits share no scene, and every scene has an object that is no crowd. Both tasks
    draw the same scenes.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        task: ``"instance"``, or ``"panoptic"`` with the four kinds of stuff.
        size: (H, W), both at least 16; None is 128x128.
        transform, seed: see `InstanceDataset`.
        length: number of scenes; None is 512 for training and 128 for the others.

    Raises:
        DatasetError: no such split, or the size is too small.
    """

    def __init__(
        self,
        split: str,
        *,
        task: str = "instance",
        size: tuple[int, int] | None = None,
        transform: InstanceTransform | None = None,
        seed: int = 0,
        length: int | None = None,
    ) -> None:
        super().__init__(
            _categories(task),
            task=task,
            training=split == "train",
            transform=transform,
            seed=seed,
        )
        self.title = f"synthetic-{'instances' if task == 'instance' else task}"
        if split not in SPLIT_LENGTHS:
            raise DatasetError(
                f"{self.title}: split must be one of {', '.join(SPLIT_LENGTHS)}, got {split!r}"
            )
        self.split = split
        self.size = DEFAULT_SIZE if size is None else (int(size[0]), int(size[1]))
        if min(self.size) < SMALLEST_SIDE:
            raise DatasetError(
                f"{self.title}: size must be at least {SMALLEST_SIDE}x{SMALLEST_SIDE}, "
                f"got {self.size[0]}x{self.size[1]}"
            )
        check_length(self.title, length)
        self._length = SPLIT_LENGTHS[split] if length is None else length

    def __len__(self) -> int:
        return self._length

    def sample_name(self, index: int) -> str:
        """``val_00007`` and the like."""
        return f"{self.split}_{index:05d}"

    def image_id(self, index: int) -> int:
        return index + 1

    def image_size(self, index: int) -> tuple[int, int]:
        return self.size

    def identity(self) -> str:
        """Everything that the scenes depend on, the epoch apart."""
        height, width = self.size
        scene = f"{height}x{width} {self.split} seed {self.seed} length {len(self)}"
        return f"{self.title} {_DRAWING} {scene}"

    def load(self, index: int) -> tuple[Tensor, Target]:
        """Draw scene ``index``."""
        scene = self._scene(index)
        numbers = np.arange(1, len(scene.classes) + 1, dtype=np.uint8)[:, None, None]
        masks = torch.from_numpy((scene.ids == numbers).view(np.uint8))
        labels = [kind + 1 for kind in scene.classes]
        target = make_target(masks, labels, scene.crowd, self.image_id(index))
        if self.task == "panoptic":
            stuff = np.where(scene.stuff == VOID, np.uint8(self.ignore_index), scene.stuff + 1)
            stuff[scene.ids > 0] = 0
            target["semantic"] = torch.from_numpy(stuff.astype(np.int64))
        return torch.from_numpy(scene.image.transpose(2, 0, 1).copy()), target

    def panoptic(self, index: int) -> tuple[Tensor, list[Segment]]:
        """See `InstanceDataset`; objects are numbered before the stuff."""
        if self.task != "panoptic":
            return super().panoptic(index)
        scene = self._scene(index)
        objects = len(scene.classes)
        behind = np.where(scene.stuff == VOID, 0, objects + 1 + scene.stuff.astype(np.int64))
        ids = torch.from_numpy(np.where(scene.ids > 0, scene.ids, behind))
        kinds = [
            (self.category_ids[kind], crowd) for kind, crowd in zip(scene.classes, scene.crowd)
        ]
        kinds += [(number, False) for number in self.stuff_ids]
        segments = []
        for number, (category, crowd) in enumerate(kinds, start=1):
            mask = ids == number
            area = int(mask.sum())
            if area:
                x1, y1, x2, y2 = (int(v) for v in mask_boxes(mask[None])[0])
                segments.append(
                    {
                        "id": number,
                        "category_id": category,
                        "iscrowd": int(crowd),
                        "area": area,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                    }
                )
        return ids, segments

    def _scene(self, index: int) -> Scene:
        split = list(SPLIT_LENGTHS).index(self.split)
        epoch = self.epoch if self.split == "train" else 0
        return draw_scene(*self.size, np.random.default_rng((self.seed, split, epoch, index)))


def _categories(task: str) -> list[dict[str, Any]]:
    if task not in TASKS:
        raise ValueError(
            f"SyntheticInstances: task must be one of {', '.join(TASKS)}, got {task!r}"
        )
    kinds = [(name, True, colour) for name, colour in zip(THINGS, THING_COLOURS, strict=True)]
    if task == "panoptic":
        kinds += [(name, False, colour) for name, colour in zip(STUFF, STUFF_COLOURS, strict=True)]
    return [
        {"id": number, "name": name, "isthing": thing, "color": colour}
        for number, (name, thing, colour) in enumerate(kinds, start=1)
    ]
