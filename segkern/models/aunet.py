"""AUNet, the attention-guided unified network, and its baseline, panoptic feature pyramids."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from segkern.models._instances.attention import (
    MODES,
    REDUCTIONS,
    MaskAttention,
    ProposalAttention,
)
from segkern.models._instances.background import (
    BackgroundBranch,
    background_loss,
    classes_of_pixels,
    enlarge,
)
from segkern.models._instances.fpn import STRIDES
from segkern.models._instances.fusion import fuse_panoptic
from segkern.models._instances.inputs import check_images, check_targets
from segkern.models._options import as_tuple, check_choice
from segkern.models._registry import register_model
from segkern.models.maskrcnn import RECIPE as FOREGROUND_RECIPE
from segkern.models.maskrcnn import MaskRCNN, MaskRCNNConfig, finish

PAPER = (
    "Y. Li, X. Chen, Z. Zhu, L. Xie, G. Huang, D. Du, X. Wang: Attention-guided Unified Network "
    "for Panoptic Segmentation, CVPR 2019, arXiv:1812.03904; without attention A. Kirillov, "
    "R. Girshick, K. He, P. Dollar: Panoptic Feature Pyramid Networks, CVPR 2019, arXiv:1901.02446"
)

# Levels of the pyramid that the background branch reads.
LEVELS = 4
# The share of each loss in the sum, by option.
WEIGHTED = {
    "proposal_weight": ("loss_objectness", "loss_rpn_box_reg"),
    "box_weight": ("loss_classifier", "loss_box_reg"),
    "mask_weight": ("loss_mask",),
    "background_weight": ("loss_background",),
}


@dataclass(frozen=True)
class AUNetConfig(MaskRCNNConfig):
    """Options of :class:`AUNet`: those of :class:`segkern.models.maskrcnn.MaskRCNNConfig`, and

    Attributes:
        num_classes: Thing classes and the background, which is label 0.
        num_stuff: Stuff classes.
        pam: Whether the proposals' attention is on each level of the background branch.
        mam: Whether the masks' attention is on its fused map. Without both the network is the
            panoptic feature pyramid network.
        background_channels: Of the background branch, a multiple of 32.
        reduction: Of the channels in the selection that follows each attention.
        roi_mode: How the masks' features are brought back to the map, see
            :func:`segkern.ops.roi_upsample`.
        roi_reduction: And how those over one pixel come together, see there.
        proposal_weight, box_weight, mask_weight, background_weight: Of the losses of the proposal
            head (both), the box head (both), the mask head and the background branch.
        panoptic_score: Least score of an instance in the panoptic map.
        panoptic_overlap: Most of its area that better instances may have taken already.
        stuff_area: Least pixels of a stuff segment, in the image as given.
        precedence: Pairs (upper, lower) of thing labels; upper takes lower's pixels.
    """

    num_classes: int = 81
    num_stuff: int = 53
    pam: bool = True
    mam: bool = True
    background_channels: int = 128
    reduction: int = 16
    roi_mode: str = "gather"
    roi_reduction: str = "mean"
    proposal_weight: float = 1.0
    box_weight: float = 1.0
    mask_weight: float = 1.0
    background_weight: float = 0.3
    panoptic_score: float = 0.5
    panoptic_overlap: float = 0.5
    stuff_area: int = 4096
    precedence: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        as_tuple(self, "precedence")
        object.__setattr__(self, "precedence", tuple(tuple(pair) for pair in self.precedence))


class AUNet(MaskRCNN):
    """Mask R-CNN with a background branch that looks where the foreground has found nothing.

    Args:
        config: See :class:`AUNetConfig`.

    The background branch is that of panoptic feature pyramid networks, over levels of stride 4
    to 32. On its way in each level passes a :class:`ProposalAttention` fed by the proposal head's
    hidden map of that level, and the fused map passes a :class:`MaskAttention` fed by the mask
    head's last convolution, in training of the proposals for objects that are trained on, in
    evaluation of the detections. Gradients run back into both heads.

    Forward takes what Mask R-CNN takes; in training a target also has ``semantic``, int64 (H, W),
    0 for any thing, 1 to num_stuff for stuff, 255 for no label. It returns

    - in training, Mask R-CNN's five losses and ``loss_background`` (the mean cross-entropy over the
      labelled pixels), each times its weight, so that their sum is to be minimised;
    - in evaluation, a dict for each image with Mask R-CNN's keys, and ``panoptic``, int64 (H, W),
      segment ids, 0 for void, and ``segments``, a list of dicts: ``id``; ``label``, from 1 among
      the things or the stuff; ``isthing``; ``score``, None for stuff; ``area`` in pixels.

    Raises (forward):
        TypeError, ValueError: images or targets of another form; the message names the argument.

    Example:
        >>> import torch
        >>> from segkern.models import create_model
        >>> model = create_model("aunet", backbone="resnet18", min_size=64, max_size=64).eval()
        >>> with torch.no_grad():
        ...     (found,) = model([torch.zeros(3, 48, 64)])
        >>> tuple(found["panoptic"].shape)
        (48, 64)

    Training draws from torch's generator; evaluation is deterministic.

    The paper leaves open how many layers the branch has, which maps the attention is on, which
    features of the masks are brought back, and how; here as above, RoIUpsample in the mode
    ``roi_mode``. It gives no rule of precedence between classes either: the option is empty. The
    foreground's numbers and rules are torchvision's, with an output for the background among the
    boxes and masks of the classes that is never used.
    """

    network = "aunet"

    def __init__(self, config: AUNetConfig) -> None:
        _check_config(config)
        super().__init__(config)
        self.options = config
        self.background = BackgroundBranch(
            config.channels, config.background_channels, config.num_stuff + 1, LEVELS
        )
        self.pam = self.mam = None
        if config.pam:
            self.pam = nn.ModuleList(
                ProposalAttention(config.channels, config.channels, config.reduction)
                for _ in range(LEVELS)
            )
        if config.mam:
            self.mam = MaskAttention(
                config.background_channels,
                config.mask_channels,
                config.reduction,
                spatial_scale=1 / STRIDES[0],
                mode=config.roi_mode,
                roi_reduction=config.roi_reduction,
            )

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        check_images(self.network, images)
        if self.training:
            check_targets(
                self.network,
                images,
                targets,
                self.num_classes,
                num_stuff=self.options.num_stuff,
            )
        batch, targets = self.transform(images, targets if self.training else None)
        maps = self.backbone(batch.tensors)
        hidden = self.rpn.head.hidden(maps)
        proposals, proposal_losses = self.rpn(batch, maps, targets, hidden)
        found, losses, seen = self.roi_heads.run(batch, maps, proposals, targets)

        levels = maps[:LEVELS]
        if self.pam is not None:
            attended = zip(self.pam, levels, hidden[:LEVELS], strict=True)
            levels = [attend(level, own) for attend, level, own in attended]
        fused = self.background.fuse(levels)
        if self.mam is not None:
            fused = self.mam(fused, seen.features, seen.boxes)
        logits = enlarge(self.background.predict(fused), STRIDES[0])
        if self.training:
            background = background_loss(logits, [target["semantic"] for target in targets])
            return self._weighted({**losses, **proposal_losses, "loss_background": background})
        results = finish(batch, found)
        semantic = classes_of_pixels(logits, batch.sizes, batch.original)
        return [self._with_panoptic(*each) for each in zip(results, semantic, strict=True)]

    def _weighted(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        weights = {
            loss: getattr(self.options, option)
            for option, owned in WEIGHTED.items()
            for loss in owned
        }
        return {name: loss * weights[name] for name, loss in losses.items()}

    def _with_panoptic(self, result: dict[str, Tensor], semantic: Tensor) -> dict[str, Any]:
        options = self.options
        panoptic, segments = fuse_panoptic(
            result["masks"][:, 0],
            result["labels"],
            result["scores"],
            semantic,
            num_stuff=options.num_stuff,
            score_threshold=options.panoptic_score,
            overlap=options.panoptic_overlap,
            stuff_area=options.stuff_area,
            precedence=options.precedence,
        )
        return {**result, "panoptic": panoptic, "segments": segments}


def _check_config(config: AUNetConfig) -> None:
    check_choice("aunet", "roi_mode", config.roi_mode, MODES)
    check_choice("aunet", "roi_reduction", config.roi_reduction, REDUCTIONS)
    for name in ("num_stuff", "stuff_area", "reduction"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"aunet: {name} must be a positive int, got {value!r}")
    for name in (*WEIGHTED, "panoptic_score", "panoptic_overlap"):
        value = getattr(config, name)
        if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise ValueError(f"aunet: {name} must be at least 0, got {value!r}")
    for pair in config.precedence:
        things = range(1, config.num_classes)
        if len(pair) != 2 or pair[0] not in things or pair[1] not in things or pair[0] == pair[1]:
            raise ValueError(
                "aunet: precedence must be pairs of different labels from 1 to "
                f"{config.num_classes - 1}, got {pair!r}"
            )


RECIPE = dataclasses.replace(
    FOREGROUND_RECIPE,
    notes=(
        "Mask R-CNN's 1x schedule on COCO panoptic train2017, which the panoptic feature pyramid "
        "network was released with: 90 000 iterations, steps at 60 000 and 80 000; its 3x schedule "
        "is epochs=37, milestones=(21/27, 25/27). That network is pam=False, mam=False, "
        "background_weight=0.5. Shorter sides in training are drawn from 640, 672, 704, 736, 768 "
        "and 800: the network's option min_size. Starts from ImageNet weights with frozen norm and "
        "first layers: weights_backbone. The weight of the background's loss, 0.3, has no primary "
        "source."
    ),
    source="detectron2 configs Base-Panoptic-FPN and panoptic_fpn_R_50_1x",
)


@register_model(
    AUNetConfig,
    parameters=46_068_792,
    paper=PAPER,
    recipe=RECIPE,
    head="roi_heads.box_predictor.cls_score.bias",
    reported={
        "COCO test-dev PQ, ResNet-101": 45.2,
        "COCO test-dev PQ of things, ResNet-101": 54.4,
        "COCO test-dev PQ of stuff, ResNet-101": 31.3,
        "COCO test-dev PQ, ResNet-152": 45.5,
        "COCO test-dev PQ of things, ResNet-152": 54.7,
        "COCO test-dev PQ of stuff, ResNet-152": 31.6,
        "COCO test-dev PQ, ResNeXt-152": 46.5,
        "COCO test-dev PQ of things, ResNeXt-152": 55.8,
        "COCO test-dev PQ of stuff, ResNeXt-152": 32.5,
        "Cityscapes val PQ, ResNet-50": 56.4,
        "Cityscapes val PQ of things, ResNet-50": 52.7,
        "Cityscapes val PQ of stuff, ResNet-50": 59.0,
        "Cityscapes val PQ, ResNet-101": 59.0,
        "Cityscapes val PQ of things, ResNet-101": 54.8,
        "Cityscapes val PQ of stuff, ResNet-101": 62.1,
        "COCO val2017 PQ, without attention, ResNet-50 1x": 39.4,
        "COCO val2017 PQ, without attention, ResNet-50 3x": 41.5,
        "COCO val2017 PQ, without attention, ResNet-101 3x": 43.0,
    },
    task="panoptic",
)
def aunet(config: AUNetConfig) -> AUNet:
    """AUNet on ResNet-50 and a feature pyramid, 80 things and 53 kinds of stuff."""
    return AUNet(config)
