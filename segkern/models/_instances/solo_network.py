"""What the networks of the SOLO family share: a call from images to losses or to instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from segkern.losses.dice import dice_loss
from segkern.losses.focal import sigmoid_focal_loss
from segkern.models._instances.fpn import BACKBONES, FeaturePyramid, freeze_layers, resnet_fpn
from segkern.models._instances.images import PrepareImages, Size, Target
from segkern.models._instances.inputs import check_images, check_targets
from segkern.models._instances.solo_inference import (
    Detections,
    Sizes,
    Thresholds,
    detect,
    flatten_cells,
    points_nms,
)
from segkern.models._instances.solo_levels import (
    GRIDS,
    SCALE_RANGES,
    check_sizes,
    make_levels,
    set_level_options,
    split_features,
)
from segkern.models._instances.solo_targets import Assignment, assign, shrink_masks
from segkern.models._options import check_choice
from segkern.models._registry import register_model
from segkern.models._sizes import check_batch_statistics
from segkern.models.backbones import load_imagenet
from segkern.nn import freeze_batch_norm

# The mask loss counts three times the category loss.
MASK_WEIGHT = 3.0

# Bias under which every probability starts at 0.01.
PRIOR_BIAS = -4.59511985013459


# Layers trained where the trunk starts from weights.
TRAINED_WITH_WEIGHTS = 3

# A network of the family: its class scores have no channel for the background.
register_solo = partial(
    register_model, head="head.category.bias", head_background=False, task="instance"
)


@dataclass(frozen=True)
class SOLOOptions:
    """Options that the networks of the family have in common.

    For images of 128 pixels on a CPU: ``backbone="resnet18", width=0.5, channels=64,
    head_channels=64, depth=2, levels=(0, 1, 2), grids=(16, 12, 8), scale_ranges=((1, 32), (16, 64),
    (32, 512)), min_size=128, max_size=256``, of SOLOv2 also ``feature_channels=64,
    mask_channels=64``.

    Attributes:
        num_classes: Classes of things and one for the background, label 0.
        in_channels: 3.
        backbone: ``"resnet50"``, ``"resnet101"``, ``"resnet18"`` or ``"resnet34"``.
        width: Factor on the trunk's channels.
        norm: Of the trunk: ``"batch"``, ``"frozen"``, or ``None``: frozen where the trunk starts
            from weights, otherwise batch.
        trainable_layers: How many of the trunk's layers 4, 3, 2, 1 and stem are trained; ``None``
            is 3 where it starts from weights, otherwise all 5.
        channels: Of the pyramid.
        head_channels: Of the head's towers, a multiple of 32.
        depth: Convolutions of a tower.
        levels: Which of the five maps at strides 8, 8, 16, 32 and 32 have a grid.
        grids: Cells a side of each level.
        scale_ranges: Square roots of the areas of boxes, in pixels of the resized image, that each
            level is taught, both ends inclusive.
        min_size: What an image's shorter side is resized to; of several, training draws one for
            each image and evaluation takes the last.
        max_size: The most that its longer side becomes.
        score_threshold: A cell's class must score above this.
        detections: The most instances of an image.
    """

    num_classes: int = 81
    in_channels: int = 3
    backbone: str = "resnet50"
    width: float = 1.0
    norm: str | None = None
    trainable_layers: int | None = None
    channels: int = 256
    head_channels: int = 256
    depth: int = 7
    levels: tuple[int, ...] = (0, 1, 2, 3, 4)
    grids: tuple[int, ...] = GRIDS
    scale_ranges: tuple[tuple[float, float], ...] = SCALE_RANGES
    min_size: int | tuple[int, ...] = 800
    max_size: int = 1333
    score_threshold: float = 0.1
    detections: int = 100

    def __post_init__(self) -> None:
        set_level_options(self)


class SOLONetwork(nn.Module):
    """Trunk, pyramid, levels, losses and detection; a subclass adds the head.

    A subclass sets ``head``, a module from the levels' maps to a head's output with the field
    ``category``, a list of (N, K, S, S) logits, and defines :meth:`run_head`,
    :meth:`mask_losses` and :meth:`masks_of`.

    Args:
        network: Name for error messages.
        config: The options.
    """

    #: Whether a cell owes the masks of all instances that took it.
    shared_cells = False
    #: Whether :meth:`masks_of` gives logits.
    logit_masks = False
    #: Whether the head takes P2 to P5 whatever the levels.
    whole_pyramid = False

    def __init__(self, network: str, config: SOLOOptions) -> None:
        super().__init__()
        self.network = network
        _check_options(network, config)
        self.levels = make_levels(network, config.levels, config.grids, config.scale_ranges)
        self.used_levels = tuple(config.levels)
        self.num_classes = config.num_classes
        self.thresholds = Thresholds(score=config.score_threshold, detections=config.detections)
        self.transform = PrepareImages(config.min_size, config.max_size, network=network)
        self.backbone = resnet_fpn(
            network,
            config.backbone,
            channels=config.channels,
            norm="frozen" if config.norm == "frozen" else "batch",
            trainable_layers=5 if config.trainable_layers is None else config.trainable_layers,
            width=config.width,
        )
        for module in self.backbone.fpn.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
        if not self.whole_pyramid:
            self._freeze_unused(self.backbone.fpn)

    def _freeze_unused(self, pyramid: FeaturePyramid) -> None:
        """Stop the training of convolutions that no level is made of, which have no gradient."""
        used = [min(level, 3) for level in self.used_levels]
        for block in range(4):
            pyramid.inner_blocks[block].requires_grad_(block >= min(used))
            pyramid.layer_blocks[block].requires_grad_(block in used)

    def run_head(self, pyramid: list[Tensor], maps: list[Tensor]):
        """The head's output, from P2 to P6 and the levels' maps."""
        raise NotImplementedError

    def mask_losses(self, output, owed: Owed) -> Tensor:
        """Loss of every pair of a cell and an instance, (k,)."""
        raise NotImplementedError

    def masks_of(self, output, image: int, cells: Tensor, size: Size) -> Tensor:
        """Masks (k, *size) of an image's cells, ``size`` being a quarter of the batch's."""
        raise NotImplementedError

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        check_images(self.network, images)
        if self.training:
            check_targets(self.network, images, targets, self.num_classes)
        batch, resized = self.transform(images, targets if self.training else None)
        coarsest = batch.tensors[:, :, ::32, ::32]
        is_measured = self.training and self.backbone.body.layer4[0].bn1.training
        check_batch_statistics(self.network, "backbone.body.layer4.0.bn1", coarsest, is_measured)
        pyramid = self.backbone(batch.tensors)
        maps = split_features(pyramid)
        output = self.run_head(pyramid, [maps[level] for level in self.used_levels])
        padded = (batch.tensors.shape[-2], batch.tensors.shape[-1])
        if self.training:
            return self._losses(output, resized, padded)
        return self._detections(output, batch.sizes, batch.original, padded)

    def _losses(self, output, targets: list[Target], padded: Size) -> dict[str, Tensor]:
        assigned = [
            assign(target, self.levels, padded, shared=self.shared_cells) for target in targets
        ]
        labels = torch.stack([each.labels for each in assigned])
        category = sigmoid_focal_loss(flatten_cells(output.category), labels)
        terms = self.mask_losses(output, Owed(assigned, targets, padded))
        return {
            "loss_category": category / ((labels > 0).sum() + 1),
            "loss_mask": MASK_WEIGHT * terms.sum() / max(terms.numel(), 1),
        }

    @torch.no_grad()
    def _detections(
        self, output, sizes: list[Size], original: list[Size], padded: Size
    ) -> list[Detections]:
        scores = flatten_cells([points_nms(level.float().sigmoid()) for level in output.category])
        quarter = (padded[0] // 4, padded[1] // 4)
        return [
            detect(
                scores[i],
                lambda cells, i=i: self.masks_of(output, i, cells, quarter),
                self.logit_masks,
                self.levels,
                self.thresholds,
                Sizes(padded, sizes[i], original[i]),
            )
            for i in range(len(sizes))
        ]

    def split_cells(self, cells: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of cells of all levels, each level's places among them and cells within the level."""
        parts = []
        first = 0
        for level in self.levels:
            places = ((cells >= first) & (cells < first + level.cells)).nonzero()[:, 0]
            parts.append((places, cells[places] - first))
            first += level.cells
        return parts

    def load_backbone(self, source: str | Path) -> None:
        """Start the trunk from ImageNet; freeze its norm and first layers if not said otherwise.

        Args:
            source: See :func:`segkern.models.backbones.load_imagenet`. The network normalises its
                images itself, so its recipe's input stays as it is.

        Raises:
            WeightsError: If it does not fit.
        """
        recipe = self.recipe
        load_imagenet(self, self.backbone.body, self.config["backbone"], source)
        self.recipe = recipe
        if self.config["norm"] is None:
            self.config["norm"] = "frozen"
            freeze_batch_norm(self.backbone.body)
        if self.config["trainable_layers"] is None:
            self.config["trainable_layers"] = TRAINED_WITH_WEIGHTS
            freeze_layers(self.backbone.body, TRAINED_WITH_WEIGHTS)


