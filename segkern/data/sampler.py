"""The order in which samples are visited, the same for any number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """Indices of one epoch, shuffled from (seed, epoch) and dealt out to the ranks in turn.

    Rank r visits the positions r, r + world, ... of one common order, so the union over the ranks
    depends on (seed, epoch) only.

    Args:
        n: number of samples.
        seed: the base seed.
        rank, world: this process and the number of processes.
        shuffle: False visits 0 .. n - 1 in order.
        uneven: what to do where ``world`` does not divide ``n``. ``"pad"`` repeats the first
            indices, so that all ranks do the same number of steps (training); ``"drop"`` leaves the
            last ones out; ``"keep"`` lets lengths differ by one and visits every sample exactly
            once (evaluation: no sample counts twice).

    Example:
        >>> [list(EpochSampler(5, rank=r, world=2, shuffle=False, uneven="keep")) for r in (0, 1)]
        [[0, 2, 4], [1, 3]]
    """

    def __init__(
        self,
        n: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        *,
        shuffle: bool = True,
        uneven: Literal["pad", "drop", "keep"] = "pad",
    ) -> None:
        if n < 0 or seed < 0:
            raise ValueError(f"EpochSampler: n and seed must be at least 0, got {n} and {seed}")
        if not 0 <= rank < world:
            raise ValueError(f"EpochSampler: rank must be in [0, world), got {rank} of {world}")
        if uneven not in ("pad", "drop", "keep"):
            raise ValueError(f"EpochSampler: uneven must be pad, drop or keep, got {uneven!r}")
        self.n = n
        self.seed = seed
        self.rank = rank
        self.world = world
        self.shuffle = shuffle
        self.uneven = uneven
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and how many of this rank's first samples to leave out on resuming."""
        self.epoch = epoch
        self.start = start

    def _order(self) -> np.ndarray:
        order = np.arange(self.n)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.n)
        rest = self.n % self.world
        if rest and self.uneven == "drop":
            order = order[: self.n - rest]
        elif rest and self.uneven == "pad":
            order = np.resize(order, self.n - rest + self.world)
        return order[self.rank :: self.world]

    def __iter__(self) -> Iterator[int]:
        return iter(self._order()[self.start :].tolist())

    def __len__(self) -> int:
        full, rest = divmod(self.n, self.world)
        extra = {"pad": rest > 0, "drop": False, "keep": self.rank < rest}[self.uneven]
        return max(full + int(extra) - self.start, 0)
