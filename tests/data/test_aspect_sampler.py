"""Batches of one orientation: every epoch's order, resuming, and the ranks' shares."""

from __future__ import annotations

import numpy as np
import pytest

from segkern.data import AspectBatchSampler

RNG = np.random.default_rng(5)
SIZES = [(4, 6) if RNG.random() < 0.7 else (6, 4) for _ in range(61)]


def portraits(batch: list[int]) -> set[bool]:
    return {SIZES[k][0] > SIZES[k][1] for k in batch}


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7, 16, 61])
def test_every_epoch_has_the_same_number_of_batches_of_one_orientation(batch_size):
    sampler = AspectBatchSampler(SIZES, batch_size)
    for epoch in range(20):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == 61 // batch_size
        assert all(len(batch) == batch_size for batch in batches)
        used = [k for batch in batches for k in batch]
        assert len(set(used)) == len(used)
        assert all(len(portraits(batch)) == 1 for batch in batches[:-1])
    assert len(portraits(batches[0])) == (2 if batch_size == 61 else 1)


def test_orientation_is_not_sorted_and_epochs_differ():
    sampler = AspectBatchSampler(SIZES, 4, seed=3)
    first = list(sampler)
    kinds = [portraits(batch).pop() for batch in first[:-1]]
    assert 1 < sum(a != b for a, b in zip(kinds, kinds[1:], strict=False))
    assert list(sampler) == first and list(AspectBatchSampler(SIZES, 4, seed=3)) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(AspectBatchSampler(SIZES, 4, seed=4)) != first


def test_resuming_in_the_middle_of_an_epoch():
    sampler = AspectBatchSampler(SIZES, 4, seed=1)
    sampler.set_epoch(7)
    whole = list(sampler)
    for start in (0, 1, 9, 15):
        sampler.set_epoch(7, start=start)
        assert list(sampler) == whole[start:] and len(sampler) == 15 - start


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_each_batch(world):
    whole = list(AspectBatchSampler(SIZES, 8, seed=2))
    ranks = [list(AspectBatchSampler(SIZES, 8, seed=2, rank=r, world=world)) for r in range(world)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert sorted(k for part in parts for k in part) == sorted(batch)
        assert {len(part) for part in parts} == {8 // world}


def test_empty_and_wrong_arguments():
    assert list(AspectBatchSampler([], 2)) == []
    assert list(AspectBatchSampler([(1, 1)], 2)) == []
    for arguments, match in (
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 3, "world": 2}, "multiple of the 2"),
        ({"batch_size": 2, "seed": -1}, "seed"),
        ({"batch_size": 2, "rank": 1}, "rank"),
    ):
        with pytest.raises(ValueError, match=match):
            AspectBatchSampler(SIZES, **arguments)
