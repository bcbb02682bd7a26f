"""Runs of methods that are fitted at once: the files of a training run, without its steps."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segkern.data import SegmentationDataset
from segkern.engine.callbacks import Journal, write_rows
from segkern.engine.checkpoint import BEST, METRICS, build_card
from segkern.engine.errors import EngineError
from segkern.engine.loader import validation_loader
from segkern.engine.memory import peak_memory
from segkern.engine.settings import TrainSettings
from segkern.engine.tasks.base import Task
from segkern.metrics import SegmentationMetrics
from segkern.models import save_weights
from segkern.models._forest import MissingExtra
from segkern.models._preprocess import preprocess

# Settings that speak of steps, or of what is trained before.
_MEANINGLESS = ("max_steps", "max_time", "weights", "weights_backbone")


class Samples:
    """A data set as a network's ``fit`` reads it: preprocessed images and their labels."""

    def __init__(self, dataset: SegmentationDataset, mode: str) -> None:
        self.dataset, self.mode = dataset, mode

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.dataset[index]
        return preprocess(image, self.mode), mask


def check_fit(settings: TrainSettings, *, resume: bool) -> None:
    """Raise EngineError for settings that a fit at once cannot follow."""
    given = [name for name in _MEANINGLESS if getattr(settings, name) is not None]
    if resume:
        given.append("resume")
    if settings.world > 1:
        given.append("devices")
    if given:
        raise EngineError(
            f"train: {settings.model} is fitted at once, and {', '.join(given)} cannot be followed"
        )


def fit_at_once(
    network: nn.Module,
    settings: TrainSettings,
    task: Task,
    train_set: SegmentationDataset,
    val_set: SegmentationDataset,
    journal: Journal,
) -> dict[str, Any]:
    """Fit `network`, measure it, and write best.safetensors and metrics.csv; the measured figures.

    Raises EngineError where the method cannot be fitted.
    """
    started = time.monotonic()
    folder = journal.path.parent
    journal(
        f"fitting: {settings.model} on {settings.data} ({len(train_set)} train, {len(val_set)} val)"
    )
    mode = settings.recipe["input"]
    try:
        done = network.fit(
            Samples(train_set, mode), seed=settings.seed, ignore_index=train_set.ignore_index
        )
    except (ValueError, MissingExtra) as error:
        raise EngineError(f"train: {error}") from error
    journal(
        f"fitted on {done['pixels']:,} pixels: {done['nodes']:,} nodes, "
        f"{time.monotonic() - started:.0f} s"
    )
    measured = {**_measure(network.eval(), val_set, settings, mode), "epoch": 1, "step": 1}
    row = {"epoch": 1, "step": 1, "lr": None, "train_loss": None}
    row |= {f"val_{name}": measured.get(name) for name in task.columns}
    write_rows(folder / METRICS, [row], list(row))
    card = build_card(network, settings, val_set, measured, task.card(settings, val_set, measured))
    save_weights(folder / BEST, network.state_dict(), {"card": json.dumps(card)})
    most = peak_memory(torch.device("cpu")) >> 20
    journal(f"val mIoU {measured['miou']:.4f}, {time.monotonic() - started:.0f} s, {most} MiB")
    return measured


@torch.no_grad()
def _measure(
    network: nn.Module, dataset: SegmentationDataset, settings: TrainSettings, mode: str
) -> dict[str, Any]:
    metrics = SegmentationMetrics(
        dataset.num_classes, ignore_index=dataset.ignore_index, absent=settings.absent
    )
    surprise, pixels = 0.0, 0
    for batch in validation_loader(dataset, batch_size=1):
        for images, target in batch:
            scores = network(preprocess(images, mode))["out"]
            metrics.update(scores.argmax(1), target)
            counted = target != dataset.ignore_index
            true = scores.gather(1, target.masked_fill(~counted, 0)[:, None])[:, 0]
            surprise -= float(true[counted].sum())
            pixels += int(counted.sum())
    loss = surprise / pixels if pixels else np.nan
    return {**metrics.compute(), "loss": loss}
