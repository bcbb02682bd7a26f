"""The operators in plain torch: the tests' oracle, readable documentation, the export path."""

from segkern.reference.dense_crf import kl_divergence, mean_field
from segkern.reference.gaussian import separable_gaussian
from segkern.reference.permutohedral import Lattice, permutohedral_filter
from segkern.reference.permutohedral import build as permutohedral_build
from segkern.reference.pooling import (
    convert_pool_indices,
    max_pool2d_with_indices,
    max_unpool2d,
)

__all__ = [
    "Lattice",
    "convert_pool_indices",
    "kl_divergence",
    "max_pool2d_with_indices",
    "max_unpool2d",
    "mean_field",
    "permutohedral_build",
    "permutohedral_filter",
    "separable_gaussian",
]
