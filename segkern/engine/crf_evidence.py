"""What a dense CRF refines: label maps and probabilities, read from files and written again."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Union

import numpy as np
from PIL import Image

from segkern.crf.utils import unary_from_labels, unary_from_softmax
from segkern.data import default_palette
from segkern.data.image_io import MASK_SUFFIXES, UnreadableError, decode_labels
from segkern.engine.crf_settings import CLIP
from segkern.engine.errors import EngineError

ARRAY_SUFFIXES = frozenset({".npy", ".npz", ".safetensors"})
EVIDENCE_SUFFIXES = MASK_SUFFIXES | ARRAY_SUFFIXES
MOST_LABELS = 256

Unknown = Union[str, int, tuple[int, int, int], None]
"""Which pixels of a label map are unknown: those of a value, of a colour, none (None), or, with
"auto", the black ones of a picture in colours and none of any other file."""


@dataclass(frozen=True)
class Evidence:
    """Labels or probabilities of one image; row k stands for the k-th label.

    values: (L,) integers, or (L, 3) uint8 where labels are colours: what is stored for each row.
    colours: (L, 3) uint8 to show them in. rows: (H, W) integers, -1 for unknown, or None.
    probabilities: (L, H, W) float32, or None. palette: (256, 3) uint8 of the file, or None. binary:
    the file has one bit a pixel.
    """

    values: np.ndarray
    colours: np.ndarray
    rows: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    palette: np.ndarray | None = None
    binary: bool = False

    @property
    def size(self) -> tuple[int, int]:
        array = self.rows if self.rows is not None else self.probabilities[0]
        return array.shape[0], array.shape[1]

    def energies(self, certainty: float) -> np.ndarray:
        """(L, H, W) float32; `certainty` is how likely a label of a label map is right."""
        count = len(self.values)
        if self.probabilities is not None:
            flat = unary_from_softmax(self.probabilities, clip=CLIP)
        else:
            flat = unary_from_labels(self.rows + 1, count, certainty, zero_unsure=True)
        return flat.reshape(count, *self.size)

    def best(self) -> np.ndarray:
        """(H, W) rows before refinement: the labels, -1 for unknown, or the likeliest ones."""
        return self.rows if self.rows is not None else self.probabilities.argmax(0)

    def picture(self, rows: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8: rows in their colours, unknown ones black."""
        return np.concatenate([self.colours, np.zeros((1, 3), np.uint8)])[rows]


def parse_unknown(text: str) -> Unknown:
    """ "auto", "none", a label as in "255", or a colour as in "#000000"."""
    if text in ("auto", "none"):
        return None if text == "none" else text
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        return int(text[1:3], 16), int(text[3:5], 16), int(text[5:], 16)
    raise EngineError(
        f"crf: unknown must be a label as 255, a colour as #000000, auto or none, got {text!r}"
    )


def read_evidence(path: Path, unknown: Unknown = "auto") -> Evidence:
    """Read a label map (a lossless picture, or integers (H, W)) or probabilities (L, H, W).

    .npz and .safetensors files hold one array, or several of which one is called `probs`; where an
    array `labels` is beside it, those are the labels' values. Raises UnreadableError with the
    reason.
    """
    if path.suffix.lower() not in EVIDENCE_SUFFIXES:
        raise UnreadableError(
            f"labels or probabilities must be one of {', '.join(sorted(EVIDENCE_SUFFIXES))}"
        )
    if path.suffix.lower() in ARRAY_SUFFIXES:
        array, values = _read_array(path)
        if array.ndim == 2 and (array.dtype == np.bool_ or array.dtype.kind in "iu"):
            return _from_labels(array.astype(np.int64), None, unknown)
        return _from_probabilities(array, values)
    array, palette = decode_labels(path)
    if array.ndim == 3:
        return _from_colours(array, unknown)
    found = _from_labels(array.astype(np.int64), palette, unknown)
    return replace(found, binary=_is_binary(path))


def _is_binary(path: Path) -> bool:
    with Image.open(path) as file:
        return file.mode == "1"


def _from_labels(array: np.ndarray, palette: np.ndarray | None, unknown: Unknown) -> Evidence:
    if array.size == 0:
        raise UnreadableError(f"the map is empty: {array.shape}")
    values, rows = np.unique(array, return_inverse=True)
    if isinstance(unknown, tuple):
        if palette is None:
            raise UnreadableError(
                "unknown must be a label: the file has numbers, and no palette with colours"
            )
        lost = np.array([tuple(palette[value].tolist()) == unknown for value in values])
    else:
        lost = values == unknown if isinstance(unknown, int) else np.zeros(len(values), bool)
    kept, rows = _without(values, rows, lost)
    table = default_palette(256) if palette is None else palette
    return Evidence(kept, table[kept % 256], rows=rows.reshape(array.shape), palette=palette)


def _from_colours(array: np.ndarray, unknown: Unknown) -> Evidence:
    packed = array.astype(np.int64) @ np.array([1, 1 << 8, 1 << 16])
    if packed.size == 0:
        raise UnreadableError(f"the map is empty: {array.shape}")
    values, rows = np.unique(packed, return_inverse=True)
    if isinstance(unknown, int):
        raise UnreadableError(
            f"unknown must be a colour as #000000: the labels are colours; got {unknown}"
        )
    colour = (0, 0, 0) if unknown == "auto" else unknown
    code = None if colour is None else colour[0] | colour[1] << 8 | colour[2] << 16
    lost = np.zeros(len(values), bool) if code is None else values == code
    kept, rows = _without(values, rows, lost)
    colours = np.stack([kept & 255, kept >> 8 & 255, kept >> 16], axis=1).astype(np.uint8)
    return Evidence(colours, colours, rows=rows.reshape(packed.shape))


