"""The lattice's CUDA kernels on the CPU: against float64, against the CPU kernels, sanitised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segkern import ops
from segkern.reference import permutohedral as reference

from .arrays import to_array
from .harness import Call, Schedule, check_orders, load, poisoned, run_sanitized

NAME = "permutohedral"


def points(items: int, count: int, dims: int, spread: float = 2.0) -> np.ndarray:
    generator = torch.Generator().manual_seed(dims)
    return (spread * torch.randn(items, count, dims, generator=generator)).numpy()


def lattice_of(rows: np.ndarray) -> reference.Lattice:
    return reference.build(torch.from_numpy(rows).double())


def build_arrays(features: np.ndarray, fill) -> list[np.ndarray]:
    """vertex, weight, corners, offsets, neighbours, count, made by `fill(shape, dtype)`."""
    items, count, dims = features.shape
    corners = (items, count, dims + 1)
    bound = count * (dims + 1)
    return [
        fill(corners, np.int32),
        fill(corners, np.float32),
        fill(corners, np.int32),
        fill((items, bound + 1), np.int32),
        fill((items, dims + 1, bound, 2), np.int32),
        fill((items,), np.int64),
    ]


def assert_lattice(features: np.ndarray) -> None:
    """What the kernels build is the reference's lattice, its vertices in order of appearance."""
    module = load(NAME)

    def run():
        arrays = build_arrays(features, lambda *form: poisoned(module, *form))
        module.build(features, *arrays)
        vertex, weight, corners, offsets, neighbours, count = arrays
        used = [offsets[n, : count[n] + 1] for n in range(len(count))]
        used += [neighbours[n, :, : count[n]] for n in range(len(count))]
        return [vertex, weight, corners, count, *used]

    vertex, weight, corners, count, *used = check_orders(module, run)
    for item, rows in enumerate(features):
        wanted = lattice_of(rows)
        vertices = wanted.keys.shape[0]
        assert count[item] == vertices
        firsts = np.unique(wanted.vertex.numpy().ravel(), return_index=True)[1]
        number = np.empty(vertices + 1, np.int64)  # of the reference's vertices, here
        number[np.argsort(firsts)] = np.arange(vertices)
        number[vertices] = vertices
        np.testing.assert_array_equal(vertex[item], number[wanted.vertex.numpy()])
        np.testing.assert_allclose(weight[item], wanted.weight.numpy(), atol=6e-8)
        neighbours = np.empty_like(wanted.neighbours.numpy())
        neighbours[:, number[:-1]] = number[wanted.neighbours.numpy()]
        np.testing.assert_array_equal(used[len(features) + item], neighbours)
        flat = vertex[item].ravel()
        np.testing.assert_array_equal(corners[item].ravel(), np.argsort(flat, kind="stable"))
        np.testing.assert_array_equal(
            used[item], np.searchsorted(np.sort(flat), np.arange(vertices + 1))
        )


@pytest.mark.parametrize("dims", [*range(1, 10), 16])
def test_build(dims):
    features = points(2, 45, dims)
    features[0, :10] = features[0, 0]  # many corners of one vertex
    assert_lattice(features)


