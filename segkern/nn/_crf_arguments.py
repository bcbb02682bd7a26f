"""Checks of the arguments that the CRF layers share."""

from __future__ import annotations

import math
from collections.abc import Sequence


def check_count(layer: str, name: str, value: int, least: int = 1) -> None:
    """Raise ValueError unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{layer}: {name} must be an integer of at least {least}, got {value!r}")


def check_choice(layer: str, name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of those allowed."""
    if value not in allowed:
        shown = ", ".join(map(repr, allowed))
        raise ValueError(f"{layer}: {name} must be one of {shown}, got {value!r}")


def term_numbers(layer: str, name: str, given: Sequence, parts: Sequence[str]) -> list:
    """The widths of a term, each a positive number or several, and last its weight as a float.

    Raises:
        ValueError: Unless ``given`` holds what ``parts`` names.
    """
    *widths, weight = given if _matches(given, len(parts)) else (None,)
    if not widths or not _is_number(weight):
        raise ValueError(
            f"{layer}: {name} must be ({', '.join(parts)}) with positive widths, got {given!r}"
        )
    return [*widths, float(weight)]


def _matches(given: object, count: int) -> bool:
    if not isinstance(given, (tuple, list)) or len(given) != count:
        return False
    several = [w if isinstance(w, (tuple, list)) else (w,) for w in given[:-1]]
    return all(_is_number(value) and value > 0 for width in several for value in width)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
