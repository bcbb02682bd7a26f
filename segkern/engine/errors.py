"""Errors that a user can act on. The command line prints their text alone, without a traceback."""

from __future__ import annotations

import errno


class EngineError(Exception):
    """Something the caller asked for cannot be done; the text says what and how to put it right."""

    exit_code = 2


class RunStopped(EngineError):
    """A run that had started could not go on (loss not finite, disk full, a lost process)."""

    exit_code = 1


_FULL = {errno.ENOSPC, errno.EDQUOT}


def is_disk_full(error: BaseException) -> bool:
    """True when `error`, or an error that caused it, says that the disk or the quota is full."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        # The safetensors writer reports an operating system error as text only.
        if type(seen).__name__ == "SafetensorError" and "No space left" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
