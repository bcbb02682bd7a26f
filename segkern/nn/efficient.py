"""The units that the ESP paper compares its module with: MobileNet, ShuffleNet, ASP."""

from __future__ import annotations

import torch
from torch import Tensor

from segkern.nn.atrous import AtrousConv2d, ConvNormAct, NormLayer


class MobileNetUnit(torch.nn.Sequential):
    """Depthwise n x n and pointwise convolution, each with norm and ReLU: n²M + MN weights.

    A. Howard et al., arXiv:1704.04861.

    Example:
        >>> import torch
        >>> MobileNetUnit(8, 16).eval()(torch.zeros(1, 8, 9, 9)).shape
        torch.Size([1, 16, 9, 9])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        norm_layer: NormLayer | None = torch.nn.BatchNorm2d,
    ) -> None:
        super().__init__(
            ConvNormAct(
                in_channels,
                in_channels,
                kernel_size,
                stride,
                groups=in_channels,
                bias=False,
                norm_layer=norm_layer,
            ),
            ConvNormAct(in_channels, out_channels, 1, bias=False, norm_layer=norm_layer),
        )


class ShuffleNetUnit(torch.nn.Module):
    """Grouped 1x1, shuffle, depthwise, grouped 1x1, addition: d(M + N)/g + n²d weights.

    Args:
        in_channels, out_channels: M and N; with stride 1 they must be equal, with stride 2 the
            unit concatenates the averaged input, and its own branch gives N - M channels.
        groups: g, divides M, d and the branch's outputs.
        width: d, of the bottleneck; None means a quarter of N.
        kernel_size, stride: of the depthwise convolution.
        first_grouped: False leaves the first 1x1 convolution ungrouped (first unit of stage 2).

    X. Zhang et al., arXiv:1707.01083, figure 2.

    Example:
        >>> import torch
        >>> ShuffleNetUnit(16, 16, groups=4).eval()(torch.zeros(1, 16, 8, 8)).shape
        torch.Size([1, 16, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int = 4,
        *,
        width: int | None = None,
        kernel_size: int = 3,
        stride: int = 1,
        first_grouped: bool = True,
        norm_layer: NormLayer | None = torch.nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        if stride == 1 and in_channels != out_channels:
            raise ValueError(
                "ShuffleNetUnit: out_channels must be in_channels with stride 1, got "
                f"{in_channels} and {out_channels}"
            )
        branch = out_channels if stride == 1 else out_channels - in_channels
        width = out_channels // 4 if width is None else width
        for name, value in (("in_channels", in_channels), ("width", width), ("branch", branch)):
            if groups < 1 or value < 1 or value % groups != 0:
                raise ValueError(
                    f"ShuffleNetUnit: groups must divide {name}, {value}, got {groups}"
                )
        self.stride = stride
        self.groups = groups
        self.reduce = ConvNormAct(
            in_channels,
            width,
            1,
            groups=groups if first_grouped else 1,
            bias=False,
            norm_layer=norm_layer,
        )
        self.depthwise = ConvNormAct(
            width,
            width,
            kernel_size,
            stride,
            groups=width,
            bias=False,
            norm_layer=norm_layer,
            activation=None,
        )
        self.expand = ConvNormAct(
            width,
            branch,
            1,
            groups=groups,
            bias=False,
            norm_layer=norm_layer,
            activation="relu" if stride != 1 else None,
        )

    def forward(self, input: Tensor) -> Tensor:
        hidden = torch.nn.functional.channel_shuffle(self.reduce(input), self.groups)
        hidden = self.depthwise(hidden)
        if self.stride == 1:
            return torch.relu(self.expand(hidden) + input)
        short = torch.nn.functional.avg_pool2d(input, 3, self.stride, 1)
        return torch.cat([short, self.expand(hidden)], 1)


class ASPUnit(torch.nn.Module):
    """K parallel dilated n x n convolutions M to N at rates 2^k, concatenated: K n²MN weights.

    The unit of table 1 of the ESP paper, without norms and activations.

    Example:
        >>> import torch
        >>> ASPUnit(4, 6, branches=3)(torch.zeros(1, 4, 9, 9)).shape
        torch.Size([1, 18, 9, 9])
    """

    def __init__(
        self, in_channels: int, out_channels: int, branches: int = 4, kernel_size: int = 3
    ) -> None:
        super().__init__()
        if branches < 1 or kernel_size % 2 == 0:
            raise ValueError(
                "ASPUnit: branches must be at least 1 and kernel_size odd, got "
                f"{branches} and {kernel_size}"
            )
        self.branches = torch.nn.ModuleList(
            AtrousConv2d(
                in_channels,
                out_channels,
                kernel_size,
                padding=2**k * (kernel_size // 2),
                dilation=2**k,
                bias=False,
            )
            for k in range(branches)
        )

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([branch(input) for branch in self.branches], 1)
