"""Unary energies and features, with the functions of pydensecrf's ``utils``."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number

import numpy as np


def unary_from_labels(
    labels: np.ndarray, n_labels: int, gt_prob: float, zero_unsure: bool = True
) -> np.ndarray:
    """Energies of labels that are right with probability `gt_prob`.

    Args:
        labels: integers of any shape with N elements.
        n_labels: L, not counting the unknown label.
        gt_prob: certainty, strictly between 0 and 1.
        zero_unsure: label 0 means unknown, and label k >= 1 is row k - 1; otherwise label k is
            row k.

    Returns:
        (L, N) float32.
    """
    if not 0 < gt_prob < 1:
        raise ValueError(f"unary_from_labels: gt_prob must be between 0 and 1, got {gt_prob!r}")
    flat = np.asarray(labels).ravel()
    if flat.dtype.kind not in "iub":
        raise ValueError(f"unary_from_labels: labels must be integers, got {flat.dtype}")
    rows = flat.astype(np.int64) - 1 if zero_unsure else flat.astype(np.int64)
    if flat.size and (rows.min() < (-1 if zero_unsure else 0) or rows.max() >= n_labels):
        raise ValueError(
            f"unary_from_labels: labels must be in {n_labels} labels"
            f"{' and 0 for unknown' if zero_unsure else ''}, got {flat.min()} to {flat.max()}"
        )
    other = -np.log((1.0 - gt_prob) / max(n_labels - 1, 1))
    energy = np.full((n_labels, flat.size), other, dtype=np.float32)
    known = rows >= 0
    energy[rows[known], np.flatnonzero(known)] = -np.log(gt_prob)
    energy[:, ~known] = -np.log(1.0 / n_labels)
    return energy


def unary_from_softmax(
    sm: np.ndarray, scale: float | None = None, clip: float | None = 1e-5
) -> np.ndarray:
    """(L, N) float32 energies of probabilities (L, ...), clipped from below at `clip`.

    With `scale` the probabilities are first mixed with the uniform distribution:
    scale * sm + (1 - scale) / L.
    """
    probabilities = np.asarray(sm)
    if probabilities.ndim < 2:
        raise ValueError(f"unary_from_softmax: sm must be (L, ...), got {probabilities.shape}")
    count = probabilities.shape[0]
    if scale is not None:
        if not 0 < scale <= 1:
            raise ValueError(f"unary_from_softmax: scale must be in (0, 1], got {scale!r}")
        probabilities = scale * probabilities + (1.0 - scale) / count
    if clip is not None:
        probabilities = np.clip(probabilities, clip, 1.0)
    return -np.log(probabilities).reshape(count, -1).astype(np.float32)


def create_pairwise_gaussian(sdims: Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """(d, N) float32 positions over `sdims`, in the order of the axes: (y, x) for images."""
    if len(sdims) != len(shape):
        raise ValueError(
            f"create_pairwise_gaussian: sdims must have {len(shape)} numbers, got {len(sdims)}"
        )
    _check_widths("create_pairwise_gaussian", "sdims", sdims)
    grid = np.mgrid[tuple(slice(0, length) for length in shape)].astype(np.float32)
    for axis, width in enumerate(sdims):
        grid[axis] /= width
    return grid.reshape(len(shape), -1)


def create_pairwise_bilateral(
    sdims: Sequence[float],
    schan: float | Sequence[float],
    img: np.ndarray,
    chdim: int = -1,
) -> np.ndarray:
    """(d, N) float32 features: positions over `sdims`, then channels over `schan`.

    Args:
        sdims: widths of the positions, in the order of the array's axes.
        schan: width of the channels, a number or one per channel.
        img: the array; its channels lie along axis `chdim`.
        chdim: -1 for an array without a channel axis, whose values are the only channel.
    """
    array = np.asarray(img)
    planes = array[None] if chdim == -1 else np.rollaxis(array, chdim)
    widths = [schan] * len(planes) if isinstance(schan, Number) else list(schan)
    if len(widths) != len(planes):
        raise ValueError(
            f"create_pairwise_bilateral: schan must be a number or {len(planes)}, got {schan!r}"
        )
    _check_widths("create_pairwise_bilateral", "schan", widths)
    positions = create_pairwise_gaussian(sdims, planes.shape[1:])
    colours = planes.astype(np.float32).reshape(len(planes), -1)
    colours = colours / np.asarray(widths, np.float32)[:, None]
    return np.concatenate([positions, colours])


def _check_widths(op: str, name: str, widths: Sequence[float]) -> None:
    if not all(0 < width < float("inf") for width in widths):
        raise ValueError(f"{op}: {name} must be positive and finite, got {tuple(widths)}")
