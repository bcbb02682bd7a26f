"""Mask R-CNN on a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from segkern.models._instances.anchors import Anchors
from segkern.models._instances.fpn import BACKBONES, STRIDES, freeze_layers, resnet_fpn
from segkern.models._instances.heads import (
    BoxHead,
    BoxPredictor,
    ConvBoxHead,
    MaskHead,
    MaskPredictor,
)
from segkern.models._instances.images import ImageList, PrepareImages, resize_boxes
from segkern.models._instances.inputs import check_images, check_targets
from segkern.models._instances.roi_heads import Detections, RoIHeads, paste
from segkern.models._instances.rpn import RegionProposals
from segkern.models._options import as_tuple, check_choice
from segkern.models._recipe import Recipe
from segkern.models._registry import register_model
from segkern.models.backbones import load_imagenet
from segkern.nn import PyramidRoIAlign, freeze_batch_norm

PAPER = (
    "K. He, G. Gkioxari, P. Dollar, R. Girshick: Mask R-CNN, ICCV 2017, arXiv:1703.06870; on the "
    "pyramid of T.-Y. Lin et al., CVPR 2017, arXiv:1612.03144"
)

# Bins of the heads.
BOX_BINS, MASK_BINS = 7, 14

# Layers trained where the trunk starts from weights.
TRAINED_WITH_WEIGHTS = 3


@dataclass(frozen=True)
class MaskRCNNConfig:
    """Options of :class:`MaskRCNN`.

    Attributes:
        num_classes: Thing classes and the background, which is label 0.
        in_channels: 3.
        backbone: ``"resnet50"``, ``"resnet101"``, ``"resnet18"`` or ``"resnet34"``.
        version: ``"v1"``, or ``"v2"`` for torchvision's second: batch norm in pyramid and heads, a
            deeper proposal head, a convolutional box head.
        min_size: What the shorter side of an image is resized to; of several, training draws one
            for each image and evaluation takes the last.
        max_size: The most the longer side may become.
        channels: Of the pyramid.
        box_channels: Of the box head's fully connected layers.
        mask_channels: Of the mask head.
        width: Factor on the trunk's channels.
        anchor_sizes: Of the five levels, in pixels of the resized image.
        anchor_ratios: Height / width.
        anchor_rounding: Whether anchors are rounded, and shifted by the ratio of the sizes of
            image and level, as torchvision; otherwise neither, as detectron2.
        anchor_offset: Of their centres, in pixels of a level.
        aligned: Whether RoIAlign has pixel centres at half integers and one sample a pixel, as
            detectron2; otherwise integers and 2 samples, as torchvision.
        beta: Of both losses of offsets; 1/9 is torchvision's, 0 detectron2's.
        class_agnostic: One box and one mask for all classes.
        proposals_before: Proposals of a level before suppression, in training and evaluation.
        proposals_after: Of an image after it.
        anchor_samples: Anchors of an image trained on.
        box_samples: Proposals of an image trained on, a quarter of them objects at most.
        score_threshold: Detections must score more.
        detections: Most of an image.
        norm: Of the trunk: ``"batch"``, ``"frozen"``, or ``None``: frozen where the trunk starts
            from weights, otherwise batch.
        norm_eps: Of the trunk's norm.
        trainable_layers: How many of the trunk's layers 4, 3, 2, 1 and stem are trained; ``None``
            is 3 where it starts from weights, otherwise all 5.
    """

    num_classes: int = 91
    in_channels: int = 3
    backbone: str = "resnet50"
    version: str = "v1"
    min_size: int | tuple[int, ...] = 800
    max_size: int = 1333
    channels: int = 256
    box_channels: int = 1024
    mask_channels: int = 256
    width: float = 1.0
    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchor_rounding: bool = True
    anchor_offset: float = 0.0
    aligned: bool = False
    beta: float = 1 / 9
    class_agnostic: bool = False
    proposals_before: tuple[int, int] = (2000, 1000)
    proposals_after: tuple[int, int] = (2000, 1000)
    anchor_samples: int = 256
    box_samples: int = 512
    score_threshold: float = 0.05
    detections: int = 100
    norm: str | None = None
    norm_eps: float = 1e-5
    trainable_layers: int | None = None

    def __post_init__(self) -> None:
        as_tuple(
            self, "min_size", "anchor_sizes", "anchor_ratios", "proposals_before", "proposals_after"
        )


class MaskRCNN(nn.Module):
    """Mask R-CNN.

    Args:
        config: See :class:`MaskRCNNConfig`.

    Forward takes a list of float32 (3, H, W) RGB images in 0..1 of any sizes on one device, and in
    training a dict for each: ``boxes`` float (n, 4), x1, y1, x2, y2 in pixels, with x1 < x2 and
    y1 < y2; ``labels`` int64 (n,) from 1; ``masks`` uint8 or bool (n, H, W). n may be 0, other
    keys are ignored. It returns

    - in training, a dict of five losses, whose sum is to be minimised: ``loss_classifier``,
      ``loss_box_reg``, ``loss_mask``, ``loss_objectness``, ``loss_rpn_box_reg``;
    - in evaluation, a dict for each image, by falling score: ``boxes`` (n, 4), ``labels``
      (n,), ``scores`` (n,), ``masks`` float32 (n, 1, H, W) with probabilities, at the image's size.

    Raises (forward):
        TypeError, ValueError: images or targets of another form, with values that are not finite,
            boxes without extent, labels out of range; the message names the argument.

    Training draws from torch's generator; evaluation is deterministic.

    Paper: arXiv:1703.06870. Numbers and rules are torchvision's ``maskrcnn_resnet50_fpn``, whose
    state dict loads by name, its older names too; options give detectron2's where they differ.

    Deviations from torchvision, which change no result beyond rounding: only the boxes that are
    kept are decoded, only the mask of each box's class is computed, all levels are pooled in one
    call. An object that overlaps no anchor at all makes none of them positive.
    """

    network = "maskrcnn"

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__()
        _check_config(self.network, config)
        self.num_classes = config.num_classes
        is_v2, is_frozen = config.version == "v2", config.norm == "frozen"
        self.transform = PrepareImages(config.min_size, config.max_size, network=self.network)
        self.backbone = resnet_fpn(
            self.network,
            config.backbone,
            channels=config.channels,
            norm="frozen" if is_frozen else "batch",
            trainable_layers=5 if config.trainable_layers is None else config.trainable_layers,
            width=config.width,
            norm_in_fpn=is_v2,
        )
        for module in self.backbone.body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = config.norm_eps
        anchors = Anchors(
            config.anchor_sizes,
            config.anchor_ratios,
            strides=None if config.anchor_rounding else STRIDES,
            rounded=config.anchor_rounding,
            offset=config.anchor_offset,
        )
        self.rpn = RegionProposals(
            config.channels,
            anchors,
            depth=2 if is_v2 else 1,
            before=config.proposals_before,
            after=config.proposals_after,
            samples=config.anchor_samples,
            beta=config.beta,
        )
        box_head = ConvBoxHead if is_v2 else BoxHead
        box_pool, mask_pool = (
            PyramidRoIAlign(
                bins,
                STRIDES[:4],
                sampling_ratio=0 if config.aligned else 2,
                aligned=config.aligned,
            )
            for bins in (BOX_BINS, MASK_BINS)
        )
        classes, agnostic = config.num_classes, config.class_agnostic
        self.roi_heads = RoIHeads(
            box_head(config.channels, BOX_BINS, config.box_channels),
            BoxPredictor(config.box_channels, classes, agnostic),
            MaskHead(config.channels, config.mask_channels, normalise=is_v2),
            MaskPredictor(config.mask_channels, classes, agnostic),
            box_pool=box_pool,
            mask_pool=mask_pool,
            samples=config.box_samples,
            beta=config.beta,
            score_threshold=config.score_threshold,
            detections=config.detections,
        )

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        check_images(self.network, images)
        if self.training:
            check_targets(self.network, images, targets, self.num_classes)
        batch, targets = self.transform(images, targets if self.training else None)
        maps = self.backbone(batch.tensors)
        proposals, proposal_losses = self.rpn(batch, maps, targets)
        found, losses = self.roi_heads(batch, maps, proposals, targets)
        if self.training:
            return {**losses, **proposal_losses}
        return finish(batch, found)

    def load_backbone(self, source: str | Path) -> None:
        """Start the trunk from ImageNet, and freeze its norm and first layers if not said otherwise.

        Args:
            source: See :func:`segkern.models.backbones.load_imagenet`. The network normalises its
                images itself, so its recipe's input stays as it is.
        """
        recipe = self.recipe
        load_imagenet(self, self.backbone.body, self.config["backbone"], source)
        self.recipe = recipe
        if self.config["norm"] is None:
            self.config["norm"] = "batch" if self.config["version"] == "v2" else "frozen"
        if self.config["norm"] == "frozen":
            freeze_batch_norm(self.backbone.body)
        if self.config["trainable_layers"] is None:
            self.config["trainable_layers"] = TRAINED_WITH_WEIGHTS
            freeze_layers(self.backbone.body, TRAINED_WITH_WEIGHTS)


def finish(batch: ImageList, found: Sequence[Detections]) -> list[dict[str, Tensor]]:
    """Detections in the pixels of the images that were given, their masks pasted."""
    results = []
    for each, size, original in zip(found, batch.sizes, batch.original, strict=True):
        boxes = resize_boxes(each.boxes, size, original)
        results.append(
            {
                "boxes": boxes,
                "labels": each.labels,
                "scores": each.scores,
                "masks": paste(each.masks, boxes, original),
            }
        )
    return results


def _check_config(network: str, config: MaskRCNNConfig) -> None:
    check_choice(network, "backbone", config.backbone, BACKBONES)
    check_choice(network, "version", config.version, ("v1", "v2"))
    check_choice(network, "norm", config.norm, (None, "batch", "frozen"))
    check_choice(network, "in_channels", config.in_channels, (3,))
    if config.num_classes < 2:
        raise ValueError(
            f"{network}: num_classes must be at least 2, the background among them, "
            f"got {config.num_classes}"
        )
    if len(config.anchor_sizes) != len(STRIDES):
        raise ValueError(
            f"{network}: anchor_sizes must be {len(STRIDES)}, one a level, "
            f"got {config.anchor_sizes!r}"
        )
    for name in ("proposals_before", "proposals_after"):
        value = getattr(config, name)
        if len(value) != 2 or min(value) < 1:
            raise ValueError(f"{network}: {name} must be two positive ints, got {value!r}")
    for name in ("anchor_samples", "box_samples", "detections"):
        if getattr(config, name) < 1:
            raise ValueError(f"{network}: {name} must be at least 1, got {getattr(config, name)}")


RECIPE = Recipe(
    optimizer="sgd",
    lr=0.02,
    momentum=0.9,
    weight_decay=1e-4,
    norm_decay=False,
    schedule="multistep",
    milestones=(60 / 90, 80 / 90),
    gamma=0.1,
    warmup_steps=1000,
    warmup_factor=0.001,
    batch_size=16,
    epochs=12,
    input="unit",
    loss="network",
    flip=True,
    aspect_groups=True,
    notes=(
        "The 1x schedule: 90 000 iterations, 12.3 epochs of the 117 266 images of COCO train2017 "
        "with objects, steps at 60 000 and 80 000. 3x: epochs=37, milestones=(21/27, 25/27), which "
        "is 270 000 iterations with steps at 210 000 and 250 000. Shorter sides in training are "
        "drawn from 640, 672, 704, 736, 768 and 800: the network's option min_size. Starts from "
        "ImageNet weights with frozen norm and first layers: weights_backbone. Cityscapes: lr 0.01 "
        "and 8 images for 24 000 iterations with a step at 18 000, shorter sides 800 to 1024 by "
        "32, 1024 at test, longer side at most 2048."
    ),
    source="detectron2 configs Base-RCNN-FPN, mask_rcnn_R_50_FPN_1x and _3x, and its model zoo",
)


@register_model(
    MaskRCNNConfig,
    parameters=44_454_513,
    paper=PAPER,
    recipe=RECIPE,
    head="roi_heads.box_predictor.cls_score.bias",
    reported={
        "COCO val2017 box AP, 1x": 38.6,
        "COCO val2017 mask AP, 1x": 35.2,
        "COCO val2017 box AP, 3x": 41.0,
        "COCO val2017 mask AP, 3x": 37.2,
        "COCO val2017 box AP, torchvision": 37.9,
        "COCO val2017 mask AP, torchvision": 34.6,
        "COCO val2017 box AP, torchvision v2": 47.4,
        "COCO val2017 mask AP, torchvision v2": 41.8,
    },
    task="instance",
)
def maskrcnn(config: MaskRCNNConfig) -> MaskRCNN:
    """Mask R-CNN on ResNet-50 and a feature pyramid, 44.5 M parameters, 91 classes."""
    return MaskRCNN(config)
