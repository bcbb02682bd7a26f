"""Scenes of textured objects that hide each other, on a background of stuff, drawn with numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from segkern.data._canvas import NOISE_SIZE, noise_tile

THINGS = ("ball", "crate", "cone", "ring")
STUFF = ("sky", "hills", "field", "water")

THING_COLOURS = ((220, 60, 50), (225, 165, 50), (70, 70, 225), (205, 75, 205))
STUFF_COLOURS = ((150, 195, 235), (110, 105, 100), (95, 150, 60), (40, 120, 135))

VOID = 255
"""The stuff index of unlabelled pixels."""

_SMALLEST, _LARGEST = 0.07, 0.30
"""Radius of an object in shares of the image's shorter side."""

_VISIBLE = 0.35
"""Objects of which less than this share would be seen are not placed."""

_OUTLINE = 0.16


@dataclass
class Scene:
    """A picture and what is in it.

    image: (H, W, 3) uint8 RGB, float32 in 0 .. 1 while it is drawn. ids: (H, W) uint8, 0 where
    there is no object, else k + 1 of object k. stuff: (H, W) uint8, the index into STUFF behind the
    objects, or VOID. classes: index into THINGS of each object. crowd: whether object k is a group.
    """

    image: np.ndarray
    ids: np.ndarray
    stuff: np.ndarray
    classes: list[int]
    crowd: list[bool]


