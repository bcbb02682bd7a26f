"""The efficient spatial pyramid: reduce, parallel dilated branches, hierarchical sums."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segkern.ops._convolution import Epilogue, apply_epilogue
from segkern.ops.atrous_conv import atrous_conv2d


def esp_block(
    x: Tensor,
    reduce_weight: Tensor,
    branch_weights: Sequence[Tensor],
    *,
    stride: int = 1,
    dilations: Sequence[int] | None = None,
    residual: bool = False,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = None,
    activation_weight: Tensor | None = None,
) -> Tensor:
    """Reduce, split, transform, sum hierarchically, merge."""
    reduced = atrous_conv2d(
        x, reduce_weight, stride=stride, padding=[k // 2 for k in reduce_weight.shape[2:]]
    )
    rates = dilations if dilations is not None else [2**k for k in range(len(branch_weights))]
    outputs = [
        atrous_conv2d(reduced, weight, padding=rate, dilation=rate)
        for weight, rate in zip(branch_weights, rates, strict=True)
    ]
    for k in range(2, len(outputs)):
        outputs[k] = outputs[k] + outputs[k - 1]
    merged = torch.cat(outputs, 1)
    epilogue = Epilogue(scale, shift, None, activation, activation_weight)
    return apply_epilogue(merged + x if residual else merged, epilogue, merged.dtype)
