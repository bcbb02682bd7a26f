"""Label maps as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_INK = (28, 32, 38)
_PAPER = (255, 255, 255)
_GAP = 8
_STRIP = 1 << 16  # pixels drawn at a time
_SMALL = 240  # pixels in width below which a picture is hard to make out


def colour_map(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Labels (H, W) to RGB (H, W, 3) uint8; whatever is not a class (255 for ignore) is black."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(palette)] = palette
    return table[labels.astype(np.uint8)]


def overlay(
    image: np.ndarray, labels: np.ndarray, palette: np.ndarray, opacity: float = 0.55
) -> np.ndarray:
    """Class colours laid over an RGB image of the same size; ignored pixels keep the image."""
    drawn = np.empty(image.shape, dtype=np.uint8)
    # A few rows at a time: the sums are in floating point, pictures may be large.
    count = max(1, _STRIP // max(1, image.shape[1]))
    for top in range(0, len(image), count):
        rows = slice(top, top + count)
        colours = colour_map(labels[rows], palette).astype(np.float32)
        mixed = image[rows] * (1 - opacity) + colours * opacity
        known = (labels[rows] < len(palette))[..., None]
        drawn[rows] = np.where(known, mixed, image[rows]).round().astype(np.uint8)
    return drawn


def save_labels(path: Path, labels: np.ndarray, palette: np.ndarray) -> None:
    """Write labels (H, W) as a PNG of mode P: pixel values are classes, shown in their colours."""
    picture = Image.fromarray(labels.astype(np.uint8), mode="L")
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(palette)] = palette
    picture.putpalette(table.tobytes())
    picture.save(path)


def legend(names: Sequence[str], palette: np.ndarray) -> Image.Image:
    """One swatch and name a line."""
    font = _font(16)
    swatch, line = 22, 30
    width = max((int(font.getlength(name)) for name in names), default=0)
    picture = Image.new(
        "RGB", (3 * _GAP + swatch + 4 + width + _GAP, line * len(names) + _GAP), _PAPER
    )
    draw = ImageDraw.Draw(picture)
    for row, (name, colour) in enumerate(zip(names, palette, strict=True)):
        top = row * line + _GAP
        draw.rectangle(
            (_GAP, top, _GAP + swatch, top + swatch),
            fill=tuple(int(c) for c in colour),
            outline=_INK,
        )
        draw.text(
            (2 * _GAP + swatch + 4, top + swatch / 2), name, fill=_INK, font=font, anchor="lm"
        )
    return picture


def save_legend(path: Path, names: Sequence[str], palette: np.ndarray) -> None:
    """Write a legend; nothing where there are no names."""
    if names:
        legend(names, palette).save(path)


def panel(pictures: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """Pictures (title, RGB array) of one size side by side; small ones are enlarged."""
    font = _font(14)
    times = -(-_SMALL // pictures[0][1].shape[1])
    pictures = [(title, array.repeat(times, 0).repeat(times, 1)) for title, array in pictures]
    height, width = pictures[0][1].shape[:2]
    head = 24
    sheet = Image.new("RGB", (len(pictures) * (width + _GAP) + _GAP, height + head + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, (title, array) in enumerate(pictures):
        left = _GAP + column * (width + _GAP)
        draw.text((left, head / 2), title, fill=_INK, font=font, anchor="lm")
        sheet.paste(Image.fromarray(array), (left, head))
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
