"""DANet: attention between all positions and between all channels of an atrous ResNet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from segkern.models._options import as_tuple, check_choice
from segkern.models._recipe import Recipe
from segkern.models._registry import register_model
from segkern.models._resize import resize_corners
from segkern.models._sizes import check_batch_statistics, check_image
from segkern.models._weights import WeightsError
from segkern.models.backbones import RESNETS, ResNet, load_imagenet
from segkern.models.backbones.resnet import scale_channels
from segkern.nn import ConvNormAct

PAPER = (
    "J. Fu, J. Liu, H. Tian, Y. Li, Y. Bao, Z. Fang, H. Lu: Dual Attention Network for Scene "
    "Segmentation, CVPR 2019, arXiv:1809.02983"
)

DROPOUT = 0.1

# Channels of the values for each of the queries and keys.
VALUES_PER_QUERY = 8

# Of position attention that are held at a time where it is computed in rows.
MOST_WEIGHTS = 2**22


@dataclass(frozen=True)
class DANetConfig:
    """Options of :class:`DANet`.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels.
        backbone: ``"resnet101"``, ``"resnet50"`` or ``"resnet152"``; ``"resnet17"`` for trials.
        stem: ``"plain"``, torchvision's 7x7, as the released network, or ``"deep"``, three 3x3.
        multi_grid: Unit rates of the blocks of layer 4, whose own is 4: rates 4, 8 and 16.
        channel_attention: ``"release"``, the softmax of the largest energy of a row less the
            energy, which favours channels that differ; ``"paper"``, the softmax of the energy.
        width: Factor on all channels; 1 is the paper's.
    """

    num_classes: int = 19
    in_channels: int = 3
    backbone: str = "resnet101"
    stem: str = "plain"
    multi_grid: tuple[int, ...] = (1, 2, 4)
    channel_attention: str = "release"
    width: float = 1.0

    def __post_init__(self) -> None:
        as_tuple(self, "multi_grid")


class PositionAttention(nn.Module):
    """``x + gamma * V softmax(QᵀK)ᵀ`` over the H * W positions, queries in the rows, not scaled.

    Args:
        channels: Of the input and of the values, a multiple of 8; queries and keys have an eighth.

    The values are attended to in eight groups of as many channels as the queries have, so that
    :func:`torch.nn.functional.scaled_dot_product_attention` takes kernels that never hold the
    (H * W)² weights, forward or backward: memory grows with H * W alone. The products of queries
    and keys are computed once per group for that, 1.8 times the arithmetic.

    Rows of weights in turn, computed again in the backward, take half the time of those kernels on
    a CPU in single and double precision, and are taken there but for graphs that are compiled or
    exported; see :func:`attend_in_rows`. On CUDA those kernels add up gradients in no fixed order,
    also where torch is told to warn of that only: with :func:`torch.use_deterministic_algorithms`
    the rows are taken there too.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // VALUES_PER_QUERY
        self.gamma = nn.Parameter(torch.zeros(1))
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key = _heads(self.query(x), 1), _heads(self.key(x), 1)
        if _takes_rows(query):
            attended = attend_in_rows(query, key, _heads(self.value(x), 1))
        else:
            value = _heads(self.value(x), VALUES_PER_QUERY)
            groups = (-1, VALUES_PER_QUERY, -1, -1)
            attended = functional.scaled_dot_product_attention(
                query.expand(groups), key.expand(groups), value, scale=1.0
            )
        return x + self.gamma * attended.transpose(2, 3).reshape(x.shape)


def _takes_rows(query: Tensor) -> bool:
    if query.is_cpu:
        precise = query.dtype in (torch.float32, torch.float64)
        return precise and not torch.compiler.is_compiling()
    return torch.are_deterministic_algorithms_enabled()


