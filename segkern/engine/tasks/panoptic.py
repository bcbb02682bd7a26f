"""Panoptic segmentation: a segment, an object or a kind of background, for every pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from segkern.engine.files import write_json
from segkern.engine.instance_drawing import Canvas, instance_colour
from segkern.engine.instance_module import Figures
from segkern.engine.instances import Instances, detect
from segkern.engine.loading import Trained
from segkern.engine.tasks.base import Measure, Picture, Report, ReportParts, Use, Writer
from segkern.engine.tasks.instance import (
    OVERLAYS,
    DetectionMeasure,
    DetectionTask,
    InstanceWriter,
)
from segkern.metrics.panoptic import PanopticQuality

PANOPTIC = "panoptic"
_PARTS = ("All", "Things", "Stuff")
# Background of a smaller share of the image is not named in pictures.
_NAMED = 0.02


class PanopticTask(DetectionTask):
    """Networks that give every pixel a segment, measured by panoptic quality."""

    name = "panoptic"
    finds = "panoptic segments"
    score = "pq"
    score_title = "PQ"
    columns = ("pq", "sq", "rq", "pq_things", "pq_stuff")
    default_data = "synthetic-panoptic"
    data_kinds = ("panoptic",)
    data_forms = "synthetic-panoptic[:HxW], coco-panoptic:DIR"
    outputs = (OVERLAYS, PANOPTIC)

    def network_options(self, dataset: Any) -> dict[str, Any]:
        return {"num_classes": dataset.num_classes, "num_stuff": dataset.num_stuff}

    def validation_set(self, dataset: Any) -> Any:
        return _WithSegments(dataset)

    def figures(self, dataset: Any) -> Figures:
        return PanopticFigures(dataset)

    def card(self, settings: Any, dataset: Any, measured: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **super().card(settings, dataset, measured),
            "stuff_names": list(dataset.stuff_names),
            "stuff_palette": np.asarray(dataset.stuff_palette).tolist(),
            "stuff_ids": list(dataset.stuff_ids),
            "categories": list(dataset.categories),
        }

    def legend(self, card: Mapping[str, Any]) -> tuple[list[str], np.ndarray]:
        palette = np.asarray(card["stuff_palette"], dtype=np.uint8).reshape(-1, 3)
        return list(card["stuff_names"]), palette

    def measure(self, trained: Any, dataset: Any, use: Use) -> Measure:
        return _Measure(self, trained, dataset, use)

    def writer(self, trained: Any, folder: Path, names: Mapping[Path, str], use: Use) -> Writer:
        return _Writer(trained, folder, names, use)

    def terminal(self, measured: Mapping[str, Any]) -> Report:
        classes = [
            [row["name"], "thing" if row["isthing"] else "stuff", *_three(row)]
            for row in measured["per_class"]
        ]
        parts = [[name, *_three(measured[name]), str(measured[name]["n"])] for name in _PARTS]
        tables = [
            (["class", "", "PQ", "SQ", "RQ"], classes),
            (["", "PQ", "SQ", "RQ", "classes"], parts),
        ]
        return Report(tables, [], [f"{measured['images']} images; {_RULE}"])

    def report(self, measured: Mapping[str, Any], palette: np.ndarray) -> ReportParts:
        return ReportParts(
            figures=[
                (f"{name.upper()}{'' if part == 'All' else ', ' + part.lower()}", value)
                for part in _PARTS
                for name, value in measured[part].items()
                if name != "n"
            ],
            protocol=f"By COCO's panoptic rules over {measured['images']} images; {_RULE}.",
            heading="By class",
            columns=["PQ", "SQ", "RQ"],
            rows=[
                (row["name"], row["color"], row["pq"], [row["pq"], row["sq"], row["rq"]])
                for row in measured["per_class"]
            ],
            curves=[
                ("Loss", [("training", "train_loss")], False),
                (
                    "Validation",
                    [("PQ", "val_pq"), ("PQ of things", "val_pq_things")],
                    True,
                ),
            ],
        )


_RULE = "means are over the classes that occur in truth or prediction"


class _WithSegments(Dataset):
    """A panoptic data set whose targets hold the truth that PQ is counted by.

    `panoptic` (H, W) int64 and `segments`, as the data set's own `panoptic` gives them.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image, target = self.dataset[index]
        ids, segments = self.dataset.panoptic(index)
        return image, {**target, "panoptic": ids, "segments": segments}


