"""Training a network: `fit` prepares and checks everything, starts the processes and runs them."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import random
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from segkern import __version__
from segkern.engine.callbacks import Journal, Recorder, StepGuard
from segkern.engine.checkpoint import (
    CONFIG,
    LAST,
    RUN_FILES,
    TENSORBOARD,
    AtomicCheckpointIO,
    build_card,
    read_state,
)
from segkern.engine.errors import EngineError, RunStopped, is_disk_full
from segkern.engine.files import remove_leftovers, write_json
from segkern.engine.fit_forest import check_fit, fit_at_once
from segkern.engine.launch import launch, started_outside
from segkern.engine.loader import TrainLoader, parts_of_step, validation_loader
from segkern.engine.memory import keep_freed_memory
from segkern.engine.settings import TrainSettings, resolve, resolve_device
from segkern.engine.settings import resume as resume_settings
from segkern.engine.state import RunState
from segkern.engine.tasks import task_of
from segkern.engine.tasks.base import Task
from segkern.models import Recipe, WeightsError, create_model, get_entry, save_weights
from segkern.nn import freeze_batch_norm


@dataclasses.dataclass
class FitResult:
    """Outcome of `fit`.

    reason: "epochs", "max_steps", "max_time" or "patience" for what ended it, "complete" where
    nothing was left to do, "launched" for a run of several processes. best_score: mIoU, mask AP or
    PQ, as the network's task has it; below 0 where there is none.
    """

    run: Path
    reason: str
    epochs: int
    steps: int
    best_score: float
    best_epoch: int


def fit(
    model: str | None = None,
    output: str | Path = "runs/run",
    *,
    resume: bool = False,
    overwrite: bool = False,
    show: Callable[[str], None] | None = None,
    **given: Any,
) -> FitResult:
    """Train `model` and leave the run in the folder `output`.

    `given` holds fields of `TrainSettings` and of the model's recipe; those left out, or None, have
    the recipe's or the default value. With `resume` the run in `output` goes on with its own
    settings, which may not be changed (except for those in `settings.FREE`, and the length of the
    run where the learning rate does not depend on it); `model` may then be None.

    The folder gets config.json, metrics.csv (a row per epoch), last.ckpt, best.safetensors (by
    mIoU, mask AP or PQ of the validation), log.txt and tensorboard/. Runs with equal settings on
    equal hardware give equal numbers, on the CPU to the last bit; stopping and resuming does not
    change them.

    show: called with each line for the user. Raises EngineError for what the caller can put right
    before anything has been written, RunStopped for a run that had to end, DatasetError for a bad
    data set.
    """
    run = Path(output)
    if resume and overwrite:
        raise EngineError("train: give --resume or --overwrite, not both")
    settings = _resumed(run, model, given) if resume else _resolved(model, run, given)
    if resume:
        state = read_state(run / LAST)
        if _complete(settings, state):
            return _result(run, "complete", state)
    if settings.recipe["optimizer"] == "fit":
        return _fit_at_once(settings, resume=resume, overwrite=overwrite, show=show)
    check_devices(settings)
    task_of(settings.model).check(settings)
    if started_outside():
        # The first process has the folder to itself until the processes meet.
        if global_rank(settings) == 0:
            _prepare_folder(settings, resume=resume, overwrite=overwrite)
        return run_job(settings, resume=resume, show=show)
    _check_folder(run, resume=resume, overwrite=overwrite)
    if settings.world == 1:
        job = Job(settings, resume=resume, show=show)
        _prepare_folder(settings, resume=resume, overwrite=overwrite)
        return job.run()
    for split in ("train", "val"):
        _open(settings, split)
    if settings.nodes == 1 or os.environ.get("NODE_RANK", "0") == "0":
        _prepare_folder(settings, resume=resume, overwrite=overwrite)
    launch(
        {"settings": settings.to_json(), "resume": resume},
        devices=settings.devices,
        nodes=settings.nodes,
    )
    # Other machines than the first need not see the folder.
    state = read_state(run / LAST) if (run / LAST).is_file() else RunState()
    return _result(run, "launched", state)


def _fit_at_once(
    settings: TrainSettings, *, resume: bool, overwrite: bool, show: Callable[[str], None] | None
) -> FitResult:
    """The run of a method without gradients."""
    check_fit(settings, resume=resume)
    run = Path(settings.output)
    _check_folder(run, resume=resume, overwrite=overwrite)
    _seed_everything(settings.seed)
    task = task_of(settings.model)
    train_transform, val_transform = task.transforms(Recipe(**settings.recipe))
    train_set = _open(settings, "train", train_transform)
    val_set = _open(settings, "val", val_transform)
    network = _build_network(settings, task.network_options(train_set), resume=False)
    if not hasattr(network, "fit"):
        raise EngineError(
            f"train: {settings.model} is trained by steps: optimizer must not be 'fit'"
        )
    _prepare_folder(settings, resume=resume, overwrite=overwrite)
    measured = fit_at_once(network, settings, task, train_set, val_set, Journal(run, show))
    return FitResult(run, "epochs", 1, 1, measured["miou"], 1)


def run_job(
    settings: TrainSettings, *, resume: bool, show: Callable[[str], None] | None = None
) -> FitResult:
    """One process of a run of several, its place given by the environment."""
    if global_rank(settings) > 0:
        show = None
    return Job(settings, resume=resume, show=show).run()


class Job:
    """The work of one process: everything built and checked in `__init__`, done in `run`."""

    def __init__(
        self, settings: TrainSettings, *, resume: bool, show: Callable[[str], None] | None
    ) -> None:
        self.started = time.monotonic()
        self.settings = settings
        if resolve_device(settings.device) == "cpu":
            keep_freed_memory()
        self.resume = resume
        self.folder = Path(settings.output)
        self.recipe = Recipe(**settings.recipe)
        self.state = RunState()
        self.journal = Journal(self.folder, show)
        _seed_everything(settings.seed)
        task = self.task = task_of(settings.model)
        train_transform, val_transform = task.transforms(self.recipe, settings.size)
        self.train_set = _open(settings, "train", train_transform)
        self.val_set = _open(settings, "val", val_transform)
        self.network = _build_network(settings, task.network_options(self.train_set), resume=resume)
        self._weights_input = self.network.recipe.input
        self._own_input = get_entry(settings.model).recipe.input
        self.network.recipe = self.recipe  # networks that compare colours read their scale there
        if self.recipe.freeze_norm:
            freeze_batch_norm(self.network)
        data = _Data(settings, task, self.train_set, self.val_set, self.state)
        self.data = data
        loader = data.train(0, settings.world)
        self.steps_per_epoch, self.parts = loader.steps_per_epoch, loader.parts
        if self.recipe.step_epochs:
            size = self.recipe.step_epochs * self.steps_per_epoch
            self.recipe = dataclasses.replace(self.recipe, step_size=size, step_epochs=0)
        self.total_steps = self.steps_per_epoch * self.recipe.epochs
        if settings.max_steps is not None:
            self.total_steps = min(self.total_steps, settings.max_steps)
        self.module = task.module(
            self.network,
            settings,
            self.recipe,
            train_set=self.train_set,
            val_set=self.val_set,
            total_steps=self.total_steps,
            state=self.state,
        )
        if settings.compile:
            self.network.compile()
        # Equal weights everywhere, but each process its own dropout.
        _seed_everything(settings.seed + 7919 * global_rank(settings))

    def run(self) -> FitResult:
        settings, folder = self.settings, self.folder
        guard = StepGuard(
            self.state,
            folder,
            epochs=self.recipe.epochs,
            steps_per_epoch=self.steps_per_epoch,
            parts=self.parts,
            max_steps=settings.max_steps,
            max_time=settings.max_time,
            started=self.started,
        )
        first_step = read_state(folder / LAST).step if self.resume else 0
        trainer = self._trainer(guard, first_step)
        main = trainer.is_global_zero
        if main:
            self.journal(self._headline(first_step))
            expected = self._weights_input
            if not self.resume and expected not in (self.recipe.input, self._own_input):
                self.journal(
                    f"note: the weights it starts from expect --input {expected}, this run has "
                    f"{self.recipe.input}"
                )
        checkpoint = str(folder / LAST) if self.resume else None
        try:
            with warnings.catch_warnings():
                _quiet()
                trainer.fit(self.module, self.data, ckpt_path=checkpoint)
        except SystemExit as error:  # how lightning ends after Ctrl-C
            stopped = RunStopped(f"train: interrupted; {_how_to_go_on(folder)}")
            stopped.exit_code = 130
            raise stopped from error
        except Exception as error:  # one kind is turned into a message, all others go on unchanged
            if not is_disk_full(error):
                raise
            remove_leftovers(folder)
            raise RunStopped(
                f"train: the disk is full ({folder}); the run stopped. {_how_to_go_on(folder)}"
            ) from error
        stalled = self.state.stalled(self.recipe.patience)
        reason = guard.reason or ("patience" if stalled else "complete")
        result = _result(folder, reason, self.state)
        if main:
            self.journal(
                f"stopped by {reason}: {result.epochs} epochs, {result.steps} steps, "
                f"best val {self.task.score_title} {result.best_score:.4f} "
                f"(epoch {result.best_epoch}), "
                f"{time.monotonic() - self.started:.0f} s, {self.state.peak_memory >> 20} MiB"
            )
        return result

    def _trainer(self, guard: StepGuard, first_step: int) -> Trainer:
        settings, folder = self.settings, self.folder
        accelerator = resolve_device(settings.device)
        strategy: Any = "auto"
        if settings.world > 1:
            # Statistics are averaged at the end of an epoch instead of taken from process 0 at each
            # step; validation then needs no talk between processes, which may hold different
            # numbers of batches.
            strategy = DDPStrategy(
                broadcast_buffers=False,
                process_group_backend="nccl" if accelerator == "cuda" else "gloo",
            )
        recorder = Recorder(
            self.state,
            folder,
            steps_per_epoch=self.steps_per_epoch,
            columns=self.task.columns,
            score=self.task.score,
            title=self.task.score_title,
            save_best=self._save_best,
            report=self.journal,
            patience=self.recipe.patience,
        )
        callbacks: list[Any] = [guard, recorder]
        if settings.progress and sys.stderr.isatty() and global_rank(settings) == 0:
            from rich.console import Console

            from segkern.engine.progress import RichProgress

            batches = len(self.data.val(0, settings.world))
            console = Console(stderr=True)
            self.journal.show = partial(console.print, markup=False, highlight=False)
            title = self.task.score_title
            callbacks.append(
                RichProgress(console, self.state, guard, self.total_steps, batches, title)
            )
        with warnings.catch_warnings():
            _quiet()
            return Trainer(
                accelerator="gpu" if accelerator == "cuda" else "cpu",
                devices=settings.devices,
                num_nodes=settings.nodes,
                strategy=strategy,
                precision={"32": "32-true"}.get(settings.precision, settings.precision),
                max_epochs=-1,
                accumulate_grad_batches=self.parts,
                gradient_clip_val=self.recipe.clip_norm,
                gradient_clip_algorithm="norm",
                callbacks=callbacks,
                logger=TensorBoardLogger(
                    folder,
                    name=TENSORBOARD,
                    version="",
                    purge_step=first_step + 1 if first_step else None,
                ),
                plugins=[AtomicCheckpointIO()],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
                reload_dataloaders_every_n_epochs=1,
                log_every_n_steps=1,
                deterministic="warn" if settings.deterministic else False,
                benchmark=None if settings.deterministic else True,
            )

    def _save_best(self, path: Path, measured: dict[str, Any]) -> None:
        of_task = self.task.card(self.settings, self.val_set, measured)
        card = build_card(self.network, self.settings, self.val_set, measured, of_task)
        save_weights(path, self.network.state_dict(), {"card": json.dumps(card)})

    def _headline(self, first_step: int) -> str:
        s, r = self.settings, self.recipe
        verb = f"resumed at step {first_step}" if first_step else "training"
        where = (
            f"{resolve_device(s.device)} x{s.world}" if s.world > 1 else resolve_device(s.device)
        )
        return (
            f"{verb}: {s.model} on {s.data} ({len(self.train_set)} train, {len(self.val_set)} "
            f"val), {r.epochs} epochs of {self.steps_per_epoch} steps, batch {r.batch_size}, "
            f"{r.optimizer} lr {r.lr:g}, {s.precision}, {where}"
        )


class _Data(LightningDataModule):
    """Hands lightning the same two loaders for the whole run."""

    def __init__(
        self,
        settings: TrainSettings,
        task: Task,
        train_set: Any,
        val_set: Any,
        state: RunState,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.task = task
        self.train_set = train_set
        self.val_set = val_set
        self.state = state
        self._train: TrainLoader | None = None
        self._val: Any = None

    def train(self, rank: int, world: int, workers: int = 0) -> TrainLoader:
        recipe = Recipe(**self.settings.recipe)
        return TrainLoader(
            self.train_set,
            batch_size=recipe.batch_size,
            seed=self.settings.seed,
            state=self.state,
            rank=rank,
            world=world,
            parts=parts_of_step(recipe.batch_size, recipe.micro_batch, world),
            workers=workers,
            pin_memory=resolve_device(self.settings.device) == "cuda",
            batches=self.task.train_batches(
                self.train_set, recipe, self.settings.seed, rank, world
            ),
            collate_fn=self.task.collate(),
        )

    def val(self, rank: int, world: int, workers: int = 0) -> Any:
        return validation_loader(
            self.task.validation_set(self.val_set),
            batch_size=max(1, self.settings.recipe["batch_size"] // world),
            rank=rank,
            world=world,
            workers=workers,
            pin_memory=resolve_device(self.settings.device) == "cuda",
            collate_fn=self.task.validation_collate(),
        )

    def train_dataloader(self) -> TrainLoader:
        if self._train is None:
            trainer = self.trainer
            self._train = self.train(
                trainer.global_rank, trainer.world_size, workers(self.settings)
            )
        return self._train

    def val_dataloader(self) -> Any:
        if self._val is None:
            trainer = self.trainer
            self._val = self.val(trainer.global_rank, trainer.world_size, workers(self.settings))
        return self._val


def workers(settings: TrainSettings) -> int:
    """Worker processes that load data; by default none on the CPU, whose cores have to compute."""
    if settings.workers is not None:
        return settings.workers
    if resolve_device(settings.device) == "cpu":
        return 0
    return max(1, min(8, (os.cpu_count() or 1) // settings.devices))


def global_rank(settings: TrainSettings) -> int:
    """This process's number in the run, from the environment; 0 where there is one process."""
    if settings.world == 1:
        return 0
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    return int(os.environ.get("NODE_RANK", 0)) * settings.devices + int(os.environ["LOCAL_RANK"])


