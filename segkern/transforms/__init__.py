"""Transforms of an image and its mask together, on torchvision transforms v2."""

from segkern.transforms.elastic import ElasticDeformation, deform
from segkern.transforms.pair import PairTransform
from segkern.transforms.presets import build_eval_transform, build_train_transform
from segkern.transforms.steps import RandomScale, ResizePair

__all__ = [
    "ElasticDeformation",
    "PairTransform",
    "RandomScale",
    "ResizePair",
    "build_eval_transform",
    "build_train_transform",
    "deform",
]
