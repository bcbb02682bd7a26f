"""What stands and moves in a street scene. Each function paints one thing on a `Canvas`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from segkern.data._canvas import Canvas, Window

POLE, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST, VOID = 2, 5, 6, 7, 8, 9, 10, 255

Painter = Callable[..., None]
"""Called with the canvas, X and Z."""


def colour(*rgb: float) -> np.ndarray:
    """An RGB triple, 0 .. 1."""
    return np.array(rgb, dtype=np.float32)


def lit(base: np.ndarray, light: np.ndarray | float) -> np.ndarray:
    """``base`` (3,) under ``light`` (h, w): (h, w, 3)."""
    return base * np.asarray(light, dtype=np.float32)[..., None]


def _random_paint(rng: np.random.Generator) -> np.ndarray:
    """A car's or a coat's colour: grey, dark or bright."""
    grey = rng.uniform(0.05, 0.9)
    tint = rng.uniform(-0.25, 0.25, 3) * (rng.random() < 0.6)
    return np.clip(grey + tint, 0.02, 0.95).astype(np.float32)


def ground_shadow(canvas: Canvas, x: float, z: float, width: float, length: float) -> None:
    """A soft dark patch under something."""
    window = canvas.upright(x, z, width * 1.15, -0.12, 0.3 * length / z)
    if window is not None:
        radius = (2 * window.u - 1) ** 2 + (2 * window.v - 1) ** 2
        canvas.shade(window, np.clip(0.45 + 0.55 * radius, 0, 1))


def pole(canvas: Canvas, x: float, z: float) -> None:
    """A lamp post or a plain post."""
    rng = canvas.rng
    height = rng.uniform(3.5, 8.0)
    shade = rng.uniform(0.1, 0.5)
    base = colour(shade, shade * rng.uniform(0.95, 1.1), shade)
    window = canvas.upright(x, z, rng.uniform(0.12, 0.24), 0, height)
    if window is not None:
        canvas.paint(window, np.True_, lit(base, 1.25 - 0.6 * window.u), POLE)
    if rng.random() < 0.5:
        reach = rng.uniform(0.8, 1.6) * (1 if x < 0 else -1)
        window = canvas.upright(x + reach / 2, z, abs(reach), height - 0.12, height + 0.08)
        if window is not None:
            canvas.paint(window, np.True_, base, POLE)


def sign(canvas: Canvas, x: float, z: float) -> None:
    """A traffic sign on its post: disc, triangle or board."""
    rng = canvas.rng
    size = rng.uniform(0.6, 1.1)
    foot = rng.uniform(1.9, 2.6)
    post = canvas.upright(x, z, 0.09, 0, foot + size)
    if post is not None:
        canvas.paint(post, np.True_, colour(0.4, 0.4, 0.42), POLE)
    kind = rng.integers(4)
    window = canvas.upright(x, z, size * (1.3 if kind == 3 else 1), foot, foot + size)
    if window is None:
        return
    u, v = 2 * window.u - 1, 2 * window.v - 1
    red, white, blue = colour(0.8, 0.08, 0.1), colour(0.92, 0.92, 0.9), colour(0.08, 0.2, 0.65)
    if kind == 0:
        radius = u * u + v * v
        inside, rim = radius <= 1.05, radius > 0.5
    elif kind == 1:
        inside, rim = np.abs(u) <= (v + 1.1) / 2, np.abs(u) > (v + 0.4) / 2.6
    else:
        reach = np.maximum(np.abs(u), np.abs(v))
        inside, rim = reach <= 1, reach > 0.8
    green = colour(0.1, 0.4, 0.2)
    rim_colour, face = ((red, white), (red, white), (blue, blue), (white, green))[kind]
    canvas.paint(window, inside, face, SIGN)
    canvas.paint(window, inside & rim, rim_colour, SIGN)
    mark = inside & (np.abs(u) < 0.25) & (np.abs(v) < 0.45) & ~rim
    canvas.paint(window, mark, white if kind == 2 else colour(0.1, 0.1, 0.1), SIGN)


def tree(canvas: Canvas, x: float, z: float, size: float = 1.0) -> None:
    """A trunk and a ragged crown."""
    rng = canvas.rng
    height = size * rng.uniform(4.5, 9.0)
    trunk_top = height * rng.uniform(0.3, 0.45)
    trunk = canvas.upright(x, z, height * rng.uniform(0.035, 0.06), 0, trunk_top + 0.5)
    if trunk is not None:
        bark = colour(0.3, 0.24, 0.18) * np.float32(rng.uniform(0.5, 1.1))
        canvas.paint(trunk, np.True_, lit(bark, 1.3 - 0.7 * trunk.u), TREE)
    crown = canvas.upright(x, z, height * rng.uniform(0.6, 0.9), trunk_top * 0.8, height)
    if crown is None:
        return
    u, v = 2 * crown.u - 1, 2 * crown.v - 1
    lumps = canvas.noise(crown.u, crown.v, 3.0)
    leaves = canvas.noise(crown.u, crown.v, 0.8)
    inside = u * u + v * v + 0.55 * lumps + 0.25 * leaves < 0.8
    season = rng.random()
    base = colour(0.18, 0.32, 0.1) if season < 0.8 else colour(0.42, 0.3, 0.12)
    base = base * np.float32(rng.uniform(0.6, 1.25))
    base = base + rng.uniform(-0.03, 0.03, 3).astype(np.float32)
    canvas.paint(crown, inside, lit(base, 1 - 0.35 * v + 0.5 * leaves), TREE)


def bush(canvas: Canvas, x: float, z: float) -> None:
    """A hedge or bush standing on the ground."""
    rng = canvas.rng
    window = canvas.upright(x, z, rng.uniform(1.0, 3.0), -0.1, rng.uniform(0.9, 2.0))
    if window is None:
        return
    u, v = 2 * window.u - 1, 1 - window.v
    leaves = canvas.noise(window.u, window.v, 1.2)
    inside = u**4 + v**4 + 0.4 * leaves < 0.75
    base = colour(0.15, 0.28, 0.1) * np.float32(rng.uniform(0.6, 1.3))
    canvas.paint(window, inside, lit(base, 0.7 + 0.5 * v + 0.5 * leaves), TREE)


def fence(canvas: Canvas, x: float, near: float, far: float) -> None:
    """Railings along the street: one sees through them, yet all of the band is fence."""
    rng = canvas.rng
    height = rng.uniform(0.9, 1.5)
    window = canvas.side(x, near, far, 0, height)
    if window is None:
        return
    inside = (window.v >= 0) & (window.v <= height)
    dark = rng.uniform(0.05, 0.5)
    base = colour(dark, dark, dark * rng.uniform(0.7, 1.2))
    solid = rng.random() < 0.3
    pitch = rng.uniform(0.15, 0.6)
    bars = (window.u / pitch) % 1 < 0.35
    rails = (window.v > height - 0.12) | (np.abs(window.v - 0.25) < 0.06)
    if solid:
        planks = 0.8 + 0.3 * ((window.u / 0.3) % 1) + 0 * window.v
        canvas.paint(window, inside, lit(base + np.float32(0.1), planks), FENCE)
    else:
        canvas.paint(window, inside, canvas.pixels(window) * np.float32(0.9), FENCE)
        canvas.paint(window, inside & (bars | rails), base, FENCE)


def car(canvas: Canvas, x: float, z: float, *, oncoming: bool) -> None:
    """A car or van: the end that faces the camera and the side towards the picture's middle."""
    rng = canvas.rng
    van = rng.random() < 0.2
    width, length = rng.uniform(1.65, 1.9), rng.uniform(3.6, 4.6)
    height = rng.uniform(1.9, 2.6) if van else rng.uniform(1.35, 1.6)
    waist = height * (0.5 if van else 0.58)
    paint = _random_paint(rng)
    glass = colour(0.08, 0.1, 0.13) + np.float32(rng.uniform(0, 0.2))
    ground_shadow(canvas, x, z, width, length)

    if abs(x) > width / 2:
        edge = x - np.sign(x) * width / 2
        window = canvas.side(edge, z, z + length, 0.0, height)
        if window is not None:
            _car_side(canvas, window, z, length, height, waist, van, paint, glass)
    window = canvas.upright(x, z, width, 0.0, height)
    if window is not None:
        _car_end(canvas, window, waist / height, van, oncoming, paint, glass)


