"""From the text after ``--data`` to a data set."""

from __future__ import annotations

import re
from pathlib import Path

from segkern.data._base import SegmentationDataset, Transform
from segkern.data._errors import DatasetError
from segkern.data._instances import InstanceDataset, InstanceTransform
from segkern.data.camvid import CamVid
from segkern.data.cityscapes import Cityscapes
from segkern.data.coco import Coco
from segkern.data.coco_panoptic import CocoPanoptic
from segkern.data.folder import Folder
from segkern.data.synthetic import Synthetic
from segkern.data.synthetic_instances import SyntheticInstances
from segkern.data.voc import VOC
from segkern.data.voc_instances import VOCInstances

FORMS = """known forms are
  synthetic         street-like scenes drawn on the fly, 240x320
  synthetic:HxW     the same at H x W pixels
  camvid:DIR        CamVid as the SegNet tutorial ships it: DIR/train, DIR/trainannot, DIR/val, ...
  voc:DIR           PASCAL VOC 2012: DIR/JPEGImages, DIR/SegmentationClass, DIR/ImageSets; train is
                    trainaug.txt where that list is there
  cityscapes:DIR    Cityscapes, 19 classes: DIR/leftImg8bit, DIR/gtFine
  folder:DIR        your own: DIR/images and DIR/masks, optional train/ and val/ in both
of single objects
  coco:DIR                    COCO 2017 or own data in its form: DIR/train2017, ... and
                              DIR/annotations/instances_train2017.json, ...
  voc-instances:DIR           PASCAL VOC 2012's objects: DIR/SegmentationObject beside voc:DIR's
  synthetic-instances[:HxW]   balls, crates, cones and rings drawn on the fly, 128x128
of objects and background
  coco-panoptic:DIR           DIR/annotations/panoptic_train2017.json and the folder of its name,
                              DIR/train2017, ...
  synthetic-panoptic[:HxW]    the same with sky, hills, field and water"""
"""The list shown where a specification is not understood."""

_OPENERS = {"camvid": CamVid, "voc": VOC, "cityscapes": Cityscapes, "folder": Folder}
_INSTANCE_OPENERS = {
    "coco": Coco,
    "coco-panoptic": CocoPanoptic,
    "voc-instances": VOCInstances,
}
_DRAWN = {"synthetic-instances": "instance", "synthetic-panoptic": "panoptic"}


def open_dataset(
    spec: str,
    split: str,
    *,
    transform: Transform | InstanceTransform | None = None,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    length: int | None = None,
    cache_images: bool = False,
) -> SegmentationDataset | InstanceDataset:
    """Open a data set by its specification, and check all of its files.

    Args:
        spec: ``"synthetic"``, ``"synthetic:HxW"``, ``"camvid:DIR"``, ``"voc:DIR"``,
            ``"cityscapes:DIR"`` or ``"folder:DIR"``; of instances ``"coco:DIR"``,
            ``"voc-instances:DIR"`` or ``"synthetic-instances[:HxW]"``; panoptic
            ``"coco-panoptic:DIR"`` or ``"synthetic-panoptic[:HxW]"``.
        split: ``"train"`` or ``"val"``, or ``"test"`` where there is one.
        transform: see `SegmentationDataset`, or `InstanceDataset`.
        seed: base seed of all random choices; it does not move the border between the splits.
        size: (H, W) of the samples: drawn at this size, or resized to it on loading.
        length: at most this many samples; for ``synthetic`` the number of samples.
        cache_images: keep the decoded files in memory (4 bytes a pixel: 254 MB for CamVid's
            training split).

    Returns:
        the data set: an `InstanceDataset` for the forms of instances and panoptic segments.

    Raises:
        DatasetError: the specification is not understood, or files are bad; all of them are named.

    Example:
        >>> image, mask = open_dataset("synthetic:60x80", "val")[0]
        >>> image.shape, mask.dtype
        (torch.Size([3, 60, 80]), torch.int64)
    """
    kind, _, rest = spec.partition(":")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"open_dataset: size must be (H, W) with both at least 1, got {size}")
    if kind == "synthetic":
        drawn = size if size is not None else _parse_size(spec, rest)
        return Synthetic(split, size=drawn, transform=transform, seed=seed, length=length)
    if kind in _DRAWN:
        drawn = size if size is not None else _parse_size(spec, rest)
        return SyntheticInstances(
            split, task=_DRAWN[kind], size=drawn, transform=transform, seed=seed, length=length
        )
    if kind not in _OPENERS and kind not in _INSTANCE_OPENERS:
        raise DatasetError(f"open_dataset: spec must name a data set, got {spec!r}; {FORMS}")
    if not rest:
        raise DatasetError(f"open_dataset: spec must name a folder, got {spec!r}; {FORMS}")
    root = Path(rest).expanduser()
    if not root.is_dir():
        raise DatasetError(f"open_dataset: no folder {root} (from {spec!r}); {FORMS}")
    if kind in _INSTANCE_OPENERS:
        if size is not None or cache_images:
            raise DatasetError(
                f"open_dataset: size must be None and cache_images False for {kind}:DIR, whose "
                f"images keep their sizes, got {size} and {cache_images}"
            )
        return _INSTANCE_OPENERS[kind](root, split, transform=transform, seed=seed, length=length)
    return _OPENERS[kind](
        root,
        split,
        transform=transform,
        seed=seed,
        size=size,
        length=length,
        cache_images=cache_images,
    )


def _parse_size(spec: str, text: str) -> tuple[int, int] | None:
    if not text and not spec.endswith(":"):
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise DatasetError(
            f"open_dataset: the size in spec must be HxW as in {spec.partition(':')[0]}:240x320, "
            f"got {spec!r}; {FORMS}"
        )
    return int(match[1]), int(match[2])
