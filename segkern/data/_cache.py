"""Small json files kept between runs: verdicts of the data check and class counts.

The folder is ``SEGKERN_CACHE`` if that is set, else ``$XDG_CACHE_HOME/segkern``, else
``~/.cache/segkern``. Nothing in it is needed: a missing, damaged or read-only cache only costs the
time to do the work again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def cache_dir() -> Path:
    """The folder for files kept between runs. It need not exist."""
    chosen = os.environ.get("SEGKERN_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "segkern"


def digest(*parts: object) -> str:
    """A short, stable name for the given values, from their ``repr``."""
    return hashlib.sha256("\0".join(map(repr, parts)).encode()).hexdigest()[:32]


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in ``path``; None if it is missing, unreadable or not a json object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: dict[str, Any]) -> bool:
    """Write ``value`` to ``path`` so that readers see the old file or the new one, never half.

    Returns:
        False where the file cannot be written (read-only folder, full disk); this is no error.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=path.name, suffix=".tmp", delete=False
        ) as file:
            temporary = file.name
            json.dump(value, file)
        os.replace(temporary, path)
    except OSError:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        return False
    return True
