"""Painting on an image and its label map at once, in pixels and in metres of a street scene.

The world has X to the right, Y up and Z into the picture, in metres, with the camera
``CAMERA_HEIGHT`` above the ground and looking along Z. A point lands at column
``vanish_x + focal X / Z`` and row ``horizon + focal (CAMERA_HEIGHT - Y) / Z``.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

CAMERA_HEIGHT = 1.5
NOISE_SIZE = 256


@functools.cache
def noise_tile() -> np.ndarray:
    """(256, 256) float32 in about [-1, 1]: periodic noise with more power at larger scales.

    The same tile serves all scenes, each taking its windows at places of its own.
    """
    rng = np.random.default_rng(20160711)
    frequency = np.hypot(np.fft.fftfreq(NOISE_SIZE)[:, None], np.fft.rfftfreq(NOISE_SIZE)[None])
    spectrum = np.fft.rfft2(rng.standard_normal((NOISE_SIZE, NOISE_SIZE)))
    spectrum *= 1 / (frequency + 1 / NOISE_SIZE) ** 1.1
    spectrum[0, 0] = 0
    tile = np.fft.irfft2(spectrum)
    return (tile / (2.5 * tile.std())).astype(np.float32)


@dataclass
class Window:
    """A rectangle of pixels with coordinates of its own.

    Args:
        rows, columns: the pixels.
        u: (1, w) or (h, w), across.
        v: (h, 1) or (h, w), down.
        z: distance of the pixels in metres, a number or (1, w).
    """

    rows: slice
    columns: slice
    u: np.ndarray
    v: np.ndarray
    z: float | np.ndarray


class Canvas:
    """An image under construction.

    Args:
        height, width: pixels.
        horizon, vanish_x: row and column of the point at infinite Z.
        focal: focal length in pixels.
        rng: where noise offsets come from.

    Attributes:
        image: (H, W, 3) float32, 0 .. 1.
        label: (H, W) uint8.
        depth: (H, W) float32, Z in metres.
    """

    def __init__(
        self,
        height: int,
        width: int,
        horizon: float,
        vanish_x: float,
        focal: float,
        rng: np.random.Generator,
    ) -> None:
        self.height = height
        self.width = width
        self.horizon = horizon
        self.vanish_x = vanish_x
        self.focal = focal
        self.rng = rng
        self.image = np.zeros((height, width, 3), dtype=np.float32)
        self.label = np.zeros((height, width), dtype=np.uint8)
        self.depth = np.full((height, width), 1e4, dtype=np.float32)
        self.x = np.arange(width, dtype=np.float32)[None] + 0.5
        self.y = np.arange(height, dtype=np.float32)[:, None] + 0.5

    def noise(self, u: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
        """Noise at the points (u, v); a period of the tile is ``scale`` units of u and v."""
        tile = noise_tile()
        shift_u, shift_v = self.rng.integers(NOISE_SIZE, size=2)
        columns = (u * (NOISE_SIZE / scale)).astype(np.int32) + shift_u
        rows = (v * (NOISE_SIZE / scale)).astype(np.int32) + shift_v
        return tile[rows & (NOISE_SIZE - 1), columns & (NOISE_SIZE - 1)]

    def upright(self, x: float, z: float, width: float, bottom: float, top: float) -> Window | None:
        """A rectangle facing the camera: centre X, distance Z, width, and Y of its ends.

        ``u`` runs from 0 at the left to 1 at the right, ``v`` from 0 at the top to 1. At least one
        pixel wide, so that thin things do not vanish.
        """
        scale = self.focal / z
        left = self.vanish_x + (x - width / 2) * scale
        right = left + width * scale
        upper = self.horizon + (CAMERA_HEIGHT - top) * scale
        lower = self.horizon + (CAMERA_HEIGHT - bottom) * scale
        columns = _span(left, right, self.width)
        rows = _span(upper, lower, self.height)
        if columns is None or rows is None:
            return None
        u = ((self.x[:, columns] - left) / max(right - left, 1)).clip(0, 1)
        v = ((self.y[rows] - upper) / max(lower - upper, 1)).clip(0, 1)
        return Window(rows, columns, u, v, z)

    def side(self, x: float, near: float, far: float, bottom: float, top: float) -> Window | None:
        """A rectangle along the street: the plane at X, Z from ``near`` to ``far``, Y of its ends.

        ``u`` is Z and ``v`` is Y of each pixel, both in metres.
        """
        offset = self.focal * x
        ends = sorted((self.vanish_x + offset / near, self.vanish_x + offset / far))
        columns = _span(*ends, self.width, thin=False)
        scale = self.focal / near
        upper = self.horizon + (CAMERA_HEIGHT - top) * (
            scale if top > CAMERA_HEIGHT else self.focal / far
        )
        lower = self.horizon + (CAMERA_HEIGHT - bottom) * scale
        rows = _span(upper, lower, self.height)
        if columns is None or rows is None:
            return None
        distance = offset / (self.x[:, columns] - self.vanish_x)
        distance = np.clip(distance, near, far)
        elevation = CAMERA_HEIGHT - (self.y[rows] - self.horizon) * (distance / self.focal)
        return Window(rows, columns, distance, elevation, distance)

    def pixels(self, window: Window) -> np.ndarray:
        """The image inside the window, to be written to."""
        return self.image[window.rows, window.columns]

    def paint(
        self, window: Window, mask: np.ndarray, colour: np.ndarray, label: int | None
    ) -> None:
        """Colour the pixels of the window where ``mask`` is set, and label them.

        Args:
            mask: bool, broadcast to the window's (h, w).
            colour: broadcast to (h, w, 3).
            label: None leaves labels and distances as they are.
        """
        target = self.image[window.rows, window.columns]
        mask = np.broadcast_to(mask, target.shape[:2])
        np.copyto(target, colour, where=mask[..., None], casting="same_kind")
        if label is not None:
            np.copyto(self.label[window.rows, window.columns], np.uint8(label), where=mask)
            distance = np.asarray(window.z, dtype=np.float32)
            np.copyto(self.depth[window.rows, window.columns], distance, where=mask)

    def shade(self, window: Window, factor: np.ndarray) -> None:
        """Multiply the window's colours by ``factor`` (h, w)."""
        self.image[window.rows, window.columns] *= factor[..., None]


def _span(low: float, high: float, size: int, *, thin: bool = True) -> slice | None:
    """The pixels whose centres lie between two coordinates; at least the nearest if ``thin``."""
    first, last = math.ceil(low - 0.5), math.ceil(high - 0.5)
    if first == last and thin:
        first = math.floor((low + high) / 2)
        last = first + 1
    first, last = max(first, 0), min(last, size)
    return slice(first, last) if first < last else None
