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


def refuse_where_absent(kernel, case):
    """Skips what Hopper's kernel is not there for."""
    if kernel == "wgmma" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the kernel 'wgmma' needs a GPU of compute capability 9.0")
    if kernel == "wgmma" and case[3] != 1:
        pytest.skip("the kernel 'wgmma' has stride 1 only")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("kernel", ["segkern", "wgmma"])
def test_forward(case, dtype, layout, kernel, cuda):
    refuse_where_absent(kernel, case)
    shape, outputs, side, stride, rate = case
    x = torch.randn(shape, device=cuda).to(dtype, memory_format=layout)
    weight = torch.randn(outputs, shape[1], side, side, device=cuda)
    weight = (weight / (shape[1] * side**2) ** 0.5).to(dtype)
    scale, shift = torch.rand(outputs, device=cuda), torch.randn(outputs, device=cuda)
    window = {"stride": stride, "padding": rate * (side // 2), "dilation": rate}
    plain = F.conv2d(x.double(), weight.double(), **window)
    residual = torch.randn(plain.shape, device=cuda).to(dtype)
    tail = {"scale": scale, "shift": shift, "residual": residual, "activation": "relu"}
    with conv_table.override(dense=kernel):
        results = [ops.atrous_conv2d(x, weight, **window, **tail) for _ in range(20)]
    wanted = plain * scale.double().view(1, -1, 1, 1) + shift.double().view(1, -1, 1, 1)
    assert_close(results[0], (wanted + residual.double()).relu(), dtype)
    assert all(torch.equal(results[0], other) for other in results)
    if shape[2] > 1:
        assert results[0].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[4]], ids=str)
