"""The Gaussian CRF's kernels on the CPU, against float64 dense solves, in every schedule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segkern.reference import gaussian_crf as reference

from .harness import Call, check_orders, load, poisoned, run_sanitized

PYRAMIDS = {
    "one": [(9, 7)],
    "row": [(1, 11)],
    "cell": [(1, 1)],
    "pyramid": [(7, 6), (4, 3), (1, 2)],
}
# kernel -> (many launches, unknowns a thread, sizes): the smallest map of each one-launch variant.
KERNELS = {
    "few cells": (False, 4, (9, 7)),
    "more cells than threads": (False, 4, (33, 34)),
    "most cells": (False, 4, (68, 65)),
    "many launches": (True, 4, (33, 34)),
}
CONVERGED, INDEFINITE, UNCONVERGED, NOT_FINITE = range(1, 5)


def edge_arrays(sizes, planes, items, rng, dtype=np.float32, low=-1.0, high=1.0):
    shapes = []
    for number, (height, width) in enumerate(sizes):
        shapes += [(height, width - 1), (height - 1, width)]
        shapes += [(height, width)] if number + 1 < len(sizes) else []
    return [rng.uniform(low, high, (items, planes, *shape)).astype(dtype) for shape in shapes]


def solve(
    module,
    sizes,
    edges,
    width,
    rhs,
    *,
    diagonal=6.0,
    scales=(1.0, -0.5),
    tolerance=1e-6,
    most=60,
    many=False,
    per_thread=4,
):
    counts = rhs.shape[:2]
    x = poisoned(module, rhs.shape, rhs.dtype)
    reports = [poisoned(module, counts, np.int32) for _ in range(3)]
    numbers = [diagonal, *scales, tolerance]
    arguments = (sizes, edges, width, rhs, numbers, most, many, per_thread, x, *reports)
    module.solve(*arguments)
    return [x, reports[0], np.maximum(reports[1], reports[2])]


def dense(sizes, edges, item, rhs, diagonal, scale):
    matrix = reference.pairwise_matrix([torch.from_numpy(e[item]).double() for e in edges], sizes)
    matrix = scale * matrix + diagonal * torch.eye(matrix.shape[0], dtype=torch.float64)
    return torch.linalg.solve(matrix, torch.from_numpy(rhs).double()).numpy()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("name", PYRAMIDS)
def test_shared_edges(name, many, dtype):
    module, sizes = load("gaussian_crf"), PYRAMIDS[name]
    rng = np.random.default_rng(0)
    edges = edge_arrays(sizes, 1, 2, rng, dtype)
    nodes = sum(h * w for h, w in sizes)
    rhs = rng.normal(size=(2, 3, nodes)).astype(dtype)
    rhs[1, 2] = 0  # solved before the first iteration
    tolerance = 1e-6 if dtype == np.float32 else 1e-13
    keep = {"diagonal": 11.0, "tolerance": tolerance, "many": many}
    x, counts, states = check_orders(module, lambda: solve(module, sizes, edges, 1, rhs, **keep))
    assert (states == CONVERGED).all()
    assert counts[1, 2] == 0
    for item in range(2):
        for system in range(3):
            scale = 1.0 if system == 0 else -0.5
            wanted = dense(sizes, edges, item, rhs[item, system], 11.0, scale)
            np.testing.assert_allclose(x[item, system], wanted, atol=10 * tolerance, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_each_kernel_takes_its_sizes(kernel):
    """Larger maps than a thread a cell, with edges all one: the counts are those of the CPU."""
    module = load("gaussian_crf")
    many, per_thread, size = KERNELS[kernel]
    rng = np.random.default_rng(1)
    edges = edge_arrays([size], 1, 1, rng)
    rhs = rng.normal(size=(1, 2, size[0] * size[1])).astype(np.float32)
    keep = {"tolerance": 1e-5, "many": many, "per_thread": per_thread}
    orders = {} if kernel == "few cells" else {"orders": check_orders.__defaults__[0][:2]}
    x, counts, states = check_orders(
        module, lambda: solve(module, [size], edges, 1, rhs, **keep), **orders
    )
    assert (states == CONVERGED).all()
    right, down = (torch.from_numpy(edge) for edge in edges)
    for system, scale in enumerate((1.0, -0.5)):
        wanted, report, _ = torch.ops.segkern.gaussian_crf(
            torch.from_numpy(rhs[:, system : system + 1]),
            [scale * right, scale * down],
            1,
            6.0,
            1e-5,
            60,
            1.0,
            True,
        )
        assert abs(int(report[0, 0]) - counts[0, system]) <= 1
        np.testing.assert_allclose(x[0, system], wanted[0, 0].numpy(), atol=1e-4)


@pytest.mark.parametrize("name", PYRAMIDS)
def test_edges_of_label_pairs(name):
    module, sizes, labels = load("gaussian_crf"), PYRAMIDS[name], 3
    rng = np.random.default_rng(2)
    edges = edge_arrays(sizes, labels**2, 2, rng)
    nodes = sum(h * w for h, w in sizes)
    rhs = rng.normal(size=(2, 1, labels * nodes)).astype(np.float32)
    x, _, states = check_orders(
        module,
        lambda: solve(module, sizes, edges, labels, rhs, diagonal=30.0, many=True, per_thread=1),
    )
    assert (states == CONVERGED).all()
    for item in range(2):
        wanted = dense(sizes, edges, item, rhs[item, 0], 30.0, 1.0)
        np.testing.assert_allclose(x[item, 0], wanted, atol=1e-6)


@pytest.mark.parametrize("many", [False, True])
def test_how_solves_end(many):
    """Each item of a batch ends in its own way, and none changes its neighbours' bits."""
    module, sizes = load("gaussian_crf"), [(20, 19)]
    rng = np.random.default_rng(3)
    edges = edge_arrays(sizes, 1, 5, rng)
    edges[0][1] *= 40  # not positive definite
    edges[1][3, 0, 2, 2] = np.nan
    rhs = rng.normal(size=(5, 2, 380)).astype(np.float32)
    rhs[2, 1, 7] = np.inf
    keep = {"many": many, "tolerance": 1e-5}
    x, counts, states = check_orders(module, lambda: solve(module, sizes, edges, 1, rhs, **keep))
    assert states[0].tolist() == [CONVERGED, CONVERGED]
    assert states[1].tolist() == [INDEFINITE, INDEFINITE]
    assert states[2].tolist() == [CONVERGED, NOT_FINITE]
    assert states[3].tolist() == [NOT_FINITE, NOT_FINITE]
    assert counts[2, 1] == 0
    for item in (0, 4):
        own = [edge[item : item + 1] for edge in edges]
        alone, count, _ = solve(module, sizes, own, 1, rhs[item : item + 1], **keep)
        np.testing.assert_array_equal(alone[0], x[item])
        np.testing.assert_array_equal(count[0], counts[item])
    most = int(counts[0].max())
    assert most > 2
    _, counts, states = solve(
        module, sizes, [edge[:1] for edge in edges], 1, rhs[:1], most=most - 1, **keep
    )
    assert UNCONVERGED in states
    assert counts.max() == most - 1


