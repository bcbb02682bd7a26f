"""Image files to files of what a network finds in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segkern.data import DatasetError, read_image
from segkern.data.image_io import IMAGE_SUFFIXES
from segkern.engine.crf_settings import CrfSettings
from segkern.engine.devices import crf_device
from segkern.engine.drawing import save_legend
from segkern.engine.errors import EngineError
from segkern.engine.inference import Protocol
from segkern.engine.loading import load_trained
from segkern.engine.tasks import task_of
from segkern.engine.tasks.base import Use

LEGEND = "legend.png"

# Batches' worth of decoded images kept while groups of equal size fill up.
_WAITING = 4
# Larger ones wait for no others of their size.
_LARGE = 1 << 22


@dataclass
class Prediction:
    """What `predict` did: the output stem of each image done, the reason of each one not read."""

    output: Path
    done: dict[Path, str] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)


def predict(
    checkpoint: str | Path,
    images: Sequence[str | Path],
    output: str | Path,
    *,
    device: str = "auto",
    batch_size: int = 4,
    tta: bool = False,
    crf: CrfSettings | None = None,
    probs: bool = False,
    protocol: Protocol | None = None,
    output_stride: int | None = None,
    score: float | None = None,
    json: bool = False,
    step: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Segment images: OUTPUT/overlays/NAME.png and files of the task, with OUTPUT/legend.png.

    images: files, and folders of which every image below is taken. Images of equal size are run
    together, up to `batch_size`. NAME is the file's stem, or a longer form of its path where two
    stems are equal. Outputs have the size of the image as a viewer shows it (EXIF orientation
    applied). An image that cannot be read does not stop the others; it is in `failed`.

    Labels of pixels go to OUTPUT/labels/NAME.png, of mode P: pixel values are the classes. crf:
    refine the probabilities by a dense CRF over the image before labels are chosen. probs: write
    the probabilities too, refined ones with `crf`, as `probs` (classes, H, W) float16 in
    OUTPUT/probs/NAME.npz. protocol, output_stride: see `load_trained`.

    Of instances those with a `score` of at least 0.5, or as given, are drawn. json: write them to
    OUTPUT/instances.json, COCO's list of results; `image_id` is the number that is the file's stem
    where all stems are different numbers, else 1, 2, ... in the order of the files, and
    `file_name` the file's. Panoptic segments go to OUTPUT/panoptic/NAME.png and
    OUTPUT/panoptic.json in COCO's panoptic format. The network sees images of more than 1.3 million
    pixels reduced to that; masks are brought to the image's size one at a time.

    Raises EngineError for an option that the network's task has no use for.
    """
    files = collect(images)
    if crf is not None:
        crf_device(device)
    trained = load_trained(checkpoint, device, protocol=protocol, output_stride=output_stride)
    task = task_of(trained.model)
    use = Use(tta, crf, protocol, probs=probs, score=score, json=json)
    task.check_use("predict", trained, use)
    folder = Path(output)
    result = Prediction(folder)
    names = unique_names(files)
    _check_outputs(folder, files, task.outputs)
    writer = task.writer(trained, folder, names, use)
    save_legend(folder / LEGEND, *task.legend(trained.card))
    for group in _batches(files, batch_size, result.failed):
        writer.write(group)
        for path, _ in group:
            result.done[path] = names[path]
        if step is not None:
            step(len(result.done) + len(result.failed), len(files))
    writer.finish()
    if step is not None:
        step(len(files), len(files))
    return result


def collect(inputs: Sequence[str | Path]) -> list[Path]:
    """Files as given and, for folders, every image below them in order of path; each file once."""
    found: dict[Path, Path] = {}
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
            )
            if not inside:
                raise EngineError(f"predict: no images in the folder {path}")
            for file in inside:
                found.setdefault(file.resolve(), file)
        else:
            found.setdefault(path.resolve(), path)
    if not found:
        raise EngineError("predict: no images given")
    return list(found.values())


def unique_names(files: Sequence[Path]) -> dict[Path, str]:
    """A stem for the outputs of each file, no two equal on a file system that ignores case.

    The file's own stem where no other file has it; else with the suffix (`a_jpg`); else with as
    many folders before it as are needed (`left_a_jpg`); and a number where even that is not enough.
    """
    names: dict[Path, str] = {}
    pending = list(files)
    taken: set[str] = set()
    depth = 0
    while pending:
        deepest = max(len(path.resolve().parts) for path in pending)
        wanted = {path: _name(path, depth) for path in pending}
        count: dict[str, int] = {}
        for name in wanted.values():
            count[name.casefold()] = count.get(name.casefold(), 0) + 1
        rest = []
        for path in pending:
            name = wanted[path]
            if count[name.casefold()] == 1 and name.casefold() not in taken:
                names[path] = name
                taken.add(name.casefold())
            else:
                rest.append(path)
        pending = rest
        depth += 1
        if depth > deepest:
            break
    for number, path in enumerate(pending, start=2):
        name = f"{path.stem}_{number}"
        while name.casefold() in taken:
            number += 1
            name = f"{path.stem}_{number}"
        names[path] = name
        taken.add(name.casefold())
    return names


def _name(path: Path, depth: int) -> str:
    if depth == 0:
        return path.stem
    folders = path.resolve().parts[1:-1]
    before = folders[len(folders) - depth + 1 :] if depth > 1 else ()
    return "_".join([*before, path.stem, path.suffix.lstrip(".")])


def _check_outputs(folder: Path, files: Sequence[Path], parts: Sequence[str]) -> None:
    own = {(folder / part).resolve() for part in parts}
    inside = [path for path in files if path.resolve().parent in own]
    if inside:
        raise EngineError(
            f"predict: {inside[0]} lies in the output folder and could be overwritten; choose "
            "another --output"
        )
    if folder.exists() and not folder.is_dir():
        raise EngineError(f"predict: output must be a folder, and {folder} is a file")


def _batches(
    files: Sequence[Path], batch_size: int, failed: dict[Path, str]
) -> Iterator[list[tuple[Path, np.ndarray]]]:
    """Images in groups of one size, of which a few are filled side by side while reading."""
    groups: dict[tuple[int, ...], list[tuple[Path, np.ndarray]]] = {}
    waiting = 0
    for path in files:
        try:
            array = read_image(path)
        except DatasetError as error:
            failed[path] = str(error).rpartition(f"{path}: ")[2]
            continue
        if array.shape[0] * array.shape[1] > _LARGE:
            yield [(path, array)]
            continue
        group = groups.setdefault(array.shape, [])
        group.append((path, array))
        waiting += 1
        if len(group) == batch_size or waiting >= _WAITING * batch_size:
            fullest = max(groups.values(), key=len)
            waiting -= len(fullest)
            yield groups.pop(fullest[0][1].shape)
    yield from groups.values()
