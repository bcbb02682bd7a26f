"""PSPNet: features averaged over 1, 2, 3 and 6 cells a side, beside those of an atrous ResNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from segkern import ops
from segkern.models._options import as_tuple, check_choice
from segkern.models._recipe import Recipe
from segkern.models._registry import register_model
from segkern.models._resize import pad_to_grid, resize_corners
from segkern.models._sizes import check_batch_statistics, check_image, crop_to
from segkern.models._weights import WeightsError
from segkern.models.backbones import RESNETS, ResNet, load_imagenet
from segkern.models.backbones.resnet import scale_channels
from segkern.nn import ConvNormAct

PAPER = (
    "H. Zhao, J. Shi, X. Qi, X. Wang, J. Jia: Pyramid Scene Parsing Network, CVPR 2017, "
    "arXiv:1612.01105"
)

# Share of the new value in the running statistics of every batch norm, 1 - 0.95 in Caffe's terms.
NORM_MOMENTUM = 0.05

DROPOUT = 0.1


@dataclass(frozen=True)
class PSPNetConfig:
    """Options of :class:`PSPNet`.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels.
        backbone: ``"resnet101"``, ``"resnet50"`` or ``"resnet152"``; ``"resnet17"`` for trials.
        stem: ``"deep"``, three 3x3 convolutions, or ``"plain"``, torchvision's 7x7.
        stride_in: ``"1x1"`` as the release, or ``"3x3"`` as torchvision and hszhao/semseg.
        rates: ``"exact"``, the à-trous form of the trunk with that stride: with ``"3x3"`` the first
            block of layers 3 and 4 keeps the rate before it; or ``"whole_layer"``, 2 and 4 in all
            their blocks, as hszhao/semseg trained its networks. With ``"1x1"`` both are the same.
        bins: Cells a side of the pyramid's levels.
        aux: Whether there is a second classifier on layer 3, which only training uses.
        norm_momentum: Share of the new value in the running statistics of every batch norm.
        width: Factor on all channels; 1 is the paper's.
    """

    num_classes: int = 21
    in_channels: int = 3
    backbone: str = "resnet101"
    stem: str = "deep"
    stride_in: str = "1x1"
    rates: str = "exact"
    bins: tuple[int, ...] = (1, 2, 3, 6)
    aux: bool = True
    norm_momentum: float = NORM_MOMENTUM
    width: float = 1.0

    def __post_init__(self) -> None:
        as_tuple(self, "bins")


class PyramidPooling(nn.Module):
    """The features beside their averages over cells, each reduced, normalised and enlarged.

    Args:
        in_channels: Channels of the features.
        channels: Of each level.
        bins: Cells a side of each level.

    Forward takes ``(N, in_channels, H, W)`` and returns ``(N, in_channels + len(bins) * channels,
    H, W)``, the features first. Cells that do not divide the map overlap by a pixel, as those of
    :func:`torch.nn.functional.adaptive_avg_pool2d`.
    """

    def __init__(self, in_channels: int, channels: int, bins: Sequence[int]) -> None:
        super().__init__()
        self.bins = tuple(bins)
        self.levels = nn.ModuleList(ConvNormAct(in_channels, channels, 1) for _ in bins)
        self.out_channels = in_channels + len(self.bins) * channels

    def forward(self, features: Tensor) -> Tensor:
        parts = [features]
        for pooled, level in zip(ops.pyramid_pool(features, self.bins), self.levels, strict=True):
            parts.append(resize_corners(level(pooled), features.shape[-2:]))
        return torch.cat(parts, dim=1)


class PSPNet(nn.Module):
    """PSPNet.

    Args:
        config: See :class:`PSPNetConfig`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size; padded inside with zeros, the mean pixel, to
          8k + 1.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``; in training with ``aux`` also
          ``"aux"``, the scores from layer 3, as large.

    Raises (forward):
        ValueError: If the input has another number of axes or channels, or in training for a
            batch of one where the pyramid has a level of one cell, whose norm has no variance, or
            which has 1x1 pixels.

    Paper: arXiv:1612.01105. At the paper's crops of 473 and 713 pixels all cells of the pyramid
    are equal, 60 / b and 90 / b pixels of features a side.

    Deviations from the release:
        - Maps that the cells do not divide are pooled over overlapping cells, as in the authors'
          PyTorch code; the Caffe networks have a fixed kernel for one size.
        - The pyramid's levels are concatenated as in that PyTorch code, the features and then
          1, 2, 3 and 6 cells; Caffe's order is the features, 6, 3, 2 and 1.
        - With ``stride_in="3x3"`` the rates are those of the exact à-trous form, unless
          ``rates="whole_layer"``, which files of hszhao/semseg choose by themselves.
        - Dropout before the classifiers drops elements, as Caffe's; semseg's drops channels.
    """

    def __init__(self, config: PSPNetConfig) -> None:
        super().__init__()
        check_choice("pspnet", "backbone", config.backbone, tuple(RESNETS))
        check_choice("pspnet", "rates", config.rates, ("exact", "whole_layer"))
        if not config.bins or any(b < 1 for b in config.bins):
            raise ValueError(f"pspnet: bins must be positive ints, got {config.bins}")
        self.in_channels = config.in_channels
        self.backbone = ResNet(
            "pspnet",
            config.backbone,
            config.in_channels,
            output_stride=8,
            stem=config.stem,
            stride_in=config.stride_in,
            exact=config.rates == "exact",
            ceil_pool=config.stride_in == "1x1",
            width=config.width,
        )
        channels = scale_channels(512, config.width)
        self.pyramid = PyramidPooling(self.backbone.channels, channels, config.bins)
        self.fuse = _conv(self.pyramid.out_channels, channels)
        self.classifier = nn.Conv2d(channels, config.num_classes, 1)
        self.head_names = ("pyramid", "fuse", "classifier")
        self.aux = None
        if config.aux:
            inner = scale_channels(256, config.width)
            self.aux = nn.Sequential(
                _conv(self.backbone.stage_channels[2], inner),
                nn.Conv2d(inner, config.num_classes, 1),
            )
            self.head_names += ("aux",)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = config.norm_momentum

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image("pspnet", image, self.in_channels)
        padded = pad_to_grid("pspnet", image, 8, 1)
        last = padded[..., ::8, ::8]
        check_batch_statistics("pspnet", "backbone.layer2.0.bn2", last, self.training)
        stages = self.backbone.stages(padded)
        for i, cells in enumerate(self.pyramid.bins):
            pooled = stages[-1][:, :, :cells, :cells]
            if cells == 1:
                check_batch_statistics("pspnet", f"pyramid.levels.{i}.1", pooled, self.training)
        output = {"out": self._enlarge(self.classifier(self.fuse(self.pyramid(stages[-1]))), image)}
        if self.training and self.aux is not None:
            output["aux"] = self._enlarge(self.aux(stages[3]), image)
        return output

    def _enlarge(self, scores: Tensor, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        return crop_to(resize_corners(scores, _grid(height, width)), height, width)

    def load_backbone(self, source: str | Path) -> None:
        """Start the trunk from ImageNet; ``recipe.input`` becomes ``"imagenet"``.

        Args:
            source: See :func:`segkern.models.backbones.load_imagenet`; for the deep stem a file
                under hszhao/semseg's names.

        Raises:
            WeightsError: If it does not fit, or is torchvision's for a network with the deep stem
                or with its stride in the 1x1 convolutions, which torchvision's has not.
        """
        if not Path(source).is_file():
            needed = {"stem": "plain", "stride_in": "3x3"}
            wrong = [f"{k}={v!r}" for k, v in needed.items() if self.config[k] != v]
            if wrong:
                raise WeightsError(
                    "pspnet: torchvision's ResNet has a plain stem and its stride in the 3x3 "
                    f"convolutions; build the network with {', '.join(wrong)} to start from it"
                )
        load_imagenet(self, self.backbone, self.config["backbone"], source)


def _grid(height: int, width: int) -> tuple[int, int]:
    """The size 8k + 1 that an image is padded to."""
    return height + (1 - height) % 8, width + (1 - width) % 8


def _conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU and dropout."""
    return nn.Sequential(ConvNormAct(in_channels, out_channels, 3), nn.Dropout(DROPOUT))


