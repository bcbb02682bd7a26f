"""A bilinear upsampling layer over :mod:`segkern.ops`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from segkern import ops


class BilinearUpsample(torch.nn.Upsample):
    r"""Bilinear resampling whose backward is deterministic on every device, and fast on a CPU.

    Takes the place of :class:`torch.nn.Upsample` with ``mode="bilinear"``, of which it is a
    subclass, and of :class:`torch.nn.UpsamplingBilinear2d`: the same arguments without the mode, no
    parameters, the same ``repr``, the same numbers to rounding.

    Args:
        size: Height and width of the output, or one int for both.
        scale_factor: Output pixels per input pixel, one number or two, instead of a size.
        align_corners: Corner pixels' centres on each other instead of their corners.
        recompute_scale_factor: As in torch: place pixels by the output's size, which is rounded
            down, and not by a factor that is no integer. Where neither that nor ``align_corners``
            is asked for, such a factor is left to torch.

    Shape:
        - Input: ``(N, C, H, W)``, a floating dtype.
        - Output: ``(N, C, Ho, Wo)`` in the input's dtype and memory format.

    Raises:
        ValueError: In the forward, if not exactly one of size and factor was given.

    Example:
        >>> import torch
        >>> BilinearUpsample(scale_factor=2)(torch.ones(1, 3, 4, 5)).shape
        torch.Size([1, 3, 8, 10])
    """

    def __init__(
        self,
        size: int | tuple[int, int] | None = None,
        scale_factor: float | tuple[float, float] | None = None,
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
    ) -> None:
        super().__init__(size, scale_factor, "bilinear", align_corners, recompute_scale_factor)

    @classmethod
    def from_torch(cls, module: torch.nn.Upsample) -> BilinearUpsample:
        """A new layer with the arguments and the training flag of ``module``.

        Raises:
            TypeError: If ``module`` is not a :class:`torch.nn.Upsample` that is bilinear.
        """
        if not isinstance(module, torch.nn.Upsample) or module.mode != "bilinear":
            raise TypeError(
                f"BilinearUpsample: module must be a bilinear torch.nn.Upsample, got {module!r}"
            )
        layer = cls(
            module.size, module.scale_factor, module.align_corners, module.recompute_scale_factor
        )
        return layer.train(module.training)

    @classmethod
    def _adopt(cls, module: torch.nn.Upsample) -> None:
        """Turn ``module`` itself into a layer of this class: :func:`segkern.nn.convert`'s step."""
        module.__class__ = cls

    def forward(self, input: Tensor) -> Tensor:
        size = self._output_size(input)
        if size is None:
            return super().forward(input)
        return ops.resize_bilinear(input, size, bool(self.align_corners))

    def _output_size(self, input: Tensor) -> list[int] | None:
        """Height and width of the output; None for what is torch's to do, or to refuse."""
        if input.dim() != 4 or not input.is_floating_point():
            return None
        if (self.size is None) == (self.scale_factor is None):
            return None
        given = self.size if self.size is not None else self.scale_factor
        pair = list(given) if isinstance(given, (tuple, list)) else [given, given]
        if self.size is not None:
            return pair
        by_size = self.align_corners or self.recompute_scale_factor
        if all(factor.is_integer() for factor in pair):
            return [n * int(factor) for n, factor in zip(input.shape[2:], pair, strict=True)]
        if not by_size:
            return None
        return [math.floor(n * factor) for n, factor in zip(input.shape[2:], pair, strict=True)]
