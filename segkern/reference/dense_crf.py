"""Mean field inference of a fully connected CRF in plain torch: any dtype, differentiable, slow.

Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", arXiv:1210.5644. Arrays are (P, L): points, then labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segkern.reference.permutohedral import Lattice, permutohedral_filter

EPSILON = 1e-20


def normalisers(lattice: Lattice, mode: str) -> tuple[Tensor, Tensor]:
    """(P, 1) factors before and after the filter: "none", "before", "after" or "symmetric"."""
    one = torch.ones_like(lattice.weight[:, :1])
    if mode == "none":
        return one, one
    mass = permutohedral_filter(one, lattice) + EPSILON
    if mode == "symmetric":
        return mass.rsqrt(), mass.rsqrt()
    return (1 / mass, one) if mode == "before" else (one, 1 / mass)


def message(q: Tensor, lattice: Lattice, mode: str) -> Tensor:
    """The normalised filter S applied to (P, L) values."""
    before, after = normalisers(lattice, mode)
    return after * permutohedral_filter(before * q, lattice)


def apply_cost(m: Tensor, cost: Tensor) -> Tensor:
    """What a term adds to the energies: cost is a number, one per label, or (L, L)."""
    return m @ cost.T if cost.dim() == 2 else m * cost


def mean_field(
    unary: Tensor,
    terms: Sequence[tuple[Lattice, Tensor]],
    *,
    mode: str = "symmetric",
    iterations: int = 10,
    q0: Tensor | None = None,
) -> Tensor:
    """(P, L) marginals after parallel mean field updates.

    Args:
        unary: (P, L) energies.
        terms: per pairwise term its lattice and its cost, signed: a Potts term of weight w has
            cost -w.
        mode: normalisation of the filters.
        iterations: number of updates.
        q0: (P, L) start; None is softmax(-unary).
    """
    q = torch.softmax(-unary, 1) if q0 is None else q0
    for _ in range(iterations):
        z = -unary
        for lattice, cost in terms:
            z = z - apply_cost(message(q, lattice, mode), cost)
        q = torch.softmax(z, 1)
    return q


def kl_divergence(
    q: Tensor, unary: Tensor, terms: Sequence[tuple[Lattice, Tensor]], *, mode: str = "symmetric"
) -> Tensor:
    """The objective that mean field lowers, up to a constant; the pairwise part counted twice."""
    total = (q * q.clamp(min=EPSILON).log() + q * unary).sum()
    for lattice, cost in terms:
        total = total + (q * apply_cost(message(q, lattice, mode), cost)).sum()
    return total


def image_features(
    image: Tensor, sxy: float | tuple[float, float], srgb: float | Sequence[float] | None = None
) -> Tensor:
    """(H * W, 2) or (H * W, 2 + C) features of a (C, H, W) image: x / sx, y / sy, colour / srgb."""
    channels, height, width = image.shape
    sx, sy = sxy if isinstance(sxy, tuple) else (sxy, sxy)
    ys, xs = torch.meshgrid(
        torch.arange(height, dtype=image.dtype),
        torch.arange(width, dtype=image.dtype),
        indexing="ij",
    )
    columns = [xs / sx, ys / sy]
    if srgb is not None:
        widths = [srgb] * channels if isinstance(srgb, (int, float)) else srgb
        columns += [image[c] / widths[c] for c in range(channels)]
    return torch.stack([column.flatten() for column in columns], 1)
