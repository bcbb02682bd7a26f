"""Operators: each has a CPU and a CUDA kernel, autograd, a fake kernel for compile and export."""

from segkern.ops._crf_features import image_features
from segkern.ops.dense_crf import dense_crf
from segkern.ops.max_pool import convert_pool_indices, max_pool2d_with_indices
from segkern.ops.max_unpool import max_unpool2d
from segkern.ops.permutohedral import Lattice, permutohedral_build, permutohedral_filter
from segkern.ops.separable_gaussian import separable_gaussian

__all__ = [
    "Lattice",
    "convert_pool_indices",
    "dense_crf",
    "image_features",
    "max_pool2d_with_indices",
    "max_unpool2d",
    "permutohedral_build",
    "permutohedral_filter",
    "separable_gaussian",
]
