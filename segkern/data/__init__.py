"""Data sets of images with one class index per pixel, samplers and class weights.

``open_dataset("camvid:DIR", "train")`` is the way in; `SegmentationDataset` says what comes out.
"""

from segkern.data._base import IGNORE_INDEX, SegmentationDataset, default_palette, sample_seed
from segkern.data._cache import cache_dir
from segkern.data._errors import DatasetError, Problem
from segkern.data.camvid import CAMVID_CLASSES, CAMVID_PALETTE, CamVid
from segkern.data.cityscapes import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, Cityscapes
from segkern.data.class_weights import SEGNET_CAMVID_WEIGHTS, ClassCounts, class_weights
from segkern.data.collate import collate
from segkern.data.folder import Folder
from segkern.data.image_io import read_image, read_mask
from segkern.data.open import open_dataset
from segkern.data.sampler import EpochSampler
from segkern.data.synthetic import Synthetic
from segkern.data.voc import VOC, VOC_CLASSES

__all__ = [
    "CAMVID_CLASSES",
    "CAMVID_PALETTE",
    "CITYSCAPES_CLASSES",
    "CITYSCAPES_PALETTE",
    "IGNORE_INDEX",
    "SEGNET_CAMVID_WEIGHTS",
    "VOC",
    "VOC_CLASSES",
    "CamVid",
    "Cityscapes",
    "ClassCounts",
    "DatasetError",
    "EpochSampler",
    "Folder",
    "Problem",
    "SegmentationDataset",
    "Synthetic",
    "cache_dir",
    "class_weights",
    "collate",
    "default_palette",
    "open_dataset",
    "read_image",
    "read_mask",
    "sample_seed",
]