def check_devices(settings: TrainSettings) -> None:
    """Raise EngineError where this machine cannot run as the settings ask."""
    device = resolve_device(settings.device)
    started = int(os.environ.get("WORLD_SIZE", settings.world))
    if started_outside() and started != settings.world:
        raise EngineError(
            f"train: {started} processes were started, but --devices {settings.devices} on --nodes "
            f"{settings.nodes} makes {settings.world}"
        )
    if device == "cuda":
        if not torch.cuda.is_available():
            raise EngineError(
                "train: device cuda is not available: torch sees no GPU (see `segkern info`)"
            )
        if settings.devices > torch.cuda.device_count():
            raise EngineError(
                f"train: devices must be at most the {torch.cuda.device_count()} GPUs of this "
                f"machine, got {settings.devices}"
            )
    elif settings.precision == "16-mixed":
        raise EngineError("train: precision 16-mixed needs a GPU; on the CPU use bf16-mixed or 32")
    if settings.recipe["batch_size"] % settings.world:
        raise EngineError(
            f"train: batch_size counts all devices and must be a multiple of the {settings.world} "
            f"processes, got {settings.recipe['batch_size']}"
        )


def _resolved(model: str | None, run: Path, given: dict[str, Any]) -> TrainSettings:
    if model is None:
        raise EngineError("train: name the model to train")
    return resolve(model, run, given)