def draw_scene(height: int, width: int, rng: np.random.Generator) -> Scene:
    """Draw a scene: one to six objects, now and then a crowd behind them, some unlabelled pixels.

    The first object is wholly visible and always there.
    """
    image, stuff = _background(height, width, rng)
    ids = np.zeros((height, width), dtype=np.uint8)
    scene = Scene(image, ids, stuff, [], [])
    side = min(height, width)
    for _ in range(int(rng.integers(1, 7))):
        radius = side * math.exp(rng.uniform(math.log(_SMALLEST), math.log(_LARGEST)))
        kind = int(rng.integers(len(THINGS)))
        centre = rng.uniform(0.08, 0.92, 2) * (height, width)
        if _place(scene, kind, centre, max(radius, 2.0), len(scene.classes) + 1, rng, _VISIBLE):
            scene.classes.append(kind)
            scene.crowd.append(False)
    if rng.random() < 0.12:
        _crowd(scene, side, rng)
    image += rng.standard_normal(image.shape, dtype=np.float32) * 0.02
    image *= rng.uniform(0.8, 1.1)
    scene.image = (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return scene


def _crowd(scene: Scene, side: int, rng: np.random.Generator) -> None:
    """A heap of small objects of one class behind everything else, under one id."""
    height, width = scene.ids.shape
    kind = int(rng.integers(len(THINGS)))
    number = len(scene.classes) + 1
    middle = rng.uniform(0.2, 0.8, 2) * (height, width)
    placed = 0
    for _ in range(int(rng.integers(5, 10))):
        centre = middle + rng.normal(0, 0.11 * side, 2)
        placed += _place(scene, kind, centre, max(0.07 * side, 2.0), number, rng, 0.2)
    if placed:
        scene.classes.append(kind)
        scene.crowd.append(True)


def _place(
    scene: Scene,
    kind: int,
    centre: np.ndarray,
    radius: float,
    number: int,
    rng: np.random.Generator,
    visible: float,
) -> bool:
    """Paint an object behind those that are there; False where too little of it would be seen."""
    height, width = scene.ids.shape
    stretch = math.exp(rng.uniform(-0.25, 0.25))
    angle = rng.uniform(0, 2 * math.pi)
    if kind == 2:  # Cones stand upright, more or less.
        angle = rng.uniform(-0.4, 0.4)
    reach = radius * max(stretch, 1 / stretch) * 1.1
    row, column = float(centre[0]), float(centre[1])
    rows = slice(max(int(row - reach), 0), min(int(row + reach) + 2, height))
    columns = slice(max(int(column - reach), 0), min(int(column + reach) + 2, width))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return False
    y = (np.arange(rows.start, rows.stop, dtype=np.float32) + (0.5 - row))[:, None]
    x = (np.arange(columns.start, columns.stop, dtype=np.float32) + (0.5 - column))[None]
    cosine, sine = math.cos(angle), math.sin(angle)
    u = (cosine * x + sine * y) * (1 / (radius * stretch))
    v = (cosine * y - sine * x) * (stretch / radius)
    depth = _inside(kind, u, v)
    shape = depth >= 0
    taken = scene.ids[rows, columns]
    seen = shape & (taken == 0)
    count = int(np.count_nonzero(seen))
    if count < max(4, visible * np.count_nonzero(shape)):
        return False
    colour = np.array(THING_COLOURS[kind], dtype=np.float32) / 255
    colour = (colour + rng.normal(0, 0.09, 3)).clip(0.05, 0.95).astype(np.float32)
    shade = _texture(kind, u, v, rng)
    # An outline keeps neighbours of one class apart.
    shade = np.where(depth < max(_OUTLINE, 1.2 / radius), shade * 0.45, shade)
    painted = shade[..., None] * colour
    np.copyto(scene.image[rows, columns], painted, where=seen[..., None], casting="same_kind")
    np.copyto(taken, np.uint8(number), where=seen)
    return True


def _inside(kind: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """At least 0 inside the shape, where it grows from the edge; u and v in radii."""
    if kind == 0:
        return 1 - np.hypot(u, v)
    if kind == 1:
        return 0.8 - np.maximum(np.abs(u), np.abs(v))
    if kind == 2:
        return np.minimum(0.75 - v, 0.45 * (v + 1) - 0.9 * np.abs(u))
    return 0.3 - np.abs(np.hypot(u, v) - 0.7)


def _texture(kind: int, u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness over the shape: a highlight, stripes, a gradient, or spots."""
    if kind == 0:
        return 1.15 - 0.35 * np.hypot(u + 0.3, v + 0.3)
    if kind == 1:
        return 0.9 + 0.2 * np.sign(np.sin(7 * u + rng.uniform(0, 6)))
    if kind == 2:
        return 0.95 - 0.3 * v
    return 0.95 + 0.2 * _noise(u, v, 3.0, rng)


def _background(height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sky over hills over a field with water: (H, W, 3) float32 0 .. 1 and (H, W) uint8."""
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
    x = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None]
    upper = rng.uniform(0.15, 0.45) + _waves(x, 0.07, rng)
    lower = rng.uniform(0.5, 0.7) + _waves(x, 0.04, rng)
    stuff = np.full((height, width), 2, dtype=np.uint8)
    if rng.random() < 0.6:
        shore = rng.uniform(0.3, 0.9) + rng.uniform(-0.5, 0.5) * (y - 0.8) + _waves(y, 0.04, rng)
        side = x > shore if rng.random() < 0.5 else x < 1 - shore
        np.copyto(stuff, np.uint8(3), where=side)
    np.copyto(stuff, np.uint8(1), where=y < np.maximum(upper, lower))
    np.copyto(stuff, np.uint8(0), where=y < upper)
    tint = np.array(STUFF_COLOURS, dtype=np.float32) / 255
    tint = (tint + rng.normal(0, 0.04, tint.shape)).astype(np.float32)
    aspect = width / height
    fine, broad = _noise(x * aspect, y, 0.5, rng), _noise(x * aspect, y, 2.0, rng)
    shades = (
        1.1 - 0.35 * y + 0.05 * broad,
        0.9 + 0.3 * broad,
        0.95 + 0.25 * fine,
        0.95 + 0.12 * np.sin((60 + 20 * broad) * y),
    )
    shade = np.choose(stuff, shades)
    image = tint[stuff] * shade[..., None]
    if rng.random() < 0.25:
        _smudge(image, stuff, y, x, rng)
    return image.astype(np.float32, copy=False), stuff


def _smudge(
    image: np.ndarray, stuff: np.ndarray, y: np.ndarray, x: np.ndarray, rng: np.random.Generator
) -> None:
    """A dark patch that belongs to no class."""
    row, column = rng.uniform(0.1, 0.9, 2)
    tall, wide = rng.uniform(0.05, 0.12, 2)
    patch = ((y - row) / tall) ** 2 + ((x - column) / wide) ** 2 < 1
    image[patch] *= 0.2
    stuff[patch] = VOID


def _waves(t: np.ndarray, height: float, rng: np.random.Generator) -> np.ndarray:
    one, two = rng.uniform(0, 6.3, 2)
    return height * (np.sin(rng.uniform(3, 9) * t + one) + 0.4 * np.sin(17 * t + two))


def _noise(u: np.ndarray, v: np.ndarray, period: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of about -1 .. 1 at the points (u, v), repeating after ``period``."""
    shift_u, shift_v = rng.integers(NOISE_SIZE, size=2)
    columns = (u * (NOISE_SIZE / period)).astype(np.int32) + shift_u
    rows = (v * (NOISE_SIZE / period)).astype(np.int32) + shift_v
    return noise_tile()[rows & (NOISE_SIZE - 1), columns & (NOISE_SIZE - 1)]
