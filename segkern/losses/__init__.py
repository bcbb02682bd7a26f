"""Training losses."""

from segkern.losses.border import border_weights, separate_instances
from segkern.losses.cross_entropy import SegmentationLoss, segmentation_loss

__all__ = ["SegmentationLoss", "border_weights", "segmentation_loss", "separate_instances"]
