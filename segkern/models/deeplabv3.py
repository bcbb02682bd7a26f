"""DeepLab v3: a ResNet with holes and parallel atrous convolutions with image pooling."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from segkern.models._options import as_tuple, check_choice
from segkern.models._recipe import Recipe
from segkern.models._registry import register_model
from segkern.models._resize import resize_corners
from segkern.models._sizes import check_batch_statistics, check_image
from segkern.models.backbones import RESNETS, ResNet, load_imagenet
from segkern.models.backbones.resnet import scale_channels
from segkern.nn import ASPP

PAPER = (
    "L.-C. Chen, G. Papandreou, F. Schroff, H. Adam: Rethinking Atrous Convolution for Semantic "
    "Image Segmentation, 2017, arXiv:1706.05587"
)

# Rates of the pyramid at each output stride.
RATES = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}

# Shares of the new value in the running statistics of batch norm: 1 - 0.95 in the trunk and
# 1 - 0.9997 in the head, as the authors' code.
TRUNK_MOMENTUM = 0.05
HEAD_MOMENTUM = 3e-4

DROPOUT = 0.1


@dataclass(frozen=True)
class DeepLabV3Config:
    """Options of :class:`DeepLabV3`.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels.
        backbone: ``"resnet101"`` or ``"resnet50"``; ``"resnet17"`` for trials.
        output_stride: 16, or 8 with doubled rates: weights of one serve the other.
        stem: ``"plain"``, a 7x7 convolution, or ``"deep"``, three 3x3.
        multi_grid: Unit rates of the blocks of layer 4.
        rates: Of the pyramid; ``None`` is (6, 12, 18) at 16 and twice that at 8.
        norm_momentum: Share of the new value in the running statistics of every batch norm;
            ``None`` is 0.05 in the trunk and 0.0003 in the head, for the paper's 30 000 steps.
        width: Factor on all channels; 1 is the paper's.
    """

    num_classes: int = 21
    in_channels: int = 3
    backbone: str = "resnet101"
    output_stride: int = 16
    stem: str = "plain"
    multi_grid: tuple[int, ...] = (1, 2, 4)
    rates: tuple[int, ...] | None = None
    norm_momentum: float | None = None
    width: float = 1.0

    def __post_init__(self) -> None:
        as_tuple(self, "multi_grid", "rates")


class DeepLabV3(nn.Module):
    """DeepLab v3 with atrous spatial pyramid pooling.

    Args:
        config: See :class:`DeepLabV3Config`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size; multiples of 8 plus 1 align exactly.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``, enlarged with corner pixels
          on corner pixels.

    Raises (forward):
        ValueError: If the input has another number of axes or channels, or in training for a
            batch of one, whose pooled features have no variance.

    Paper: arXiv:1706.05587. The trunk's names are torchvision's and its stride is in the 3x3
    convolution, so that torchvision's ImageNet weights keep their meaning; the pyramid's names are
    those of torchvision's ``ASPP``.

    Deviations from the authors' code:
        - Its ResNet has the stride in the last block of the layer before; ours is torchvision's.
          At output stride 8 the first block of layer 3 keeps its rate, which is the exact à-trous
          form of that ResNet.
        - Image pooling is the last of the concatenated branches, the first there.
    """

    def __init__(self, config: DeepLabV3Config) -> None:
        super().__init__()
        check_choice("deeplabv3", "backbone", config.backbone, tuple(RESNETS))
        self.in_channels = config.in_channels
        self.backbone = ResNet(
            "deeplabv3",
            config.backbone,
            config.in_channels,
            output_stride=config.output_stride,
            stem=config.stem,
            multi_grid=config.multi_grid,
            width=config.width,
            momentum=TRUNK_MOMENTUM if config.norm_momentum is None else config.norm_momentum,
        )
        channels = scale_channels(256, config.width)
        rates = RATES[config.output_stride] if config.rates is None else config.rates
        self.aspp = make_aspp(self.backbone.channels, rates, channels, config.norm_momentum)
        self.classifier = nn.Conv2d(channels, config.num_classes, 1)
        init_head(self.aspp, self.classifier)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image("deeplabv3", image, self.in_channels)
        features, _ = self.backbone(image)
        check_pooling("deeplabv3", self.aspp, features)
        scores = self.classifier(self.aspp(features))
        return {"out": resize_corners(scores, image.shape[-2:])}

    def load_backbone(self, source: str | Path) -> None:
        """Start the trunk from ImageNet; ``recipe.input`` becomes ``"imagenet"``.

        Args:
            source: See :func:`segkern.models.backbones.load_imagenet`.
        """
        load_imagenet(self, self.backbone, self.config["backbone"], source)


def make_aspp(
    in_channels: int,
    rates: tuple[int, ...],
    channels: int,
    norm_momentum: float | None,
    separable: bool = False,
) -> ASPP:
    """The pyramid of DeepLab v3 and v3+ with their batch norm and dropout."""
    momentum = HEAD_MOMENTUM if norm_momentum is None else norm_momentum
    return ASPP(
        in_channels,
        rates,
        channels,
        separable=separable,
        norm_layer=partial(nn.BatchNorm2d, momentum=momentum),
        dropout=DROPOUT,
    )


def init_head(head: nn.Module, classifier: nn.Conv2d) -> None:
    """Normal with variance 2 / fan-in for the head, N(0, 0.01) for the classifier."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)


def check_pooling(network: str, aspp: ASPP, features: Tensor) -> None:
    """Refuse a batch of one in training by the name of the norm that sees one value a channel."""
    norm = aspp.convs[-1][2]
    check_batch_statistics(
        network, f"aspp.convs.{len(aspp.convs) - 1}.2", features[:, :, :1, :1], norm.training
    )


RECIPE = Recipe(
    optimizer="sgd",
    lr=7e-3,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="poly",
    power=0.9,
    batch_size=16,
    epochs=46,
    input="imagenet",
    scale=(0.5, 2.0),
    scale_step=0.25,
    crop=(513, 513),
    crop_pad="end",
    flip=True,
    notes=(
        "30 000 iterations, 46 epochs of the 10 582 images of trainaug, from ImageNet weights. "
        "Then a second stage on trainval at output stride 8 with freeze_norm and lr 0.001, again "
        "30 000. Measured at output stride 8 on the whole image, scales 0.5 to 1.75 and mirrored."
    ),
    source="arXiv:1706.05587 section 4; tensorflow/models research/deeplab/train.py",
)


@register_model(
    DeepLabV3Config,
    parameters=58_040_661,
    paper=PAPER,
    recipe=RECIPE,
    head="classifier.bias",
    reported={
        "VOC 2012 val mIoU, output stride 16": 77.21,
        "VOC 2012 val mIoU, output stride 8": 78.51,
        "VOC 2012 val mIoU, output stride 8, scales and mirrored": 79.77,
        "VOC 2012 test mIoU, COCO": 85.7,
        "Cityscapes test class IoU": 81.3,
    },
)
def deeplabv3(config: DeepLabV3Config) -> DeepLabV3:
    """DeepLab v3 on ResNet-101, 58.0 M parameters, 21 classes."""
    return DeepLabV3(config)
