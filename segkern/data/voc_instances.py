"""PASCAL VOC 2012's single objects (Everingham et al., IJCV 2010)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segkern.data._base import default_palette
from segkern.data._cache import digest
from segkern.data._coco_json import choose, measure
from segkern.data._errors import DatasetError, Problem
from segkern.data._instances import (
    InstanceDataset,
    InstanceTransform,
    Target,
    check_length,
    encode_target,
    make_target,
)
from segkern.data._pairs import Pair, check_pairs
from segkern.data.image_io import read_image, read_mask
from segkern.data.voc import VOC_CLASSES, find_root, read_list

_OBJECTS = "SegmentationObject"
_CLASSES = "SegmentationClass"
_BORDER = 255


class VOCInstances(InstanceDataset):
    """``DIR/JPEGImages``, ``DIR/SegmentationObject``, ``DIR/SegmentationClass`` and the lists.

    Masks are the objects 1, 2, ... of the palette PNGs; their class is that of most of their pixels
    in the map of classes. 255, borders and difficult objects, is in no mask. There are no crowds.

    Every file is decoded when the set is opened; what was found is kept in the cache folder.

    Args:
        root: the folder, or one that holds it as ``VOC2012`` or ``VOCdevkit/VOC2012``.
        split: ``"train"``, ``"val"``, ``"trainval"``, or the name of another list in
            ``ImageSets/Segmentation``.
        transform, seed: see `InstanceDataset`.
        length: use at most this many images, spread evenly over the list.

    Raises:
        DatasetError: a folder or list is missing, or any file is bad; all bad files are named.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        transform: InstanceTransform | None = None,
        seed: int = 0,
        length: int | None = None,
    ) -> None:
        root = find_root(Path(root))
        self.title = f"voc-instances:{root} {split}"
        check_length(self.title, length)
        self.split = split
        palette = default_palette(len(VOC_CLASSES))
        super().__init__(
            [
                {"id": k, "name": VOC_CLASSES[k], "isthing": True, "color": palette[k]}
                for k in range(1, len(VOC_CLASSES))
            ],
            task="instance",
            training=split == "train",
            transform=transform,
            seed=seed,
        )
        pairs, problems = read_list(root, split, self.title, masks=root / _OBJECTS)
        objects, bad = check_pairs(pairs, root)
        problems += bad
        classes = [Pair(p.name, p.image, root / _CLASSES / p.mask.name) for p in pairs]
        counts, bad = check_pairs([p for p in classes if p.mask.is_file()], root)
        problems += [p for p in bad if p.path.startswith(_CLASSES)]
        there = iter(counts)
        for pair, found in zip(classes, objects, strict=True):
            shown = pair.mask.relative_to(root).as_posix()
            if not pair.mask.is_file():
                problems.append(Problem("missing file", shown, f"of the image {pair.name}"))
                continue
            labels = next(there)
            wrong = [k for k in labels or () if k >= len(VOC_CLASSES) and k != _BORDER]
            if wrong:
                detail = f"labels {wrong[:8]}; allowed are 0-{len(VOC_CLASSES) - 1}, 255"
                problems.append(Problem("label out of range", shown, detail))
            elif labels and found and _numbers(found) and not _numbers(labels):
                detail = f"no class for the objects {_numbers(found)[:8]}"
                problems.append(Problem("object without class", shown, detail))
        if problems:
            raise DatasetError(f"{self.title}: {len(problems)} bad files", problems)
        chosen = [k for k, found in enumerate(objects) if not self.training or _numbers(found)]
        if not chosen:
            raise DatasetError(f"{self.title}: no images found")
        chosen = [chosen[k] for k in choose(len(chosen), length)]
        self._pairs = [pairs[k] for k in chosen]
        self._classes = [classes[k].mask for k in chosen]
        self._ids = [k + 1 for k in chosen]
        self._sizes, _ = measure(
            root, [p.image.relative_to(root).as_posix() for p in self._pairs], root
        )
        stats = [path.stat() for p in self._pairs for path in (p.image, p.mask)]
        self._key = digest(
            str(root.resolve()), self._ids, [(s.st_mtime_ns, s.st_size) for s in stats]
        )

    def __len__(self) -> int:
        return len(self._pairs)

    def sample_name(self, index: int) -> str:
        """The image's name, as ``2007_000129``."""
        return self._pairs[index].name

    def image_id(self, index: int) -> int:
        """The image's line in the list, from 1."""
        return self._ids[index]

    def image_size(self, index: int) -> tuple[int, int]:
        size = self._sizes[index]
        if size is None:
            raise DatasetError(f"{self._pairs[index].image}: changed since the check")
        return size

    def identity(self) -> str:
        """Names, times and sizes of the files of images and objects."""
        return f"{self.title} {self._key}"

    def load_image(self, index: int) -> Tensor:
        return torch.from_numpy(read_image(self._pairs[index].image).transpose(2, 0, 1).copy())

    def load(self, index: int) -> tuple[Tensor, Target]:
        image = self.load_image(index)
        target = self._target(index)
        if target["masks"].shape[1:] != image.shape[1:]:
            raise DatasetError(f"{self._pairs[index].mask}: size changed since the check")
        return image, target

    def annotations(self, index: int) -> list[dict[str, Any]]:
        return encode_target(self._target(index), self.category_ids)

    def _target(self, index: int) -> Target:
        path = self._pairs[index].mask
        objects, classes = read_mask(path), read_mask(self._classes[index])
        if objects.shape != classes.shape:
            raise DatasetError(f"{path}: size changed since the check")
        numbers = [k for k in np.unique(objects).tolist() if 0 < k != _BORDER]
        masks, labels = [], []
        for number in numbers:
            mask = objects == number
            votes = np.bincount(classes[mask], minlength=_BORDER + 1)[1:_BORDER]
            if not votes.any():
                raise DatasetError(f"{self._classes[index]}: no class for object {number}")
            masks.append(mask)
            labels.append(int(votes.argmax()) + 1)
        stacked = np.array(masks, dtype=np.uint8).reshape(len(masks), *objects.shape)
        crowds = [False] * len(labels)
        return make_target(torch.from_numpy(stacked), labels, crowds, self.image_id(index))


def _numbers(found: dict[int, int] | None) -> list[int]:
    """The objects or classes among the labels of a map."""
    return [label for label in found or () if 0 < label != _BORDER]
