"""The fused separable convolution on the CPU: hidden tiles, pipeline, both epilogues."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from .arrays import to_array
from .conv_arrays import ConvCase, close_to, from_memory, in_memory
from .harness import ORDERS, Call, check_orders, load, poisoned, run_sanitized
from .test_simt_dense import rounded

# (case, outputs): odd and many outputs, depths that fill no step, more steps than stages, tiles
# that hold two images, strides, rates beyond the map, another kernel.
CASES = [
    (ConvCase((1, 40, 5, 6), (3, 3), (1, 1), (1, 1), (1, 1)), 21),
    (ConvCase((2, 8, 9, 10), (3, 3), (1, 1), (6, 6), (6, 6)), 8),
    (ConvCase((1, 16, 7, 9), (3, 2), (2, 1), (2, 3), (2, 3)), 300),
    (ConvCase((1, 136, 3, 4), (3, 3), (1, 1), (18, 18), (18, 18)), 5),
]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
EMPTY = np.zeros(0, np.float32)


def epilogue(rng, channels, activation):
    """(activation, scale, shift, slope) as arrays."""
    scale = rng.random(channels, np.float32) + 0.5
    shift = rng.standard_normal(channels).astype(np.float32)
    slope = rng.random(channels, np.float32) if activation == 2 else EMPTY
    return activation, scale, shift, slope


def applied(y, how):
    activation, scale, shift, slope = how
    per_channel = [torch.from_numpy(t).double().view(1, -1, 1, 1) for t in (scale, shift)]
    y = y * per_channel[0] + per_channel[1]
    if activation == 2:
        return y, lambda z: F.prelu(z, torch.from_numpy(slope).double())
    return y, (lambda z: z.relu()) if activation else (lambda z: z)


def make(number, dtype):
    case, outputs = CASES[number]
    channels = case.shape[1]
    rng = np.random.default_rng(number)
    torch.manual_seed(number)
    x = torch.randn(case.shape).to(dtype)
    depthwise = torch.randn(channels, 1, *case.kernel).to(dtype)
    weight = (torch.randn(outputs, channels, 1, 1) / channels**0.5).to(dtype)
    inner, outer = epilogue(rng, channels, number % 3), epilogue(rng, outputs, (number + 1) % 3)
    residual = torch.randn(case.shape[0], outputs, *case.output_size).to(dtype)
    taps = depthwise.float().permute(2, 3, 1, 0).reshape(-1, channels).contiguous().numpy()
    added = in_memory(residual, True) if number else EMPTY
    arrays = (in_memory(x, True), taps, inner, to_array(weight), outer, added)
    return x, depthwise, weight, residual, arrays


def geometry(case, dtype):
    return (case.fields, case.shape[0], case.shape[1], str(dtype).removeprefix("torch."), True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("number", range(len(CASES)))
def test_forward(number, dtype):
    module = load("separable_conv")
    case, outputs = CASES[number]
    x, depthwise, weight, residual, arrays = make(number, dtype)
    inner, outer = arrays[2], arrays[4]
    shape = (case.shape[0], outputs, *case.output_size)

    def run():
        out = poisoned(module, (shape[0], shape[2] * shape[3], outputs), arrays[0].dtype)
        module.separable(geometry(case, dtype), outputs, *arrays, out)
        return out

    (out,) = check_orders(module, run, ORDERS if number == 0 else ORDERS[1:3])
    hidden = F.conv2d(x.double(), depthwise.double(), **case.arguments, groups=case.shape[1])
    hidden, act = applied(hidden, inner)
    hidden = rounded(act(hidden).to(dtype))
    y, act = applied(F.conv2d(hidden, rounded(weight)), outer)
    wanted = act(y + residual.double() if number else y)
    got = from_memory(out, shape, True, dtype)
    if dtype == torch.float32:  # a hidden value may round to the other neighbour in TF32
        assert (got - wanted).norm() <= 1e-4 * wanted.norm()
    else:
        close_to(got, wanted, dtype)


def test_sanitized():
    calls = []
    for number in (1, 2):
        case, outputs = CASES[number]
        *_, arrays = make(number, torch.bfloat16)
        pixels = case.output_size[0] * case.output_size[1]
        out = np.zeros((case.shape[0], pixels, outputs), np.uint16)
        given = (geometry(case, torch.bfloat16), outputs, *arrays, out)
        calls.append(Call("separable", given))
    for result in run_sanitized("separable_conv", calls):
        assert not isinstance(result, RuntimeError), result
