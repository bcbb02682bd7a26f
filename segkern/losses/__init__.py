"""Training losses."""

from segkern.losses.border import border_weights, separate_instances
from segkern.losses.cross_entropy import SegmentationLoss, segmentation_loss
from segkern.losses.dice import dice_loss
from segkern.losses.focal import sigmoid_focal_loss

__all__ = [
    "SegmentationLoss",
    "border_weights",
    "dice_loss",
    "segmentation_loss",
    "separate_instances",
    "sigmoid_focal_loss",
]
