"""LinkNet: a ResNet-18 whose stages are added to those of a light decoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from segkern.models._options import check_choice
from segkern.models._recipe import Recipe
from segkern.models._registry import register_model
from segkern.models._sizes import InputSize, check_batch_statistics, crop_to
from segkern.models.backbones import ResNet, load_imagenet
from segkern.models.backbones.resnet import BASIC_RESNETS, scale_channels

PAPER = (
    "A. Chaurasia, E. Culurciello: LinkNet: Exploiting Encoder Representations for Efficient "
    "Semantic Segmentation, VCIP 2017, arXiv:1707.03718"
)

# Of the decoder's batch norms; the encoder and the first of the final block have torch's.
NORM_EPS = 1e-3

SIZE_MULTIPLE = 32


@dataclass(frozen=True)
class LinkNetConfig:
    """Options of :class:`LinkNet`.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels.
        backbone: ``"resnet18"``, or ``"resnet34"``.
        pad_mode: How sizes that are no multiples of 32 are padded: ``"replicate"``, ``"reflect"``
            or ``"zeros"``.
        strict_size: Refuse such sizes instead, as the release does.
        width: Factor on all channels; 1 is the paper's.
    """

    num_classes: int = 19
    in_channels: int = 3
    backbone: str = "resnet18"
    pad_mode: str = "replicate"
    strict_size: bool = False
    width: float = 1.0


class Decoder(nn.Sequential):
    """1x1 to a quarter of the channels, transposed 3x3, 1x1; each with bias, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        inner = in_channels // 4
        up = nn.ConvTranspose2d(inner, inner, 3, stride, padding=1, output_padding=stride - 1)
        super().__init__(
            nn.Conv2d(in_channels, inner, 1),
            nn.BatchNorm2d(inner, eps=NORM_EPS),
            nn.ReLU(inplace=True),
            up,
            nn.BatchNorm2d(inner, eps=NORM_EPS),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, out_channels, 1),
            nn.BatchNorm2d(out_channels, eps=NORM_EPS),
            nn.ReLU(inplace=True),
        )


class LinkNet(nn.Module):
    """LinkNet, as the authors' Torch definition has it.

    Args:
        config: See :class:`LinkNetConfig`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size of at least one pixel; sizes that are no
          multiples of 32 are padded inside and the scores cropped back.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``.

    Raises (forward):
        ValueError: If the input has another number of axes or channels; with ``strict_size``, if
            H or W is no multiple of 32; in training for one image of 32x32 or less, whose last
            features have no variance.

    Paper: arXiv:1707.03718. Each decoder's output is added to the input of the encoder stage that
    it mirrors, for the last the pooled stem, and a ReLU follows each addition. The last decoder
    has stride 1; two transposed convolutions enlarge by 4. The trunk's names are torchvision's.

    Deviation from the release: sizes that are no multiples of 32 are padded, not refused.
    """

    def __init__(self, config: LinkNetConfig) -> None:
        super().__init__()
        check_choice("linknet", "backbone", config.backbone, tuple(BASIC_RESNETS))
        self.input_size = InputSize.of("linknet", config, SIZE_MULTIPLE)
        self.backbone = ResNet(
            "linknet", config.backbone, config.in_channels, output_stride=32, width=config.width
        )
        widths = self.backbone.stage_channels
        self.decoder4 = Decoder(widths[3], widths[2], 2)
        self.decoder3 = Decoder(widths[2], widths[1], 2)
        self.decoder2 = Decoder(widths[1], widths[0], 2)
        self.decoder1 = Decoder(widths[0], widths[0], 1)
        channels = scale_channels(32, config.width)
        self.final = nn.Sequential(
            nn.ConvTranspose2d(widths[0], channels, 3, stride=2, padding=1, output_padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels, eps=NORM_EPS),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.ConvTranspose2d(channels, config.num_classes, 2, stride=2)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        padded = self.input_size(image)
        last = padded[..., ::SIZE_MULTIPLE, ::SIZE_MULTIPLE]
        check_batch_statistics("linknet", "backbone.layer4.0.bn1", last, self.training)
        pooled, e1, e2, e3, e4 = self.backbone.stages(padded)
        x = torch.relu(e3 + self.decoder4(e4))
        x = torch.relu(e2 + self.decoder3(x))
        x = torch.relu(e1 + self.decoder2(x))
        x = torch.relu(pooled + self.decoder1(x))
        return {"out": crop_to(self.classifier(self.final(x)), *image.shape[-2:])}

    def load_backbone(self, source: str | Path) -> None:
        """Start the trunk from ImageNet; ``recipe.input`` becomes ``"imagenet"``.

        Args:
            source: See :func:`segkern.models.backbones.load_imagenet`.
        """
        load_imagenet(self, self.backbone, self.config["backbone"], source)


RECIPE = Recipe(
    optimizer="rmsprop",
    lr=5e-4,
    schedule="step",
    step_epochs=100,
    gamma=0.1,
    batch_size=8,
    epochs=300,
    input="unit",
    class_weights="enet",
    loss_reduction="weights",
    resize=(512, 1024),
    notes=(
        "Encoder from ImageNet. No weight decay, its line is commented out, and no augmentation. "
        "Every 100 epochs the release multiplies the rate by 1e-7, as ENet's code does where its "
        "text says 0.1, which is the factor here. Class weights are 1 / ln(1.02 + p) in the paper; "
        "the code divides the histogram by its largest entry. CamVid: 576x768."
    ),
    source="arXiv:1707.03718 section 4; e-lab/LinkNet opts.lua, train.lua, models/model.lua",
)


@register_model(
    LinkNetConfig,
    parameters=11_536_691,
    paper=PAPER,
    recipe=RECIPE,
    head="classifier.bias",
    reported={
        "Cityscapes val class IoU": 76.44,
        "Cityscapes val class iIoU": 60.78,
        "CamVid mIoU": 69.10,
        "CamVid iIoU": 55.83,
    },
)
def linknet(config: LinkNetConfig) -> LinkNet:
    """LinkNet on ResNet-18, 11.5 M parameters, 19 classes."""
    return LinkNet(config)
