"""Gradients, schemas, compile and autocast of the atrous operators."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from opcases import LAYOUTS

from segkern import ops
from segkern.ops import conv_table


@pytest.fixture(autouse=True)
def _our_kernels():
    """Ours wherever there is one; the table is tested in test_atrous_errors.py."""
    with conv_table.override(**dict.fromkeys(conv_table.KINDS, "segkern")):
        yield


RAW = torch.ops.segkern


def leaf(*shape, device="cpu", layout="contiguous"):
    x = torch.randn(*shape, dtype=torch.float64, device=device)
    return (LAYOUTS[layout](x) if x.dim() == 4 else x).requires_grad_()


WINDOWS = [((3, 3), 1, 2, 2), ((3, 2), (2, 1), (1, 3), (1, 2)), ((3, 3), 1, 9, 9)]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_depthwise_gradcheck(window, layout, device):
    kernel, stride, dilation, padding = window
    torch.manual_seed(0)
    x, weight = leaf(2, 3, 5, 6, device=device, layout=layout), leaf(3, 1, *kernel, device=device)

    def call(x, weight):
        return ops.atrous_conv2d(
            x, weight, stride=stride, dilation=dilation, padding=padding, groups=3
        )

    assert torch.autograd.gradcheck(call, (x, weight))
    assert torch.autograd.gradgradcheck(call, (x, weight))


@pytest.mark.parametrize("activation", [None, "relu", "prelu"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_epilogue_gradcheck(groups, activation, device):
    torch.manual_seed(1)
    tensors = [
        leaf(2, 4, 4, 5, device=device),
        leaf(4, 4 // groups, 3, 3, device=device),
        *(leaf(4, device=device) for _ in range(3)),
        leaf(2, 4, 4, 5, device=device),
        leaf(4, device=device),
    ]

    def call(x, weight, bias, scale, shift, residual, slope):
        return ops.atrous_conv2d(
            x,
            weight,
            bias,
            padding=2,
            dilation=2,
            groups=groups,
            scale=scale,
            shift=shift,
            residual=residual,
            activation=activation,
            activation_weight=slope if activation == "prelu" else None,
        )

    assert torch.autograd.gradcheck(call, tensors)


def test_compositions_gradcheck(device):
    torch.manual_seed(2)
    x, square = leaf(2, 3, 4, 5, device=device), leaf(3, 3, 1, 1, device=device)
    taps, vector = leaf(3, 1, 3, 3, device=device), leaf(3, device=device)
    branches = [leaf(2, 3, 3, 3, device=device) for _ in range(4)]
    wide, slope = leaf(8, device=device), leaf(8, device=device)
    projection = leaf(2, 6, 1, 1, device=device)

    def separable(x, taps, square, vector):
        return ops.atrous_separable_conv2d(
            x,
            taps,
            square,
            padding=2,
            dilation=2,
            depthwise_scale=vector,
            depthwise_activation="relu",
            scale=vector,
            shift=vector,
        )

    def esp(x, square, wide, slope, *branches):
        return ops.esp_block(
            x,
            square,
            branches,
            scale=wide,
            shift=wide,
            activation="prelu",
            activation_weight=slope,
        )

    def aspp(x, square, projection):
        pyramid = [ops.Branch(square, activation=None), ops.Branch(square, pool=True)]
        return ops.aspp(x, pyramid, projection, activation=None)

    assert torch.autograd.gradcheck(separable, (x, taps, square, vector))
    assert torch.autograd.gradcheck(esp, (x, square, wide, slope, *branches))
    assert torch.autograd.gradcheck(aspp, (x, square, projection))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_depthwise_gradients_of_random_windows(layout, dtype, device):
    """Sizes beyond a block of pixels and of channels, where gradcheck is too slow."""
    rng = random.Random(f"{layout}{dtype}")
    torch.manual_seed(3)
    for _ in range(12):
        channels, plane = rng.choice([5, 70]), (rng.choice([9, 33]), rng.choice([16, 41]))
        stride, rate = rng.choice([1, 2, (1, 3)]), rng.choice([1, 6, 18])
        window = {"stride": stride, "padding": rate, "dilation": rate, "groups": channels}
        x = LAYOUTS[layout](torch.randn(2, channels, *plane).to(device, dtype)).requires_grad_()
        weight = torch.randn(channels, 1, 3, 3).to(device, dtype).requires_grad_()
        result = ops.atrous_conv2d(x, weight, **window)
        upper = torch.randn(result.shape).to(device, dtype)
        given = torch.autograd.grad(result, (x, weight), upper)
        wide = [t.detach().double().requires_grad_() for t in (x, weight)]
        expected = torch.autograd.grad(F.conv2d(*wide, **window), wide, upper.double())
        for ours, theirs in zip(given, expected, strict=True):
            # Weight gradients are sums of up to 2 * 33 * 41 products: relative to their size.
            limit = (2e-5 if dtype == torch.float32 else 8e-3) * (1 + theirs.abs().max().item())
            assert (ours.double() - theirs).abs().max().item() <= limit


def raw_cases(device, grad):
    def tensor(*shape, layout="contiguous"):
        x = torch.randn(*shape, device=device)
        return (LAYOUTS[layout](x) if len(shape) == 4 else x).requires_grad_(grad)

    window = ([1, 1], [2, 2], [2, 2])
    x = tensor(2, 4, 7, 9, layout="contiguous" if grad else "channels_last")
    vector, square = tensor(4), tensor(4, 4, 1, 1)
    yield "depthwise_conv2d", (x, tensor(4, 1, 3, 3), vector, vector, x, vector, *window, 2)
    yield "_relayout", (x, grad)
    yield "_depthwise_conv2d_grad_input", (x, tensor(4, 1, 3, 3), 7, 9, *window)
    yield "_depthwise_conv2d_grad_weight", (x, x, 3, 3, *window)
    if not grad:
        inner = (tensor(4, 1, 3, 3), vector, vector, None, square)
        yield "separable_conv2d", (x, *inner, vector, None, x, vector, *window, 1, 2)
        branches = [tensor(2, 4, 3, 3), tensor(2, 4, 3, 3)]
        yield "esp_pyramid", (x, square, branches, [1, 1, 2, 2], x, vector, None, None, True, 1)


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(grad):
    torch.manual_seed(4)
    for name, given in raw_cases("cpu", grad):
        results = torch.library.opcheck(getattr(RAW, name).default, given)
        assert set(results.values()) == {"SUCCESS"}, (name, results)


class AllOperators(torch.nn.Module):
    """Every operator once."""

    def __init__(self) -> None:
        super().__init__()
        self.taps = torch.nn.Parameter(torch.randn(8, 1, 3, 3) / 3)
        self.dense = torch.nn.Parameter(torch.randn(8, 8, 3, 3) / 9)
        self.square = torch.nn.Parameter(torch.randn(8, 8, 1, 1) / 3)
        self.branches = torch.nn.ParameterList(torch.randn(2, 8, 3, 3) / 9 for _ in range(4))
        self.vector = torch.nn.Parameter(torch.rand(8))
        self.projection = torch.nn.Parameter(torch.randn(8, 16, 1, 1) / 4)

    def forward(self, x):
        x = ops.atrous_conv2d(
            x,
            self.taps,
            padding=6,
            dilation=6,
            groups=8,
            scale=self.vector,
            activation="prelu",
            activation_weight=self.vector,
        )
        x = ops.atrous_conv2d(x, self.dense, padding=12, dilation=12, residual=x)
        x = ops.atrous_separable_conv2d(x, self.taps, self.square, padding=2, dilation=2)
        x = ops.esp_block(x, self.square, list(self.branches), residual=True, shift=self.vector)
        pyramid = [ops.Branch(self.square), ops.Branch(self.square, pool=True)]
        return ops.aspp(x, pyramid, self.projection)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("grad", [False, True])
def test_compile_fullgraph(grad):
    torch.manual_seed(5)
    torch._dynamo.reset()
    model = AllOperators().requires_grad_(grad)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in ((17, 20), (24, 31)):
        x = torch.randn(2, 8, *size)
        result, expected = compiled(x), model(x)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
        if grad:
            ours = torch.autograd.grad(result.square().mean(), model.parameters())
            theirs = torch.autograd.grad(expected.square().mean(), model.parameters())
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("grad", [False, True])
def test_autocast_is_lower(grad, device):
    torch.manual_seed(6)
    model = AllOperators().to(device).requires_grad_(grad)
    x = torch.randn(2, 8, 17, 20, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        result = model(x)
    assert result.dtype == torch.bfloat16
    expected = copy.deepcopy(model).double()(x.double())
    scale = expected.abs().max()
    assert (result.double() - expected).abs().max() < 0.05 * scale
    if grad:
        result.float().sum().backward()
        assert model.taps.grad.dtype == torch.float32


def test_choices_agree(device):
    """Whatever the table says, the numbers are the same."""
    torch.manual_seed(7)
    model = AllOperators().to(device).requires_grad_(False)
    x = torch.randn(2, 8, 17, 20, device=device)
    results = []
    for choice in conv_table.CHOICES:
        with conv_table.override(**dict.fromkeys(conv_table.KINDS, choice)):
            results.append(model(x))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-4)
