"""The CUDA kernel of the separable Gaussian on the CPU, against dense float64 matrices."""

from __future__ import annotations

import numpy as np
import pytest

from .harness import Call, check_orders, load, poisoned, run_sanitized


def wanted_pass(values: np.ndarray, axis: int, width: float, derivative: bool) -> np.ndarray:
    steps = np.arange(values.shape[axis], dtype=np.float64)
    square = ((steps[:, None] - steps) / width) ** 2
    kernel = np.exp(-square / 2) * (square / width if derivative else 1)
    return np.moveaxis(np.tensordot(kernel, values.astype(np.float64), (1, axis)), 0, axis)


@pytest.mark.parametrize("derivative", [False, True])
@pytest.mark.parametrize("wide", [False, True], ids=["int32", "int64"])
@pytest.mark.parametrize(
    ("shape", "axis", "width"),
    [
        ((2, 5, 7), 2, 1.5),
        ((2, 5, 7), 1, 0.1),
        ((1, 300, 3), 1, 2.0),
        ((1, 2, 290), 2, 60.0),  # more taps than a block has threads
        ((3, 1, 1), 1, 3.0),
    ],
)
def test_axis_pass(shape, axis, width, wide, derivative):
    module = load("separable")
    values = np.random.default_rng(0).random(shape, np.float32)
    step = int(np.prod(shape[axis + 1 :]))

    def run():
        result = poisoned(module, shape, np.float32)
        given = np.array([width], np.float32)
        module.axis_pass(values, given, shape[axis], step, derivative, wide, result)
        return result

    (result,) = check_orders(module, run)
    wanted = wanted_pass(values, axis, float(np.float32(width)), derivative)
    np.testing.assert_allclose(result, wanted, rtol=5e-6, atol=1e-6)


@pytest.mark.parametrize("width", [0.0, -1.0, np.nan, np.inf])
def test_widths_that_are_not_positive_and_finite_give_nan(width):
    module = load("separable")
    values = np.ones((1, 1, 300), np.float32)
    result = poisoned(module, values.shape, np.float32)
    module.axis_pass(values, np.array([width], np.float32), 300, 1, False, False, result)
    assert np.isnan(result).all()


def test_sanitized():
    values = np.ones((2, 3, 37), np.float32)
    width = np.array([50.0], np.float32)
    calls = [
        Call("axis_pass", (values, width, length, step, False, wide, np.zeros_like(values)))
        for length, step in ((37, 1), (3, 37), (2, 111))
        for wide in (False, True)
    ]
    run_sanitized("separable", calls)