def _resumed(run: Path, model: str | None, given: dict[str, Any]) -> TrainSettings:
    if not (run / CONFIG).is_file():
        raise EngineError(f"train: --resume: there is no run in {run} (no {CONFIG})")
    stored = TrainSettings.from_json(
        json.loads((run / CONFIG).read_text(encoding="utf-8"))["settings"]
    )
    stored.output = str(run)
    settings = resume_settings(stored, model, given)
    if not (run / LAST).is_file():
        raise EngineError(
            f"train: --resume: {run} has no checkpoint ({LAST}); the run ended before its first "
            "epoch was complete. Start it again with --overwrite."
        )
    return settings


def _check_folder(run: Path, *, resume: bool, overwrite: bool) -> None:
    if run.exists() and not run.is_dir():
        raise EngineError(f"train: output must be a folder, and {run} is a file")
    if not resume and run.is_dir() and any(run.iterdir()):
        if not (run / CONFIG).is_file():
            raise EngineError(
                f"train: the folder {run} is not empty and holds no run; choose another --output"
            )
        if not overwrite:
            raise EngineError(
                f"train: {run} already holds a run; go on with it (--resume), replace it "
                "(--overwrite) or choose another --output"
            )


def _prepare_folder(settings: TrainSettings, *, resume: bool, overwrite: bool) -> None:
    run = Path(settings.output)
    _check_folder(run, resume=resume, overwrite=overwrite)
    if not resume and run.is_dir():
        for name in RUN_FILES:
            (run / name).unlink(missing_ok=True)
        shutil.rmtree(run / TENSORBOARD, ignore_errors=True)
    try:
        run.mkdir(parents=True, exist_ok=True)
        remove_leftovers(run)
        write_json(run / CONFIG, {"segkern": __version__, "settings": settings.to_json()})
    except OSError as error:
        raise EngineError(f"train: cannot write to {run}: {error.strerror or error}") from error


