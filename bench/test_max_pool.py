"""Max pooling with compact indices and unpooling, beside torch's int64 indices.

Least bytes of every row, forward or backward: the full-size tensor once, the pooled tensor once
and the indices once. The shapes are those of SegNet's encoder and decoder (batch 8 at 360x480)
and of ResNet's first pooling layer at the same input.
"""

from __future__ import annotations

import math

import pytest
import torch

from bench.cases import Case, Contender
from bench.peers import TorchPool, Window, backward
from segkern import ops

# torch.compile itself uses what torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")

SEGNET = Window(2, 2, ceil_mode=True)
RESNET = Window(3, 2, padding=1)
OPERATORS = ("pool_forward", "unpool_forward", "pool_backward", "unpool_backward")
FORMATS = ("offset", "packed")

# title, window, operators, full size, small size. Overlapping windows have no unpool rows: torch
# leaves open which of the windows that name one position wins, so there is nothing to compare.
SHAPES = (
    ("SegNet stage 1", SEGNET, OPERATORS, (8, 64, 360, 480), (2, 3, 36, 48)),
    ("SegNet stage 2", SEGNET, OPERATORS, (8, 128, 180, 240), (2, 5, 18, 24)),
    ("SegNet stage 3", SEGNET, OPERATORS, (8, 256, 90, 120), (2, 7, 10, 20)),
    ("SegNet stage 4", SEGNET, OPERATORS, (8, 512, 45, 60), (2, 8, 9, 12)),
    ("ResNet stem", RESNET, ("pool_forward", "pool_backward"), (8, 64, 180, 240), (2, 3, 18, 24)),
)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def declare_cases(timed: bool) -> list[Case]:
    """Every shape, type, layout and operator; at full size when timed."""
    return [
        Case(
            "pool",
            operator,
            full if timed else small,
            dtype,
            layout,
            label(window),
            title,
            compiled=compiled_on(title, operator, dtype, layout),
            options={"window": window},
        )
        for title, window, operators, full, small in SHAPES
        for dtype in ("float32", "bfloat16", "float16")
        for layout in LAYOUTS
        for operator in operators
    ]


def label(window: Window) -> str:
    parts = [f"{window.kernel_size}x{window.kernel_size}", f"s{window.stride}"]
    parts += [f"p{window.padding}"] if window.padding else []
    return "".join(parts) + ("ceil" if window.ceil_mode else "")


def compiled_on(title: str, operator: str, dtype: str, layout: str) -> tuple[str, ...]:
    """Where torch.compile is a peer: at the largest shape. On the CPU compiling takes so long that
    only its best case, the contiguous float32 pool, is in."""
    if title != "SegNet stage 1":
        return ()
    best = (operator, dtype, layout) == ("pool_forward", "float32", "contiguous")
    return ("cuda", "cpu") if best else ("cuda",)


def index_bytes(shape: tuple[int, ...], window: Window, index_format: str) -> int:
    """Memory of the indices of pooled (N,C,Ho,Wo): int64, uint8, or 2 or 4 bits in int32 words."""
    *outer, width = shape
    if index_format == "flat":
        return 8 * math.prod(shape)
    if index_format == "offset":
        return math.prod(shape)
    per_word = 16 if window.kernel_size**2 <= 4 else 8
    return 4 * math.prod(outer) * math.ceil(width / per_word)


class SegkernPool:
    """Our operators on the peer's inputs, with one index format."""

    def __init__(self, peer: TorchPool, index_format: str):
        self.peer, self.index_format = peer, index_format
        self.y, self.indices = self.forward(peer.x)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        w = self.peer.window
        return ops.max_pool2d_with_indices(
            x,
            w.kernel_size,
            w.stride,
            w.padding,
            ceil_mode=w.ceil_mode,
            index_format=self.index_format,
        )

    def unpool(self, y: torch.Tensor) -> torch.Tensor:
        w = self.peer.window
        return ops.max_unpool2d(
            y, self.indices, w.kernel_size, w.stride, w.padding, output_size=self.peer.x.shape[-2:]
        )

    def pool_forward(self):
        return lambda: self.forward(self.peer.x)

    def unpool_forward(self):
        return lambda: self.unpool(self.y)

    def pool_backward(self):
        return backward(lambda x: self.forward(x)[0], self.peer.x, self.peer.grad_y)

    def unpool_backward(self):
        return backward(self.unpool, self.y, self.peer.grad_x)

    def flat(self, indices: torch.Tensor) -> torch.Tensor:
        w = self.peer.window
        return ops.convert_pool_indices(
            indices,
            "flat",
            w.kernel_size,
            w.stride,
            w.padding,
            input_size=self.peer.x.shape[-2:],
            output_size=self.peer.y.shape[-2:],
        )


def build(case: Case) -> tuple[TorchPool, dict[str, SegkernPool]]:
    torch.manual_seed(0)
    x = torch.randn(case.shape, device=case.device).to(getattr(torch, case.dtype))
    peer = TorchPool(x.contiguous(memory_format=LAYOUTS[case.layout]), case.options["window"])
    return peer, {name: SegkernPool(peer, name) for name in FORMATS}


def test_max_pool(case: Case, runner) -> None:
    peer, pools = runner.inputs(case.data, lambda: build(case))
    window = case.options["window"]
    values = (peer.x.numel() + peer.y.numel()) * peer.x.element_size()

    def contender(pool: TorchPool | SegkernPool, index_format: str) -> Contender:
        size = index_bytes(tuple(peer.y.shape), window, index_format)
        assert pool.indices.nbytes == size
        return Contender(getattr(pool, case.operator), values + size, size)

    def check(index_format: str, got, expected) -> None:
        if case.operator == "pool_forward":
            got, indices = got
            expected, expected_indices = expected
            assert torch.equal(pools[index_format].flat(indices), expected_indices)
        assert got.is_contiguous(memory_format=LAYOUTS[case.layout])
        # Overlapping windows add up to four gradients, in an order and precision of each's own.
        slack = 32 * torch.finfo(got.dtype).eps if window.kernel_size > window.stride else 0.0
        torch.testing.assert_close(got, expected, rtol=0.0, atol=slack)

    compiled = None
    if runner.timed and case.device in case.compiled:
        compiled = peer.compiled(case.operator)
    runner.run(
        case,
        ours={name: contender(pool, name) for name, pool in pools.items()},
        peer=contender(peer, "flat"),
        check=check,
        compiled=compiled,
    )
