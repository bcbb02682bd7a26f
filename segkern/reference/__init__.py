"""The operators in plain torch: the tests' oracle, readable documentation, the export path."""

from segkern.reference.pooling import (
    convert_pool_indices,
    max_pool2d_with_indices,
    max_unpool2d,
)

__all__ = ["convert_pool_indices", "max_pool2d_with_indices", "max_unpool2d"]
