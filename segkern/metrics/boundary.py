"""Boundary F1: how well the outlines of regions are met."""

from __future__ import annotations

import math

import numpy as np

TOLERANCE = 0.0075
"""Tolerance as a share of the image diagonal (SegNet)."""


def boundary_f1(
    pred: np.ndarray,
    target: np.ndarray,
    num_classes: int,
    *,
    ignore_index: int = 255,
    tolerance: float = TOLERANCE,
) -> float | None:
    """Boundary F1 of one image (Csurka et al., BMVC 2013; as used by SegNet, PAMI 2017).

    For each class present in the target, the boundary of its region is compared with the boundary
    of the predicted region: precision is the share of predicted boundary pixels within the
    tolerance of a true one, recall the share of true ones within the tolerance of a predicted one,
    and F1 = 2 P R / (P + R). The image's figure is the mean of F1 over these classes.

    A boundary pixel is a pixel of the region with one of its four neighbours outside it; the frame
    of the image is no boundary. Distances are Euclidean and exact.

    Where the papers leave the rule open:

    - Ignored pixels hide what lies there. True boundary pixels that touch only ignored pixels are
      not looked for (recall), but a predicted boundary near them is not held against the
      prediction (precision). Predicted boundary pixels on ignored pixels are not counted in
      precision, but may meet a true one in recall.
    - A class that is predicted on no labelled pixel has F1 = 0. If it is predicted and no boundary
      is to be found, recall is 1; if no boundary is predicted either, F1 is 1 (one class filling
      the image, rightly predicted).

    Args:
        pred: (H, W) integers in [0, num_classes).
        target: (H, W) integers in [0, num_classes) or ``ignore_index``.
        num_classes: C.
        ignore_index: label of the pixels left out; it may be one of the classes.
        tolerance: share of the image diagonal in [0, 1].

    Returns:
        a number in [0, 1]; None where the target holds no class.
    """
    ignored = target == ignore_index
    present = [c for c in np.unique(target[~ignored]).tolist() if 0 <= c < num_classes]
    if not present:
        return None
    radius = tolerance * math.hypot(*target.shape)
    scores = [_class_f1(pred == c, target == c, ignored, radius) for c in present]
    return float(np.mean(scores))


def _class_f1(pred: np.ndarray, truth: np.ndarray, ignored: np.ndarray, radius: float) -> float:
    if not (pred & ~ignored).any():
        return 0.0
    top, bottom, left, right = _bounds(pred | truth, math.floor(radius) + 1)
    window = np.s_[top:bottom, left:right]
    pred, truth, ignored = pred[window], truth[window], ignored[window]

    found = _boundary(pred, ~pred)
    counted = found & ~ignored
    wanted = _boundary(truth, ~truth & ~ignored)
    granted = wanted | _boundary(truth, ignored)
    precision = _share_near(counted, granted, radius)
    recall = _share_near(wanted, found, radius)
    if recall is None:
        return 1.0 if precision is None else 2 * precision / (precision + 1)
    if precision is None:
        # Everything predicted lies on ignored pixels: nothing wrong was said.
        precision = 1.0 if found.any() else 0.0
    if precision + recall == 0:
        return 0.0
    return 2 * precision * recall / (precision + recall)


def _bounds(region: np.ndarray, margin: int) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of what is set, with a margin, cut to the image."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    height, width = region.shape
    return (
        max(int(rows[0]) - margin, 0),
        min(int(rows[-1]) + margin + 1, height),
        max(int(columns[0]) - margin, 0),
        min(int(columns[-1]) + margin + 1, width),
    )


def _boundary(region: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Pixels of ``region`` with one of their four neighbours in ``outside``."""
    near = np.zeros_like(region)
    near[1:] |= outside[:-1]
    near[:-1] |= outside[1:]
    near[:, 1:] |= outside[:, :-1]
    near[:, :-1] |= outside[:, 1:]
    return near & region


def _share_near(points: np.ndarray, goal: np.ndarray, radius: float) -> float | None:
    """The share of ``points`` within ``radius`` of a pixel of ``goal``; None without points.

    The distance to the nearest goal within a row comes from running maxima, for all pixels at once.
    A point then looks at the rows up to ``radius`` above and below it: row y + d has a goal near
    enough if its distance along that row is at most sqrt(radius^2 - d^2).
    """
    rows, columns = np.nonzero(points)
    if rows.size == 0:
        return None
    height = goal.shape[0]
    along = _row_distance(goal)
    near = np.zeros(rows.size, dtype=bool)
    for step in range(-math.floor(radius), math.floor(radius) + 1):
        reach = math.sqrt(radius * radius - step * step)
        row = rows + step
        inside = (row >= 0) & (row < height)
        near[inside] |= along[row[inside], columns[inside]] <= reach
    return float(near.mean())


def _row_distance(goal: np.ndarray) -> np.ndarray:
    """(H, W) int32: distance of each pixel to the nearest set pixel of its row, or very large."""
    width = goal.shape[1]
    far = 1 << 20
    place = np.arange(width, dtype=np.int32)
    before = np.maximum.accumulate(np.where(goal, place, -far), axis=1)
    after = np.minimum.accumulate(np.where(goal, place, far)[:, ::-1], axis=1)[:, ::-1]
    return np.minimum(place - before, after - place)
