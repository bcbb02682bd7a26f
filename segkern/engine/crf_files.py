"""The dense CRF on files: one image with its labels or probabilities, or folders of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segkern.data import DatasetError, Problem
from segkern.data._pairs import Pair, list_files, pair_files
from segkern.data.image_io import IMAGE_SUFFIXES, UnreadableError, decode_image
from segkern.engine.crf_evidence import (
    ARRAY_SUFFIXES,
    EVIDENCE_SUFFIXES,
    Evidence,
    Unknown,
    encode_labels,
    encode_picture,
    encode_probabilities,
    read_evidence,
)
from segkern.engine.crf_settings import CrfSettings
from segkern.engine.devices import crf_device
from segkern.engine.drawing import overlay, panel
from segkern.engine.errors import EngineError
from segkern.engine.files import write_atomic

SAVE = ("labels", "probs", "overlay", "panel")
CERTAINTY = 0.7
"""How likely a label of a map is right, where nothing is said: that of pydensecrf's example."""


@dataclass(frozen=True)
class Job:
    """An image, what is known of it, and where the result goes."""

    name: str
    image: Path
    evidence: Path
    output: Path


@dataclass(frozen=True)
class Checked:
    """What the check of a job found: height, width, the labels' values, and the kind of file."""

    height: int
    width: int
    values: tuple[object, ...]
    labels: bool
    unknown: int


def refine_files(
    image: str | Path,
    evidence: str | Path,
    output: str | Path,
    settings: CrfSettings,
    *,
    certainty: float | None = None,
    unknown: Unknown = "auto",
    save: str | None = None,
    suffix: str | None = None,
    device: str = "auto",
    batch_size: int = 4,
    overwrite: bool = False,
    step: Callable[[int, int], None] | None = None,
) -> dict[Path, Checked]:
    """Refine labels or probabilities of one image, or of a folder of images, and write the result.

    image, evidence: two files, or two folders whose files are paired by path without suffix. All of
    them are read and checked before anything is written, and DatasetError names every bad one.
    output: a file, or a folder for folders; a file that exists is replaced only with `overwrite`,
    and an input never. certainty: see `Evidence.energies`; 0.7 if None, and only for label maps.
    save: "labels" (PNG or array), "probs" (array), "overlay" or "panel" (PNG); None is probs for an
    output .npy, .npz or .safetensors and else labels. suffix: of the outputs of a folder; None is
    .npz for probs and else .png. Images of equal size and number of labels are run together, up to
    `batch_size`.

    Returns what was found in each output's inputs. The result of an image does not depend on the
    others. Deterministic.
    """
    if certainty is not None and not 0 < certainty < 1:
        raise EngineError(f"crf: gt_prob must be between 0 and 1, got {certainty!r}")
    chosen = crf_device(device)
    images, known, target = Path(image), Path(evidence), Path(output)
    jobs, problems = _plan(images, known, target, save, suffix)
    _check_outputs(jobs, overwrite)
    checked, bad = _check(jobs, unknown)
    if bad := [*problems, *bad]:
        raise DatasetError(f"crf: {len(bad)} bad files beside {len(jobs)} pairs", bad)
    for job, found in zip(jobs, checked):
        if not found.labels and (certainty is not None or unknown != "auto"):
            raise EngineError(
                f"crf: gt_prob and unknown are for label maps, and {job.evidence} holds "
                "probabilities"
            )
    result = {}
    for group in _batches(checked, batch_size):
        chosen_jobs = [jobs[i] for i in group]
        _run(chosen_jobs, settings, chosen, certainty or CERTAINTY, unknown, save)
        result.update((jobs[i].output, checked[i]) for i in group)
        if step is not None:
            step(len(result), len(jobs))
    return result


def _plan(
    images: Path, known: Path, target: Path, save: str | None, suffix: str | None
) -> tuple[list[Job], list[Problem]]:
    if save is not None and save not in SAVE:
        raise EngineError(f"crf: save must be one of {', '.join(SAVE)}, got {save!r}")
    for path in (images, known):
        if not path.exists():
            raise EngineError(f"crf: no such file or folder: {path}")
    if images.is_dir() != known.is_dir():
        raise EngineError(f"crf: {images} and {known} must be two files or two folders")
    if not images.is_dir():
        if suffix is not None:
            raise EngineError("crf: a format is chosen for folders; name the output file instead")
        _check_suffix(target.suffix.lower(), save, f"output {target}")
        return [Job(images.stem, images, known, target)], []
    if suffix is None:
        suffix = ".npz" if save == "probs" else ".png"
    _check_suffix(suffix, save, f"format {suffix}")
    if target.exists() and not target.is_dir():
        raise EngineError(f"crf: output must be a folder, and {target} is a file")
    pairs, problems = _pairs(images, known)
    return [Job(p.name, p.image, p.mask, target / f"{p.name}{suffix}") for p in pairs], problems


def _check_suffix(suffix: str, save: str | None, what: str) -> None:
    if suffix != ".png" and suffix not in ARRAY_SUFFIXES:
        raise EngineError(
            f"crf: {what} must end in .png, {', '.join(sorted(ARRAY_SUFFIXES))}, got {suffix!r}"
        )
    if save == "probs" and suffix == ".png":
        raise EngineError(f"crf: {what} must be .npy, .npz or .safetensors to save probs")
    if save in ("overlay", "panel") and suffix != ".png":
        raise EngineError(f"crf: {what} must be .png to save a picture")


