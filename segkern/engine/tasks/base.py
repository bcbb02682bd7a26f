"""What a task has to bring for networks of it to be trained, measured and applied."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from segkern.data import open_dataset
from segkern.engine.errors import EngineError
from segkern.engine.loader import EpochBatches
from segkern.engine.module import NetworkModule
from segkern.engine.state import RunState
from segkern.losses import LOSSES
from segkern.models import Recipe


@dataclass
class Use:
    """How a checkpoint is applied, beyond what its card says; a default is the plain way.

    tta, crf, protocol: for labels of pixels. probs: write the probabilities. absent, boundary: how
    labels are measured. score: instances below are left out of pictures and files. json: write
    instances in COCO's format.
    """

    tta: bool = False
    crf: Any = None
    protocol: Any = None
    probs: bool = False
    absent: str = "skip"
    boundary: bool = True
    score: float | None = None
    json: bool = False


@dataclass
class Picture:
    """A sample for the eye: the photo and both sides as RGB arrays (H, W, 3) uint8."""

    name: str
    photo: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


@dataclass
class ReportParts:
    """What a report shows of an evaluation.

    figures: name and value, a share of 1 or None; the first two head the page. protocol: how they
    were measured. heading, columns, rows: a table of details; a row is its name, its colour or
    None, the share of its bar, and the shares of the columns. curves: title, with name and column
    of metrics.csv of each line, and whether the axis starts at 0. note: below the pictures.
    """

    figures: list[tuple[str, float | None]]
    protocol: str
    heading: str
    columns: list[str]
    rows: list[tuple[str, Any, float | None, list[float | None]]]
    curves: list[tuple[str, list[tuple[str, str]], bool]]
    note: str = ""


@dataclass
class Report:
    """Figures of an evaluation for the terminal: lines of text, and tables of text cells."""

    tables: list[tuple[list[str], list[list[str]]]]
    figures: list[tuple[str, float | None]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


class Measure:
    """An evaluation under way. `update` takes the batches of `loader` one by one."""

    def loader(self, batch_size: int, workers: int) -> Any:
        """Batches of the data set, each sample once, in order."""
        raise NotImplementedError

    def update(self, batch: Any) -> int:
        """Take a batch; the number of its images."""
        raise NotImplementedError

    def figures(self) -> dict[str, Any]:
        """The figures, first in metrics.json."""
        raise NotImplementedError

    def details(self) -> dict[str, Any]:
        """How they were measured, last in metrics.json."""
        raise NotImplementedError

    def picture(self, index: int) -> Picture:
        """Sample `index` beside what the network makes of it."""
        raise NotImplementedError


class Writer:
    """The files of a prediction. `write` takes images in groups; `finish` writes what is last."""

    def write(self, group: Sequence[tuple[Path, np.ndarray]]) -> None:
        """Apply the network to images of one size, and write what it finds.

        group: path and (H, W, 3) uint8 RGB of each.
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Write the files that are of all images together."""


class Task:
    """A task: what its networks find, and everything in which it differs from the others.

    Attributes:
        name: As in :class:`segkern.models.ModelEntry`.
        finds: What its networks find, for messages.
        score: The figure of a validation that chooses the best checkpoint.
        score_title: Its name for people.
        columns: Figures of a validation that metrics.csv holds, as `val_` and the name.
        default_data: The data set where none is named.
        data_kinds: Tasks whose data sets fit.
        data_forms: These data sets, for messages.
        outputs: Folders that a prediction fills.
        network_losses: Whether its networks return their own losses in training.
        foreign_recipe: Fields of a recipe that mean nothing here, and so must have their default.
    """

    name: ClassVar[str]
    finds: ClassVar[str]
    score: ClassVar[str]
    score_title: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    default_data: ClassVar[str]
    data_kinds: ClassVar[tuple[str, ...]]
    data_forms: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    network_losses: ClassVar[bool] = False
    foreign_recipe: ClassVar[tuple[str, ...]] = ()

    # Training ------------------------------------------------------------------------------------

    def check(self, settings: Any) -> None:
        """Raise EngineError where the settings of a run do not fit the task."""
        loss = settings.recipe["loss"]
        if (loss == "network") != self.network_losses:
            wanted = "'network'" if self.network_losses else f"made of {', '.join(LOSSES)}"
            raise EngineError(
                f"train: loss must be {wanted} for {settings.model}, which finds {self.finds}; "
                f"got {loss!r}"
            )
        plain = Recipe(lr=1.0, batch_size=1, epochs=1)
        for name in self.foreign_recipe:
            value = settings.recipe[name]
            if value != getattr(plain, name):
                raise EngineError(
                    f"train: {name} means nothing to {settings.model}, which finds {self.finds}; "
                    f"got {value}"
                )

    def open(self, user: str, spec: str, split: str, **options: Any) -> Any:
        """The data set of a specification, if it fits; `user` names who asks for it."""
        dataset = open_dataset(spec, split, **options)
        self.check_data(user, spec, dataset)
        return dataset

    def check_data(self, user: str, spec: str, dataset: Any) -> None:
        """Raise EngineError for a data set of another task."""
        if getattr(dataset, "task", "semantic") not in self.data_kinds:
            raise EngineError(
                f"{user} finds {self.finds}, which {spec} does not have; data sets that fit: "
                f"{self.data_forms}"
            )

    def transforms(self, recipe: Recipe, size: tuple[int, int] | None = None) -> tuple[Any, Any]:
        """What is done to the samples in training, and in validation; `size` is the run's."""
        raise NotImplementedError

    def network_options(self, dataset: Any) -> dict[str, Any]:
        """Options of the network that the data set decides."""
        return {"num_classes": dataset.num_classes}

    def train_batches(self, dataset: Any, recipe: Recipe, seed: int, rank: int, world: int) -> Any:
        """Indices of the training batches, as :class:`segkern.engine.loader.TrainLoader` asks."""
        return EpochBatches(len(dataset), recipe.batch_size, seed, rank, world, recipe.micro_batch)

    def collate(self) -> Callable[..., Any]:
        """What makes a training batch of samples."""
        raise NotImplementedError

    def validation_set(self, dataset: Any) -> Any:
        """The data set whose samples make the batches of a validation."""
        return dataset

    def validation_collate(self) -> Callable[..., Any]:
        """What makes a validation batch of samples."""
        raise NotImplementedError

    def module(
        self,
        network: nn.Module,
        settings: Any,
        recipe: Recipe,
        *,
        train_set: Any,
        val_set: Any,
        total_steps: int,
        state: RunState,
    ) -> NetworkModule:
        """The network with its losses and its validation."""
        raise NotImplementedError

    def card(self, settings: Any, dataset: Any, measured: Mapping[str, Any]) -> dict[str, Any]:
        """What a weights file says of the task: figures, how they were measured, names."""
        raise NotImplementedError

    # Use -----------------------------------------------------------------------------------------

    def check_use(self, command: str, trained: Any, use: Use) -> None:
        """Raise EngineError where a checkpoint cannot be applied in the way asked for."""
        raise NotImplementedError

    def check_classes(self, trained: Any, dataset: Any) -> None:
        """Raise EngineError where the classes of a checkpoint are not the data set's."""
        known, given = trained.class_names, list(dataset.class_names)
        if len(known) != len(given):
            raise EngineError(
                f"evaluate: {trained.source} knows {len(known)} classes "
                f"({', '.join(known)}), the data set has {len(given)} "
                f"({', '.join(given)})"
            )

    def legend(self, card: Mapping[str, Any]) -> tuple[list[str], np.ndarray]:
        """Names and colours (n, 3) that pictures are read by."""
        return list(card["class_names"]), np.asarray(card["palette"], dtype=np.uint8)

    def measure(self, trained: Any, dataset: Any, use: Use) -> Measure:
        """Begin an evaluation."""
        raise NotImplementedError

    def writer(self, trained: Any, folder: Path, names: Mapping[Path, str], use: Use) -> Writer:
        """Begin a prediction and make its folders. names: the stem of each file's outputs."""
        raise NotImplementedError

    def terminal(self, measured: Mapping[str, Any]) -> Report:
        """An evaluation for the terminal."""
        raise NotImplementedError

    def report(self, measured: Mapping[str, Any], palette: np.ndarray) -> ReportParts:
        """An evaluation for the report's page."""
        raise NotImplementedError
