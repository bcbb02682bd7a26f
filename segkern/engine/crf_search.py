"""Which settings of a dense CRF a search tries: ranges, the grid, finer grids around its best."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from segkern.engine.errors import EngineError

MOST_VALUES = 1000


class Point(NamedTuple):
    """One trial: three widths, which make the lattices, and two weights, which do not."""

    bilateral_sxy: float
    bilateral_srgb: float
    gaussian_sxy: float
    bilateral_weight: float
    gaussian_weight: float

    @property
    def widths(self) -> tuple[float, float, float]:
        return self[:3]


@dataclass(frozen=True)
class Space:
    """The values of the coarse grid, in increasing order."""

    bilateral_sxy: tuple[float, ...]
    bilateral_srgb: tuple[float, ...]
    bilateral_weight: tuple[float, ...]
    gaussian_sxy: tuple[float, ...] = (3.0,)
    gaussian_weight: tuple[float, ...] = (3.0,)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            low = min(getattr(self, field.name))
            positive = not field.name.endswith("weight")
            if low < 0 or (positive and low == 0):
                wanted = "positive" if positive else "at least 0"
                raise EngineError(f"crf tune: {field.name} must be {wanted}, got {low:g}")

    def grid(self) -> list[Point]:
        """Every combination, those of equal widths together."""
        return [Point(*values) for values in itertools.product(*self._axes())]

    def around(self, best: Point, halvings: int) -> list[Point]:
        """The neighbours of `best` in all values that are searched.

        A value's step is the coarse grid's least, halved `halvings` times.
        """
        axes = []
        for name, value, axis in zip(Point._fields, best, self._axes()):
            if len(axis) == 1:
                axes.append([value])
                continue
            step = min(b - a for a, b in zip(axis, axis[1:])) / 2**halvings
            least = 0.0 if name.endswith("weight") else 1e-6
            axes.append([v for v in (value - step, value, value + step) if v >= least])
        return [Point(*values) for values in itertools.product(*axes)]

    def _axes(self) -> list[tuple[float, ...]]:
        return [getattr(self, name) for name in Point._fields]


SPACES = {
    "deeplabv1": Space(
        bilateral_sxy=tuple(map(float, range(50, 101, 10))),
        bilateral_srgb=tuple(map(float, range(3, 11))),
        bilateral_weight=tuple(map(float, range(5, 11))),
    ),
    "deeplabv2": Space(
        bilateral_sxy=tuple(map(float, range(30, 101, 10))),
        bilateral_srgb=(3.0, 4.0, 5.0, 6.0),
        bilateral_weight=(3.0, 4.0, 5.0, 6.0),
    ),
}
"""The ranges of the DeepLab papers, with the smoothness term fixed at weight 3 and 3 pixels."""


def parse_range(name: str, text: str) -> tuple[float, ...]:
    """The values of FIRST:LAST (steps of 1), FIRST:STEP:LAST, or A,B,C, in increasing order."""
    number = r"\d+(?:\.\d+)?"
    parts = text.split(":")
    if not re.fullmatch(rf"{number}(?:(?::{number}){{0,2}}|(?:,{number})+)", text):
        raise EngineError(
            f"crf tune: {name} must be FIRST:LAST, FIRST:STEP:LAST or A,B,C, got {text!r}"
        )
    if len(parts) == 1:
        return tuple(sorted({float(value) for value in text.split(",")}))
    first, last = float(parts[0]), float(parts[-1])
    step = float(parts[1]) if len(parts) == 3 else 1.0
    if step <= 0 or last < first or (last - first) / step >= MOST_VALUES:
        raise EngineError(
            f"crf tune: {name} must rise from FIRST to LAST in at most {MOST_VALUES} steps, "
            f"got {text!r}"
        )
    count = int((last - first) / step + 1e-9) + 1
    return tuple(round(first + i * step, 9) for i in range(count))


def by_widths(points: Iterable[Point], done: Collection[Point]) -> list[list[Point]]:
    """The points still to be tried, in groups of equal widths."""
    groups: dict[tuple[float, float, float], list[Point]] = {}
    for point in points:
        if point not in done:
            groups.setdefault(point.widths, []).append(point)
    return list(groups.values())
