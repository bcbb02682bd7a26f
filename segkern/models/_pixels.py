"""Pixels of labelled images drawn for methods that are fitted at once, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def draw_pixels(
    labels: np.ndarray,
    count: int,
    generator: np.random.Generator,
    *,
    ignore_index: int = 255,
    sampling: str = "stratified",
) -> np.ndarray:
    """Flat positions of at most about ``count`` labelled pixels of an image, ascending.

    Args:
        labels: (H, W) integers.
        count: Pixels wanted.
        generator: Source of the choice.
        ignore_index: Label of pixels never taken.
        sampling: ``"stratified"``: of each class its share of the image, one pixel at least;
            ``"balanced"``: of each class as many, as far as it has them.

    Returns:
        int64 positions, without repetition.
    """
    flat = labels.ravel()
    classes, sizes = np.unique(flat[flat != ignore_index], return_counts=True)
    chosen = []
    for label, size in zip(classes, sizes, strict=True):
        share = size / sizes.sum() if sampling == "stratified" else 1 / len(classes)
        wanted = min(max(1, round(count * share)), int(size))
        positions = np.flatnonzero(flat == label)
        chosen.append(generator.choice(positions, wanted, replace=False))
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)


def gather_rows(parts: Iterable[np.ndarray], most: int) -> np.ndarray:
    """Parts (n, F) float32 one below the other, never more than once in memory.

    Args:
        parts: At least one; each is dropped before the next is asked for.
        most: Rows of all parts together, at most.
    """
    table, count = None, 0
    for part in parts:
        if table is None:
            table = np.empty((most, part.shape[1]), dtype=np.float32)
        table[count : count + len(part)] = part
        count += len(part)
    return table[:count]


def pixels_per_image(images: int, per_image: int, largest: int) -> int:
    """Pixels to draw of each image so that no more than ``largest`` are drawn in all."""
    return max(1, min(per_image, largest // max(images, 1)))
