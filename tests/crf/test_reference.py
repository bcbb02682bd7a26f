"""The float64 reference against known numbers and finite differences."""

from __future__ import annotations

import pytest
import torch

from segkern.reference import dense_crf as crf
from segkern.reference import permutohedral as lattices

from . import vectors


def vector_terms():
    image = vectors.image()
    gaussian = lattices.build(crf.image_features(image, 3.0))
    bilateral = lattices.build(crf.image_features(image, 60.0, 20.0))
    return [(gaussian, torch.tensor(-3.0)), (bilateral, torch.tensor(-5.0))]


def rows() -> torch.Tensor:
    return vectors.unary().flatten(1).T


def test_worked_example():
    features = torch.tensor([[4 / 3, 2 / 3]], dtype=torch.float64)
    lattice = lattices.build(features)
    y = lattices.embed(features)
    torch.testing.assert_close(
        y, torch.tensor([[2.976068, -1.642734, -1.333333]], dtype=torch.float64), atol=1e-6, rtol=0
    )
    assert lattice.rank.tolist() == [[1, 0, 2]]
    assert lattice.keys[lattice.vertex[0]].tolist() == [[3, -3], [4, -2], [2, -1]]
    torch.testing.assert_close(
        lattice.weight,
        torch.tensor([[0.103134, 0.436467, 0.460399]], dtype=torch.float64),
        atol=1e-6,
        rtol=0,
    )


def test_vertices_and_masses():
    ones = torch.ones(vectors.HEIGHT * vectors.WIDTH, 1, dtype=torch.float64)
    for (lattice, _), count, mass in zip(
        vector_terms(), vectors.VERTICES, vectors.MASSES, strict=True
    ):
        assert lattice.keys.shape[0] == count
        filtered = lattices.permutohedral_filter(ones, lattice)[[0, 16], 0]
        torch.testing.assert_close(
            filtered, torch.tensor(mass, dtype=torch.float64), atol=5e-6, rtol=0
        )


@pytest.mark.parametrize("mode", vectors.MARGINALS)
def test_vectors(mode):
    q = crf.mean_field(rows(), vector_terms(), mode=mode, iterations=5)
    wanted = torch.tensor(vectors.MARGINALS[mode], dtype=torch.float64)
    torch.testing.assert_close(q[list(vectors.PIXELS)], wanted, atol=6e-6, rtol=0)


def test_first_update():
    q = crf.mean_field(rows(), vector_terms(), iterations=1)
    wanted = torch.tensor(vectors.FIRST_UPDATE, dtype=torch.float64)
    torch.testing.assert_close(q[[0, 7]], wanted, atol=2e-6, rtol=0)


def test_reversed_blur_is_the_transpose():
    torch.manual_seed(0)
    lattice = lattices.build(torch.randn(60, 4, dtype=torch.float64))
    a, b = torch.rand(2, 60, 3, dtype=torch.float64)
    forward = (a * lattices.permutohedral_filter(b, lattice)).sum()
    reverse = (b * lattices.permutohedral_filter(a, lattice, reverse=True)).sum()
    torch.testing.assert_close(forward, reverse, atol=0, rtol=1e-12)
    wrong = (b * lattices.permutohedral_filter(a, lattice)).sum()
    assert (forward - wrong).abs() > 1e-9 * forward.abs()


@pytest.mark.parametrize("mode", vectors.MARGINALS)
def test_gradients_are_finite_differences(mode):
    torch.manual_seed(1)
    terms = vector_terms()
    unary = rows().requires_grad_()
    matrix = torch.rand(3, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
    scale = 1e-2 if mode == "none" else 1.0

    def run(unary, matrix, weight):
        pairs = [(terms[0][0], matrix * scale), (terms[1][0], weight)]
        return crf.mean_field(unary, pairs, mode=mode, iterations=3)

    assert torch.autograd.gradcheck(run, (unary, matrix, weight), atol=1e-7, fast_mode=True)


def test_feature_gradient_is_a_finite_difference():
    torch.manual_seed(2)
    a, b = torch.rand(2, 25, 2, dtype=torch.float64)
    features = (2 * torch.rand(25, 3, dtype=torch.float64)).requires_grad_()
    gradient = lattices.feature_gradient(features.detach(), a, b)
    step = 1e-6 * torch.randn_like(features.detach())

    def objective(f):
        return (a * lattices.permutohedral_filter(b, lattices.build(f))).sum()

    difference = objective(features + step) - objective(features - step)
    torch.testing.assert_close(difference, 2 * (gradient * step).sum(), rtol=1e-6, atol=1e-13)
    objective(features).backward()
    torch.testing.assert_close(features.grad, gradient, atol=1e-12, rtol=1e-12)