def _car_side(
    canvas: Canvas,
    window: Window,
    z: float,
    length: float,
    height: float,
    waist: float,
    van: bool,
    paint: np.ndarray,
    glass: np.ndarray,
) -> None:
    along, up = (window.u - z) / length, window.v
    body = (up >= 0.2) & (up <= waist)
    slope = 0.0 if van else 0.2 * (up - waist) / (height - waist)
    cabin = (up >= waist - 0.02) & (up <= height) & (along > 0.08 + slope) & (along < 0.75 - slope)
    canvas.paint(window, body | cabin, lit(paint * np.float32(0.75), 0.8 + 0.2 * up / height), CAR)
    panes = cabin & (up < height - 0.12) & (up > waist + 0.03) & (np.abs(along - 0.42) > 0.03)
    canvas.paint(window, panes, glass, CAR)
    for place in (0.18, 0.8):
        radius = ((along - place) * length) ** 2 + (up - 0.32) ** 2
        canvas.paint(window, radius < 0.1, colour(0.06, 0.06, 0.06), CAR)
        canvas.paint(window, radius < 0.03, colour(0.45, 0.45, 0.47), CAR)


def _car_end(
    canvas: Canvas,
    window: Window,
    waist: float,
    van: bool,
    oncoming: bool,
    paint: np.ndarray,
    glass: np.ndarray,
) -> None:
    across, up = 2 * window.u - 1, 1 - window.v
    taper = 0.0 if van else 0.25 * np.clip((up - waist) / (1 - waist), 0, 1)
    shell = (np.abs(across) <= 1 - taper) & (up > 0.13)
    wheels = (np.abs(np.abs(across) - 0.8) < 0.17) & (up <= 0.2)
    canvas.paint(window, wheels, colour(0.05, 0.05, 0.05), CAR)
    canvas.paint(window, shell, lit(paint, 0.75 + 0.35 * up + 0 * across), CAR)
    pane = (np.abs(across) < 0.8 - taper) & (up > waist + 0.06) & (up < 0.9)
    canvas.paint(window, pane, glass, CAR)
    lamps = (np.abs(np.abs(across) - 0.8) < 0.16) & (np.abs(up - waist * 0.8) < 0.06)
    light = colour(0.95, 0.95, 0.85) if oncoming else colour(0.7, 0.05, 0.05)
    canvas.paint(window, lamps, light, CAR)
    bumper = shell & (up < 0.26)
    canvas.paint(window, bumper, paint * np.float32(0.45), CAR)
    plate = (np.abs(across) < 0.25) & (np.abs(up - 0.32) < 0.05)
    canvas.paint(window, plate, colour(0.85, 0.85, 0.6), CAR)