class PanopticFigures:
    """Panoptic, segmentation and recognition quality on a data set."""

    def __init__(self, dataset: Any) -> None:
        self.categories = list(dataset.categories)
        self.thing_ids = list(dataset.category_ids)
        self.stuff_ids = list(dataset.stuff_ids)
        self.reset()

    def reset(self) -> None:
        self._quality = PanopticQuality(self.categories)

    def update(
        self, targets: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]
    ) -> None:
        for target, result in zip(targets, results, strict=True):
            self._quality.update(
                target["panoptic"],
                target["segments"],
                result["panoptic"],
                categorised(result["segments"], self.thing_ids, self.stuff_ids),
                image=int(target["image_id"]),
            )

    def gather(self) -> None:
        self._quality.all_reduce()

    def compute(self) -> dict[str, Any]:
        """`columns` of the task, then the figures of all, things and stuff, and of each class."""
        found = self._quality.compute()
        parts = {
            part: {name: _number(value) for name, value in found[part].items()} for part in _PARTS
        }
        per_class = [
            {
                "name": category["name"],
                "isthing": bool(category["isthing"]),
                "color": list(category["color"]),
                **found["per_class"][category["id"]],
            }
            for category in self.categories
        ]
        return {
            **{name: parts["All"][name] for name in ("pq", "sq", "rq")},
            "pq_things": parts["Things"]["pq"],
            "pq_stuff": parts["Stuff"]["pq"],
            **parts,
            "per_class": per_class,
        }


