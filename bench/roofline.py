"""The limits of the machine, measured in the same run as the rows that are held against them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.timing import CpuClock, CudaClock, interleave


class Copy:
    """A device copy that reads and writes ``total`` bytes together: the limit of such a row.

    One pair of buffers per device grows to the largest size asked for and is shared by all rows.
    The contents are random, because some devices copy zeros faster.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def of(self, total: int, device: str) -> Callable[[], object]:
        count = max(1, total // 16)
        source, target = self._buffers.get(device, (torch.empty(0), torch.empty(0)))
        if source.numel() < count:
            self._buffers.pop(device, None)
            del source, target
            source = torch.empty(count, dtype=torch.int64, device=device).random_()
            target = torch.empty_like(source)
            self._buffers[device] = source, target
        source, target = source[:count], target[:count]
        return lambda: target.copy_(source)


def ceilings(device: str, clock: CpuClock | CudaClock) -> dict[str, float]:
    """Copy rate (GB/s, bytes read + written) and matrix-product rates (TFLOP/s) of the device."""
    big = 512 << 20 if device == "cpu" else 2 << 30
    sizes = (
        {"float32": 1536, "bfloat16": 1536}
        if device == "cpu"
        else {"float32": 4096, "bfloat16": 8192}
    )
    copy = Copy()
    calls = {"copy": copy.of(big, device)}
    with torch.no_grad():
        for dtype, size in sizes.items():
            a, b = torch.randn(2, size, size, device=device).to(getattr(torch, dtype)).unbind()
            calls[dtype] = lambda a=a, b=b: torch.mm(a, b)
        times = interleave(calls, clock)
    rates = {"copy_gbps": big / times["copy"].median / 1e9}
    for dtype, size in sizes.items():
        rates[f"matmul_{dtype}_tflops"] = 2 * size**3 / times[dtype].median / 1e12
    return {name: float(f"{rate:.4g}") for name, rate in rates.items()}
