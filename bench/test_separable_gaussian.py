"""separable_gaussian beside two convolutions of torch with the same taps.

Least bytes, forward or backward: the values once and the result once.
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

WIDTH = 3.0
RADIUS = 17  # the last tap of at least 2^-24 of the middle one

# title, full size, small size
SHAPES = (("VOC image", (1, 21, 375, 500), (1, 3, 12, 40)),)


def declare_cases(timed: bool) -> list[Case]:
    return [
        Case(
            "separable_gaussian",
            f"separable_gaussian_{direction}",
            full if timed else small,
            "float32",
            "contiguous",
            f"width {WIDTH:g}",
            title,
        )
        for title, full, small in SHAPES
        for direction in ("forward", "backward")
    ]


def convolutions(values: torch.Tensor) -> torch.Tensor:
    steps = torch.arange(-RADIUS, RADIUS + 1, device=values.device) / WIDTH
    taps = torch.exp(-0.5 * steps.square())
    planes = values.flatten(0, 1)[:, None]
    planes = F.conv2d(planes, taps.view(1, 1, 1, -1), padding=(0, RADIUS))
    return F.conv2d(planes, taps.view(1, 1, -1, 1), padding=(RADIUS, 0)).view(values.shape)


def ours(values: torch.Tensor) -> torch.Tensor:
    return ops.separable_gaussian(values, WIDTH)


def build(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    values = torch.rand(case.shape, device=case.device)
    return values, torch.randn_like(values)


def test_separable_gaussian(case: Case, runner) -> None:
    values, grad = runner.inputs(case.data, lambda: build(case))

    def contender(function) -> Contender:
        def make():
            if case.operator.endswith("forward"):
                return lambda: function(values)
            return backward(function, values, grad)

        return Contender(make, 2 * values.nbytes)

    def check(_, got, expected) -> None:
        scale = expected.abs().max()
        torch.testing.assert_close(got / scale, expected / scale, rtol=0.0, atol=1e-5)

    runner.run(case, ours={"segkern": contender(ours)}, peer=contender(convolutions), check=check)
