"""Searching the widths and weights of a dense CRF on images with probabilities and labels."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segkern import __version__
from segkern.data import DatasetError, Problem
from segkern.data._pairs import list_files
from segkern.data.image_io import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    UnreadableError,
    decode_image,
    decode_mask,
)
from segkern.engine.crf_evidence import ARRAY_SUFFIXES, read_evidence
from segkern.engine.crf_search import Point, Space, by_widths
from segkern.engine.crf_settings import CrfSettings, energies_of
from segkern.engine.devices import crf_device
from segkern.engine.errors import EngineError
from segkern.engine.evaluate import spread
from segkern.engine.files import write_atomic, write_json
from segkern.metrics import SegmentationMetrics
from segkern.ops.dense_crf import PairwiseTerm, mean_field, pairwise_term

SEARCH = "search.json"
TRIALS = "trials.csv"
BEST = "best.json"

_COLUMNS = ("round", *Point._fields, "miou", "pixel_accuracy", "seconds")


@dataclass(frozen=True)
class Sample:
    """The files of one image."""

    name: str
    image: Path
    probabilities: Path
    labels: Path


def tune(
    images: str | Path,
    probabilities: str | Path,
    labels: str | Path,
    output: str | Path,
    space: Space,
    *,
    normalization: str = "after",
    iterations: int = 10,
    rounds: int = 1,
    limit: int | None = 100,
    ignore: int = 255,
    device: str = "auto",
    overwrite: bool = False,
    step: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Find the settings with the highest mIoU: a grid, then finer grids around its best point.

    images, probabilities, labels: folders. Every file of probabilities (C, H, W) must have an image
    and a label map of its path without suffix, with classes 0 to C - 1 and `ignore`; images and
    labels without probabilities are not used. All files used are checked first, and DatasetError
    names every bad one. limit: at most so many, spread evenly over the sorted names. rounds: finer
    grids after the coarse one, each of half the step.

    output: the folder for trials.csv with a row per trial, search.json, which says what is
    searched, and best.json, for `segkern crf --params`. Called again with the same arguments it
    goes on where it was stopped, to the same result; where the folder holds another search it
    raises EngineError, or with `overwrite` starts anew. step: called with (images done, images in
    all) of a round.

    Returns what best.json holds. Of equal mIoU the first tried is the best. Deterministic on the
    CPU.
    """
    base = CrfSettings(1, 1, 1, 1, 1, normalization, iterations)
    chosen = crf_device(device)
    samples = _samples(Path(images), Path(probabilities), Path(labels), limit)
    classes, unary, digest = _check(samples, ignore)
    folder = Path(output)
    rows = _open(folder, _description(samples, digest, space, base, rounds, ignore), overwrite)
    log = _Log(folder, rows, base, {"unary_miou": unary, "images": len(samples)})
    for number in range(rounds + 1):
        points = space.around(log.best_before(number), number) if number else space.grid()
        groups = by_widths(points, log.done())
        for index, group in enumerate(groups):
            started = time.monotonic()
            passed = index * len(samples)

            def seen(count: int, passed: int = passed, total: int = len(groups)) -> None:
                if step is not None:
                    step(passed + count, total * len(samples))

            found = _measure(group, samples, base, classes, ignore, chosen, seen)
            log.add(number, found, (time.monotonic() - started) / len(group))
    return log.write_best()


