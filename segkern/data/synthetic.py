"""Street-like scenes drawn on the fly: nothing to download, nothing to store."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from segkern.data._base import SegmentationDataset, Transform
from segkern.data._errors import DatasetError
from segkern.data._street import draw_street
from segkern.data.camvid import CAMVID_CLASSES, CAMVID_PALETTE

SPLIT_LENGTHS = {"train": 512, "val": 128, "test": 128}
DEFAULT_SIZE = (240, 320)
SMALLEST_SIDE = 16
_DRAWING = 1
"""Raised when the same numbers would no longer give the same scene."""


class Synthetic(SegmentationDataset):
    """Perspective streets with CamVid's 11 classes: textured house fronts, poles one pixel wide,
    trees, cars, people and riders that hide each other, shadows, haze, noise, and void regions.

    A scene is a function of (seed, split, index), in the training split also of the epoch, so that
    training sees new scenes in every epoch. The splits share no scene.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: (H, W), both at least 16; None is 240x320.
        transform, seed: see `SegmentationDataset`.
        length: number of scenes; None is 512 for training and 128 for the others.

    Raises:
        DatasetError: no such split, or the size is too small.
    """

    def __init__(
        self,
        split: str,
        *,
        size: tuple[int, int] | None = None,
        transform: Transform | None = None,
        seed: int = 0,
        length: int | None = None,
    ) -> None:
        super().__init__(CAMVID_CLASSES, CAMVID_PALETTE, transform=transform, seed=seed)
        if split not in SPLIT_LENGTHS:
            raise DatasetError(
                f"synthetic: split must be one of {', '.join(SPLIT_LENGTHS)}, got {split!r}"
            )
        self.split = split
        self.size = DEFAULT_SIZE if size is None else (int(size[0]), int(size[1]))
        if min(self.size) < SMALLEST_SIDE:
            raise DatasetError(
                f"synthetic: size must be at least {SMALLEST_SIDE}x{SMALLEST_SIDE}, "
                f"got {self.size[0]}x{self.size[1]}"
            )
        if length is not None and length < 1:
            raise ValueError(f"synthetic: length must be at least 1, got {length}")
        self._length = SPLIT_LENGTHS[split] if length is None else length

    def __len__(self) -> int:
        return self._length

    def sample_name(self, index: int) -> str:
        """``val_00007`` and the like."""
        return f"{self.split}_{index:05d}"

    def identity(self) -> str:
        """Everything that the scenes depend on, the epoch apart."""
        height, width = self.size
        scene = f"{height}x{width} {self.split} seed {self.seed} length {len(self)}"
        return f"synthetic {_DRAWING} {scene}"

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Draw scene ``index``: (3, H, W) uint8 and (H, W) uint8."""
        split = list(SPLIT_LENGTHS).index(self.split)
        epoch = self.epoch if self.split == "train" else 0
        rng = np.random.default_rng((self.seed, split, epoch, index))
        image, mask = draw_street(*self.size, rng)
        return torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.from_numpy(mask)
