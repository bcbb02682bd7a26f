"""CamVid road scenes in the form the SegNet tutorial ships them (Brostow et al.; 11 classes)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from segkern.data._base import IGNORE_INDEX
from segkern.data._pairs import PairDataset, check_folders, list_files, pair_files
from segkern.data.image_io import IMAGE_SUFFIXES, MASK_SUFFIXES

CAMVID_CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
CAMVID_VOID = 11
"""The label of unlabelled pixels in the files; it becomes 255."""

CAMVID_PALETTE = np.array(
    [
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (0, 0, 192),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ],
    dtype=np.uint8,
)
"""The colours of the CamVid database."""


class CamVid(PairDataset):
    """``DIR/train`` and ``DIR/trainannot``, ``DIR/val`` and ``DIR/valannot``, ``test`` if there.

    Masks hold the classes 0 .. 10 and 11 for void, which becomes 255.

    Args:
        root: the folder.
        split: ``"train"``, ``"val"`` or ``"test"``.
        options: transform, seed, size, length and cache_images, see `PairDataset`.

    Raises:
        DatasetError: a folder is missing, or any file is bad; all bad files are named.
    """

    def __init__(self, root: str | Path, split: str, **options: Any) -> None:
        root = Path(root)
        images, masks = root / split, root / f"{split}annot"
        title = f"camvid:{root} {split}"
        wanted = f"the folders {split}/ with images and {split}annot/ with masks"
        check_folders(title, (images, masks), wanted)
        pairs, problems = pair_files(
            images,
            list_files(images, IMAGE_SUFFIXES),
            masks,
            list_files(masks, MASK_SUFFIXES),
            root,
        )
        super().__init__(
            pairs,
            problems,
            root=root,
            title=title,
            class_names=CAMVID_CLASSES,
            palette=CAMVID_PALETTE,
            label_map={CAMVID_VOID: IGNORE_INDEX},
            **options,
        )
