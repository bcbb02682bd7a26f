"""Scenes drawn on the fly."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from segkern.data import DatasetError, open_dataset
from segkern.data.class_weights import count_classes


def test_sizes_and_types():
    for spec, size in (("synthetic", (240, 320)), ("synthetic:60x90", (60, 90))):
        image, mask = open_dataset(spec, "train")[0]
        assert image.shape == (3, *size) and image.dtype == torch.uint8
        assert mask.shape == size and mask.dtype == torch.int64
    assert open_dataset("synthetic", "val", size=(40, 30))[0][1].shape == (40, 30)


@pytest.mark.parametrize("size", [(16, 16), (17, 301), (200, 16)])
def test_odd_shapes(size):
    dataset = open_dataset("synthetic", "train", size=size, length=20)
    for image, mask in (dataset[i] for i in range(20)):
        assert image.shape == (3, *size) and mask.shape == size


def test_same_numbers_same_scene():
    a, b = (open_dataset("synthetic:60x80", "val", seed=3) for _ in range(2))
    for index in (0, 7, 3):
        for x, y in zip(a[index], b[index], strict=True):
            assert torch.equal(x, y)


def test_other_numbers_other_scene():
    base = open_dataset("synthetic:60x80", "train")
    first = base[0][0]
    assert not torch.equal(first, base[1][0])
    assert not torch.equal(first, open_dataset("synthetic:60x80", "train", seed=1)[0][0])
    assert not torch.equal(first, open_dataset("synthetic:60x80", "val")[0][0])


def test_training_scenes_change_with_the_epoch_and_validation_does_not():
    for split, changes in (("train", True), ("val", False)):
        dataset = open_dataset("synthetic:60x80", split)
        before = dataset[4][0]
        dataset.set_epoch(1)
        assert torch.equal(before, dataset[4][0]) != changes
        dataset.set_epoch(0)
        assert torch.equal(before, dataset[4][0])


def test_all_classes_and_void_occur_in_plausible_shares():
    counts = count_classes(open_dataset("synthetic:120x160", "train", length=60))
    total = sum(counts.pixels) + counts.void
    share = np.array(counts.pixels) / total
    assert (share > 0.001).all(), "every class must occur"
    assert share.argmax() == 3, "road is the largest class"
    assert share[2] < 0.04, "poles are thin"
    assert 0.002 < counts.void / total < 0.1
    assert all(p <= 60 * 120 * 160 for p in counts.present)


def test_colour_alone_does_not_tell_the_class():
    """A net must look at shape: the same grey is road, pavement, building, car and sky."""
    dataset = open_dataset("synthetic:60x80", "train", length=40)
    seen = set()
    for i in range(40):
        image, mask = dataset[i]
        spread = image.amax(0).int() - image.amin(0).int()
        grey = (spread < 25) & ((image.float().mean(0) - 110).abs() < 25)
        seen |= set(mask[grey].unique().tolist())
    assert {0, 1, 3, 4, 8} <= seen


def test_unknown_split_and_size():
    with pytest.raises(DatasetError, match="split"):
        open_dataset("synthetic", "holdout")
    with pytest.raises(DatasetError, match="16x16"):
        open_dataset("synthetic:8x8", "train")
    with pytest.raises(ValueError, match="length"):
        open_dataset("synthetic", "train", length=0)


def test_drawing_is_quick():
    """About 8 ms at 120x160 on one core; the bound leaves room for a busy machine."""
    dataset = open_dataset("synthetic:120x160", "train")
    dataset[0]
    start = time.process_time()
    for i in range(1, 21):
        dataset[i]
    assert (time.process_time() - start) / 20 < 0.05


def test_names_and_identity():
    dataset = open_dataset("synthetic:60x80", "val")
    assert dataset.sample_name(7) == "val_00007"
    assert len(dataset) == 128
    other = open_dataset("synthetic:60x80", "val", seed=1)
    assert dataset.identity() != other.identity()
