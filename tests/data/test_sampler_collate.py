"""Order of samples, batches, and independence of workers."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from segkern.data import EpochSampler, collate, open_dataset, sample_seed
from segkern.models._recipe import Recipe
from segkern.transforms import build_train_transform

RECIPE = Recipe(lr=0.1, batch_size=2, epochs=1, crop=(32, 40), scale=(0.6, 1.5), flip=True)


def dealt(n: int, world: int, epoch: int = 0, **options) -> list[list[int]]:
    parts = []
    for rank in range(world):
        sampler = EpochSampler(n, 3, rank, world, **options)
        sampler.set_epoch(epoch)
        part = list(sampler)
        assert len(sampler) == len(part)
        parts.append(part)
    return parts


@pytest.mark.parametrize("n", [0, 1, 5, 12])
@pytest.mark.parametrize("world", [1, 2, 5])
@pytest.mark.parametrize("shuffle", [False, True])
def test_keep_visits_everything_once(n, world, shuffle):
    parts = dealt(n, world, shuffle=shuffle, uneven="keep")
    assert sorted(sum(parts, [])) == list(range(n))


@pytest.mark.parametrize("n", [1, 5, 12])
@pytest.mark.parametrize("world", [1, 2, 5])
def test_pad_and_drop_give_all_ranks_the_same(n, world):
    padded = dealt(n, world)
    assert {len(part) for part in padded} == {-(-n // world)}
    assert set(sum(padded, [])) == set(range(n))
    dropped = dealt(n, world, uneven="drop")
    assert {len(part) for part in dropped} == {n // world}
    assert len(set(sum(dropped, []))) == n // world * world


def test_order_follows_seed_and_epoch_only():
    assert dealt(50, 1, 0) == dealt(50, 1, 0)
    assert dealt(50, 1, 0) != dealt(50, 1, 1)
    single = dealt(50, 1, 4)[0]
    assert [p[i] for i in range(25) for p in dealt(50, 2, 4)] == single


def test_resuming_within_an_epoch():
    sampler = EpochSampler(10, 1)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.set_epoch(2, start=4)
    assert list(sampler) == whole[4:] and len(sampler) == 6


def test_sampler_arguments():
    with pytest.raises(ValueError, match="rank"):
        EpochSampler(5, rank=2, world=2)
    with pytest.raises(ValueError, match="uneven"):
        EpochSampler(5, uneven="repeat")
    with pytest.raises(ValueError, match="at least 0"):
        EpochSampler(-1)


def test_sample_seed_has_no_collisions_nearby():
    seeds = {sample_seed(s, e, i) for s in range(5) for e in range(20) for i in range(50)}
    assert len(seeds) == 5000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_collate():
    sample = (torch.zeros(3, 4, 5, dtype=torch.uint8), torch.zeros(4, 5, dtype=torch.int64))
    images, masks = collate([sample, sample])
    assert images.shape == (2, 3, 4, 5) and images.dtype == torch.uint8
    assert masks.shape == (2, 4, 5) and masks.dtype == torch.int64


def test_collate_names_the_sizes():
    a = (torch.zeros(3, 4, 5), torch.zeros(4, 5))
    b = (torch.zeros(3, 4, 6), torch.zeros(4, 6))
    with pytest.raises(ValueError, match="4x5 at position 0 and 4x6 at position 2.*crop"):
        collate([a, a, b])


def epoch_of(loader, dataset, sampler, epoch):
    dataset.set_epoch(epoch)
    sampler.set_epoch(epoch)
    return [torch.cat(tensors) for tensors in zip(*loader, strict=True)]


@pytest.mark.parametrize("spec", ["synthetic:40x48", "camvid"])
@pytest.mark.parametrize("kept", [False, True])
def test_result_does_not_depend_on_workers(spec, kept, camvid_maker):
    """Kept workers must see a new epoch too."""
    spec = f"camvid:{camvid_maker.root}" if spec == "camvid" else spec
    reference = None
    for workers in (0, 1, 2):
        if workers == 0 and kept:
            continue
        dataset = open_dataset(
            spec, "train", transform=build_train_transform(RECIPE), seed=7, length=5
        )
        sampler = EpochSampler(len(dataset), 7)
        loader = DataLoader(
            dataset,
            batch_size=2,
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            persistent_workers=kept,
        )
        torch.manual_seed(workers)
        epochs = [epoch_of(loader, dataset, sampler, epoch) for epoch in (0, 1)]
        assert not torch.equal(epochs[0][0], epochs[1][0])
        if reference is None:
            reference = epochs
        for mine, theirs in zip(sum(epochs, []), sum(reference, []), strict=True):
            assert torch.equal(mine, theirs)


def test_result_does_not_depend_on_order():
    dataset = open_dataset("synthetic:40x48", "train", transform=build_train_transform(RECIPE))
    forward = [dataset[i] for i in range(6)]
    backward = [dataset[i] for i in reversed(range(6))][::-1]
    for a, b in zip(forward, backward, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_global_random_numbers_are_left_alone():
    dataset = open_dataset("synthetic:40x48", "train", transform=build_train_transform(RECIPE))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    dataset[0]
    assert torch.equal(torch.rand(3), expected)
