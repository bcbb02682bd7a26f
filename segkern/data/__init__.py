"""Data sets of images with one class index per pixel, or of single objects; samplers; weights.

``open_dataset("camvid:DIR", "train")`` is the way in; `SegmentationDataset` and `InstanceDataset`
say what comes out.
"""

from segkern.data._base import IGNORE_INDEX, SegmentationDataset, default_palette, sample_seed
from segkern.data._cache import cache_dir
from segkern.data._errors import DatasetError, Problem
from segkern.data._instances import InstanceDataset
from segkern.data.aspect import AspectBatchSampler
from segkern.data.camvid import CAMVID_CLASSES, CAMVID_PALETTE, CamVid
from segkern.data.cityscapes import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, Cityscapes
from segkern.data.class_weights import SEGNET_CAMVID_WEIGHTS, ClassCounts, class_weights
from segkern.data.coco import Coco
from segkern.data.coco_panoptic import CocoPanoptic
from segkern.data.collate import collate, collate_instances
from segkern.data.folder import Folder
from segkern.data.image_io import read_image, read_mask
from segkern.data.open import open_dataset
from segkern.data.sampler import EpochSampler
from segkern.data.synthetic import Synthetic
from segkern.data.synthetic_instances import SyntheticInstances
from segkern.data.voc import VOC, VOC_CLASSES
from segkern.data.voc_instances import VOCInstances

__all__ = [
    "CAMVID_CLASSES",
    "CAMVID_PALETTE",
    "CITYSCAPES_CLASSES",
    "CITYSCAPES_PALETTE",
    "IGNORE_INDEX",
    "SEGNET_CAMVID_WEIGHTS",
    "VOC",
    "VOC_CLASSES",
    "AspectBatchSampler",
    "CamVid",
    "Cityscapes",
    "ClassCounts",
    "Coco",
    "CocoPanoptic",
    "DatasetError",
    "EpochSampler",
    "Folder",
    "InstanceDataset",
    "Problem",
    "SegmentationDataset",
    "Synthetic",
    "SyntheticInstances",
    "VOCInstances",
    "cache_dir",
    "class_weights",
    "collate",
    "collate_instances",
    "default_palette",
    "open_dataset",
    "read_image",
    "read_mask",
    "sample_seed",
]
