"""Copies between the two memory formats, for kernels that are faster in the other one."""

from __future__ import annotations

import torch
from torch import Tensor

from segkern import _load  # noqa: F401  registers the schema


def to_layout(x: Tensor, channels_last: bool) -> Tensor:
    """`x` (N, C, H, W) in channels-last or contiguous memory; itself where it lies so."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if x.is_contiguous(memory_format=layout):
        return x
    if x.device.type != "cpu":
        return x.contiguous(memory_format=layout)
    return torch.ops.segkern._relayout.default(x, channels_last)


@torch.library.register_fake("segkern::_relayout")
def _relayout_fake(input, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty_like(input, memory_format=layout)


def _setup(ctx, inputs, output):
    pass


def _backward(ctx, grad):
    return grad, None


torch.library.register_autograd("segkern::_relayout", _backward, setup_context=_setup)
