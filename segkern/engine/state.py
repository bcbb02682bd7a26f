"""Where a run stands, and the random-number state that goes with it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


def capture_rng() -> dict[str, Any]:
    """State of the generators of torch (CPU, CUDA devices), NumPy and Python, as plain values.

    Only tensors, tuples, strings and numbers, so that `torch.load(weights_only=True)` reads it
    back.
    """
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": (
            str(kind),
            torch.from_numpy(keys.astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ),
        "python": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Put back what `capture_rng` returned."""
    torch.set_rng_state(state["torch"].cpu())
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, numbers, following = state["python"]
    random.setstate((version, tuple(numbers), following))
    if "cuda" in state and torch.cuda.is_available():
        for device, value in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
            torch.cuda.set_rng_state(value.cpu(), device)


@dataclass
class RunState:
    """Position of a run and what it has measured so far; saved in every checkpoint.

    epoch: epochs completed; batch: batches done of the epoch after those; step: optimiser steps
    done. loss_sum, loss_count: of the unfinished epoch, on this process. rows: one per finished
    epoch, as in metrics.csv. seconds: of work so far, resumed ones included. peak_memory: bytes,
    see `segkern.engine.memory.peak_memory`. rng: one entry per process, from `capture_rng`.
    best_score: the largest score of a validation so far, of the kind that the run's task is judged
    by.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    best_score: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    peak_memory: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    rng: list[dict[str, Any]] = field(default_factory=list)
    losses: list[tuple[float, int]] = field(default_factory=list)

    def stalled(self, patience: int) -> bool:
        """Whether the score has not risen in the last `patience` epochs; never for 0."""
        return 0 < patience <= self.epoch - self.best_epoch

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def load_state_dict(self, state: dict[str, Any], rank: int = 0) -> None:
        if "best_miou" in state:  # its name while mIoU was the only score
            state = {"best_score": state["best_miou"], **state}
        for name in self.__dataclass_fields__:
            setattr(self, name, state.get(name, getattr(self, name)))
        if rank < len(self.losses):
            self.loss_sum, self.loss_count = self.losses[rank]
