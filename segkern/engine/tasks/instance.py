"""Instance segmentation: a mask, a class and a score for every object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from segkern.data import AspectBatchSampler, collate_instances
from segkern.data._rle import coco_masks, encode_masks
from segkern.engine.callbacks import gather
from segkern.engine.errors import EngineError
from segkern.engine.files import write_json
from segkern.engine.instance_drawing import Canvas, draw_instance, draw_instances
from segkern.engine.instance_module import Figures, InstanceModule
from segkern.engine.instances import (
    WORKING_PIXELS,
    Instance,
    Instances,
    Region,
    detect,
    find,
    whole_mask,
)
from segkern.engine.loader import validation_loader
from segkern.engine.loading import Trained
from segkern.engine.module import distributed
from segkern.engine.state import RunState
from segkern.engine.tasks.base import Measure, Picture, Report, ReportParts, Task, Use, Writer
from segkern.metrics.coco import COCO_NAMES, CocoEvaluation
from segkern.models import Recipe
from segkern.transforms.instances import build_instance_transform

OVERLAYS = "overlays"
INSTANCES = "instances.json"
LEAST_SCORE = 0.5

KINDS = {"bbox": "box", "segm": "mask"}
_CHOSEN = ("AP", "AP50", "AP75")
_MEANING = {
    "AP": "mean over IoU 0.50 to 0.95",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    "APs": "objects up to 32x32 pixels",
    "APm": "objects up to 96x96 pixels",
    "APl": "larger objects",
    "AR1": "recall with 1 result an image and class",
    "AR10": "recall with 10 results",
    "AR100": "recall with 100 results",
    "ARs": "recall, objects up to 32x32 pixels",
    "ARm": "recall, objects up to 96x96 pixels",
    "ARl": "recall, larger objects",
}


class DetectionTask(Task):
    """What networks of instances and panoptic ones have in common: lists of images, own losses."""

    network_losses = True
    foreign_recipe = (
        "class_weights",
        "micro_batch",
        "resize",
        "passes",
        "scale",
        "scale_step",
        "rotate",
        "blur",
        "crop_pad",
        "crop_colour",
        "crop_margin",
        "elastic",
        "vertical_flip",
    )

    def check(self, settings: Any) -> None:
        super().check(settings)
        given = {
            "size": settings.size,
            "crf": settings.model_options.get("crf"),
            "absent": None if settings.absent == "skip" else settings.absent,
        }
        self._refuse("train", settings.model, given)

    def open(self, user: str, spec: str, split: str, **options: Any) -> Any:
        if options.get("size") is not None:
            command, _, model = user.partition(": ")
            self._refuse(command, model, {"size": options["size"]})
        return super().open(user, spec, split, **options)

    def _refuse(self, command: str, model: str, given: Mapping[str, Any]) -> None:
        reasons = {
            "size": "the network brings images to its own size (--option min_size=...)",
            "crf": "a CRF refines labels of pixels",
            "absent": "the rule is one of mIoU",
            "tta": "only scores of pixels are averaged",
            "scales": "only scores of pixels are averaged",
            "window": "only scores of pixels are averaged",
            "probs": "the network gives no probabilities of pixels",
            "output_stride": "the network has no such option",
        }
        for name in (name for name, value in given.items() if value):
            raise EngineError(
                f"{command}: {name} is for networks of classes of pixels; {model} finds "
                f"{self.finds}, and {reasons[name]}"
            )

    def transforms(self, recipe: Recipe, size: tuple[int, int] | None = None) -> tuple[Any, Any]:
        train = build_instance_transform(recipe, train=True)
        return train, build_instance_transform(recipe, train=False)

    def train_batches(self, dataset: Any, recipe: Recipe, seed: int, rank: int, world: int) -> Any:
        if not recipe.aspect_groups:
            return super().train_batches(dataset, recipe, seed, rank, world)
        sizes = [dataset.image_size(index) for index in range(len(dataset))]
        return AspectBatchSampler(sizes, recipe.batch_size, seed, rank, world)

    def collate(self) -> Callable[..., Any]:
        return collate_instances

    def validation_collate(self) -> Callable[..., Any]:
        return collate_instances

    def figures(self, dataset: Any) -> Figures:
        """What measures results on a data set."""
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
    ) -> InstanceModule:
        return InstanceModule(
            network,
            recipe,
            total_steps=total_steps,
            figures=self.figures(val_set),
            channels_last=settings.channels_last,
            state=state,
        )

    def card(self, settings: Any, dataset: Any, measured: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "task": self.name,
            "category_ids": list(dataset.category_ids),
            "protocol": {"split": "val", "images": len(dataset), "size": None},
            **{name: measured[name] for name in self.columns},
        }

    def check_use(self, command: str, trained: Any, use: Use) -> None:
        protocol = trained.protocol
        given = {
            "crf": use.crf is not None,
            "tta": use.tta or protocol.flip,
            "scales": protocol.scales != (1.0,),
            "window": protocol.window is not None,
            "probs": use.probs,
            "absent": use.absent != "skip",
        }
        self._refuse(command, trained.model, given)
        if use.score is not None and not 0 <= use.score <= 1:
            raise EngineError(f"{command}: score must be between 0 and 1, got {use.score}")

    def legend(self, card: Mapping[str, Any]) -> tuple[list[str], np.ndarray]:
        return [], np.zeros((0, 3), dtype=np.uint8)


class InstanceTask(DetectionTask):
    """Networks that find objects, measured by COCO's average precision."""

    name = "instance"
    finds = "instances"
    score = "mask_ap"
    score_title = "mask AP"
    columns = tuple(f"{kind}_{name.lower()}" for kind in ("mask", "box") for name in _CHOSEN)
    default_data = "synthetic-instances"
    data_kinds = ("instance", "panoptic")
    data_forms = (
        "synthetic-instances[:HxW], coco:DIR, voc-instances:DIR, synthetic-panoptic[:HxW], "
        "coco-panoptic:DIR"
    )
    outputs = (OVERLAYS,)

    def figures(self, dataset: Any) -> Figures:
        return CocoFigures(dataset)

    def measure(self, trained: Any, dataset: Any, use: Use) -> Measure:
        return _Measure(trained, dataset, use)

    def writer(self, trained: Any, folder: Path, names: Mapping[Path, str], use: Use) -> Writer:
        return InstanceWriter(trained, folder, names, use)

    def terminal(self, measured: Mapping[str, Any]) -> Report:
        figures = [
            [name, *(_shown(measured[kind][name]) for kind in KINDS), _MEANING[name]]
            for name in COCO_NAMES
        ]
        classes = [
            [row["name"], _shown(row["box_ap"]), _shown(row["mask_ap"])]
            for row in measured["per_class"]
        ]
        tables = [(["class", "box AP", "mask AP"], classes), (["", "box", "mask", ""], figures)]
        return Report(tables, [], [_counted(measured)])

    def report(self, measured: Mapping[str, Any], palette: np.ndarray) -> ReportParts:
        return ReportParts(
            figures=[
                ("Mask AP", measured["mask_ap"]),
                ("Box AP", measured["box_ap"]),
                *(
                    (f"{kind.capitalize()} {name}", measured[key][name])
                    for key, kind in reversed(KINDS.items())
                    for name in COCO_NAMES[1:]
                ),
            ],
            protocol=f"By COCO's rules, {_counted(measured)}.",
            heading="By class",
            columns=["mask AP", "box AP"],
            rows=[
                (row["name"], None, row["mask_ap"], [row["mask_ap"], row["box_ap"]])
                for row in measured["per_class"]
            ],
            curves=[
                ("Loss", [("training", "train_loss")], False),
                ("Validation", [("mask AP", "val_mask_ap"), ("box AP", "val_box_ap")], True),
            ],
            note=f"Drawn are results with a score of at least {measured['score']}.",
        )


