"""dense_crf's CUDA kernels on the CPU: against float64, against the CPU kernels, sanitised.

Whole inferences and gradients run, in the sequence of launches that the device sees.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from segkern.crf.utils import create_pairwise_bilateral, create_pairwise_gaussian
from segkern.ops.dense_crf import mean_field, pairwise_term
from segkern.reference import dense_crf as crf
from segkern.reference import permutohedral as lattices

from .harness import Call, Schedule, check_orders, load, poisoned, run_sanitized

NAME = "dense_crf"
NONE = np.zeros(0, np.float32)


def term(features: np.ndarray, cost, mode: str = "symmetric") -> list[np.ndarray]:
    """A term as the kernels take it: features, factors before and after the filter, cost."""
    made = pairwise_term(torch.from_numpy(features), None, mode)
    return [features, made.before.numpy(), made.after.numpy(), np.asarray(cost, np.float32)]


def points(items: int, count: int, dims: int, spread: float, seed: int = 0) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(items, count, dims, generator=generator)).numpy()


class Problem:
    """Energies of a batch and terms of every kind: a shared lattice and one an item."""

    def __init__(self, labels: int, count: int, costs: list, batch: int = 2, mode="symmetric"):
        rng = np.random.default_rng(labels)
        self.mode = mode
        self.unary = 2 * rng.random((batch, labels, count), np.float32)
        self.grad = rng.standard_normal((batch, labels, count), np.float32)
        self.start = rng.random((batch, labels, count), np.float32)
        self.start /= self.start.sum(1, keepdims=True)
        self.terms = [
            term(points(1 if n % 2 else batch, count, 2 + n % 3, 1.0, n), cost, mode)
            for n, cost in enumerate(costs)
        ]

    def exact(self, item: int, iterations: int, start: bool):
        """Marginals, objective and gradients of one item in float64."""

        def leaf(array):
            return torch.from_numpy(np.array(array)).double().requires_grad_()

        unary, q0 = leaf(self.unary[item].T), leaf(self.start[item].T)
        costs = [leaf(t[3]) for t in self.terms]
        built = [
            lattices.build(torch.from_numpy(t[0][item if len(t[0]) > 1 else 0]).double())
            for t in self.terms
        ]
        terms = list(zip(built, costs))
        q = crf.mean_field(
            unary, terms, mode=self.mode, iterations=iterations, q0=q0 if start else None
        )
        kl = crf.kl_divergence(q, unary, terms, mode=self.mode)
        leaves = [unary, q0, *costs]
        grads = torch.autograd.grad(
            q, leaves, torch.from_numpy(self.grad[item].T).double(), allow_unused=True
        )
        zero = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves)]
        return q.detach(), kl.detach(), [g.numpy() for g in zero]

    def run(self, iterations: int, *, keep=False, start=False):
        """The kernels' marginals, objective, and gradients to unary, start and costs."""
        module = load(NAME)
        q0 = self.start if start else NONE
        q = poisoned(module, self.unary.shape, np.float32)
        kl = poisoned(module, len(q), np.float64)
        module.forward(self.unary, q0, self.terms, iterations, keep, q, kl)
        grads = [poisoned(module, self.unary.shape, np.float32)]
        grads.append(poisoned(module, self.unary.shape, np.float32) if start else NONE.copy())
        costs = [poisoned(module, t[3].shape, np.float32) for t in self.terms]
        module.backward(self.grad, self.unary, q0, q, self.terms, iterations, *grads, costs)
        return [q, kl, *grads, *costs]


def costs_of(labels: int, dims: str) -> list[np.ndarray]:
    rng = np.random.default_rng(len(dims))
    return [-1.0 - rng.random((labels,) * int(d)) for d in dims]


def assert_near(result, wanted, tolerance: float) -> None:
    scale = max(np.abs(wanted).max(), 1e-30)
    np.testing.assert_allclose(np.asarray(result) / scale, wanted / scale, atol=tolerance, rtol=0)


def check(problem: Problem, iterations: int, *, start=False, tolerance=1e-5) -> None:
    q, kl, unary, q0, *costs = check_orders(
        load(NAME), lambda: problem.run(iterations, start=start)
    )
    totals = [0.0] * len(costs)
    for item in range(len(q)):
        exact_q, exact_kl, grads = problem.exact(item, iterations, start)
        np.testing.assert_allclose(q[item].T, exact_q, atol=3e-6)
        np.testing.assert_allclose(kl[item], exact_kl, rtol=1e-5, atol=1e-4)
        assert_near(unary[item].T, grads[0], tolerance)
        if start:
            assert_near(q0[item].T, grads[1], tolerance)
        totals = [a + b for a, b in zip(totals, grads[2:])]
    for cost, total in zip(costs, totals):
        assert_near(cost, total, tolerance)


@pytest.mark.parametrize("dims", ["0", "1", "2", "012", "201021"])
def test_marginals_objective_and_gradients(dims):
    check(Problem(5, 33, costs_of(5, dims)), 3)


@pytest.mark.parametrize("labels", [2, 11, 21, 40, 70, 130])
def test_every_width_of_rows(labels):
    weak = [cost * (3 / labels) for cost in costs_of(labels, "2")]
    check(Problem(labels, 21, [-1.0, *weak], batch=1), 2, tolerance=3e-5)


@pytest.mark.parametrize("mode", ["before", "after"])
def test_modes(mode):
    check(Problem(4, 25, costs_of(4, "02"), mode=mode), 3)


