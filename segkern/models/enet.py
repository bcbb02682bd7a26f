"""ENet: real-time segmentation with bottlenecks, early downsampling and routed pooling indices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from segkern.models._prelu import PReLU
from segkern.models._recipe import Recipe
from segkern.models._registry import register_model
from segkern.models._sizes import (
    InputSize,
    check_batch_statistics,
    check_pad_mode,
    crop_to,
)
from segkern.models._weights import load_encoder, open_weights
from segkern.nn import MaxPool2d, MaxUnpool2d

PAPER = (
    "A. Paszke, A. Chaurasia, S. Kim, E. Culurciello: ENet: A Deep Neural Network Architecture "
    "for Real-Time Semantic Segmentation, 2016, arXiv:1606.02147"
)

# Three halvings, each of which must come out even for the decoder to restore it.
SIZE_MULTIPLE = 8

INITIAL_CHANNELS = 16
NORM_EPS = 1e-3

# Sections 2 and 3: kind and dilation of the blocks x.1 to x.8.
SECTION = (
    ("regular", 1),
    ("dilated", 2),
    ("asymmetric", 1),
    ("dilated", 4),
    ("regular", 1),
    ("dilated", 8),
    ("asymmetric", 1),
    ("dilated", 16),
)


@dataclass(frozen=True)
class ENetConfig:
    """Options of :class:`ENet` and :class:`ENetEncoder`.

    Attributes:
        num_classes: Output channels. The released code counts the unlabelled class: 12 for
            CamVid, 20 for Cityscapes.
        in_channels: Input channels, below 16; the first convolution fills up to 16.
        dropout_early: Rate of channel dropout in blocks 1.0 to 1.4.
        dropout: Rate of channel dropout in the later encoder blocks.
        decoder_prelu: PReLU in the decoder too. The released code has ReLU there, the authors'
            published Cityscapes model has PReLU. Without meaning for :class:`ENetEncoder`.
        pad_mode: How the right and the bottom are padded to a multiple of 8, and the scores
            cropped back: ``"replicate"``, ``"reflect"`` or ``"zeros"``.
        strict_size: Refuse other sizes with a ValueError instead.
    """

    num_classes: int = 12
    in_channels: int = 3
    dropout_early: float = 0.01
    dropout: float = 0.1
    decoder_prelu: bool = False
    pad_mode: str = "replicate"
    strict_size: bool = False

    def __post_init__(self) -> None:
        check_pad_mode("enet", self.pad_mode)
        if not 1 <= self.in_channels < INITIAL_CHANNELS:
            raise ValueError(
                f"enet: in_channels must be 1 to {INITIAL_CHANNELS - 1}, got {self.in_channels}"
            )


class InitialBlock(nn.Module):
    """Convolution and pooled image side by side: ``(N, in, H, W)`` to ``(N, 16, H/2, W/2)``."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, INITIAL_CHANNELS - in_channels, 3, stride=2, padding=1)
        self.pool = MaxPool2d(2)
        self.norm = nn.BatchNorm2d(INITIAL_CHANNELS, eps=NORM_EPS)
        self.act = PReLU(INITIAL_CHANNELS)

    def forward(self, image: Tensor) -> Tensor:
        return self.act(self.norm(torch.cat([self.conv(image), self.pool(image)], dim=1)))


class Bottleneck(nn.Module):
    """Encoder block without a change of size: regular, dilated or asymmetric.

    Args:
        channels: Channels in and out; a quarter of them inside.
        kind: ``"regular"`` and ``"dilated"`` have a 3x3 convolution in the middle,
            ``"asymmetric"`` a 1x5 and a 5x1 with nothing between them.
        dilation: Of the 3x3 convolution.
        dropout: Rate of channel dropout at the end of the branch.
    """

    def __init__(self, channels: int, kind: str, dilation: int, dropout: float) -> None:
        super().__init__()
        inner = channels // 4
        self.reduce = nn.Conv2d(channels, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner, eps=NORM_EPS)
        self.act1 = PReLU(inner)
        if kind == "asymmetric":
            self.conv = nn.Sequential(
                nn.Conv2d(inner, inner, (1, 5), padding=(0, 2), bias=False),
                nn.Conv2d(inner, inner, (5, 1), padding=(2, 0)),
            )
        else:
            self.conv = nn.Conv2d(inner, inner, 3, padding=dilation, dilation=dilation)
        self.norm2 = nn.BatchNorm2d(inner, eps=NORM_EPS)
        self.act2 = PReLU(inner)
        self.expand = nn.Conv2d(inner, channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels, eps=NORM_EPS)
        self.dropout = nn.Dropout2d(dropout)
        self.act = PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.norm1(self.reduce(x)))
        y = self.act2(self.norm2(self.conv(y)))
        y = self.dropout(self.norm3(self.expand(y)))
        return self.act(x + y)


