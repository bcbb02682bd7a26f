"""Random convolutions and their references in float64, for the tests of the atrous operators."""

from __future__ import annotations

import dataclasses
import random

import torch
import torch.nn.functional as F
from torch import Tensor

#: Largest error relative to 1 + |reference|: a few roundings of the dtype, for sums of some
#: hundred products of numbers near one.
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 3e-5,
    torch.bfloat16: 1.2e-2,
    torch.float16: 2e-3,
}


@dataclasses.dataclass
class Tail:
    """An epilogue with random tensors: scale, shift, residual, activation."""

    scale: Tensor | None
    shift: Tensor | None
    residual: Tensor | None
    activation: str | None
    slope: Tensor | None

    @classmethod
    def draw(cls, rng: random.Random, channels: int, shape=None, dtype=torch.float32, device="cpu"):
        def maybe(make):
            return make().to(device) if rng.random() < 0.5 else None

        activation = rng.choice([None, "relu", "prelu"])
        slope = torch.rand(rng.choice([1, channels])).to(device) if activation == "prelu" else None
        return cls(
            maybe(lambda: torch.rand(channels) + 0.5),
            maybe(lambda: torch.randn(channels)),
            None if shape is None else maybe(lambda: torch.randn(shape).to(dtype)),
            activation,
            slope,
        )

    def apply(self, y: Tensor) -> Tensor:
        if self.scale is not None:
            y = y * self.scale.double().view(1, -1, 1, 1)
        if self.shift is not None:
            y = y + self.shift.double().view(1, -1, 1, 1)
        if self.residual is not None:
            y = y + self.residual.double()
        if self.activation == "relu":
            return y.relu()
        return y if self.activation is None else F.prelu(y, self.slope.double())

    def arguments(self, prefix: str = "") -> dict:
        given = {
            f"{prefix}scale": self.scale,
            f"{prefix}shift": self.shift,
            f"{prefix}activation": self.activation,
            f"{prefix}activation_weight": self.slope,
        }
        return given if prefix else given | {"residual": self.residual}


def error(result: Tensor, reference: Tensor) -> float:
    """Largest difference relative to 1 + |reference|; infinity where sizes or NaNs disagree."""
    if result.shape != reference.shape:
        return float("inf")
    if result.numel() == 0:
        return 0.0
    worst = ((result.double() - reference).abs() / (1 + reference.abs())).max().item()
    return worst if worst == worst else float("inf")


def assert_close(result: Tensor, reference: Tensor, dtype: torch.dtype, factor: float = 1) -> None:
    """Within the tolerance of `dtype`, and in `dtype`."""
    assert result.dtype == dtype
    worst = error(result, reference)
    assert worst <= factor * TOLERANCE[dtype], worst