def _without(
    values: np.ndarray, rows: np.ndarray, lost: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The values that are known, and the rows renumbered with -1 for the others."""
    kept = values[~lost]
    if len(kept) == 0:
        raise UnreadableError("every pixel is unknown")
    if len(kept) > MOST_LABELS:
        raise UnreadableError(
            f"{len(kept)} different labels, and a label map has at most {MOST_LABELS}; is it a "
            "photograph or blurred?"
        )
    table = np.where(lost, -1, np.cumsum(~lost) - 1)
    return kept, table[rows]


def _from_probabilities(array: np.ndarray, values: np.ndarray | None) -> Evidence:
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or array.dtype.kind != "f" or array.size == 0:
        raise UnreadableError(
            "probabilities must be floating (L, H, W), and labels integers (H, W), got "
            f"{array.dtype} {array.shape}"
        )
    count = array.shape[0]
    if count > MOST_LABELS:
        raise UnreadableError(
            f"probabilities must be (L, H, W) of at most {MOST_LABELS} labels, got {array.shape}"
        )
    array = np.ascontiguousarray(array, dtype=np.float32)
    low, total = array.min(), array.sum(0)
    # 256 numbers in half precision add up to 1 within 2 %.
    if not (np.isfinite(total).all() and low >= -1e-3 and np.abs(total - 1).max() <= 0.02):
        raise UnreadableError(
            "probabilities must be in [0, 1] and add up to 1 over the first axis, got numbers from "
            f"{low:g} to {array.max():g} with sums from {total.min():g} to {total.max():g}"
        )
    if values is None or values.shape != (count,) or values.dtype.kind not in "iu":
        values = np.arange(count)
    return Evidence(values, default_palette(256)[values % 256], probabilities=array)


def _read_array(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The array of a file, and the one called `labels` beside it."""
    if path.suffix.lower() == ".npy":
        return _loaded(lambda: np.load(path, allow_pickle=False)), None
    if path.suffix.lower() == ".npz":
        arrays = _loaded(lambda: _npz(path))
    else:
        arrays = _loaded(lambda: _safetensors(path))
    labels = arrays.pop("labels", None) if len(arrays) > 1 else None
    name = "probs" if "probs" in arrays else next(iter(arrays), None)
    if name is None or (name != "probs" and len(arrays) > 1):
        raise UnreadableError(
            f"one array must be called probs; there are {', '.join(arrays) or 'none'}"
        )
    return arrays[name], labels


def _npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    import torch
    from safetensors.torch import load_file

    tensors = load_file(path)
    return {
        name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        for name, tensor in tensors.items()
    }


def _loaded(read: Callable[[], object]) -> object:
    import zipfile
    import zlib

    from safetensors import SafetensorError

    try:
        return read()
    except OSError as error:
        raise UnreadableError(error.strerror or str(error).splitlines()[0]) from error
    # What numpy and safetensors raise for damaged and foreign files.
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, SafetensorError) as bad:
        raise UnreadableError(f"no readable array: {str(bad).splitlines()[0]}") from bad


def encode_labels(evidence: Evidence, rows: np.ndarray, suffix: str) -> bytes:
    """Rows (H, W) as a file of the kind the labels came from, with their values and colours."""
    labels = evidence.values[rows]
    if suffix != ".png":
        return encode_arrays({"labels": labels}, suffix)
    if evidence.values.ndim == 2:
        return encode_picture(Image.fromarray(labels))
    top = int(evidence.values.max())
    if evidence.values.min() < 0 or top > 65535:
        raise EngineError(
            f"crf: a PNG holds labels from 0 to 65535, got {evidence.values.min()} to {top}; "
            "write .npy instead"
        )
    if top > 255:
        return encode_picture(Image.fromarray(labels.astype(np.uint16)))
    if evidence.binary:
        return encode_picture(Image.fromarray(labels.astype(bool)))
    picture = Image.fromarray(labels.astype(np.uint8))
    from_map = evidence.palette is not None
    if from_map or evidence.probabilities is not None:
        table = evidence.palette if from_map else default_palette(256)
        picture.putpalette(table.tobytes())
    return encode_picture(picture)


def encode_probabilities(evidence: Evidence, marginals: np.ndarray, suffix: str) -> bytes:
    """Marginals (L, H, W) as `probs`, in .npz and .safetensors with the `labels` of the rows."""
    if suffix == ".npy":
        return encode_arrays({"probs": marginals}, suffix)
    return encode_arrays({"probs": marginals, "labels": evidence.values}, suffix)


def encode_arrays(arrays: dict[str, np.ndarray], suffix: str) -> bytes:
    """The bytes of a .npz or .safetensors file, or of a .npy file with the only array."""
    if suffix == ".safetensors":
        from safetensors.numpy import save

        return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    file = io.BytesIO()
    if suffix == ".npy":
        (array,) = arrays.values()
        np.save(file, array)
    else:
        np.savez(file, **arrays)
    return file.getvalue()


def encode_picture(picture: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()
