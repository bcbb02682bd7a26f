"""Anybody's data: a folder with ``images/`` and ``masks/``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from segkern.data._base import IGNORE_INDEX, Transform, default_palette
from segkern.data._cache import digest
from segkern.data._errors import DatasetError, Problem
from segkern.data._pairs import Pair, PairDataset, check_pairs, list_files, pair_files
from segkern.data.image_io import IMAGE_SUFFIXES, MASK_SUFFIXES

SPLITS = ("train", "val", "test")


class Folder(PairDataset):
    """``DIR/images`` and ``DIR/masks``, paired by path without suffix.

    Splits are the subfolders ``images/train``, ``masks/train`` and so on where there are any.
    Otherwise ``val_fraction`` of the pairs are the validation split: those whose names have the
    smallest hashes, so that neither the seed of a training run nor the order of files moves them.

    Masks are images with one channel or a palette that hold class indices; 255 is ignored. The
    classes are listed in one of

    - ``DIR/classes.txt``: a line per class, ``name`` or ``name R G B``; ``#`` starts a comment;
    - ``DIR/classes.json``: a list of names or of ``{"name": ..., "color": [R, G, B]}``, or an
      object whose ``"classes"`` is such a list.

    Without such a file the number of classes is one more than the largest label in any mask of the
    folder, and every label below 255 is in range.

    Args:
        root: the folder.
        split: ``"train"`` or ``"val"``; any subfolder's name where there are subfolders.
        val_fraction: share of the pairs in ``"val"`` where there are no subfolders; at least one
            pair goes to each side.
        split_seed: chooses another such share.
        transform, seed, size, length, cache_images: see `PairDataset`.

    Raises:
        DatasetError: a folder is missing, the class file is wrong, or any file is bad; all bad
            files are named.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        val_fraction: float = 0.2,
        split_seed: int = 0,
        transform: Transform | None = None,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        length: int | None = None,
        cache_images: bool = False,
    ) -> None:
        if not 0 < val_fraction < 1:
            raise ValueError(f"Folder: val_fraction must be between 0 and 1, got {val_fraction}")
        root = Path(root)
        missing = [f"{name}/" for name in ("images", "masks") if not (root / name).is_dir()]
        if missing:
            raise DatasetError(
                f"folder:{root}: no {' and no '.join(missing)} in it; "
                "wanted are images/ and masks/ with files of the same names"
            )
        title = f"folder:{root} {split}"
        named = _read_classes(root)
        parts = _split_folders(root)
        if parts and split not in parts:
            raise DatasetError(f"{title}: no images/{split}; there are {', '.join(parts)}")
        if not parts and split not in ("train", "val"):
            raise DatasetError(
                f"{title}: without subfolders of images/ the split must be train or val, "
                f"got {split}"
            )

        found = {part: _pair(root, part) for part in (parts or [""])}
        pairs, problems = found[split if parts else ""]
        if not parts:
            pairs = _hashed_split(pairs, split, val_fraction, split_seed)
        checked = None
        if named is None:
            # The classes must not depend on the split, so the masks of all splits are looked at.
            everything = [pair for part_pairs, _ in found.values() for pair in part_pairs]
            counts, bad = check_pairs(everything, root)
            problems = [p for _, part_problems in found.values() for p in part_problems]
            by_name = dict(zip((pair.mask for pair in everything), counts, strict=True))
            checked = ([by_name[pair.mask] for pair in pairs], bad)
            named = _classes_from_labels(title, [c for c in counts if c], bad or problems)
        names, palette = named
        super().__init__(
            pairs,
            problems,
            root=root,
            title=title,
            class_names=names,
            palette=palette,
            transform=transform,
            seed=seed,
            size=size,
            length=length,
            cache_images=cache_images,
            checked=checked,
        )


def _split_folders(root: Path) -> list[str]:
    parts = {f.name for top in ("images", "masks") for f in (root / top).iterdir() if f.is_dir()}
    return sorted(parts) if parts & set(SPLITS) else []


def _pair(root: Path, part: str) -> tuple[list[Pair], list[Problem]]:
    images, masks = root / "images" / part, root / "masks" / part
    return pair_files(
        images, list_files(images, IMAGE_SUFFIXES), masks, list_files(masks, MASK_SUFFIXES), root
    )


def _hashed_split(pairs: list[Pair], split: str, fraction: float, seed: int) -> list[Pair]:
    if len(pairs) < 2:
        return pairs
    held_back = min(max(round(fraction * len(pairs)), 1), len(pairs) - 1)
    ranked = sorted(pairs, key=lambda pair: digest(seed, pair.name))
    validation = {pair.name for pair in ranked[:held_back]}
    return [pair for pair in pairs if (pair.name in validation) == (split == "val")]


def _classes_from_labels(
    title: str, counts: list[dict[int, int]], faults: list[Problem]
) -> tuple[list[str], np.ndarray]:
    labels = {label for found in counts for label in found if 0 <= label < IGNORE_INDEX}
    number = max(labels, default=0) + 1
    if number < 2 and not faults:
        raise DatasetError(
            f"{title}: the masks hold no class but 0 (255 means ignore); "
            "write two classes as 0 and 1, or list the classes in classes.txt"
        )
    return [f"class_{i}" for i in range(number)], default_palette(number)


def _read_classes(root: Path) -> tuple[list[str], np.ndarray] | None:
    text_file, json_file = root / "classes.txt", root / "classes.json"
    if json_file.is_file():
        file, entries = json_file, _json_entries(json_file)
    elif text_file.is_file():
        file = text_file
        lines = text_file.read_text(encoding="utf-8").splitlines()
        entries = [_text_entry(text_file, line) for line in lines if line.partition("#")[0].strip()]
    else:
        return None
    if not 1 <= len(entries) <= IGNORE_INDEX:
        raise DatasetError(f"{file}: must list 1 to {IGNORE_INDEX} classes, got {len(entries)}")
    palette = default_palette(len(entries))
    for index, (_, colour) in enumerate(entries):
        if colour is not None:
            palette[index] = colour
    return [name for name, _ in entries], palette


_Entry = tuple[str, "tuple[int, int, int] | None"]


def _text_entry(file: Path, line: str) -> _Entry:
    words = line.partition("#")[0].split()
    if len(words) >= 4 and all(word.isdecimal() for word in words[-3:]):
        return " ".join(words[:-3]), _colour(file, [int(word) for word in words[-3:]])
    return " ".join(words), None


def _json_entries(file: Path) -> list[_Entry]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"{file}: not valid json: {error}") from error
    if isinstance(value, dict):
        value = value.get("classes")
    if not isinstance(value, list):
        raise DatasetError(f"{file}: must be a list of classes, or an object with such a list")
    entries: list[_Entry] = []
    for item in value:
        if isinstance(item, str):
            entries.append((item, None))
        elif isinstance(item, dict) and isinstance(item.get("name"), str):
            colour = item.get("color")
            entries.append((item["name"], None if colour is None else _colour(file, colour)))
        else:
            raise DatasetError(
                f'{file}: a class must be a name or {{"name": ..., "color": [R, G, B]}}, '
                f"got {item!r}"
            )
    return entries


def _colour(file: Path, value: Any) -> tuple[int, int, int]:
    sound = isinstance(value, list) and len(value) == 3
    if not sound or not all(isinstance(v, int) and 0 <= v < 256 for v in value):
        raise DatasetError(f"{file}: a colour must be three numbers from 0 to 255, got {value!r}")
    return value[0], value[1], value[2]
