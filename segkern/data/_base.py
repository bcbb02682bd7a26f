"""What every data set has in common: the item, its randomness and its description."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from segkern.data._samples import SampledDataset

IGNORE_INDEX = 255
"""The label of pixels that count neither in the loss nor in the metrics."""

Transform = Callable[..., tuple[Tensor, Tensor]]


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """The 63-bit seed of one sample's randomness: a hash of the three numbers.

    It depends on nothing else, so neither the number of workers nor the order of visits matters.
    """
    state = np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)
    return int(state[0] >> 1)


class SegmentationDataset(SampledDataset):
    """Base of all data sets: images with one class index per pixel.

    ``dataset[i]`` is ``(image, mask)``: the image (3, H, W) uint8 RGB, the mask (H, W) int64 with
    classes 0 .. num_classes - 1 and 255 where a pixel is to be ignored; both after ``transform``.

    Args:
        class_names: one name per class.
        palette: (num_classes, 3) uint8 colours for pictures of label maps.
        transform: called as ``transform(image, mask, generator=g)`` with uint8 tensors, where the
            generator's seed is a function of (seed, epoch, index) alone. See `segkern.transforms`.
            Several take turns by epoch.
        seed: the base seed of all random choices.

    Attributes:
        num_classes (int), class_names (list[str]), palette (numpy uint8), ignore_index (255).
    """

    ignore_index = IGNORE_INDEX

    def __init__(
        self,
        class_names: Sequence[str],
        palette: np.ndarray,
        *,
        transform: Transform | Sequence[Transform] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(transform, seed)
        self.class_names = list(class_names)
        self.num_classes = len(self.class_names)
        self.palette = np.asarray(palette, dtype=np.uint8).reshape(self.num_classes, 3)

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Sample ``index`` before the transform: (3, H, W) uint8 and (H, W) uint8."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.check_index(index)
        image, mask = self.load(index)
        transform = self.transform
        if isinstance(transform, Sequence):
            transform = transform[self.epoch % len(transform)]
        if transform is not None:
            generator = torch.Generator()
            generator.manual_seed(sample_seed(self.seed, self.epoch, index))
            image, mask = transform(image, mask, generator=generator)
        return image, mask.to(torch.int64)


def default_palette(num_classes: int) -> np.ndarray:
    """The PASCAL VOC colours for ``num_classes`` classes: (num_classes, 3) uint8."""
    labels = np.arange(num_classes)
    colours = np.zeros((num_classes, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((labels >> channel) & 1) << (7 - bit)).astype(np.uint8)
        labels >>= 3
    return colours
