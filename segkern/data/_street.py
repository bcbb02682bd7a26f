"""A whole street scene: sky, walls of houses, ground, things, light."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from segkern.data import _street_objects as things
from segkern.data._canvas import CAMERA_HEIGHT, Canvas
from segkern.data._street_objects import Painter, colour, lit

SKY, BUILDING, ROAD, PAVEMENT, TREE, VOID = 0, 1, 3, 4, 5, 255
Queue = list[tuple[float, Callable[[], None]]]
"""Things to paint, with their distances."""

FAR = 300.0
"""Distance in metres beyond which nothing is placed."""


def draw_street(height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene.

    Args:
        height, width: size in pixels.
        rng: source of all its randomness.

    Returns:
        image (H, W, 3) uint8 RGB and label map (H, W) uint8 with CamVid's 11 classes and 255.
    """
    canvas = Canvas(
        height,
        width,
        horizon=height * rng.uniform(0.36, 0.54),
        vanish_x=width * rng.uniform(0.32, 0.68),
        focal=max(width * 0.75, height) * rng.uniform(0.85, 1.2),
        rng=rng,
    )
    street = _Street(canvas)
    street.sky()
    street.skyline()
    street.ground()
    street.wall(-1)
    street.wall(1)
    street.shadows()
    street.place_things()
    street.own_bonnet()
    street.blur_labels()
    return street.develop(), canvas.label


class _Side:
    """The row of houses on one side: plots one after the other along Z."""

    def __init__(self, rng: np.random.Generator, distance: float) -> None:
        self.distance = distance
        number = 12
        lengths = rng.uniform(7, 22, number)
        self.edges = np.concatenate([[0.0], np.cumsum(lengths)]).astype(np.float32)
        self.edges += np.float32(rng.uniform(-15, 0))
        self.edges[0] = -100.0
        tall = rng.uniform(6, 20)
        self.height = np.maximum(tall + rng.uniform(-4, 6, number), 4).astype(np.float32)
        draw = rng.random(number)
        self.gap = draw < 0.14
        self.gap[-1] = False
        self.park = (draw > 0.84) | (rng.random() < 0.12)
        self.park[-1] = True
        base = rng.uniform(0.25, 0.8, (number, 1)) + rng.uniform(-0.04, 0.04, (number, 3))
        brick = (rng.random((number, 1)) < 0.4) * np.array([[0.12, -0.04, -0.1]])
        self.colour = np.clip(base + brick, 0.08, 0.95).astype(np.float32)
        self.floor = rng.uniform(2.7, 3.6, number).astype(np.float32)
        self.bay = rng.uniform(1.8, 3.6, number).astype(np.float32)
        self.glass = rng.uniform(0.06, 0.45, number).astype(np.float32)

    def plot(self, z: np.ndarray) -> np.ndarray:
        """The number of the plot at each distance."""
        return np.clip(np.searchsorted(self.edges, z) - 1, 0, len(self.height) - 1)


