"""Mean field updates over given pairwise terms: the fused operator, and updates one by one.

The fused operator ``segkern::dense_crf`` runs all updates over lattices that get no gradient. Terms
that it does not know (an exact Gaussian, a lattice whose features want a gradient) are filtered by
their own operators between its updates, one at a time, with their energies added to the unary ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from segkern.ops._memory import SMALL, require_memory
from segkern.ops.permutohedral import (
    Lattice,
    permutohedral_build,
    permutohedral_filter,
)

NORMALIZATIONS = ("none", "before", "after", "symmetric")
EPSILON = 1e-20

_ROW = 8  # native rows of labels are padded to this many floats


@dataclass(frozen=True)
class PairwiseTerm:
    """A pairwise term over a lattice, ready for :func:`mean_field`.

    Attributes:
        lattice: over the term's features, for every item or one for all.
        before, after: (N, P) or (1, P) float32 factors of the values on each side of the filter.
        cost: float32 (), (L,) or (L, L): what a message costs. A Potts term of weight w has -w;
            a matrix has the receiving label as its row.
        features: (N, P, d) or (1, P, d) that the lattice was built from, where they want a
            gradient; otherwise None.
    """

    lattice: Lattice
    before: Tensor
    after: Tensor
    cost: Tensor
    features: Tensor | None = None

    def filter(self, values: Tensor) -> Tensor:
        """The filter K of (N, L, P) values."""
        return permutohedral_filter(values, self.lattice, features=self.features)


@dataclass(frozen=True)
class GridTerm:
    """A pairwise term with an exact Gaussian over the pixels of a grid.

    Attributes:
        size: of the grid, with P pixels.
        widths: (len(size),) float32, the last axis first.
        before, after: (1, P) float32, and `cost`: as in :class:`PairwiseTerm`.
    """

    size: tuple[int, ...]
    widths: Tensor
    before: Tensor
    after: Tensor
    cost: Tensor

    def filter(self, values: Tensor) -> Tensor:
        """The filter K of (N, L, P) values."""
        return _filter_grid(values, self.size, self.widths)


Term = Union[PairwiseTerm, GridTerm]


def pairwise_term(features: Tensor, cost: Tensor, normalization: str = "symmetric") -> PairwiseTerm:
    """Builds the lattice of (N, P, d) features and the factors of a normalisation mode."""
    check_normalization(normalization)
    features = features[None] if features.dim() == 2 else features
    lattice = permutohedral_build(features)
    wanted = features.float() if torch.is_grad_enabled() and features.requires_grad else None
    one = lattice.weight.new_ones(lattice.weight.shape[:2])
    mass = None
    if normalization != "none":
        mass = permutohedral_filter(one[:, None], lattice, features=wanted)[:, 0]
    return PairwiseTerm(lattice, *_factors(one, mass, normalization), cost, wanted)


def grid_term(
    size: Sequence[int], widths: Tensor, cost: Tensor, normalization: str = "symmetric"
) -> GridTerm:
    """The exact Gaussian over a grid, and the factors of a normalisation mode."""
    check_normalization(normalization)
    size = tuple(size)
    one = widths.new_ones(1, math.prod(size))
    mass = None if normalization == "none" else _filter_grid(one[:, None], size, widths)[:, 0]
    return GridTerm(size, widths, *_factors(one, mass, normalization), cost)


def check_normalization(normalization: str) -> None:
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"dense_crf: normalization must be one of {', '.join(map(repr, NORMALIZATIONS))}, "
            f"got {normalization!r}"
        )


def _factors(one: Tensor, mass: Tensor | None, normalization: str) -> tuple[Tensor, Tensor]:
    """What values are multiplied by before and after the filter, from the filtered ones."""
    if mass is None:
        return one, one
    if normalization == "symmetric":
        root = (mass + EPSILON).rsqrt()
        return root, root
    inverse = 1 / (mass + EPSILON)
    return (inverse, one) if normalization == "before" else (one, inverse)


def _filter_grid(values: Tensor, size: tuple[int, ...], widths: Tensor) -> Tensor:
    planes = values.unflatten(2, size)
    return torch.ops.segkern.separable_gaussian.default(planes, widths, -1).flatten(2)


def mean_field(
    unary: Tensor,
    terms: Sequence[Term],
    iterations: int,
    *,
    q0: Tensor | None = None,
    memory: str = "recompute",
    return_kl: bool = False,
) -> tuple[Tensor, Tensor]:
    """(N, L, P) float32 marginals after mean field updates, and the objective (N,) or (0,).

    Differentiable in the unary energies, `q0`, the terms' costs, and in features and widths that
    want it. See :func:`segkern.ops.dense_crf`.
    """
    if memory not in ("recompute", "store"):
        raise ValueError(f"dense_crf: memory must be 'recompute' or 'store', got {memory!r}")
    fused = [term for term in terms if _is_fused(term)]
    apart = [term for term in terms if not _is_fused(term)]
    stored = iterations if memory == "store" and torch.is_grad_enabled() else 0
    _check_memory(unary, terms, stored)
    if not apart:
        return _run_fused(unary, fused, iterations, q0, memory == "store", return_kl)

    # Costs are multiplied in float32 under autocast too.
    with torch.autocast(unary.device.type, enabled=False):
        q = _run_fused(unary, [], 0, q0)[0]
        recompute = memory == "recompute" and torch.is_grad_enabled()
        if torch.compiler.is_compiling():
            recompute = False  # what to keep is the compiler's choice
        for _ in range(iterations):
            if recompute:
                q = checkpoint(
                    _update, unary, q, fused, apart, use_reentrant=False, preserve_rng_state=False
                )
            else:
                q = _update(unary, q, fused, apart)
        if not return_kl:
            return q, unary.new_empty(0, dtype=torch.float64)
        with torch.no_grad():
            return q, _run_fused(_add_messages(unary, q, apart), fused, 0, q, return_kl=True)[1]


def _is_fused(term: Term) -> bool:
    return isinstance(term, PairwiseTerm) and term.features is None


def _update(
    unary: Tensor, q: Tensor, fused: Sequence[PairwiseTerm], apart: Sequence[Term]
) -> Tensor:
    """One update. The fused operator's backward starts from q, which it would compute again."""
    return _run_fused(_add_messages(unary, q, apart), fused, 1, q, keep=True)[0]