def _open(settings: TrainSettings, split: str, transform: Any = None) -> Any:
    # Passes of several sizes are all made of the files' own pixels.
    passes = split == "train" and settings.recipe["passes"]
    as_stored = passes and not settings.data.startswith("synthetic")
    return task_of(settings.model).open(
        f"train: {settings.model}",
        settings.data,
        split,
        transform=transform,
        # Every seed is measured on the same validation set.
        seed=settings.seed if split == "train" else 0,
        size=None if as_stored else settings.size,
        length=settings.limit_train if split == "train" else settings.limit_val,
        cache_images=settings.cache and transform is not None,
    )


def _build_network(settings: TrainSettings, of_data: dict[str, Any], *, resume: bool) -> nn.Module:
    # A checkpoint brings its own weights; those that the run began with need not be there any more.
    first = (
        {}
        if resume
        else {"weights": settings.weights, "weights_backbone": settings.weights_backbone}
    )
    options = dict(settings.model_options)
    if options.get("crf"):
        # The CRF has to know how the images are scaled in this run.
        own = {} if options["crf"] is True else options["crf"]
        options["crf"] = {"input": settings.recipe["input"], **own}
    try:
        return create_model(
            settings.model,
            **first,
            **{**of_data, **options},
        )
    except (ValueError, TypeError, WeightsError, OSError) as error:
        raise EngineError(f"train: {error}") from error


def _complete(settings: TrainSettings, state: RunState) -> bool:
    steps = settings.max_steps
    stalled = state.stalled(settings.recipe["patience"])
    done = state.epoch >= settings.recipe["epochs"]
    return stalled or done or (steps is not None and state.step >= steps)


def _result(run: Path, reason: str, state: RunState) -> FitResult:
    return FitResult(run, reason, state.epoch, state.step, state.best_score, state.best_epoch)


def _how_to_go_on(run: Path) -> str:
    if (run / LAST).exists():
        return f"The last good checkpoint is intact: {run / LAST}; go on with --resume."
    return "No checkpoint had been written yet."


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _quiet() -> None:
    """Leave out lightning's advice that does not apply here; errors and our own lines stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*dataloaders across ranks.*")
