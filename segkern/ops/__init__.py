"""Operators: each has a CPU and a CUDA kernel, autograd, a fake kernel for compile and export."""

from segkern.ops.aspp import Branch, aspp
from segkern.ops.atrous_conv import atrous_conv2d
from segkern.ops.atrous_separable import atrous_separable_conv2d
from segkern.ops.dense_crf import dense_crf
from segkern.ops.esp import esp_block
from segkern.ops.max_pool import convert_pool_indices, max_pool2d_with_indices
from segkern.ops.max_unpool import max_unpool2d
from segkern.ops.permutohedral import Lattice, permutohedral_build, permutohedral_filter

__all__ = [
    "Branch",
    "Lattice",
    "aspp",
    "atrous_conv2d",
    "atrous_separable_conv2d",
    "convert_pool_indices",
    "dense_crf",
    "esp_block",
    "max_pool2d_with_indices",
    "max_unpool2d",
    "permutohedral_build",
    "permutohedral_filter",
]
