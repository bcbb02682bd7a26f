"""nms and batched_nms beside torchvision's.

torchvision's results have the size of what stays; ours have a fixed size. On the CPU only: on CUDA
torchvision waits for the device, which the runner's graphs cannot hold. Least bytes: the inputs
once.
"""

from __future__ import annotations

import pytest
import torch

from bench.cases import Case, Contender
from segkern import ops

torchvision = pytest.importorskip("torchvision")

# torch.compile itself uses what torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")

# title, boxes at full and small size, classes, threshold.
SETTINGS = (
    ("proposals of a level", (2000, 40), 1, 0.7),
    ("detections", (1000, 40), 80, 0.5),
    ("detections, many", (5000, 60), 80, 0.5),
)


def declare_cases(timed: bool) -> list[Case]:
    return [
        Case(
            "nms",
            "batched_nms" if classes > 1 else "nms",
            (sizes[0] if timed else sizes[1], 4),
            "float32",
            "contiguous",
            f"{classes} classes at {threshold}",
            title,
            options={"classes": classes, "threshold": threshold, "devices": ("cpu",)},
        )
        for title, sizes, classes, threshold in SETTINGS
    ]


def build(case: Case) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    count = case.shape[0]
    corner, size = torch.rand(count, 2) * 800, torch.rand(count, 2) * 120
    labels = torch.randint(0, case.options["classes"], (count,))
    scores = torch.randperm(count) / count  # no ties, whose order torchvision leaves open
    boxes = torch.cat([corner, corner + size], 1)
    return tuple(t.to(case.device) for t in (boxes, scores, labels))


def test_nms(case: Case, runner) -> None:
    boxes, scores, labels = runner.inputs(case.data, lambda: build(case))
    threshold = case.options["threshold"]
    arguments = (boxes, scores) if case.operator == "nms" else (boxes, scores, labels)
    least = boxes.nbytes + scores.nbytes + labels.nbytes

    def contender(library) -> Contender:
        function = getattr(library, case.operator)
        return Contender(
            lambda: lambda: function(*arguments, threshold),
            least,
            library="torchvision" if library is torchvision.ops else "torch",
        )

    def check(_, got, expected) -> None:
        indices, count = got
        assert torch.equal(indices[:count], expected)

    runner.run(
        case,
        ours={"segkern": contender(ops)},
        peer=contender(torchvision.ops),
        check=check,
    )
