"""What COCO's two kinds of json files share: reading, images and their files, categories."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segkern.data._base import default_palette
from segkern.data._cache import cache_dir, digest, read_json, write_json
from segkern.data._errors import DatasetError, Problem
from segkern.data.image_io import UnreadableError, image_size

_CHECK_VERSION = 1
"""Raised when a stored size would no longer mean the same."""

Hook = Callable[[dict[str, Any]], Any]


@dataclass
class Images:
    """The images of a file that can be used, in order of their ids.

    ids: (n,) int64. sizes: (n, 2) int64, height and width. names: the files below ``folder``.
    """

    folder: Path
    ids: np.ndarray
    sizes: np.ndarray
    names: list[str]

    def find(self, numbers: np.ndarray) -> np.ndarray:
        """The position of each id, -1 where there is no such image."""
        return find_sorted(self.ids, numbers)


def find_sorted(ordered: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The position of each wanted value among ascending ones, -1 where it is missing."""
    if not len(ordered):
        return np.full(len(wanted), -1, dtype=np.int64)
    place = np.searchsorted(ordered, wanted).clip(max=len(ordered) - 1)
    return np.where(ordered[place] == wanted, place, -1)


def shown(path: Path, root: Path) -> str:
    """The path below ``root``, as messages name it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def is_number(value: Any) -> bool:
    """An int or a float, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_id(value: Any) -> bool:
    """An int that fits 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def first_there(title: str, what: str, root: Path, candidates: Sequence[str]) -> Path:
    """The first of some paths below ``root`` that exists, or an error with all of them."""
    for candidate in candidates:
        if (root / candidate).exists():
            return root / candidate
    raise DatasetError(f"{title}: no {what}; wanted is one of {', '.join(candidates)} in {root}")


def parse_file(path: Path, root: Path, title: str, hook: Hook | None = None) -> dict[str, list]:
    """Read a json file that has the lists ``images``, ``annotations`` and ``categories``.

    Args:
        hook: called with every object of the file, inner ones first; what it returns takes the
            object's place, so that a large file need not be held as a whole.

    Raises:
        DatasetError: the file is missing, truncated, no json, or a list is not there.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file, object_hook=hook)
    except OSError as error:
        detail = error.strerror or str(error)
        raise DatasetError(
            title, [Problem("unreadable json", shown(path, root), detail)]
        ) from error
    except (ValueError, RecursionError) as error:
        detail = f"truncated or no json: {error}"
        raise DatasetError(
            title, [Problem("unreadable json", shown(path, root), detail)]
        ) from error
    problems = []
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            detail = f"no list {name!r}; it is no file of annotations in COCO's form"
            problems.append(Problem("list missing", shown(path, root), detail))
    if problems:
        raise DatasetError(title, problems)
    return content