def pedestrian(canvas: Canvas, x: float, z: float) -> None:
    """A person standing or walking."""
    rng = canvas.rng
    height = rng.uniform(1.5, 1.9)
    ground_shadow(canvas, x, z, 0.5, 0.5)
    window = canvas.upright(x, z, 0.7, 0, height)
    if window is None:
        return
    u, v = (2 * window.u - 1) * 0.35 / height, window.v
    coat, trousers = _random_paint(rng) * np.float32(0.8), _random_paint(rng) * np.float32(0.5)
    stride = rng.uniform(0.0, 0.12)
    spread = (v - 0.5) * 2 * stride + 0.035
    legs = (v > 0.48) & (np.abs(np.abs(u) - spread) < 0.042)
    torso = (v > 0.15) & (v < 0.54) & (np.abs(u) < 0.11 - 0.04 * np.abs(v - 0.25))
    arms = (v > 0.18) & (v < 0.5) & (np.abs(np.abs(u) - 0.12 - stride * (v - 0.18)) < 0.03)
    head = u * u + (v - 0.085) ** 2 < 0.072**2
    canvas.paint(window, legs, trousers, PEDESTRIAN)
    canvas.paint(window, torso | arms, lit(coat, 1.15 - 0.5 * window.u + 0 * v), PEDESTRIAN)
    canvas.paint(window, head, _skin_or_hair(rng), PEDESTRIAN)


