"""Order and completeness of the batches."""

from __future__ import annotations

import pytest
import torch

from segkern.data import open_dataset
from segkern.engine.errors import EngineError
from segkern.engine.loader import TrainLoader, collate_by_size, validation_loader
from segkern.engine.state import RunState


class Numbered(torch.utils.data.Dataset):
    """Sample i is an image of i, plus 1000 x the epoch."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(3, 2, 2), torch.full((2, 2), index + 1000 * self.epoch)


def visited(loader: object) -> list[list[int]]:
    return [mask[:, 0, 0].tolist() for _, mask in loader]


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return visited(
            TrainLoader(Numbered(11), batch_size=3, seed=seed, state=RunState(epoch=epoch))
        )

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)
    first, second = order(0, 0), order(0, 1)
    assert [[v - 1000 for v in batch] for batch in second] != first
    assert len(first) == 3 and len({v for batch in first for v in batch}) == 9


def test_goes_on_inside_an_epoch() -> None:
    state = RunState(epoch=4)
    loader = TrainLoader(Numbered(20), batch_size=4, seed=7, state=state)
    whole = visited(loader)
    state.batch = 3
    assert len(loader) == 2
    assert visited(loader) == whole[3:]


def test_processes_share_each_batch() -> None:
    alone = visited(TrainLoader(Numbered(22), batch_size=4, seed=0, state=RunState()))
    ranks = [
        visited(TrainLoader(Numbered(22), batch_size=4, seed=0, state=RunState(), rank=r, world=2))
        for r in range(2)
    ]
    assert len(ranks[0]) == len(ranks[1]) == len(alone)
    for batch, left, right in zip(alone, *ranks, strict=True):
        assert sorted(batch) == sorted(left + right)


def test_worker_processes_change_nothing() -> None:
    state = RunState()
    alone = TrainLoader(
        open_dataset("synthetic:16x16", "train", length=8), batch_size=4, seed=0, state=state
    )
    helped = TrainLoader(
        open_dataset("synthetic:16x16", "train", length=8),
        batch_size=4,
        seed=0,
        state=state,
        workers=2,
    )
    for epoch in range(2):
        state.epoch = epoch
        for (image, mask), (other_image, other_mask) in zip(alone, helped, strict=True):
            assert torch.equal(image, other_image) and torch.equal(mask, other_mask)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_visits_each_sample_once(world: int) -> None:
    seen = []
    for rank in range(world):
        for groups in validation_loader(Numbered(10), batch_size=2, rank=rank, world=world):
            seen += [int(mask[0, 0]) for _, masks in groups for mask in masks]
    assert sorted(seen) == list(range(10))


def test_sizes_are_not_mixed() -> None:
    samples = [(torch.zeros(3, h, 4), torch.zeros(h, 4)) for h in (2, 3, 2)]
    assert [tuple(mask.shape) for _, mask in collate_by_size(samples)] == [(2, 2, 4), (1, 3, 4)]


def test_batch_size_must_fit() -> None:
    with pytest.raises(EngineError, match="at most the number of training samples, 3, got 4"):
        TrainLoader(Numbered(3), batch_size=4, seed=0, state=RunState())
    with pytest.raises(EngineError, match="multiple of the 2 processes, got 3"):
        TrainLoader(Numbered(9), batch_size=3, seed=0, state=RunState(), world=2)
