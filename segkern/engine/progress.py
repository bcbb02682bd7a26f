"""The progress bar of a run on a terminal."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from segkern.engine.callbacks import StepGuard
from segkern.engine.state import RunState


class RichProgress(Callback):
    """Two bars: the steps of the whole run, and the batches of the current validation."""

    def __init__(
        self,
        console: Console,
        state: RunState,
        guard: StepGuard,
        total_steps: int,
        val_batches: int,
        title: str,
    ) -> None:
        self.state = state
        self.guard = guard
        self.total_steps = total_steps
        self.val_batches = val_batches
        self.title = title
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            refresh_per_second=4,
        )
        self._train: Any = None
        self._val: Any = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._train = self.progress.add_task(
            "train", total=self.total_steps, completed=self.state.step, note=""
        )
        self._val = self.progress.add_task(
            "validate", total=self.val_batches, note="", visible=False
        )
        self.progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        score = self.state.best_score
        best = f"  best {self.title} {score:.3f}" if score >= 0 else ""
        note = f"epoch {self.state.epoch + 1}  loss {self.guard.loss:.3f}{best}"
        self.progress.update(self._train, completed=self.state.step, note=note)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.progress.reset(self._val, visible=True)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.progress.advance(self._val)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.progress.update(self._val, visible=False)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.progress.stop()

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        self.progress.stop()
