"""Run-length encoded masks through pycocotools, which is imported when one is first needed."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segkern.data._errors import DatasetError

Rle = dict[str, Any]
"""``{"size": [height, width], "counts": str}``, COCO's compressed form as json has it."""

_PIXELS_AT_ONCE = 1 << 26
"""Masks are encoded in groups of at most this many pixels, or one at a time."""


def coco_masks() -> ModuleType:
    """The module ``pycocotools.mask``.

    Raises:
        DatasetError: it is not installed; the message says how to get it.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise DatasetError(
            "COCO masks and scores need pycocotools, which cannot be imported "
            f"({error}); pip install 'segkern[coco]'"
        ) from error
    return mask


def encode_masks(masks: Tensor, threshold: float = 0.5) -> list[Rle]:
    """Masks as compressed RLE.

    Args:
        masks: (n, H, W), on any device. Of bools and integers what is not zero is inside.
        threshold: of floating-point masks what is at least this is inside.

    Returns:
        one dict of ``size`` and ``counts`` per mask.
    """
    if masks.dim() != 3:
        raise ValueError(f"encode_masks: masks must be (n, H, W), got {tuple(masks.shape)}")
    number, height, width = masks.shape
    if height * width == 0:
        return [{"size": [height, width], "counts": ""} for _ in range(number)]
    encode = coco_masks().encode
    group = max(_PIXELS_AT_ONCE // (height * width), 1)
    found: list[Rle] = []
    for start in range(0, number, group):
        part = masks[start : start + group]
        part = part >= threshold if part.is_floating_point() else part != 0
        part = part.to("cpu", torch.uint8).numpy()
        # The encoder wants (H, W, n) in Fortran's order: columns of the mask one after another.
        found += encode(np.asfortranarray(part.transpose(1, 2, 0)))
    return [_as_json(rle) for rle in found]


def decode_masks(segmentations: Sequence[Any], height: int, width: int) -> Tensor:
    """Masks of polygons and of RLE, compressed or not.

    Args:
        segmentations: for each mask a list of polygons [x1, y1, x2, y2, ...], or a dict of ``size``
            and ``counts``, a list of numbers or a string.
        height, width: of the image.

    Returns:
        (n, H, W) uint8.

    Raises:
        ValueError: an RLE is of another size or cannot be decoded.
    """
    masks = torch.zeros(len(segmentations), height, width, dtype=torch.uint8)
    if not segmentations:
        return masks
    decode = coco_masks().decode
    for index, segmentation in enumerate(segmentations):
        rle = as_rle(segmentation, height, width)
        masks[index] = torch.from_numpy(decode(rle))
    return masks


def as_rle(segmentation: Any, height: int, width: int) -> Rle:
    """One segmentation of a COCO file as a single compressed RLE; see `decode_masks`."""
    module = coco_masks()
    if not isinstance(segmentation, dict):
        parts = module.frPyObjects([list(map(float, p)) for p in segmentation], height, width)
        return _as_json(module.merge(parts))
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"RLE is of size {list(segmentation['size'])}, not {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, (str, bytes)):
        return _as_json(segmentation)
    return _as_json(module.frPyObjects({"size": [height, width], "counts": counts}, height, width))


def _as_json(rle: Rle) -> Rle:
    counts = rle["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(v) for v in rle["size"]], "counts": text}