class CocoFigures:
    """COCO's twelve figures for boxes and masks, of a data set's truth.

    Raises EngineError where the truth has no object to find.
    """

    def __init__(self, dataset: Any) -> None:
        self.truth = dataset.coco_truth()
        self.class_names = list(dataset.class_names)
        self.category_ids = list(dataset.category_ids)
        known = set(self.category_ids)
        self.instances = sum(
            not entry.get("iscrowd") and entry["category_id"] in known
            for entry in self.truth["annotations"]
        )
        if not self.instances:
            raise EngineError(
                "the part of the data set that is measured on has no instances "
                f"({len(self.truth['images'])} images)"
            )
        self.reset()

    def reset(self) -> None:
        self._evaluation = CocoEvaluation(self.truth, self.category_ids)

    def update(
        self, targets: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]
    ) -> None:
        self._evaluation.update([int(target["image_id"]) for target in targets], results)

    def gather(self) -> None:
        if not distributed():
            return
        rank = torch.distributed.get_rank()
        for other, evaluation in enumerate(gather(self._evaluation)):
            if other != rank:
                self._evaluation.merge(evaluation)

    def compute(self) -> dict[str, Any]:
        """`columns` of the task, then all figures as bbox and segm, and AP of each class."""
        found = {
            kind: {name: _number(value) for name, value in figures.items()}
            for kind, figures in self._evaluation.compute().items()
        }
        per_class = [
            {"name": name, "box_ap": box, "mask_ap": mask}
            for name, box, mask in zip(
                self.class_names,
                self._evaluation.class_ap("bbox"),
                self._evaluation.class_ap("segm"),
                strict=True,
            )
        ]
        short = {
            f"{title}_{name.lower()}": found[kind][name]
            for kind, title in reversed(KINDS.items())
            for name in _CHOSEN
        }
        return {**short, **found, "per_class": per_class}


