"""Reading images and label maps with Pillow, in the one form the rest of the package uses."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from segkern.data._errors import DatasetError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
MASK_SUFFIXES = frozenset({".png", ".bmp", ".tif", ".tiff", ".gif", ".pgm"})
"""Formats without loss: a label map that went through JPEG is no label map."""

_DECODE_ERRORS = (
    OSError,  # missing, truncated or unidentified file
    SyntaxError,  # a broken PNG chunk
    ValueError,
    EOFError,
    IndexError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class UnreadableError(ValueError):
    """A file that cannot be decoded; the message is the reason alone, without the path."""


def read_image(path: str | Path) -> np.ndarray:
    """Read a photograph.

    The EXIF orientation is applied, as viewers and annotation tools do; an alpha channel is
    dropped; 16-bit grey is reduced to its upper 8 bits.

    Args:
        path: a file in any format Pillow reads.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        DatasetError: the file is missing, truncated or no image; the message names it.
    """
    try:
        return decode_image(path)
    except UnreadableError as error:
        raise DatasetError(f"cannot read image {path}: {error}") from error


def read_mask(path: str | Path) -> np.ndarray:
    """Read a label map: the class index of each pixel, as stored, without any mapping.

    Args:
        path: a single-channel image (1, 8 or 16 bits), or one with a palette, whose indices count.

    Returns:
        (H, W) uint8, or a wider integer where the file holds wider numbers.

    Raises:
        DatasetError: the file is missing, truncated, no image, or has several channels.
    """
    try:
        return decode_mask(path)
    except UnreadableError as error:
        raise DatasetError(f"cannot read mask {path}: {error}") from error


def decode_image(path: str | Path) -> np.ndarray:
    """`read_image`, raising `UnreadableError`."""
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file) if file.getexif() else file
            if upright.mode.startswith("I;16"):
                grey = (np.asarray(upright) >> 8).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.asarray(upright.convert("RGB"))
    except _DECODE_ERRORS as error:
        raise UnreadableError(_reason(error)) from error


def image_size(path: str | Path) -> tuple[int, int]:
    """(H, W) of what `decode_image` gives, from the head of the file alone.

    Raises:
        UnreadableError: the file is missing or no image.
    """
    try:
        with Image.open(path) as file:
            width, height = file.size
            # Asking a PNG for what it does not have makes Pillow decode it.
            tagged = file.format != "PNG" or "exif" in file.info
            turned = tagged and file.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return (width, height) if turned else (height, width)
    except _DECODE_ERRORS as error:
        raise UnreadableError(_reason(error)) from error


def decode_mask(path: str | Path) -> np.ndarray:
    """`read_mask`, raising `UnreadableError`."""
    try:
        with Image.open(path) as file:
            if file.mode not in ("L", "P", "1", "I") and not file.mode.startswith("I;16"):
                raise UnreadableError(
                    f"a mask must have one channel or a palette, got mode {file.mode}"
                )
            labels = np.asarray(file)
            return labels.astype(np.uint8) if labels.dtype == np.bool_ else labels
    except UnreadableError:
        raise
    except _DECODE_ERRORS as error:
        raise UnreadableError(_reason(error)) from error


def decode_labels(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a label map that may be a picture in colours.

    Args:
        path: what `read_mask` takes, or a picture in RGB, of which an alpha channel is dropped.

    Returns:
        (H, W) integers as stored, or (H, W, 3) uint8 colours; and the (256, 3) uint8 palette of a
        file that has one, else None.

    Raises:
        UnreadableError: the file is missing, truncated, no image, or of another mode.
    """
    try:
        with Image.open(path) as file:
            if file.mode in ("RGB", "RGBA"):
                return np.asarray(file.convert("RGB")), None
            palette = None
            if file.mode == "P":
                stored = np.array(file.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)[:256]
                palette = np.zeros((256, 3), dtype=np.uint8)
                palette[: len(stored)] = stored
    except _DECODE_ERRORS as error:
        raise UnreadableError(_reason(error)) from error
    return decode_mask(path), palette


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error) or type(error).__name__
    return text.splitlines()[0]
