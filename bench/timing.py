"""Clocks, interleaved timing and peak memory, on the CPU and on CUDA."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

MALLOC_VARIABLE = "SEGKERN_BENCH_MALLOC"
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_FLUSH_BYTES = 256 << 20
_SETTLING = 24


@dataclass(frozen=True)
class Timing:
    """Seconds a call took, one number a round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.rounds) < 3:
            return min(self.rounds), max(self.rounds)
        first, _, third = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return first, third


@dataclass(frozen=True)
class Effort:
    """How long a case is repeated: ``maximum`` rounds, fewer once ``seconds`` have gone by."""

    warmup: int
    minimum: int
    maximum: int
    seconds: float


CPU_EFFORT = Effort(warmup=2, minimum=5, maximum=11, seconds=2.5)
CUDA_EFFORT = Effort(warmup=5, minimum=15, maximum=50, seconds=1.5)


class CpuClock:
    """Wall time; a call shorter than ``least`` seconds is repeated inside the round."""

    effort = CPU_EFFORT
    least = 0.004

    def measure(self, call: Callable[[], object]) -> float:
        count, start = 0, time.perf_counter()
        while True:
            call()
            count += 1
            elapsed = time.perf_counter() - start
            if elapsed >= self.least:
                return elapsed / count


class CudaClock:
    """Time between two CUDA events, the L2 cache overwritten before each call.

    The flush also keeps the device busy while the host queues the call, so short kernels are
    not charged for the launch of the first one.
    """

    effort = CUDA_EFFORT

    def __init__(self, device: torch.device):
        size = max(_FLUSH_BYTES, 4 * torch.cuda.get_device_properties(device).L2_cache_size)
        self._flush = torch.empty(size, dtype=torch.int8, device=device)

    def measure(self, call: Callable[[], object]) -> float:
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        self._flush.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return 1e-3 * start.elapsed_time(end)


def interleave(
    calls: Mapping[str, Callable[[], object]], clock: CpuClock | CudaClock
) -> dict[str, Timing]:
    """Time the calls in turn, round by round, in an order drawn anew (and seeded) each round."""
    effort = clock.effort
    for call in calls.values():
        for _ in range(effort.warmup):
            call()
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    order = random.Random(0)
    collecting = gc.isenabled()
    gc.disable()
    try:
        begin = time.perf_counter()
        for done in range(effort.maximum):
            if done >= effort.minimum and time.perf_counter() - begin > effort.seconds:
                break
            order.shuffle(names)
            for name in names:
                times[name].append(clock.measure(calls[name]))
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(tuple(times[name])) for name in calls}


def keep_freed_memory() -> str:
    """Let glibc's malloc keep large freed blocks; returns what became of it: "kept" or "default".

    With glibc's own settings each output of some megabytes is mapped afresh, and the page faults
    cost more than the kernels compared. ``SEGKERN_BENCH_MALLOC=default`` leaves the settings
    alone. "kept" is only returned once a large block is seen to be used again without page faults.
    """
    if os.environ.get(MALLOC_VARIABLE, "keep") != "keep":
        return "default"
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return "default"
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)
    # Aligned blocks leave scraps in malloc's small caches, and the scraps keep freed blocks apart
    # until these caches are full: only then is a freed block used again.
    size = 64 << 20
    for _ in range(_SETTLING):
        before = page_faults()
        torch.empty(size, dtype=torch.uint8).fill_(1)
        if (page_faults() - before) * resource.getpagesize() < size // 4:
            return "kept"
    return "default"


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def peak_extra_bytes(call: Callable[[], object], device: str) -> int | None:
    """Most memory held during one call above what was held before it, its results included.

    CUDA: the allocator's own count. CPU: the kernel's high-water mark of resident pages, after
    free pages were given back; None where the system has no resettable mark (outside Linux).
    """
    call()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        before = _resident("VmRSS")
        call()
        return max(0, _resident("VmHWM") - before)
    except OSError:
        return None


def _resident(key: str) -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")
