"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` so that the old or the new file is there at any moment.

    The bytes go to a temporary file in the same folder, are forced to disk, and replace `path` in
    one step. When anything fails (a full disk, for one) the temporary file is removed, the old file
    is untouched and the OSError goes on to the caller.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON in UTF-8, whole or not at all."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomic(path, text.encode("utf-8"))


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove temporary files that a killed process left in `folder`."""
    for pattern in (".*.tmp", ".*.part"):
        for name in Path(folder).glob(pattern):
            with contextlib.suppress(OSError):
                name.unlink()


def _sync_folder(folder: Path) -> None:
    # The rename itself is durable only once the folder is. Not every file system can open a folder.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