def bicyclist(canvas: Canvas, x: float, z: float) -> None:
    """A rider seen from the side or from behind; bicycle and rider are one class."""
    rng = canvas.rng
    ground_shadow(canvas, x, z, 0.8, 0.5)
    coat = _random_paint(rng)
    frame = _random_paint(rng) * np.float32(0.5)
    from_side = rng.random() < 0.5
    width = 1.75 if from_side else 0.7
    window = canvas.upright(x, z, width, 0, 1.75)
    if window is None:
        return
    facing = 1 if rng.random() < 0.5 else -1
    across, up = (window.u - 0.5) * width * facing, (1 - window.v) * 1.75
    if from_side:
        for hub in (-0.52, 0.52):
            radius = np.sqrt((across - hub) ** 2 + (up - 0.34) ** 2)
            canvas.paint(window, radius < 0.36, canvas.pixels(window) * np.float32(0.8), BICYCLIST)
            canvas.paint(window, np.abs(radius - 0.31) < 0.06, colour(0.06, 0.06, 0.06), BICYCLIST)
        bars = (np.abs(up - 0.34 - 0.55 * np.abs(across) / 0.52) < 0.07) & (np.abs(across) < 0.5)
        bars |= (np.abs(up - 0.82) < 0.04) & (np.abs(across) < 0.45)
        canvas.paint(window, bars, frame, BICYCLIST)
        lean = 0.45 * (up - 0.85)
        torso = (up > 0.82) & (up < 1.45) & (np.abs(across + 0.2 - lean) < 0.17)
        thigh = (up > 0.35) & (up <= 0.9) & (np.abs(across + 0.12 - 0.2 * (up - 0.35)) < 0.1)
        arm = (np.abs(up - 1.2 + 0.5 * (across - 0.05)) < 0.07) & (across > 0) & (across < 0.45)
        head = (across - 0.12) ** 2 + (up - 1.58) ** 2 < 0.15**2
    else:
        wheel = (np.abs(across) < 0.05) & (up < 0.7)
        canvas.paint(window, wheel, colour(0.06, 0.06, 0.06), BICYCLIST)
        canvas.paint(window, (np.abs(across) < 0.3) & (np.abs(up - 1.0) < 0.04), frame, BICYCLIST)
        torso = (up > 0.8) & (up < 1.48) & (np.abs(across) < 0.24 - 0.1 * np.abs(up - 1.3))
        thigh = (up > 0.3) & (up <= 0.85) & (np.abs(np.abs(across) - 0.14) < 0.07)
        arm = (up > 0.95) & (up < 1.4) & (np.abs(np.abs(across) - 0.27) < 0.05)
        head = across**2 + (up - 1.6) ** 2 < 0.14**2
    canvas.paint(window, thigh, _random_paint(rng) * np.float32(0.4), BICYCLIST)
    canvas.paint(window, torso | arm, coat, BICYCLIST)
    canvas.paint(window, head, _skin_or_hair(rng), BICYCLIST)


def clutter(canvas: Canvas, x: float, z: float) -> None:
    """A bin, a crate or a cone: a thing of no class."""
    rng = canvas.rng
    window = canvas.upright(x, z, rng.uniform(0.4, 0.9), 0, rng.uniform(0.5, 1.2))
    if window is None:
        return
    ground_shadow(canvas, x, z, 0.6, 0.5)
    cone = rng.random() < 0.3
    inside = np.abs(2 * window.u - 1) <= (0.15 + window.v if cone else 1.0) + 0 * window.v
    base = colour(0.9, 0.35, 0.05) if cone else _random_paint(rng) * np.float32(0.7)
    canvas.paint(window, inside, lit(base, 1.2 - 0.5 * window.u + 0 * window.v), VOID)


def _skin_or_hair(rng: np.random.Generator) -> np.ndarray:
    tone = colour(0.8, 0.58, 0.45) if rng.random() < 0.6 else colour(0.25, 0.17, 0.1)
    return tone * np.float32(rng.uniform(0.5, 1.1))
