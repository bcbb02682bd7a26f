"""Floating-point operations of a network, counted without computing anything."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from segkern.models._registry import create_model, get_entry
from segkern.ops import conv_table

# Kinds of convolutions that kernels of ours run; torch's counter knows torch's.
_AS_TORCH = {kind: "torch" for kind in conv_table.KINDS}


def count_flops(
    name: str, size: tuple[int, int], *, num_classes: int | None = None, in_channels: int = 3
) -> int | None:
    """Operations of a network's forward pass in evaluation on one image.

    Convolutions and matrix products count, two operations a multiplication and addition; norms,
    activations, pooling, resampling, CRFs and the filters of the deep parsing network do not.

    Args:
        name: Registered name.
        size: Height and width of the image.
        num_classes, in_channels: As for :func:`segkern.create_model`.

    Returns:
        The count by :class:`torch.utils.flop_counter.FlopCounterMode`; None for methods without
        such operations, as forests are.

    Raises:
        ValueError: If the name is unknown or an argument is out of range.

    Example:
        >>> count_flops("fcn32s", (360, 480), num_classes=11)
        278659788288
    """
    if get_entry(name).recipe.optimizer == "fit":
        return None
    with FakeTensorMode():
        network = create_model(name, num_classes=num_classes, in_channels=in_channels).eval()
        with conv_table.override(**_AS_TORCH), FlopCounterMode(display=False) as counter:
            with torch.no_grad():
                network(torch.empty(1, in_channels, *size))
    return counter.get_total_flops()
