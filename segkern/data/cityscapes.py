"""Cityscapes street scenes with the 19 classes of its benchmark (Cordts et al.)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from segkern.data._base import IGNORE_INDEX
from segkern.data._pairs import Pair, PairDataset, check_folders, list_files, pair_files

# Label id in the files, name and colour of each class, in the order of the training ids.
_TABLE = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)

CITYSCAPES_CLASSES = tuple(name for _, name, _ in _TABLE)
CITYSCAPES_PALETTE = np.array([colour for _, _, colour in _TABLE], dtype=np.uint8)
"""The colours of the data set."""

_LABEL_IDS = 34
"""Label ids run from 0 to 33; -1, the licence plates, is 255 in the files."""

LABEL_MAP = {i: IGNORE_INDEX for i in range(_LABEL_IDS)} | {
    label: index for index, (label, _, _) in enumerate(_TABLE)
}
"""From label ids to classes; those that the benchmark leaves out become 255."""

_IMAGE_END = "_leftImg8bit.png"
_MASK_END = "_gtFine_labelIds.png"


class Cityscapes(PairDataset):
    """``DIR/leftImg8bit/SPLIT/CITY/*.png`` and ``DIR/gtFine/SPLIT/CITY/*_gtFine_labelIds.png``.

    Masks hold label ids, which become the 19 training classes, and 255 for all others.

    Args:
        root: the folder.
        split: ``"train"``, ``"val"`` or ``"test"``.
        options: transform, seed, size, length and cache_images, see `PairDataset`.

    Raises:
        DatasetError: a folder is missing, or any file is bad; all bad files are named.
    """

    def __init__(self, root: str | Path, split: str, **options: Any) -> None:
        root = Path(root)
        images, masks = root / "leftImg8bit" / split, root / "gtFine" / split
        title = f"cityscapes:{root} {split}"
        wanted = f"leftImg8bit/{split}/CITY/*{_IMAGE_END} and gtFine/{split}/CITY/*{_MASK_END}"
        check_folders(title, (images, masks), wanted)
        pairs, problems = pair_files(
            images,
            _ending(images, _IMAGE_END),
            masks,
            _ending(masks, _MASK_END),
            root,
            ends=(_IMAGE_END, _MASK_END),
        )
        # Frames of all cities have different names.
        pairs = [Pair(Path(pair.name).name, pair.image, pair.mask) for pair in pairs]
        super().__init__(
            pairs,
            problems,
            root=root,
            title=title,
            class_names=CITYSCAPES_CLASSES,
            palette=CITYSCAPES_PALETTE,
            label_map=LABEL_MAP,
            **options,
        )


def _ending(folder: Path, end: str) -> list[Path]:
    return [path for path in list_files(folder, frozenset({".png"})) if path.name.endswith(end)]
