"""Training losses."""

from segkern.losses.border import (
    border_cross_entropy,
    border_weights,
    connected_components,
    separate_instances,
)
from segkern.losses.choose import LOSSES, check_loss, pixel_loss
from segkern.losses.cross_entropy import SegmentationLoss, segmentation_loss
from segkern.losses.dice import dice_loss
from segkern.losses.focal import sigmoid_focal_loss
from segkern.losses.hard_pixels import focal_cross_entropy, ohem_cross_entropy
from segkern.losses.overlap import lovasz_softmax_loss, soft_dice_loss

__all__ = [
    "LOSSES",
    "SegmentationLoss",
    "border_cross_entropy",
    "border_weights",
    "connected_components",
    "check_loss",
    "dice_loss",
    "focal_cross_entropy",
    "lovasz_softmax_loss",
    "ohem_cross_entropy",
    "pixel_loss",
    "segmentation_loss",
    "separate_instances",
    "sigmoid_focal_loss",
    "soft_dice_loss",
]
