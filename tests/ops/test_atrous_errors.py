"""Bad input to the atrous operators, and the table that chooses their kernels."""

from __future__ import annotations

import re

import pytest
import torch

from segkern import ops
from segkern.ops import conv_table

X = torch.zeros(1, 4, 8, 8)
W = torch.zeros(4, 4, 3, 3)
TAPS = torch.zeros(4, 1, 3, 3)
SQUARE = torch.zeros(4, 4, 1, 1)
V = torch.zeros(4)
BRANCH = ops.Branch(W)


def conv(x=X, weight=W, **given):
    return lambda: ops.atrous_conv2d(x, weight, **given)


def separable(x=X, taps=TAPS, weight=SQUARE, **given):
    return lambda: ops.atrous_separable_conv2d(x, taps, weight, **given)


def esp(x=X, reduce=SQUARE, branches=(W,), **given):
    return lambda: ops.esp_block(x, reduce, branches, **given)


def pyramid(x=X, branches=(BRANCH,), projection=SQUARE, **given):
    return lambda: ops.aspp(x, branches, projection, **given)


ERRORS = [
    (conv(x=None), TypeError, "atrous_conv2d: x must be a Tensor, got NoneType"),
    (conv(x=X[0]), ValueError, "x must be (N, C, H, W), got (4, 8, 8)"),
    (conv(x=X.int()), TypeError, "x must be float64, float32, float16 or bfloat16, got torch.int"),
    (conv(weight=W[0]), ValueError, "weight must be (C_out, C_in / groups, kh, kw)"),
    (conv(weight=W[:, :3]), ValueError, "weight must have C_in / groups = 4 input channels"),
    (conv(weight=W.double()), TypeError, "weight must have the dtype of x, torch.float32"),
    (conv(weight=W.to("meta")), ValueError, "weight must be on the device of x, cpu, got meta"),
    (conv(weight=W[:, :, :0]), ValueError, "weight must have a kernel of at least 1x1"),
    (conv(groups=3), ValueError, "groups must divide the channels of x, 4, got 3"),
    (conv(weight=W[:3, :2], groups=2), ValueError, "groups must divide the output channels"),
    (conv(groups=0), ValueError, "groups must be a positive integer, got 0"),
    (conv(groups=True), ValueError, "groups must be a positive integer, got True"),
    (conv(stride=0), ValueError, "stride must be at least 1, got 0"),
    (conv(dilation=(1, 0)), ValueError, "dilation must be at least 1, got (1, 0)"),
    (conv(dilation=2**40), ValueError, "dilation must be less than 2**31"),
    (conv(stride=2**63), ValueError, "stride must be less than 2**31"),
    (conv(padding=2**62), ValueError, "padding must be less than 2**31"),
    (conv(padding=-1), ValueError, "padding must be at least 0, got -1"),
    (conv(padding="full"), ValueError, "padding must be integers, 'same' or 'valid', got 'full'"),
    (conv(padding="same", stride=2), ValueError, "padding 'same' must have stride 1"),
    (conv(padding=1.5), ValueError, "padding must be an integer or a pair of integers"),
    (conv(dilation=4), ValueError, "x must be large enough for its kernel, got (8, 8)"),
    (conv(x=X[:, :, :0]), ValueError, "x must be large enough for its kernel, got (0, 8)"),
    (conv(padding_mode="wrap"), ValueError, "padding_mode must be one of 'zeros', 'reflect'"),
    (conv(scale=V[:3]), ValueError, "scale must be (4,), got (3,)"),
    (conv(shift=X), ValueError, "shift must be (4,), got (1, 4, 8, 8)"),
    (conv(bias=V.int()), TypeError, "bias must be a floating tensor, got torch.int32"),
    (conv(bias=V.to("meta")), ValueError, "bias must be on the device of x, cpu, got meta"),
    (conv(residual=X), ValueError, "residual must be the shape of the output, (1, 4, 6, 6)"),
    (conv(activation="gelu"), ValueError, "activation must be None, 'relu' or 'prelu', got 'gelu'"),
    (conv(activation="prelu"), ValueError, "activation_weight must be given for 'prelu'"),
    (conv(activation_weight=V), ValueError, "activation_weight must be given for 'prelu'"),
    (
        conv(activation="prelu", activation_weight=V[:2]),
        ValueError,
        "activation_weight must be (4,) or (1,), got (2,)",
    ),
    (separable(taps=W), ValueError, "depthwise_weight must have C_in / groups = 1"),
    (separable(weight=W), ValueError, "pointwise_weight must be (C_out, 4, 1, 1)"),
    (separable(depthwise_scale=V[:1]), ValueError, "depthwise_scale must be (4,), got (1,)"),
    (esp(branches=()), ValueError, "branch_weights must be 1 to 16 tensors, got 0"),
    (esp(branches=[W] * 17), ValueError, "branch_weights must be 1 to 16 tensors, got 17"),
    (esp(branches=(W[:, :3],)), ValueError, "branch_weights[0] must be (n_k, 4, kh, kw)"),
    (esp(branches=(W, SQUARE)), ValueError, "branch_weights[1] must have the odd kernel"),
    (esp(branches=(W, W, W[:3])), ValueError, "branch_weights[2] must have the channels of the"),
    (esp(dilations=[1, 2]), ValueError, "dilations must be one a branch, got 2 for 1 branches"),
    (esp(reduce=W[:, :, :2]), ValueError, "reduce_weight must have an odd kernel"),
    (esp(branches=(W, W), residual=True), ValueError, "residual must be the shape of the output"),
    (pyramid(branches=()), ValueError, "branches must be at least one, got none"),
    (pyramid(projection=W), ValueError, "projection must be (C_out, 4, 1, 1)"),
    (pyramid(x=X[:, :, :0]), ValueError, "x must have at least one pixel, got (1, 4, 0, 8)"),
    (pyramid(activation="prelu"), ValueError, "activation must be None or 'relu', got 'prelu'"),
    (pyramid(branches=(ops.Branch(W[:, :, :2]),)), ValueError, "branches[0].weight must be"),
]


