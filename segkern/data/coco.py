"""COCO's instances, and own data in the same form (Lin et al., arXiv:1405.0312)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segkern.data._cache import digest
from segkern.data._coco_json import (
    choose,
    first_there,
    is_id,
    parse_file,
    read_categories,
    read_images,
    sample_names,
    shown,
    stamp_of,
)
from segkern.data._coco_table import AnnotationTable
from segkern.data._errors import DatasetError, Problem
from segkern.data._instances import (
    InstanceDataset,
    InstanceTransform,
    Target,
    check_length,
    draw_objects,
    make_target,
    select_objects,
)
from segkern.data._rle import as_rle, coco_masks, decode_masks
from segkern.data.image_io import read_image

_FILES = (
    "annotations/instances_{}2017.json",
    "annotations/instances_{}.json",
    "annotations/{}.json",
    "{}.json",
    "{}/_annotations.coco.json",
)
_FOLDERS = ("{}2017", "{}", "images/{}2017", "images/{}", "images", ".")


class Coco(InstanceDataset):
    """``DIR/annotations/instances_SPLIT2017.json`` with ``DIR/SPLIT2017/``, or simpler forms.

    The json may also be ``annotations/instances_SPLIT.json``, ``annotations/SPLIT.json``,
    ``SPLIT.json`` or ``SPLIT/_annotations.coco.json``, the images' folder ``SPLIT``,
    ``images/SPLIT2017``, ``images/SPLIT``, ``images`` or DIR itself. Segmentations are polygons or
    RLE, compressed or not. Labels 1, 2, ... are the categories in order of their ids.

    Opening reads the json into flat arrays and the heads of the image files, whose sizes are kept
    in the cache folder; it decodes nothing. Boxes are the file's, clipped to the image; where the
    file has none, those of the masks, and likewise the areas. In training, objects whose mask has
    no pixel are left out as crowds are.

    Args:
        root: the folder.
        split: ``"train"``, ``"val"``, or what else stands in the place of SPLIT.
        transform, seed: see `InstanceDataset`.
        length: use at most this many images, spread evenly over the ids.

    Raises:
        DatasetError: the json cannot be read, or entries or image files are bad; all are named.
            pycocotools is missing.
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
        root = Path(root)
        self.title = f"coco:{root} {split}"
        check_length(self.title, length)
        coco_masks()
        self.split = split
        self._root = root
        path = first_there(self.title, "annotations", root, [f.format(split) for f in _FILES])
        self._stamp = stamp_of(path)
        file = shown(path, root)
        table = AnnotationTable(file)
        content = parse_file(path, root, self.title, table.take)
        categories, problems = read_categories(content["categories"], file)
        folders = [folder.format(split) for folder in _FOLDERS]
        images, bad = read_images(content["images"], file, root, folders, self.title)
        problems += [*bad, *_not_taken(content["annotations"], file)]
        listed = [e["id"] for e in content["images"] if isinstance(e, dict) and is_id(e.get("id"))]
        del content
        table.check(
            images, np.array(listed, dtype=np.int64), [category["id"] for category in categories]
        )
        problems += table.problems
        if problems:
            raise DatasetError(f"{self.title}: {len(problems)} bad entries or files", problems)
        super().__init__(
            [{**category, "isthing": True} for category in categories],
            task="instance",
            training=split == "train",
            transform=transform,
            seed=seed,
        )
        self._images, self._table = images, table
        usable = table.image >= 0
        of_image = np.where(usable, table.image, len(images.ids))
        # Annotations by image, each image's in the file's order.
        self._order = np.argsort(of_image, kind="stable")
        self._bounds = np.searchsorted(of_image[self._order], np.arange(len(images.ids) + 1))
        chosen = np.arange(len(images.ids))
        if self.training:
            counts = np.bincount(table.image[usable & ~table.crowd], minlength=len(images.ids))
            chosen = np.flatnonzero(counts)
        if not len(chosen):
            raise DatasetError(f"{self.title}: no images found in {file}")
        self._chosen = chosen[choose(len(chosen), length)]
        self._names = sample_names([images.names[k] for k in self._chosen])

    def __len__(self) -> int:
        return len(self._chosen)

    def sample_name(self, index: int) -> str:
        """The image's file name without suffix, folders joined by ``_``."""
        return self._names[index]

    def image_id(self, index: int) -> int:
        return int(self._images.ids[self._chosen[index]])

    def image_size(self, index: int) -> tuple[int, int]:
        height, width = self._images.sizes[self._chosen[index]].tolist()
        return height, width

    def identity(self) -> str:
        """The json's time and length, and which images are used."""
        return f"{self.title} {digest(self._stamp, self._images.ids[self._chosen].tolist())}"

    def load_image(self, index: int) -> Tensor:
        path = self._images.folder / self._images.names[self._chosen[index]]
        pixels = read_image(path)
        if pixels.shape[:2] != self.image_size(index):
            raise DatasetError(f"{path}: the size changed since the data set was opened")
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    def load(self, index: int) -> tuple[Tensor, Target]:
        return self.load_image(index), self._target(index, self._rows(index))

    def load_training(self, index: int, generator: torch.Generator) -> tuple[Tensor, Target]:
        """See `InstanceDataset`; of more masks than ``mask_limit`` allows, some drawn at random."""
        rows = self._rows(index)
        rows = rows[~self._table.crowd[rows]]
        rows = rows[draw_objects(len(rows), self.most_masks(index), generator)]
        target = self._target(index, rows)
        kept = target["masks"].flatten(1).any(dim=1).bool()
        return self.load_image(index), target if kept.all() else select_objects(target, kept)

    def _target(self, index: int, rows: np.ndarray) -> Target:
        table, (height, width) = self._table, self.image_size(index)
        masks = decode_masks([table.segmentation(k) for k in rows], height, width)
        boxes = torch.from_numpy(table.box[rows])
        boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
        boxes[:, 0::2].clamp_(0, width)
        boxes[:, 1::2].clamp_(0, height)
        areas = torch.from_numpy(table.area[rows])
        target = make_target(
            masks,
            table.label[rows].tolist(),
            table.crowd[rows].tolist(),
            self.image_id(index),
        )
        unknown = boxes.isnan().any(dim=1, keepdim=True)
        target["boxes"] = torch.where(unknown, target["boxes"], boxes.to(torch.float32))
        target["area"] = torch.where(areas.isnan(), target["area"], areas.to(torch.float32))
        return target

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """See `InstanceDataset`: segmentations, boxes and areas as the file has them."""
        table, size = self._table, self.image_size(index)
        entries = []
        for k in self._rows(index):
            segmentation = table.segmentation(k)
            box, area = table.box[k].tolist(), float(table.area[k])
            if np.isnan(box).any() or np.isnan(area):
                rle = as_rle(segmentation, *size)
                if np.isnan(box).any():
                    box = coco_masks().toBbox(rle).tolist()
                if np.isnan(area):
                    area = float(coco_masks().area(rle))
            entries.append(
                {
                    "category_id": int(table.category_id[k]),
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(table.crowd[k]),
                    "segmentation": segmentation,
                }
            )
        return entries

    def _rows(self, index: int) -> np.ndarray:
        """The annotations of sample ``index`` in the table."""
        image = self._chosen[index]
        return self._order[self._bounds[image] : self._bounds[image + 1]]


def _not_taken(entries: list[Any], file: str) -> list[Problem]:
    """Entries of the list of annotations that the table did not take.

    It leaves its own numbers 0, 1, ... in the list, and -1 where it has noted a fault.
    """
    problems, row = [], 0
    for position, entry in enumerate(entries):
        if isinstance(entry, int) and not isinstance(entry, bool) and entry in (row, -1):
            row += entry == row
        else:
            detail = f"annotation entry {position}: must be an object with an image_id"
            problems.append(Problem("bad annotation", file, detail))
    return problems
