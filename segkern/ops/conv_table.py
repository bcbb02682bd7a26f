"""Which kernel runs a convolution: one table, filled from measurements, that a user can override.

Choices:

- ``"segkern"``: the kernel of this package, in the layout of the input;
- ``"torch"``: torch's convolution (oneDNN on the CPU, cuDNN on CUDA), in the input's layout;
- ``"torch_channels_last"``: torch's convolution in channels-last, with the input and the output
  converted where they are not;
- ``"wgmma"``, for the kind ``"dense"`` only: the kernel of this package for GPUs of compute
  capability 9.0. It is never taken by default and never replaced by another: a call that it does
  not take (see :func:`segkern.ops.dense.check_wgmma`) is an error.

The rows of :data:`TABLE` are tried in order. They hold what was measured (docs/benchmarks.md); a
kernel of this package that has not been measured on a device is not in the rows of that device,
and a kernel that does not exist for a device cannot be chosen there at all. The kernels for CUDA
have not been measured yet: ``override(depthwise="segkern", dense="segkern")`` runs them, the dense
one where it takes the call (:func:`segkern.ops.dense.takes`: float16, bfloat16, and float32 in TF32
where torch allows that to convolutions), and torch elsewhere. ``override(grouped="segkern")`` runs
the one for groups of at most 32 channels (:func:`segkern.ops.grouped.takes`),
``override(separable="segkern")`` the fused separable one (:func:`segkern.ops.separable.takes`),
``override(esp="segkern")`` the spatial pyramid's, for inference (:func:`segkern.ops.esp.takes`).
``override(dense="wgmma")`` runs the one for Hopper.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

CHOICES = ("segkern", "torch", "torch_channels_last")
ONLY_DENSE = ("wgmma",)
KINDS = ("depthwise", "grouped", "dense", "pointwise", "separable", "esp")

#: Kernels of this package that exist, by device type and kind.
KERNELS = {
    "cpu": ("depthwise", "grouped", "pointwise", "separable", "esp"),
    "cuda": ("depthwise", "grouped", "dense", "separable", "esp"),
}

_FULL = (torch.float32, torch.float64)
_FP16 = (torch.float16,)
_BF16 = (torch.bfloat16,)


class Rule(NamedTuple):
    """One row: where all that is not None agrees, `choice` runs.

    device: ``"cpu"`` or ``"cuda"``. kind: of :data:`KINDS`. dtypes: of the input. channels_last:
    layout of the input. rates: least and largest dilation, channels: least and most channels a
    group, all inclusive. why: the measurement.
    """

    choice: str
    device: str
    kind: str
    dtypes: tuple[torch.dtype, ...] | None = None
    channels_last: bool | None = None
    rates: tuple[int, int] | None = None
    channels: tuple[int, int] | None = None
    why: str = ""


TABLE: tuple[Rule, ...] = (
    Rule("segkern", "cpu", "depthwise", _FP16, why="7x to 30x torch"),
    Rule("torch", "cpu", "depthwise", _BF16, True, (1, 6), why="oneDNN is 0.8x to 1.9x ours there"),
    Rule("torch", "cpu", "depthwise", None, True, (1, 1), why="oneDNN is 0.7x to 1.2x ours there"),
    Rule("segkern", "cpu", "depthwise", why="1.1x to 2.5x at rate 6, 7x to 20x at rate 18"),
    Rule("segkern", "cpu", "pointwise", _FULL, why="2.0x oneDNN at 2048 to 256 channels, 65x65"),
    Rule("segkern", "cpu", "pointwise", _FP16),
    Rule("torch", "cpu", "pointwise", why="bfloat16: oneDNN has bfloat16 products"),
    Rule("segkern", "cpu", "separable", _FULL, why="1.5x to 1.9x of the two one after the other"),
    Rule("segkern", "cpu", "separable", _FP16),
    Rule("torch", "cpu", "separable", why="bfloat16: the pointwise half is faster in oneDNN"),
    Rule("torch_channels_last", "cpu", "dense", None, False, (12, 2**31), why="1.3x to 2x of NCHW"),
    Rule("torch", "cpu", "dense"),
    Rule(
        "segkern", "cpu", "grouped", _FULL, False, channels=(1, 8), why="1.1x to 4x, backward too"
    ),
    Rule("torch", "cpu", "grouped", why="oneDNN is faster with more channels a group"),
    Rule("segkern", "cpu", "esp", why="1.5x to 2.6x of the composition"),
)

_overrides: dict[str, str] = {}


def choose(
    kind: str, x: Tensor, dilation: list[int], channels_last: bool, channels: int = 1
) -> str:
    """The choice for a convolution of `kind` with input `x`, `channels` of a group at most."""
    device = x.device.type
    forced = _overrides.get(kind)
    if forced is not None and (forced != "segkern" or has_kernel(device, kind)):
        return forced
    rate = max(dilation)
    for rule in TABLE:
        if (
            rule.device == device
            and rule.kind == kind
            and (rule.dtypes is None or x.dtype in rule.dtypes)
            and (rule.channels_last is None or rule.channels_last == channels_last)
            and (rule.rates is None or rule.rates[0] <= rate <= rule.rates[1])
            and (rule.channels is None or rule.channels[0] <= channels <= rule.channels[1])
        ):
            return rule.choice
    return "torch"


def has_kernel(device: str, kind: str) -> bool:
    """Whether this package has a kernel of `kind` for a device type."""
    return kind in KERNELS.get(device, ())


@contextmanager
def override(**choices: str) -> Iterator[None]:
    """Choices by kind for the calls inside a ``with``, for measurements and tests.

    ``"segkern"`` has no effect on devices for which there is no such kernel.

    Raises:
        ValueError: an unknown kind or choice.

    Example:
        >>> from segkern.ops import conv_table
        >>> with conv_table.override(depthwise="torch"):
        ...     pass
    """
    for kind, choice in choices.items():
        if kind not in KINDS:
            raise ValueError(f"override: kind must be one of {', '.join(KINDS)}, got {kind!r}")
        choices_here = CHOICES + ONLY_DENSE if kind == "dense" else CHOICES
        if choice not in choices_here:
            raise ValueError(
                f"override: {kind} must be one of {', '.join(map(repr, choices_here))}, "
                f"got {choice!r}"
            )
    before = dict(_overrides)
    _overrides.update(choices)
    try:
        yield
    finally:
        _overrides.clear()
        _overrides.update(before)
