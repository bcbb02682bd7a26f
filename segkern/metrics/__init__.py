"""Measures of a segmentation over a whole data set."""

from segkern.metrics.boundary import boundary_f1
from segkern.metrics.coco import CocoEvaluation
from segkern.metrics.confusion import confusion_matrix
from segkern.metrics.panoptic import PanopticQuality
from segkern.metrics.segmentation import SegmentationMetrics

__all__ = [
    "CocoEvaluation",
    "PanopticQuality",
    "SegmentationMetrics",
    "boundary_f1",
    "confusion_matrix",
]
