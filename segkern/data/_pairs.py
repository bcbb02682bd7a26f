"""Data sets made of image files and mask files: pairing, the check of every file, loading."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from segkern.data._base import SegmentationDataset, Transform
from segkern.data._cache import cache_dir, digest, read_json, write_json
from segkern.data._errors import DatasetError, Problem
from segkern.data.image_io import UnreadableError, decode_image, decode_mask, read_image, read_mask

_CHECK_VERSION = 1
"""Raised when a stored verdict would no longer mean the same."""


@dataclass(frozen=True)
class Pair:
    """One image and its mask. ``name`` is the path without suffix below the images' folder."""

    name: str
    image: Path
    mask: Path


def list_files(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """The files with one of ``suffixes`` below ``folder``, sorted; hidden ones left out."""
    found = []
    for directory, subfolders, files in os.walk(folder, followlinks=True):
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        found += [Path(directory, f) for f in files if not f.startswith(".")]
    return sorted(f for f in found if f.suffix.lower() in suffixes)


def pair_files(
    images_folder: Path,
    images: Sequence[Path],
    masks_folder: Path,
    masks: Sequence[Path],
    root: Path,
    ends: tuple[str, str] | None = None,
) -> tuple[list[Pair], list[Problem]]:
    """Match images and masks by relative path without suffix.

    Args:
        ends: how the names of images and of masks end, where that is more than the suffix.

    Returns:
        the pairs in order of their names, and a problem for each file left over or doubled.
    """
    problems = []

    def by_name(folder: Path, files: Sequence[Path], end: str | None) -> dict[str, Path]:
        table: dict[str, Path] = {}
        for file in files:
            relative = file.relative_to(folder)
            if end is None:
                name = relative.with_suffix("").as_posix()
            else:
                name = relative.as_posix().removesuffix(end)
            if name in table:
                problems.append(
                    Problem("same name twice", _relative(file, root), f"beside {table[name].name}")
                )
            else:
                table[name] = file
        return table

    image_end, mask_end = (None, None) if ends is None else ends
    image_table = by_name(images_folder, images, image_end)
    mask_table = by_name(masks_folder, masks, mask_end)
    pairs = []
    for name in sorted(image_table.keys() | mask_table.keys()):
        if name not in mask_table:
            wanted = _relative(masks_folder / f"{name}{mask_end or '.png'}", root)
            path = _relative(image_table[name], root)
            problems.append(Problem("image without mask", path, f"no {wanted}"))
        elif name not in image_table:
            wanted = _relative(images_folder / name, root)
            path = _relative(mask_table[name], root)
            problems.append(
                Problem("mask without image", path, f"no image {wanted}{image_end or '.*'}")
            )
        else:
            pairs.append(Pair(name, image_table[name], mask_table[name]))
    return pairs, problems


def check_pairs(
    pairs: Sequence[Pair], root: Path
) -> tuple[list[dict[int, int] | None], list[Problem]]:
    """Decode every image and mask, on a few threads, and compare their sizes.

    Verdicts of sound pairs are kept in the cache folder, keyed by path, modification time and size,
    so that a second call reads no pixels.

    Returns:
        for each pair the number of pixels of each stored label (None where the pair is bad), and
        the problems found.
    """
    if not pairs:
        return [], []
    store = cache_dir() / "checks" / f"{digest(_CHECK_VERSION, str(root.resolve()))}.json"
    known = read_json(store) or {}
    verdicts: dict[str, list[Any]] = {}

    def check(pair: Pair) -> tuple[dict[int, int] | None, list[Problem]]:
        key, stamp = _relative(pair.mask, root), _stamp(pair)
        kept = _kept_counts(known.get(key), stamp)
        if kept is not None:
            return kept, []
        counts, problems = _check_pair(pair, root)
        if counts is not None and stamp is not None:
            verdicts[key] = [*stamp, counts]
        return counts, problems

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = list(pool.map(check, pairs))
    if verdicts:
        write_json(store, {**known, **verdicts})
    return [counts for counts, _ in results], [p for _, problems in results for p in problems]


def _stamp(pair: Pair) -> list[Any] | None:
    try:
        stats = [os.stat(pair.image), os.stat(pair.mask)]
    except OSError:
        return None
    return [pair.image.name, *(n for s in stats for n in (s.st_mtime_ns, s.st_size))]


def _kept_counts(entry: Any, stamp: list[Any] | None) -> dict[int, int] | None:
    if not isinstance(entry, list) or stamp is None or entry[:-1] != stamp:
        return None
    try:
        return {int(label): int(number) for label, number in entry[-1].items()}
    except (AttributeError, TypeError, ValueError):
        return None


def _check_pair(pair: Pair, root: Path) -> tuple[dict[int, int] | None, list[Problem]]:
    image = mask = None
    problems = []
    try:
        image = decode_image(pair.image)
    except UnreadableError as error:
        problems.append(Problem("unreadable image", _relative(pair.image, root), str(error)))
    try:
        mask = decode_mask(pair.mask)
    except UnreadableError as error:
        problems.append(Problem("unreadable mask", _relative(pair.mask, root), str(error)))
    if image is not None and mask is not None and image.shape[:2] != mask.shape:
        detail = f"mask is {_size(mask)}, image {_relative(pair.image, root)} is {_size(image)}"
        problems.append(Problem("wrong size", _relative(pair.mask, root), detail))
    if problems or mask is None:
        return None, problems
    if mask.dtype == np.uint8:
        numbers = np.bincount(mask.ravel(), minlength=256)
        labels = np.flatnonzero(numbers)
        return dict(zip(labels.tolist(), numbers[labels].tolist(), strict=True)), []
    labels, numbers = np.unique(mask, return_counts=True)
    return dict(zip(labels.tolist(), numbers.tolist(), strict=True)), []


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def check_folders(title: str, folders: Sequence[Path], wanted: str) -> None:
    """Raise DatasetError naming the folders that are not there, and what is wanted."""
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise DatasetError(
            f"{title}: no folder {' and no folder '.join(missing)}; wanted are {wanted}"
        )


class PairDataset(SegmentationDataset):
    """Image and mask files, every one of them checked at construction.

    Args:
        pairs: the files.
        problems: faults found while pairing; raised together with those of the check.
        root: the folder that names in messages are relative to.
        title: how messages call the data set.
        class_names, palette, transform, seed: see `SegmentationDataset`.
        label_map: stored label -> class for labels that differ from their class, as {11: 255}.
        size: (H, W) to resize to on loading (bilinear with antialiasing; nearest for masks).
        length: use at most this many pairs, spread evenly over the sorted list.
        cache_images: keep all decoded pixels in memory (4 bytes a pixel).
        checked: the result of `check_pairs` for these pairs, where it is already at hand.

    Raises:
        DatasetError: unpaired, unreadable, wrong-size or out-of-range files; it names all of them.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        problems: Sequence[Problem],
        *,
        root: Path,
        title: str,
        class_names: Sequence[str],
        palette: np.ndarray,
        label_map: Mapping[int, int] | None = None,
        transform: Transform | None = None,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        length: int | None = None,
        cache_images: bool = False,
        checked: tuple[list[dict[int, int] | None], list[Problem]] | None = None,
    ) -> None:
        super().__init__(class_names, palette, transform=transform, seed=seed)
        if length is not None and length < 1:
            raise ValueError(f"{title}: length must be at least 1, got {length}")
        self.title = title
        self.size = size
        self._root = root
        self._table = self._label_table(label_map or {})
        counts, bad = check_pairs(pairs, root) if checked is None else checked
        bad = [*problems, *bad, *self._out_of_range(pairs, counts)]
        if bad:
            raise DatasetError(f"{title}: {len(bad)} bad files beside {len(pairs)} pairs", bad)
        if not pairs:
            raise DatasetError(f"{title}: no images found")
        chosen = range(len(pairs))
        if length is not None and length < len(pairs):
            chosen = [i * len(pairs) // length for i in range(length)]
        self._pairs = [pairs[i] for i in chosen]
        self._names = [pair.name.replace("/", "_") for pair in self._pairs]
        if len(set(self._names)) < len(self._names):  # "a/b" beside "a_b"
            self._names = [f"{name}_{i}" for i, name in enumerate(self._names)]
        self._counts = [counts[i] or {} for i in chosen]
        self._decoded: tuple[Tensor, list[tuple[int, int, int]]] | None = None
        if cache_images:
            self._decoded = self._decode_all()

    def _label_table(self, label_map: Mapping[int, int]) -> np.ndarray:
        """(256,) int16: the class of each stored label, 255 for ignore, -1 if not allowed."""
        table = np.full(256, -1, dtype=np.int16)
        table[: self.num_classes] = np.arange(self.num_classes)
        table[self.ignore_index] = self.ignore_index
        for label, index in label_map.items():
            table[label] = index
        return table

    def _out_of_range(
        self, pairs: Sequence[Pair], counts: Sequence[dict[int, int] | None]
    ) -> list[Problem]:
        problems = []
        allowed = f"allowed are {_ranges(np.flatnonzero(self._table >= 0).tolist())}"
        for pair, found in zip(pairs, counts, strict=True):
            bad = [v for v in found or () if not 0 <= v < 256 or self._table[v] < 0]
            if bad:
                shown = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
                detail = f"labels {shown}; {allowed}"
                path = _relative(pair.mask, self._root)
                problems.append(Problem("label out of range", path, detail))
        return problems

    def __len__(self) -> int:
        return len(self._pairs)

    def sample_name(self, index: int) -> str:
        """The image's path below its folder, without suffix, folders joined by ``_``."""
        return self._names[index]

    def identity(self) -> str:
        """Names, times and sizes of all files, with the split and the size."""
        stamps = [(pair.name, _stamp(pair)) for pair in self._pairs]
        key = digest(self._root.resolve(), stamps, self.size, self._table.tolist())
        return f"{self.title} {key}"

    def label_counts(self) -> list[Counter[int]] | None:
        """Pixels of each class in each sample as the check counted them, without reading a file.

        Returns:
            one counter per sample with 255 for ignored pixels; None where ``size`` changes them.
        """
        if self.size is not None:
            return None
        result = []
        for found in self._counts:
            counter: Counter[int] = Counter()
            for label, number in found.items():
                counter[int(self._table[label])] += number
            result.append(counter)
        return result

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        if self._decoded is None:
            return self._read(index)
        pixels, places = self._decoded
        start, height, width = places[index]
        plane = height * width
        return (
            pixels[start : start + 3 * plane].view(3, height, width).clone(),
            pixels[start + 3 * plane : start + 4 * plane].view(height, width).clone(),
        )

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        pair = self._pairs[index]
        image, stored = read_image(pair.image), read_mask(pair.mask)
        if image.shape[:2] != stored.shape:
            raise DatasetError(
                f"{pair.mask}: mask is {_size(stored)}, image is {_size(image)} "
                "(changed since the check)"
            )
        wide = stored.dtype != np.uint8 and (stored.min() < 0 or stored.max() > 255)
        classes = None if wide else self._table[stored]
        if classes is None or classes.min() < 0:
            raise DatasetError(f"{pair.mask}: label out of range (changed since the check)")
        picture = torch.from_numpy(image.transpose(2, 0, 1).copy())
        mask = torch.from_numpy(classes.astype(np.uint8))
        if self.size is not None and tuple(mask.shape) != tuple(self.size):
            size = list(self.size)
            picture = F.resize_image(picture, size, InterpolationMode.BILINEAR, antialias=True)
            mask = F.resize_image(mask[None], size, InterpolationMode.NEAREST_EXACT)[0]
        return picture, mask

    def _decode_all(self) -> tuple[Tensor, list[tuple[int, int, int]]]:
        """All samples in one flat tensor, which forked workers share without copying it."""
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            samples = list(pool.map(self._read, range(len(self))))
        pixels = torch.empty(sum(4 * mask.numel() for _, mask in samples), dtype=torch.uint8)
        places, start = [], 0
        for image, mask in samples:
            plane = mask.numel()
            places.append((start, *mask.shape))
            pixels[start : start + 3 * plane] = image.flatten()
            pixels[start + 3 * plane : start + 4 * plane] = mask.flatten()
            start += 4 * plane
        return pixels, places


def _ranges(values: Sequence[int]) -> str:
    """``[0, 1, 2, 255]`` as ``0-2, 255``."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