class DownBottleneck(nn.Module):
    """Encoder block that halves the size: 2x2 convolution of stride 2 beside a max pool.

    Args:
        in_channels: Channels of the input, the pool and its indices.
        out_channels: Channels of the output; the pooled branch is filled up with zeros.
        dropout: Rate of channel dropout at the end of the branch.

    Forward returns the output ``(N, out, H/2, W/2)`` and the pooling indices.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        inner = out_channels // 4
        self.extra = out_channels - in_channels
        self.reduce = nn.Conv2d(in_channels, inner, 2, stride=2, bias=False)
        self.norm1 = nn.BatchNorm2d(inner, eps=NORM_EPS)
        self.act1 = PReLU(inner)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(inner, eps=NORM_EPS)
        self.act2 = PReLU(inner)
        self.expand = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels, eps=NORM_EPS)
        self.dropout = nn.Dropout2d(dropout)
        self.pool = MaxPool2d(2, return_indices=True)
        self.act = PReLU(out_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.act1(self.norm1(self.reduce(x)))
        y = self.act2(self.norm2(self.conv(y)))
        y = self.dropout(self.norm3(self.expand(y)))
        pooled, indices = self.pool(x)
        pooled = functional.pad(pooled, (0, 0, 0, 0, 0, self.extra))
        return self.act(pooled + y), indices


class DecoderBottleneck(nn.Module):
    """Decoder block without a change of size: ReLU, no dropout.

    Args:
        channels: Channels in and out; a quarter of them inside.
        prelu: PReLU instead of ReLU.
    """

    def __init__(self, channels: int, prelu: bool) -> None:
        super().__init__()
        inner = channels // 4
        self.reduce = nn.Conv2d(channels, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner, eps=NORM_EPS)
        self.act1 = _decoder_act(inner, prelu)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(inner, eps=NORM_EPS)
        self.act2 = _decoder_act(inner, prelu)
        self.expand = nn.Conv2d(inner, channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels, eps=NORM_EPS)
        self.act = _decoder_act(channels, prelu)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.norm1(self.reduce(x)))
        y = self.act2(self.norm2(self.conv(y)))
        return self.act(x + self.norm3(self.expand(y)))


class UpBottleneck(nn.Module):
    """Decoder block that doubles the size: transposed convolution beside a max unpool.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output and of the indices.
        prelu: PReLU instead of ReLU.

    Forward takes the input, the indices and the size ``(H, W)`` that the pool had seen.
    """

    def __init__(self, in_channels: int, out_channels: int, prelu: bool) -> None:
        super().__init__()
        inner = out_channels // 4
        self.reduce = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner, eps=NORM_EPS)
        self.act1 = _decoder_act(inner, prelu)
        self.conv = nn.ConvTranspose2d(inner, inner, 3, stride=2, padding=1, output_padding=1)
        self.norm2 = nn.BatchNorm2d(inner, eps=NORM_EPS)
        self.act2 = _decoder_act(inner, prelu)
        self.expand = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels, eps=NORM_EPS)
        self.project = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm_project = nn.BatchNorm2d(out_channels, eps=NORM_EPS)
        self.unpool = MaxUnpool2d(2)
        self.act = _decoder_act(out_channels, prelu)

    def forward(self, x: Tensor, indices: Tensor, size: tuple[int, int]) -> Tensor:
        y = self.act1(self.norm1(self.reduce(x)))
        y = self.act2(self.norm2(self.conv(y)))
        y = self.norm3(self.expand(y))
        unpooled = self.unpool(self.norm_project(self.project(x)), indices, size)
        return self.act(unpooled + y)


class Encoder(nn.Module):
    """Initial block and sections 1 to 3: ``(N, in, H, W)`` to ``(N, 128, H/8, W/8)``.

    ``down1`` and ``down2`` are the paper's bottlenecks 1.0 and 2.0; ``section2.3`` is 2.3.
    Forward returns the features and, of each pool, its indices and the size ``(H, W)`` it saw.
    """

    def __init__(self, config: ENetConfig) -> None:
        super().__init__()
        early, late = config.dropout_early, config.dropout
        self.initial = InitialBlock(config.in_channels)
        self.down1 = DownBottleneck(INITIAL_CHANNELS, 64, early)
        self.section1 = _numbered([Bottleneck(64, "regular", 1, early) for _ in range(4)])
        self.down2 = DownBottleneck(64, 128, late)
        self.section2 = _numbered([Bottleneck(128, kind, d, late) for kind, d in SECTION])
        self.section3 = _numbered([Bottleneck(128, kind, d, late) for kind, d in SECTION])

    def forward(self, image: Tensor) -> tuple[Tensor, list[tuple[Tensor, tuple[int, int]]]]:
        x1 = self.initial(image)
        y1, indices1 = self.down1(x1)
        x2 = self.section1(y1)
        check_batch_statistics("enet", "encoder.down2.norm1", x2[..., ::2, ::2], self.training)
        y2, indices2 = self.down2(x2)
        routes = [(indices1, tuple(x1.shape[-2:])), (indices2, tuple(x2.shape[-2:]))]
        return self.section3(self.section2(y2)), routes


class Decoder(nn.Module):
    """Sections 4 and 5 and the full convolution: ``(N, 128, H/8, W/8)`` to ``(N, C, H, W)``.

    ``up4`` and ``up5`` are the paper's bottlenecks 4.0 and 5.0; ``section4.1`` is 4.1.
    """

    def __init__(self, config: ENetConfig) -> None:
        super().__init__()
        prelu = config.decoder_prelu
        self.up4 = UpBottleneck(128, 64, prelu)
        self.section4 = _numbered([DecoderBottleneck(64, prelu) for _ in range(2)])
        self.up5 = UpBottleneck(64, INITIAL_CHANNELS, prelu)
        self.section5 = _numbered([DecoderBottleneck(INITIAL_CHANNELS, prelu)])
        self.fullconv = nn.ConvTranspose2d(INITIAL_CHANNELS, config.num_classes, 2, stride=2)

    def forward(self, x: Tensor, routes: list[tuple[Tensor, tuple[int, int]]]) -> Tensor:
        (indices1, size1), (indices2, size2) = routes
        x = self.section4(self.up4(x, indices2, size2))
        x = self.section5(self.up5(x, indices1, size1))
        return self.fullconv(x)


class ENet(nn.Module):
    """ENet, as the authors' Torch7 release defines it.

    Args:
        config: See :class:`ENetConfig`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size of at least one pixel; sizes that are no
          multiples of 8 are padded inside and the scores cropped back.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``.

    Raises (forward):
        ValueError: If the input has another number of axes or channels; with ``strict_size``, if
            H or W is no multiple of 8; in training, if the encoder comes down to one 1x1 map.

    Paper: arXiv:1606.02147. Every bottleneck works at a quarter of its output channels, PReLU has
    a slope per channel, batch norm an eps of 1e-3, and the unpooled branch is projected first.

    Deviations from the release:
        - Batch norm scales start at 1; Torch7 drew them from U(0, 1).
        - Channel dropout scales at training time, Torch7's at test time: the same expectation.
        - Sizes that are no multiples of 8 are padded; the release cannot take them.
        - With ``in_channels`` other than 3 the first convolution has ``16 - in_channels``
          outputs, so that the initial block still has 16 channels.
    """

    def __init__(self, config: ENetConfig) -> None:
        super().__init__()
        self.input_size = InputSize.of("enet", config, SIZE_MULTIPLE)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        _initialise(self)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features, routes = self.encoder(self.input_size(image))
        return {"out": crop_to(self.decoder(features, routes), *image.shape[-2:])}

    def load_backbone(self, source: str | Path) -> None:
        """Take the encoder of a trained ``enet_encoder``, the paper's second training stage.

        Args:
            source: Weights of ``enet_encoder``; their 1x1 head is dropped.

        Raises:
            WeightsError: If they are not such weights.
        """
        opened = open_weights("enet_encoder", source)
        prefix = "encoder."
        given = {
            key.removeprefix(prefix): value
            for key, value in opened.state_dict.items()
            if key.startswith(prefix)
        }
        load_encoder("enet", self.encoder, given, opened.path.name, prefix)


class ENetEncoder(nn.Module):
    """The encoder of ENet with a 1x1 classifier: the network of the first training stage.

    Args:
        config: See :class:`ENetConfig`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size of at least one pixel.
        - Output: a dict with ``"out"``, ``(N, num_classes, ceil(H/8), ceil(W/8))``: logits at
          1/8 of the resolution, for labels resized with nearest neighbour.

    Errors, paper and deviations as :class:`ENet`. Its weights start the full network through
    ``create_model("enet", weights_backbone=...)``.
    """

    def __init__(self, config: ENetConfig) -> None:
        super().__init__()
        self.input_size = InputSize.of("enet_encoder", config, SIZE_MULTIPLE)
        self.encoder = Encoder(config)
        self.head = nn.Conv2d(128, config.num_classes, 1)
        _initialise(self)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features, _ = self.encoder(self.input_size(image))
        return {"out": self.head(features)}


def _numbered(blocks: list[nn.Module]) -> nn.Sequential:
    """A sequence whose names count from 1, as the paper's block numbers do."""
    sequence = nn.Sequential()
    for i, block in enumerate(blocks, start=1):
        sequence.add_module(str(i), block)
    return sequence


