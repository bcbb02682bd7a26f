"""What happens around the training steps: stopping, recording, saving, showing."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from segkern.engine.checkpoint import BEST, LAST, LOG, METRICS
from segkern.engine.errors import RunStopped
from segkern.engine.files import write_atomic
from segkern.engine.memory import peak_memory
from segkern.engine.module import distributed
from segkern.engine.state import RunState, capture_rng, restore_rng

# Of metrics.csv, before those of the task.
COLUMNS = ("epoch", "step", "lr", "train_loss")


class StepGuard(Callback):
    """Counts steps, looks at the loss, and ends the run at its limits.

    A loss that is not finite raises RunStopped before anything is saved. At `epochs`, `max_steps`
    or after `max_time` seconds from `started` the step at hand is finished, the network validated
    and saved. All processes decide together. On a GPU the loss is looked at every `log_every`
    steps, as that waits for the device; a bad loss in between still shows, in the running sum.

    parts: batches of a step, whose losses lightning has divided by their number.
    """

    def __init__(
        self,
        state: RunState,
        run: Path,
        *,
        epochs: int,
        steps_per_epoch: int,
        parts: int = 1,
        max_steps: int | None = None,
        max_time: float | None = None,
        started: float | None = None,
        log_every: int = 10,
    ) -> None:
        self.state = state
        self.run = run
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.parts = parts
        self.max_steps = max_steps
        self.max_time = max_time
        self.started = time.monotonic() if started is None else started
        self.log_every = log_every
        self.reason: str | None = None
        self.loss: float = math.nan
        self._pending: torch.Tensor | None = None
        self._count = 0
        self._part = 0

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        state = self.state
        loss = outputs["loss"].detach()
        self._pending = loss.double() if self._pending is None else self._pending + loss.double()
        self._part += 1
        if self._part < self.parts:
            return
        self._part = 0
        self._count += 1
        state.batch += 1
        state.step += 1
        epoch_done = state.batch >= self.steps_per_epoch
        last = epoch_done and state.epoch + 1 >= self.epochs
        out_of_steps = self.max_steps is not None and state.step >= self.max_steps
        due = state.step % self.log_every == 0 or epoch_done or out_of_steps
        look = due or loss.device.type == "cpu"
        late = self.max_time is not None and time.monotonic() - self.started >= self.max_time
        if look or late:
            self._take_loss()
        bad = not math.isfinite(state.loss_sum)
        if distributed():
            bad, late = self._agree(bad, late, module.device) if look else (False, False)
        if bad:
            raise RunStopped(self._bad_loss())
        if late:
            self.reason = "max_time"
        if out_of_steps:
            self.reason = "max_steps"
        if last:
            self.reason = "epochs"
        if self.reason:
            trainer.should_stop = True
        if trainer.logger is not None and state.step % self.log_every == 0:
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            parts = {f"train/{name}": float(v) for name, v in outputs.get("parts", {}).items()}
            trainer.logger.log_metrics(
                {"train/loss": self.loss, "train/lr": rate, **parts}, step=state.step
            )

    def _take_loss(self) -> None:
        if self._pending is not None:
            total = float(self._pending)
            self.loss = total / self._count
            self.state.loss_sum += total
            self.state.loss_count += self._count
            self._pending, self._count = None, 0

    @staticmethod
    def _agree(bad: bool, late: bool, device: torch.device) -> tuple[bool, bool]:
        flags = torch.tensor([bad, late], dtype=torch.int32, device=device)
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        return bool(flags[0]), bool(flags[1])

    def _bad_loss(self) -> str:
        state = self.state
        kept = self.run / LAST
        if kept.exists():
            where = f"The last good checkpoint, of epoch {state.epoch}, is intact: {kept}"
        else:
            where = "No checkpoint had been written yet."
        value = self.loss if not math.isfinite(self.loss) else state.loss_sum
        return (
            f"train: the loss became {value} at step {state.step} (epoch {state.epoch + 1}); the "
            f"run stopped. {where}\nA lower --lr or --precision 32 may help."
        )


class Recorder(Callback):
    """At the end of an epoch or run: metrics.csv, best.safetensors, last.ckpt, in this order.

    Every file is replaced as a whole; the checkpoint carries the rows of metrics.csv and the
    random-number states of all processes, so that whatever a killed process left is brought back in
    line on resume. A run that stops inside an epoch writes a row for the part done; resuming takes
    that row back.

    columns: figures of a validation that get a column. score: the one of them that chooses the
    best checkpoint. title: its name for people. patience: epochs without a better score after which
    the run ends, 0 for none.
    """

    def __init__(
        self,
        state: RunState,
        run: Path,
        *,
        steps_per_epoch: int,
        columns: Sequence[str],
        score: str,
        title: str,
        save_best: Callable[[Path, dict[str, Any]], None],
        report: Callable[[str], None],
        patience: int = 0,
    ) -> None:
        self.state = state
        self.run = run
        self.steps_per_epoch = steps_per_epoch
        self.columns = tuple(columns)
        self.score = score
        self.title = title
        self.save_best = save_best
        self.report = report
        self.patience = patience
        self._rng: dict[str, Any] | None = None
        self._before_validation: dict[str, Any] | None = None
        self._epoch_started = 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self.state.rng:
            self._rng = self.state.rng[trainer.global_rank]
        if trainer.is_global_zero:
            self._write(self.state.rows)

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Both a run that goes on and one that resumes start an epoch from the state at the last
        # one's end.
        if self._rng is not None:
            restore_rng(self._rng)
        self._epoch_started = self._epoch_started or time.monotonic()

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._before_validation = capture_rng()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._before_validation is not None:
            restore_rng(self._before_validation)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        state = self.state
        finished = state.batch >= self.steps_per_epoch
        row = self._row(trainer, module)
        score = row[f"val_{self.score}"]
        improved = score is not None and score > state.best_score
        if improved:
            state.best_score, state.best_epoch = score, row["epoch"]
        rows = [*state.rows, row]
        self._rng = capture_rng()
        state.rng = gather(self._rng)
        if finished:
            state.rows = rows
            state.epoch, state.batch = state.epoch + 1, 0
            state.loss_sum, state.loss_count = 0.0, 0
        if state.stalled(self.patience):
            trainer.should_stop = True
        now = time.monotonic()
        elapsed, self._epoch_started = now - self._epoch_started, now
        state.seconds += elapsed
        state.peak_memory = max(state.peak_memory, peak_memory(module.device))
        state.losses = gather((state.loss_sum, state.loss_count))
        if trainer.is_global_zero:
            self._write(rows)
            if improved:
                self.save_best(self.run / BEST, {**row, **(module.val_metrics or {})})
        trainer.save_checkpoint(self.run / LAST)
        if trainer.is_global_zero:
            self._tell(trainer, row, improved, finished, elapsed)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        columns = (*COLUMNS, *(f"val_{name}" for name in self.columns))
        write_rows(self.run / METRICS, rows, columns)

    def _row(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        state, measured = self.state, module.val_metrics or {}
        total = torch.tensor(
            [state.loss_sum, state.loss_count], dtype=torch.float64, device=module.device
        )
        if distributed():
            torch.distributed.all_reduce(total)
        return {
            "epoch": state.epoch + 1,
            "step": state.step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train_loss": float(total[0] / total[1]) if float(total[1]) else None,
            **{f"val_{name}": measured.get(name) for name in self.columns},
        }

    def _tell(
        self, trainer: Trainer, row: dict[str, Any], improved: bool, finished: bool, seconds: float
    ) -> None:
        if trainer.logger is not None:
            values = {
                f"val/{name}": row[f"val_{name}"]
                for name in self.columns
                if row[f"val_{name}"] is not None
            }
            values["train/epoch_loss"] = row["train_loss"]
            values["train/epoch_seconds"] = seconds
            trainer.logger.log_metrics(values, step=row["step"])
        # Networks that return losses of their own have none to show in validation.
        loss = f"val loss {_shown(row['val_loss'])}  " if "loss" in self.columns else ""
        self.report(
            f"epoch {row['epoch']}{'' if finished else ' (unfinished)'}  step {row['step']}  "
            f"loss {_shown(row['train_loss'])}  {loss}"
            f"val {self.title} {_shown(row[f'val_{self.score}'])}{' *' if improved else ''}  "
            f"{seconds:.0f} s"
        )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def gather(value: Any) -> list[Any]:
    """`value` of every process, in order of rank."""
    if not distributed():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def write_rows(path: Path, rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    """Write metrics.csv: a row per epoch, floats with all their digits, empty if not measured."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode("utf-8"))


def read_rows(path: Path) -> list[dict[str, float | None]]:
    """The rows of metrics.csv as numbers."""
    with open(path, newline="", encoding="utf-8") as file:
        return [
            {name: float(value) if value else None for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


class Journal:
    """Lines for the terminal and, with the time of day, for RUN/log.txt."""

    def __init__(self, run: Path, show: Callable[[str], None] | None) -> None:
        self.path = run / LOG
        self.show = show

    def __call__(self, line: str) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {line}\n")
        if self.show is not None:
            self.show(line)