@pytest.mark.parametrize("call, kind, text", ERRORS, ids=[text[:50] for _, _, text in ERRORS])
def test_errors(call, kind, text):
    with pytest.raises(kind, match=re.escape(text)):
        call()


RAW = torch.ops.segkern
WINDOW = ([1, 1], [0, 0], [1, 1])
NONE = (None,) * 4
RAW_ERRORS = [
    (lambda: RAW.depthwise_conv2d(X, W, *NONE, *WINDOW, 0), "weight must be (C, 1, kh, kw)"),
    (lambda: RAW.depthwise_conv2d(X, TAPS, *NONE, *WINDOW, 3), "activation must be 0, 1 or 2"),
    (lambda: RAW.depthwise_conv2d(X, TAPS, *NONE, *WINDOW, 2), "slope must be given for PReLU"),
    (lambda: RAW.depthwise_conv2d(X, TAPS, V[:2], *NONE[1:], *WINDOW, 0), "scale must be (4,)"),
    (
        lambda: RAW.depthwise_conv2d(X, TAPS, *NONE, [0, 1], *WINDOW[1:], 0),
        "stride must be two integers from 1 to 2**31, got (0, 1)",
    ),
    (
        lambda: RAW.depthwise_conv2d(X, TAPS, *NONE, [1, 1], [0, 0], [9, 9], 0),
        "input must be large enough for its kernel, got 8x8",
    ),
    (lambda: RAW._depthwise_conv2d_grad_input(X, TAPS, 9, 9, *WINDOW), "grad must be (1, 4, 7, 7)"),
    (lambda: RAW._depthwise_conv2d_grad_weight(X, X, 3, 3, *WINDOW), "grad must be (1, 4, 6, 6)"),
    (
        lambda: RAW.grouped_conv2d(X, W, *NONE, *WINDOW, 2, 0),
        "weight must be (C_out, C_in / groups, kh, kw) for 4 input channels and groups 2",
    ),
    (lambda: RAW.grouped_conv2d(X, W, *NONE, *WINDOW, 0, 0), "channels and groups 0"),
    (
        lambda: RAW._grouped_conv2d_grad_input(X[:, :3], W, 8, 8, *WINDOW, 1),
        "weight must be (C_out, C_in / groups, kh, kw) for 3 output channels",
    ),
    (
        lambda: RAW._grouped_conv2d_grad_weight(X, X, 3, 3, *WINDOW, 3),
        "groups must divide the channels of input and grad, got 3",
    ),
    (
        lambda: RAW.separable_conv2d(X, None, *NONE[:3], W, *NONE, *WINDOW, 0, 0),
        "weight must be (4, 4, 1, 1), got (4, 4, 3, 3)",
    ),
    (
        lambda: RAW.separable_conv2d(X, None, *NONE[:3], SQUARE, *NONE, [2, 2], *WINDOW[1:], 0, 0),
        "stride must be 1 and padding 0 where there is no depthwise_weight",
    ),
    (lambda: RAW.esp_pyramid(X, None, [], [], *NONE, True, 0), "weights must be 1 to 16 tensors"),
    (lambda: RAW.esp_pyramid(X, None, [W], [1], *NONE, True, 0), "rates must be two a branch"),
    (lambda: RAW.esp_pyramid(X, None, [W], [1, 0], *NONE, True, 0), "rates must be from 1"),
    (
        lambda: RAW.esp_pyramid(X, None, [W[:, :, :2]], [1, 1], *NONE, True, 0),
        "weights must have odd kernels",
    ),
]


