"""Values of network options that come back from JSON, and their checks."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any

_KINDS = {bool: "a bool", int: "an int", float: "a number", str: "a str"}


def as_tuple(config: Any, *names: str) -> None:
    """Turn lists among the fields of a frozen config into tuples, in place."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, list):
            object.__setattr__(config, name, tuple(value))


def check_choice(network: str, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise ValueError unless ``value`` is among ``allowed``."""
    if value not in allowed:
        shown = ", ".join(map(repr, allowed))
        raise ValueError(f"{network}: {name} must be one of {shown}, got {value!r}")


def check_types(network: str, config: Any) -> None:
    """Raise TypeError for an option of another type than its field, ValueError for a bad width.

    An int serves as a float; a bool is no number. ``width``, a factor on channels, must be a
    finite number above 0.
    """
    hints = typing.get_type_hints(type(config))
    for option in dataclasses.fields(config):
        value, hint = getattr(config, option.name), hints[option.name]
        if not _is_of(value, hint):
            raise TypeError(
                f"{network}: {option.name} must be {_KINDS.get(hint, hint)}, got {value!r}"
            )
        if option.name == "width" and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{network}: width must be a number above 0, got {value!r}")


def _is_of(value: Any, hint: Any) -> bool:
    """Whether ``value`` is of a type as configs have them: plain, a union or a tuple of such."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, each) for each in inner)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if inner[-1] is not Ellipsis:
            return len(value) == len(inner) and all(map(_is_of, value, inner))
        return all(_is_of(item, inner[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)
