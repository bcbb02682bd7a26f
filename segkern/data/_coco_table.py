"""The annotations of a COCO instances file in flat arrays, checked without decoding a mask.

As Python objects the annotations of COCO's training set take some gigabytes, and more in each
worker process, since counting references copies shared pages. Here they take about as much as the
file's numbers.
"""

from __future__ import annotations

import itertools
import math
from array import array
from typing import Any

import numpy as np

from segkern.data._coco_json import Images, find_sorted, is_id, is_number
from segkern.data._errors import Problem

POLYGONS, STRING, COUNTS = 0, 1, 2
"""How a segmentation is stored: polygons, compressed RLE, or RLE as a list of numbers."""

RELEASED_WITHOUT_HEIGHT = frozenset({200365, 550395})
"""Images of train2017 that have one box without height each, as released."""

_LARGEST_GROUP = 7
"""Characters of one count in an RLE string: 35 bits are more than an image has pixels."""


class AnnotationTable:
    """Annotations one after another in the file's order.

    `take` is an ``object_hook`` for json: each object that has an ``image_id`` is added and stands
    in the file's list as its number in the table.

    Attributes:
        number, image_id, category_id (a,) int64: as in the file. crowd (a,) bool. area (a,)
        float64, NaN where missing. box (a, 4) float64, x y width height, NaN where missing. All are
        there after `check`.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self._ids = array("q")
        self._crowds = array("b")
        self._areas = array("d")
        self._boxes = array("d")
        self._kinds = array("b")
        self._sizes = array("q")
        self._first_piece = array("q", [0])
        self._lengths = array("q")
        self._coordinates = array("d")
        self._strings = bytearray()

    def __len__(self) -> int:
        return len(self._kinds)

    def take(self, entry: dict[str, Any]) -> Any:
        """Add an annotation; anything else is handed back as it is."""
        if "image_id" not in entry:
            return entry
        where = f"annotation {entry.get('id', '?')}"
        fields = [entry.get(name) for name in ("id", "image_id", "category_id")]
        if not all(map(is_id, fields)):
            self._bad("bad annotation", f"{where}: id, image_id, category_id are {fields}")
            return -1
        if not entry.get("segmentation"):
            self._bad("no segmentation", f"{where} (image {entry['image_id']})")
            return -1
        box, area = entry.get("bbox"), entry.get("area")
        if box is not None and not _numbers(box, 4):
            self._bad("bad box", f"{where}: bbox must be four numbers, got {box}")
            return -1
        fault = self._add_segmentation(entry["segmentation"])
        if fault:
            self._bad("bad segmentation", f"{where}: {fault}")
            return -1
        self._ids.extend(fields)
        self._crowds.append(1 if entry.get("iscrowd") else 0)
        self._areas.append(float(area) if is_number(area) else float("nan"))
        self._boxes.extend(map(float, box if box is not None else [float("nan")] * 4))
        return len(self) - 1

    def _bad(self, kind: str, detail: str) -> None:
        self.problems.append(Problem(kind, self.file, detail))

    def _add_segmentation(self, value: Any) -> str | None:
        """Store a segmentation, or say what is wrong with it and store nothing."""
        kind, size, pieces, text = POLYGONS, (0, 0), [], b""
        if isinstance(value, dict):
            size, counts = value.get("size"), value.get("counts")
            if not _numbers(size, 2) or not all(is_id(v) and v > 0 for v in size):
                return f"the size of an RLE must be two positive integers, got {size}"
            if isinstance(counts, str):
                kind, text = STRING, counts.encode("utf-8")
                total = counts_total(text)
            elif isinstance(counts, list) and all(is_id(c) and c >= 0 for c in counts):
                kind, pieces = COUNTS, [counts]
                total = sum(counts)
            else:
                return "the counts of an RLE must be a string or a list of integers"
            if total != size[0] * size[1]:
                found = "cannot be read" if total is None else f"cover {total} pixels"
                return f"the counts of an RLE of {size[0]} x {size[1]} pixels {found}"
        elif isinstance(value, list):
            pieces = [value] if is_number(value[0]) else value
            for piece in pieces:
                if not isinstance(piece, list) or len(piece) < 6 or len(piece) % 2:
                    return "a polygon must be a list of x, y of at least three points"
        else:
            return f"must be polygons or an RLE, got {type(value).__name__}"
        try:
            points = array("d", itertools.chain.from_iterable(pieces))
        except (TypeError, OverflowError):
            return "holds something that is no number"
        if not all(map(math.isfinite, points)):
            return "holds a number that is not finite"
        self._coordinates.extend(points)
        self._strings += text
        self._lengths.extend([len(text)] if kind == STRING else map(len, pieces))
        self._kinds.append(kind)
        self._sizes.extend(size)
        self._first_piece.append(len(self._lengths))
        return None

    def check(self, images: Images, known_images: np.ndarray, category_ids: list[int]) -> None:
        """Turn the columns into arrays, and note what does not fit images and categories.

        Sets ``image`` (a,), the position of each annotation's image in ``images`` or -1, and
        ``label`` (a,), the position of its category plus 1 or 0.

        Args:
            known_images: ids of all images in the file, those with faults of their own included.
        """
        self.number, self.image_id, self.category_id = _array(self._ids).reshape(-1, 3).T.copy()
        self.crowd = _array(self._crowds).astype(bool)
        self.area, self.box = _array(self._areas), _array(self._boxes).reshape(-1, 4)
        self.image = images.find(self.image_id)
        self.label = find_sorted(np.array(category_ids, dtype=np.int64), self.category_id) + 1
        self._note(self.label == 0, "unknown category", lambda k: f"category {self.category_id[k]}")
        there = np.isin(self.image_id, known_images)
        self._note(~there, "unknown image", lambda k: f"image {self.image_id[k]}")
        _, first = np.unique(self.number, return_index=True)
        again = np.ones(len(self), dtype=bool)
        again[first] = False
        self._note(again, "duplicate id", lambda k: f"again, of image {self.image_id[k]}")
        sizes = _array(self._sizes).reshape(-1, 2)
        own = images.sizes[self.image] if len(images.ids) else np.zeros_like(sizes)
        other = (self.image >= 0) & (sizes[:, 0] > 0) & (sizes != own).any(axis=1)
        self._note(
            other,
            "mask of another size",
            lambda k: f"mask is {sizes[k, 1]}x{sizes[k, 0]}, image {own[k, 1]}x{own[k, 0]}",
        )
        x, y, width, height = self.box.T
        empty = (width <= 0) | (height <= 0) | np.isinf(self.box).any(axis=1)
        released = empty & np.isin(self.image_id, list(RELEASED_WITHOUT_HEIGHT))
        self.image[released] = -1
        self._note(empty & ~released, "box without area", lambda k: f"bbox {self.box[k].tolist()}")
        outside = (x >= own[:, 1]) | (y >= own[:, 0]) | (x + width <= 0) | (y + height <= 0)
        outside &= (self.image >= 0) & ~empty
        self._note(outside, "box outside the image", lambda k: f"bbox {self.box[k].tolist()}")
        self._freeze()

    def _note(self, faulty: np.ndarray, kind: str, detail: Any) -> None:
        for k in np.flatnonzero(faulty):
            self._bad(kind, f"annotation {self.number[k]}: {detail(k)}")

    def _freeze(self) -> None:
        self.kind = _array(self._kinds)
        self.first_piece = _array(self._first_piece)
        self._points = _array(self._coordinates)
        lengths = _array(self._lengths)
        strings = np.repeat(self.kind, np.diff(self.first_piece)) == STRING
        self._in_points = np.concatenate([[0], np.cumsum(lengths * ~strings)])
        self._in_strings = np.concatenate([[0], np.cumsum(lengths * strings)])
        self._text = np.array(self._strings, dtype=np.uint8)
        self._size = _array(self._sizes).reshape(-1, 2)
        for name in ("_ids", "_crowds", "_areas", "_boxes", "_kinds", "_sizes"):
            delattr(self, name)
        del self._first_piece, self._lengths, self._coordinates, self._strings

    def segmentation(self, k: int) -> Any:
        """The segmentation of annotation ``k`` in the form the file had it."""
        pieces = range(self.first_piece[k], self.first_piece[k + 1])
        if self.kind[k] == STRING:
            piece = pieces[0]
            text = self._text[self._in_strings[piece] : self._in_strings[piece + 1]]
            return {"size": self._size[k].tolist(), "counts": text.tobytes().decode("utf-8")}
        values = [
            self._points[self._in_points[p] : self._in_points[p + 1]].tolist() for p in pieces
        ]
        if self.kind[k] == POLYGONS:
            return values
        return {"size": self._size[k].tolist(), "counts": [int(v) for v in values[0]]}


def counts_total(text: bytes) -> int | None:
    """The number of pixels that a compressed RLE covers; None where it is damaged.

    pycocotools leaves the rest of a mask undefined where the counts end early.
    """
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _LARGEST_GROUP:
        return None
    shift = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 31) << shift, starts)
    values -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    # From the fourth on, each is the difference from the count two before.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return None if values.min() < 0 else int(values.sum())


def _numbers(value: Any, number: int) -> bool:
    return isinstance(value, list) and len(value) == number and all(map(is_number, value))


def _array(column: array) -> np.ndarray:
    return np.array(column)
