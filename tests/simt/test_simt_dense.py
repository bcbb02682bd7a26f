"""The tensor-core convolution on the CPU: fragments, pipeline, skipped taps and epilogue."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from .arrays import to_array
from .conv_arrays import (
    ConvCase,
    after_sums,
    close_to,
    dense_geometry,
    dense_operands,
    from_memory,
    in_memory,
)
from .harness import ORDERS, Call, check_orders, load, poisoned, run_sanitized

# (case, output channels): odd and many output channels, depths that fill no step, more steps than
# stages and fewer, tiles that end inside an image, strides, taps that all tiles skip, all taps.
CASES = [
    (ConvCase((1, 40, 5, 6), (3, 3), (1, 1), (1, 1), (1, 1)), 21),
    (ConvCase((2, 8, 9, 20), (3, 3), (1, 1), (6, 6), (6, 6)), 8),
    (ConvCase((1, 16, 7, 9), (3, 2), (2, 1), (2, 3), (2, 3)), 130),
    (ConvCase((1, 8, 3, 4), (3, 3), (1, 1), (18, 18), (18, 18)), 5),
    (ConvCase((1, 8, 2, 2), (1, 1), (3, 3), (1, 1), (1, 1)), 4),
    (ConvCase((1, 20, 5, 6), (3, 3), (1, 1), (2, 2), (2, 2)), 3),  # for float32 only
]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def rounded(tensor):
    """What the tensor cores see of float32: ten bits of the fraction, to the nearest."""
    if tensor.dtype != torch.float32:
        return tensor.double()
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).double()


@pytest.mark.parametrize(
    ("number", "dtype"),
    [(k, dtype) for k in range(5) for dtype in DTYPES] + [(5, torch.float32)],
    ids=str,
)
def test_forward(number, dtype):
    module = load("atrous")
    case, outputs = CASES[number]
    x, weight, epilogue, arrays = dense_operands(case, outputs, number, dtype)
    shape = (case.shape[0], outputs, *case.output_size)

    def run():
        out = poisoned(module, (shape[0], shape[2] * shape[3], outputs), arrays[0].dtype)
        module.dense(dense_geometry(case, dtype), outputs, False, epilogue[-1], *arrays, out)
        return out

    (out,) = check_orders(module, run, ORDERS if dtype == torch.float16 else ORDERS[1:3])
    wanted = F.conv2d(rounded(x), rounded(weight), **case.arguments)
    wanted = after_sums(wanted, *epilogue)
    close_to(from_memory(out, shape, True, dtype), wanted, dtype)


# Ragged channels, several images, two parts of the pixels, taps that meet nothing, a padding larger
# than the kernel (it crops in the gradient).
GRADIENTS = [
    (ConvCase((2, 8, 9, 11), (3, 3), (1, 1), (3, 4), (3, 4)), 16),
    (ConvCase((1, 16, 20, 30), (1, 2), (1, 1), (1, 7), (0, 9)), 8),
    (ConvCase((1, 136, 3, 4), (3, 1), (1, 1), (18, 1), (18, 0)), 8),
    (ConvCase((1, 8, 4, 3), (1, 1), (1, 1), (1, 1), (0, 0)), 136),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("number", range(len(GRADIENTS)))
def test_gradients(number, dtype):
    module = load("atrous")
    case, outputs = GRADIENTS[number]
    torch.manual_seed(number)
    x = torch.randn(case.shape).to(dtype)
    weight = torch.randn(outputs, case.shape[1], *case.kernel).to(dtype)
    grad = torch.randn(case.shape[0], outputs, *case.output_size).to(dtype)
    x_array, g_array = in_memory(x, True), in_memory(grad, True)
    exchanged = to_array(weight.permute(1, 2, 3, 0))
    none = np.zeros(0, np.float32)
    forward = dense_geometry(case, dtype)
    backward = dense_geometry(case, dtype, case.transposed, outputs)
    count = module.dense_partial_count(forward, outputs)
    assert (count > weight.numel()) == (number == 1)

    def run():
        grad_x = poisoned(module, x_array.shape, x_array.dtype)
        parts = poisoned(module, count, np.float32)
        grad_w = poisoned(module, (outputs, *case.kernel, case.shape[1]), np.float32)
        tail = (none, none, none, none, grad_x)
        module.dense(backward, case.shape[1], True, 0, g_array, exchanged, *tail)
        module.dense_weight_grad(forward, outputs, g_array, x_array, parts, grad_w)
        return [grad_x, grad_w]

    grad_x, grad_w = check_orders(module, run, ORDERS[1:3])
    exact = [rounded(t).requires_grad_() for t in (x, weight)]
    F.conv2d(*exact, **case.arguments).backward(rounded(grad))
    close_to(from_memory(grad_x, case.shape, True, dtype), exact[0].grad, dtype)
    close_to(torch.from_numpy(grad_w).permute(0, 3, 1, 2), exact[1].grad, torch.float32)


def test_a_nan_reaches_only_its_windows():
    """Rows that a tile fills up with zeros, and skipped taps, must not carry one."""
    module = load("atrous")
    case = ConvCase((1, 8, 9, 9), (3, 3), (1, 1), (4, 4), (4, 4))
    x = torch.ones(case.shape, dtype=torch.bfloat16)
    x[0, 3, 0, 0] = torch.nan
    weight = torch.ones(2, 8, 3, 3, dtype=torch.bfloat16)
    out = np.zeros((1, 81, 2), np.uint16)
    none = np.zeros(0, np.float32)
    arrays = (in_memory(x, True), to_array(weight.permute(0, 2, 3, 1)))
    module.dense(dense_geometry(case, x.dtype), 2, False, 1, *arrays, none, none, none, none, out)
    wanted = F.conv2d(x.double(), weight.double(), None, 1, 4, 4).relu()
    y = from_memory(out, wanted.shape, True, x.dtype)
    assert torch.equal(y.isnan(), wanted.isnan())
    assert torch.equal(y.nan_to_num(), wanted.nan_to_num())


# The taps that the blocks work, of nine for each 128 pixels: below one only by skipping.
@pytest.mark.parametrize(
    ("plane", "rate", "share"),
    [(65, 1, 1.1), (65, 6, 1.1), (65, 12, 0.87), (65, 18, 0.85), (65, 36, 0.49), (33, 18, 0.58)],
)
def test_tiles_skip_taps_in_the_padding(plane, rate, share):
    case = ConvCase((1, 8, plane, plane), (3, 3), (1, 1), (rate, rate), (rate, rate))
    tiles, live = load("atrous").dense_tiles(dense_geometry(case, torch.bfloat16), 128)
    height, width, down, across, _ = tiles
    assert height * width <= 128
    assert (down - 1) * height < plane <= down * height
    assert (across - 1) * width < plane <= across * width
    met = sum(
        any(0 <= y + k * rate < plane for y in range(r, min(r + step, plane)))
        for k in (-1, 0, 1)
        for r, step in ((i * height, height) for i in range(down))
    ) * sum(
        any(0 <= x + k * rate < plane for x in range(c, min(c + step, plane)))
        for k in (-1, 0, 1)
        for c, step in ((i * width, width) for i in range(across))
    )
    assert live == met
    assert live * 128 <= share * 9 * plane * plane


def test_sanitized():
    calls = []
    for number in (2, 3, 4):
        case, outputs = CASES[number]
        _, _, (*_, activation), arrays = dense_operands(case, outputs, number, torch.bfloat16)
        pixels = case.output_size[0] * case.output_size[1]
        out = np.zeros((case.shape[0], pixels, outputs), np.uint16)
        call = (dense_geometry(case, torch.bfloat16), outputs, False, activation, *arrays, out)
        calls.append(Call("dense", call))
    case, outputs = GRADIENTS[2]
    x, g = (
        np.ones((1, plane[0] * plane[1], channels), np.uint16)
        for plane, channels in ((case.shape[2:], 136), (case.output_size, outputs))
    )
    count = load("atrous").dense_partial_count(dense_geometry(case, torch.bfloat16), outputs)
    parts, sums = (np.zeros(n, np.float32) for n in (count, outputs * case.taps * 136))
    call = (dense_geometry(case, torch.bfloat16), outputs, g, x, parts, sums)
    calls.append(Call("dense_weight_grad", call))
    for result in run_sanitized("atrous", calls):
        assert not isinstance(result, RuntimeError), result
