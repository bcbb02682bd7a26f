"""RoIUpsample beside its composition in torch, at the sizes of AUNet's mask attention.

The peer goes box by box: two matrix products make the box's window, which is added to the map, or
of which the larger stays. Least bytes: the bins once and the map once; backward the same.
"""

from __future__ import annotations

import math

import torch

from bench.cases import Case, Contender
from bench.peers import backward
from segkern import ops

# title, bins, full map, small map, boxes. One channel is what the network brings back.
SHAPES = (
    ("mask attention, one channel", 14, (1, 1, 200, 336), (1, 1, 40, 44), 100),
    ("mask features, all channels", 14, (1, 256, 200, 336), (1, 9, 40, 44), 100),
)
REDUCTIONS = ("mean", "max")


def declare_cases(timed: bool) -> list[Case]:
    return [
        Case(
            "roi_upsample",
            f"roi_upsample_{reduction}_{direction}",
            full if timed else small,
            "float32",
            layout,
            f"{count if timed else 12}x{bins}x{bins}",
            title,
            options={"bins": bins, "boxes": count if timed else 12, "reduction": reduction},
        )
        for title, bins, full, small, count in SHAPES
        for reduction in REDUCTIONS
        for direction in ("forward", "backward")
        for layout in ("contiguous", "channels_last")
    ]


def build(case: Case) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    layout = getattr(torch, f"{case.layout}_format" if case.layout == "contiguous" else case.layout)
    count, bins = case.options["boxes"], case.options["bins"]
    channels, height, width = case.shape[1:]
    values = torch.randn(count, channels, bins, bins, device=case.device)
    size = torch.tensor([width, height], device=case.device)
    extent = size * (0.1 + 0.4 * torch.rand(count, 2, device=case.device))
    corner = torch.rand(count, 2, device=case.device) * (size - extent)
    rois = torch.cat([torch.zeros_like(corner[:, :1]), corner, corner + extent], 1)
    grad = torch.randn(case.shape, device=case.device)
    return values.to(memory_format=layout), rois, grad.to(memory_format=layout)


def weights(low: float, high: float, bins: int, size: int, device) -> tuple[int, torch.Tensor]:
    """The first pixel of a box along an axis, and (bins, pixels) weights of its bins."""
    cell = (high - low) / bins
    first = max(0, math.floor(low - 0.5 * cell - 0.5) + 1)
    last = min(size - 1, math.ceil(high + 0.5 * cell - 0.5) - 1)
    pixels = torch.arange(first, last + 1, device=device)
    at = (pixels + 0.5 - low) / cell - 0.5
    return first, (1 - (at - torch.arange(bins, device=device)[:, None]).abs()).clamp(min=0)


def compose(values: torch.Tensor, rois: torch.Tensor, size: tuple, reduction: str) -> torch.Tensor:
    _, channels, height, width = size
    total = values.new_zeros(size)
    count = values.new_zeros(1, 1, height, width)
    for bins, (_, x1, y1, x2, y2) in zip(values, rois.tolist()):
        top, down = weights(y1, y2, bins.shape[1], height, values.device)
        left, across = weights(x1, x2, bins.shape[2], width, values.device)
        window = down.T @ bins @ across
        rows, columns = slice(top, top + down.shape[1]), slice(left, left + across.shape[1])
        if reduction == "mean":
            total[0, :, rows, columns] += window
        else:
            held, is_first = total[0, :, rows, columns].clone(), count[0, :, rows, columns] == 0
            total[0, :, rows, columns] = torch.where(is_first | (window > held), window, held)
        count[0, :, rows, columns] += 1
    return total / count.clamp(min=1) if reduction == "mean" else total


def test_roi_upsample(case: Case, runner) -> None:
    values, rois, grad = runner.inputs(case.data, lambda: build(case))
    reduction, forward = case.options["reduction"], case.operator.endswith("forward")
    least = values.nbytes + grad.nbytes

    def ours(leaf: torch.Tensor) -> torch.Tensor:
        size = (case.shape[0], *case.shape[2:])
        return ops.roi_upsample(leaf, rois, size, reduction=reduction)

    def theirs(leaf: torch.Tensor) -> torch.Tensor:
        return compose(leaf, rois, case.shape, reduction)

    def contender(function, library: str) -> Contender:
        def make():
            return (lambda: function(values)) if forward else backward(function, values, grad)

        return Contender(make, least, library=library)

    def check(_, got, expected) -> None:
        difference = (got - expected).abs() > 1e-3 * expected.abs().max()
        # Rounding decides which of two nearly equal boxes is the larger.
        assert difference.float().mean() <= (0.001 if reduction == "max" else 0), difference.sum()

    runner.run(
        case,
        ours={"segkern": contender(ours, "segkern")},
        peer=contender(theirs, "torch"),
        check=check,
    )