@pytest.mark.parametrize("call, text", RAW_ERRORS, ids=[text[:50] for _, text in RAW_ERRORS])
def test_raw_errors(call, text):
    with pytest.raises(RuntimeError, match=re.escape(text)):
        call()


# ---- the table --------------------------------------------------------------------------------


def test_every_rule_can_be_reached():
    """Rules name kernels that exist, and none hides behind an earlier one."""
    for k, rule in enumerate(conv_table.TABLE):
        assert rule.choice in conv_table.CHOICES
        assert rule.kind in conv_table.KINDS
        if rule.choice == "segkern":
            assert conv_table.has_kernel(rule.device, rule.kind)
        for earlier in conv_table.TABLE[:k]:
            assert earlier[1:7] != rule[1:7]


def test_cuda_kernels_are_not_the_default_yet():
    """What has never run on hardware is never the default there."""
    kernels = ("depthwise", "grouped", "dense", "separable", "esp")
    assert conv_table.KERNELS["cuda"] == kernels
    assert not any(r.device == "cuda" and r.choice == "segkern" for r in conv_table.TABLE)


def test_rows():
    def choose(kind, dtype, rate, channels_last, channels=1):
        x = torch.zeros(1, 1, 1, 1, dtype=dtype)
        return conv_table.choose(kind, x, [1, rate], channels_last, channels)

    for layout in (False, True):
        assert choose("depthwise", torch.float32, 18, layout) == "segkern"
        assert choose("depthwise", torch.float16, 1, layout) == "segkern"
    assert choose("depthwise", torch.float32, 6, False) == "segkern"
    assert choose("depthwise", torch.bfloat16, 6, True) == "torch"
    assert choose("pointwise", torch.float32, 1, True) == "segkern"
    assert choose("pointwise", torch.bfloat16, 1, True) == "torch"
    assert choose("separable", torch.float32, 18, False) == "segkern"
    assert choose("dense", torch.float32, 18, False) == "torch_channels_last"
    assert choose("dense", torch.float32, 18, True) == "torch"
    assert choose("dense", torch.float32, 6, False) == "torch"
    assert choose("grouped", torch.float32, 6, False, 8) == "segkern"
    assert choose("grouped", torch.float32, 6, False, 9) == "torch"
    assert choose("grouped", torch.float32, 6, True, 4) == "torch"


def test_override():
    x = torch.zeros(1, 1, 1, 1)
    with conv_table.override(depthwise="torch"):
        assert conv_table.choose("depthwise", x, [1, 1], False) == "torch"
        with conv_table.override(dense="torch_channels_last"):
            assert conv_table.choose("dense", x, [1, 1], False) == "torch_channels_last"
            assert conv_table.choose("depthwise", x, [1, 1], False) == "torch"
    assert conv_table.choose("depthwise", x, [1, 1], False) == "segkern"
    with conv_table.override(dense="segkern"):  # there is no such kernel
        assert conv_table.choose("dense", x, [1, 1], False) == "torch"
    with pytest.raises(ValueError, match="override: kind must be one of .*, got 'any'"):
        with conv_table.override(any="torch"):
            pass
    with pytest.raises(ValueError, match="override: dense must be one of .*, got 'fast'"):
        with conv_table.override(dense="fast"):
            pass
