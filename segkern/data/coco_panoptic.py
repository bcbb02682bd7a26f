"""COCO's panoptic segments, and own data in the same form (Kirillov et al., arXiv:1801.00868)."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segkern.data._cache import digest
from segkern.data._coco_json import (
    choose,
    find_sorted,
    first_there,
    is_id,
    is_number,
    measure,
    parse_file,
    read_categories,
    read_images,
    sample_names,
    shown,
    stamp_of,
)
from segkern.data._errors import DatasetError, Problem
from segkern.data._instances import (
    InstanceDataset,
    InstanceTransform,
    Segment,
    Target,
    check_length,
    draw_objects,
    encode_target,
    make_target,
    mask_boxes,
)
from segkern.data.image_io import UnreadableError, decode_labels, read_image

_FILES = (
    "annotations/panoptic_{}2017.json",
    "annotations/panoptic_{}.json",
    "panoptic_{}2017.json",
    "panoptic_{}.json",
    "{}.json",
)
_FOLDERS = ("{}2017", "{}", "images/{}2017", "images/{}", "images", ".")
_NUMBERS = ("id", "category_id", "iscrowd", "area", "x", "y", "width", "height")
_MISSING = -1
"""The area of a segment whose area or box the file does not give."""


class CocoPanoptic(InstanceDataset):
    """``DIR/annotations/panoptic_SPLIT2017.json``, the folder of its name beside it, ``SPLIT2017``.

    The folder ``panoptic_SPLIT2017/`` has an RGB PNG for each image, whose segment ids are R + 256
    G + 65536 B, 0 being unlabelled. The json may also be ``annotations/panoptic_SPLIT.json``, or
    either name in DIR itself, the images' folder as for `Coco`. Labels 1, 2, ... are the
    categories with ``isthing`` in order of their ids, stuff 1, 2, ... the others in theirs.

    Opening reads the json and the heads of the image and PNG files, whose sizes are kept in the
    cache folder; it decodes nothing. Boxes and areas of the targets are those of the segments'
    pixels.

    Args:
        root: the folder.
        split: ``"train"``, ``"val"``, or what else stands in the place of SPLIT.
        transform, seed: see `InstanceDataset`.
        length: use at most this many images, spread evenly over the ids.

    Raises:
        DatasetError: the json cannot be read, or entries or files are bad; all are named. On
            reading a sample: the ids of the PNG are not those of the json.
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
        self.title = f"coco-panoptic:{root} {split}"
        check_length(self.title, length)
        self.split = split
        path = first_there(self.title, "annotations", root, [f.format(split) for f in _FILES])
        self._stamp = stamp_of(path)
        file = shown(path, root)
        maps = path.with_suffix("")
        if not maps.is_dir():
            raise DatasetError(f"{self.title}: no folder {shown(maps, root)} beside {file}")
        content = parse_file(path, root, self.title, _shorten)
        categories, problems = read_categories(content["categories"], file)
        super().__init__(
            categories,
            task="panoptic",
            training=split == "train",
            transform=transform,
            seed=seed,
        )
        folders = [folder.format(split) for folder in _FOLDERS]
        images, bad = read_images(content["images"], file, root, folders, self.title)
        problems += bad
        listed = {e["id"] for e in content["images"] if isinstance(e, dict) and is_id(e.get("id"))}
        kept, bad = _read_entries(
            content["annotations"], file, listed, {c["id"] for c in categories}
        )
        problems += bad
        del content
        kept = {number: kept[number] for number in images.ids.tolist() if number in kept}
        names = [name for name, _ in kept.values()]
        stored, bad = measure(maps, names, root)
        problems += bad
        sizes = dict(zip(images.ids.tolist(), images.sizes.tolist(), strict=True))
        for (number, (name, _)), size in zip(kept.items(), stored, strict=True):
            if size is not None and list(size) != sizes[number]:
                height, width = sizes[number]
                detail = f"map is {size[1]}x{size[0]}, image {number} is {width}x{height}"
                problems.append(Problem("mask of another size", shown(maps / name, root), detail))
        if problems:
            raise DatasetError(f"{self.title}: {len(problems)} bad entries or files", problems)
        things = np.array(self.category_ids, dtype=np.int64)
        if self.training:
            kept = {
                number: entry
                for number, entry in kept.items()
                if (np.isin(entry[1][:, 1], things) & (entry[1][:, 2] == 0)).any()
            }
        if not kept:
            raise DatasetError(f"{self.title}: no images with segments found in {file}")
        ids = list(kept)
        self._ids = np.array([ids[k] for k in choose(len(ids), length)], dtype=np.int64)
        places = images.find(self._ids)
        self._sizes = images.sizes[places]
        files = [images.names[k] for k in places]
        self._images = [images.folder / name for name in files]
        self._names = sample_names(files)
        entries = [kept[number] for number in self._ids.tolist()]
        self._maps = [maps / name for name, _ in entries]
        # One flat array for all images, which forked workers share without copying it.
        self._segments = np.concatenate([rows for _, rows in entries])
        self._bounds = np.cumsum([0, *(len(rows) for _, rows in entries)])

    def __len__(self) -> int:
        return len(self._ids)

    def sample_name(self, index: int) -> str:
        """The image's file name without suffix, folders joined by ``_``."""
        return self._names[index]

    def image_id(self, index: int) -> int:
        return int(self._ids[index])

    def image_size(self, index: int) -> tuple[int, int]:
        height, width = self._sizes[index].tolist()
        return height, width

    def identity(self) -> str:
        """The json's time and length, and which images are used."""
        return f"{self.title} {digest(self._stamp, self._ids.tolist())}"

    def load_image(self, index: int) -> Tensor:
        pixels = read_image(self._images[index])
        if pixels.shape[:2] != self.image_size(index):
            raise DatasetError(
                f"{self._images[index]}: the size changed since the data set was opened"
            )
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    def load(self, index: int) -> tuple[Tensor, Target]:
        return self.load_image(index), self._target(index)

    def load_training(self, index: int, generator: torch.Generator) -> tuple[Tensor, Target]:
        """See `InstanceDataset`; of more masks than ``mask_limit`` allows, some drawn at random."""
        return self.load_image(index), self._target(index, generator)

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """See `InstanceDataset`; only the things."""
        return encode_target(self._target(index), self.category_ids)

    def panoptic(self, index: int) -> tuple[Tensor, list[Segment]]:
        """See `InstanceDataset`; boxes and areas as the json has them."""
        ids, rows = self._read(index)
        segments = []
        for number, category, crowd, area, *box in rows.tolist():
            if area == _MISSING:
                mask = torch.from_numpy(ids == number)
                x1, y1, x2, y2 = (int(v) for v in mask_boxes(mask[None])[0])
                area, box = int(mask.sum()), [x1, y1, x2 - x1, y2 - y1]
            segments.append(
                {
                    "id": number,
                    "category_id": category,
                    "iscrowd": crowd,
                    "area": area,
                    "bbox": box,
                }
            )
        return torch.from_numpy(ids), segments

    def _target(self, index: int, generator: torch.Generator | None = None) -> Target:
        """The target of sample ``index``; with a generator, as training has it."""
        ids, rows = self._read(index)
        label = find_sorted(np.array(self.category_ids, dtype=np.int64), rows[:, 1]) + 1
        stuff = find_sorted(np.array(self.stuff_ids, dtype=np.int64), rows[:, 1]) + 1
        things = np.flatnonzero(label)
        if generator is not None:
            things = things[rows[things, 2] == 0]
            things = things[draw_objects(len(things), self.most_masks(index), generator)]
        masks = np.empty((len(things), *ids.shape), dtype=np.uint8)
        for k, number in enumerate(rows[things, 0]):
            np.equal(ids, number, out=masks[k], casting="unsafe")
        target = make_target(
            torch.from_numpy(masks),
            label[things].tolist(),
            rows[things, 2].astype(bool).tolist(),
            self.image_id(index),
        )
        order = np.argsort(rows[:, 0])
        place = find_sorted(rows[order, 0], ids.ravel())
        # A thing's stuff is 0, which is what the target has for things.
        table = np.append(stuff[order], self.ignore_index)
        target["semantic"] = torch.from_numpy(table[place].reshape(ids.shape))
        return target

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids (H, W) int64 and the rows (s, 8) of sample ``index``, which must agree."""
        path = self._maps[index]
        try:
            colours, _ = decode_labels(path)
        except UnreadableError as error:
            raise DatasetError(f"cannot read panoptic map {path}: {error}") from error
        if colours.ndim != 3:
            raise DatasetError(f"{path}: a panoptic map must be in RGB, got one channel")
        if colours.shape[:2] != self.image_size(index):
            raise DatasetError(f"{path}: the size changed since the data set was opened")
        ids = colours[..., 0].astype(np.int64)
        ids += colours[..., 1].astype(np.int64) << 8
        ids += colours[..., 2].astype(np.int64) << 16
        rows = self._segments[self._bounds[index] : self._bounds[index + 1]]
        found = np.unique(ids)
        unknown = np.setdiff1d(found[found > 0], rows[:, 0]).tolist()
        unseen = np.setdiff1d(rows[:, 0], found).tolist()
        if unknown or unseen:
            raise DatasetError(
                f"{path}: its ids must be those of segments_info of image {self.image_id(index)}; "
                f"without an entry: {unknown[:8]}; without a pixel: {unseen[:8]}"
            )
        return ids, rows


def _shorten(entry: dict[str, Any]) -> Any:
    """An ``object_hook``: a segment as 8 int64, if it is a sound one."""
    if "category_id" not in entry or "image_id" in entry:
        return entry
    box, area = entry.get("bbox"), entry.get("area")
    whole = isinstance(box, list) and len(box) == 4 and all(map(is_number, [area, *box]))
    values = [entry.get("id"), entry["category_id"], int(bool(entry.get("iscrowd", 0)))]
    values += map(int, [area, *box]) if whole else [_MISSING] * 5
    return array("q", values) if all(map(is_id, values)) else entry


def _read_entries(
    entries: list[Any], file: str, listed: set[int], category_ids: set[int]
) -> tuple[dict[int, tuple[str, np.ndarray]], list[Problem]]:
    """The PNG's name and the rows of segments of each image that has an annotation."""
    problems = []
    kept: dict[int, tuple[str, np.ndarray]] = {}

    def bad(kind: str, detail: str) -> None:
        problems.append(Problem(kind, file, detail))

    for position, entry in enumerate(entries):
        number = entry.get("image_id") if isinstance(entry, dict) else None
        if not is_id(number):
            bad("bad annotation", f"annotation entry {position}: must have an integer image_id")
            continue
        where = f"annotation of image {number}"
        name, segments = entry.get("file_name"), entry.get("segments_info")
        if number in kept:
            bad("duplicate id", f"{where} again")
            continue
        if not isinstance(name, str) or not name:
            bad("bad annotation", f"{where}: must have a file_name")
            continue
        if not isinstance(segments, list):
            bad("no segmentation", f"{where}: must have a list segments_info")
            continue
        if number not in listed:
            bad("unknown image", where)
        rows = [s for s in segments if isinstance(s, array)]
        for segment in segments:
            if not isinstance(segment, array):
                bad("bad segment", f"{where}: must have integers id and category_id: {segment}")
        seen: set[int] = set()
        for segment in rows:
            which = f"{where}: segment {segment[0]}"
            if not 0 < segment[0] < 1 << 24:
                bad("bad segment", f"{which}: ids must be in 1 .. 16777215")
            if segment[0] in seen:
                bad("duplicate id", f"{which} again")
            if segment[1] not in category_ids:
                bad("unknown category", f"{which}: category {segment[1]}")
            if segment[3] != _MISSING and (segment[3] <= 0 or min(segment[6:8]) <= 0):
                bad("box without area", f"{which}: area {segment[3]}, bbox {list(segment[4:])}")
            seen.add(segment[0])
        kept[number] = (name, np.array(rows, dtype=np.int64).reshape(-1, len(_NUMBERS)))
    return kept, problems
