"""Class weights against unequal class frequencies, computed from a data set's labels and cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from segkern.data._base import SegmentationDataset
from segkern.data._cache import cache_dir, digest, read_json, write_json
from segkern.data.camvid import CamVid

METHODS = ("median_frequency", "enet", "espnet", "segnet", "segnet_camvid")
ESPNET_CONSTANT = 1.10

SEGNET_CAMVID_WEIGHTS = (
    0.2595,
    0.1826,
    4.5640,
    0.1417,
    0.9051,
    0.3826,
    9.6446,
    1.8418,
    0.6823,
    6.2478,
    7.3614,
)
"""The vector in SegNet's released solver files for CamVid's 11 classes.

The released labels do not reproduce it (sign differs by a factor of 2.5), so it is kept verbatim
for reproducing SegNet; elsewhere `median_frequency_weights` follows the definition.
"""


@dataclass(frozen=True)
class ClassCounts:
    """What the weights are computed from.

    Args:
        pixels: pixels of each class over the data set.
        present: all pixels, ignored ones included, of the images that contain the class.
        void: ignored pixels over the data set.
        void_present: all pixels of the images that contain ignored pixels.
    """

    pixels: tuple[int, ...]
    present: tuple[int, ...]
    void: int = 0
    void_present: int = 0

    def with_void(self) -> ClassCounts:
        """Void counted as one more class, the last."""
        return ClassCounts((*self.pixels, self.void), (*self.present, self.void_present))


def count_classes(dataset: SegmentationDataset) -> ClassCounts:
    """Count the labels of all samples before the transform (of epoch 0 where samples vary)."""
    classes, ignore = dataset.num_classes, dataset.ignore_index
    known = dataset.label_counts() if hasattr(dataset, "label_counts") else None
    table = np.zeros((len(dataset), 256), dtype=np.int64)
    if known is not None:
        for row, counter in zip(table, known, strict=True):
            for label, number in counter.items():
                row[label] = number
    else:
        epoch = dataset.epoch
        dataset.set_epoch(0)
        for index in range(len(dataset)):
            mask = dataset.load(index)[1]
            table[index] = torch.bincount(mask.flatten(), minlength=256).numpy()
        dataset.set_epoch(epoch)
    total = table.sum(axis=1)
    pixels = table.sum(axis=0)
    present = ((table > 0) * total[:, None]).sum(axis=0)
    return ClassCounts(
        tuple(pixels[:classes].tolist()),
        tuple(present[:classes].tolist()),
        int(pixels[ignore]),
        int(present[ignore]),
    )


def median_frequency_weights(counts: ClassCounts) -> Tensor:
    """Median-frequency balancing (Eigen and Fergus, ICCV 2015; SegNet, PAMI 2017).

    freq(c) = pixels of c / all pixels, void included, of the images that contain c;
    w(c) = median(freq) / freq(c). A class without a pixel takes no part and has weight 0.

    Returns:
        (C,) float32.
    """
    pixels = np.asarray(counts.pixels, dtype=np.float64)
    present = np.asarray(counts.present, dtype=np.float64)
    seen = pixels > 0
    weights = np.zeros_like(pixels)
    if seen.any():
        frequency = pixels[seen] / present[seen]
        weights[seen] = np.median(frequency) / frequency
    return torch.from_numpy(weights).float()


def enet_weights(counts: ClassCounts, c: float = 1.02) -> Tensor:
    """1 / ln(c + p), p being the share of a class in all counted pixels (ENet, 2016).

    Args:
        counts: the pixel counts; use ``counts.with_void()`` to let void count as a class.
        c: 1.02 as in the paper; the released encoder script has 1.2.

    Returns:
        (C,) float32. A class without a pixel gets the largest weight, 1 / ln(c).
    """
    if c <= 1:
        raise ValueError(f"enet_weights: c must be above 1, got {c}")
    pixels = np.asarray(counts.pixels, dtype=np.float64)
    share = pixels / max(pixels.sum(), 1.0)
    return torch.from_numpy(1 / np.log(c + share)).float()


def class_weights(
    dataset: SegmentationDataset,
    method: str,
    cache: str | Path | Literal[False] | None = None,
    *,
    c: float = 1.02,
    with_void: bool = False,
) -> Tensor:
    """The weight of each class in the loss.

    Args:
        dataset: the training split.
        method: ``"median_frequency"``, ``"enet"``, ``"espnet"`` (the same with c = 1.10),
            ``"segnet_camvid"`` for the released vector, or ``"segnet"``: that vector for CamVid,
            median frequencies for other data.
        cache: folder for the counts; None is ``class_counts`` in the cache folder (`cache_dir`),
            False keeps nothing. A folder that cannot be written is no error.
        c: the constant of ``"enet"``.
        with_void: count void as a further, last class (ENet's release does).

    Returns:
        (num_classes,) float32, or (num_classes + 1,) with void.
    """
    if method not in METHODS:
        raise ValueError(
            f"class_weights: method must be one of {', '.join(METHODS)}, got {method!r}"
        )
    if method == "segnet":
        method = "segnet_camvid" if isinstance(dataset, CamVid) else "median_frequency"
    if method == "segnet_camvid":
        if dataset.num_classes != len(SEGNET_CAMVID_WEIGHTS) or with_void:
            raise ValueError(
                f"class_weights: segnet_camvid is for {len(SEGNET_CAMVID_WEIGHTS)} classes without "
                f"void, got {dataset.num_classes}{' and void' if with_void else ''}"
            )
        return torch.tensor(SEGNET_CAMVID_WEIGHTS)
    counts = _cached_counts(dataset, cache)
    if with_void:
        counts = counts.with_void()
    if method == "median_frequency":
        return median_frequency_weights(counts)
    return enet_weights(counts, ESPNET_CONSTANT if method == "espnet" else c)


def _cached_counts(
    dataset: SegmentationDataset, cache: str | Path | Literal[False] | None
) -> ClassCounts:
    if cache is False:
        return count_classes(dataset)
    folder = Path(cache) if cache is not None else cache_dir() / "class_counts"
    identity = dataset.identity()
    file = folder / f"{digest(identity, dataset.num_classes)}.json"
    kept = _counts_from_json(read_json(file), identity, dataset.num_classes)
    if kept is None:
        kept = count_classes(dataset)
        write_json(file, {"identity": identity, **asdict(kept)})
    return kept


def _counts_from_json(value: dict | None, identity: str, classes: int) -> ClassCounts | None:
    if value is None or value.get("identity") != identity:
        return None
    pixels, present = value.get("pixels"), value.get("present")
    single = [value.get("void"), value.get("void_present")]
    for numbers in (pixels, present):
        if not isinstance(numbers, Sequence) or len(numbers) != classes:
            return None
    if not all(isinstance(number, int) for number in (*pixels, *present, *single)):
        return None
    return ClassCounts(tuple(pixels), tuple(present), *single)
