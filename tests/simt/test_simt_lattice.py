"""The lattice and mean field kernels on the CPU, against float64, in every schedule and sanitised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segkern.reference import dense_crf as crf
from segkern.reference import permutohedral as reference

from .harness import Call, check_orders, load, poisoned, run_sanitized


def points(items: int, count: int, dims: int, spread: float = 2.0) -> np.ndarray:
    generator = torch.Generator().manual_seed(dims)
    return (spread * torch.randn(items, count, dims, generator=generator)).numpy()


def lattice_of(rows: np.ndarray) -> reference.Lattice:
    return reference.build(torch.from_numpy(rows).double())


@pytest.mark.parametrize("dims", range(1, 9))
def test_build(dims):
    module = load("lattice")
    features = points(2, 45, dims)
    features[0, :10] = features[0, 0]  # many corners of one vertex
    corners = dims + 1

    def run():
        vertex = poisoned(module, (2, 45, corners), np.int32)
        weight = poisoned(module, (2, 45, corners), np.float32)
        neighbours = np.zeros((2, corners, 45 * corners, 2), np.int32)
        count = poisoned(module, (2,), np.int64)
        module.build(features, vertex, weight, neighbours, count)
        used = [neighbours[item, :, : count[item]] for item in range(2)]
        return [vertex, weight, count, *used]

    vertex, weight, count, *neighbours = check_orders(module, run)
    for item in range(2):
        wanted = lattice_of(features[item])
        assert count[item] == wanted.keys.shape[0]
        np.testing.assert_array_equal(vertex[item], wanted.vertex.numpy())
        np.testing.assert_allclose(weight[item], wanted.weight.numpy(), atol=6e-8)
        np.testing.assert_array_equal(neighbours[item], wanted.neighbours.numpy())


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_features_that_do_not_fit_give_nan(value):
    module = load("lattice")
    features = points(1, 40, 2)
    features[0, 3, 1] = value
    values = np.ones((1, 2, 40), np.float32)
    result = poisoned(module, values.shape, np.float32)
    module.filter(features, values, False, result)
    assert np.isnan(result).all()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("items", "batch", "channels"), [(1, 1, 1), (1, 2, 5), (2, 2, 9)])
def test_filter(items, batch, channels, reverse):
    module = load("lattice")
    features = points(items, 70, 3, spread=1.0)
    features[0, :40] = features[0, 0]  # a vertex over several chunks
    values = np.random.default_rng(0).random((batch, channels, 70), np.float32)

    def run():
        result = poisoned(module, values.shape, np.float32)
        module.filter(features, values, reverse, result)
        return result

    (result,) = check_orders(module, run)
    for n in range(batch):
        lattice = lattice_of(features[n if items > 1 else 0])
        rows = torch.from_numpy(values[n].T).double()
        wanted = reference.permutohedral_filter(rows, lattice, reverse=reverse).T.numpy()
        np.testing.assert_allclose(result[n], wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("labels", [2, 21, 40, 100, 130])
@pytest.mark.parametrize("cost_dims", [0, 1, 2])
def test_mean_field(labels, cost_dims):
    if labels > 40 and cost_dims < 2:
        pytest.skip("wide rows differ only where labels mix")
    module = load("lattice")
    rng = np.random.default_rng(labels)
    features = points(1, 33, 2, spread=1.0)
    unary = 2 * rng.random((1, labels, 33), np.float32)
    cost = np.asarray(-0.5 - rng.random((labels,) * cost_dims), np.float32)
    lattice = lattice_of(features[0])
    before, after = crf.normalisers(lattice, "symmetric")
    factors = [np.ascontiguousarray(f.T.float().numpy()) for f in (before, after)]

    def run():
        result = poisoned(module, unary.shape, np.float32)
        module.mean_field(features, unary, *factors, cost, 3, result)
        return result

    (result,) = check_orders(module, run)
    wanted = crf.mean_field(
        torch.from_numpy(unary[0].T).double(),
        [(lattice, torch.from_numpy(np.array(cost)).double())],
        iterations=3,
    )
    np.testing.assert_allclose(result[0].T, wanted.numpy(), atol=3e-6)


def test_sanitized():
    features = points(2, 37, 5)
    values = np.ones((2, 3, 37), np.float32)
    bound = 37 * 6
    calls = [
        Call(
            "build",
            (
                features,
                np.zeros((2, 37, 6), np.int32),
                np.zeros((2, 37, 6), np.float32),
                np.zeros((2, 6, bound, 2), np.int32),
                np.zeros(2, np.int64),
            ),
        ),
        Call("filter", (features, values, False, np.zeros_like(values))),
        Call("filter", (features * np.float32(1e30), values, True, np.zeros_like(values))),
        Call(
            "mean_field",
            (
                features,
                values,
                np.ones((2, 37), np.float32),
                np.ones((2, 37), np.float32),
                np.ones((3, 3), np.float32),
                2,
                np.zeros_like(values),
            ),
        ),
    ]
    run_sanitized("lattice", calls)
