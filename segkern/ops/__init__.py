"""Operators: each has a CPU and a CUDA kernel, autograd, a fake kernel for compile and export."""

from segkern.ops._crf_features import image_features
from segkern.ops.aspp import Branch, aspp
from segkern.ops.atrous_conv import atrous_conv2d
from segkern.ops.atrous_separable import atrous_separable_conv2d
from segkern.ops.block_min import block_min_pool, mixture_mean_field
from segkern.ops.dense_crf import dense_crf
from segkern.ops.dynamic_conv import dynamic_conv
from segkern.ops.esp import esp_block
from segkern.ops.gaussian_crf import SolveReport, gaussian_crf
from segkern.ops.local_filter import local_quadratic_filter
from segkern.ops.masks import PackedMasks, mask_iou, pack_masks, packed_from_bits, unpack_masks
from segkern.ops.matrix_nms import matrix_nms
from segkern.ops.max_pool import convert_pool_indices, max_pool2d_with_indices
from segkern.ops.max_unpool import max_unpool2d
from segkern.ops.nms import batched_nms, nms
from segkern.ops.paste_masks import paste_masks
from segkern.ops.permutohedral import Lattice, permutohedral_build, permutohedral_filter
from segkern.ops.pyramid_pool import pyramid_pool
from segkern.ops.resize_bilinear import resize_bilinear
from segkern.ops.roi_align import roi_align
from segkern.ops.roi_upsample import roi_upsample
from segkern.ops.separable_gaussian import separable_gaussian

__all__ = [
    "Branch",
    "Lattice",
    "PackedMasks",
    "SolveReport",
    "aspp",
    "atrous_conv2d",
    "atrous_separable_conv2d",
    "batched_nms",
    "block_min_pool",
    "convert_pool_indices",
    "dense_crf",
    "dynamic_conv",
    "esp_block",
    "gaussian_crf",
    "image_features",
    "local_quadratic_filter",
    "mask_iou",
    "matrix_nms",
    "max_pool2d_with_indices",
    "max_unpool2d",
    "mixture_mean_field",
    "nms",
    "pack_masks",
    "packed_from_bits",
    "paste_masks",
    "permutohedral_build",
    "permutohedral_filter",
    "pyramid_pool",
    "resize_bilinear",
    "roi_align",
    "roi_upsample",
    "separable_gaussian",
    "unpack_masks",
]
