"""DeepLab v2: summed atrous pyramids on VGG16 or ResNet-101, the latter at three scales."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from segkern.models._options import check_choice
from segkern.models._recipe import Recipe
from segkern.models._refine import CRFSettings, check_crf, refine
from segkern.models._registry import register_model
from segkern.models._resize import interp_size, pad_to_grid, resize_corners
from segkern.models._sizes import check_image, crop_to
from segkern.models._weights import WeightsError
from segkern.models.backbones import RESNETS, ResNet, VGG16Features, load_imagenet
from segkern.models.backbones.resnet import scale_channels
from segkern.models.deeplabv1 import LARGE_FOV_POOLS, DenseHead, init_caffe
from segkern.nn import AtrousConv2d, freeze_batch_norm

PAPER = (
    "L.-C. Chen, G. Papandreou, I. Kokkinos, K. Murphy, A. L. Yuille: DeepLab: Semantic Image "
    "Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully Connected CRFs, "
    "TPAMI 2018, arXiv:1606.00915"
)

HEADS = {
    "aspp_l": (6, 12, 18, 24),
    "aspp_s": (2, 4, 8, 12),
    "largefov": (12,),
}

# Shrink and zoom of Caffe's Interp for the smaller scales, in percent.
SCALES = {75: (4, 3), 50: (2, 1)}

CRF_VGG = CRFSettings(bilateral=(49.0, 5.0, 4.0), gaussian=(3.0, 3.0))
CRF_RESNET = CRFSettings(bilateral=(67.0, 3.0, 4.0), gaussian=(1.0, 3.0))


@dataclass(frozen=True)
class DeepLabV2Config:
    """Options of :class:`DeepLabV2`.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels.
        backbone: ``"resnet101"`` or ``"vgg16"``; also ``"resnet50"``, and ``"resnet17"`` for
            trials.
        head: ``"aspp_l"`` (rates 6, 12, 18, 24), ``"aspp_s"`` (2, 4, 8, 12) or ``"largefov"``
            (12).
        multi_scale: Run at scales 1, 0.75 and 0.5 and take the largest score; ``None`` is True on
            a ResNet and False on VGG16, as the paper.
        stride_in: Of a ResNet: ``"1x1"`` as the original, or ``"3x3"`` for torchvision's weights;
            each with the rates that are its exact à-trous form.
        dense_crf: End with the dense CRF in evaluation; the output is then its log-marginals.
        width: Factor on all channels; 1 is the paper's.
    """

    num_classes: int = 21
    in_channels: int = 3
    backbone: str = "resnet101"
    head: str = "aspp_l"
    multi_scale: bool | None = None
    stride_in: str = "1x1"
    dense_crf: bool = False
    width: float = 1.0


class DeepLabV2(nn.Module):
    """DeepLab v2, as the authors' Caffe definitions have it.

    Args:
        config: See :class:`DeepLabV2Config`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size; padded inside with zeros, the mean pixel, to
          8k + 1.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``; in training also
          ``"logits"``, the scores at 1/8 of the padded image, and with ``multi_scale`` those of
          each scale, ``"scale_100"``, ``"scale_75"`` (as large as ``"logits"``) and
          ``"scale_50"``: the paper's loss is on all of them.

    Raises (forward):
        ValueError: If the input has another number of axes or channels.

    Paper: arXiv:1606.00915. Batch norm of the ResNet is frozen, its pool rounds up, and the heads
    are bare convolutions with bias, summed. Smaller scales are resampled once each, with corners
    on corners, to the sizes of Caffe's ``Interp``.

    Deviation from the release: the output of the 0.5 scale joins the loss at its own size, that of
    0.75 after it was enlarged, which ports do in both ways.
    """

    def __init__(self, config: DeepLabV2Config) -> None:
        super().__init__()
        check_choice("deeplabv2", "backbone", config.backbone, ("vgg16", *RESNETS))
        check_choice("deeplabv2", "head", config.head, tuple(HEADS))
        check_crf("deeplabv2", config.dense_crf, config.in_channels)
        self.in_channels, self.dense_crf = config.in_channels, config.dense_crf
        self.is_vgg = config.backbone == "vgg16"
        self.multi_scale = not self.is_vgg if config.multi_scale is None else config.multi_scale
        rates = HEADS[config.head]
        if self.is_vgg:
            self.backbone = VGG16Features(config.in_channels, LARGE_FOV_POOLS, width=config.width)
            init_caffe(self.backbone)
            channels = scale_channels(1024, config.width)
            self.branches = nn.ModuleList(
                DenseHead(self.backbone.channels, 3, rate, channels, config.num_classes)
                for rate in rates
            )
            self.head_names = tuple(f"branches.{i}.fc8" for i in range(len(rates)))
            return
        self.backbone = ResNet(
            "deeplabv2",
            config.backbone,
            config.in_channels,
            output_stride=8,
            stride_in=config.stride_in,
            ceil_pool=True,
            width=config.width,
        )
        freeze_batch_norm(self.backbone)
        self.branches = nn.ModuleList(
            AtrousConv2d(self.backbone.channels, config.num_classes, 3, padding=r, dilation=r)
            for r in rates
        )
        self.head_names = ("branches",)
        for branch in self.branches:
            nn.init.normal_(branch.weight, std=0.01)
            nn.init.zeros_(branch.bias)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image("deeplabv2", image, self.in_channels)
        padded = pad_to_grid("deeplabv2", image, 8, 1)
        full = logits = self.scores(padded)
        extra = {}
        if self.multi_scale:
            extra["scale_100"] = full
            for percent, (shrink, zoom) in SCALES.items():
                size = tuple(interp_size(length, shrink, zoom) for length in padded.shape[-2:])
                scores = self.scores(resize_corners(padded, size))
                enlarged = resize_corners(scores, full.shape[-2:])
                extra[f"scale_{percent}"] = enlarged if percent == 75 else scores
                logits = torch.maximum(logits, enlarged)
        out = crop_to(resize_corners(logits, padded.shape[-2:]), *image.shape[-2:])
        if self.training:
            return {"out": out, "logits": logits, **extra}
        if self.dense_crf:
            out = refine(self, out, image, CRF_VGG if self.is_vgg else CRF_RESNET)
        return {"out": out}

    def scores(self, image: Tensor) -> Tensor:
        """Scores at 1/8 of one scale."""
        features, _ = self.backbone(image)
        total = self.branches[0](features)
        for branch in self.branches[1:]:
            total = total + branch(features)
        return total

    def load_backbone(self, source: str | Path) -> None:
        """Start the trunk from ImageNet; ``recipe.input`` becomes ``"imagenet"``.

        On VGG16 every branch's fc6 and fc7 start from VGG16's too, see
        :meth:`segkern.models.deeplabv1.DeepLabV1.load_backbone`.

        Args:
            source: See :func:`segkern.models.backbones.load_imagenet`.

        Raises:
            WeightsError: If it does not fit, or is torchvision's for a ResNet with its stride in
                the 1x1 convolutions, which has the same names and is another network.
        """
        if not self.is_vgg and self.config["stride_in"] == "1x1" and not Path(source).is_file():
            raise WeightsError(
                "deeplabv2: torchvision's ResNet has its stride in the 3x3 convolutions; build the "
                "network with stride_in='3x3' to start from it"
            )
        state_dict = load_imagenet(self, self.backbone, self.config["backbone"], source)
        if self.is_vgg:
            for branch in self.branches:
                branch.load_dense(state_dict)


# An epoch of trainaug is 1058 iterations of 10 images.
RECIPE = Recipe(
    optimizer="sgd",
    lr=2.5e-4,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="poly",
    power=0.9,
    batch_size=10,
    micro_batch=1,
    epochs=19,
    input="caffe",
    bias_lr_mult=2.0,
    bias_decay_mult=0.0,
    head_lr_mult=10.0,
    outputs={"logits": 1.0, "scale_100": 1.0, "scale_75": 1.0, "scale_50": 1.0},
    label_grid="corners",
    scale=(0.5, 1.5),
    crop=(321, 321),
    crop_pad="end",
    flip=True,
    notes=(
        "20 000 iterations on VOC's trainaug, ResNet from MS-COCO weights, VGG16 from ImageNet's. "
        "Measured on images padded to 513x513. CRF as released: ResNet w1 4, position 67, colour "
        "3, smoothness 3 and 1; VGG16 4, 49, 5, 3 and 3."
    ),
    source="arXiv:1606.00915 section 4; deeplab-public-ver2 voc2012; kazuto1011/deeplab-pytorch",
)

RECIPE_VGG = dataclasses.replace(RECIPE, lr=1e-3, micro_batch=None, scale=None)


@register_model(
    DeepLabV2Config,
    parameters=44_048_532,
    paper=PAPER,
    recipe=RECIPE,
    recipe_of=lambda config: RECIPE_VGG if config.backbone == "vgg16" else RECIPE,
    head="branches.0.bias",
    reported={
        "VOC 2012 val mIoU, ResNet-101": 76.35,
        "VOC 2012 val mIoU, ResNet-101, CRF": 77.69,
        "VOC 2012 test mIoU, ResNet-101, CRF": 79.7,
        "VOC 2012 val mIoU, VGG16, ASPP-L": 68.96,
        "VOC 2012 val mIoU, VGG16, ASPP-L, CRF": 71.57,
        "VOC 2012 val mIoU, VGG16, ASPP-S, CRF": 69.73,
        "Cityscapes test class IoU": 70.4,
    },
)
def deeplabv2(config: DeepLabV2Config) -> DeepLabV2:
    """DeepLab v2 with ASPP-L on ResNet-101, 44.0 M parameters, 21 classes."""
    return DeepLabV2(config)
