"""Atrous spatial pyramid pooling over one input, without the concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from segkern.ops.atrous_conv import atrous_conv2d
from segkern.ops.atrous_separable import atrous_separable_conv2d


class Branch(NamedTuple):
    """One branch of a pyramid: a convolution that keeps the map's size, and its epilogue.

    weight: (C_b, C_in, kh, kw) with odd kernel sizes; (C_b, C_in, 1, 1) for the others below.
    scale, shift: (C_b,), the folded batch norm. activation: None or "relu".
    dilation: rate of the kernel. depthwise: (C_in, 1, kh, kw) for a separable branch, followed by
    its own scale, shift and activation; `weight` is then the pointwise kernel. pool: the branch
    sees the average of the map and gives one value an image and channel.
    """

    weight: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None
    activation: str | None = "relu"
    dilation: int = 1
    depthwise: Tensor | None = None
    depthwise_scale: Tensor | None = None
    depthwise_shift: Tensor | None = None
    depthwise_activation: str | None = "relu"
    pool: bool = False


def aspp(
    x: Tensor,
    branches: Sequence[Branch],
    projection: Tensor,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = "relu",
) -> Tensor:
    """``activation(projection(concat(branches)) * scale + shift)``."""
    total = None
    first = 0
    for branch in branches:
        width = branch.weight.shape[0]
        part = projection[:, first : first + width]
        first += width
        y = branch_output(x, branch)
        term = torch.conv2d(y, part)
        total = term if total is None else total + term
    return torch.relu(total * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1))


def branch_output(x: Tensor, branch: Branch) -> Tensor:
    """(N, C_b, H, W), or (N, C_b, 1, 1) of a pooling branch."""
    if branch.pool:
        x = x.mean((2, 3), keepdim=True)
    if branch.depthwise is not None:
        kernel = branch.depthwise.shape[2:]
        return atrous_separable_conv2d(
            x,
            branch.depthwise,
            branch.weight,
            padding=[branch.dilation * (k - 1) // 2 for k in kernel],
            dilation=branch.dilation,
            depthwise_scale=branch.depthwise_scale,
            depthwise_shift=branch.depthwise_shift,
            depthwise_activation=branch.depthwise_activation,
            scale=branch.scale,
            shift=branch.shift,
            activation=branch.activation,
        )
    return atrous_conv2d(
        x,
        branch.weight,
        padding=[branch.dilation * (k - 1) // 2 for k in branch.weight.shape[2:]],
        dilation=branch.dilation,
        scale=branch.scale,
        shift=branch.shift,
        activation=branch.activation,
    )
