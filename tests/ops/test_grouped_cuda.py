"""Small groups and the fused separable convolution on CUDA against float64, where they are not the
default, and what of them runs without a device: the rules that choose them.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from atrous import assert_close

from segkern import ops
from segkern.ops import conv_table, grouped, separable
from segkern.ops._convolution import Epilogue, Window

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)

GROUPED = [  # (N, C, H, W), outputs, groups, kernel, stride, rate
    ((2, 128, 65, 65), 128, 32, 3, 1, 6),
    ((1, 64, 33, 40), 32, 2, 3, 2, 1),
    ((1, 12, 9, 7), 36, 12, 3, 1, 18),
    ((3, 10, 1, 1), 6, 2, 1, 1, 1),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", GROUPED, ids=str)
def test_small_groups(case, dtype, layout, cuda):
    shape, outputs, groups, side, stride, rate = case
    fan = shape[1] // groups * side**2
    x = torch.randn(shape, device=cuda).to(dtype, memory_format=layout)
    weight = (torch.randn(outputs, shape[1] // groups, side, side, device=cuda) / fan**0.5).to(
        dtype
    )
    window = {"stride": stride, "padding": rate * (side // 2), "dilation": rate, "groups": groups}
    exact = [t.double().requires_grad_() for t in (x, weight)]
    wanted = F.conv2d(*exact, **window)
    grad = (torch.randn(wanted.shape, device=cuda) / 64).to(dtype, memory_format=layout)
    wanted.backward(grad.double())
    runs = []
    for _ in range(20):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        with conv_table.override(grouped="segkern"):
            y = ops.atrous_conv2d(*leaves, **window)
            y.backward(grad)
        runs.append([y.detach(), *(t.grad for t in leaves)])
    for got, reference in zip(runs[0], (wanted, exact[0].grad, exact[1].grad)):
        assert_close(got, reference.detach(), dtype)
    for other in runs[1:]:
        assert all(torch.equal(*pair) for pair in zip(runs[0], other))
    if shape[2] > 1:
        assert runs[0][0].is_contiguous(memory_format=layout)


SEPARABLE = [  # (N, C, H, W), outputs, kernel, stride, rate
    ((2, 64, 65, 65), 256, 3, 1, 6),
    ((1, 256, 33, 33), 48, 3, 1, 18),
    ((3, 40, 9, 7), 301, 5, 2, 2),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", SEPARABLE, ids=str)
def test_separable(case, dtype, layout, cuda):
    shape, outputs, side, stride, rate = case
    channels = shape[1]
    x = torch.randn(shape, device=cuda).to(dtype, memory_format=layout)
    depthwise = (torch.randn(channels, 1, side, side, device=cuda) / side).to(dtype)
    pointwise = (torch.randn(outputs, channels, 1, 1, device=cuda) / channels**0.5).to(dtype)
    norms = [torch.rand(n, device=cuda) + 0.5 for n in (channels, channels, outputs, outputs)]
    window = {"stride": stride, "padding": rate * (side // 2), "dilation": rate}
    with torch.no_grad(), conv_table.override(separable="segkern"):
        results = [
            ops.atrous_separable_conv2d(
                x,
                depthwise,
                pointwise,
                **window,
                depthwise_scale=norms[0],
                depthwise_shift=norms[1],
                depthwise_activation="relu",
                scale=norms[2],
                shift=norms[3],
                activation="relu",
            )
            for _ in range(20)
        ]
    norms = [t.double().view(1, -1, 1, 1) for t in norms]
    hidden = F.conv2d(x.double(), depthwise.double(), **window, groups=channels)
    hidden = (hidden * norms[0] + norms[1]).relu().to(dtype).double()
    wanted = (F.conv2d(hidden, pointwise.double()) * norms[2] + norms[3]).relu()
    if dtype == torch.float32:  # the product is in TF32
        assert (results[0].double() - wanted).norm() < 2**-10 * wanted.norm()
    else:
        assert_close(results[0], wanted, dtype)
    assert all(torch.equal(results[0], other) for other in results)
    assert results[0].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_separable_gradients(dtype, layout, cuda):
    shape, outputs, side, _, rate = SEPARABLE[0]
    x = torch.randn(shape, device=cuda).to(dtype, memory_format=layout)
    depthwise = (torch.randn(shape[1], 1, side, side, device=cuda) / side).to(dtype)
    pointwise = (torch.randn(outputs, shape[1], 1, 1, device=cuda) / shape[1] ** 0.5).to(dtype)
    scale = torch.rand(shape[1], device=cuda) + 0.5
    window = {"padding": rate, "dilation": rate}
    leaves = [t.requires_grad_() for t in (x, depthwise, pointwise, scale)]
    with conv_table.override(separable="segkern"):
        y = ops.atrous_separable_conv2d(
            *leaves[:3],
            **window,
            depthwise_scale=scale,
            depthwise_activation="prelu",
            depthwise_activation_weight=torch.full((1,), 0.25, device=cuda),
        )
    exact = [t.detach().double().requires_grad_() for t in leaves]
    hidden = F.conv2d(*exact[:2], **window, groups=shape[1]) * exact[3].view(1, -1, 1, 1)
    wanted = F.conv2d(F.leaky_relu(hidden, 0.25), exact[2])
    grad = torch.randn_like(y) / 64
    y.backward(grad)
    wanted.backward(grad.double())
    unit = 2**-10 if dtype == torch.float32 else torch.finfo(dtype).eps  # products are in TF32
    for ours, theirs in zip(leaves, exact, strict=True):
        assert (ours.grad.double() - theirs.grad).norm() < 2 * unit * theirs.grad.norm()


def test_what_the_kernels_take():
    """On any device: the rules that send a call to torch instead."""
    window, plain = Window([1, 1], [1, 1], [1, 1]), Epilogue()

    def taken(channels, outputs, groups):
        x = torch.zeros(1, channels, 9, 9)
        weight = torch.zeros(outputs, channels // groups, 3, 3)
        return grouped.takes(x, weight, window, groups, plain)

    assert taken(64, 64, 2)
    assert taken(3, 96, 3)
    assert not taken(68, 64, 2)
    assert not taken(64, 68, 2)
    assert separable.takes(torch.zeros(1, 3, 9, 9), window)  # the CPU's takes everything
