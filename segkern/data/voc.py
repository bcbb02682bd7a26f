"""PASCAL VOC 2012 segmentation, with or without the augmented training list (Everingham et al.)."""

from __future__ import annotations

from pathlib import Path

from segkern.data._base import Transform, default_palette
from segkern.data._errors import DatasetError, Problem
from segkern.data._pairs import Pair, PairDataset
from segkern.data.image_io import IMAGE_SUFFIXES

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tv/monitor",
)

_IMAGES = "JPEGImages"
_MASKS = "SegmentationClass"
_AUGMENTED_MASKS = "SegmentationClassAug"
_LISTS = Path("ImageSets", "Segmentation")
_AUGMENTED = "trainaug"


class VOC(PairDataset):
    """``DIR/JPEGImages``, ``DIR/SegmentationClass`` and ``DIR/ImageSets/Segmentation/SPLIT.txt``.

    Masks are palette PNGs whose indices are the classes; 255, borders and difficult objects, is
    ignored. A list holds an ID a line, or the paths of an image and its mask.

    Args:
        root: the folder, or one that holds it as ``VOC2012`` or ``VOCdevkit/VOC2012``.
        split: ``"train"``, ``"val"``, ``"trainval"``, or the name of another list.
        augmented: whether ``"train"`` is ``trainaug.txt``, VOC's and SBD's images together. None:
            where that list is there. Its masks are in ``DIR/SegmentationClassAug`` if that folder
            is there.
        transform, seed, size, length, cache_images: see `PairDataset`.

    Raises:
        DatasetError: a folder or list is missing, or any file is bad; all bad files are named.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        augmented: bool | None = None,
        transform: Transform | None = None,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        length: int | None = None,
        cache_images: bool = False,
    ) -> None:
        root = find_root(Path(root))
        name = split
        if split == "train" and augmented is not False:
            present = (root / _LISTS / f"{_AUGMENTED}.txt").is_file()
            name = _AUGMENTED if augmented or present else split
        title = f"voc:{root} {name}"
        pairs, problems = read_list(root, name, title)
        super().__init__(
            pairs,
            problems,
            root=root,
            title=title,
            class_names=VOC_CLASSES,
            palette=default_palette(len(VOC_CLASSES)),
            transform=transform,
            seed=seed,
            size=size,
            length=length,
            cache_images=cache_images,
        )


def find_root(given: Path) -> Path:
    """The folder with ``JPEGImages``: the given one, or one below it; see `VOC`."""
    for root in (given, given / "VOC2012", given / "VOCdevkit" / "VOC2012"):
        if (root / _IMAGES).is_dir():
            return root
    raise DatasetError(
        f"voc:{given}: no folder {_IMAGES}; wanted are {_IMAGES}/, {_MASKS}/ and {_LISTS}/, in "
        "this folder or in VOC2012/ or VOCdevkit/VOC2012/ below it"
    )


def read_list(
    root: Path, name: str, title: str, masks: Path | None = None
) -> tuple[list[Pair], list[Problem]]:
    """The images of a list and their masks, and a problem for each missing file and bad line.

    Args:
        masks: the folder of ``ID.png`` masks; None is that of the classes, and then a line with
            two paths has its own.
    """
    file = root / _LISTS / f"{name}.txt"
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        there = sorted(path.stem for path in (root / _LISTS).glob("*.txt"))
        raise DatasetError(
            f"{title}: the list {file} cannot be read; there are {', '.join(there) or 'none'}"
        ) from error
    augmented = name == _AUGMENTED and (root / _AUGMENTED_MASKS).is_dir()
    folder = masks or root / (_AUGMENTED_MASKS if augmented else _MASKS)
    pairs, problems, seen = [], [], set()
    relative = file.relative_to(root).as_posix()
    for words in filter(None, lines):
        if len(words) > 2:
            problems.append(Problem("bad line in list", relative, " ".join(words)))
            continue
        if len(words) == 2:
            image, mask = (root / word.lstrip("/") for word in words)
        else:
            image, mask = _image_of(root, words[0]), folder / f"{words[0]}.png"
        if masks is not None:
            mask = masks / f"{image.stem}.png"
        if image.stem in seen:
            problems.append(Problem("same name twice", relative, image.stem))
            continue
        seen.add(image.stem)
        missing = [path for path in (image, mask) if not path.is_file()]
        for path in missing:
            shown = path.relative_to(root).as_posix()
            problems.append(Problem("missing file", shown, f"named in {relative}"))
        if not missing:
            pairs.append(Pair(image.stem, image, mask))
    return pairs, problems


def _image_of(root: Path, name: str) -> Path:
    """JPEGImages/NAME.jpg, or where it is not there the same with another suffix."""
    wanted = root / _IMAGES / f"{name}.jpg"
    if wanted.is_file():
        return wanted
    others = (wanted.with_suffix(suffix) for suffix in sorted(IMAGE_SUFFIXES))
    return next((path for path in others if path.is_file()), wanted)
