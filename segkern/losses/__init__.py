"""Training losses."""

from segkern.losses.cross_entropy import SegmentationLoss, segmentation_loss

__all__ = ["SegmentationLoss", "segmentation_loss"]
