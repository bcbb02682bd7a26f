"""DeepLab v3+: DeepLab v3 as an encoder, and a small decoder on low-level features."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from segkern.models._options import as_tuple, check_choice
from segkern.models._recipe import Recipe
from segkern.models._registry import register_model
from segkern.models._resize import resize_corners
from segkern.models._sizes import check_image
from segkern.models.backbones import RESNETS, XCEPTIONS, ResNet, Xception, load_imagenet
from segkern.models.backbones.resnet import scale_channels
from segkern.models.deeplabv3 import (
    HEAD_MOMENTUM,
    RATES,
    TRUNK_MOMENTUM,
    check_pooling,
    init_head,
    make_aspp,
)
from segkern.nn import ConvNormAct, SeparableConv2d

PAPER = (
    "L.-C. Chen, Y. Zhu, G. Papandreou, F. Schroff, H. Adam: Encoder-Decoder with Atrous Separable "
    "Convolution for Semantic Image Segmentation, ECCV 2018, arXiv:1802.02611"
)


@dataclass(frozen=True)
class DeepLabV3PlusConfig:
    """Options of :class:`DeepLabV3Plus`.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels.
        backbone: ``"xception65"``, ``"xception41"``, ``"resnet101"`` or ``"resnet50"``;
            ``"xception20"`` and ``"resnet17"`` for trials.
        output_stride: Of the encoder: 16, or 8 with doubled rates. Weights of one serve the other.
        separable: Depthwise separable convolutions in pyramid and decoder, or standard ones.
        stem: Of a ResNet: ``"plain"`` or ``"deep"``.
        multi_grid: Unit rates of the last three convolutions with holes; ``None`` is (1, 2, 4) for
            a ResNet and (1, 1, 1) for an Xception.
        rates: Of the pyramid; ``None`` is (6, 12, 18) at 16 and twice that at 8.
        norm_momentum: As :class:`DeepLabV3Config`; Xception has 0.0003 too.
        width: Factor on all channels; 1 is the paper's.
    """

    num_classes: int = 21
    in_channels: int = 3
    backbone: str = "xception65"
    output_stride: int = 16
    separable: bool = True
    stem: str = "plain"
    multi_grid: tuple[int, ...] | None = None
    rates: tuple[int, ...] | None = None
    norm_momentum: float | None = None
    width: float = 1.0

    def __post_init__(self) -> None:
        as_tuple(self, "multi_grid", "rates")


class DeepLabV3Plus(nn.Module):
    """DeepLab v3's encoder and a decoder at a quarter of the size.

    Args:
        config: See :class:`DeepLabV3PlusConfig`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size; multiples of 16 plus 1 align exactly.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``.

    Raises (forward):
        ValueError: If the input has another number of axes or channels, or in training for a
            batch of one, whose pooled features have no variance.

    Paper: arXiv:1802.02611. The low-level features are Xception's ``block2`` after its second
    convolution, before a ReLU, or a ResNet's last convolution in the second block of layer 1,
    before the sum; both as the release has them. Its Xception has no ReLU between depthwise and
    pointwise convolutions except in the last unit, where the paper has one everywhere: here as in
    the release. Deviations of a ResNet and of the pyramid as :class:`DeepLabV3`.
    """

    def __init__(self, config: DeepLabV3PlusConfig) -> None:
        super().__init__()
        check_choice("deeplabv3plus", "backbone", config.backbone, (*XCEPTIONS, *RESNETS))
        self.in_channels = config.in_channels
        self.backbone = _make_backbone(config)
        channels, low = (scale_channels(c, config.width) for c in (256, 48))
        rates = RATES[config.output_stride] if config.rates is None else config.rates
        self.aspp = make_aspp(
            self.backbone.channels, rates, channels, config.norm_momentum, config.separable
        )
        momentum = HEAD_MOMENTUM if config.norm_momentum is None else config.norm_momentum
        norm = partial(nn.BatchNorm2d, momentum=momentum)
        make = SeparableConv2d if config.separable else ConvNormAct
        self.project = ConvNormAct(self.backbone.low_channels, low, 1, norm_layer=norm)
        self.decoder = nn.Sequential(
            make(channels + low, channels, 3, norm_layer=norm),
            make(channels, channels, 3, norm_layer=norm),
        )
        self.classifier = nn.Conv2d(channels, config.num_classes, 1)
        init_head(nn.ModuleList([self.aspp, self.project, self.decoder]), self.classifier)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image("deeplabv3plus", image, self.in_channels)
        features, low = self.backbone(image)
        check_pooling("deeplabv3plus", self.aspp, features)
        encoded = resize_corners(self.aspp(features), low.shape[-2:])
        decoded = self.decoder(torch.cat([encoded, self.project(low)], dim=1))
        return {"out": resize_corners(self.classifier(decoded), image.shape[-2:])}

    def load_backbone(self, source: str | Path) -> None:
        """Start the trunk from ImageNet.

        Args:
            source: See :func:`segkern.models.backbones.load_imagenet`; for an Xception a file with
                the names of :class:`segkern.models.backbones.Xception`. With a ResNet,
                ``recipe.input`` becomes ``"imagenet"``.
        """
        load_imagenet(self, self.backbone, self.config["backbone"], source)


def _make_backbone(config: DeepLabV3PlusConfig) -> ResNet | Xception:
    momentum = config.norm_momentum
    if config.backbone in XCEPTIONS:
        return Xception(
            "deeplabv3plus",
            config.backbone,
            config.in_channels,
            output_stride=config.output_stride,
            multi_grid=(1, 1, 1) if config.multi_grid is None else config.multi_grid,
            width=config.width,
            momentum=HEAD_MOMENTUM if momentum is None else momentum,
        )
    blocks = RESNETS[config.backbone][3]
    return ResNet(
        "deeplabv3plus",
        config.backbone,
        config.in_channels,
        output_stride=config.output_stride,
        stem=config.stem,
        multi_grid=(1, 2, 4)[:blocks] if config.multi_grid is None else config.multi_grid,
        width=config.width,
        momentum=TRUNK_MOMENTUM if momentum is None else momentum,
    )


RECIPE = Recipe(
    optimizer="sgd",
    lr=7e-3,
    momentum=0.9,
    weight_decay=4e-5,
    schedule="poly",
    power=0.9,
    batch_size=16,
    epochs=46,
    input="symmetric",
    depthwise_decay=False,
    scale=(0.5, 2.0),
    scale_step=0.25,
    crop=(513, 513),
    crop_pad="end",
    flip=True,
    notes=(
        "30 000 iterations on VOC's trainaug from ImageNet weights; lr 0.0001 when fine-tuned on "
        "trainval. Cityscapes: crop 769x769, 90 000 iterations. Measured on the whole image, at "
        "output stride 16 or 8, best with scales 0.5 to 1.75 (Cityscapes 0.75, 1, 1.25) and "
        "mirrored."
    ),
    source="arXiv:1802.02611 section 4; tensorflow/models research/deeplab/train.py",
)

RECIPE_RESNET = dataclasses.replace(RECIPE, weight_decay=1e-4)


@register_model(
    DeepLabV3PlusConfig,
    parameters=41_055_413,
    paper=PAPER,
    recipe=RECIPE,
    recipe_of=lambda config: RECIPE_RESNET if config.backbone.startswith("resnet") else RECIPE,
    head="classifier.bias",
    reported={
        "VOC 2012 val mIoU, Xception-65, COCO, output stride 16": 82.20,
        "VOC 2012 val mIoU, Xception-65, COCO, output stride 8, scales and mirrored": 83.58,
        "VOC 2012 test mIoU, Xception-65": 87.80,
        "VOC 2012 val mIoU, ResNet-101, standard convolutions, output stride 16": 78.85,
        "Cityscapes val class IoU, Xception-65, output stride 16": 78.79,
        "Cityscapes test class IoU": 82.1,
    },
)
def deeplabv3plus(config: DeepLabV3PlusConfig) -> DeepLabV3Plus:
    """DeepLab v3+ on Xception-65, 41.1 M parameters, 21 classes."""
    return DeepLabV3Plus(config)