def _pairs(images: Path, known: Path) -> tuple[list[Pair], list[Problem]]:
    root = Path(os.path.commonpath([images.resolve(), known.resolve()]))
    images, known = images.resolve(), known.resolve()
    photos, maps = list_files(images, IMAGE_SUFFIXES), list_files(known, EVIDENCE_SUFFIXES)
    if not photos:
        raise EngineError(f"crf: no images in the folder {images}")
    return pair_files(images, photos, known, maps, root)


def _check_outputs(jobs: Sequence[Job], overwrite: bool) -> None:
    inputs = {path.resolve() for job in jobs for path in (job.image, job.evidence)}
    for job in jobs:
        if job.output.resolve() in inputs:
            raise EngineError(f"crf: {job.output} is an input; choose another output")
        if job.output.is_dir():
            raise EngineError(f"crf: output must be a file, and {job.output} is a folder")
    existing = [str(job.output) for job in jobs if job.output.exists()]
    if existing and not overwrite:
        shown = "\n  ".join(existing[:10]) + ("\n  ..." if len(existing) > 10 else "")
        raise EngineError(
            f"crf: {len(existing)} output files exist; give --overwrite to replace them:\n  {shown}"
        )


def _check(jobs: Sequence[Job], unknown: Unknown) -> tuple[list[Checked], list[Problem]]:
    def check(job: Job) -> Checked | list[Problem]:
        problems = []
        image = found = None
        try:
            image = decode_image(job.image)
        except UnreadableError as error:
            problems.append(Problem("unreadable image", str(job.image), str(error)))
        try:
            found = read_evidence(job.evidence, unknown)
        except UnreadableError as error:
            problems.append(
                Problem("unusable labels or probabilities", str(job.evidence), str(error))
            )
        if image is not None and found is not None and image.shape[:2] != found.size:
            problems.append(
                Problem(
                    "wrong size",
                    str(job.evidence),
                    f"{_size(found.size)}, and the image {job.image} is {_size(image.shape)}",
                )
            )
        if problems or found is None:
            return problems
        values = tuple(map(_shown, found.values.tolist()))
        lost = 0 if found.rows is None else int((found.rows < 0).sum())
        return Checked(*found.size, values, found.rows is not None, lost)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = list(pool.map(check, jobs))
    good = [result for result in results if isinstance(result, Checked)]
    return good, [problem for result in results if isinstance(result, list) for problem in result]


def _shown(value: int | list[int]) -> object:
    return value if isinstance(value, int) else "#{:02x}{:02x}{:02x}".format(*value)


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _batches(checked: Sequence[Checked], batch_size: int) -> list[list[int]]:
    """Indices of jobs of one size and number of labels, at most `batch_size` together."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for index, found in enumerate(checked):
        groups.setdefault((found.height, found.width, len(found.values)), []).append(index)
    return [
        group[start : start + batch_size]
        for group in groups.values()
        for start in range(0, len(group), batch_size)
    ]


def _run(
    jobs: Sequence[Job],
    settings: CrfSettings,
    device: torch.device,
    certainty: float,
    unknown: Unknown,
    save: str | None,
) -> None:
    inputs = [_load_pair(job, unknown) for job in jobs]
    shapes = {(image.shape[:2], found.size, len(found.values)) for image, found in inputs}
    if len(shapes) > 1:
        raise DatasetError(f"crf: {jobs[0].evidence} or a file beside it changed since the check")
    energies = np.stack([found.energies(certainty) for _, found in inputs])
    images = np.stack([image.transpose(2, 0, 1) for image, _ in inputs])
    with torch.inference_mode():
        marginals = settings.refine(
            torch.from_numpy(energies).to(device), torch.from_numpy(images).to(device)
        )
        marginals = marginals.cpu().numpy()
    for job, (image, found), own in zip(jobs, inputs, marginals):
        data = _encode(job.output.suffix.lower(), save, image, found, own)
        job.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(job.output, data)


def _load_pair(job: Job, unknown: Unknown) -> tuple[np.ndarray, Evidence]:
    path = job.image
    try:
        image = decode_image(path)
        path = job.evidence
        return image, read_evidence(path, unknown)
    except UnreadableError as error:
        raise DatasetError(f"crf: {path}: {error} (changed since the check)") from error


def _encode(
    suffix: str, save: str | None, image: np.ndarray, found: Evidence, marginals: np.ndarray
) -> bytes:
    if save == "probs" or (save is None and suffix != ".png"):
        return encode_probabilities(found, marginals, suffix)
    rows = marginals.argmax(0)
    if save in (None, "labels"):
        return encode_labels(found, rows, suffix)
    if save == "overlay":
        return encode_picture(Image.fromarray(overlay(image, rows, found.colours)))
    before = "labels" if found.rows is not None else "probabilities"
    return encode_picture(
        panel(
            [
                ("photograph", image),
                (before, found.picture(found.best())),
                ("refined", found.picture(rows)),
            ]
        )
    )
