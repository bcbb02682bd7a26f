"""Values of options that are more than one word or number."""

from __future__ import annotations

import json
from typing import Any

from segkern.engine.errors import EngineError


def number(name: str, text: str | None, kind: type = float) -> float | str | None:
    """A number, or none; None where the option was not given."""
    if text in (None, "none"):
        return text
    try:
        return kind(text)
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise EngineError(f"train: {name} must be {what} or none, got {text!r}") from error


def numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    """Numbers with commas between."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise EngineError(f"train: {name} must be numbers, like 0.5,0.9, got {text!r}") from error


def span(name: str, text: str | None) -> tuple[float, float] | str | None:
    """Two numbers, or none."""
    if text in (None, "none"):
        return text
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise EngineError(
            f"train: {name} must be LOW,HIGH, like 0.5,2, or none, got {text!r}"
        ) from error
    return low, high


def passes(text: str | None) -> tuple[tuple[float, float, int], ...] | None:
    """Height, width and trim of each pass, with ; between; () for none."""
    if text in (None, "none"):
        return None if text is None else ()
    try:
        found = [one.split(",") for one in text.split(";")]
        return tuple((float(height), float(width), int(trim)) for height, width, trim in found)
    except ValueError as error:
        raise EngineError(
            f"train: passes must be H,W,TRIM;..., like 1,1,32;0.5,0.5,0, or none, got {text!r}"
        ) from error


def pairs(given: list[str] | None) -> dict[str, Any] | None:
    """KEY=VALUE as a dict, values as JSON where they are; None for none."""
    options: dict[str, Any] = {}
    for pair in given or ():
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise EngineError(f"option must be KEY=VALUE, got {pair!r}")
        try:
            options[key] = json.loads(text)
        except ValueError:  # a plain word
            options[key] = text
    return options or None
