"""Transforms of an image and its mask, or its objects, together."""

from segkern.transforms.elastic import ElasticDeformation, deform
from segkern.transforms.instances import (
    HorizontalFlip,
    InstanceTransform,
    LargeScaleJitter,
    RandomCrop,
    build_instance_transform,
)
from segkern.transforms.pair import PairTransform
from segkern.transforms.presets import build_eval_transform, build_train_transform
from segkern.transforms.steps import (
    CropWithMargin,
    PadTo,
    RandomScale,
    RandomTurn,
    ResizePair,
    ScalePair,
    TrimAndResize,
)

__all__ = [
    "CropWithMargin",
    "ElasticDeformation",
    "HorizontalFlip",
    "InstanceTransform",
    "LargeScaleJitter",
    "PadTo",
    "PairTransform",
    "RandomCrop",
    "RandomScale",
    "RandomTurn",
    "ResizePair",
    "ScalePair",
    "TrimAndResize",
    "build_eval_transform",
    "build_instance_transform",
    "build_train_transform",
    "deform",
]
