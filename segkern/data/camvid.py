"""CamVid road scenes in the form the SegNet tutorial ships them (Brostow et al.; 11 classes)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segkern.data._base import IGNORE_INDEX, Transform
from segkern.data._errors import DatasetError
from segkern.data._pairs import PairDataset, list_files, pair_files
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
        transform, seed, size, length, cache_images: see `PairDataset`.

    Raises:
        DatasetError: a folder is missing, or any file is bad; all bad files are named.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        transform: Transform | None = None,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        length: int | None = None,
        cache_images: bool = False,
    ) -> None:
        root = Path(root)
        images, masks = root / split, root / f"{split}annot"
        missing = [str(folder) for folder in (images, masks) if not folder.is_dir()]
        if missing:
            raise DatasetError(
                f"camvid:{root} {split}: no folder {' and no folder '.join(missing)}; "
                f"wanted are the folders {split}/ with images and {split}annot/ with masks"
            )
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
            title=f"camvid:{root} {split}",
            class_names=CAMVID_CLASSES,
            palette=CAMVID_PALETTE,
            label_map={CAMVID_VOID: IGNORE_INDEX},
            transform=transform,
            seed=seed,
            size=size,
            length=length,
            cache_images=cache_images,
        )