def categorised(
    segments: Sequence[Mapping[str, Any]], thing_ids: Sequence[int], stuff_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Segments of a network with the `category_id` of the data set."""
    return [
        {
            "id": int(segment["id"]),
            "category_id": (thing_ids if segment["isthing"] else stuff_ids)[segment["label"] - 1],
            "iscrowd": 0,
        }
        for segment in segments
    ]


def draw_segments(
    image: np.ndarray,
    ids: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
    categories: Sequence[Mapping[str, Any]],
) -> np.ndarray:
    """An image with its segments over it: objects in a colour each, background in its class's.

    ids: (H, W) integers. segments: dicts of id, category_id, bbox (x, y, width, height), area and,
    where there is one, score.
    """
    canvas = Canvas(image)
    kinds = {category["id"]: category for category in categories}
    objects = 0
    # Names of objects lie above those of the background.
    for segment in sorted(segments, key=lambda s: bool(kinds[s["category_id"]]["isthing"])):
        category = kinds[segment["category_id"]]
        x, y, width, height = (int(v) for v in segment["bbox"])
        mask = ids[y : y + height, x : x + width] == segment["id"]
        name = category["name"]
        if category["isthing"]:
            colour = instance_colour(objects)
            objects += 1
            score = segment.get("score")
            text = name if score is None else f"{name} {score:.2f}"
            canvas.fill(y, x, mask, colour)
            canvas.name(text, x, y, colour)
            continue
        colour = tuple(int(v) for v in category["color"])
        canvas.fill(y, x, mask, colour)
        if segment["area"] >= _NAMED * ids.size:
            # On the pixel in the middle of those in the order of reading, which is one of its own.
            places = np.flatnonzero(mask)
            row, column = divmod(int(places[len(places) // 2]), mask.shape[1])
            canvas.name(name, x + column, y + row, colour)
    return canvas.picture()


def described(ids: np.ndarray, segments: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Segments that have pixels in a map (H, W), with their `area` and `bbox` there."""
    found = []
    numbers = [int(segment["id"]) for segment in segments]
    boxes = _boxes(ids, numbers)
    for segment, number in zip(segments, numbers, strict=True):
        if number in boxes:
            area, box = boxes[number]
            found.append({**segment, "area": area, "bbox": box})
    return found


def _boxes(ids: np.ndarray, numbers: Sequence[int]) -> dict[int, tuple[int, list[int]]]:
    found = {}
    for number in numbers:
        mask = ids == number
        rows = np.flatnonzero(mask.any(1))
        if len(rows):
            columns = np.flatnonzero(mask.any(0))
            top, bottom = int(rows[0]), int(rows[-1])
            left, right = int(columns[0]), int(columns[-1])
            box = [left, top, right - left + 1, bottom - top + 1]
            found[number] = (int(np.count_nonzero(mask)), box)
    return found


class _Measure(DetectionMeasure):
    def picture(self, index: int) -> Picture:
        image, _ = self.dataset[index]
        photo = image.permute(1, 2, 0).numpy()
        true_ids, true_segments = self.dataset.panoptic(index)
        result = detect(self.trained, [image])[0]
        ids = result["panoptic"].cpu().numpy()
        segments = _scored(result["segments"], self.dataset.category_ids, self.dataset.stuff_ids)
        categories = self.dataset.categories
        return Picture(
            self.dataset.sample_name(index),
            photo,
            draw_segments(photo, true_ids.numpy(), true_segments, categories),
            draw_segments(photo, ids, described(ids, segments), categories),
        )


class _Writer(InstanceWriter):
    """Draws the segments, and writes them as COCO's panoptic results."""

    def __init__(self, trained: Trained, folder: Path, names: Mapping[Path, str], use: Use) -> None:
        super().__init__(trained, folder, names, use)
        self.images: dict[Path, dict[str, Any]] = {}
        self.segments: dict[Path, dict[str, Any]] = {}
        (folder / PANOPTIC).mkdir(parents=True, exist_ok=True)

    def draw(
        self, path: Path, image: np.ndarray, instances: Instances, result: Mapping[str, Any]
    ) -> np.ndarray:
        if self.results is not None:
            for instance in reversed(instances):
                self.note(path, instance, instance.region())
        card = self.trained.card
        ids = _enlarged(result["panoptic"], image.shape[:2])
        segments = described(
            ids, _scored(result["segments"], card["category_ids"], card["stuff_ids"])
        )
        name = f"{self.names[path]}.png"
        Image.fromarray(_as_rgb(ids)).save(self.folder / PANOPTIC / name)
        number = self.numbers[path]
        self.images[path] = {
            "id": number,
            "file_name": path.name,
            "height": image.shape[0],
            "width": image.shape[1],
        }
        self.segments[path] = {
            "image_id": number,
            "file_name": name,
            "segments_info": [
                {key: value for key, value in segment.items() if key != "score"}
                for segment in segments
            ],
        }
        return draw_segments(image, ids, segments, card["categories"])

    def finish(self) -> None:
        super().finish()
        categories = [
            {**category, "isthing": int(category["isthing"])}
            for category in self.trained.card["categories"]
        ]
        done = [path for path in self.names if path in self.images]
        content = {
            "images": [self.images[path] for path in done],
            "annotations": [self.segments[path] for path in done],
            "categories": categories,
        }
        write_json(self.folder / f"{PANOPTIC}.json", content)


def _scored(
    segments: Sequence[Mapping[str, Any]], thing_ids: Sequence[int], stuff_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """`categorised` segments with their scores."""
    return [
        {**own, "score": segment.get("score")}
        for own, segment in zip(categorised(segments, thing_ids, stuff_ids), segments, strict=True)
    ]


def _enlarged(ids: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Segment ids at a size, each pixel's that of the nearest one; (H, W) int32."""
    small = ids.cpu().numpy().astype(np.int32)
    rows, columns = (
        np.minimum(((np.arange(to) + 0.5) * of / to).astype(np.int64), of - 1)
        for to, of in zip(size, small.shape, strict=True)
    )
    return small if small.shape == tuple(size) else small[rows][:, columns]


def _as_rgb(ids: np.ndarray) -> np.ndarray:
    """Segment ids as COCO's panoptic PNG has them: R + 256 G + 65536 B."""
    return np.stack([(ids >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)], axis=-1)


def _number(value: float) -> float | None:
    return None if isinstance(value, float) and math.isnan(value) else value


def _three(row: Mapping[str, Any]) -> list[str]:
    values = (row["pq"], row["sq"], row["rq"])
    return ["-" if value is None else f"{100 * value:.1f}" for value in values]
