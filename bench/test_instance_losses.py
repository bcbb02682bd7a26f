"""Losses and dynamic convolution of SOLOv2 beside torchvision's and eager compositions.

Shapes are those of two images of 800 x 1344: 3872 cells each, 67 200 pixels a mask. The
compositions are what published code bases run: targets one-hot, or repeated for every mask, as
float32. Least bytes: each argument once and the result once; backward the same.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.cases import Case, Contender
from bench.peers import backward
from segkern import losses, ops

torchvision = pytest.importorskip("torchvision")

# operator, full shape, small shape, how many rows or kernels, of how many instances.
SHAPES = (
    ("focal_loss", (7744, 80), (60, 5), 80, 0),
    ("dice_loss", (60, 200, 336), (5, 8, 12), 60, 12),
    ("dynamic_conv", (2, 256, 200, 336), (2, 8, 9, 10), 60, 0),
)


def declare_cases(timed: bool) -> list[Case]:
    return [
        Case(
            "instance_losses",
            f"{operator}_{direction}",
            full if timed else small,
            "float32",
            "contiguous",
            f"{count} rows",
            "SOLOv2, two images",
            options={"rows": count, "instances": instances},
        )
        for operator, full, small, count, instances in SHAPES
        for direction in ("forward", "backward")
    ]


def build(case: Case) -> tuple[Tensor, ...]:
    """The argument with a gradient, the others, and the result's gradient."""
    torch.manual_seed(0)
    x = torch.randn(case.shape)
    rows = case.options["rows"]
    if case.operator.startswith("focal"):
        labels = torch.zeros(case.shape[0], dtype=torch.int64)
        labels[torch.randperm(case.shape[0])[:rows]] = 1
        made = (x, labels, torch.ones(()))
    elif case.operator.startswith("dice"):
        target = (torch.rand(case.options["instances"], *case.shape[1:]) > 0.8).to(torch.uint8)
        of = torch.arange(case.shape[0]) % case.options["instances"]
        made = (x, target, of, torch.rand(case.shape[0]))
    else:
        kernels = torch.randn(rows, case.shape[1])
        made = (x, kernels, torch.randn(rows, *case.shape[2:]))
    return tuple(tensor.to(case.device) for tensor in made)


def focal(arguments: tuple[Tensor, ...]) -> tuple[Callable, Callable]:
    (labels,) = arguments
    return (
        lambda x: losses.sigmoid_focal_loss(x, labels),
        lambda x: torchvision.ops.sigmoid_focal_loss(x, one_hot(x, labels), reduction="sum"),
    )


def one_hot(x: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels, x.shape[1] + 1)[:, 1:].to(x.dtype)


def dice(arguments: tuple[Tensor, ...]) -> tuple[Callable, Callable]:
    target, of = arguments

    def composed(x: Tensor) -> Tensor:
        p, q = x.sigmoid().flatten(1), target[of].flatten(1).float()
        shared, below = (p * q).sum(1), (p * p).sum(1) + 0.001 + (q * q).sum(1) + 0.001
        return 1 - 2 * shared / below

    return lambda x: losses.dice_loss(x, target, rows=of, from_logits=True), composed


def convolution(arguments: tuple[Tensor, ...]) -> tuple[Callable, Callable]:
    (kernels,) = arguments
    counts = [kernels.shape[0] // 2, kernels.shape[0] - kernels.shape[0] // 2]

    def composed(x: Tensor) -> Tensor:
        maps = [
            torch.nn.functional.conv2d(image[None], own[:, :, None, None])[0]
            for image, own in zip(x, kernels.split(counts))
        ]
        return torch.cat(maps)

    return lambda x: ops.dynamic_conv(x, kernels, counts), composed


MAKERS = {"focal_loss": focal, "dice_loss": dice, "dynamic_conv": convolution}


def test_instance_losses(case: Case, runner) -> None:
    x, *others, grad = runner.inputs(case.data, lambda: build(case))
    operator, _, direction = case.operator.rpartition("_")
    ours, theirs = MAKERS[operator](tuple(others))
    least = x.nbytes + sum(tensor.nbytes for tensor in others) + grad.nbytes

    def contender(function: Callable, library: str) -> Contender:
        def make():
            return (lambda: function(x)) if direction == "forward" else backward(function, x, grad)

        return Contender(make, least, library=library)

    def check(_, got, expected) -> None:
        error = (got - expected).abs().max() / expected.abs().max()
        assert error < 1e-4, error

    runner.run(
        case,
        ours={"segkern": contender(ours, "segkern")},
        peer=contender(theirs, "torchvision" if operator == "focal_loss" else "torch"),
        check=check,
    )
