"""Bilinear resampling and pyramid pooling beside torch's.

torch pools a pyramid by one pass over the map for each grid. Least bytes of every row: each map
once. The shapes are those of a DeepLab's and SegNet-like network's scores, of a decoder's doubling
and of PSPNet's pyramid and the image pooling of an ASPP.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bench.cases import Case, Contender
from bench.peers import backward
from segkern import ops

# torch.compile itself uses what torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
BINS = (1, 2, 3, 6)

# title, input and output size: full, small.
RESIZES = (
    ("VOC scores", (1, 21, 65, 65), (513, 513), (1, 5, 9, 9), (65, 65)),
    ("decoder", (1, 512, 60, 60), (119, 119), (1, 32, 6, 6), (11, 11)),
    ("pyramid level", (2, 512, 6, 6), (60, 60), (2, 32, 2, 2), (20, 20)),
    ("CamVid scores", (1, 11, 90, 120), (360, 480), (1, 3, 9, 12), (36, 48)),
    ("image pooling", (1, 512, 1, 1), (60, 60), (1, 32, 1, 1), (6, 6)),
)
PYRAMIDS = (
    ("PSPNet, 473", (1, 2048, 60, 60), (1, 40, 12, 12)),
    ("PSPNet, 713", (1, 2048, 90, 90), (1, 40, 13, 11)),
)


def declare_cases(timed: bool) -> list[Case]:
    return [
        Case(
            "resize",
            f"{operator}_{direction}",
            shape,
            dtype,
            layout,
            setting,
            title,
            options={"size": size},
        )
        for operator, title, shape, size, setting in _shapes(timed)
        for dtype in ("float32", "bfloat16")
        for layout in LAYOUTS
        for direction in ("forward", "backward")
    ]


def _shapes(timed: bool):
    for title, full, full_size, small, small_size in RESIZES:
        shape, size = (full, full_size) if timed else (small, small_size)
        yield "resize", title, shape, size, f"to {size[0]}x{size[1]}"
    for title, full, small in PYRAMIDS:
        yield "pyramid", title, full if timed else small, None, "1, 2, 3 and 6 cells"


class Ours:
    library = "segkern"

    @staticmethod
    def resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return ops.resize_bilinear(maps, size)

    @staticmethod
    def pyramid(maps: torch.Tensor, _) -> torch.Tensor:
        return torch.cat([level.flatten(2) for level in ops.pyramid_pool(maps, BINS)], 2)


class Torch:
    library = "torch"

    @staticmethod
    def resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return F.interpolate(maps, size, mode="bilinear")

    @staticmethod
    def pyramid(maps: torch.Tensor, _) -> torch.Tensor:
        return torch.cat([F.adaptive_avg_pool2d(maps, b).flatten(2) for b in BINS], 2)


def build(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)

    def draw(*shape: int) -> torch.Tensor:
        memory = torch.empty(
            shape, dtype=dtype, device=case.device, memory_format=LAYOUTS[case.layout]
        )
        return memory.normal_()

    if case.options["size"] is None:
        grad = torch.randn(*case.shape[:2], sum(b * b for b in BINS), device=case.device)
        return draw(*case.shape), grad.to(dtype)
    return draw(*case.shape), draw(*case.shape[:2], *case.options["size"])


def test_resize(case: Case, runner) -> None:
    maps, grad = runner.inputs(case.data, lambda: build(case))
    operator, _, direction = case.operator.rpartition("_")
    size = case.options["size"]

    def contender(side) -> Contender:
        function = getattr(side, operator)

        def make():
            if direction == "forward":
                return lambda: function(maps, size)
            return backward(lambda leaf: function(leaf, size), maps, grad)

        return Contender(make, maps.nbytes + grad.nbytes, library=side.library)

    def check(_, got, expected) -> None:
        # torch's own weights and sums are of half types there, on the CPU.
        eps = torch.finfo(got.dtype).eps
        slack = 64 * eps * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(got, expected, rtol=0.0, atol=slack)

    runner.run(case, ours={"segkern": contender(Ours)}, peer=contender(Torch), check=check)
