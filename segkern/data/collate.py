"""Putting samples together to a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segkern.data._instances import Target


def collate(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Stack samples to images (N, 3, H, W) uint8 and masks (N, H, W) int64.

    Raises:
        ValueError: the samples differ in size.
    """
    shapes = [tuple(mask.shape) for _, mask in samples]
    for position, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                "collate: images of a batch must have one size, got "
                f"{_size(shapes[0])} at position 0 and {_size(shape)} at position {position}; "
                "set a crop or a resize, or use a batch size of 1"
            )
    return torch.stack([image for image, _ in samples]), torch.stack([mask for _, mask in samples])


def collate_instances(
    samples: Sequence[tuple[Tensor, Target]],
) -> tuple[list[Tensor], list[Target]]:
    """Images (3, H, W) of any sizes and their targets as two lists; see `InstanceDataset`."""
    return [image for image, _ in samples], [target for _, target in samples]


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
