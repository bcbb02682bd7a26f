"""Dense CRF with the calls of pydensecrf: ``import segkern.crf as dcrf`` is the whole migration.

Names, argument orders, layouts and constants are those of pydensecrf's ``densecrf`` module, and of
its ``utils`` in :mod:`segkern.crf.utils`. What is new is ``device``. What pydensecrf does and this
does not, raises.

Example:
    >>> import numpy as np
    >>> import segkern.crf as dcrf
    >>> image = np.zeros((6, 8, 3), np.uint8)
    >>> crf = dcrf.DenseCRF2D(8, 6, 2)
    >>> crf.setUnaryEnergy(np.random.rand(2, 48).astype(np.float32))
    >>> crf.addPairwiseGaussian(sxy=3, compat=3)
    >>> crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
    >>> np.array(crf.inference(5)).shape
    (2, 48)
"""

from segkern.crf import utils
from segkern.crf.densecrf import (
    CONST_KERNEL,
    DIAG_KERNEL,
    FULL_KERNEL,
    NO_NORMALIZATION,
    NORMALIZE_AFTER,
    NORMALIZE_BEFORE,
    NORMALIZE_SYMMETRIC,
    ConstUnary,
    DenseCRF,
    DenseCRF2D,
    LogisticUnary,
)

__all__ = [
    "CONST_KERNEL",
    "DIAG_KERNEL",
    "FULL_KERNEL",
    "NORMALIZE_AFTER",
    "NORMALIZE_BEFORE",
    "NORMALIZE_SYMMETRIC",
    "NO_NORMALIZATION",
    "ConstUnary",
    "DenseCRF",
    "DenseCRF2D",
    "LogisticUnary",
    "utils",
]
