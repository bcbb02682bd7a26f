"""Operators: each has a CPU and a CUDA kernel, autograd, a fake kernel for compile and export."""

from segkern.ops.dense_crf import dense_crf
from segkern.ops.gaussian_crf import SolveReport, gaussian_crf
from segkern.ops.max_pool import convert_pool_indices, max_pool2d_with_indices
from segkern.ops.max_unpool import max_unpool2d
from segkern.ops.permutohedral import Lattice, permutohedral_build, permutohedral_filter

__all__ = [
    "Lattice",
    "SolveReport",
    "convert_pool_indices",
    "dense_crf",
    "gaussian_crf",
    "max_pool2d_with_indices",
    "max_unpool2d",
    "permutohedral_build",
    "permutohedral_filter",
]
