"""Atrous spatial pyramid pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segkern import ops
from segkern.nn.atrous import (
    AtrousConv2d,
    ConvNormAct,
    Norm,
    NormLayer,
    SeparableConv2d,
    folded_norm,
)


class PoolBranch(torch.nn.Sequential):
    """Image pooling: global average, 1x1 convolution, norm, activation; (N, C, 1, 1) out.

    Numbered as torchvision's ``ASPPPooling``, so that state dicts fit: convolution ``1``,
    norm ``2``.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_layer: NormLayer) -> None:
        block = ConvNormAct(in_channels, out_channels, 1, norm_layer=norm_layer)
        super().__init__(torch.nn.AdaptiveAvgPool2d(1), *block)

    def forward(self, input: Tensor) -> Tensor:
        self.check_batch(input)
        return super().forward(input)

    def check_batch(self, input: Tensor, name: str = "") -> None:
        """Raises ValueError, naming the norm, where that has one value a channel in training."""
        norm = self[2]
        if input.shape[0] == 1 and isinstance(norm, Norm) and norm.training:
            layer = f"{name}.2" if name else "2"
            raise ValueError(
                "ASPP: the image-pooling branch must see more than one image in training, got 1: "
                f"its {type(norm).__name__}, layer {layer!r}, has one value a channel to take a "
                "variance of; use a larger batch, put that layer in eval mode, or set "
                "image_pooling=False"
            )


