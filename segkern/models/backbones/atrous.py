"""Where networks are made atrous: which layer has which rate, and the layers that compute it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from segkern.nn import AtrousConv2d

OUTPUT_STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class LayerRates:
    """Stride of a layer's first block, and the rate of each block's 3x3 convolution."""

    stride: int
    rates: tuple[int, ...]


def residual_rates(
    network: str,
    blocks: Sequence[int],
    output_stride: int,
    multi_grid: Sequence[int],
    *,
    exact: bool,
    layers: int = 4,
) -> list[LayerRates]:
    """Strides and rates of the layers of a ResNet at an output stride.

    A layer beyond the output stride has stride 1, and the rates after it double. The last layers,
    from the fourth on, have the unit rates ``multi_grid`` times theirs; a fifth and more have their
    stride removed likewise, so that rates go on doubling.

    Args:
        network: For error messages.
        blocks: Blocks of layers 1 to 4.
        output_stride: 8, 16 or 32.
        multi_grid: Unit rates of the blocks of layer 4, as many as it has.
        exact: The first block of a layer whose stride was removed keeps the rate before it. That is
            the à-trous form of a network with its stride in the 3x3 convolution; otherwise the
            whole layer has the new rate, that of one with its stride in the first 1x1. Layers
            with a multi-grid other than ones are not affected: their first block is multiplied too.
        layers: Layers altogether, 4 to 7.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(
            f"{network}: output_stride must be one of {', '.join(map(str, OUTPUT_STRIDES))}, "
            f"got {output_stride!r}"
        )
    if len(multi_grid) != blocks[3] or any(rate < 1 for rate in multi_grid):
        raise ValueError(
            f"{network}: multi_grid must be {blocks[3]} positive ints, one per block of layer4, "
            f"got {tuple(multi_grid)}"
        )
    plan = []
    stride, rate = 4, 1
    for i in range(1, layers + 1):
        count = blocks[min(i, 4) - 1]
        own = 1 if i == 1 else 2
        before = rate
        if own == 2 and stride >= output_stride:
            own, rate = 1, 2 * rate
        stride *= own
        rates = [rate] * count
        if i >= 4:
            rates = [rate * unit for unit in multi_grid]
        if exact and (i < 4 or (i == 4 and set(multi_grid) == {1})):
            rates[0] = before
        plan.append(LayerRates(own, tuple(rates)))
    return plan


def use_atrous(network: nn.Module) -> None:
    """Turn torch's convolutions with holes, and its depthwise ones, into :class:`AtrousConv2d`.

    In place; the others stay torch's, and state-dict names and weights stay what they are.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d and is_atrous(module):
            AtrousConv2d._adopt(module)


def is_atrous(conv: nn.Conv2d) -> bool:
    """Whether the convolution has holes, or one input channel per group."""
    return max(conv.dilation) > 1 or (conv.groups == conv.in_channels and conv.groups > 1)