@pytest.mark.parametrize("kernel", ["segkern", "wgmma"])
def test_gradients(case, dtype, kernel, cuda):
    refuse_where_absent(kernel, case)
    shape, outputs, side, _, rate = case
    x = torch.randn(shape, device=cuda).to(dtype)
    weight = torch.randn(outputs, shape[1], side, side, device=cuda)
    weight = (weight / (shape[1] * side**2) ** 0.5).to(dtype)
    window = {"padding": rate * (side // 2), "dilation": rate}
    exact = [t.double().requires_grad_() for t in (x, weight)]
    wanted = F.conv2d(*exact, **window)
    grad = (torch.randn(wanted.shape, device=cuda) / 64).to(dtype)
    wanted.backward(grad.double())
    runs = []
    for _ in range(20):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        with conv_table.override(dense=kernel):
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
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        assert not taken(x.float(), weight.float())
        torch.backends.cudnn.conv.fp32_precision = "tf32"
        assert taken(x.float(), weight.float())
        assert taken(x[:, :12].float(), weight[:, :12].float())
        assert not taken(x[:, :13].float(), weight[:, :13].float())
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    assert not taken(x.double(), weight.double())
    assert not taken(x[:, :12], weight[:, :12])
    assert not taken(x, weight[:3].clone().requires_grad_())
    assert not taken(x, weight.clone().requires_grad_(), Window([2, 1], [2, 2], [2, 2]))
    assert not taken(x, weight.new_zeros(4, 16, 17, 16))
    assert not taken(x, weight, Window([1, 1], [2**30, 0], [1, 1]))
    with torch.no_grad():
        assert taken(x, weight[:3].clone().requires_grad_())


@pytest.mark.parametrize("case", [CASES[0], CASES[2], ((1, 12, 20, 9), 4, 3, 1, 2)], ids=str)
def test_float32_in_tf32(case, cuda):
    """As near to float64 as torch's own TF32, forward and both gradients."""
    shape, outputs, side, _, rate = case
    x = torch.randn(shape, device=cuda)
    weight = torch.randn(outputs, shape[1], side, side, device=cuda) / (shape[1] * side**2) ** 0.5
    window = {"padding": rate * (side // 2), "dilation": rate}
    exact = [t.double().requires_grad_() for t in (x, weight)]
    wanted = F.conv2d(*exact, **window)
    grad = torch.randn(wanted.shape, device=cuda)
    wanted.backward(grad.double())
    leaves = [t.clone().requires_grad_() for t in (x, weight)]
    with conv_table.override(dense="segkern"):
        y = ops.atrous_conv2d(*leaves, **window)
        y.backward(grad)
    for got, reference in ((y, wanted), *((t.grad, e.grad) for t, e in zip(leaves, exact))):
        error = (got.double() - reference).norm() / reference.norm()
        assert error < 2**-10, error


REFUSED = [  # changes to a call of the kernel, and the error
    ({"dtype": torch.float32}, TypeError, "x must be float16 or bfloat16"),
    ({"channels": 12}, ValueError, "x must have a multiple of 8 channels .*, got 12"),
    ({"stride": 2}, ValueError, r"stride must be 1 .*, got \[2, 2\]"),
    ({"kernel": (17, 16)}, ValueError, "weight must have at most 256 taps .*, got 17x16"),
    ({"outputs": 3, "grad": True}, ValueError, "multiple of 8 output channels .*, got 3"),
    ({"padding": 2**30}, ValueError, "x must be smaller"),
    ({}, ValueError, "x must be on a GPU of compute capability 9.0 .*, got cpu"),
]


@pytest.mark.parametrize("change, error, text", REFUSED, ids=[text for _, _, text in REFUSED])
def test_hopper_says_what_it_does_not_take(change, error, text):
    given = {"dtype": torch.bfloat16, "channels": 16, "stride": 1, "kernel": (3, 3)}
    given |= {"outputs": 8, "grad": False, "padding": 8, **change}
    x = torch.zeros(1, given["channels"], 9, 9, dtype=given["dtype"])
    weight = x.new_zeros(given["outputs"], given["channels"], *given["kernel"])
    weight.requires_grad_(given["grad"])
    with conv_table.override(dense="wgmma"), pytest.raises(error, match=f"atrous_conv2d: .*{text}"):
        ops.atrous_conv2d(x, weight, stride=given["stride"], padding=given["padding"])


def test_hopper_is_for_dense_convolutions_only():
    with pytest.raises(ValueError, match="override: grouped must be one of .*, got 'wgmma'"):
        with conv_table.override(grouped="wgmma"):
            pass
    assert not any(rule.choice == "wgmma" for rule in conv_table.TABLE)


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
        for name in ("dense_conv2d", "wgmma_conv2d"):
            library.impl(name, forward, "CPU")
            library.impl(f"_{name}_grad_input", grad_input, "CPU")
            library.impl(f"_{name}_grad_weight", grad_weight, "CPU")
        yield


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "prelu"])
@pytest.mark.parametrize("kernel", ["segkern", "wgmma"])
def test_autograd(activation, layout, kernel, on_the_cpu, monkeypatch):
    monkeypatch.setattr(dense, "check_wgmma", lambda *call: None)
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

    with conv_table.override(dense=kernel):
        y = call(*leaves)
    names, waiting = set(), [y.grad_fn]
    while waiting:
        node = waiting.pop()
        names.add(type(node).__name__)
        waiting += [after for after, _ in node.next_functions if after is not None]
    operator = "wgmma_conv2d" if kernel == "wgmma" else "dense_conv2d"
    assert any(operator in name for name in names), names
    assert y.is_contiguous(memory_format=layout)
    wanted = call(*exact)
    grad = torch.randn(y.shape)
    used = 5 if activation == "prelu" else 4
    got = torch.autograd.grad(y, leaves[:used], grad.to(y.dtype))
    references = torch.autograd.grad(wanted, exact[:used], grad.to(y.dtype).double())
    for mine, reference in zip(got, references):
        error = (mine.double() - reference).norm() / reference.norm()
        assert error < 0.02, error