def _add_messages(unary: Tensor, q: Tensor, terms: Sequence[Term]) -> Tensor:
    """The energies with those of the terms' messages at q."""
    energies = unary
    for term in terms:
        filtered = term.filter(term.before[:, None] * q)
        if term.cost.dim() == 2:
            energies = energies + term.cost @ (term.after[:, None] * filtered)
        else:
            factor = term.cost.view(-1, 1) * term.after[:, None]
            energies = torch.addcmul(energies, factor, filtered)
    return energies


def _run_fused(
    unary: Tensor,
    terms: Sequence[PairwiseTerm],
    iterations: int,
    q0: Tensor | None,
    keep: bool = False,
    return_kl: bool = False,
) -> tuple[Tensor, Tensor]:
    """`keep`: store what the backward needs, if there will be one."""
    differentiable = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (unary, q0, *(term.cost for term in terms))
    )
    q, _, kl = torch.ops.segkern.dense_crf.default(
        unary,
        q0,
        [tensor for term in terms for tensor in term.lattice],
        [tensor for term in terms for tensor in (term.before, term.after)],
        [term.cost for term in terms],
        iterations,
        differentiable and keep,
        return_kl,
    )
    return q, kl


def rows_bytes(
    shape: tuple[int, int, int], grid_terms: int, device: torch.device, stored: int = 0
) -> int:
    """Bytes of energies and marginals of (N, L, P), of which `stored` updates are kept."""
    batch, labels, points = shape
    # The CPU works on one item at a time.
    worked_on = 2 * (batch if device.type == "cuda" else 1)
    rows = worked_on + batch * (1 + stored + 2 * grid_terms)
    return rows * points * _row_bytes(labels)


def _row_bytes(labels: int) -> int:
    return 4 * ((labels + _ROW - 1) // _ROW * _ROW)


def _check_memory(unary: Tensor, terms: Sequence[Term], stored: int) -> None:
    """What the updates work on: the rows of points, and of vertices now that they are counted."""
    if torch.compiler.is_compiling():
        return
    lattices = [term.lattice for term in terms if isinstance(term, PairwiseTerm)]
    needed = rows_bytes(unary.shape, len(terms) - len(lattices), unary.device, stored)
    row = _row_bytes(unary.shape[1])
    for lattice in lattices:
        bound = lattice.neighbours.shape[2]
        if unary.is_cuda:  # looking at the number of vertices would stall the stream
            needed += 2 * row * unary.shape[0] * bound
        elif needed + 3 * row * bound > SMALL:
            needed += 3 * row * max(lattice.count.tolist(), default=0)
    require_memory("dense_crf", f"mean field over {tuple(unary.shape)}", needed, unary.device)


@torch.library.register_fake("segkern::dense_crf")
def _dense_crf_fake(unary, q0, lattices, scales, costs, iterations, keep, want_kl):
    batch, labels, points = unary.shape
    stride = (labels + _ROW - 1) // _ROW * _ROW
    return (
        unary.new_empty(unary.shape),
        unary.new_empty((batch, iterations, points, stride) if keep else (0,)),
        unary.new_empty((batch if want_kl else 0,), dtype=torch.float64),
    )


@torch.library.register_fake("segkern::_dense_crf_backward")
def _dense_crf_backward_fake(grad, unary, q0, q, history, lattices, scales, costs, iterations):
    return (
        unary.new_empty(unary.shape),
        unary.new_empty((0,) if q0 is None else unary.shape),
        [cost.new_empty(cost.shape) for cost in costs],
    )


def _setup_dense_crf(ctx, inputs, output):
    unary, q0, lattices, scales, costs, iterations, _, _ = inputs
    q, history, kl = output
    ctx.mark_non_differentiable(history, kl)
    ctx.save_for_backward(unary, q0, q, history, *lattices, *scales, *costs)
    ctx.counts = (len(lattices), len(scales))
    ctx.iterations = iterations


def _backward_dense_crf(ctx, grad, _history, _kl):
    unary, q0, q, history, *lists = ctx.saved_tensors
    first, second = ctx.counts[0], sum(ctx.counts)
    lattices, scales, costs = lists[:first], lists[first:second], lists[second:]
    grad_unary, grad_q0, grad_costs = torch.ops.segkern._dense_crf_backward.default(
        grad, unary, q0, q, history, lattices, scales, costs, ctx.iterations
    )
    return (
        grad_unary,
        None if q0 is None else grad_q0,
        [None] * len(lattices),
        [None] * len(scales),
        grad_costs,
        None,
        None,
        None,
    )


torch.library.register_autograd(
    "segkern::dense_crf", _backward_dense_crf, setup_context=_setup_dense_crf
)


def _refuse_second_derivative(ctx, *grads):
    raise RuntimeError("dense_crf: second derivatives are not available")


torch.library.register_autograd(
    "segkern::_dense_crf_backward",
    _refuse_second_derivative,
    setup_context=lambda ctx, inputs, output: None,
)
