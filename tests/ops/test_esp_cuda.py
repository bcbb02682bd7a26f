"""The spatial pyramid's kernel for CUDA against float64, where it is not the default, and which
calls it takes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from atrous import assert_close

from segkern import nn, ops
from segkern.ops import conv_table, esp

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)

PYRAMIDS = [  # (N, M, H, W), channels of the reduced map or None, of the branches, rates
    ((1, 64, 128, 256), 12, (16, 12, 12, 12, 12), (1, 2, 4, 8, 16)),
    ((2, 128, 33, 70), 25, (28, 25, 25, 25, 25), (1, 2, 4, 8, 16)),
    ((3, 20, 5, 7), 4, (4, 4, 4, 4, 4), (1, 2, 4, 8, 16)),
    ((1, 13, 19, 35), None, (37, 5, 5), (3, 40, 2)),
    ((2, 8, 1, 1), 3, (8,), (1,)),
]


def pyramid(case, dtype, layout, device):
    """(arguments of esp_block with everything on, the float64 result)."""
    shape, reduced, outputs, rates = case
    channels, width = sum(outputs), reduced or shape[1]
    x = torch.randn(shape, device=device).to(dtype, memory_format=layout)
    reduce = None
    if reduced:
        reduce = torch.randn(reduced, shape[1], 1, 1, device=device) / shape[1] ** 0.5
        reduce = reduce.to(dtype)
    weights = [
        (torch.randn(n, width, 3, 3, device=device) / (3 * width**0.5)).to(dtype) for n in outputs
    ]
    residual = torch.randn(shape[0], channels, *shape[2:], device=device)
    residual = residual.to(dtype, memory_format=layout)
    scale, shift, slope = torch.rand(3, channels, device=device) + 0.5
    y = x.double()
    if reduced:
        y = F.conv2d(y, reduce.double()).to(dtype).double()
    parts = []
    for k, (weight, rate) in enumerate(zip(weights, rates, strict=True)):
        part = F.conv2d(y, weight.double(), padding=rate, dilation=rate)
        parts.append(part + parts[k - 1] if k >= 2 else part)
    wanted = (torch.cat(parts, 1) + residual.double()) * scale.double().view(1, -1, 1, 1)
    wanted = F.prelu(wanted + shift.double().view(1, -1, 1, 1), slope.double())
    given = {"dilations": rates, "residual": residual, "scale": scale, "shift": shift}
    given |= {"activation": "prelu", "activation_weight": slope}
    return (x, reduce, weights), given, wanted


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", PYRAMIDS, ids=str)
def test_pyramid(case, dtype, layout, cuda):
    arguments, given, wanted = pyramid(case, dtype, layout, cuda)
    with torch.no_grad(), conv_table.override(esp="segkern"):
        results = [ops.esp_block(*arguments, **given) for _ in range(20)]
    if dtype == torch.float32:  # products are in TF32
        assert (results[0].double() - wanted).norm() < 2**-9 * wanted.norm()
    else:
        assert_close(results[0], wanted, dtype)
    assert all(torch.equal(results[0], other) for other in results)
    if case[0][2] > 1:
        assert results[0].is_contiguous(memory_format=layout)


def test_module_and_graph(cuda):
    """The layer in a CUDA graph, on memory that starts anywhere."""
    model = nn.ESPModule(64, 64).to(cuda, torch.float16).eval()
    odd = torch.randn(64 * 33 * 70 + 1, device=cuda).half()[1:].view(1, 64, 33, 70)
    x = torch.randn(1, 64, 33, 70, device=cuda).half()
    with torch.no_grad():
        expected = [model(t) for t in (odd, x)]
        with conv_table.override(esp="segkern"):
            assert_close(model(odd), expected[0].double(), torch.float16, 4)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = model(x)
        graph.replay()
        assert_close(result, expected[1].double(), torch.float16, 4)


def test_with_gradients_the_composition_runs(cuda):
    x = torch.randn(1, 8, 9, 9, device=cuda).half().requires_grad_()
    weights = [torch.randn(4, 8, 3, 3, device=cuda).half() for _ in range(2)]
    with conv_table.override(esp="segkern"):
        y = ops.esp_block(x, None, weights)
    assert y.grad_fn is not None and "esp" not in y.grad_fn.name()


def test_what_the_kernel_takes(monkeypatch):
    """On any device: the rules that send a call to torch instead."""

    class OnCuda:
        is_cuda = True

        def __init__(self, dtype):
            self.dtype = dtype

    assert esp.takes(torch.zeros(1, 1, 1, 1, dtype=torch.float64), True)  # the CPU's takes all
    assert esp.takes(OnCuda(torch.float16), False)
    assert not esp.takes(OnCuda(torch.float16), True)
    assert not esp.takes(OnCuda(torch.float64), False)
    for allowed in (True, False):
        monkeypatch.setattr(esp, "tf32_allowed", lambda allowed=allowed: allowed)
        assert esp.takes(OnCuda(torch.float32), False) == allowed
