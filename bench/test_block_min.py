"""The Deep Parsing Network's min-pooling over channels, and its mean field pass, beside torch.

torch takes the minimum over an axis of its own, and for the pass subtracts and normalises. Least
bytes: every input once and every output once, backward the gradient and what it goes to.
"""

from __future__ import annotations

import pytest
import torch

from bench.cases import Case, Contender
from bench.peers import backward
from segkern import ops

# torch.compile itself uses what torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")

MIXTURES = 5

# title, full size, small size: VOC's 21 labels at the network's input size.
SHAPES = (("DPN b14, b15", (1, 21, 512, 512), (1, 3, 20, 24)),)
OPERATORS = ("block_min_pool", "mixture_mean_field")


def declare_cases(timed: bool) -> list[Case]:
    return [
        Case(
            "block_min",
            f"{operator}_{direction}",
            full if timed else small,
            "float32",
            "contiguous",
            f"{MIXTURES} mixtures",
            title,
        )
        for title, full, small in SHAPES
        for operator in OPERATORS
        for direction in ("forward", "backward")
    ]


class Ours:
    library = "segkern"

    @staticmethod
    def block_min_pool(unary: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
        return ops.block_min_pool(penalty, MIXTURES)[0]

    @staticmethod
    def mixture_mean_field(unary: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
        return ops.mixture_mean_field(unary, penalty)


class Torch:
    library = "torch"

    @staticmethod
    def block_min_pool(unary: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
        return penalty.unflatten(1, (-1, MIXTURES)).min(2).values

    @staticmethod
    def mixture_mean_field(unary: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
        return (unary - Torch.block_min_pool(unary, penalty)).log_softmax(1)


def build(case: Case) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    batch, labels, *size = case.shape
    unary = torch.randn(case.shape, device=case.device).log_softmax(1)
    penalty = torch.rand(batch, labels * MIXTURES, *size, device=case.device)
    return unary, penalty, torch.randn_like(unary)


def test_block_min(case: Case, runner) -> None:
    unary, penalty, grad = runner.inputs(case.data, lambda: build(case))
    operator, _, direction = case.operator.rpartition("_")
    least = unary.nbytes + penalty.nbytes
    if operator == "mixture_mean_field":
        least += unary.nbytes

    def contender(side) -> Contender:
        function = getattr(side, operator)

        def make():
            if direction == "forward":
                return lambda: function(unary, penalty)
            return backward(lambda leaf: function(unary, leaf), penalty, grad)

        return Contender(make, least, library=side.library)

    def check(_, got, expected) -> None:
        torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-5)

    runner.run(case, ours={"segkern": contender(Ours)}, peer=contender(Torch), check=check)
