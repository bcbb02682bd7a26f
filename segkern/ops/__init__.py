"""Operators: each has a CPU and a CUDA kernel, autograd, a fake kernel for compile and export."""

from segkern.ops.max_pool import convert_pool_indices, max_pool2d_with_indices
from segkern.ops.max_unpool import max_unpool2d

__all__ = ["convert_pool_indices", "max_pool2d_with_indices", "max_unpool2d"]
