"""The depthwise CUDA kernels on the CPU, against float64 and against the CPU kernels."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segkern import ops
from segkern.ops import conv_table

from .conv_arrays import ConvCase, after_sums, close_to, from_memory, in_memory
from .harness import Call, check_orders, load, poisoned, run_sanitized

# Planes wider and narrower than the rates, chains of more than 16 rows, rates beyond the map.
CASES = [
    ConvCase((2, 3, 5, 6), (3, 3), (1, 1), (1, 1), (1, 1)),
    ConvCase((1, 8, 40, 5), (3, 3), (1, 1), (1, 2), (1, 2)),
    ConvCase((1, 4, 13, 17), (3, 3), (1, 1), (6, 6), (6, 6)),
    ConvCase((2, 4, 9, 11), (3, 3), (1, 1), (4, 3), (6, 0)),
    ConvCase((1, 12, 7, 9), (3, 3), (1, 1), (18, 18), (18, 18)),
    ConvCase((1, 4, 9, 8), (3, 3), (2, 1), (2, 3), (2, 3)),
    ConvCase((1, 2, 8, 9), (4, 4), (1, 1), (4, 4), (6, 6)),
    ConvCase((1, 36, 5, 7), (1, 7), (1, 3), (1, 2), (0, 6)),
    ConvCase((1, 1, 1, 1), (3, 3), (1, 1), (7, 7), (7, 7)),
]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def geometry(fields, case, dtype, channels_last):
    return (fields, *case.shape[:2], str(dtype).removeprefix("torch."), channels_last)


def weight_memory(weight: torch.Tensor, channels_last: bool, wide: torch.dtype) -> np.ndarray:
    """(C, taps), or (taps, C) in channels-last, of the accumulating type."""
    rows = weight.flatten(1).to(wide)
    return (rows.t() if channels_last else rows).contiguous().numpy()


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("number", range(len(CASES)))
def test_forward_and_gradients(number, dtype, channels_last):
    module = load("atrous")
    case = CASES[number]
    channels = case.shape[1]
    rng = random.Random(number)
    torch.manual_seed(number)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(case.shape).to(dtype)
    weight = torch.randn(channels, 1, *case.kernel).to(dtype)
    grad = torch.randn(case.shape[0], channels, *case.output_size).to(dtype)
    residual = torch.randn(grad.shape).to(dtype) if rng.random() < 0.5 else None
    scale = torch.rand(channels, dtype=wide) + 0.5 if rng.random() < 0.5 else None
    shift = torch.randn(channels, dtype=wide) if rng.random() < 0.5 else None
    activation = rng.randrange(3)
    slope = torch.rand(rng.choice([1, channels]), dtype=wide) if activation == 2 else None
    forward = geometry(case.fields, case, dtype, channels_last)
    backward = geometry(case.transposed, case, dtype, channels_last)
    x_array, g_array = (in_memory(t, channels_last) for t in (x, grad))
    w_array = weight_memory(weight, channels_last, wide)
    none = np.zeros(0, w_array.dtype)
    tail = [none if t is None else t.numpy() for t in (scale, shift, slope)]
    tail.append(none if residual is None else in_memory(residual, channels_last))
    partial = module.depthwise_partial_count(forward)

    def run():
        out = poisoned(module, g_array.shape, g_array.dtype)
        grad_x = poisoned(module, x_array.shape, x_array.dtype)
        parts = poisoned(module, partial, w_array.dtype)
        grad_w = poisoned(module, (channels, case.taps), w_array.dtype)
        offset = rng.choice([0, x_array.itemsize])
        module.depthwise(forward, False, activation, offset, x_array, w_array, *tail, out)
        module.depthwise(backward, True, 0, 0, g_array, w_array, none, none, none, none, grad_x)
        module.depthwise_weight_grad(forward, g_array, x_array, parts, grad_w)
        return [out, grad_x, grad_w]

    out, grad_x, grad_w = check_orders(module, run)
    exact_x, exact_w = (t.double().requires_grad_() for t in (x, weight))
    wanted = F.conv2d(exact_x, exact_w, **case.arguments, groups=channels)
    wanted.backward(grad.double())
    wanted = after_sums(wanted.detach(), scale, shift, slope, residual, activation)
    close_to(from_memory(out, wanted.shape, channels_last, dtype), wanted, dtype)
    close_to(from_memory(grad_x, case.shape, channels_last, dtype), exact_x.grad, dtype)
    close_to(torch.from_numpy(grad_w).view(weight.shape), exact_w.grad, wide)

    with conv_table.override(depthwise="segkern"):
        on_cpu = ops.atrous_conv2d(
            x,
            weight,
            **case.arguments,
            groups=channels,
            scale=scale,
            shift=shift,
            residual=residual,
            activation=(None, "relu", "prelu")[activation],
            activation_weight=slope,
        )
    close_to(from_memory(out, wanted.shape, channels_last, dtype), on_cpu.double(), dtype)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_more_threads_than_32_bits_count_are_several_launches(channels_last):
    module = load("atrous")
    case = ConvCase((3, 4, 9, 7), (3, 3), (1, 1), (2, 2), (2, 2))
    x, weight = torch.randn(case.shape), torch.randn(4, 1, 3, 3)
    arrays = in_memory(x, channels_last), weight_memory(weight, channels_last, torch.float32)
    none = np.zeros(0, np.float32)
    results = []
    for limit in (2**31 - 1, 256 + 28):  # the threads of two planes, or of two images
        module.set_int32_limit(limit)
        out = np.zeros_like(arrays[0])
        where = geometry(case.fields, case, torch.float32, channels_last)
        module.depthwise(where, False, 0, 0, *arrays, none, none, none, none, out)
        results.append(out)
    module.set_int32_limit(256)
    with pytest.raises(RuntimeError, match="an image must have less than"):
        module.depthwise(where, False, 0, 0, *arrays, none, none, none, none, out)
    module.set_int32_limit(2**31 - 1)
    assert np.array_equal(*results)
    wanted = torch.nn.functional.conv2d(x.double(), weight.double(), None, 1, 2, 2, 4)
    close_to(from_memory(out, case.shape, channels_last, torch.float32), wanted, torch.float32)


def test_nan_and_infinity_reach_only_their_windows():
    module = load("atrous")
    case = ConvCase((1, 4, 9, 9), (3, 3), (1, 1), (3, 3), (3, 3))
    x = torch.ones(case.shape)
    x[0, 1, 4, 4] = torch.nan
    x[0, 2, 0, 0] = torch.inf
    for channels_last in (False, True):
        out = np.zeros((1, 4, 81) if not channels_last else (1, 81, 4), np.float32)
        none = np.zeros(0, np.float32)
        module.depthwise(
            geometry(case.fields, case, torch.float32, channels_last),
            *(False, 1, 0, in_memory(x, channels_last)),
            weight_memory(torch.ones(4, 1, 3, 3), channels_last, torch.float32),
            *(none, none, none, none, out),
        )
        y = from_memory(out, case.shape, channels_last, torch.float32)
        wanted = F.conv2d(x.double(), torch.ones(4, 1, 3, 3).double(), None, 1, 3, 3, 4).relu()
        assert torch.equal(y.isnan(), wanted.isnan())
        assert torch.equal(y.nan_to_num(), wanted.nan_to_num())


def test_sanitized():
    calls = []
    for case in CASES:
        for channels_last in (False, True):
            for dtype, offset in ((torch.float32, 4), (torch.bfloat16, 0)):
                channels = case.shape[1]
                forward = geometry(case.fields, case, dtype, channels_last)
                x, g = (
                    in_memory(torch.ones(shape).to(dtype), channels_last)
                    for shape in (case.shape, (case.shape[0], channels, *case.output_size))
                )
                weight = np.ones((channels, case.taps), np.float32)
                vector, none = np.ones(channels, np.float32), np.zeros(0, np.float32)
                count = load("atrous").depthwise_partial_count(forward)
                calls += [
                    Call(
                        "depthwise",
                        (forward, False, 2, offset, x, weight, vector, vector, vector, g, g.copy()),
                    ),
                    Call(
                        "depthwise",
                        (
                            geometry(case.transposed, case, dtype, channels_last),
                            *(True, 0, 0, g, weight, none, none, none, none, x.copy()),
                        ),
                    ),
                    Call(
                        "depthwise_weight_grad",
                        (forward, g, x, np.zeros(count, np.float32), weight.copy()),
                    ),
                ]
    for result in run_sanitized("atrous", calls):
        assert not isinstance(result, RuntimeError), result
