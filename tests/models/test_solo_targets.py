"""Cells and masks that SOLO is taught, against the definition worked out instance by instance."""

from __future__ import annotations

import numpy as np
import pytest
import solo_reference as reference
import torch

from segkern.models._instances.solo_levels import (
    GRIDS,
    SCALE_RANGES,
    Level,
    double,
    make_levels,
    split_features,
    with_coordinates,
)
from segkern.models._instances.solo_targets import assign, shrink_masks

SMALL = make_levels("test", (0, 2, 4), (9, 6, 3), ((1, 30), (15, 60), (30, 500)))


def scene(seed, count=12, size=(90, 122), padded=(96, 128)):
    """Overlapping ellipses; masks are not their boxes, and one is empty."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    boxes, masks = [], []
    for _ in range(count):
        cx, cy = generator.uniform(0, size[1]), generator.uniform(0, size[0])
        rx, ry = np.exp(generator.uniform(0.5, 4, 2))
        masks.append(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1)
        boxes.append([max(cx - rx, 0), max(cy - ry, 0), min(cx + rx, 122), min(cy + ry, 90)])
    masks[count // 2][:] = False
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.from_numpy(generator.integers(1, 5, count)),
        "masks": torch.from_numpy(np.stack(masks)).to(torch.uint8),
    }
    return target, padded


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shared", [False, True])
def test_assignment(seed, shared):
    target, padded = scene(seed, count=12 + 10 * seed)
    got = assign(target, SMALL, padded, shared=shared)
    labels, pairs = reference.assign(target, SMALL, padded)
    assert got.labels.tolist() == np.concatenate([of.ravel() for of in labels]).tolist()
    taken = 0
    for n, level in enumerate(SMALL):
        wanted = pairs[n] if shared else reference.last_of_each_cell(pairs[n])
        if shared:
            wanted = sorted(wanted, key=lambda pair: pair[2])
        assert got.cells[n].tolist() == [row * level.grid + column for row, column, _ in wanted]
        assert got.instances[n].tolist() == [pair[2] for pair in wanted]
        taken += len(wanted)
    distinct = int((got.labels > 0).sum())
    assert distinct > 10
    # Later instances took cells of earlier ones, or nothing here tells the two rules apart.
    assert (taken > distinct) == shared


def test_later_instances_take_the_cell():
    masks = torch.zeros(2, 32, 32, dtype=torch.uint8)
    masks[:, 10:20, 10:20] = 1
    target = {
        "boxes": torch.tensor([[10.0, 10, 20, 20]] * 2),
        "labels": torch.tensor([3, 1]),
        "masks": masks,
    }
    (level,) = make_levels("test", (0,), (4,), ((1, 64),))
    alone = assign(target, [level], (32, 32))
    assert alone.labels.nonzero()[:, 0].tolist() == alone.cells[0].tolist() == [5]
    assert alone.labels[5] == 1 and alone.instances[0].tolist() == [1]
    both = assign(target, [level], (32, 32), shared=True)
    assert both.labels[5] == 1 and both.instances[0].tolist() == [0, 1]


def test_centres_are_means_of_indices():
    """7.5 lies in cell 1 of 4 over 16 pixels; the centre of those pixels, 8, would in cell 2."""
    masks = torch.zeros(1, 16, 16, dtype=torch.uint8)
    masks[0, 6, 7:9] = 1
    target = {
        "boxes": torch.tensor([[7.0, 6, 9, 7]]),
        "labels": torch.tensor([2]),
        "masks": masks,
    }
    got = assign(target, [Level(4, 8, 0, 99)], (16, 16))
    assert got.labels.nonzero()[:, 0].tolist() == [5]


@pytest.mark.parametrize(("side", "levels"), [(32, [0, 1]), (31.9, [0]), (32.1, [1]), (64.1, [])])
def test_ranges_are_inclusive(side, levels):
    target = {
        "boxes": torch.tensor([[0.0, 0.0, side, side]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 96, 96, dtype=torch.uint8),
    }
    both = make_levels("test", (0, 1), (4, 4), ((1, 32), (32, 64)))
    got = assign(target, both, (96, 96))
    assert [n for n in (0, 1) if len(got.cells[n])] == levels


def test_nothing_to_find():
    target = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 32, 32, dtype=torch.uint8),
    }
    got = assign(target, SMALL, (32, 32))
    assert (got.labels == 0).all() and not sum(len(cells) for cells in got.cells)
    assert shrink_masks(target["masks"], 4, (8, 8)).shape == (0, 8, 8)


@pytest.mark.parametrize("stride", [4, 8, 16])
@pytest.mark.parametrize("size", [(64, 96), (61, 100), (53, 83), (1, 75), (7, 5), (30, 1)])
def test_small_masks(stride, size):
    generator = np.random.default_rng(stride + size[0])
    canvas = (-(-size[0] // 32) * 32 // stride, -(-size[1] // 32) * 32 // stride)
    for share in (0.3, 0.5, 0.7):
        mask = (generator.random(size) < share).astype(np.uint8)
        got = shrink_masks(torch.from_numpy(mask)[None], stride, canvas)
        assert got.dtype == torch.uint8
        assert np.array_equal(got[0].numpy(), reference.shrink(mask, stride, canvas))
        assert torch.equal(shrink_masks(torch.from_numpy(mask)[None].bool(), stride, canvas), got)


def test_widths_of_whole_images():
    """Ratios that are no whole numbers, where a float resize differs."""
    generator = np.random.default_rng(0)
    for width in (1333, 1066, 853, 767):
        mask = (generator.random((3, width)) < 0.5).astype(np.uint8)
        got = shrink_masks(torch.from_numpy(mask)[None], 4, (8, 344))[0].numpy()
        assert np.array_equal(got, reference.shrink(mask, 4, (8, 344)))


@pytest.mark.parametrize("ratio", [2, 4, 8, 16])
def test_two_of_four_middle_pixels(ratio):
    mask = torch.from_numpy(np.random.default_rng(ratio).random((6 * ratio, 9 * ratio)) < 0.5)
    middle = sum(
        mask[y::ratio, x::ratio].int()
        for y in (ratio // 2 - 1, ratio // 2)
        for x in (ratio // 2 - 1, ratio // 2)
    )
    got = shrink_masks(mask[None], ratio, (6, 9))
    assert torch.equal(got[0], (middle >= 2).to(torch.uint8))


def test_opencv_agrees():
    cv2 = pytest.importorskip("cv2")
    generator = np.random.default_rng(0)
    for size in ((800, 1333), (480, 640), (427, 333), (17, 9)):
        mask = (generator.random(size) < 0.5).astype(np.uint8)
        for stride in (4, 8, 16):
            wanted = cv2.resize(mask, tuple(int(side / stride + 0.5) for side in size[::-1]))
            got = shrink_masks(torch.from_numpy(mask)[None], stride, wanted.shape)
            assert np.array_equal(got[0].numpy(), wanted)


def test_features_of_the_levels():
    torch.manual_seed(0)
    sizes = ((24, 40), (12, 20), (6, 10), (3, 5), (2, 3))
    pyramid = [torch.randn(2, 3, *size, dtype=torch.float64) for size in sizes]
    maps = split_features(pyramid)
    assert [tuple(m.shape[2:]) for m in maps] == [(12, 20), (12, 20), (6, 10), (3, 5), (3, 5)]
    blocks = pyramid[0].unflatten(2, (12, 2)).unflatten(4, (20, 2)).mean((3, 5))
    torch.testing.assert_close(maps[0], blocks, rtol=1e-12, atol=1e-12)
    assert all(maps[n] is pyramid[n] for n in (1, 2, 3))
    assert double(maps[3]).shape[2:] == (6, 10)


def test_coordinates():
    maps = torch.ones(2, 1, 3, 5)
    got = with_coordinates(maps)
    assert got[1, 1, 2].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert got[0, 2, :, 4].tolist() == [-1, 0, 1]


def test_levels_of_the_paper():
    levels = make_levels("test", (0, 1, 2, 3, 4), GRIDS, SCALE_RANGES)
    assert [level.mask_stride for level in levels] == [4, 4, 8, 16, 16]
    assert sum(level.cells for level in levels) == 3872


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (((), (), ()), "levels must be ints from 0 to 4"),
        (((5,), (3,), ((1, 2),)), "levels must be ints from 0 to 4"),
        (((1, 0), (3, 3), ((1, 2),) * 2), "levels must rise"),
        (((0, 1), (3,), ((1, 2),) * 2), "grids must have 2 entries"),
        (((0,), (3,), ((1, 2),) * 2), "scale_ranges must have 1 entries"),
        (((0,), (0,), ((1, 2),)), "grids must be positive ints"),
        (((0,), (3,), ((2, 1),)), "scale_ranges must be pairs"),
    ],
)
def test_errors(given, match):
    with pytest.raises(ValueError, match=f"test: {match}"):
        make_levels("test", *given)
