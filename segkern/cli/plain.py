"""`segkern info` as plain text, for an installation without the `[train]` extra."""

from __future__ import annotations

from typing import Any


def info() -> int:
    """Print `segkern.env()`, one fact a line."""
    import segkern

    for line in lines(segkern.env()):
        print(line)
    return 0


def lines(value: Any, indent: int = 0) -> list[str]:
    """A nested dict or list as indented lines."""
    space = "  " * indent
    if isinstance(value, dict):
        out = []
        for key, item in value.items():
            if isinstance(item, (dict, list)) and item:
                out += [f"{space}{key}:", *lines(item, indent + 1)]
            else:
                shown = "none" if item in (None, [], {}) else item
                out.append(f"{space}{key}: {shown}")
        return out
    if isinstance(value, list):
        out = []
        for item in value:
            if isinstance(item, (dict, list)):
                first, *rest = lines(item, indent + 1)
                out += [f"{space}- {first.strip()}", *rest]
            else:
                out.append(f"{space}- {item}")
        return out
    return [f"{space}{value}"]