def test_mixing_labels():
    module, labels = load("gaussian_crf"), 4
    rng = np.random.default_rng(4)
    scores = rng.normal(size=(2, labels, 33))
    none = np.zeros((0,), np.int32)

    def run(kind, given, rows, *states):
        out = poisoned(module, (2, rows, 33), given.dtype)
        module.mix(kind, given, out, labels, *(states or (none, none, none)))
        return out

    (split,) = check_orders(module, lambda: run("split", scores, labels + 1))
    np.testing.assert_allclose(split[:, 0], scores.sum(1), atol=1e-14)
    np.testing.assert_allclose(split[:, 1:], scores - scores.mean(1, keepdims=True), atol=1e-14)
    (centred,) = check_orders(module, lambda: run("centre", scores, labels))
    wanted = scores - scores.sum(1, keepdims=True) / (labels - 1)
    np.testing.assert_allclose(centred, wanted, atol=1e-14)

    first = np.full((2, labels + 1), CONVERGED, np.int32)
    second = np.zeros_like(first)
    first[1, 3], second[1, 3] = 0, INDEFINITE

    def join():
        states = poisoned(module, first.shape, np.int32)
        return run("join", split, labels, first, second, states), states

    joined, states = check_orders(module, join)
    np.testing.assert_allclose(joined[0], scores[0], atol=1e-14)
    assert np.isnan(joined[1]).all()
    np.testing.assert_array_equal(states, np.maximum(first, second))


