"""dense_crf and permutohedral beside the same filter as a chain of eager torch operations.

Lattices are those of a smooth picture with noise, with the parameters of pydensecrf's example. The
eager chain is given our lattices, as building them in torch waits for the device; so the build has
no peer but reading the points. Least bytes of an inference, an iteration and term: 8 a corner for
vertex and weight, read once each by splat and slice, the rows of values twice and those of vertices
twice an axis; the backward the same and two more rows a point.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.cases import Case, Contender
from segkern import ops
from segkern.ops.dense_crf import bilateral_features, mean_field, pairwise_term, position_features

ITERATIONS = 10
OPERATORS = ("forward", "backward")

# title, full shape (N, labels, H, W), small shape
SHAPES = (
    ("VOC image", (1, 21, 375, 500), (1, 3, 9, 12)),
    ("Batch of VOC images", (4, 21, 375, 500), (2, 3, 7, 8)),
    ("Cityscapes image", (1, 19, 1024, 2048), (1, 5, 8, 11)),
)


def declare_cases(timed: bool) -> list[Case]:
    return [
        Case(
            "dense_crf",
            operator,
            full if timed else small,
            "float32",
            "contiguous",
            f"{ITERATIONS} iterations",
            title,
        )
        for title, full, small in SHAPES
        for operator in OPERATORS
    ]


class Inputs:
    """Energies, a gradient, and the two terms of the example over given lattices."""

    def __init__(self, case: Case):
        generator = torch.Generator().manual_seed(0)
        batch, labels, *size = case.shape
        shape = (batch, labels, size[0] * size[1])
        self.unary = (2 * torch.rand(shape, generator=generator)).to(case.device)
        self.grad = torch.rand(shape, generator=generator).to(case.device)
        waves = [torch.linspace(0, 9, n).sin() for n in size]
        smooth = 128 + 80 * waves[0].view(-1, 1) * waves[1]
        noise = 6 * torch.randn(batch, 3, *size, generator=generator)
        image = (smooth + noise).clamp(0, 255).to(case.device)
        features = [
            position_features("dense_crf", size, 3.0, image.device),
            bilateral_features("dense_crf", image, 80.0, 13.0),
        ]
        self.terms = [
            pairwise_term(f, torch.full((), -weight, device=case.device))
            for f, weight in zip(features, (3.0, 10.0))
        ]

    def least_bytes(self, backward: bool) -> int:
        batch, labels, points = self.unary.shape
        row = 4 * labels
        total = (6 if backward else 4) * batch * points * row
        for term in self.terms:
            corners = term.lattice.dims + 1
            vertices = int(term.lattice.count.sum()) * batch // len(term.lattice.count)
            total += batch * points * corners * 16 + vertices * row * 2 * corners
        return ITERATIONS * total

    def segkern(self, unary: Tensor) -> Tensor:
        return mean_field(unary, self.terms, ITERATIONS)[0]

    def eager(self, unary: Tensor) -> Tensor:
        q = torch.softmax(-unary, 1)
        for _ in range(ITERATIONS):
            z = -unary
            for term in self.terms:
                z = z - term.cost * term.after[:, None] * eager_filter(
                    term.lattice, term.before[:, None] * q
                )
            q = torch.softmax(z, 1)
        return q


def eager_filter(lattice: ops.Lattice, values: Tensor) -> Tensor:
    """The filter of (N, C, P) values, item after item; sums of absent vertices stay zero."""
    dims = lattice.dims
    rows = []
    for item, planes in enumerate(values):
        at = item if len(lattice.vertex) > 1 else 0
        vertex, weight = lattice.vertex[at].long(), lattice.weight[at]
        bound = lattice.neighbours.shape[2]
        sums = values.new_zeros(bound + 1, values.shape[1])
        for k in range(dims + 1):
            sums = sums.index_add(0, vertex[:, k], weight[:, k, None] * planes.T)
        used = (torch.arange(bound, device=values.device) < lattice.count[at])[:, None]
        for axis in range(dims + 1):
            near = torch.where(used, lattice.neighbours[at, axis], bound).long()
            near = torch.where(near == lattice.count[at], bound, near)
            blurred = sums[:-1] + 0.5 * (sums[near[:, 0]] + sums[near[:, 1]])
            sums = torch.cat([blurred, sums[-1:]])
        sliced = sum(weight[:, k, None] * sums[vertex[:, k]] for k in range(dims + 1))
        rows.append(sliced.T / (1 + 2.0**-dims))
    return torch.stack(rows)


def test_dense_crf(case: Case, runner) -> None:
    inputs = runner.inputs(case.data, lambda: Inputs(case))
    backward = case.operator == "backward"

    def contender(function, library: str) -> Contender:
        def make():
            if not backward:
                return lambda: function(inputs.unary)
            leaf = inputs.unary.detach().requires_grad_()
            with torch.enable_grad():
                output = function(leaf)
            return lambda: torch.autograd.grad(output, leaf, inputs.grad, retain_graph=True)[0]

        return Contender(make, inputs.least_bytes(backward), library=library)

    def check(_variant: str, got, expected) -> None:
        torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-3 * float(expected.abs().max()))

    runner.run(
        case,
        ours={"segkern": contender(inputs.segkern, "segkern")},
        peer=contender(inputs.eager, "torch eager"),
        check=check,
    )
