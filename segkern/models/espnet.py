"""ESPNet: spatial pyramids of dilated convolutions in A, B and C, and with a light decoder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from segkern.models._options import check_choice
from segkern.models._prelu import PReLU
from segkern.models._recipe import Recipe
from segkern.models._registry import register_model
from segkern.models._sizes import InputSize, crop_to
from segkern.models._weights import load_encoder, open_weights
from segkern.nn import ConvNormAct, ESPModule

PAPER = (
    "S. Mehta, M. Rastegari, A. Caspi, L. Shapiro, H. Hajishirzi: ESPNet: Efficient Spatial "
    "Pyramid of Dilated Convolutions for Semantic Segmentation, ECCV 2018, arXiv:1803.06815"
)

NORM_EPS = 1e-3
SIZE_MULTIPLE = 8


@dataclass(frozen=True)
class ESPNetEncoderConfig:
    """Options of :class:`ESPNetEncoder`.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels.
        p: ESP modules of level 2 after the strided one, the paper's alpha2.
        q: ESP modules of level 3 after the strided one, the paper's alpha3.
        pad_mode: How sizes that are no multiples of 8 are padded: ``"replicate"``, ``"reflect"``
            or ``"zeros"``.
        strict_size: Refuse such sizes instead, as the release does.
    """

    num_classes: int = 20
    in_channels: int = 3
    p: int = 2
    q: int = 8
    pad_mode: str = "replicate"
    strict_size: bool = False


@dataclass(frozen=True)
class ESPNetBConfig(ESPNetEncoderConfig):
    """Options of ESPNet-B: those of :class:`ESPNetEncoderConfig`, and

    Attributes:
        concat_norm: Batch norm and PReLU after each concatenation, as the release has in C.
    """

    concat_norm: bool = True


@dataclass(frozen=True)
class ESPNetConfig(ESPNetEncoderConfig):
    """Options of :class:`ESPNet`: those of :class:`ESPNetEncoderConfig`, and

    Attributes:
        tail: What the decoder's last convolution sees beside its own features: ``"level1"``, the
            first convolution's 16 channels, as the Cityscapes release; ``"b1"``, these and the
            small image, normalised, as the training code and the CamVid release.
    """

    tail: str = "level1"


class NormAct(nn.Sequential):
    """Batch norm and PReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.BatchNorm2d(channels, eps=NORM_EPS), PReLU(channels))