@pytest.mark.parametrize("pairwise", [0, 1, 2])
def test_edge_gradients(pairwise):
    """Beside the CPU kernels, which have finite differences for a witness."""
    module, sizes, labels = load("gaussian_crf"), PYRAMIDS["pyramid"], 3
    rng = np.random.default_rng(5)
    planes = labels**2 if pairwise == 1 else 1
    edges = edge_arrays(sizes, planes, 2, rng, np.float64)
    nodes = sum(h * w for h, w in sizes)
    x, grad = rng.normal(size=(2, 2, labels, nodes))
    numbers = (pairwise, 60.0, 1e-14, 100, 1.5, True)
    arguments = [torch.from_numpy(a) for a in (grad, x)], [torch.from_numpy(e) for e in edges]
    backward = torch.ops.segkern._gaussian_crf_backward
    _, wanted = backward(*arguments[0], arguments[1], *numbers, True)
    # What the edges' gradients are made from: the solution of the gradient, before centring.
    y = grad
    if pairwise != 2:
        y = torch.ops.segkern.gaussian_crf(arguments[0][0], arguments[1], *numbers)[0].numpy()
    else:
        y = np.stack(
            [
                np.stack([dense(sizes, edges, n, grad[n, k], 1.0, 1 / 60.0) for k in range(labels)])
                for n in range(2)
            ]
        )
    factor = 1.5 / 60.0 if pairwise == 2 else 1.5
    for number, edge in enumerate(edges):

        def run(number=number, edge=edge):
            out = poisoned(module, edge.shape, edge.dtype)
            level, kind = divmod(number, 3)
            module.edge_gradient(sizes, pairwise, level, kind, factor, x, y, out)
            return out

        (out,) = check_orders(module, run)
        np.testing.assert_allclose(out, wanted[number].numpy(), atol=1e-12)


def test_sanitized():
    sizes = PYRAMIDS["pyramid"]
    rng = np.random.default_rng(6)
    nodes = sum(h * w for h, w in sizes)
    calls = []
    for many, width in ((False, 1), (True, 1), (True, 2)):
        edges = edge_arrays(sizes, width**2, 2, rng)
        systems = 3 if width == 1 else 1
        rhs = rng.normal(size=(2, systems, width * nodes)).astype(np.float32)
        counts = [np.zeros((2, systems), np.int32) for _ in range(3)]
        numbers = [20.0, 1.0, -0.5, 1e-4]
        calls.append(
            Call(
                "solve",
                (sizes, edges, width, rhs, numbers, 9, many, 1, np.zeros_like(rhs), *counts),
            )
        )
    x = rng.normal(size=(2, 2, nodes)).astype(np.float32)
    none = np.zeros((0,), np.int32)
    calls.append(Call("mix", ("split", x, np.zeros((2, 3, nodes), np.float32), 2, *[none] * 3)))
    for number, edge in enumerate(edge_arrays(sizes, 4, 2, rng)):
        calls.append(Call("edge_gradient", (sizes, 1, *divmod(number, 3), 1.0, x, x, edge)))
    run_sanitized("gaussian_crf", calls)
