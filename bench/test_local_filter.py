"""The Deep Parsing Network's local convolution beside box sums composed in torch.

torch has no such layer; its best composition is the same expansion into box sums, each from
cumulative sums (in float64: float32 loses what the expansion cancels), eight of them a label.
Least bytes: the marginals and the image once, the result once; backward the gradient too.
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

WINDOW = 50
COLOUR_WEIGHT, POSITION_WEIGHT = 1 / WINDOW**2, 1 / (25 * WINDOW) ** 2

# title, full size, small size: VOC's 21 labels at the network's input size.
SHAPES = (("DPN b12", (1, 21, 512, 512), (1, 3, 20, 24)),)


def declare_cases(timed: bool) -> list[Case]:
    return [
        Case(
            "local_filter",
            operator,
            full if timed else small,
            "float32",
            "contiguous",
            f"{WINDOW}x{WINDOW}",
            title,
        )
        for title, full, small in SHAPES
        for operator in ("local_quadratic_filter_forward", "local_quadratic_filter_backward")
    ]


def box_sum(x: torch.Tensor) -> torch.Tensor:
    """Sums over the window from -25 to 24 of the last two axes."""
    before, after = WINDOW // 2, WINDOW - 1 - WINDOW // 2
    for axis in (-1, -2):
        pad = (before + 1, after, 0, 0) if axis == -1 else (0, 0, before + 1, after)
        sums = F.pad(x, pad).cumsum(axis)
        length = x.shape[axis]
        x = sums.narrow(axis, WINDOW, length) - sums.narrow(axis, 0, length)
    return x


def composition(q: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    height, width = q.shape[-2:]
    wide, colours = q.double(), image.double()
    y = torch.arange(height, dtype=torch.float64, device=q.device).view(-1, 1)
    x = torch.arange(width, dtype=torch.float64, device=q.device)
    # Both terms as one distance between points of five coordinates.
    points = [
        *(COLOUR_WEIGHT**0.5 * colours[:, c : c + 1] for c in range(colours.shape[1])),
        *(POSITION_WEIGHT**0.5 * p.expand(1, 1, height, width) for p in (x, y)),
    ]
    square = sum(p.square() for p in points)
    total = square * box_sum(wide) + box_sum(square * wide)
    for p in points:
        total = total - 2 * p * box_sum(p * wide)
    return q * total.to(q.dtype)


def ours(q: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    return ops.local_quadratic_filter(q, image, COLOUR_WEIGHT, POSITION_WEIGHT, WINDOW)


def build(case: Case) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    q = torch.rand(case.shape, device=case.device).softmax(1)
    image = torch.rand(case.shape[0], 3, *case.shape[2:], device=case.device)
    return q, image, torch.randn_like(q)


def test_local_filter(case: Case, runner) -> None:
    q, image, grad = runner.inputs(case.data, lambda: build(case))
    forward = case.operator.endswith("forward")
    least = (2 if forward else 3) * q.nbytes + image.nbytes

    def contender(function) -> Contender:
        def make():
            if forward:
                return lambda: function(q, image)
            return backward(lambda leaf: function(leaf, image), q, grad)

        return Contender(make, least)

    def check(_, got, expected) -> None:
        scale = expected.abs().max()
        torch.testing.assert_close(got / scale, expected / scale, rtol=0.0, atol=1e-6)

    runner.run(case, ours={"segkern": contender(ours)}, peer=contender(composition), check=check)