# 30 000 iterations are 46 epochs of the 10 582 images of VOC's trainaug.
RECIPE = Recipe(
    optimizer="sgd",
    lr=1e-2,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="poly",
    power=0.9,
    batch_size=16,
    epochs=46,
    input="imagenet",
    head_lr_mult=10.0,
    outputs={"out": 1.0, "aux": 0.4},
    scale=(0.5, 2.0),
    rotate=10.0,
    blur=5,
    crop=(473, 473),
    crop_pad="centre",
    flip=True,
    notes=(
        "30 000 iterations on VOC, 150 000 on ADE20K, 90 000 on Cityscapes with crops of 713; "
        "epochs 50, 100 and 200 in semseg. Statistics of batch norm over all devices. The paper "
        "turns and blurs on VOC and ADE20K alone, semseg on Cityscapes too. The Caffe networks "
        "take BGR less (103.939, 116.779, 123.68). Measured on windows of the crop's size at "
        "strides of two thirds of it; scales 0.5 to 1.75 and mirrored where said."
    ),
    source="arXiv:1612.01105 section 5; hszhao/PSPNet; hszhao/semseg config, tool/train.py",
)


@register_model(
    PSPNetConfig,
    parameters=68_073_706,
    paper=PAPER,
    recipe=RECIPE,
    head="classifier.bias",
    reported={
        "VOC 2012 test mIoU, ResNet-101": 82.6,
        "VOC 2012 test mIoU, ResNet-101, COCO": 85.41,
        "Cityscapes val class IoU, ResNet-101": 79.70,
        "Cityscapes val class IoU, ResNet-101, scales and mirrored": 80.91,
        "Cityscapes test class IoU, ResNet-101": 78.4,
        "ADE20K val mIoU, ResNet-50": 41.68,
        "ADE20K val pixel accuracy, ResNet-50": 80.04,
        "ADE20K val mIoU, ResNet-50, scales and mirrored": 42.78,
    },
)
def pspnet(config: PSPNetConfig) -> PSPNet:
    """PSPNet on ResNet-101, 65.7 M parameters and 2.4 M of the auxiliary output, 21 classes."""
    return PSPNet(config)