class _Log:
    """The trials so far, in trials.csv and best.json, each replaced as a whole."""

    def __init__(
        self,
        folder: Path,
        rows: list[dict[str, float]],
        base: CrfSettings,
        facts: dict[str, Any],
    ) -> None:
        self.folder, self.rows, self.base, self.facts = folder, rows, base, facts

    def done(self) -> set[Point]:
        return {_point(row) for row in self.rows}

    def best_before(self, number: int) -> Point:
        """The best of the rounds before `number`, whatever an interrupted round has found."""
        return _point(_best([row for row in self.rows if row["round"] < number]))

    def add(self, number: int, found: dict[Point, dict[str, Any]], seconds: float) -> None:
        for point, measured in found.items():
            figures = {name: measured[name] for name in ("miou", "pixel_accuracy")}
            row = {"round": number, **point._asdict(), **figures, "seconds": round(seconds, 3)}
            self.rows.append(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomic(self.folder / TRIALS, text.getvalue().encode("utf-8"))
        self.write_best()

    def write_best(self) -> dict[str, Any]:
        row = _best(self.rows)
        result = {
            "crf": _settings(self.base, _point(row)).as_dict(),
            "miou": row["miou"],
            **self.facts,
            "trials": len(self.rows),
            "segkern": __version__,
        }
        write_json(self.folder / BEST, result)
        return result


def _best(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return max(rows, key=lambda row: row["miou"])


def _point(row: dict[str, float]) -> Point:
    return Point(*(row[name] for name in Point._fields))


def _settings(base: CrfSettings, point: Point) -> CrfSettings:
    return base.replace(**point._asdict())


def _measure(
    group: Sequence[Point],
    samples: Sequence[Sample],
    base: CrfSettings,
    classes: int,
    ignore: int,
    device: torch.device,
    seen: Callable[[int], None],
) -> dict[Point, dict[str, Any]]:
    """The figures of points of equal widths; each image's lattices are built once for all."""
    metrics = {point: SegmentationMetrics(classes, ignore_index=ignore) for point in group}
    settings = _settings(base, group[0])
    smooth: dict[tuple[int, int], PairwiseTerm] = {}
    for count, sample in enumerate(samples, start=1):
        image, found, truth = _load(sample, device)
        size = tuple(truth.shape[-2:])
        with torch.inference_mode():
            if size not in smooth:
                features = settings.gaussian_features(size, device)
                smooth[size] = _term(features, settings)
            appearance = _term(settings.bilateral_features(image), settings)
            energies = energies_of(found).flatten(2)
            for point in group:
                terms = _weighted(smooth[size], point.gaussian_weight)
                terms += _weighted(appearance, point.bilateral_weight)
                marginals, _ = mean_field(energies, terms, settings.iterations)
                metrics[point].update(marginals.argmax(1).view(truth.shape), truth)
        seen(count)
    return {point: measured.compute() for point, measured in metrics.items()}


def _term(features: Tensor, settings: CrfSettings) -> PairwiseTerm:
    cost = torch.zeros((), device=features.device)
    return pairwise_term(features, cost, settings.normalization)


def _weighted(term: PairwiseTerm, weight: float) -> list[PairwiseTerm]:
    """The term with a Potts weight; none for weight 0."""
    if weight == 0:
        return []
    return [dataclasses.replace(term, cost=torch.full_like(term.cost, -weight))]


def _samples(images: Path, probabilities: Path, labels: Path, limit: int | None) -> list[Sample]:
    for folder in (images, probabilities, labels):
        if not folder.is_dir():
            raise EngineError(f"crf tune: no folder {folder}")
    problems: list[Problem] = []

    def by_name(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
        found: dict[str, list[Path]] = {}
        for path in list_files(folder, suffixes):
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
        tables.append(found)
        return {name: paths[0] for name, paths in found.items()}

    tables: list[dict[str, list[Path]]] = []
    known = by_name(probabilities, ARRAY_SUFFIXES)
    photos, truths = by_name(images, IMAGE_SUFFIXES), by_name(labels, MASK_SUFFIXES)
    if not known:
        raise EngineError(f"crf tune: no .npy, .npz or .safetensors files in {probabilities}")
    names = sorted(known)
    names = [names[i] for i in spread(limit or len(names), len(names))]
    for name in names:
        for table in tables:
            for path in table.get(name, [])[1:]:
                detail = f"beside {table[name][0].name}"
                problems.append(Problem("same name twice", str(path), detail))
        for table, what, folder in ((photos, "image", images), (truths, "labels", labels)):
            if name not in table:
                detail = f"no {folder / name}.*"
                problems.append(Problem(f"probabilities without {what}", str(known[name]), detail))
    if problems:
        raise DatasetError(f"crf tune: {len(problems)} bad files for {len(names)} images", problems)
    return [Sample(name, photos[name], known[name], truths[name]) for name in names]


def _check(samples: Sequence[Sample], ignore: int) -> tuple[int, float, str]:
    """The number of classes, the mIoU of the probabilities alone, and a digest of all files."""
    problems: list[Problem] = []
    digest = hashlib.sha256()
    metrics: SegmentationMetrics | None = None
    for sample in samples:
        before = len(problems)
        image = found = truth = None
        for path, kind in (
            (sample.image, "unreadable image"),
            (sample.probabilities, "unusable probabilities"),
            (sample.labels, "unreadable labels"),
        ):
            try:
                digest.update(hashlib.sha256(path.read_bytes()).digest())
                if path is sample.image:
                    image = decode_image(path)
                elif path is sample.probabilities:
                    found = read_evidence(path).probabilities
                    if found is None:
                        raise UnreadableError("labels and no probabilities (C, H, W)")
                else:
                    truth = decode_mask(path)
            except UnreadableError as error:
                problems.append(Problem(kind, str(path), str(error)))
            except OSError as error:
                problems.append(Problem(kind, str(path), error.strerror or str(error)))
        if len(problems) > before:
            continue
        metrics = metrics or SegmentationMetrics(len(found), ignore_index=ignore)
        problem = _disagreement(sample, image, found, truth, metrics.num_classes, ignore)
        if problem is not None:
            problems.append(problem)
            continue
        metrics.update(
            torch.from_numpy(found.argmax(0))[None], torch.from_numpy(truth.astype(np.int64))[None]
        )
    if problems:
        raise DatasetError(
            f"crf tune: {len(problems)} bad files for {len(samples)} images", problems
        )
    if not metrics.confusion.any():
        raise EngineError(f"crf tune: every pixel of the labels has the ignored label {ignore}")
    return metrics.num_classes, metrics.compute()["miou"], digest.hexdigest()


def _disagreement(
    sample: Sample,
    image: np.ndarray,
    found: np.ndarray,
    truth: np.ndarray,
    classes: int,
    ignore: int,
) -> Problem | None:
    if len(found) != classes:
        detail = f"{len(found)} classes, and the first file has {classes}"
        return Problem("other number of classes", str(sample.probabilities), detail)
    for path, array in ((sample.probabilities, found[0]), (sample.labels, truth)):
        if array.shape != image.shape[:2]:
            detail = f"{array.shape[1]}x{array.shape[0]}, image {image.shape[1]}x{image.shape[0]}"
            return Problem("wrong size", str(path), detail)
    wrong = [v for v in np.unique(truth).tolist() if not 0 <= v < classes and v != ignore]
    if wrong:
        shown = ", ".join(map(str, wrong[:8]))
        detail = f"labels {shown}; allowed are 0-{classes - 1} and {ignore}"
        return Problem("label out of range", str(sample.labels), detail)
    return None


def _load(sample: Sample, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Image (1, 3, H, W) uint8, probabilities (1, C, H, W) and labels (1, H, W)."""
    try:
        image = decode_image(sample.image)
        found = read_evidence(sample.probabilities).probabilities
        truth = decode_mask(sample.labels)
    except UnreadableError as error:
        raise DatasetError(f"crf tune: {sample.name}: {error} (changed since the check)") from error
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].to(device)
    target = torch.from_numpy(truth.astype(np.int64))[None].to(device)
    return pixels, torch.from_numpy(found)[None].to(device), target


def _description(
    samples: Sequence[Sample],
    digest: str,
    space: Space,
    base: CrfSettings,
    rounds: int,
    ignore: int,
) -> dict[str, Any]:
    return {
        "space": {name: list(values) for name, values in dataclasses.asdict(space).items()},
        "normalization": base.normalization,
        "iterations": base.iterations,
        "rounds": rounds,
        "ignore_label": ignore,
        "images": [sample.name for sample in samples],
        "data_sha256": digest,
    }


def _open(folder: Path, wanted: dict[str, Any], overwrite: bool) -> list[dict[str, float]]:
    """The trials of the same search in the folder; [] where there is none."""
    path = folder / SEARCH
    if folder.exists() and not folder.is_dir():
        raise EngineError(f"crf tune: output must be a folder, and {folder} is a file")
    if overwrite or not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for name in (TRIALS, BEST):
            if not overwrite and (folder / name).exists():
                raise EngineError(f"crf tune: {folder} holds a {name} that is not of a search")
            (folder / name).unlink(missing_ok=True)
        write_json(path, wanted)
        return []
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EngineError(f"crf tune: {path} is damaged: {error}; give --overwrite") from error
    other = [name for name in wanted if stored.get(name) != wanted[name]]
    if other:
        raise EngineError(
            f"crf tune: {folder} holds another search: {', '.join(other)} differ; choose another "
            "--output, or --overwrite to start anew"
        )
    if not (folder / TRIALS).exists():
        return []
    with open(folder / TRIALS, newline="", encoding="utf-8") as file:
        rows = [{name: float(row[name]) for name in _COLUMNS} for row in csv.DictReader(file)]
    return [{**row, "round": int(row["round"])} for row in rows]
