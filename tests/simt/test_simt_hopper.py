"""Hopper's convolution on the CPU: boxes, barriers, descriptors, fragments, tiles and epilogue."""

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
from .harness import ORDERS, Call, OrderDependence, check_orders, load, poisoned, run_sanitized

# (case, output channels, multiprocessors): ragged channels and depths, more steps than stages and
# fewer, several tiles a block, rates beyond the map, all taps skipped, both widths of the tile,
# unequal rates, several images, padding larger than the kernel.
CASES = [
    (ConvCase((1, 72, 5, 6), (3, 3), (1, 1), (1, 1), (1, 1)), 21, 1),
    (ConvCase((2, 8, 9, 20), (3, 3), (1, 1), (6, 6), (6, 6)), 8, 2),
    (ConvCase((1, 16, 7, 9), (3, 2), (1, 1), (2, 3), (2, 3)), 130, 3),
    (ConvCase((1, 8, 3, 4), (3, 3), (1, 1), (18, 18), (18, 18)), 5, 1),
    (ConvCase((1, 8, 2, 2), (1, 1), (1, 1), (1, 1), (3, 3)), 4, 1),
    (ConvCase((1, 136, 3, 5), (3, 3), (1, 1), (2, 1), (2, 1)), 256, 1),
    (ConvCase((1, 8, 13, 13), (3, 3), (1, 1), (4, 4), (4, 4)), 300, 2),
]
DTYPES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_forward(number):
    module = load("hopper")
    dtype = DTYPES[number % 2]
    case, outputs, multiprocessors = CASES[number]
    x, weight, epilogue, arrays = dense_operands(case, outputs, number, dtype)
    shape = (case.shape[0], outputs, *case.output_size)

    def run():
        out = poisoned(module, (shape[0], shape[2] * shape[3], outputs), arrays[0].dtype)
        where = dense_geometry(case, dtype)
        module.dense(where, outputs, multiprocessors, False, epilogue[-1], *arrays, out)
        return out

    (out,) = check_orders(module, run, ORDERS if number < 3 else ORDERS[1:3])
    wanted = F.conv2d(x.double(), weight.double(), **case.arguments)
    wanted = after_sums(wanted, *epilogue)
    close_to(from_memory(out, shape, True, dtype), wanted, dtype)


@pytest.mark.parametrize("padding", [2, 0, 5])
def test_gradient_of_the_input(padding):
    """Taps in reverse; padding larger than the kernel's reach crops."""
    module, dtype = load("hopper"), torch.bfloat16
    case = ConvCase((1, 24, 9, 11), (3, 3), (1, 1), (2, 2), (padding, padding))
    torch.manual_seed(padding)
    weight = torch.randn(16, 24, 3, 3).to(dtype)
    grad = torch.randn(1, 16, *case.output_size).to(dtype)
    none, out = np.zeros(0, np.float32), poisoned(module, (1, 99, 24), np.uint16)
    where = dense_geometry(case, dtype, case.transposed, 16)
    arrays = (in_memory(grad, True), to_array(weight.permute(1, 2, 3, 0)))
    module.dense(where, 24, 2, True, 0, *arrays, none, none, none, none, out)
    x = torch.zeros(case.shape, dtype=torch.float64, requires_grad=True)
    F.conv2d(x, weight.double(), **case.arguments).backward(grad.double())
    close_to(from_memory(out, case.shape, True, dtype), x.grad, dtype)


def test_a_nan_reaches_only_its_windows():
    """Rows of a tile that no box fills, zeros outside the map and skipped taps carry none."""
    module = load("hopper")
    case = ConvCase((1, 8, 9, 9), (3, 3), (1, 1), (4, 4), (4, 4))
    x = torch.ones(case.shape, dtype=torch.bfloat16)
    x[0, 3, 0, 0] = torch.nan
    weight = torch.ones(2, 8, 3, 3, dtype=torch.bfloat16)
    out, none = np.zeros((1, 81, 2), np.uint16), np.zeros(0, np.float32)
    arrays = (in_memory(x, True), to_array(weight.permute(0, 2, 3, 1)))
    module.dense(
        dense_geometry(case, x.dtype), 2, 1, False, 1, *arrays, none, none, none, none, out
    )
    wanted = F.conv2d(x.double(), weight.double(), None, 1, 4, 4).relu()
    y = from_memory(out, wanted.shape, True, x.dtype)
    assert torch.equal(y.isnan(), wanted.isnan())
    assert torch.equal(y.nan_to_num(), wanted.nan_to_num())


def test_what_the_copy_engine_does_not_take_is_refused():
    module, none = load("hopper"), np.zeros(0, np.float32)

    def call(case):
        x = np.zeros((1, case.shape[2] * case.shape[3], case.shape[1]), np.float16)
        weight = np.zeros((8, case.taps, case.shape[1]), np.float16)
        out = np.zeros((1, case.output_size[0] * case.output_size[1], 8), np.float16)
        where = dense_geometry(case, torch.float16)
        module.dense(where, 8, 1, False, 0, x, weight, none, none, none, none, out)

    with pytest.raises(RuntimeError, match="multiples of 16 bytes"):
        call(ConvCase((1, 12, 4, 4), (3, 3), (1, 1), (1, 1), (1, 1)))
    with pytest.raises(RuntimeError, match="stride must be 1"):
        call(ConvCase((1, 8, 4, 4), (3, 3), (2, 2), (1, 1), (1, 1)))


def product(mistake):
    module = load("hopper")
    rng = np.random.default_rng(0)
    a = rng.standard_normal((64, 64)).astype(np.float16)
    b = rng.standard_normal((128, 64)).astype(np.float16)

    def run():
        sums = poisoned(module, (64, 128), np.float32)
        module.planted_product(mistake, a, b, sums)
        return sums

    (sums,) = check_orders(module, run)
    return sums, a.astype(np.float64) @ b.astype(np.float64).T


def test_a_product_of_a_warpgroup():
    sums, wanted = product("none")
    assert np.abs(sums - wanted).max() < 1e-4


MISTAKES = {
    "no wait for boxes": "operand in shared memory changed|depends on the schedule",
    "too few bytes": "no thread of the block makes progress",
    "no fence": "no wgmma.fence",
    "no wait for product": None,
    "overwrite too early": "operand in shared memory changed",
    "wrong pattern": "128-byte swizzled pattern",
    "start inside a pattern": "from its first row",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_seen(mistake):
    pattern = MISTAKES[mistake]
    if pattern is None:  # the sums are not there
        sums, wanted = product(mistake)
        assert np.abs(sums - wanted).max() > 1
        return
    with pytest.raises((RuntimeError, OrderDependence), match=pattern):
        product(mistake)


def test_sanitized():
    calls = []
    for number in (2, 3, 4):
        case, outputs, multiprocessors = CASES[number]
        _, _, (*_, activation), arrays = dense_operands(case, outputs, number, torch.bfloat16)
        pixels = case.output_size[0] * case.output_size[1]
        out = np.zeros((case.shape[0], pixels, outputs), np.uint16)
        where = dense_geometry(case, torch.bfloat16)
        call = (where, outputs, multiprocessors, False, activation, *arrays, out)
        calls.append(Call("dense", call))
    for result in run_sanitized("hopper", calls):
        assert not isinstance(result, RuntimeError), result
