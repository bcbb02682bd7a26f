"""Semantic segmentation: a class for every pixel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from segkern.data import SegmentationDataset, class_weights, collate
from segkern.engine.crf_evidence import encode_arrays
from segkern.engine.drawing import colour_map, overlay, save_labels
from segkern.engine.errors import EngineError
from segkern.engine.files import write_atomic
from segkern.engine.loader import collate_by_size, validation_loader
from segkern.engine.loading import Trained
from segkern.engine.module import SegmentationModule
from segkern.engine.state import RunState
from segkern.engine.tasks.base import Measure, Picture, Report, ReportParts, Task, Use, Writer
from segkern.metrics import SegmentationMetrics
from segkern.models import Recipe
from segkern.models._preprocess import mean_pixel
from segkern.transforms import build_eval_transform, build_train_transform

LABELS = "labels"
OVERLAYS = "overlays"
PROBS = "probs"

FIGURES = {
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "fw_iou": "frequency-weighted IoU",
    "boundary_f1": "boundary F1",
}
ABSENT_TEXT = {
    "skip": "classes without a pixel in truth and prediction are left out of the means",
    "zero": "classes without a pixel in truth and prediction count as 0 in the means",
    "one": "classes without a pixel in truth and prediction count as 1 in the means",
}


class SemanticTask(Task):
    """Networks that give logits for every pixel; one confusion matrix measures them."""

    name = "semantic"
    finds = "classes of pixels"
    score = "miou"
    score_title = "mIoU"
    columns = ("loss", "miou", "pixel_accuracy", "mean_accuracy", "fw_iou")
    default_data = "synthetic"
    data_kinds = ("semantic",)
    data_forms = "synthetic[:HxW], camvid:DIR, voc:DIR, cityscapes:DIR, folder:DIR"
    outputs = (LABELS, OVERLAYS)
    foreign_recipe = ("jitter", "aspect_groups")

    def transforms(self, recipe: Recipe, size: tuple[int, int] | None = None) -> tuple[Any, Any]:
        train = build_train_transform(recipe, fill=mean_pixel(recipe.input), size=size)
        return train, build_eval_transform(recipe)

    def collate(self) -> Callable[..., Any]:
        return collate

    def validation_collate(self) -> Callable[..., Any]:
        return collate_by_size

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
    ) -> SegmentationModule:
        weights = None
        if recipe.class_weights is not None:
            weights = class_weights(train_set, recipe.class_weights)
        return SegmentationModule(
            network,
            recipe,
            num_classes=train_set.num_classes,
            total_steps=total_steps,
            class_weights=weights,
            ignore_index=train_set.ignore_index,
            absent=settings.absent,
            channels_last=settings.channels_last,
            state=state,
        )

    def card(self, settings: Any, dataset: Any, measured: Mapping[str, Any]) -> dict[str, Any]:
        height_width = settings.size or getattr(dataset, "size", None)
        figures = ("miou", "iou", "pixel_accuracy", "mean_accuracy", "fw_iou")
        return {
            "ignore_index": dataset.ignore_index,
            "protocol": {
                "split": "val",
                "images": measured["images"],
                "pixels": measured["pixels"],
                "size": list(height_width) if height_width else None,
                "ignore_label": dataset.ignore_index,
                "absent_classes": settings.absent,
            },
            **{name: measured[name] for name in figures},
        }

    def check_use(self, command: str, trained: Any, use: Use) -> None:
        given = {"score": use.score is not None, "json": use.json}
        for name in (name for name, is_given in given.items() if is_given):
            raise EngineError(
                f"{command}: {name} is for networks of instances; "
                f"{trained.card['config']['name']} finds {self.finds}"
            )

    def measure(self, trained: Any, dataset: Any, use: Use) -> Measure:
        return _Measure(trained, dataset, use)

    def writer(self, trained: Any, folder: Path, names: Mapping[Path, str], use: Use) -> Writer:
        return _Writer(trained, folder, names, use)

    def terminal(self, measured: Mapping[str, Any]) -> Report:
        rows = [
            [row["name"], _percent(row["iou"]), _percent(row["accuracy"])]
            for row in measured["per_class"]
        ]
        lines = []
        if measured["crf"] is not None:
            lines.append(
                "refined by a dense CRF: "
                + ", ".join(f"{name} {value}" for name, value in measured["crf"].items())
            )
        lines.append(
            f"ignore label {measured['ignore_label']}; absent classes: "
            f"{measured['absent_classes']} ({measured['absent_rule']})"
        )
        figures = [(title, measured[key]) for key, title in FIGURES.items() if key in measured]
        return Report([(["class", "IoU", "accuracy"], rows)], figures, lines)

    def report(self, measured: Mapping[str, Any], palette: np.ndarray) -> ReportParts:
        boundary = (
            f" Boundary F1 with a tolerance of {measured['boundary_tolerance']}, mean over images."
            if "boundary_f1" in measured
            else ""
        )
        titles = {key: title[0].upper() + title[1:] for key, title in FIGURES.items()}
        titles.update(miou="mIoU", mean_accuracy="Mean class accuracy")
        return ReportParts(
            figures=[(title, measured[key]) for key, title in titles.items() if key in measured],
            protocol=(
                f"One confusion matrix over {measured['images']} images "
                f"({measured['pixels']:,} pixels). "
                f"Pixels with label {measured['ignore_label']} are ignored; "
                f"{measured['absent_rule']}.{boundary}"
            ),
            heading="By class",
            columns=["IoU", "accuracy"],
            rows=[
                (row["name"], colour, row["iou"], [row["iou"], row["accuracy"]])
                for row, colour in zip(measured["per_class"], palette, strict=True)
            ],
            curves=[
                ("Loss", [("training", "train_loss"), ("validation", "val_loss")], False),
                (
                    "Validation figures",
                    [("mIoU", "val_miou"), ("pixel accuracy", "val_pixel_accuracy")],
                    True,
                ),
            ],
            note="Black in the truth: pixels that are ignored.",
        )


class _Measure(Measure):
    def __init__(self, trained: Trained, dataset: SegmentationDataset, use: Use) -> None:
        self.trained = trained
        self.dataset = dataset
        self.use = use
        self.metrics = SegmentationMetrics(
            dataset.num_classes,
            ignore_index=dataset.ignore_index,
            absent=use.absent,
            boundary=use.boundary,
        )
        self.measured: dict[str, Any] = {}

    def loader(self, batch_size: int, workers: int) -> Any:
        return validation_loader(self.dataset, batch_size=batch_size, workers=workers)

    def update(self, batch: Any) -> int:
        for images, target in batch:
            labels = self.trained.predict(images, tta=self.use.tta, crf=self.use.crf)
            self.metrics.update(labels, target)
        return sum(len(target) for _, target in batch)

    def figures(self) -> dict[str, Any]:
        measured = self.measured = self.metrics.compute()
        per_class = [
            {"name": name, "iou": iou, "accuracy": accuracy}
            for name, iou, accuracy in zip(
                self.dataset.class_names, measured["iou"], measured["class_accuracy"], strict=True
            )
        ]
        figures = {name: _number(measured[name]) for name in FIGURES if name in measured}
        return {**figures, "per_class": per_class}

    def details(self) -> dict[str, Any]:
        use, trained = self.use, self.trained
        return {
            "images": self.measured["images"],
            "pixels": self.measured["pixels"],
            "ignore_label": self.dataset.ignore_index,
            "absent_classes": use.absent,
            "absent_rule": ABSENT_TEXT[use.absent],
            "boundary_tolerance": "0.75 % of the image diagonal",
            "tta": use.tta,
            "crf": None if use.crf is None else use.crf.as_dict(),
            "protocol": trained.protocol.as_dict(),
            "output_stride": trained.network.config.get("output_stride"),
            "confusion": self.metrics.confusion.tolist(),
        }

    def picture(self, index: int) -> Picture:
        # Samples of mixed sizes come in another order within a batch, so it is taken again.
        image, target = self.dataset[index]
        labels = self.trained.predict(image[None], tta=self.use.tta, crf=self.use.crf)[0].numpy()
        return Picture(
            self.dataset.sample_name(index),
            image.permute(1, 2, 0).numpy(),
            colour_map(target.numpy(), self.dataset.palette),
            colour_map(labels, self.dataset.palette),
        )


class _Writer(Writer):
    def __init__(self, trained: Trained, folder: Path, names: Mapping[Path, str], use: Use) -> None:
        self.trained = trained
        self.folder = folder
        self.names = names
        self.use = use
        for part in (LABELS, OVERLAYS, *([PROBS] if use.probs else [])):
            (folder / part).mkdir(parents=True, exist_ok=True)

    def write(self, group: Sequence[tuple[Path, np.ndarray]]) -> None:
        use, trained = self.use, self.trained
        pixels = torch.from_numpy(np.stack([array.transpose(2, 0, 1) for _, array in group]))
        if use.probs:
            found = trained.probabilities(pixels, tta=use.tta, crf=use.crf).cpu()
            for (path, _), own in zip(group, found.half().numpy(), strict=True):
                data = encode_arrays({"probs": own}, ".npz")
                write_atomic(self.folder / PROBS / f"{self.names[path]}.npz", data)
            labels = found.argmax(1)
        else:
            labels = trained.predict(pixels, tta=use.tta, crf=use.crf)
        for (path, array), own in zip(group, labels.numpy(), strict=True):
            name, palette = f"{self.names[path]}.png", trained.palette
            save_labels(self.folder / LABELS / name, own, palette)
            Image.fromarray(overlay(array, own, palette)).save(self.folder / OVERLAYS / name)

    def finish(self) -> None:
        """Nothing is of all images together."""


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
