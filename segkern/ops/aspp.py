"""Atrous spatial pyramid pooling over one input, without the concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from segkern.ops import conv_table
from segkern.ops._convolution import (
    accumulator,
    autocast_dtype,
    check_beside,
    check_channels,
    check_feature_map,
    lower,
    per_channel,
    wants_grad,
)
from segkern.ops._relayout import to_layout
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
    """``activation(conv1x1(concat(branches), projection) * scale + shift)``.

    The projection is accumulated branch by branch, so the concatenation never exists; a pooling
    branch enters as one value an image and channel.

    Args:
        x: (N, C_in, H, W), float64, float32, float16 or bfloat16, at least one pixel.
        branches: the pyramid, in the order of the projection's input channels.
        projection: (C_out, sum of C_b, 1, 1), in the dtype of `x`.
        scale, shift: (C_out,) or None. activation: None or "relu".

    Returns:
        (N, C_out, H, W) in the dtype and memory format of `x`.

    Raises:
        ValueError, TypeError: an argument of the wrong form, dtype, device or size.

    Deterministic where its convolutions are, see :func:`segkern.ops.atrous_conv2d`. Differentiable.
    Under autocast in autocast's dtype. L.-C. Chen et al., arXiv:1706.05587.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> pyramid = [ops.Branch(torch.rand(4, 8, 1, 1)),
        ...            ops.Branch(torch.rand(4, 8, 3, 3), dilation=6),
        ...            ops.Branch(torch.rand(4, 8, 1, 1), pool=True)]
        >>> ops.aspp(torch.rand(1, 8, 9, 9), pyramid, torch.rand(6, 12, 1, 1)).shape
        torch.Size([1, 6, 9, 9])
    """
    op = "aspp"
    check_feature_map(op, "x", x)
    if x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f"{op}: x must have at least one pixel, got {tuple(x.shape)}")
    dtype = autocast_dtype(x)
    x, projection = lower(dtype, x), lower(dtype, projection)
    branches = [
        branch._replace(
            weight=lower(dtype, branch.weight), depthwise=lower(dtype, branch.depthwise)
        )
        for branch in branches
    ]
    _check_pyramid(op, x, branches, projection)
    for name, tensor in (("scale", scale), ("shift", shift)):
        check_channels(op, name, tensor, projection.shape[0], x)
    if activation not in (None, "relu"):
        raise ValueError(f"{op}: activation must be None or 'relu', got {activation!r}")

    channels_last = suggest_memory_format(x) == torch.channels_last
    shared = x
    if not channels_last and _through_channels_last(x, branches):
        shared = to_layout(x, True)  # once for all branches

    total, pooled, first = None, None, 0
    spatial = [k for k, branch in enumerate(branches) if not branch.pool]
    parts = []
    for branch in branches:
        parts.append(projection[:, first : first + branch.weight.shape[0]])
        first += branch.weight.shape[0]
    for branch, part in zip(branches, parts, strict=True):
        if branch.pool:
            value = atrous_conv2d(branch_output(shared, branch), part, scale=scale)
            pooled = value if pooled is None else pooled + value
    for k in spatial:
        last = k == spatial[-1]
        total = atrous_conv2d(
            branch_output(shared, branches[k]),
            parts[k],
            scale=scale,
            shift=shift if last else None,
            residual=total,
            activation=activation if last and pooled is None else None,
        )
    size = (x.shape[0], projection.shape[0], *x.shape[2:])
    if total is None:
        total = x.new_zeros(size)
        total = total if shift is None else total + per_channel(shift, x)
    if pooled is not None:
        total = total + pooled if wants_grad(total, pooled) else total.add_(pooled)
        total = torch.relu(total) if activation == "relu" else total
    return to_layout(total, channels_last)


def _check_pyramid(op: str, x: Tensor, branches: list[Branch], projection: Tensor) -> None:
    if not branches:
        raise ValueError(f"{op}: branches must be at least one, got none")
    for k, branch in enumerate(branches):
        check_beside(op, f"branches[{k}].weight", branch.weight, x)
        if branch.weight.dim() != 4 or any(size % 2 == 0 for size in branch.weight.shape[2:]):
            raise ValueError(
                f"{op}: branches[{k}].weight must be (C_b, C_in, kh, kw) with an odd kernel, "
                f"got {tuple(branch.weight.shape)}"
            )
        if branch.pool and branch.depthwise is not None:
            raise ValueError(f"{op}: branches[{k}] must not be both pool and depthwise")
    check_beside(op, "projection", projection, x)
    width = sum(branch.weight.shape[0] for branch in branches)
    if projection.dim() != 4 or tuple(projection.shape[1:]) != (width, 1, 1):
        raise ValueError(
            f"{op}: projection must be (C_out, {width}, 1, 1), got {tuple(projection.shape)}"
        )


def _through_channels_last(x: Tensor, branches: list[Branch]) -> bool:
    """Whether the table sends a dense branch of a contiguous input through channels-last."""
    return any(
        not branch.pool
        and branch.depthwise is None
        and branch.weight.shape[2:].numel() > 1
        and conv_table.choose("dense", x, [branch.dilation], False) == "torch_channels_last"
        for branch in branches
    )


def branch_output(x: Tensor, branch: Branch) -> Tensor:
    """(N, C_b, H, W), or (N, C_b, 1, 1) of a pooling branch."""
    if branch.pool:
        x = x.mean((2, 3), keepdim=True, dtype=accumulator(x.dtype)).to(x.dtype)
    if branch.depthwise is not None:
        kernel = branch.depthwise.shape[2:]
        return atrous_separable_conv2d(
            x,
            branch.depthwise,
            branch.weight,
            padding=[branch.dilation * (k // 2) for k in kernel],
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
        padding=[branch.dilation * (k // 2) for k in branch.weight.shape[2:]],
        dilation=branch.dilation,
        scale=branch.scale,
        shift=branch.shift,
        activation=branch.activation,
    )
