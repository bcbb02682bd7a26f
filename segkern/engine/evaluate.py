"""Measuring a trained network on a data set."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from segkern import __version__
from segkern.engine.crf_settings import CrfSettings
from segkern.engine.devices import crf_device
from segkern.engine.drawing import panel, save_legend
from segkern.engine.errors import EngineError
from segkern.engine.files import write_json
from segkern.engine.inference import Protocol
from segkern.engine.loading import Trained, load_trained
from segkern.engine.tasks import task_of
from segkern.engine.tasks.base import Measure, Picture, Task, Use

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
    score: float | None = None,
    pictures: int = 6,
    output: str | Path | None = None,
    step: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint on a split of a data set.

    checkpoint: see `load_trained`. data: default is the data of the run the checkpoint came from.
    output: folder for metrics.json, a legend and `pictures` panels (photo, truth, prediction)
    spread evenly over the set; None writes nothing. step: called with (images done, images in all).

    For labels of pixels, measured by one confusion matrix over all of them: size: (H, W) every
    image is brought to; default is that of the run. absent: what a class without a pixel in truth
    and prediction counts in the means ("skip", "zero", "one"). boundary: compute boundary F1. crf:
    refine the probabilities by a dense CRF first. protocol: scales, mirroring and windows; tta
    mirrors too. output_stride: see `load_trained`. For instances: score: those below are left out
    of the panels (0.5); the figures are of all.

    Returns what metrics.json holds: the figures and how they were measured. For labels miou,
    per_class, pixel_accuracy, mean_accuracy, fw_iou, boundary_f1; for instances bbox and segm with
    COCO's twelve figures each; for panoptic networks pq, sq, rq, things, stuff and per_class. A
    figure that is not defined is None. Deterministic on the CPU. EngineError for a data set or an
    option that the network's task has no use for.
    """
    if crf is not None:
        crf_device(device)
    trained = load_trained(checkpoint, device, protocol=protocol, output_stride=output_stride)
    task = task_of(trained.model)
    use = Use(tta, crf, protocol, absent=absent, boundary=boundary, score=score)
    task.check_use("evaluate", trained, use)
    dataset, spec, size = open_for(trained, data, split=split, size=size, limit=limit)
    measure = task.measure(trained, dataset, use)
    chosen = set(spread(pictures, len(dataset)))
    folder = None if output is None else Path(output)
    if folder is not None:
        _clear_pictures(folder)
        save_legend(folder / LEGEND, *task.legend(trained.card))
    started, done = time.monotonic(), 0
    names: list[str] = []
    for batch in measure.loader(batch_size, workers):
        count = measure.update(batch)
        if folder is not None:
            names += [
                _draw(measure.picture(index), index, folder / PICTURES)
                for index in range(done, done + count)
                if index in chosen
            ]
        done += count
        if step is not None:
            step(done, len(dataset))
    result = {
        **measure.figures(),
        "checkpoint": trained.source,
        "weights_sha256": trained.fingerprint(),
        "model": trained.model,
        "data": spec,
        "split": split,
        "size": list(size) if size else None,
        "device": str(trained.device),
        "segkern": __version__,
        "torch": torch.__version__,
        **measure.details(),
        "seconds": round(time.monotonic() - started, 3),
        "pictures": names,
    }
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
) -> tuple[Any, str, tuple[int, int] | None]:
    """The data set to measure `trained` on, its specification, and the size of its images.

    Without `data` and `size` those of the run. Raises EngineError where they are not known, or
    where the task or the classes do not agree.
    """
    task = task_of(trained.model)
    spec, size = _data_of(task, trained, data, size)
    dataset = task.open(f"evaluate: {trained.model}", spec, split, size=size, length=limit)
    task.check_classes(trained, dataset)
    return dataset, spec, size


def draw_sample(trained: Trained, dataset: Any, index: int) -> Picture:
    """Sample `index` of the data set beside what the network makes of it."""
    measure: Measure = task_of(trained.model).measure(trained, dataset, Use())
    return measure.picture(index)


def _data_of(
    task: Task, trained: Trained, data: str | None, size: tuple[int, int] | None
) -> tuple[str, tuple[int, int] | None]:
    own = trained.settings.get("data")
    spec = data or own
    if spec is None:
        drawn = str(trained.card.get("data", "")).startswith("synthetic")
        spec = task.default_data if drawn else None
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


def _clear_pictures(folder: Path) -> None:
    """Remove the pictures of an earlier evaluation, and nothing else."""
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    try:
        earlier = json.loads((folder / RESULT).read_text(encoding="utf-8"))["pictures"]
    except (OSError, ValueError, KeyError):
        return
    for name in earlier:
        (folder / PICTURES / Path(name).name).unlink(missing_ok=True)


def _draw(picture: Picture, index: int, folder: Path) -> str:
    name = f"{index:05d}_{picture.name}.png"
    panel(
        [("photo", picture.photo), ("truth", picture.truth), ("prediction", picture.prediction)]
    ).save(folder / name)
    return name


def spread(count: int, total: int) -> list[int]:
    """At most `count` indices spread evenly over `total`."""
    count = min(count, total)
    return [i * total // count for i in range(count)]
