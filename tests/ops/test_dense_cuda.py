"""The tensor-core convolution on CUDA against float64; it is not the default there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from atrous import assert_close

from segkern import ops
from segkern.ops import conv_table, dense
from segkern.ops._convolution import Epilogue, Window

CASES = [  # (N, C, H, W), outputs, kernel, stride, rate
    ((2, 64, 65, 65), 256, 3, 1, 6),
    ((1, 256, 65, 65), 48, 3, 1, 18),
    ((1, 40, 33, 17), 21, 3, 1, 36),
    ((1, 24, 30, 31), 130, 5, 2, 3),
    ((3, 8, 1, 1), 8, 1, 1, 1),
]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case, dtype, layout, cuda):
    shape, outputs, kernel, stride, rate = case
    x = torch.randn(shape, device=cuda).to(dtype, memory_format=layout)
    weight = torch.randn(outputs, shape[1], kernel, kernel, device=cuda)
    weight = (weight / (shape[1] * kernel**2) ** 0.5).to(dtype)
    scale, shift = torch.rand(outputs, device=cuda), torch.randn(outputs, device=cuda)
    window = {"stride": stride, "padding": rate * (kernel // 2), "dilation": rate}
    plain = F.conv2d(x.double(), weight.double(), **window)
    residual = torch.randn(plain.shape, device=cuda).to(dtype)
    tail = {"scale": scale, "shift": shift, "residual": residual, "activation": "relu"}
    with conv_table.override(dense="segkern"):
        results = [ops.atrous_conv2d(x, weight, **window, **tail) for _ in range(20)]
    wanted = plain * scale.double().view(1, -1, 1, 1) + shift.double().view(1, -1, 1, 1)
    assert_close(results[0], (wanted + residual.double()).relu(), dtype)
    assert all(torch.equal(results[0], other) for other in results)
    if shape[2] > 1:
        assert results[0].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[4]], ids=str)
def test_gradients(case, dtype, cuda):
    shape, outputs, kernel, _, rate = case
    x = torch.randn(shape, device=cuda).to(dtype)
    weight = torch.randn(outputs, shape[1], kernel, kernel, device=cuda)
    weight = (weight / (shape[1] * kernel**2) ** 0.5).to(dtype)
    window = {"padding": rate * (kernel // 2), "dilation": rate}
    exact = [t.double().requires_grad_() for t in (x, weight)]
    wanted = F.conv2d(*exact, **window)
    grad = (torch.randn(wanted.shape, device=cuda) / 64).to(dtype)
    wanted.backward(grad.double())
    runs = []
    for _ in range(20):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        with conv_table.override(dense="segkern"):
            ops.atrous_conv2d(*leaves, **window).backward(grad)
        runs.append([t.grad for t in leaves])
    for got, reference in zip(runs[0], exact):
        assert_close(got, reference.grad, dtype)
    for other in runs[1:]:
        assert all(torch.equal(*pair) for pair in zip(runs[0], other))


def test_what_the_kernel_takes():
    """On any device: the rule that sends a call to torch instead."""
    window, plain = Window([1, 1], [2, 2], [2, 2]), Epilogue()

    def taken(x, weight, window=window):
        return dense.takes(x, weight, window, plain)

    x = torch.zeros(1, 16, 9, 9, dtype=torch.bfloat16)
    weight = torch.zeros(8, 16, 3, 3, dtype=torch.bfloat16)
    assert taken(x, weight)
    assert not taken(x.float(), weight.float())
    assert not taken(x[:, :12], weight[:, :12])
    assert not taken(x, weight[:3].clone().requires_grad_())
    assert not taken(x, weight.clone().requires_grad_(), Window([2, 1], [2, 2], [2, 2]))
    assert not taken(x, weight.new_zeros(4, 16, 17, 16))
    assert not taken(x, weight, Window([1, 1], [2**30, 0], [1, 1]))
    with torch.no_grad():
        assert taken(x, weight[:3].clone().requires_grad_())