class ASPP(torch.nn.Module):
    """Parallel atrous convolutions over one map, image pooling, and a projection of them all.

    The projection is accumulated branch by branch, so that the concatenation of the branches is
    never in memory, and the image-pooling branch enters it as one bias an image.

    Args:
        in_channels: Channels of the map.
        rates: One 3x3 branch a rate, beside the 1x1 branch.
        out_channels: Of each branch and of the projection.
        separable: Depthwise separable branches (DeepLab v3+).
        image_pooling: Whether there is an image-pooling branch.
        norm_layer: Makes the batch norm of each branch and of the projection.
        dropout: Probability after the projection, in training.

    State dict, as torchvision's: ``convs.0`` the 1x1 branch, ``convs.1`` onwards the rates, then
    image pooling, ``project``. Batch norm of the pooled branch needs two images in training.

    L.-C. Chen et al., arXiv:1706.05587 and 1802.02611.

    Example:
        >>> import torch
        >>> head = ASPP(16, (2, 4), out_channels=8).eval()
        >>> head(torch.zeros(1, 16, 9, 9)).shape
        torch.Size([1, 8, 9, 9])
    """

    def __init__(
        self,
        in_channels: int,
        rates: Sequence[int] = (6, 12, 18),
        out_channels: int = 256,
        *,
        separable: bool = False,
        image_pooling: bool = True,
        norm_layer: NormLayer = torch.nn.BatchNorm2d,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        branches: list[torch.nn.Module] = [
            ConvNormAct(in_channels, out_channels, 1, norm_layer=norm_layer)
        ]
        make = SeparableConv2d if separable else ConvNormAct
        branches += [
            make(in_channels, out_channels, 3, dilation=rate, norm_layer=norm_layer)
            for rate in rates
        ]
        if image_pooling:
            branches.append(PoolBranch(in_channels, out_channels, norm_layer))
        self.convs = torch.nn.ModuleList(branches)
        projection = ConvNormAct(
            len(branches) * out_channels, out_channels, 1, norm_layer=norm_layer
        )
        self.project = torch.nn.Sequential(*projection, torch.nn.Dropout(dropout))

    def forward(self, input: Tensor) -> Tensor:
        folded = self._folded()
        if folded is not None:
            branches, (scale, shift) = folded
            output = ops.aspp(input, branches, self.project[0].weight, scale=scale, shift=shift)
            return self.project[-1](output)
        total = None
        first = 0
        for index, branch in enumerate(self.convs):
            if isinstance(branch, PoolBranch):
                branch.check_batch(input, f"convs.{index}")
            value = branch(input)
            part = self.project[0].weight[:, first : first + value.shape[1]]
            first += value.shape[1]
            term = ops.atrous_conv2d(value, part.to(value.dtype))
            total = term if total is None else total + term
        for layer in self.project[1:]:
            total = layer(total)
        return total

    @staticmethod
    def _recognises(module: torch.nn.Module) -> bool:
        """Whether a module of another class is laid out as this one."""
        convs, project = getattr(module, "convs", None), getattr(module, "project", None)
        if not isinstance(convs, torch.nn.ModuleList) or not isinstance(
            project, torch.nn.Sequential
        ):
            return False
        if set(dict(module.named_children())) != {"convs", "project"} or len(convs) < 2:
            return False
        kinds = [type(layer) for layer in project]
        fits = kinds[:3] in _UNIT and kinds[3:] == [torch.nn.Dropout]
        return (
            fits
            and _keeps_size(project[0])
            and project[0].in_channels == sum(_outputs(branch) for branch in convs)
            and all(_is_unit(branch) for branch in convs[:-1])
            and (_is_unit(convs[-1]) or _is_pool(convs[-1]))
        )

    @classmethod
    def _adopt(cls, module: torch.nn.Module) -> None:
        for branch in module.convs:
            branch.__class__ = PoolBranch if _is_pool(branch) else ConvNormAct
        module.__class__ = cls

    def _folded(self) -> tuple[list[ops.Branch], tuple[Tensor, Tensor]] | None:
        """The pyramid with its batch norms as affine maps; None where one is not foldable."""
        last = folded_norm(self.project[1])
        branches = [_as_branch(branch) for branch in self.convs]
        if last is None or any(branch is None for branch in branches):
            return None
        return branches, last


_UNIT = (
    [torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.ReLU],
    [AtrousConv2d, torch.nn.BatchNorm2d, torch.nn.ReLU],
)


def _keeps_size(conv: torch.nn.Conv2d) -> bool:
    """Whether a convolution is dense, without bias, and keeps the size of the map."""
    kernel, rate, padding = conv.kernel_size, conv.dilation, conv.padding
    return (
        conv.stride == (1, 1)
        and conv.groups == 1
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and rate[0] == rate[1]
        and all(k % 2 == 1 for k in kernel)
        and padding == tuple(rate[i] * (kernel[i] // 2) for i in range(2))
    )


def _is_unit(module: torch.nn.Module) -> bool:
    return (
        isinstance(module, torch.nn.Sequential)
        and [type(layer) for layer in module] in _UNIT
        and _keeps_size(module[0])
    )


def _is_pool(module: torch.nn.Module) -> bool:
    return (
        isinstance(module, torch.nn.Sequential)
        and len(module) == 4
        and type(module[0]) is torch.nn.AdaptiveAvgPool2d
        and module[0].output_size in (1, (1, 1))
        and [type(layer) for layer in list(module)[1:]] in _UNIT
        and module[1].kernel_size == (1, 1)
        and _keeps_size(module[1])
    )


def _outputs(branch: torch.nn.Module) -> int:
    convs = [m for m in branch.modules() if isinstance(m, torch.nn.Conv2d)]
    return convs[-1].out_channels if convs else 0


def _as_branch(module: torch.nn.Module) -> ops.Branch | None:
    """One branch as :func:`segkern.ops.aspp` takes it; None where a norm cannot be folded."""
    if isinstance(module, PoolBranch):
        affine = folded_norm(module[2])
        return None if affine is None else ops.Branch(module[1].weight, *affine, pool=True)
    if isinstance(module, SeparableConv2d):
        inner, outer = module.depthwise.affine(), module.pointwise.affine()
        if inner is None or outer is None:
            return None
        return ops.Branch(
            module.pointwise.conv.weight,
            *outer,
            dilation=module.depthwise.conv.dilation[0],
            depthwise=module.depthwise.conv.weight,
            depthwise_scale=inner[0],
            depthwise_shift=inner[1],
        )
    affine = module.affine()
    if affine is None:
        return None
    return ops.Branch(module.conv.weight, *affine, dilation=module.conv.dilation[0])