class DetectionMeasure(Measure):
    """An evaluation by a task's figures; pictures are drawn by the subclass."""

    def __init__(self, task: DetectionTask, trained: Trained, dataset: Any, use: Use) -> None:
        self.task = task
        self.trained = trained
        self.dataset = dataset
        self.least = LEAST_SCORE if use.score is None else use.score
        self._figures: Figures | None = None

    @property
    def measured(self) -> Figures:
        # Pictures alone need no truth of the whole set.
        if self._figures is None:
            self._figures = self.task.figures(self.dataset)
        return self._figures

    def loader(self, batch_size: int, workers: int) -> Any:
        return validation_loader(
            self.task.validation_set(self.dataset),
            batch_size=batch_size,
            workers=workers,
            collate_fn=self.task.validation_collate(),
        )

    def update(self, batch: Any) -> int:
        images, targets = batch
        self.measured.update(targets, detect(self.trained, images))
        return len(images)

    def figures(self) -> dict[str, Any]:
        return self.measured.compute()

    def details(self) -> dict[str, Any]:
        return {"task": self.task.name, "images": len(self.dataset), "score": self.least}


class _Measure(DetectionMeasure):
    def __init__(self, trained: Trained, dataset: Any, use: Use) -> None:
        super().__init__(InstanceTask(), trained, dataset, use)

    def details(self) -> dict[str, Any]:
        return {**super().details(), "instances": self.measured.instances}

    def picture(self, index: int) -> Picture:
        image, target = self.dataset[index]
        photo = image.permute(1, 2, 0).numpy()
        size = photo.shape[:2]
        names = list(self.dataset.class_names)
        result = detect(self.trained, [image])[0]
        return Picture(
            self.dataset.sample_name(index),
            photo,
            draw_instances(photo, Instances(target, size, size), names),
            draw_instances(photo, Instances(result, size, size, self.least), names),
        )


class InstanceWriter(Writer):
    """Draws the objects found in images, and writes them as COCO's results where asked to."""

    def __init__(self, trained: Trained, folder: Path, names: Mapping[Path, str], use: Use) -> None:
        self.trained = trained
        self.folder = folder
        self.names = names
        self.least = LEAST_SCORE if use.score is None else use.score
        self.numbers = image_numbers(list(names))
        self.results: dict[Path, list[dict[str, Any]]] | None = None
        if use.json:
            coco_masks()
            self.results = {}
        (folder / OVERLAYS).mkdir(parents=True, exist_ok=True)

    def write(self, group: Sequence[tuple[Path, np.ndarray]]) -> None:
        height, width = group[0][1].shape[:2]
        together = max(1, WORKING_PIXELS // (height * width))
        for start in range(0, len(group), together):
            self._write(group[start : start + together])

    def _write(self, group: Sequence[tuple[Path, np.ndarray]]) -> None:
        found = find(self.trained, [array for _, array in group])
        for (path, array), (result, seen) in zip(group, found, strict=True):
            instances = Instances(result, seen, array.shape[:2], self.least)
            picture = self.draw(path, array, instances, result)
            Image.fromarray(picture).save(self.folder / OVERLAYS / f"{self.names[path]}.png")

    def draw(
        self, path: Path, image: np.ndarray, instances: Instances, result: Mapping[str, Any]
    ) -> np.ndarray:
        """The overlay of an image; its objects are noted for the file of results."""
        canvas = Canvas(image)
        names = self.trained.class_names
        for number in reversed(range(len(instances))):
            instance = instances[number]
            region = instance.region()
            draw_instance(canvas, number, instance, region, names)
            self.note(path, instance, region)
        return canvas.picture()

    def note(self, path: Path, instance: Instance, region: Region) -> None:
        """Take an object of a file into the results, before those noted earlier."""
        if self.results is None:
            return
        x1, y1, x2, y2 = instance.box
        mask = torch.from_numpy(whole_mask(region, instance.size))
        entry = {
            "image_id": self.numbers[path],
            "file_name": path.name,
            "category_id": self.trained.card["category_ids"][instance.label - 1],
            "score": instance.score,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "segmentation": encode_masks(mask[None])[0],
        }
        self.results.setdefault(path, []).insert(0, entry)

    def finish(self) -> None:
        if self.results is not None:
            entries = [e for path in self.names for e in self.results.get(path, [])]
            write_json(self.folder / INSTANCES, entries)


def image_numbers(files: Sequence[Path]) -> dict[Path, int]:
    """COCO's number of each file: its stem where all are different numbers, else 1, 2, ..."""
    stems = [
        int(path.stem) if path.stem.isascii() and path.stem.isdigit() else -1 for path in files
    ]
    if min(stems, default=-1) < 0 or len(set(stems)) < len(stems):
        stems = list(range(1, len(files) + 1))
    return dict(zip(files, stems, strict=True))


def _counted(measured: Mapping[str, Any]) -> str:
    return (
        f"{measured['instances']} objects in {measured['images']} images; crowds neither count nor "
        "cost; at most 100 results an image"
    )


def _number(value: float) -> float | None:
    """A figure of COCO, which are -1 where they are not defined."""
    return None if value < 0 else value


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
