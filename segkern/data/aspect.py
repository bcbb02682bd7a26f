"""Batches of images of one orientation, the same for any number of processes and workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class AspectBatchSampler(Sampler[list[int]]):
    """Batches of one epoch, each of landscapes or of portraits, so that little is padded.

    The samples are visited in an order shuffled from (seed, epoch), as by `EpochSampler`, and a
    batch is complete when there are enough of one orientation. An epoch has n // batch_size
    batches; where the two orientations do not come out even, the last one is mixed. Fewer than a
    batch are left out. Rank r has every world-th sample of each batch from the r-th on, so the
    batches over all ranks depend on (seed, epoch) only.

    Args:
        sizes: (height, width) of each sample; squares count as landscapes.
        batch_size: samples of a batch over all ranks, a multiple of ``world``.
        seed: the base seed.
        rank, world: this process and the number of processes.

    Example:
        >>> sizes = [(2, 3), (3, 2), (2, 3), (3, 2)]
        >>> sorted(sorted(batch) for batch in AspectBatchSampler(sizes, 2))
        [[0, 2], [1, 3]]
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if seed < 0:
            raise ValueError(f"AspectBatchSampler: seed must be at least 0, got {seed}")
        if not 0 <= rank < world:
            raise ValueError(
                f"AspectBatchSampler: rank must be in [0, world), got {rank} of {world}"
            )
        if batch_size < 1 or batch_size % world:
            raise ValueError(
                "AspectBatchSampler: batch_size must be a positive multiple of the "
                f"{world} processes, got {batch_size}"
            )
        self._portrait = np.array([height > width for height, width in sizes], dtype=bool)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and how many of its first batches to leave out on resuming."""
        self.epoch = epoch
        self.start = start

    def _batches(self) -> list[list[int]]:
        """The epoch's batches over all ranks."""
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self._portrait))
        batches: list[list[int]] = []
        waiting: tuple[list[int], list[int]] = ([], [])
        for index, portrait in zip(order.tolist(), self._portrait[order].tolist()):
            group = waiting[portrait]
            group.append(index)
            if len(group) == self.batch_size:
                batches.append(group.copy())
                group.clear()
        rest = [*waiting[0], *waiting[1]]
        if len(rest) >= self.batch_size:
            batches.append(rest[: self.batch_size])
        return batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches()[self.start :]:
            yield batch[self.rank :: self.world]

    def __len__(self) -> int:
        return max(len(self._portrait) // self.batch_size - self.start, 0)