class ESPNetEncoder(nn.Module):
    """The encoders ESPNet-A, -B and -C with their 1x1 classifier: scores at 1/8 of the size.

    Args:
        name: Registered name, for error messages.
        config: See :class:`ESPNetEncoderConfig`.
        concatenate: B and C: the strided module's output joins that of its level.
        reinforce: C: the image, averaged down, joins levels 1 and 2.
        concat_norm: Batch norm and PReLU after each concatenation.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size of at least one pixel; sizes that are no
          multiples of 8 are padded inside.
        - Output: a dict with ``"out"``, ``(N, num_classes, ceil(H/8), ceil(W/8))``.

    Raises (forward):
        ValueError: If the input has another number of axes or channels; with ``strict_size``, if
            H or W is no multiple of 8.

    Paper: arXiv:1803.06815. Convolutions without bias, batch norm with an eps of 1e-3, a PReLU
    slope per channel. A and B are not in the release; B here has the release's batch norm and
    PReLU after each concatenation unless told otherwise.
    """

    def __init__(
        self,
        name: str,
        config: ESPNetEncoderConfig,
        *,
        concatenate: bool = True,
        reinforce: bool = True,
        concat_norm: bool = True,
    ) -> None:
        super().__init__()
        _check(name, config)
        self.input_size = InputSize.of(name, config, SIZE_MULTIPLE)
        self.concatenate, self.reinforce = concatenate, reinforce
        image = config.in_channels if reinforce else 0
        after = NormAct if concat_norm else _nothing
        self.level1 = _conv(config.in_channels, 16, stride=2)
        self.b1 = after(16 + image) if reinforce else nn.Identity()
        self.level2_0 = ESPModule(16 + image, 64, stride=2)
        self.level2 = nn.ModuleList(ESPModule(64, 64) for _ in range(config.p))
        wide = (128 if concatenate else 64) + image
        self.b2 = after(wide) if concatenate else nn.Identity()
        self.level3_0 = ESPModule(wide, 128, stride=2)
        self.level3 = nn.ModuleList(ESPModule(128, 128) for _ in range(config.q))
        wide = 256 if concatenate else 128
        self.b3 = after(wide) if concatenate else nn.Identity()
        self.classifier = nn.Conv2d(wide, config.num_classes, 1, bias=False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"out": self.run(self.input_size(image))[0]}

    def run(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores at 1/8, level 1 at 1/2, the same with the image, and level 2 at 1/4."""
        level1 = self.level1(image)
        joined1 = level1
        if self.reinforce:
            half = shrink(image)
            joined1 = self.b1(torch.cat([level1, half], dim=1))
        first = self.level2_0(joined1)
        x = first
        for module in self.level2:
            x = module(x)
        if self.concatenate:
            parts = [x, first, shrink(half)] if self.reinforce else [x, first]
            x = torch.cat(parts, dim=1)
        level2 = self.b2(x)
        first = self.level3_0(level2)
        x = first
        for module in self.level3:
            x = module(x)
        if self.concatenate:
            x = torch.cat([first, x], dim=1)
        return self.classifier(self.b3(x)), level1, joined1, level2


class ESPNet(nn.Module):
    """ESPNet-C with the paper's decoder: scores at the full size.

    Args:
        config: See :class:`ESPNetConfig`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size of at least one pixel; sizes that are no
          multiples of 8 are padded inside and the scores cropped back.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``.

    Raises (forward):
        ValueError: If the input has another number of axes or channels; with ``strict_size``, if
            H or W is no multiple of 8.

    Paper: arXiv:1803.06815. The released weights load by their own names. With fewer than five
    classes the decoder's ESP module has as many branches as classes.
    """

    def __init__(self, config: ESPNetConfig) -> None:
        super().__init__()
        _check("espnet", config)
        check_choice("espnet", "tail", config.tail, ("level1", "b1"))
        classes = config.num_classes
        self.input_size = InputSize.of("espnet", config, SIZE_MULTIPLE)
        self.tail = config.tail
        self.encoder = ESPNetEncoder("espnet", config)
        self.br = nn.BatchNorm2d(classes, eps=NORM_EPS)
        self.up_l3 = _double(classes)
        self.level3_C = nn.Conv2d(128 + config.in_channels, classes, 1, bias=False)
        self.combine_l2_l3 = nn.Sequential(
            NormAct(2 * classes),
            ESPModule(2 * classes, classes, min(5, classes), residual=False),
        )
        self.up_l2 = nn.Sequential(_double(classes), NormAct(classes))
        early = 16 if config.tail == "level1" else 16 + config.in_channels
        self.conv = _conv(early + classes, classes)
        self.classifier = _double(classes)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        scores, level1, joined1, level2 = self.encoder.run(self.input_size(image))
        x = torch.cat([self.level3_C(level2), self.up_l3(self.br(scores))], dim=1)
        x = self.up_l2(self.combine_l2_l3(x))
        x = self.conv(torch.cat([x, level1 if self.tail == "level1" else joined1], dim=1))
        return {"out": crop_to(self.classifier(x), *image.shape[-2:])}

    def load_backbone(self, source: str | Path) -> None:
        """Take a trained ``espnet_c`` as the encoder, the paper's second training stage.

        Args:
            source: Weights of ``espnet_c``, ours or the release's, with the same p and q.

        Raises:
            WeightsError: If they are not such weights.
        """
        opened = open_weights("espnet_c", source)
        load_encoder("espnet", self.encoder, opened.state_dict, opened.path.name)


def shrink(image: Tensor) -> Tensor:
    """The image at half its size, averaged over 3x3 with the padding counted."""
    return functional.avg_pool2d(image, 3, stride=2, padding=1)


def _conv(in_channels: int, out_channels: int, stride: int = 1) -> ConvNormAct:
    norm = partial(nn.BatchNorm2d, eps=NORM_EPS)
    return ConvNormAct(in_channels, out_channels, 3, stride, 1, norm_layer=norm, activation="prelu")


def _double(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, 2, stride=2, bias=False)


def _nothing(channels: int) -> nn.Identity:
    return nn.Identity()


def _check(name: str, config: ESPNetEncoderConfig) -> None:
    for key in ("p", "q"):
        value = getattr(config, key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{name}: {key} must be an int of at least 0, got {value!r}")


# Factors on 512x1024, and the pixels that the release trims at most.
PASSES = (
    (1.5, 1.5, 100),
    (1.40625, 1.25, 100),
    (1.0, 1.0, 32),
    (0.75, 0.75, 32),
    (0.5, 0.5, 32),
)

RECIPE_ENCODER = Recipe(
    optimizer="adam",
    lr=5e-4,
    weight_decay=5e-4,
    schedule="step",
    step_epochs=500,
    gamma=0.5,
    batch_size=12,
    epochs=1500,
    input="espnet",
    class_weights="espnet",
    loss_reduction="weights",
    resize=(512, 1024),
    passes=PASSES,
    vertical_flip=True,
    notes=(
        "First stage, on labels at 1/8. Unlabelled pixels are the 20th class of Cityscapes. 300 "
        "epochs of five passes, at 768x1536, 720x1280, 512x1024, 384x768 and 256x512, the rate "
        "halved after each 100; here every pass is an epoch. The release mirrors top and bottom, "
        "though its text says horizontally."
    ),
    source="arXiv:1803.06815 section 4; sacmehta/ESPNet train/main.py, train/loadData.py",
)

RECIPE = dataclasses.replace(
    RECIPE_ENCODER,
    batch_size=6,
    notes="Second stage, started from espnet_c (weights_backbone). " + RECIPE_ENCODER.notes,
)


_register = partial(register_model, paper=PAPER, head="classifier.weight")


@_register(ESPNetEncoderConfig, parameters=330_272, recipe=RECIPE_ENCODER)
def espnet_a(config: ESPNetEncoderConfig) -> ESPNetEncoder:
    """ESPNet-A, the plain chain of ESP modules, 0.33 M parameters, 20 classes, scores at 1/8."""
    return ESPNetEncoder("espnet_a", config, concatenate=False, reinforce=False)


@_register(ESPNetBConfig, parameters=348_384, recipe=RECIPE_ENCODER)
def espnet_b(config: ESPNetBConfig) -> ESPNetEncoder:
    """ESPNet-B, A with feature maps shared within levels, 0.35 M parameters, scores at 1/8."""
    return ESPNetEncoder("espnet_b", config, reinforce=False, concat_norm=config.concat_norm)


@_register(ESPNetEncoderConfig, parameters=349_449, recipe=RECIPE_ENCODER)
def espnet_c(config: ESPNetEncoderConfig) -> ESPNetEncoder:
    """ESPNet-C, B with the image at each level, 0.35 M parameters, 20 classes, scores at 1/8."""
    return ESPNetEncoder("espnet_c", config)


@_register(
    ESPNetConfig,
    parameters=364_569,
    recipe=RECIPE,
    reported={
        "Cityscapes test class IoU": 60.336,
        "Cityscapes test category IoU": 82.178,
        "CamVid test mIoU": 55.64,
        "VOC 2012 test mIoU": 63.01,
    },
)
def espnet(config: ESPNetConfig) -> ESPNet:
    """ESPNet, 0.36 M parameters, 20 classes."""
    return ESPNet(config)