def attend_in_rows(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``softmax(Q Kᵀ) V`` of (N, 1, L, D) tensors, at most 2^22 weights or one row at a time.

    Forward and backward are matrix products, and so deterministic where those are.
    """
    rows = max(1, MOST_WEIGHTS // (len(query) * query.shape[2]))
    parts = [
        checkpoint(_attend, some, key, value, use_reentrant=False, preserve_rng_state=False)
        for some in query.split(rows, dim=2)
    ]
    return torch.cat(parts, dim=2)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.transpose(2, 3)).softmax(dim=-1) @ value


class ChannelAttention(nn.Module):
    """``x + gamma * softmax(E') X`` with E = X Xᵀ over the channels.

    Args:
        form: ``"release"``: E' is the largest of each row of E, less E. ``"paper"``: E itself.

    E is a sum over all positions and is computed in float32 at least, also under autocast.
    """

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        with torch.autocast(x.device.type, enabled=False):
            wide = flat.to(torch.promote_types(flat.dtype, torch.float32))
            energy = wide @ wide.transpose(1, 2)
        if self.form == "release":
            energy = energy.amax(dim=-1, keepdim=True) - energy
        weights = energy.softmax(dim=-1).to(flat.dtype)
        return x + self.gamma * (weights @ flat).reshape(x.shape)


class DANet(nn.Module):
    """Dual attention network, as the authors' released one.

    Args:
        config: See :class:`DANetConfig`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size; multiples of 8 plus 1 align exactly.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``, enlarged with corner pixels
          on corner pixels; in training also ``"position"`` and ``"channel"``, the scores of each
          attention alone, as large.

    Raises (forward):
        ValueError: If the input has another number of axes or channels, or in training for one
            image of 8x8 or less, whose features have no variance.

    Paper: arXiv:1809.02983. Both attentions are the identity at the start, gamma 0. The branches
    are summed after their second convolutions. Rates of the trunk are those of the released
    network with multi-grid: 1 and 2 in layer 3; 4, 8 and 16 in layer 4. Its names are
    torchvision's.

    Deviation from the release: position attention in groups of value channels, the same numbers
    but for rounding, see :class:`PositionAttention`. The release's files load by a key map, as
    networks with its multi-grid.
    """

    def __init__(self, config: DANetConfig) -> None:
        super().__init__()
        check_choice("danet", "backbone", config.backbone, tuple(RESNETS))
        forms = ("release", "paper")
        check_choice("danet", "channel_attention", config.channel_attention, forms)
        self.in_channels = config.in_channels
        self.backbone = ResNet(
            "danet",
            config.backbone,
            config.in_channels,
            output_stride=8,
            stem=config.stem,
            multi_grid=config.multi_grid,
            width=config.width,
        )
        channels = VALUES_PER_QUERY * scale_channels(512 // VALUES_PER_QUERY, config.width)
        classes = config.num_classes
        self.position_in = ConvNormAct(self.backbone.channels, channels, 3)
        self.position = PositionAttention(channels)
        self.position_out = ConvNormAct(channels, channels, 3)
        self.channel_in = ConvNormAct(self.backbone.channels, channels, 3)
        self.channel = ChannelAttention(config.channel_attention)
        self.channel_out = ConvNormAct(channels, channels, 3)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.position_classifier = nn.Conv2d(channels, classes, 1)
        self.channel_classifier = nn.Conv2d(channels, classes, 1)
        self.classifier = nn.Conv2d(channels, classes, 1)
        self.head_names = tuple(name for name, _ in self.named_children() if name != "backbone")

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image("danet", image, self.in_channels)
        last = image[..., ::8, ::8]
        check_batch_statistics("danet", "backbone.layer2.0.bn2", last, self.training)
        features = self.backbone.stages(image)[-1]
        position = self.position_out(self.position(self.position_in(features)))
        channel = self.channel_out(self.channel(self.channel_in(features)))
        heads = {"out": (self.classifier, position + channel)}
        if self.training:
            heads["position"] = (self.position_classifier, position)
            heads["channel"] = (self.channel_classifier, channel)
        size = image.shape[-2:]
        return {
            name: resize_corners(classify(self.dropout(x)), size)
            for name, (classify, x) in heads.items()
        }

    def load_backbone(self, source: str | Path) -> None:
        """Start the trunk from ImageNet; ``recipe.input`` becomes ``"imagenet"``.

        Args:
            source: See :func:`segkern.models.backbones.load_imagenet`; for the deep stem a file
                under hszhao/semseg's names.

        Raises:
            WeightsError: If it does not fit, or is torchvision's for a network with the deep stem.
        """
        if self.config["stem"] == "deep" and not Path(source).is_file():
            raise WeightsError(
                "danet: torchvision's ResNet has a plain stem; build the network with "
                "stem='plain' to start from it"
            )
        load_imagenet(self, self.backbone, self.config["backbone"], source)


def _heads(x: Tensor, heads: int) -> Tensor:
    """``(N, heads * D, H, W)`` as ``(N, heads, H * W, D)``, contiguous, as fused kernels want."""
    return x.flatten(2).unflatten(1, (heads, -1)).transpose(2, 3).contiguous()


# An epoch of Cityscapes is 371 iterations of 8 images.
RECIPE = Recipe(
    optimizer="sgd",
    lr=1e-2,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="poly",
    power=0.9,
    batch_size=8,
    epochs=240,
    input="imagenet",
    head_lr_mult=10.0,
    outputs={"out": 1.0, "position": 1.0, "channel": 1.0},
    scale=(0.5, 2.0),
    crop=(768, 768),
    crop_pad="end",
    crop_colour="black",
    flip=True,
    notes=(
        "From ImageNet weights, statistics of batch norm over all devices. The release's defaults "
        "are lr 0.004 at a batch of 16 for Cityscapes and ADE20K, 0.001 for PASCAL-Context, with "
        "the rate of the head times 10; epochs 240, 180 and 80. The long side is drawn from 0.5 to "
        "2 times a base size, here the image's own. The released network has 79.93 on one scale; "
        "the test result is with several scales."
    ),
    source="arXiv:1809.02983 section 4; junfu1115/DANet experiments/segmentation/train.py",
)


@register_model(
    DANetConfig,
    parameters=66_454_779,
    paper=PAPER,
    recipe=RECIPE,
    head="classifier.bias",
    reported={
        "Cityscapes val class IoU": 79.93,
        "Cityscapes val class IoU, scales": 81.50,
        "Cityscapes test class IoU": 81.5,
        "VOC 2012 test mIoU": 82.6,
        "PASCAL-Context mIoU": 52.6,
        "COCO-Stuff mIoU": 39.7,
    },
)
def danet(config: DANetConfig) -> DANet:
    """DANet on ResNet-101, 66.5 M parameters, 19 classes."""
    return DANet(config)