class Owed:
    """The masks that a batch's cells owe.

    Args:
        assigned: Each image's assignment.
        targets: Each image's instances, in the batch's pixels.
        padded: (height, width) of the batch.
    """

    def __init__(self, assigned: list[Assignment], targets: list[Target], padded: Size) -> None:
        self.assigned, self.padded = assigned, padded
        self._masks = [target["masks"] for target in targets]
        self._shrunk: dict[int, Tensor] = {}
        self._first = [0]
        for masks in self._masks:
            self._first.append(self._first[-1] + masks.shape[0])

    def cells(self, level: int) -> list[Tensor]:
        """Each image's cells of a level, one for each pair, int64 (k_i,)."""
        return [each.cells[level] for each in self.assigned]

    def rows(self, level: int) -> list[Tensor]:
        """Of each of these cells the row in :meth:`masks`, int64 (k_i,)."""
        return [
            each.instances[level] + first
            for each, first in zip(self.assigned, self._first, strict=False)
        ]

    def masks(self, stride: int) -> Tensor:
        """All instances' masks at a stride, uint8 (instances of the batch, H / s, W / s)."""
        if stride not in self._shrunk:
            size = (self.padded[0] // stride, self.padded[1] // stride)
            self._shrunk[stride] = torch.cat(
                [shrink_masks(masks, stride, size) for masks in self._masks]
            )
        return self._shrunk[stride]

    def losses(self, masks: Tensor, rows: Tensor, stride: int, *, from_logits: bool) -> Tensor:
        """Dice loss of (k, h, w) masks at a stride, against the rows of :meth:`masks`, (k,)."""
        return dice_loss(masks, self.masks(stride), rows=rows, from_logits=from_logits)


def _check_options(network: str, config: SOLOOptions) -> None:
    check_choice(network, "backbone", config.backbone, BACKBONES)
    check_choice(network, "norm", config.norm, (None, "batch", "frozen"))
    check_choice(network, "in_channels", config.in_channels, (3,))
    if config.num_classes < 2:
        raise ValueError(
            f"{network}: num_classes must be at least 2, the background among them, "
            f"got {config.num_classes}"
        )
    if not 0 <= config.score_threshold < 1:
        raise ValueError(
            f"{network}: score_threshold must be in [0, 1), got {config.score_threshold}"
        )
    for name in ("channels", "depth", "detections"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{network}: {name} must be a positive int, got {value!r}")
    check_sizes(network, {"head_channels": config.head_channels})
