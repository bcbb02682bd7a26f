"""How fast segkern's pooling is beside torch's on this machine, in a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from segkern import ops
from segkern.engine.memory import keep_freed_memory


@dataclass
class SpeedRow:
    """One operation: milliseconds of segkern and of torch, the best of several runs in turn."""

    operation: str
    layout: str
    segkern_ms: float
    torch_ms: float

    @property
    def ratio(self) -> float:
        return self.torch_ms / self.segkern_ms


@dataclass
class SpeedReport:
    """Rows of a measurement with where and on what it was made; index bytes per pooled value."""

    rows: list[SpeedRow]
    device: str
    shape: tuple[int, ...]
    threads: int
    index_bytes: dict[str, float]


def measure_speed(
    device: str = "auto",
    shape: tuple[int, int, int, int] = (4, 64, 180, 240),
    *,
    repeats: int = 5,
    seconds: float = 6.0,
) -> SpeedReport:
    """Time 2x2 max pooling with indices and unpooling, forward and backward, beside torch.

    Both run in this process on the same float32 input (N, C, H, W), in turn; the best time of at
    least two and at most `repeats` runs counts. About `seconds` in all. For figures to rely on, use
    the benchmarks: this is one size, and other programs on the machine show.
    """
    place = "cuda" if device == "auto" and torch.cuda.is_available() else device
    place = "cpu" if place == "auto" else place
    if place == "cpu":
        # Otherwise fetching memory for the output from the system is most of the time, on both
        # sides.
        keep_freed_memory()
    layouts = [("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)]
    share = seconds / (4 * len(layouts))
    rows = []
    for layout, memory_format in layouts:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(shape, generator=generator).to(place).contiguous(memory_format=memory_format)
        ours, own_indices = ops.max_pool2d_with_indices(x, 2)
        theirs, their_indices = F.max_pool2d(x, 2, return_indices=True)
        size = x.shape[-2:]
        unpooled = torch.ones_like(x)
        cases: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = [
            (
                "max pool with indices",
                lambda x=x: ops.max_pool2d_with_indices(x, 2),
                lambda x=x: F.max_pool2d(x, 2, return_indices=True),
            ),
            (
                "max unpool",
                lambda y=ours, i=own_indices, s=size: ops.max_unpool2d(y, i, 2, output_size=s),
                lambda y=theirs, i=their_indices, s=size: F.max_unpool2d(y, i, 2, output_size=s),
            ),
            (
                "max pool backward",
                _backward(lambda v: ops.max_pool2d_with_indices(v, 2)[0], x, torch.ones_like(ours)),
                _backward(
                    lambda v: F.max_pool2d(v, 2, return_indices=True)[0], x, torch.ones_like(theirs)
                ),
            ),
            (
                "max unpool backward",
                _backward(
                    lambda v, i=own_indices, s=size: ops.max_unpool2d(v, i, 2, output_size=s),
                    ours,
                    unpooled,
                ),
                _backward(
                    lambda v, i=their_indices, s=size: F.max_unpool2d(v, i, 2, output_size=s),
                    theirs,
                    unpooled,
                ),
            ),
        ]
        for name, own, peer in cases:
            own_ms, peer_ms = _in_turn(own, peer, place, repeats, share)
            rows.append(SpeedRow(name, layout, own_ms, peer_ms))
    packed = ops.max_pool2d_with_indices(x, 2, index_format="packed")[1]
    count = ours.numel()
    index_bytes = {
        "segkern, packed": packed.numel() * packed.element_size() / count,
        "segkern, offset": own_indices.numel() * own_indices.element_size() / count,
        "torch": their_indices.numel() * their_indices.element_size() / count,
    }
    return SpeedReport(
        rows, _device_name(place), tuple(shape), torch.get_num_threads(), index_bytes
    )


def _backward(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, gradient: torch.Tensor
) -> Callable[[], Any]:
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output = function(leaf)
    return lambda: torch.autograd.grad(output, leaf, gradient, retain_graph=True)


def _in_turn(
    own: Callable[[], Any], peer: Callable[[], Any], device: str, repeats: int, seconds: float
) -> tuple[float, float]:
    best = [float("inf"), float("inf")]
    own()
    peer()
    until = time.perf_counter() + seconds
    for run in range(repeats):
        for which, call in enumerate((own, peer)):
            best[which] = min(best[which], _once(call, device))
        if run >= 1 and time.perf_counter() > until:
            break
    return best[0], best[1]


def _once(call: Callable[[], Any], device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started)


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"
