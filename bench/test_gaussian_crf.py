"""Gaussian CRF beside conjugate gradients in eager torch and, on a small map, a dense solve.

The peer runs as many iterations as ours needed, without looking at its residual: on a GPU it so
never waits, and can be captured. Its backward solves the same system, as ours does, instead of
going back through the iterations. Least bytes: every score and pairwise value once, and in the
backward their gradients once. Maps are those of a network of stride 8 at 513 x 513 with the 21
labels of VOC 2012, and of a batch of half the size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from bench.cases import Case, Contender
from segkern import ops
from segkern.ops.gaussian_crf import definite_limit

DIAGONAL, TOLERANCE = 10.0, 1e-5

# title, pairwise, peer, full shape, small shape
SHAPES = (
    ("VOC at stride 8", "potts", "eager CG", (1, 21, 65, 65), (1, 3, 7, 6)),
    ("VOC at stride 8", "general", "eager CG", (1, 21, 65, 65), (1, 3, 7, 6)),
    ("Batch at half size", "potts", "eager CG", (8, 21, 33, 33), (2, 3, 5, 5)),
    ("Large map", "potts", "eager CG", (1, 21, 257, 257), (1, 3, 9, 8)),
    ("Small map", "potts", "dense solve", (1, 21, 24, 24), (1, 3, 5, 4)),
)


def declare_cases(timed: bool) -> list[Case]:
    return [
        Case(
            "gaussian_crf",
            operator,
            full if timed else small,
            "float32",
            "contiguous",
            f"{pairwise}, {peer}",
            title,
            options={"pairwise": pairwise, "peer": peer},
        )
        for title, pairwise, peer, full, small in SHAPES
        for operator in ("forward", "backward")
    ]


class Inputs:
    """Scores and pairwise values up to 0.9 of the definite bound, and a gradient."""

    def __init__(self, case: Case):
        torch.manual_seed(0)
        batch, labels, height, width = case.shape
        self.pairwise = case.options["pairwise"]
        planes = labels**2 if self.pairwise == "general" else 1
        bound = 0.9 * definite_limit(
            [(height, width)], pairwise=self.pairwise, labels=labels, diagonal=DIAGONAL
        )

        def values(h: int, w: int) -> Tensor:
            return bound * (2 * torch.rand(batch, planes, h, w, device=case.device) - 1)

        self.unary = torch.randn(case.shape, device=case.device)
        self.grad = torch.randn(case.shape, device=case.device)
        self.right, self.down = values(height, width - 1), values(height - 1, width)
        _, report = self.solve(self.unary, self.right, self.down, return_report=True)
        self.iterations = int(report.iterations.max())

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.unary, self.right, self.down

    def solve(self, unary: Tensor, right: Tensor, down: Tensor, **keywords):
        return ops.gaussian_crf(
            unary,
            right,
            down,
            pairwise=self.pairwise,
            diagonal=DIAGONAL,
            tolerance=TOLERANCE,
            **keywords,
        )


class EagerCrf(torch.autograd.Function):
    """The operator in eager torch: `solve` finds the scores, and the gradient of the unaries."""

    @staticmethod
    def forward(ctx, solve, unary, right, down):
        x = solve(unary, right, down)
        ctx.solve = solve
        ctx.save_for_backward(x, right, down)
        return x

    @staticmethod
    def backward(ctx, grad):
        x, right, down = ctx.saved_tensors
        y = ctx.solve(grad, right, down)

        def outer(first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> Tensor:
            if right.shape[1] > 1:
                one = torch.einsum("nahw,nbhw->nabhw", first(y), second(x))
                two = torch.einsum("nahw,nbhw->nabhw", first(x), second(y))
                return -(one + two).flatten(1, 2)
            rest = x.sum(1, keepdim=True) - x
            return -(first(y) * second(rest) + second(y) * first(rest)).sum(1, keepdim=True)

        horizontal = outer(lambda t: t[..., :-1], lambda t: t[..., 1:])
        vertical = outer(lambda t: t[..., :-1, :], lambda t: t[..., 1:, :])
        return None, y, horizontal, vertical


def conjugate_gradients(iterations: int, unary: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """All systems of a batch at once, a fixed number of iterations."""
    labels = unary.shape[1]
    general = right.shape[1] > 1
    if general:
        b, axes, scale = unary, (1, 2, 3), 1.0
        right, down = (e.unflatten(1, (labels, labels)) for e in (right, down))
    else:
        total = unary.sum(1, keepdim=True)
        b, axes = torch.cat([total, unary - total / labels], 1), (2, 3)
        scale = b.new_full((labels + 1, 1, 1), -1.0)
        scale[0] = labels - 1

    def forth(edge: Tensor, p: Tensor) -> Tensor:
        return torch.einsum("nabhw,nbhw->nahw", edge, p) if general else edge * p

    def back(edge: Tensor, p: Tensor) -> Tensor:
        return torch.einsum("nabhw,nahw->nbhw", edge, p) if general else edge * p

    def product(p: Tensor) -> Tensor:
        out = torch.zeros_like(p)
        out[..., :-1] += forth(right, p[..., 1:])
        out[..., 1:] += back(right, p[..., :-1])
        out[..., :-1, :] += forth(down, p[..., 1:, :])
        out[..., 1:, :] += back(down, p[..., :-1, :])
        return DIAGONAL * p + scale * out

    def dot(one: Tensor, two: Tensor) -> Tensor:
        return (one * two).sum(axes, keepdim=True)

    x, r, p = torch.zeros_like(b), b.clone(), b.clone()
    rr = dot(r, r)
    tiny = torch.finfo(rr.dtype).tiny
    for _ in range(iterations):
        q = product(p)
        alpha = rr / dot(p, q).clamp(min=tiny)
        x += alpha * p
        r -= alpha * q
        following = dot(r, r)
        p = r + following / rr.clamp(min=tiny) * p
        rr = following
    return x if general else x[:, :1] / labels + x[:, 1:]


def dense_solve(unary: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """The two matrices of a Potts model, factorised."""
    batch, labels, height, width = unary.shape
    cells = torch.arange(height * width, device=unary.device).view(height, width)
    matrix = unary.new_zeros(batch, height * width, height * width)
    matrix[:, cells[:, :-1].flatten(), cells[:, 1:].flatten()] = right.flatten(1)
    matrix[:, cells[:-1].flatten(), cells[1:].flatten()] = down.flatten(1)
    matrix = matrix + matrix.mT
    diagonal = DIAGONAL * torch.eye(height * width, device=unary.device)
    columns = unary.flatten(2).mT
    total = columns.sum(2, keepdim=True)
    shared = torch.linalg.solve(diagonal + (labels - 1) * matrix, total) / labels
    own = torch.linalg.solve(diagonal - matrix, columns - total / labels)
    return (shared + own).mT.reshape(unary.shape)


def test_gaussian_crf(case: Case, runner) -> None:
    inputs = runner.inputs(case.data, lambda: Inputs(case))
    solve = (
        dense_solve
        if case.options["peer"] == "dense solve"
        else functools.partial(conjugate_gradients, inputs.iterations)
    )
    backward = case.operator == "backward"
    count = sum(t.numel() for t in inputs.leaves) + inputs.unary.numel()
    least = 4 * count + (4 * (count - inputs.unary.numel()) if backward else 0)

    def contender(function: Callable[..., Tensor], library: str) -> Contender:
        def make() -> Callable[[], object]:
            if not backward:
                return lambda: function(*inputs.leaves)
            leaves = [t.detach().requires_grad_() for t in inputs.leaves]
            with torch.enable_grad():
                output = function(*leaves)
            return lambda: torch.autograd.grad(output, leaves, inputs.grad, retain_graph=True)

        return Contender(make, least, library=library)

    def check(_variant: str, got, expected) -> None:
        pairs = zip(got, expected) if backward else [(got, expected)]
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=0.0, atol=1e-3 * float(other.abs().max()))

    peer = functools.partial(EagerCrf.apply, solve) if backward else solve
    runner.run(
        case,
        ours={"segkern": contender(inputs.solve, "segkern")},
        peer=contender(peer, f"torch {case.options['peer']}"),
        check=check,
    )
