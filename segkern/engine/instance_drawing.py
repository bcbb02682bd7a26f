"""Objects and segments drawn over a photo: outlines, translucent fill, names with scores."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segkern.engine.instances import Instance, Region

_OPACITY = 0.45
_DARK = (20, 20, 20)
_LIGHT = (255, 255, 255)
# Hues that follow one another at this step stay apart however many there are.
_GOLDEN = 0.6180339887498949

Colour = tuple[int, int, int]


def instance_colour(number: int) -> Colour:
    """The colour of the object of this number, from 0: always the same, unlike its neighbours'."""
    saturation = (0.85, 0.6, 0.95)[number % 3]
    value = (1.0, 0.85)[number // 3 % 2]
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


class Canvas:
    """A photo (H, W, 3) uint8 RGB with masks laid over it one by one, and names above them all."""

    def __init__(self, image: np.ndarray) -> None:
        self.pixels = image.copy()
        longest = max(image.shape[:2])
        self.stroke = max(1, round(longest / 600))
        self.font = ImageFont.load_default(size=min(max(longest / 45, 10), 64))
        self._labels: list[tuple[str, float, float, Colour]] = []

    def fill(self, top: int, left: int, mask: np.ndarray, colour: Colour) -> None:
        """Lay a mask (h, w) bool with its corner at (top, left) over the photo, and its outline."""
        height, width = mask.shape
        part = self.pixels[top : top + height, left : left + width]
        rim = mask & ~_eroded(mask, self.stroke)
        levels = np.arange(256)
        for channel, level in enumerate(colour):
            table = (levels * (1 - _OPACITY) + level * _OPACITY).round().astype(np.uint8)
            plane = part[..., channel]
            plane[mask] = table[plane[mask]]
            plane[rim] = level

    def name(self, text: str, x: float, y: float, colour: Colour) -> None:
        """Write a text with its left lower corner at (x, y); later ones lie above earlier ones."""
        self._labels.append((text, x, y, colour))

    def picture(self) -> np.ndarray:
        """The photo with everything on it, (H, W, 3) uint8."""
        picture = Image.fromarray(self.pixels)
        draw = ImageDraw.Draw(picture)
        for text, x, y, colour in self._labels:
            left, top, right, bottom = draw.textbbox((0, 0), text, font=self.font)
            width, height = right - left + 4, bottom - top + 4
            x = min(max(x, 0), max(picture.width - width, 0))
            y = min(max(y - height, 0), max(picture.height - height, 0))
            draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
            dark = 299 * colour[0] + 587 * colour[1] + 114 * colour[2] > 140_000
            draw.text(
                (x + 2 - left, y + 2 - top), text, fill=_DARK if dark else _LIGHT, font=self.font
            )
        return np.asarray(picture)


def draw_instance(
    canvas: Canvas, number: int, instance: Instance, region: Region, names: Sequence[str]
) -> None:
    """Draw the object of this number with the name of its class and its score.

    region: its `Instance.region()`.
    """
    colour = instance_colour(number)
    canvas.fill(*region, colour)
    text = names[instance.label - 1]
    if instance.score is not None:
        text = f"{text} {instance.score:.2f}"
    canvas.name(text, instance.box[0], instance.box[1], colour)


def draw_instances(
    image: np.ndarray, instances: Sequence[Instance], names: Sequence[str]
) -> np.ndarray:
    """An image with objects over it, the first on top."""
    canvas = Canvas(image)
    for number in reversed(range(len(instances))):
        instance = instances[number]
        draw_instance(canvas, number, instance, instance.region(), names)
    return canvas.picture()


def _eroded(mask: np.ndarray, times: int) -> np.ndarray:
    """The mask without pixels that are so many steps, also diagonal, or fewer from its outside."""
    inner = np.pad(mask, times)
    for axis in (0, 1):
        inner = np.moveaxis(inner, axis, 0)
        # inner[i] becomes whether all of inner[i : i + reach] were; reach doubles.
        reach, window = 1, 2 * times + 1
        while reach < window:
            step = min(reach, window - reach)
            inner = inner[:-step] & inner[step:]
            reach += step
        inner = np.moveaxis(inner, 0, axis)
    return inner
