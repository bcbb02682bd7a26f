"""Networks of instances applied to images, and their masks at any size, one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segkern.engine.loading import Trained
from segkern.models._preprocess import preprocess

# More than networks make of an image themselves. A hundred soft masks at this size are 0.5 GB.
WORKING_PIXELS = 1280 * 1024
# Rows of a mask that are enlarged at once.
_ROWS = 256

Result = Mapping[str, Any]


def network_inputs(images: Sequence[Tensor], mode: str, device: torch.device) -> list[Tensor]:
    """Images (3, H, W) uint8 RGB as the network takes them, on its device."""
    return [preprocess(image.to(device), mode) for image in images]


@torch.inference_mode()
def detect(trained: Trained, images: Sequence[Tensor]) -> list[dict[str, Any]]:
    """What the network finds in images (3, H, W) uint8 RGB: its own dicts, masks as bool."""
    inputs = network_inputs(images, trained.card["input"], trained.device)
    return [with_hard_masks(result) for result in trained.network(inputs)]


def with_hard_masks(result: Result) -> dict[str, Any]:
    """A result with its masks, soft ones (n, 1, H, W) too, as (n, H, W) bool: at least 0.5."""
    masks = _one_channel(result["masks"])
    hard = masks >= 0.5 if masks.is_floating_point() else masks.bool()
    return {**result, "masks": hard}


def _one_channel(masks: Tensor) -> Tensor:
    return masks[:, 0] if masks.dim() == 4 else masks


@dataclass(frozen=True)
class Instance:
    """An object in an image of `size` (H, W).

    label: 1 for the first class. score: None in a truth. box: x1, y1, x2, y2 in pixels of the
    image. values: (h, w) float32 or bool, the mask where it is not 0, with its corner at (top,
    left) of an image of `seen` (H, W), the size the network saw.
    """

    label: int
    score: float | None
    box: tuple[float, float, float, float]
    size: tuple[int, int]
    seen: tuple[int, int]
    top: int
    left: int
    values: np.ndarray

    def region(self) -> tuple[int, int, np.ndarray]:
        """The mask at the image's size: row and column of its corner, and (h, w) bool there."""
        if self.size == self.seen or not self.values.size:
            return self.top, self.left, self.values >= 0.5
        (top, rows), (left, columns) = (
            _places(start, count, to, of)
            for start, count, to, of in zip(
                (self.top, self.left), self.values.shape, self.size, self.seen, strict=True
            )
        )
        values = self.values.astype(np.float32)
        return top, left, _enlarged(values, rows, columns)


Region = tuple[int, int, np.ndarray]


def whole_mask(region: Region, size: tuple[int, int]) -> np.ndarray:
    """The mask of a region in an image of a size, (H, W) bool."""
    top, left, part = region
    whole = np.zeros(size, dtype=bool)
    whole[top : top + part.shape[0], left : left + part.shape[1]] = part
    return whole


def _places(start: int, count: int, to: int, of: int) -> tuple[int, np.ndarray]:
    """First pixel of `to` that a stretch of `of` covers, and where each one lies in the stretch."""
    scale = to / of
    first, end = int(start * scale), min(to, int(np.ceil((start + count) * scale)))
    at = (np.arange(first, end) + 0.5) / scale - 0.5 - start
    return first, np.clip(at, 0, count - 1).astype(np.float32)


def _enlarged(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Whether `values`, interpolated bilinearly at rows x columns, are at least 0.5."""
    left = columns.astype(np.int64)
    right = np.minimum(left + 1, values.shape[1] - 1)
    part = columns - left
    found = np.empty((len(rows), len(columns)), dtype=bool)
    for start in range(0, len(rows), _ROWS):
        at = rows[start : start + _ROWS]
        above = at.astype(np.int64)
        below = np.minimum(above + 1, values.shape[0] - 1)
        weight = (at - above)[:, None]
        lines = values[above] * (1 - weight) + values[below] * weight
        found[start : start + _ROWS] = lines[:, left] * (1 - part) + lines[:, right] * part >= 0.5
    return found


class Instances(Sequence[Instance]):
    """The objects of a network's result or of a truth, in their order, each made when asked for.

    seen: (H, W) of the image that the network saw; size: of the image itself. least: objects of a
    lower score are left out.
    """

    def __init__(
        self, result: Result, seen: tuple[int, int], size: tuple[int, int], least: float = 0.0
    ) -> None:
        self.seen = (int(seen[0]), int(seen[1]))
        self.size = (int(size[0]), int(size[1]))
        self._masks = _one_channel(result["masks"])
        self._labels = result["labels"].tolist()
        scores = result["scores"].tolist() if "scores" in result else [None] * len(self._labels)
        self._scores = scores
        factors = [self.size[1] / self.seen[1], self.size[0] / self.seen[0]] * 2
        boxes = result["boxes"].cpu().double() * torch.tensor(factors, dtype=torch.float64)
        self._boxes = boxes.tolist()
        self._kept = [i for i, score in enumerate(scores) if score is None or score >= least]

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, number: int) -> Instance:
        index = self._kept[number]
        top, left, values = _crop(self._masks[index])
        return Instance(
            self._labels[index],
            self._scores[index],
            tuple(self._boxes[index]),
            self.size,
            self.seen,
            top,
            left,
            values,
        )


def _crop(mask: Tensor) -> tuple[int, int, np.ndarray]:
    """The part of a mask (H, W) that has all values above one half, a pixel around it included."""
    hard = mask >= 0.5 if mask.is_floating_point() else mask != 0
    corners = []
    for axis in (1, 0):
        places = hard.any(axis).nonzero()[:, 0]
        if not len(places):
            return 0, 0, np.zeros((0, 0), dtype=bool)
        corners.append((max(int(places[0]) - 1, 0), int(places[-1]) + 2))
    (top, bottom), (left, right) = corners
    part = (mask if mask.is_floating_point() else hard)[top:bottom, left:right]
    return top, left, (part.float() if part.is_floating_point() else part).cpu().numpy()


def reduced(image: np.ndarray, pixels: int) -> np.ndarray:
    """An image (H, W, 3) uint8 brought down to at most so many pixels; smaller ones as they are."""
    height, width = image.shape[:2]
    scale = (pixels / (height * width)) ** 0.5
    if scale >= 1:
        return image
    size = max(1, int(width * scale)), max(1, int(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


@torch.inference_mode()
def find(trained: Trained, images: Sequence[np.ndarray]) -> list[tuple[dict[str, Any], Any]]:
    """Results for images (H, W, 3) uint8 RGB with the size (H, W) that the network saw each at."""
    small = [reduced(image, WORKING_PIXELS) for image in images]
    tensors = [torch.from_numpy(array.transpose(2, 0, 1).copy()) for array in small]
    inputs = network_inputs(tensors, trained.card["input"], trained.device)
    found = trained.network(inputs)
    return [(result, array.shape[:2]) for result, array in zip(found, small, strict=True)]
