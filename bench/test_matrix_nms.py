"""Matrix NMS beside the composition in torch that published code bases run.

The composition takes all pairs' shared pixels from one product of the masks as float32 matrices,
and decays an N x N matrix; masks of other classes are multiplied away. Least bytes: the masks once.
"""

from __future__ import annotations

import pytest
import torch

from bench.cases import Case, Contender
from segkern import ops

# torch.compile itself uses what torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")

SIGMA, KEPT = 2.0, 100

# title, full size, small size: a quarter of the sides of 800 x 1344, as SOLOv2 has its masks.
SHAPES = (
    ("SOLOv2", (500, 200, 336), (12, 9, 40)),
    ("SOLOv2, few masks", (100, 200, 336), (7, 9, 40)),
)


def declare_cases(timed: bool) -> list[Case]:
    return [
        Case(
            "matrix_nms",
            "matrix_nms",
            full if timed else small,
            "bool",
            "contiguous",
            f"{kind} {classes} classes",
            title,
        )
        for title, full, small in SHAPES
        for kind in ("discs", "noise")
        for classes in (80, 1)
    ]


def composition(masks: torch.Tensor, labels: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    order = torch.argsort(scores, descending=True)
    masks, labels, scores = masks[order].flatten(1).float(), labels[order], scores[order]
    areas = masks.sum(1)
    shared = masks @ masks.T
    iou = shared / (areas + areas[:, None] - shared).clamp(min=1)
    iou = (iou * (labels == labels[:, None])).triu(diagonal=1)
    largest = iou.max(0).values[:, None]
    decay = torch.exp(-SIGMA * iou**2) / torch.exp(-SIGMA * largest**2)
    return torch.sort(scores * decay.min(0).values, descending=True).values[:KEPT]


def ours(masks: torch.Tensor, labels: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return ops.matrix_nms(masks, labels, scores, sigma=SIGMA, post=min(KEPT, len(scores)))[1]


def build(case: Case) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    count, height, width = case.shape
    kind, classes, _ = case.setting.split()
    if kind == "noise":  # every box is the whole plane
        masks = torch.rand(case.shape) > 0.5
    else:
        y, x = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
        draw = torch.rand(4, count, 1, 1)
        ry, rx = (0.02 + 0.25 * draw[2]) * height, (0.02 + 0.25 * draw[3]) * width
        masks = ((y - draw[0] * height) / ry) ** 2 + ((x - draw[1] * width) / rx) ** 2 < 1
    labels = torch.randint(0, int(classes), (count,))
    return tuple(t.to(case.device) for t in (masks, labels, torch.rand(count)))


def test_matrix_nms(case: Case, runner) -> None:
    inputs = runner.inputs(case.data, lambda: build(case))
    least = inputs[0].nbytes

    def contender(function) -> Contender:
        return Contender(lambda: lambda: function(*inputs), least)

    def check(_, got, expected) -> None:
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)

    runner.run(case, ours={"segkern": contender(ours)}, peer=contender(composition), check=check)
