"""Layers that take the place of torch's, and :func:`convert`, which swaps them into any model.

Every layer here has the constructor, the ``state_dict``, the ``extra_repr`` and the results of the
torch class of the same name, where there is one; what is added is a keyword with a default that
changes no number. Convolutions agree with torch's to rounding.
"""

from segkern.nn._convert import Swap, convert
from segkern.nn._convolutionalize import DenseClassifier, convolutionalize
from segkern.nn.aspp import ASPP
from segkern.nn.atrous import AtrousConv2d, ConvNormAct, SeparableConv2d
from segkern.nn.attach_crf import CRFNetwork, attach_crf
from segkern.nn.crf import BilateralFilter, DenseCRF
from segkern.nn.crf_rnn import CRFAsRNN
from segkern.nn.deep_parsing import LocalQuadraticFilter, MixtureMRF
from segkern.nn.efficient import ASPUnit, MobileNetUnit, ShuffleNetUnit
from segkern.nn.esp import ESPModule
from segkern.nn.frozen_norm import FrozenBatchNorm2d, freeze_batch_norm
from segkern.nn.gaussian_crf import GaussianCRF
from segkern.nn.pooling import MaxPool2d, MaxUnpool2d
from segkern.nn.roi import PyramidRoIAlign, RoIAlign, RoIUpsample
from segkern.nn.upsample import BilinearUpsample

# `segkern.convert` is the function; what else converts networks is found beside it.
convert.convolutionalize = convolutionalize

__all__ = [
    "ASPP",
    "ASPUnit",
    "AtrousConv2d",
    "BilateralFilter",
    "BilinearUpsample",
    "CRFAsRNN",
    "CRFNetwork",
    "ConvNormAct",
    "DenseCRF",
    "DenseClassifier",
    "ESPModule",
    "FrozenBatchNorm2d",
    "GaussianCRF",
    "LocalQuadraticFilter",
    "MaxPool2d",
    "MaxUnpool2d",
    "MixtureMRF",
    "MobileNetUnit",
    "PyramidRoIAlign",
    "RoIAlign",
    "RoIUpsample",
    "SeparableConv2d",
    "ShuffleNetUnit",
    "Swap",
    "attach_crf",
    "convert",
    "convolutionalize",
    "freeze_batch_norm",
]