def _decoder_act(channels: int, prelu: bool) -> nn.Module:
    return PReLU(channels) if prelu else nn.ReLU(inplace=True)


def _initialise(network: nn.Module) -> None:
    """Torch7's defaults: uniform within one over the root of the fan-in.

    torch's convolutions start like this by themselves; its transposed ones take the fan-out.
    """
    for module in network.modules():
        if isinstance(module, nn.ConvTranspose2d):
            kernel_h, kernel_w = module.kernel_size
            bound = 1 / math.sqrt(module.in_channels * kernel_h * kernel_w)
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.uniform_(module.bias, -bound, bound)


RECIPE = Recipe(
    optimizer="adam",
    lr=5e-4,
    weight_decay=2e-4,
    schedule="step",
    step_epochs=100,
    gamma=0.1,
    batch_size=10,
    epochs=300,
    input="unit",
    class_weights="enet",
    loss_reduction="weights",
    resize=(360, 480),
    notes=(
        "In two stages: enet_encoder on labels at 1/8 resolution, then enet from its encoder. The "
        "rate falls as the release's option text says; its code multiplies by 1e-7 there. Class "
        "weights are 1 / ln(1.02 + p), 1.2 for the encoder stage in the released code. Other "
        "sizes: Cityscapes 512x1024, SUN RGB-D 200x256."
    ),
    source="arXiv:1606.02147 section 5; e-lab/ENet-training train/opts.lua, train/train.lua",
)


@register_model(
    ENetConfig,
    parameters=363_856,
    paper=PAPER,
    recipe=RECIPE,
    head="decoder.fullconv.bias",
    reported={
        "Cityscapes test class IoU": 58.3,
        "Cityscapes test category IoU": 80.4,
        "CamVid test class accuracy": 68.3,
        "CamVid test class IoU": 51.3,
        "SUN RGB-D global accuracy": 59.5,
        "SUN RGB-D class accuracy": 32.6,
        "SUN RGB-D class IoU": 19.7,
    },
)
def enet(config: ENetConfig) -> ENet:
    """ENet, 0.36 M parameters, 12 classes."""
    return ENet(config)


@register_model(ENetConfig, parameters=339_704, paper=PAPER, recipe=RECIPE, head="head.bias")
def enet_encoder(config: ENetConfig) -> ENetEncoder:
    """ENet's encoder with a 1x1 head, scores at 1/8 resolution: the first training stage."""
    return ENetEncoder(config)
