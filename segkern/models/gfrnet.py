"""G-FRNet: scores refined stage by stage of a VGG16, each gated by the stage below."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from segkern.models._port_rules import CAFFE_NORM_EPS
from segkern.models._recipe import Recipe
from segkern.models._registry import register_model
from segkern.models._resize import resize_corners
from segkern.models._sizes import check_batch_statistics, check_image
from segkern.models._vgg import (
    CAFFE_NORM_SHIFT,
    VGG16_STAGES,
    ConvNormReLU,
    VGG16Encoder,
    load_vgg16,
    msra_,
)
from segkern.models.backbones.resnet import scale_channels

PAPER = (
    "M. A. Islam, M. Rochan, N. D. B. Bruce, Y. Wang: Gated Feedback Refinement Network for Dense "
    "Image Labeling, CVPR 2017; extended arXiv:1806.11266"
)

DROPOUT = 0.5


@dataclass(frozen=True)
class GFRNetConfig:
    """Options of :class:`GFRNet`.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels.
        gate_relu: A ReLU on what the gates multiply, as in the paper; the release has none.
        width: Factor on the channels of the encoder and of conv6 and conv7; 1 is the paper's.
    """

    num_classes: int = 11
    in_channels: int = 3
    gate_relu: bool = False
    width: float = 1.0


class RefinementUnit(nn.Module):
    """One stage: the lateral features, gated by those below, beside the scores so far.

    Args:
        tap: Channels of the encoder's stage.
        classes: Channels of everything else.
        gate_relu: ReLU on the lateral features.
        scores_first: Order of the concatenation: scores, then gated features.

    Forward takes the stage, the lateral features below and the scores below, and returns the
    stage's own lateral features and scores.
    """

    def __init__(self, tap: int, classes: int, gate_relu: bool, scores_first: bool) -> None:
        super().__init__()
        self.lateral = ConvNormReLU(nn.Conv2d(tap, classes, 3, padding=1), relu=gate_relu)
        self.gate_norm = nn.BatchNorm2d(classes, eps=CAFFE_NORM_EPS)
        nn.init.constant_(self.gate_norm.bias, CAFFE_NORM_SHIFT)
        self.predict = nn.Conv2d(2 * classes, classes, 3, padding=1)
        self.scores_first = scores_first

    def forward(self, stage: Tensor, below: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        lateral = self.lateral(stage)
        size = lateral.shape[-2:]
        gated = self.gate_norm(lateral * resize_corners(below, size))
        pair = (gated, resize_corners(scores, size))
        return lateral, self.predict(torch.cat(pair[::-1] if self.scores_first else pair, dim=1))


class GFRNet(nn.Module):
    """G-FRNet on VGG16, as the authors' released Caffe definition for CamVid has it.

    Args:
        config: See :class:`GFRNetConfig`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size: pools round up and every stage is enlarged
          to the size of the next.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``, the last stage's scores; in
          training also ``"stage_1"`` to ``"stage_5"``, those of the stages before, enlarged to
          the same size.

    Raises (forward):
        ValueError: If the input has another number of axes or channels, or if in training a batch
            of one comes down to a 1x1 map before a batch norm (32 pixels or fewer per axis).

    Paper: CVPR 2017, arXiv:1806.11266. A gate multiplies the lateral features of a stage by those
    of the stage below, not by their gated form. Batch norm has an eps of 1e-9. In the second last
    stage the scores come first in the concatenation.

    The paper and its release differ: the release, and this network, has no ReLU on the gates'
    inputs (``gate_relu``), enlarges scores to the labels where the paper reduces labels to each
    stage, and has as many channels as classes in every gate.

    Deviation from the release: batch norm keeps torch's running averages; the release computes
    the statistics afterwards in a pass over the training set.
    """

    def __init__(self, config: GFRNetConfig) -> None:
        super().__init__()
        self.in_channels = config.in_channels
        self.gate_relu = config.gate_relu
        stages = tuple(
            tuple(scale_channels(width, config.width) for width in widths)
            for widths in VGG16_STAGES
        )
        rates = (0, 0, DROPOUT, DROPOUT, DROPOUT)
        self.encoder = VGG16Encoder("gfrnet", config.in_channels, rates, stages)
        for block in self.encoder.convolutions():
            nn.init.zeros_(block.norm.bias)
        last, wide = stages[-1][-1], scale_channels(1024, config.width)
        classes = config.num_classes
        self.conv6 = ConvNormReLU(nn.Conv2d(last, wide, 3, padding=1))
        self.conv7 = ConvNormReLU(nn.Conv2d(wide, wide, 3, padding=1))
        self.dropout = nn.Dropout(DROPOUT)
        self.predict1 = nn.Conv2d(wide, classes, 3, padding=1)
        self.lateral1 = nn.Conv2d(last, classes, 3, padding=1)
        for i, widths in enumerate(reversed(stages), start=2):
            unit = RefinementUnit(widths[-1], classes, config.gate_relu, scores_first=i == 5)
            self.add_module(f"refine{i}", unit)
        msra_(self)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image("gfrnet", image, self.in_channels)
        x, taps = image, []
        for i in range(1, len(VGG16_STAGES) + 1):
            check_batch_statistics("gfrnet", f"encoder.stage{i}.1.norm", x, self.training)
            x = self.encoder.get_submodule(f"stage{i}")(x)
            taps.append(x)
            x = functional.max_pool2d(x, 2, ceil_mode=True)
            x = self.encoder.get_submodule(f"dropout{i}")(x)
        check_batch_statistics("gfrnet", "conv6.norm", x, self.training)
        deep = self.dropout(self.conv7(self.dropout(self.conv6(x))))
        scores = [self.predict1(deep)]
        lateral = self.lateral1(x)
        if self.gate_relu:
            lateral = functional.relu(lateral)
        for i, tap in enumerate(reversed(taps), start=2):
            lateral, refined = self.get_submodule(f"refine{i}")(tap, lateral, scores[-1])
            scores.append(refined)
        output = {"out": scores[-1]}
        if self.training:
            size = image.shape[-2:]
            for i, coarse in enumerate(scores[:-1], start=1):
                output[f"stage_{i}"] = resize_corners(coarse, size)
        return output

    def load_backbone(self, source: str | Path) -> None:
        """Start the encoder from torchvision's VGG16; ``recipe.input`` becomes ``"imagenet"``.

        Args:
            source: See :func:`segkern.models._vgg.load_vgg16`.
        """
        load_vgg16(self, source)


# 150 000 iterations are 2459 epochs of the 61 whole batches in CamVid's 367 images.
RECIPE = Recipe(
    optimizer="sgd",
    lr=1e-3,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="step",
    step_size=50_000,
    gamma=0.1,
    batch_size=6,
    epochs=2459,
    input="bgr",
    class_weights="segnet",
    loss_reduction="pixels",
    bias_lr_mult=2.0,
    bias_decay_mult=0.0,
    outputs={"out": 1.0, **{f"stage_{i}": 1.0 for i in range(1, 6)}},
    resize=(360, 480),
    notes=(
        "Encoder from VGG16, other convolutions drawn by He's rule, also conv6 and conv7, which "
        "the release starts at Caffe's default of zero. The class weights written there are "
        "SegNet's median frequencies. No augmentation."
    ),
    source="arXiv:1806.11266; mrochan/gfrnet models/camvid/solver_camvid_gate.prototxt",
)


@register_model(
    GFRNetConfig,
    parameters=29_194_090,
    paper=PAPER,
    recipe=RECIPE,
    head="refine6.predict.bias",
    reported={
        "CamVid test mIoU": 68.0,
        "VOC 2012 test mIoU, ResNet-101, CRF": 79.3,
    },
)
def gfrnet(config: GFRNetConfig) -> GFRNet:
    """G-FRNet on VGG16, 29.2 M parameters, 11 classes."""
    return GFRNet(config)
