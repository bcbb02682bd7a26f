"""Measuring a trained network on a data set."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segkern import __version__
from segkern.data import SegmentationDataset, open_dataset
from segkern.engine.crf_settings import CrfSettings
from segkern.engine.devices import crf_device
from segkern.engine.drawing import colour_map, legend, panel
from segkern.engine.errors import EngineError
from segkern.engine.files import write_json
from segkern.engine.inference import Protocol
from segkern.engine.loader import validation_loader
from segkern.engine.loading import Trained, load_trained
from segkern.metrics import SegmentationMetrics

RESULT = "metrics.json"
PICTURES = "pictures"
LEGEND = "legend.png"


def evaluate(
    checkpoint: str | Path,
    data: str | None = None,
    *,
    split: str = "val",
    size: tuple[int, int] | None = None,
    device: str = "auto",
    batch_size: int = 4,
    workers: int = 0,
    limit: int | None = None,
    absent: str = "skip",
    boundary: bool = True,
    tta: bool = False,
    crf: CrfSettings | None = None,
    protocol: Protocol | None = None,
    output_stride: int | None = None,
    pictures: int = 6,
    output: str | Path | None = None,
    step: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint on a split of a data set, with one confusion matrix over all its pixels.

    checkpoint: see `load_trained`. data: default is the data of the run the checkpoint came from.
    size: (H, W) every image is brought to; default is that of the run. absent: what a class without
    a pixel in truth and prediction counts in the means ("skip", "zero", "one"). crf: refine the
    probabilities by a dense CRF first. protocol: scales, mirroring and windows; tta mirrors too.
    output_stride: see `load_trained`. output: folder for metrics.json, a legend and `pictures`
    panels (photo, truth, prediction) spread evenly over the set; None writes nothing. step: called
    with (images done, images in all).

    Returns what metrics.json holds: miou, per_class, pixel_accuracy, mean_accuracy, fw_iou,
    boundary_f1 and how they were measured. A figure that is not defined is None. Deterministic on
    the CPU.
    """
    if crf is not None:
        crf_device(device)
    trained = load_trained(checkpoint, device, protocol=protocol, output_stride=output_stride)
    dataset, spec, size = open_for(trained, data, split=split, size=size, limit=limit)
    metrics = SegmentationMetrics(
        dataset.num_classes, ignore_index=dataset.ignore_index, absent=absent, boundary=boundary
    )
    chosen = set(spread(pictures, len(dataset)))
    folder = None if output is None else Path(output)
    if folder is not None:
        _clear_pictures(folder)
        legend(dataset.class_names, dataset.palette).save(folder / LEGEND)
    started, done = time.monotonic(), 0
    names: list[str] = []
    for batch in validation_loader(dataset, batch_size=batch_size, workers=workers):
        for images, target in batch:
            labels = trained.predict(images, tta=tta, crf=crf)
            metrics.update(labels, target)
        # Samples of mixed sizes come in another order within a batch; those are drawn from the data
        # set.
        count = sum(len(target) for _, target in batch)
        if folder is not None:
            for index in range(done, done + count):
                if index in chosen:
                    names.append(_draw(trained, dataset, index, folder / PICTURES, tta, crf))
        done += count
        if step is not None:
            step(done, len(dataset))
    result = _result(trained, dataset, metrics.compute(), spec, split, size, absent, tta)
    result["crf"] = None if crf is None else crf.as_dict()
    result["protocol"] = trained.protocol.as_dict()
    result["output_stride"] = trained.network.config.get("output_stride")
    result["seconds"] = round(time.monotonic() - started, 3)
    result["confusion"] = metrics.confusion.tolist()
    result["pictures"] = names
    if folder is not None:
        write_json(folder / RESULT, result)
    return result


def open_for(
    trained: Trained,
    data: str | None = None,
    *,
    split: str = "val",
    size: tuple[int, int] | None = None,
    limit: int | None = None,
) -> tuple[SegmentationDataset, str, tuple[int, int] | None]:
    """The data set to measure `trained` on, its specification, and the size of its images.

    Without `data` and `size` those of the run. Raises EngineError where they are not known, or
    where the classes do not agree.
    """
    spec, size = _data_of(trained, data, size)
    dataset = open_dataset(spec, split, size=size, length=limit)
    _check_classes(trained, dataset)
    return dataset, spec, size


