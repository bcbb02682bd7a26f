"""The native depthwise convolution. The public call is atrous_conv2d."""

from __future__ import annotations

from torch import Tensor

from segkern import _load
from segkern.ops._conv_autograd import call_convolution, register_convolution
from segkern.ops._convolution import Epilogue, Window
from segkern.ops._pooling import empty_like_layout


def depthwise_conv2d(x: Tensor, weight: Tensor, window: Window, epilogue: Epilogue) -> Tensor:
    """Checked arguments to the native operator."""
    if x.is_cuda:
        _load.require_cuda("atrous_conv2d")
    return call_convolution("depthwise_conv2d", x, weight, window, epilogue)


register_convolution("depthwise_conv2d", empty_like_layout, depthwise=True)
