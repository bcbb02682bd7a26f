"""A classifier made dense beside the same classifier on every window.

AlexNet without padding, random weights: then the scores are equal and can be compared, and the
work is that of the padded network but for its borders. The peer runs the windows, which start every
32 pixels, as one batch. Least bytes: image, weights and scores once.
"""

from __future__ import annotations

import pytest
import torch

import segkern
from bench.cases import Case, Contender

models = pytest.importorskip("torchvision.models")

STRIDE = 32
# What a window of AlexNet sees without padding: its 6x6 features and all that leads to them.
FIELD = 355


def declare_cases(timed: bool) -> list[Case]:
    grids = (10, 4) if timed else (2,)
    return [
        Case(
            "convolutionalize",
            "sliding_windows",
            (1, 3, FIELD + STRIDE * (n - 1), FIELD + STRIDE * (n - 1)),
            "float32",
            "contiguous",
            f"{n}x{n} windows",
            "AlexNet",
            options={"grid": n},
        )
        for n in grids
    ]


def build(case: Case) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    dense = segkern.convert.convolutionalize(models.alexnet()).eval()
    for module in dense.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.MaxPool2d)):
            module.padding = 0
    return dense.to(case.device), torch.randn(case.shape).to(case.device)


def test_convolutionalize(case: Case, runner) -> None:
    dense, image = runner.inputs(case.data, lambda: build(case))
    grid = case.options["grid"]
    weights = sum(p.nbytes for p in dense.parameters())
    least = image.nbytes + weights + 4 * 1000 * grid**2

    def windows() -> torch.Tensor:
        cut = image[0].unfold(1, FIELD, STRIDE).unfold(2, FIELD, STRIDE)
        batch = cut.permute(1, 2, 0, 3, 4).reshape(-1, 3, FIELD, FIELD)
        return dense(batch).view(grid, grid, -1).permute(2, 0, 1)[None]

    def without_gradients(call) -> Contender:
        return Contender(lambda: torch.no_grad()(call), least)

    def check(_, got, expected) -> None:
        assert got.shape == expected.shape == (1, 1000, grid, grid)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)

    runner.run(
        case,
        ours={"segkern": without_gradients(lambda: dense(image))},
        peer=without_gradients(windows),
        check=check,
    )