def _data_of(
    trained: Trained, data: str | None, size: tuple[int, int] | None
) -> tuple[str, tuple[int, int] | None]:
    own = trained.settings.get("data")
    spec = data or own
    if spec is None:
        spec = "synthetic" if str(trained.card.get("data", "")).startswith("synthetic") else None
    if spec is None:
        raise EngineError(
            f"evaluate: {trained.source} was trained on "
            f"{trained.card.get('data', 'unknown data')}; "
            "say where that lies with --data"
        )
    if size is None and not spec.startswith("synthetic:"):
        of_card = trained.card.get("protocol", {}).get("size")
        stored = trained.settings["size"] if trained.settings else of_card
        size = tuple(stored) if stored else None
    return spec, size


def _check_classes(trained: Trained, dataset: SegmentationDataset) -> None:
    if len(trained.class_names) != dataset.num_classes:
        raise EngineError(
            f"evaluate: {trained.source} knows {len(trained.class_names)} classes "
            f"({', '.join(trained.class_names)}), the data set has {dataset.num_classes} "
            f"({', '.join(dataset.class_names)})"
        )


def _result(
    trained: Trained,
    dataset: SegmentationDataset,
    measured: dict[str, Any],
    spec: str,
    split: str,
    size: tuple[int, int] | None,
    absent: str,
    tta: bool,
) -> dict[str, Any]:
    total = measured["pixels"]
    per_class = [
        {"name": name, "iou": iou, "accuracy": accuracy}
        for name, iou, accuracy in zip(
            dataset.class_names, measured["iou"], measured["class_accuracy"], strict=True
        )
    ]
    figures = ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou", "boundary_f1")
    return {
        **{name: _number(measured[name]) for name in figures if name in measured},
        "per_class": per_class,
        "checkpoint": trained.source,
        "weights_sha256": trained.fingerprint(),
        "model": trained.card["config"]["name"],
        "data": spec,
        "split": split,
        "images": measured["images"],
        "pixels": total,
        "size": list(size) if size else None,
        "ignore_label": dataset.ignore_index,
        "absent_classes": absent,
        "absent_rule": ABSENT_TEXT[absent],
        "boundary_tolerance": "0.75 % of the image diagonal",
        "tta": tta,
        "device": str(trained.device),
        "segkern": __version__,
        "torch": torch.__version__,
    }


ABSENT_TEXT = {
    "skip": "classes without a pixel in truth and prediction are left out of the means",
    "zero": "classes without a pixel in truth and prediction count as 0 in the means",
    "one": "classes without a pixel in truth and prediction count as 1 in the means",
}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _clear_pictures(folder: Path) -> None:
    """Remove the pictures of an earlier evaluation, and nothing else."""
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    try:
        earlier = json.loads((folder / RESULT).read_text(encoding="utf-8"))["pictures"]
    except (OSError, ValueError, KeyError):
        return
    for name in earlier:
        (folder / PICTURES / Path(name).name).unlink(missing_ok=True)


def _draw(
    trained: Trained,
    dataset: SegmentationDataset,
    index: int,
    folder: Path,
    tta: bool,
    crf: CrfSettings | None,
) -> str:
    picture = draw_sample(trained, dataset, index, tta=tta, crf=crf)
    name = f"{index:05d}_{picture.name}.png"
    panel(
        [("photo", picture.photo), ("truth", picture.truth), ("prediction", picture.prediction)]
    ).save(folder / name)
    return name


@dataclass
class SamplePicture:
    """A sample for the eye: the photo and both maps as RGB arrays (H, W, 3) uint8."""

    name: str
    photo: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


def draw_sample(
    trained: Trained,
    dataset: SegmentationDataset,
    index: int,
    *,
    tta: bool = False,
    crf: CrfSettings | None = None,
) -> SamplePicture:
    """Sample `index` of the data set beside what the network makes of it."""
    image, target = dataset[index]
    labels = trained.predict(image[None], tta=tta, crf=crf)[0].numpy()
    return SamplePicture(
        dataset.sample_name(index),
        image.permute(1, 2, 0).numpy(),
        colour_map(target.numpy(), dataset.palette),
        colour_map(labels, dataset.palette),
    )


def spread(count: int, total: int) -> list[int]:
    """At most `count` indices spread evenly over `total`."""
    count = min(count, total)
    return [i * total // count for i in range(count)]
