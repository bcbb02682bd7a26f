"""Values of network options that come back from JSON, and their checks."""

from __future__ import annotations

from typing import Any


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
