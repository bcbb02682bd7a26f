"""The settings of a run: defaults, what was asked for, what a resumed run may change."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from segkern.engine.errors import EngineError
from segkern.engine.tasks import task_of
from segkern.models import Recipe, get_entry

PRECISIONS = ("32", "bf16-mixed", "16-mixed")
DEVICES = ("auto", "cpu", "cuda")

# What does not change the numbers of a run, and so may differ when it is resumed.
FREE = ("output", "max_time", "workers", "progress", "cache", "patience")


def parse_size(text: str) -> tuple[int, int]:
    """`"360x480"` to (360, 480): height x width in pixels."""
    match = re.fullmatch(r"(\d+)[xX](\d+)", text.strip())
    if not match or min(int(match[1]), int(match[2])) < 1:
        raise EngineError(f"size must be HEIGHTxWIDTH in pixels, like 360x480, got {text!r}")
    return int(match[1]), int(match[2])


def parse_duration(text: str) -> float:
    """`"00:50:00"`, `"50m"`, `"1h30m"`, `"90s"` or a number of seconds, to seconds."""
    clean = text.strip().lower()
    seconds = None
    if re.fullmatch(r"(\d+:)?\d{1,2}:\d{2}:\d{2}|\d+:\d{2}", clean):
        parts = [int(part) for part in clean.split(":")]
        seconds = float(
            sum(n * unit for n, unit in zip(parts[::-1], (1, 60, 3600, 86400), strict=False))
        )
    elif re.fullmatch(r"\d+(\.\d+)?", clean):
        seconds = float(clean)
    elif match := re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", clean):
        parts = [int(part or 0) for part in match.groups()]
        seconds = float(parts[0] * 86400 + parts[1] * 3600 + parts[2] * 60 + parts[3])
    if not seconds:
        raise EngineError(
            f"max_time must be a time above zero, like 00:50:00, 50m or 1h30m, got {text!r}"
        )
    return seconds


@dataclass
class TrainSettings:
    """Everything that `fit` needs; `recipe` holds the recipe's fields with overrides applied.

    model: registered name. data: data set, as for `segkern.data.open_dataset`. output: folder of
    the run. size: (H, W) every image is brought to, or None for the data's own. max_steps: stop
    after so many optimiser steps. max_time: seconds of training after which the run stops cleanly.
    batch sizes count all devices together. absent: rule for classes without a pixel in mIoU.
    """

    model: str
    output: str
    recipe: dict[str, Any]
    data: str = "synthetic"
    model_options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    weights_backbone: str | None = None
    size: tuple[int, int] | None = None
    max_steps: int | None = None
    max_time: float | None = None
    seed: int = 0
    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    precision: str = "32"
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = False
    workers: int | None = None
    cache: bool = True
    limit_train: int | None = None
    limit_val: int | None = None
    absent: str = "skip"
    progress: bool = True

    def __post_init__(self) -> None:
        self.size = None if self.size is None else (int(self.size[0]), int(self.size[1]))
        for name in ("crop", "resize", "scale", "jitter", "milestones"):
            if self.recipe.get(name) is not None:
                self.recipe[name] = tuple(self.recipe[name])
        try:
            self.recipe["passes"] = tuple(tuple(one) for one in self.recipe.get("passes") or ())
            # Runs of an earlier version lack the fields that are new since.
            self.recipe = dataclasses.asdict(Recipe(**self.recipe))
        except (TypeError, ValueError) as error:
            raise EngineError(f"train: {str(error).removeprefix('Recipe: ')}") from error
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("device", self.device, DEVICES)
        _one_of("absent", self.absent, ("skip", "zero", "one"))
        for name in ("devices", "nodes"):
            _at_least(name, getattr(self, name), 1)
        for name in ("max_steps", "limit_train", "limit_val"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        if self.workers is not None:
            _at_least("workers", self.workers, 0)
        _at_least("seed", self.seed, 0)
        _at_least("batch_size", self.recipe["batch_size"], 1)
        _at_least("epochs", self.recipe["epochs"], 1)
        if not self.recipe["lr"] > 0 and self.recipe["optimizer"] != "fit":
            raise EngineError(f"train: lr must be above 0, got {self.recipe['lr']}")
        if self.max_time is not None and not self.max_time > 0:
            raise EngineError(f"train: max_time must be above 0 seconds, got {self.max_time}")

    @property
    def world(self) -> int:
        return self.devices * self.nodes

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TrainSettings:
        known = {f.name for f in dataclasses.fields(cls)}
        missing = [
            f.name
            for f in dataclasses.fields(cls)
            if f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
            and f.name not in value
        ]
        unknown = sorted(set(value) - known)
        if missing or unknown:
            raise EngineError(
                "train: the settings of the run are not those of this version "
                f"(missing {missing}, unknown {unknown})"
            )
        return cls(**value)


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise EngineError(f"train: {name} must be one of {', '.join(allowed)}, got {value!r}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise EngineError(f"train: {name} must be at least {least}, got {value}")


def resolve(model: str, output: str | Path, given: dict[str, Any]) -> TrainSettings:
    """Settings of a new run: the recipe of `model`, then the defaults, then what was `given`.

    `given` maps field names of `TrainSettings` and of the recipe to values; None means not given.
    """
    try:
        options = given.get("model_options") or {}
        recipe = dataclasses.asdict(get_entry(model).choose_recipe(options))
    except ValueError as error:
        raise EngineError(str(error)) from error
    fields = {f.name for f in dataclasses.fields(TrainSettings)}
    chosen: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        if name in recipe:
            recipe[name] = None if value == "none" else value
        elif name in fields:
            chosen[name] = value
        else:
            raise EngineError(f"train: unknown setting {name!r}")
    if given.get("loss") and not given.get("loss_options"):
        recipe["loss_options"] = {}  # those there are belong to the recipe's loss
    # Of the two ways to say when the rate falls, the one that was given counts.
    for name, other in (("step_size", "step_epochs"), ("step_epochs", "step_size")):
        if given.get(name) and not given.get(other):
            recipe[other] = 0
    chosen.setdefault("data", task_of(model).default_data)
    # Pictures drawn on the fly have the size that was asked for; only files are brought to the
    # paper's.
    if "size" not in chosen and not str(chosen["data"]).startswith("synthetic"):
        chosen["size"] = recipe["resize"]
    recipe["resize"] = None
    return TrainSettings(model=model, output=str(output), recipe=recipe, **chosen)


def resume(stored: TrainSettings, model: str | None, given: dict[str, Any]) -> TrainSettings:
    """Settings of a resumed run: those stored, with what may change taken from `given`.

    Raises EngineError naming every setting that was given and differs from the run's. `epochs` and
    `max_steps` may change unless the learning rate depends on the length of the run (schedules
    "poly" and "multistep").
    """
    settings = dataclasses.replace(stored, recipe=dict(stored.recipe))
    settings.max_time = None
    differences = []
    if model is not None and model != stored.model:
        differences.append(f"model: the run has {stored.model}, got {model}")
    extendable = stored.recipe["schedule"] not in ("poly", "multistep")
    for name, value in given.items():
        if value is None:
            continue
        in_recipe = name in stored.recipe
        wanted = (None if value == "none" else value) if in_recipe else value
        if name in FREE or (extendable and name in ("epochs", "max_steps")):
            if in_recipe:
                settings.recipe[name] = wanted
            else:
                setattr(settings, name, wanted)
            continue
        current = stored.recipe[name] if in_recipe else getattr(stored, name)
        if wanted != current:
            differences.append(f"{name}: the run has {current}, got {wanted}")
    if differences:
        raise EngineError(
            "train: --resume goes on with the settings of the run, and these differ:\n  "
            + "\n  ".join(differences)
            + "\nLeave them out, or start a new run in another folder."
        )
    settings.__post_init__()
    return settings


def resolve_device(device: str) -> str:
    """ "cpu" or "cuda": "auto" takes a GPU where there is one."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
