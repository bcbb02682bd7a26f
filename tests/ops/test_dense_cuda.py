"""The tensor-core convolution on CUDA against float64, where it is not the default, and what of it
runs without a device: the rule that chooses it, and its autograd.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from atrous import assert_close

from segkern import _load, ops
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


@pytest.fixture
def on_the_cpu(monkeypatch):
    """The dense operators by torch, under their own names, on the CPU."""

    def forward(x, weight, scale, shift, residual, slope, stride, padding, dilation, activation):
        y = F.conv2d(x.float(), weight.float(), None, stride, padding, dilation)
        if scale is not None:
            y = y * scale.view(1, -1, 1, 1)
        if shift is not None:
            y = y + shift.view(1, -1, 1, 1)
        if residual is not None:
            y = y + residual
        y = (y, y.relu(), None if slope is None else F.prelu(y, slope))[activation]
        return y.to(x.dtype, memory_format=torch.channels_last)

    def grad_input(grad, weight, input_h, input_w, stride, padding, dilation):
        size = (grad.shape[0], weight.shape[1], input_h, input_w)
        whole = torch.nn.grad.conv2d_input(size, weight, grad, stride, padding, dilation)
        return whole.contiguous(memory_format=torch.channels_last)

    def grad_weight(grad, x, kernel_h, kernel_w, stride, padding, dilation):
        size = (grad.shape[1], x.shape[1], kernel_h, kernel_w)
        whole = torch.nn.grad.conv2d_weight(x, size, grad, stride, padding, dilation)
        return whole.contiguous(memory_format=torch.channels_last)

    monkeypatch.setattr(_load, "require_cuda", lambda op: None)
    monkeypatch.setitem(conv_table.KERNELS, "cpu", (*conv_table.KERNELS["cpu"], "dense"))
    with torch.library._scoped_library("segkern", "IMPL") as library:
        library.impl("dense_conv2d", forward, "CPU")
        library.impl("_dense_conv2d_grad_input", grad_input, "CPU")
        library.impl("_dense_conv2d_grad_weight", grad_weight, "CPU")
        yield


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "prelu"])
def test_autograd(activation, layout, on_the_cpu):
    leaves = [
        torch.randn(2, 16, 9, 7).to(torch.bfloat16, memory_format=layout),
        torch.randn(8, 16, 3, 3).to(torch.bfloat16) / 12,
        *(torch.rand(8) + 0.5 for _ in range(3)),
    ]
    leaves = [t.requires_grad_() for t in leaves]
    exact = [t.detach().double().requires_grad_() for t in leaves]

    def call(x, weight, scale, shift, slope):
        return ops.atrous_conv2d(
            x,
            weight,
            padding=2,
            dilation=2,
            scale=scale,
            shift=shift,
            activation=activation,
            activation_weight=slope if activation == "prelu" else None,
        )

    with conv_table.override(dense="segkern"):
        y = call(*leaves)
    names, waiting = set(), [y.grad_fn]
    while waiting:
        node = waiting.pop()
        names.add(type(node).__name__)
        waiting += [after for after, _ in node.next_functions if after is not None]
    assert any("dense_conv2d" in name for name in names), names
    assert y.is_contiguous(memory_format=layout)
    wanted = call(*exact)
    grad = torch.randn(y.shape)
    used = 5 if activation == "prelu" else 4
    got = torch.autograd.grad(y, leaves[:used], grad.to(y.dtype))
    references = torch.autograd.grad(wanted, exact[:used], grad.to(y.dtype).double())
    for mine, reference in zip(got, references):
        error = (mine.double() - reference).norm() / reference.norm()
        assert error < 0.02, error
