"""What data sets of classes and of objects have in common: numbered samples, drawn by epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset


class SampledDataset(Dataset):
    """What all data sets have: numbered samples, and randomness that their number and epoch fix.

    Args:
        transform: called on a sample, or None.
        seed: the base seed of all random choices.
    """

    def __init__(self, transform: Any, seed: int) -> None:
        if seed < 0:
            raise ValueError(f"{type(self).__name__}: seed must be at least 0, got {seed}")
        self.transform = transform
        self.seed = seed
        # Shared memory, so that workers kept alive between epochs see set_epoch as well.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch set last."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the randomness of the samples from now on, in this process and its workers."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        raise NotImplementedError

    def sample_name(self, index: int) -> str:
        """A name for sample ``index`` that is unique in the split and usable as a file stem."""
        raise NotImplementedError

    def identity(self) -> str:
        """A string that changes whenever the untransformed samples may have changed."""
        raise NotImplementedError

    def check_index(self, index: int) -> None:
        """Raise IndexError for a number that no sample has."""
        if not 0 <= index < len(self):
            raise IndexError(
                f"{type(self).__name__}: index must be in [0, {len(self)}), got {index}"
            )
