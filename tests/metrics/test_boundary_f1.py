"""Boundary F1 of one image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from segkern.metrics import SegmentationMetrics, boundary_f1


def near(a, b, radius):
    """Share of the points a within the radius of a point of b."""
    hits = sum(any(math.hypot(y - v, x - u) <= radius for v, u in b) for y, x in a)
    return hits / len(a)


def outline(region, outside):
    height, width = region.shape
    found = []
    for y in range(height):
        for x in range(width):
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [(v, u) for v, u in around if 0 <= v < height and 0 <= u < width]
            if region[y, x] and any(outside[p] for p in inside):
                found.append((y, x))
    return found


def slow(pred, target, classes, tolerance, ignore=255):
    """The definition, pixel by pixel."""
    radius = tolerance * math.hypot(*target.shape)
    ignored = target == ignore
    scores = []
    for c in range(classes):
        if not (target == c).any():
            continue
        if not ((pred == c) & ~ignored).any():
            scores.append(0.0)
            continue
        found = outline(pred == c, pred != c)
        counted = [p for p in found if not ignored[p]]
        wanted = outline(target == c, (target != c) & ~ignored)
        granted = outline(target == c, target != c)
        precision = near(counted, granted, radius) if counted else (1.0 if found else None)
        recall = near(wanted, found, radius) if wanted else None
        if recall is None:
            recall = 1.0
            precision = 1.0 if not counted else precision
        elif precision is None:
            precision = 0.0
        total = precision + recall
        scores.append(2 * precision * recall / total if total else 0.0)
    return float(np.mean(scores)) if scores else None


def blobs(rng, shape, classes, step=6):
    coarse = rng.integers(0, classes, (-(-shape[0] // step), -(-shape[1] // step)))
    return coarse.repeat(step, 0).repeat(step, 1)[: shape[0], : shape[1]]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("tolerance", [0.0, 0.03, 0.05, 0.2])
def test_against_the_definition(seed, tolerance):
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 40)), int(rng.integers(1, 40)))
    target = blobs(rng, shape, 4)
    pred = np.roll(target, tuple(rng.integers(-3, 4, 2)), (0, 1))
    pred = np.where(rng.random(shape) < 0.05, rng.integers(0, 4, shape), pred)
    if seed % 2:
        target = np.where(blobs(rng, shape, 5, 4) == 0, 255, target)
    got = boundary_f1(pred, target, 4, tolerance=tolerance)
    assert got == pytest.approx(slow(pred, target, 4, tolerance))


def two_halves(height, width, column):
    image = np.zeros((height, width), np.int64)
    image[:, column:] = 1
    return image


def test_perfect():
    image = two_halves(30, 40, 20)
    assert boundary_f1(image, image, 2) == 1


def test_shift_within_and_beyond_the_tolerance():
    """Diagonal 500 and 0.75 % of it: 3.75 pixels."""
    target = two_halves(300, 400, 200)
    for shift, wanted in ((3, 1.0), (4, 0.0)):
        assert boundary_f1(two_halves(300, 400, 200 + shift), target, 2) == wanted


def test_by_hand():
    """A bar of which the prediction meets half the outline."""
    target = np.zeros((20, 20), np.int64)
    target[:, 10:] = 1
    pred = target.copy()
    pred[:10] = 0
    # Class 1, radius 0: true outline 20 pixels in column 10; predicted one 10 of them and 9 others
    # along row 10. Class 0: true 20 in column 9; predicted 10 of them and row 9 from column 10 on.
    one = 2 * (10 / 19) * (10 / 20) / (10 / 19 + 10 / 20)
    zero = 2 * (10 / 20) * (10 / 20) / (10 / 20 + 10 / 20)
    assert boundary_f1(pred, target, 2, tolerance=0) == pytest.approx((one + zero) / 2)


def test_missed_class_counts_as_zero_and_extra_class_does_not_count():
    target = two_halves(30, 40, 20)
    assert boundary_f1(np.zeros_like(target), target, 2) == 0
    pred = target.copy()
    pred[:, 39] = 2
    both = boundary_f1(pred, target, 3)
    assert 0 < both < 1


def test_one_class_filling_the_image():
    target = np.zeros((10, 10), np.int64)
    assert boundary_f1(target, target, 2) == 1
    pred = target.copy()
    pred[4:6, 4:6] = 1
    assert boundary_f1(pred, target, 2) == 0


def test_ignored_pixels_are_neither_sought_nor_held_against():
    target = two_halves(40, 40, 20)
    target[:, 18:22] = 255
    for column in (18, 20, 22):
        assert boundary_f1(two_halves(40, 40, column), target, 2) == 1
    assert boundary_f1(two_halves(40, 40, 30), target, 2) < 0.8


def test_nothing_labelled():
    target = np.full((5, 5), 255)
    assert boundary_f1(np.zeros((5, 5), np.int64), target, 2) is None


def test_mean_over_images_skips_empty_ones(device):
    target = torch.from_numpy(
        np.stack([two_halves(30, 40, 20), np.full((30, 40), 255), two_halves(30, 40, 10)])
    ).to(device)
    pred = torch.from_numpy(np.stack([two_halves(30, 40, 20)] * 3)).to(device)
    metrics = SegmentationMetrics(2, boundary=True)
    metrics.update(pred, target)
    third = boundary_f1(two_halves(30, 40, 20), two_halves(30, 40, 10), 2)
    assert metrics.compute()["boundary_f1"] == pytest.approx((1 + third) / 2)
    assert metrics.images == 3
