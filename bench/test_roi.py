"""RoIAlign beside torchvision's, at the sizes of Mask R-CNN's mask and box heads on one level.

Least bytes: the map once and the bins once; backward the same.
"""

from __future__ import annotations

import pytest
import torch

from bench.cases import Case, Contender
from bench.peers import backward
from segkern import ops

torchvision = pytest.importorskip("torchvision")

# title, bins, full map, small map, boxes: a box at its own level spans 14 to 28 pixels of the map.
SHAPES = (
    ("mask head", 14, (1, 256, 200, 336), (1, 9, 40, 44), 1000),
    ("box head", 7, (1, 256, 100, 168), (1, 9, 40, 44), 1000),
)
SAMPLES = 2


def declare_cases(timed: bool) -> list[Case]:
    return [
        Case(
            "roi_align",
            f"roi_align_{direction}",
            full if timed else small,
            dtype,
            layout,
            f"{count if timed else 20}x{bins}x{bins}s{SAMPLES}",
            title,
            options={"bins": bins, "boxes": count if timed else 20},
        )
        for title, bins, full, small, count in SHAPES
        for direction in ("forward", "backward")
        for dtype in ("float32", "float16")
        for layout in ("contiguous", "channels_last")
    ]


def build(case: Case) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    layout = getattr(torch, f"{case.layout}_format" if case.layout == "contiguous" else case.layout)
    x = torch.randn(case.shape, device=case.device).to(
        getattr(torch, case.dtype), memory_format=layout
    )
    count, bins = case.options["boxes"], case.options["bins"]
    extent = 14 + 14 * torch.rand(count, 2, device=case.device)
    size = torch.tensor([case.shape[3], case.shape[2]], device=case.device)
    corner = torch.rand(count, 2, device=case.device) * (size - extent)
    rois = torch.cat([torch.zeros_like(corner[:, :1]), corner, corner + extent], 1)
    grad = torch.randn(count, case.shape[1], bins, bins, device=case.device).to(x.dtype)
    return x, rois, grad.to(memory_format=layout)


def test_roi(case: Case, runner) -> None:
    x, rois, grad = runner.inputs(case.data, lambda: build(case))
    bins, forward = case.options["bins"], case.operator.endswith("forward")
    least = x.nbytes + grad.nbytes

    def ours(leaf: torch.Tensor) -> torch.Tensor:
        return ops.roi_align(leaf, rois, bins, sampling_ratio=SAMPLES)

    def theirs(leaf: torch.Tensor) -> torch.Tensor:
        boxes = rois.to(leaf.dtype)
        return torchvision.ops.roi_align(leaf, boxes, bins, 1.0, SAMPLES, aligned=True)

    def contender(function, library: str) -> Contender:
        def make():
            return (lambda: function(x)) if forward else backward(function, x, grad)

        return Contender(make, least, library=library)

    def check(_, got, expected) -> None:
        # torchvision keeps boxes and sums in the half type.
        tolerance = 1e-4 if case.dtype == "float32" else 0.2
        error = (got.float() - expected.float()).abs().max() / expected.float().abs().max()
        assert error < tolerance, error

    runner.run(
        case,
        ours={"segkern": contender(ours, "segkern")},
        peer=contender(theirs, "torchvision"),
        check=check,
    )
