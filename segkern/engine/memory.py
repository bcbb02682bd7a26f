"""Memory of a run: the C library's heap on the CPU, and the most that was taken."""

from __future__ import annotations

import ctypes
import platform
import resource
import sys

import torch

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Make this process keep the memory it frees, for the next step to use again.

    By default glibc hands every large block back to the system at once and fetches zeroed pages for
    the next, which is a sixth of the time of a training step of ENet on the CPU. The process then
    stays as large as it once was. Returns False, having done nothing, where the C library is not
    glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(_M_MMAP_MAX, 0)) and bool(
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    )


def peak_memory(device: torch.device) -> int:
    """Most bytes so far: of torch's tensors on a GPU, of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