@pytest.mark.parametrize("dims", [3, 5, 7])
def test_keys_beyond_64_bits(dims):
    """Coordinates that need most of what the CPU's 127-bit keys hold."""
    spread = {3: 3e7, 5: 1e6, 7: 3e3}[dims]
    features = points(1, 40, dims, spread)
    features[0, 20:] = features[0, :20] + points(1, 20, dims, spread=0.1)[0]
    ops.permutohedral_build(torch.from_numpy(features))  # legal
    assert_lattice(features)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_features_that_do_not_fit_give_nan(value):
    module = load(NAME)
    features = points(1, 40, 2)
    features[0, 3, 1] = value
    with pytest.raises(RuntimeError, match="features must"):
        ops.permutohedral_build(torch.from_numpy(features))
    values = np.ones((1, 2, 40), np.float32)
    result = poisoned(module, values.shape, np.float32)
    module.filter(features, values, "float32", False, result)
    assert np.isnan(result).all()
    gradient = poisoned(module, features.shape, np.float32)
    module.feature_grad(values, values, features, 2, False, gradient)
    assert np.isnan(gradient).all()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("items", "batch", "channels"), [(1, 1, 1), (1, 2, 5), (2, 2, 9), (1, 1, 150)]
)
def test_filter(items, batch, channels, reverse):
    module = load(NAME)
    features = points(items, 70, 3, spread=1.0)
    features[0, :40] = features[0, 0]  # a vertex over several chunks
    values = np.random.default_rng(0).random((batch, channels, 70), np.float32)

    def run():
        result = poisoned(module, values.shape, np.float32)
        module.filter(features, values, "float32", reverse, result)
        return result

    (result,) = check_orders(module, run)
    for n in range(batch):
        lattice = lattice_of(features[n if items > 1 else 0])
        rows = torch.from_numpy(values[n].T).double()
        wanted = reference.permutohedral_filter(rows, lattice, reverse=reverse).T.numpy()
        np.testing.assert_allclose(result[n], wanted, rtol=2e-6, atol=2e-6)
    shared = ops.permutohedral_build(torch.from_numpy(features))
    on_cpu = ops.permutohedral_filter(torch.from_numpy(values), shared, reverse=reverse)
    np.testing.assert_allclose(result, on_cpu.numpy(), rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_values_of_other_types_are_summed_in_float32(dtype):
    module = load(NAME)
    features = points(1, 50, 2, spread=0.5)
    values = torch.rand(1, 3, 50, dtype=torch.float64).to(dtype)
    narrow = to_array(torch.zeros_like(values))
    module.filter(features, to_array(values), str(dtype)[6:], False, narrow)
    wide = np.zeros(values.shape, np.float32)
    module.filter(features, values.float().numpy(), "float32", False, wide)
    np.testing.assert_array_equal(narrow, to_array(torch.from_numpy(wide).to(dtype)))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("dims", "items", "batch"), [(1, 1, 1), (2, 1, 3), (5, 2, 2), (9, 1, 1)])
def test_feature_gradient(dims, items, batch, reverse):
    module = load(NAME)
    features = points(items, 30, dims, spread=1.0)
    rng = np.random.default_rng(dims)
    grad, values = rng.standard_normal((2, batch, 11, 30), np.float32)

    def run():
        result = poisoned(module, features.shape, np.float32)
        module.feature_grad(grad, values, features, 8, reverse, result)
        return result

    (result,) = check_orders(module, run)
    wanted = np.zeros(features.shape)
    for n in range(batch):
        a, b = (torch.from_numpy(t[n].T).double() for t in (grad, values))
        if reverse:  # the transpose: sum(a * K^T b) = sum(b * K a)
            a, b = b, a
        at = n if items > 1 else 0
        rows = torch.from_numpy(features[at]).double()
        wanted[at] += reference.feature_gradient(rows, a, b).numpy()
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(result / scale, wanted / scale, atol=3e-6)


def test_the_same_bits_in_twenty_schedules():
    module = load(NAME)
    features = points(1, 60, 5, spread=0.7)
    values = np.random.default_rng(1).random((1, 6, 60), np.float32)
    orders = [Schedule("shuffled", seed, 1 + seed % 2) for seed in range(20)]

    def run():
        result = poisoned(module, values.shape, np.float32)
        module.filter(features, values, "float32", False, result)
        gradient = poisoned(module, features.shape, np.float32)
        module.feature_grad(values, values, features, 4, False, gradient)
        return [result, gradient]

    check_orders(module, run, orders)


def test_sanitized():
    features = points(2, 37, 5)
    values = np.ones((2, 3, 37), np.float32)
    calls = []
    for rows in (features, features * np.float32(1e30), points(2, 37, 5, 1e6), points(2, 9, 16)):
        inputs = np.ascontiguousarray(values[:, :, : rows.shape[1]])
        calls += [
            Call("build", (rows, *build_arrays(rows, np.zeros))),
            Call("filter", (rows, inputs, "float32", True, np.zeros_like(inputs))),
            Call("feature_grad", (inputs, inputs, rows, 2, False, np.zeros_like(rows))),
        ]
    half = values.astype(np.float16)
    calls.append(Call("filter", (features, half, "float16", False, np.zeros_like(half))))
    run_sanitized(NAME, calls)