class _Street:
    def __init__(self, canvas: Canvas) -> None:
        self.canvas = canvas
        self.rng = rng = canvas.rng
        self.camera_x = rng.uniform(-2.5, 2.5)
        half = rng.uniform(3.0, 5.5)
        self.kerb = {-1: half + self.camera_x, 1: half - self.camera_x}
        self.side = {s: _Side(rng, self.kerb[s] + rng.uniform(1.6, 5.0)) for s in (-1, 1)}
        self.overcast = rng.random() < 0.45
        self.sun = 0 if self.overcast else int(rng.choice((-1, 1)))
        if self.overcast:
            self.haze = colour(0.75, 0.77, 0.8) * np.float32(rng.uniform(0.8, 1.15))
        else:
            self.haze = colour(0.68, 0.78, 0.9) * np.float32(rng.uniform(0.9, 1.1))

    def sky(self) -> None:
        canvas, rng = self.canvas, self.rng
        rise = np.clip(1 - canvas.y / canvas.horizon, 0, 1)[..., None]
        zenith = self.haze if self.overcast else colour(0.22, 0.42, 0.78)
        canvas.image[:] = self.haze + (zenith - self.haze) * rise**0.7
        clouds = canvas.noise(canvas.x / canvas.width, canvas.y / canvas.width * 2.5, 2.5)
        cover = np.clip((clouds - rng.uniform(-0.5, 0.8)) * 2, 0, 1)[..., None]
        canvas.image += (colour(0.93, 0.93, 0.94) - canvas.image) * cover * np.float32(0.8)
        canvas.label[:] = SKY

    def skyline(self) -> None:
        """Far houses and woods above the horizon, seen where the street ends or opens."""
        canvas, rng = self.canvas, self.rng
        number = int(rng.integers(6, 14))
        column = (canvas.x[0] * (number / canvas.width)).astype(int) % number
        scale = canvas.height / 120
        tops = rng.uniform(2, 14, number).astype(np.float32)[column] * scale
        wood = (rng.random(number) < 0.5)[column]
        ragged = canvas.noise(canvas.x[0] / canvas.width, np.zeros(1, np.float32), 0.7)
        tops = np.where(wood, tops + 3 * scale * ragged, tops)
        region = (canvas.y > canvas.horizon - tops) & (canvas.y <= canvas.horizon + 3 * scale)
        shades = rng.uniform(0.25, 0.6, (number, 3)).astype(np.float32)[column]
        leaves = colour(0.16, 0.27, 0.12) * (1 + 0.4 * ragged[:, None])
        stone = shades.mean(1, keepdims=True) + 0.2 * (shades - 0.4)
        paint = np.where(wood[:, None], leaves, stone)
        np.copyto(canvas.image, paint[None].astype(np.float32), where=region[..., None])
        np.copyto(canvas.label, np.where(wood, TREE, BUILDING)[None].astype(np.uint8), where=region)
        np.copyto(canvas.depth, np.float32(FAR), where=region)

    def ground(self) -> None:
        canvas, rng = self.canvas, self.rng
        first = int(max(np.ceil(canvas.horizon + 0.5), 0))
        y = canvas.y[first:]
        z = canvas.focal * CAMERA_HEIGHT / (y - canvas.horizon)
        x = (canvas.x - canvas.vanish_x) * (z / canvas.focal)
        on_road = (x > -self.kerb[-1]) & (x < self.kerb[1])
        for s in (-1, 1):
            side = self.side[s]
            crossing = side.gap[side.plot(z)] & (z > 4)
            on_road |= crossing & (s * x > 0)
        tarmac = np.float32(rng.uniform(0.2, 0.42))
        slab = tarmac + np.float32(rng.uniform(-0.03, 0.28))
        coarse = canvas.noise(x, z * 0.5, 40.0)
        light = np.where(on_road, tarmac, slab) * (1 + 0.18 * coarse)
        light *= 1 + 0.1 * canvas.noise(canvas.x / canvas.width, y / canvas.width, 0.5)
        joints = ~on_road & (z < 14) & (((x / 0.9) % 1 < 0.06) | ((z / 0.9) % 1 < 0.08))
        light = np.where(joints, light * 0.8, light)
        picture = lit(colour(1, 1, 1) + rng.uniform(-0.06, 0.06, 3).astype(np.float32), light)
        middle = (self.kerb[1] - self.kerb[-1]) / 2
        dashes = (np.abs(x - middle) < 0.07) & ((z / rng.uniform(3, 8)) % 1 < 0.5)
        edges = (np.abs(x + self.kerb[-1] - 0.35) < 0.06) | (np.abs(x - self.kerb[1] + 0.35) < 0.06)
        lines = on_road & ((dashes & (rng.random() < 0.8)) | (edges & (rng.random() < 0.5)))
        ink = colour(0.85, 0.85, 0.82) if rng.random() < 0.7 else colour(0.8, 0.68, 0.2)
        np.copyto(picture, ink * np.float32(0.9), where=lines[..., None])
        for s in (-1, 1):
            kerbstone = np.abs(s * x - self.kerb[s]) < 0.12
            np.copyto(picture, picture * np.float32(1.25), where=(kerbstone & ~on_road)[..., None])
        canvas.image[first:] = picture
        canvas.label[first:] = np.where(on_road, ROAD, PAVEMENT)
        canvas.depth[first:] = z

    def wall(self, s: int) -> None:
        """The houses of one side. Where a street leaves, the next house shows its front."""
        canvas, side = self.canvas, self.side[s]
        columns = np.flatnonzero(s * (canvas.x[0] - canvas.vanish_x) > 0.5)
        if columns.size == 0:
            return
        part = slice(columns[0], columns[-1] + 1)
        offset = np.abs(canvas.x[0, part] - canvas.vanish_x)
        z = canvas.focal * side.distance / offset
        plot = side.plot(z)
        front = side.gap[plot]
        while (front & side.gap[plot]).any():
            plot = np.where(front & side.gap[plot], plot + 1, plot)
        z = np.where(front, side.edges[plot], z)
        along = np.where(front, offset * z / canvas.focal, z)
        house = ~side.park[plot] & (z < FAR) & (z > 1)

        up = CAMERA_HEIGHT - (canvas.y - canvas.horizon) * (z / canvas.focal)
        height = side.height[plot]
        inside = house & (up > 0) & (up < height)
        storey = (up / side.floor[plot]) % 1
        bay = (along / side.bay[plot]) % 1
        fade = np.clip(1.3 - z / 60, 0, 1)
        light = 1 + 0.25 * canvas.noise(along + 0 * up, up, 25.0) * fade
        light *= np.where(front, 1.0, 1.12 if self.sun == -s else 0.8 if self.sun == s else 0.95)
        picture = side.colour[plot] * light[..., None]
        window = (np.abs(bay - 0.5) < 0.26) & (np.abs(storey - 0.55) < 0.28) & (up < height - 0.8)
        window |= (up < side.floor[plot] * 0.8) & (up > 0.4) & (np.abs(bay - 0.5) < 0.38)
        pane = side.glass[plot] * (1 + 0.5 * canvas.noise(along + 0 * up, up, 8.0))
        pane = pane[..., None] * colour(0.9, 1.0, 1.1)
        strength = (window * fade)[..., None].astype(np.float32)
        picture += (pane - picture) * strength
        ledge = (up > height - 0.5) | (np.abs(storey - 0.97) < 0.03)
        picture *= np.where(ledge, 0.8, 1.0).astype(np.float32)[..., None]
        np.copyto(canvas.image[:, part], picture.astype(np.float32), where=inside[..., None])
        np.copyto(canvas.label[:, part], np.uint8(BUILDING), where=inside)
        np.copyto(canvas.depth[:, part], z.astype(np.float32), where=inside)

    def shadows(self) -> None:
        """The houses' shadow on the ground, as far as the sun throws it."""
        if self.sun == 0:
            return
        canvas, side = self.canvas, self.side[self.sun]
        first = int(max(np.ceil(canvas.horizon + 0.5), 0))
        z = canvas.focal * CAMERA_HEIGHT / (canvas.y[first:] - canvas.horizon)
        x = (canvas.x - canvas.vanish_x) * (z / canvas.focal)
        plot = side.plot(z + 2)
        reach = np.where(side.gap[plot] | side.park[plot], 0, side.height[plot])
        reach = reach * np.float32(self.rng.uniform(0.15, 0.7))
        ground = (canvas.label[first:] == ROAD) | (canvas.label[first:] == PAVEMENT)
        dark = ground & (self.sun * x > side.distance - reach)
        light = np.where(dark, self.rng.uniform(0.45, 0.65), 1.0).astype(np.float32)
        canvas.image[first:] *= light[..., None]

    def place_things(self) -> None:
        """Scatter objects in the world and paint them from far to near."""
        canvas, rng = self.canvas, self.rng
        queue: Queue = []

        def add(
            number: int, near: float, far: float, make: Painter, where: Callable[[], float]
        ) -> None:
            for _ in range(number):
                # Uniform in 1 / z, so that near and far take like shares of the picture.
                z = 1 / rng.uniform(1 / far, 1 / near)
                queue.append((z, partial(make, canvas, where(), z)))

        def pavement() -> float:
            s = int(rng.choice((-1, 1)))
            return s * rng.uniform(self.kerb[s] + 0.5, self.side[s].distance - 0.3)

        def kerbside() -> float:
            s = int(rng.choice((-1, 1)))
            return s * (self.kerb[s] + rng.uniform(0.2, 0.6))

        def road() -> float:
            return rng.uniform(-self.kerb[-1] + 1, self.kerb[1] - 1)

        for s in (-1, 1):
            parked = rng.random() < 0.55
            z = rng.uniform(6, 16)
            while parked and z < 70:
                x = s * (self.kerb[s] - 1.0)
                queue.append((z, partial(things.car, canvas, x, z, oncoming=rng.random() < 0.5)))
                z += rng.uniform(5, 6.5) * (1 + 2 * (rng.random() < 0.35))
            if rng.random() < 0.5:
                z, pitch = rng.uniform(6, 14), rng.uniform(9, 22)
                while z < 90:
                    queue.append((z, partial(things.tree, canvas, s * (self.kerb[s] + 0.8), z)))
                    z += pitch * rng.uniform(0.8, 1.3)
            z, pitch = rng.uniform(4, 14), rng.uniform(12, 26)
            while z < 80:
                queue.append((z, partial(things.pole, canvas, s * (self.kerb[s] + 0.3), z)))
                z += pitch
            self._park(s, queue)
            if rng.random() < 0.45:
                near = rng.uniform(4, 18)
                far = near + rng.uniform(6, 30)
                x = s * (self.kerb[s] + rng.uniform(0.1, 0.5))
                queue.append(((near * far) ** 0.5, partial(things.fence, canvas, x, near, far)))

        moving = partial(things.car, oncoming=bool(rng.random() < 0.5))
        add(int(rng.integers(0, 4)), 7, 50, moving, road)
        add(int(rng.integers(0, 7)), 5, 40, things.pedestrian, pavement)
        add(int(rng.random() < 0.25), 6, 25, things.pedestrian, road)
        add(int(rng.integers(0, 4)), 5, 35, things.bicyclist, road)
        add(int(rng.integers(1, 5)), 6, 40, things.sign, kerbside)
        add(int(rng.integers(0, 3)), 5, 30, things.clutter, pavement)
        for _, paint in sorted(queue, key=lambda entry: -entry[0]):
            paint()

    def _park(self, s: int, queue: Queue) -> None:
        """Trees, hedges and railings on the plots without a house."""
        canvas, rng, side = self.canvas, self.rng, self.side[s]
        for plot in np.flatnonzero(side.park[:-1]):
            near, far = max(float(side.edges[plot]), 5.0), float(side.edges[plot + 1])
            if far <= near:
                continue
            for z in np.arange(near + 1, far, 5.0):
                x = s * (side.distance + rng.uniform(0.5, 5.0))
                make = things.tree if rng.random() < 0.6 else things.bush
                queue.append((z, partial(make, canvas, x, z)))
            if rng.random() < 0.6:
                x = s * side.distance
                queue.append(((near * far) ** 0.5, partial(things.fence, canvas, x, near, far)))

    def own_bonnet(self) -> None:
        """Sometimes the camera's own car shows at the bottom: void."""
        canvas, rng = self.canvas, self.rng
        if rng.random() > 0.2:
            return
        rise = canvas.height * rng.uniform(0.05, 0.12)
        bend = ((canvas.x / canvas.width - 0.5) * 2) ** 2
        region = canvas.y > canvas.height - rise * (1 - 0.6 * bend)
        shade = (0.35 * rng.random() + 0.25 * (1 - bend)).astype(np.float32)
        np.copyto(canvas.image, shade[..., None], where=region[..., None])
        np.copyto(canvas.label, np.uint8(VOID), where=region)
        np.copyto(canvas.depth, np.float32(1), where=region)

    def blur_labels(self) -> None:
        """Far outlines become void, as annotators leave what they cannot tell apart."""
        canvas, rng = self.canvas, self.rng
        label = canvas.label
        edge = np.zeros(label.shape, dtype=bool)
        edge[:, 1:] |= label[:, 1:] != label[:, :-1]
        edge[1:] |= label[1:] != label[:-1]
        far = (canvas.depth > rng.uniform(20, 60)) & (canvas.depth <= FAR)
        label[edge & far] = VOID

    def develop(self) -> np.ndarray:
        """Haze, lens blur, exposure, colour cast and sensor noise: (H, W, 3) uint8."""
        canvas, rng = self.canvas, self.rng
        clear = np.exp(-canvas.depth / rng.uniform(120, 700))
        clear[canvas.depth > FAR] = 1
        image = self.haze + (canvas.image - self.haze) * clear[..., None]
        weight = np.float32(rng.uniform(0.1, 0.25))
        image[1:-1] += weight * (image[:-2] + image[2:] - 2 * image[1:-1])
        image[:, 1:-1] += weight * (image[:, :-2] + image[:, 2:] - 2 * image[:, 1:-1])
        bend = (canvas.x / canvas.width - 0.5) ** 2 + (canvas.y / canvas.height - 0.5) ** 2
        image *= (rng.uniform(0.6, 1.25) * (1 - rng.uniform(0, 0.6) * bend))[..., None]
        image *= rng.uniform(0.92, 1.08, 3).astype(np.float32)
        image = np.clip(image, 0, 1) ** np.float32(rng.uniform(0.75, 1.25))
        grain = np.float32(rng.uniform(0.008, 0.035))
        image += grain * rng.standard_normal(image.shape, dtype=np.float32)
        return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
