"""Label maps, overlays and a legend for image files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segkern.data import DatasetError, read_image
from segkern.data.image_io import IMAGE_SUFFIXES
from segkern.engine.crf_evidence import encode_arrays
from segkern.engine.crf_settings import CrfSettings
from segkern.engine.devices import crf_device
from segkern.engine.drawing import legend, overlay, save_labels
from segkern.engine.errors import EngineError
from segkern.engine.files import write_atomic
from segkern.engine.inference import Protocol
from segkern.engine.loading import Trained, load_trained

LABELS = "labels"
OVERLAYS = "overlays"
PROBS = "probs"
LEGEND = "legend.png"

# Batches' worth of decoded images kept while groups of equal size fill up.
_WAITING = 4


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
    step: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Segment images: OUTPUT/labels/NAME.png, OUTPUT/overlays/NAME.png, OUTPUT/legend.png.

    images: files, and folders of which every image below is taken. The label PNG has mode P: pixel
    values are the classes. It has the size of the image as a viewer shows it (EXIF orientation
    applied). Images of equal size are run together, up to `batch_size`. NAME is the file's stem, or
    a longer form of its path where two stems are equal. An image that cannot be read does not stop
    the others; it is in `failed`. crf: refine the probabilities by a dense CRF over the image
    before labels are chosen. probs: write the probabilities too, refined ones with `crf`, as
    `probs` (classes, H, W) float16 in OUTPUT/probs/NAME.npz. protocol,
    output_stride: see `load_trained`.
    """
    files = collect(images)
    if crf is not None:
        crf_device(device)
    trained = load_trained(checkpoint, device, protocol=protocol, output_stride=output_stride)
    folder = Path(output)
    result = Prediction(folder)
    names = unique_names(files)
    _check_outputs(folder, files)
    for part in (LABELS, OVERLAYS, *([PROBS] if probs else [])):
        (folder / part).mkdir(parents=True, exist_ok=True)
    legend(trained.class_names, trained.palette).save(folder / LEGEND)
    for group in _batches(files, batch_size, result.failed):
        pixels = torch.from_numpy(np.stack([array.transpose(2, 0, 1) for _, array in group]))
        if probs:
            found = trained.probabilities(pixels, tta=tta, crf=crf).cpu()
            for (path, _), own in zip(group, found.half().numpy(), strict=True):
                data = encode_arrays({"probs": own}, ".npz")
                write_atomic(folder / PROBS / f"{names[path]}.npz", data)
            labels = found.argmax(1)
        else:
            labels = trained.predict(pixels, tta=tta, crf=crf)
        for (path, array), own in zip(group, labels.numpy(), strict=True):
            _write(folder, names[path], array, own, trained)
            result.done[path] = names[path]
        if step is not None:
            step(len(result.done) + len(result.failed), len(files))
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


def _check_outputs(folder: Path, files: Sequence[Path]) -> None:
    own = {(folder / part).resolve() for part in (LABELS, OVERLAYS)}
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
        group = groups.setdefault(array.shape, [])
        group.append((path, array))
        waiting += 1
        if len(group) == batch_size or waiting >= _WAITING * batch_size:
            fullest = max(groups.values(), key=len)
            waiting -= len(fullest)
            yield groups.pop(fullest[0][1].shape)
    yield from groups.values()


def _write(
    folder: Path, name: str, image: np.ndarray, labels: np.ndarray, trained: Trained
) -> None:
    save_labels(folder / LABELS / f"{name}.png", labels, trained.palette)
    Image.fromarray(overlay(image, labels, trained.palette)).save(folder / OVERLAYS / f"{name}.png")
