"""Loaders whose order depends on the seed, the epoch and the position alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader

from segkern.data import EpochSampler, collate
from segkern.engine.errors import EngineError
from segkern.engine.state import RunState

Sample = tuple[torch.Tensor, torch.Tensor]


def collate_by_size(samples: list[Sample]) -> list[Sample]:
    """Batches of equal size, so that a set of mixed sizes can be evaluated without padding."""
    groups: dict[tuple[int, ...], list[Sample]] = {}
    for sample in samples:
        groups.setdefault(tuple(sample[1].shape), []).append(sample)
    return [collate(group) for group in groups.values()]


def parts_of_step(batch_size: int, micro_batch: int | None, world: int = 1) -> int:
    """Batches whose gradients are accumulated for an optimiser step.

    batch_size counts all `world` processes; micro_batch, of one of them, may be larger than its
    share, which it then is.
    """
    own = batch_size // world
    at_once = own if micro_batch is None else min(micro_batch, own)
    if own % at_once:
        raise EngineError(
            "train: micro_batch must divide the images of a step "
            f"{'on each device ' if world > 1 else ''}({own}), got {micro_batch}"
        )
    return own // at_once


class EpochBatches:
    """Indices of the batches of an epoch: `EpochSampler`'s, cut into this process's batches.

    batch_size: samples of an optimiser step over all `world` processes. micro_batch: samples of a
    batch, where a step's are taken in several.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        micro_batch: int | None = None,
    ) -> None:
        self._own = batch_size // world
        self._sampler = EpochSampler(length, seed, rank, world, uneven="drop")
        at_once = self._own // parts_of_step(batch_size, micro_batch, world)
        self._batches = BatchSampler(self._sampler, at_once, drop_last=True)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and how many of its first steps to leave out on resuming."""
        self._sampler.set_epoch(epoch, start=start * self._own)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


class TrainLoader:
    """Training batches from where `state` stands to the end of the epoch.

    `len()` and iteration follow `state`, and iteration starts the loading only when the first batch
    is asked for, so that making an iterator twice costs nothing. Worker processes live as long as
    the loader. Samples left over at the end of an epoch, fewer than a batch, are not used in that
    epoch.

    batch_size: samples of an optimiser step over all `world` processes. parts: batches of a step.
    batches: indices of an epoch's batches, and `set_epoch(epoch, start)`, `start` in steps; None is
    `EpochBatches` of one part.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int,
        seed: int,
        state: RunState,
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
        batches: Any = None,
        collate_fn: Callable[..., Any] = collate,
    ) -> None:
        if batch_size % world:
            raise EngineError(
                f"train: batch_size must be a multiple of the {world} processes, got {batch_size}"
            )
        if len(dataset) < batch_size:
            raise EngineError(
                "train: batch_size must be at most the number of training samples, "
                f"{len(dataset)}, got {batch_size}; give --batch-size"
            )
        self.dataset = dataset
        self.state = state
        self.steps_per_epoch = len(dataset) // batch_size
        self.parts = parts
        if batches is None:
            batches = EpochBatches(len(dataset), batch_size, seed, rank, world)
        self._batches = batches
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=collate_fn,
            pin_memory=pin_memory,
            generator=torch.Generator().manual_seed(seed),
        )

    def __len__(self) -> int:
        return self.parts * (self.steps_per_epoch - self.state.batch)

    def __iter__(self) -> Iterator[Sample]:
        self.dataset.set_epoch(self.state.epoch)
        self._batches.set_epoch(self.state.epoch, start=self.state.batch)
        # The parts of a step that is not whole any more are left.
        yield from itertools.islice(self._loader, len(self))


def validation_loader(
    dataset: Any,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    collate_fn: Callable[..., Any] = collate_by_size,
) -> DataLoader[Any]:
    """Each sample once over all processes: process `rank` takes every `world`-th."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(len(dataset), 0, rank, world, shuffle=False, uneven="keep"),
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate_fn,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(0),
    )
