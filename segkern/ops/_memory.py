"""What memory there is, so that a call that needs more says so before it takes any."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

# Calls that need less are not checked: looking takes longer than some of them.
SMALL = 2**28

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def require_memory(op: str, what: str, needed: int, device: torch.device) -> None:
    """Raises MemoryError where `needed` bytes for `what` are more than `device` has left."""
    if torch.compiler.is_compiling() or needed < SMALL:
        return
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return
    available = available_bytes(device)
    if available is not None and needed > available:
        raise MemoryError(
            f"{op}: {what} may need {needed / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB are "
            f"available on {device}"
        )


def available_bytes(device: torch.device) -> int | None:
    """Bytes that could still be taken on a device; None where that cannot be found out."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    if device.type != "cpu":
        return None
    found = [left for left in (_machine(), *_cgroups()) if left is not None]
    return min(found, default=None)


def _machine() -> int | None:
    """What the system reckons could be taken without swapping, or all that is built in."""
    for line in _lines(_PROC / "meminfo"):
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system knows them
        return None


def _cgroups() -> Iterator[int]:
    """What is left of each limit on this process's memory, of either version of cgroups."""
    for line in _lines(_PROC / "self" / "cgroup"):
        _, controllers, path = (line.strip().split(":", 2) + ["", ""])[:3]
        if not controllers:
            root, limit, usage, cache = _CGROUPS, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root = _CGROUPS / "memory"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        folders = [root]
        for part in Path(path.strip("/")).parts:
            folders.append(folders[-1] / part)
        for folder in folders:
            most, used = _number(folder / limit), _number(folder / usage)
            if most is not None and used is not None:
                yield max(0, most - used + _entry(folder / "memory.stat", cache))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _entry(path: Path, name: str) -> int:
    for line in _lines(path):
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
