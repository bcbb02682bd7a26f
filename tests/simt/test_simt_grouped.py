"""Convolution of small groups on the CPU: forward, epilogue and both gradients, both layouts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from .arrays import to_array
from .conv_arrays import ConvCase, after_sums, close_to, from_memory, in_memory
from .harness import ORDERS, Call, check_orders, load, poisoned, run_sanitized

# (case, groups, output channels): equal and unequal groups, blocks that are not full, one channel
# in and several out, strides, rates beyond the map, several images and runs of pixels.
CASES = [
    (ConvCase((1, 8, 5, 6), (3, 3), (1, 1), (1, 1), (1, 1)), 4, 8),
    (ConvCase((2, 6, 9, 20), (3, 3), (1, 1), (6, 6), (6, 6)), 2, 10),
    (ConvCase((1, 10, 7, 9), (3, 2), (2, 3), (2, 3), (2, 3)), 2, 6),
    (ConvCase((1, 3, 3, 4), (3, 3), (1, 1), (18, 18), (18, 18)), 3, 15),
    (ConvCase((1, 64, 4, 3), (1, 1), (1, 1), (1, 1), (0, 0)), 2, 8),
    (ConvCase((2, 4, 30, 20), (3, 1), (1, 1), (5, 1), (4, 0)), 2, 4),
]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
EMPTY = np.zeros(0, np.float32)


def geometry(case, dtype, channels_last, channels, fields=None):
    name = str(dtype).removeprefix("torch.")
    return (fields or case.fields, case.shape[0], channels, name, channels_last)


def make(number, dtype):
    case, groups, outputs = CASES[number]
    torch.manual_seed(number)
    x = torch.randn(case.shape, dtype=torch.float64).to(dtype)
    weight = torch.randn(outputs, case.shape[1] // groups, *case.kernel).to(dtype)
    return case, groups, outputs, x, weight


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("number", range(len(CASES)))
def test_forward(number, channels_last):
    module, dtype = load("grouped"), DTYPES[(number + channels_last) % 4]
    case, groups, outputs, x, weight = make(number, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scale, shift = torch.rand(outputs, dtype=wide) + 0.5, torch.randn(outputs, dtype=wide)
    slope = torch.rand(1 if number % 2 else outputs, dtype=wide)
    shape = (case.shape[0], outputs, *case.output_size)
    residual = torch.randn(shape).to(dtype)
    activation = number % 3
    tail = [scale.numpy(), shift.numpy(), slope.numpy() if activation == 2 else EMPTY]
    arrays = (in_memory(x, channels_last), to_array(weight), *tail)
    where = geometry(case, dtype, channels_last, weight.shape[1])
    added = in_memory(residual, channels_last)

    def run():
        out = poisoned(module, added.shape, added.dtype)
        module.grouped(where, groups, outputs // groups, False, activation, *arrays, added, out)
        return out

    (out,) = check_orders(module, run, ORDERS[1:3])
    wanted = F.conv2d(x.double(), weight.double(), **case.arguments, groups=groups)
    wanted = after_sums(wanted, scale, shift, slope, residual, activation)
    close_to(from_memory(out, shape, channels_last, dtype), wanted, dtype)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("number", range(len(CASES)))
def test_gradients(number, channels_last):
    module, dtype = load("grouped"), DTYPES[(number + channels_last) % 4]
    case, groups, outputs, x, weight = make(number, dtype)
    grad = torch.randn(case.shape[0], outputs, *case.output_size).to(dtype)
    x_array, g_array = in_memory(x, channels_last), in_memory(grad, channels_last)
    forward = geometry(case, dtype, channels_last, weight.shape[1])
    backward = geometry(case, dtype, channels_last, outputs // groups, case.transposed)
    count = module.partial_count(forward, groups, outputs // groups)
    assert (count > weight.numel()) == (number == 5)  # parts of the pixels
    sums_type = np.float64 if dtype == torch.float64 else np.float32

    def run():
        grad_x = poisoned(module, x_array.shape, x_array.dtype)
        tail = (to_array(weight), EMPTY, EMPTY, EMPTY, EMPTY, grad_x)
        module.grouped(backward, groups, weight.shape[1], True, 0, g_array, *tail)
        parts = poisoned(module, count, sums_type)
        grad_w = poisoned(module, tuple(weight.shape), sums_type)
        module.weight_grad(forward, groups, outputs // groups, g_array, x_array, parts, grad_w)
        return [grad_x, grad_w]

    grad_x, grad_w = check_orders(module, run, ORDERS[1:3])
    exact = [t.double().requires_grad_() for t in (x, weight)]
    F.conv2d(*exact, **case.arguments, groups=groups).backward(grad.double())
    close_to(from_memory(grad_x, case.shape, channels_last, dtype), exact[0].grad, dtype)
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    close_to(torch.from_numpy(grad_w), exact[1].grad, sums)


def test_sanitized():
    calls = []
    for number in (1, 2, 3):
        case, groups, outputs, x, weight = make(number, torch.float16)
        channels_last = number == 1
        pixels = case.output_size[0] * case.output_size[1]
        sides = (pixels, outputs) if channels_last else (outputs, pixels)
        out = np.zeros((case.shape[0], *sides), np.float16)
        where = geometry(case, torch.float16, channels_last, weight.shape[1])
        arrays = (in_memory(x, channels_last), to_array(weight), EMPTY, EMPTY, EMPTY, EMPTY, out)
        calls.append(Call("grouped", (where, groups, outputs // groups, False, 0, *arrays)))
        count = load("grouped").partial_count(where, groups, outputs // groups)
        tail = (np.zeros(count, np.float32), np.zeros(weight.shape, np.float32))
        given = (where, groups, outputs // groups, out, arrays[0], *tail)
        calls.append(Call("weight_grad", given))
    for result in run_sanitized("grouped", calls):
        assert not isinstance(result, RuntimeError), result
