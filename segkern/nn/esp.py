"""The ESP module of ESPNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segkern import ops
from segkern.nn.atrous import NormLayer, folded_norm


class _Conv(torch.nn.Module):
    """Holder of one convolution under the released name ``conv``."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            bias=False,
        )


class _NormAct(torch.nn.Module):
    """Holder of norm and activation under the released names ``bn`` and ``act``."""

    def __init__(self, channels: int, norm_layer: NormLayer | None, activation: bool) -> None:
        super().__init__()
        self.bn = None if norm_layer is None else norm_layer(channels)
        self.act = torch.nn.PReLU(channels) if activation else None


class ESPModule(torch.nn.Module):
    """Reduce, ``branches`` dilated convolutions, hierarchical sums, residual, norm, PReLU.

    Args:
        in_channels, out_channels: M and N. A branch has n = floor(N / branches) channels and the
            first N - (branches - 1) n.
        branches: K; branch k has rate 2^k.
        stride: 2 makes the downsampling module: a 3x3 reduction with stride 2, and ``bn`` and
            ``act`` directly in this module, as in the released code.
        residual: Adds the input; None means where it fits (stride 1 and M = N).
        kernel_size: n of the paper, odd.
        norm_layer: None leaves the norm out. The released networks use eps 1e-3, the default.
        activation: Whether a PReLU follows.

    State dict, as released: ``c1.conv.weight``, ``d1.conv.weight``, ``d2.conv.weight``, ... and
    ``bn.bn.*``, ``bn.act.weight`` (``bn.*``, ``act.weight`` where stride is 2).

    S. Mehta et al., arXiv:1803.06815, section 3. The running sum leaves d1 out, as released.

    Example:
        >>> import torch
        >>> ESPModule(64, 64).eval()(torch.zeros(1, 64, 16, 32)).shape
        torch.Size([1, 64, 16, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        branches: int = 5,
        *,
        stride: int = 1,
        residual: bool | None = None,
        kernel_size: int = 3,
        norm_layer: NormLayer | None = lambda channels: torch.nn.BatchNorm2d(channels, eps=1e-3),
        activation: bool = True,
    ) -> None:
        super().__init__()
        if branches < 1 or out_channels // max(branches, 1) < 1:
            raise ValueError(
                f"ESPModule: branches must be from 1 to out_channels, got {branches} for "
                f"{out_channels} channels"
            )
        if stride not in (1, 2):
            raise ValueError(f"ESPModule: stride must be 1 or 2, got {stride}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"ESPModule: kernel_size must be odd, got {kernel_size}")
        fits = stride == 1 and in_channels == out_channels
        if residual and not fits:
            raise ValueError(
                "ESPModule: residual must be False where the input does not have the shape of the "
                f"output, got {in_channels} to {out_channels} channels and stride {stride}"
            )
        self.residual = fits if residual is None else residual
        self.stride = stride
        self.rates = [2**k for k in range(branches)]
        width = out_channels // branches
        if stride == 1:
            self.c1 = _Conv(in_channels, width, 1, 1)
        else:
            self.c1 = _Conv(in_channels, width, 3, 1)
            self.c1.conv.stride = (2, 2)
        for k, rate in enumerate(self.rates):
            wide = out_channels - (branches - 1) * width if k == 0 else width
            self.add_module(f"d{rate}", _Conv(width, wide, kernel_size, rate))
        if stride == 1:
            self.bn = _NormAct(out_channels, norm_layer, activation)
        else:
            self.bn = None if norm_layer is None else norm_layer(out_channels)
            self.act = torch.nn.PReLU(out_channels) if activation else None

    def extra_repr(self) -> str:
        return f"rates={self.rates}, stride={self.stride}, residual={self.residual}"

    def _norm_and_activation(self) -> Sequence[torch.nn.Module | None]:
        if self.stride == 1:
            return self.bn.bn, self.bn.act
        return self.bn, self.act

    def forward(self, input: Tensor) -> Tensor:
        norm, act = self._norm_and_activation()
        weights = [getattr(self, f"d{rate}").conv.weight for rate in self.rates]
        affine = (None, None) if norm is None else folded_norm(norm)
        folded = affine is not None
        output = ops.esp_block(
            input,
            self.c1.conv.weight,
            weights,
            stride=self.stride,
            dilations=self.rates,
            residual=self.residual,
            scale=affine[0] if folded else None,
            shift=affine[1] if folded else None,
            activation="prelu" if folded and act is not None else None,
            activation_weight=act.weight if folded and act is not None else None,
        )
        if folded:
            return output
        output = norm(output)
        return output if act is None else act(output)