@pytest.mark.parametrize("iterations", [0, 1, 2])
@pytest.mark.parametrize("start", [False, True])
def test_first_updates(iterations, start):
    check(Problem(3, 20, costs_of(3, "12")), iterations, start=start)


def test_no_terms():
    check(Problem(3, 20, []), 2)


def test_256_labels():
    problem = Problem(256, 9, [-1.0], batch=1)
    check(problem, 1, tolerance=3e-5)


def test_keeping_the_marginals_changes_nothing():
    problem = Problem(6, 30, costs_of(6, "02"))
    for one, other in zip(problem.run(3), problem.run(3, keep=True)):
        np.testing.assert_array_equal(one, other)


def test_the_same_bits_in_twenty_schedules():
    problem = Problem(5, 70, costs_of(5, "02"))
    orders = [Schedule("shuffled", seed, 1 + seed % 2) for seed in range(20)]
    check_orders(load(NAME), lambda: problem.run(2), orders)


def test_items_of_a_batch_equal_single_runs():
    problem = Problem(5, 40, costs_of(5, "02"), batch=3)
    problem.terms = problem.terms[:1]  # one lattice an item
    together = problem.run(2)
    for item in range(3):
        single = Problem(5, 40, [], batch=1)
        single.unary, single.grad = (t[item : item + 1] for t in (problem.unary, problem.grad))
        single.terms = [[*(a[item : item + 1] for a in t[:3]), t[3]] for t in problem.terms]
        alone = single.run(2)
        for n in range(3):  # marginals, objective, gradient to the energies
            np.testing.assert_array_equal(together[n][item], alone[n][0])


def test_agrees_with_the_cpu_kernels():
    """The operator on the CPU, of the same lattices, in everything that both give."""
    problem = Problem(21, 50, costs_of(21, "01"), batch=2)
    q, kl, unary, _, *costs = problem.run(4)
    own = torch.from_numpy(problem.unary).requires_grad_()
    terms = []
    for t in problem.terms:
        cost = torch.from_numpy(np.array(t[3])).requires_grad_()
        terms.append(pairwise_term(torch.from_numpy(t[0]), cost, problem.mode))
    wanted, objective = mean_field(own, terms, 4, return_kl=True)
    wanted.backward(torch.from_numpy(problem.grad))
    np.testing.assert_allclose(q, wanted.detach().numpy(), atol=2e-6)
    np.testing.assert_allclose(kl, objective.numpy(), rtol=1e-6)
    assert_near(unary, own.grad.numpy(), 1e-5)
    for cost, made in zip(costs, terms):
        assert_near(cost, made.cost.grad.numpy(), 1e-5)


FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "crf"


def test_a_photograph_gives_the_cpus_map():
    """A crop of a photograph with the published example's parameters: no pixel differs."""
    if not FIXTURES.is_dir():
        pytest.skip("the fixtures' folder is not beside the project")
    from PIL import Image

    crop = (120, 80, 184, 144)
    image = np.asarray(Image.open(FIXTURES / "im1.png").convert("RGB").crop(crop))
    colours = np.asarray(Image.open(FIXTURES / "anno1.png").convert("RGB")).astype(np.int64)
    codes = colours @ np.array([1, 256, 65536])
    known = np.unique(codes)[1:]  # black is unsure
    labels = np.searchsorted(known, codes)[crop[1] : crop[3], crop[0] : crop[2]].ravel()
    unsure = (codes == 0)[crop[1] : crop[3], crop[0] : crop[2]].ravel()
    unary = np.full((len(known), labels.size), -np.log(0.3 / (len(known) - 1)), np.float32)
    unary[labels, np.arange(labels.size)] = -np.log(0.7)
    unary[:, unsure] = np.log(len(known))
    assert len(np.unique(labels[~unsure])) > 1
    features = [
        create_pairwise_gaussian(sdims=(3, 3), shape=image.shape[:2]),
        create_pairwise_bilateral(sdims=(80, 80), schan=(13, 13, 13), img=image, chdim=2),
    ]
    rows = [np.ascontiguousarray(f.T, np.float32)[None] for f in features]
    terms = [term(f, -weight) for f, weight in zip(rows, (3.0, 10.0))]
    module = load(NAME)
    q = poisoned(module, (1, *unary.shape), np.float32)
    module.forward(unary[None], NONE, terms, 5, False, q, NONE.copy())
    built = [
        pairwise_term(torch.from_numpy(f), torch.tensor(-weight))
        for f, weight in zip(rows, (3.0, 10.0))
    ]
    wanted, _ = mean_field(torch.from_numpy(unary[None]), built, 5)
    assert (q.argmax(1) != wanted.numpy().argmax(1)).sum() == 0
    np.testing.assert_allclose(q, wanted.numpy(), atol=1e-5)


def test_sanitized():
    calls = []
    for labels, count, dims in ((3, 37, "012"), (21, 40, "2"), (40, 9, "10212"), (130, 5, "2")):
        problem = Problem(labels, count, costs_of(labels, dims))
        like = problem.unary
        for start, iterations in ((NONE, 2), (problem.start, 0)):
            forward = (like, start, problem.terms, iterations, False, like.copy(), np.zeros(2))
            costs = [np.zeros_like(t[3]) for t in problem.terms]
            backward = (problem.grad, like, start, like, problem.terms, iterations)
            outputs = (like.copy(), np.zeros_like(start), costs)
            calls += [Call("forward", forward), Call("backward", (*backward, *outputs))]
    run_sanitized(NAME, calls)