def read_categories(
    entries: Sequence[Any], file: str
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The categories in order of their ids, with colours where the file has none."""
    problems = []
    found: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        where = f"category entry {position}"
        if not isinstance(entry, dict) or not is_id(entry.get("id")) or "name" not in entry:
            problems.append(Problem("bad category", file, f"{where}: must have an id and a name"))
        elif entry["id"] in found:
            problems.append(Problem("duplicate id", file, f"{where}: category {entry['id']} again"))
        else:
            found[entry["id"]] = entry
    colours = default_palette(min(len(found) + 1, 256)).tolist()
    categories = []
    for position, number in enumerate(sorted(found)):
        entry = found[number]
        colour = entry.get("color")
        if not _is_colour(colour):
            colour = colours[(position + 1) % len(colours)]
        categories.append(
            {
                "id": number,
                "name": str(entry["name"]),
                "isthing": bool(entry.get("isthing", 1)),
                "color": colour,
            }
        )
    if not categories and not problems:
        problems.append(Problem("bad category", file, "there are none"))
    return categories, problems


def _is_colour(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(is_number(v) and 0 <= v <= 255 for v in value)
    )


def read_images(
    entries: Sequence[Any], file: str, root: Path, folders: Sequence[str], title: str
) -> tuple[Images, list[Problem]]:
    """The images of a file, each of them looked up on the disk.

    Args:
        folders: where the image files may be, below ``root``; the first folder that holds the file
            of the first image counts.

    Returns:
        the sound images, and a problem for every other one. Sizes that the file lacks are those of
        the image files.
    """
    problems, rows, seen = [], [], set()
    for position, entry in enumerate(entries):
        where = f"image entry {position}"
        if not isinstance(entry, dict) or not is_id(entry.get("id")):
            problems.append(Problem("bad image entry", file, f"{where}: must have an integer id"))
            continue
        where = f"image {entry['id']}"
        name, size = entry.get("file_name"), (entry.get("height"), entry.get("width"))
        sized = all(is_id(v) and v > 0 for v in size)
        if not isinstance(name, str) or not name:
            problems.append(Problem("bad image entry", file, f"{where}: must have a file_name"))
        elif not sized and size != (None, None):
            detail = f"{where}: height and width must be positive integers, got {size}"
            problems.append(Problem("bad image entry", file, detail))
        elif entry["id"] in seen:
            problems.append(Problem("duplicate id", file, f"{where} again ({name})"))
        else:
            seen.add(entry["id"])
            rows.append((entry["id"], name, size if sized else (0, 0)))
    rows.sort()
    names = [name for _, name, _ in rows]
    sizes = np.array([size for *_, size in rows], dtype=np.int64).reshape(-1, 2)
    folder = _image_folder(root, folders, names, title)
    stored, bad = measure(folder, names, root)
    sound = []
    for k, (number, name, _) in enumerate(rows):
        if stored[k] is None:
            continue
        if sizes[k, 0] and tuple(sizes[k]) != stored[k]:
            height, width = stored[k]
            detail = f"is {width}x{height}, {file} has {sizes[k, 1]}x{sizes[k, 0]} (image {number})"
            bad.append(Problem("wrong size", shown(folder / name, root), detail))
            continue
        sizes[k] = stored[k]
        sound.append(k)
    ids = np.array([row[0] for row in rows], dtype=np.int64)
    images = Images(folder, ids[sound], sizes[sound], [names[k] for k in sound])
    return images, [*problems, *bad]


def _image_folder(root: Path, folders: Sequence[str], names: Sequence[str], title: str) -> Path:
    there = [root / folder for folder in folders if (root / folder).is_dir()]
    if not there:
        raise DatasetError(
            f"{title}: no folder of images; wanted is one of {', '.join(folders)} in {root}"
        )
    return next((f for f in there if names and (f / names[0]).is_file()), there[0])


def measure(
    folder: Path, names: Sequence[str], root: Path
) -> tuple[list[tuple[int, int] | None], list[Problem]]:
    """The (height, width) of image files from their heads, without decoding them.

    Sizes are kept in the cache folder with the files' time and length, so that a second call reads
    none of the files.

    Returns:
        a size for each name, None where the file is missing or no image, and a problem for those.
    """
    store = (
        cache_dir() / "checks" / f"{digest('sizes', _CHECK_VERSION, str(folder.resolve()))}.json"
    )
    known = read_json(store) or {}
    fresh: dict[str, list[int]] = {}

    def look(name: str) -> tuple[tuple[int, int] | None, Problem | None]:
        path = folder / name
        try:
            stats = os.stat(path)
            stamp = [stats.st_mtime_ns, stats.st_size]
            kept = known.get(name)
            if isinstance(kept, list) and len(kept) == 4 and kept[:2] == stamp:
                return (int(kept[2]), int(kept[3])), None
            size = image_size(path)
        except OSError as error:
            detail = error.strerror or str(error)
            return None, Problem("missing image", shown(path, root), detail)
        except UnreadableError as error:
            return None, Problem("unreadable image", shown(path, root), str(error))
        fresh[name] = [*stamp, *size]
        return size, None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = list(pool.map(look, names))
    if fresh:
        write_json(store, {**known, **fresh})
    return [size for size, _ in results], [p for _, p in results if p is not None]


def choose(number: int, length: int | None) -> list[int]:
    """At most ``length`` of the positions 0 .. number - 1, spread evenly."""
    if length is None or length >= number:
        return list(range(number))
    return [i * number // length for i in range(length)]


def sample_names(names: Sequence[str]) -> list[str]:
    """Names of files as stems that are unique: folders joined by ``_``."""
    stems = [Path(name).with_suffix("").as_posix().replace("/", "_") for name in names]
    if len(set(stems)) < len(stems):
        stems = [f"{stem}_{k}" for k, stem in enumerate(stems)]
    return stems


def stamp_of(path: Path) -> list[Any]:
    """Path, time and length of a file, for `identity`."""
    stats = os.stat(path)
    return [os.fspath(path.resolve()), stats.st_mtime_ns, stats.st_size]
