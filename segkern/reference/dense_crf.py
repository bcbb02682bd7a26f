"""Mean field inference of a fully connected CRF in plain torch: any dtype, differentiable, slow.

Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", arXiv:1210.5644. Arrays are (P, L): points, then labels. The kernel of a term is a
lattice, or a (P, P) matrix such as that of :func:`gaussian_matrix`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import torch
from torch import Tensor

from segkern.reference.permutohedral import Lattice, permutohedral_filter

EPSILON = 1e-20

Kernel = Union[Lattice, Tensor]
Width = Union[float, Tensor]


def apply_kernel(kernel: Kernel, values: Tensor) -> Tensor:
    """(P, L) values filtered, without normalisation."""
    if isinstance(kernel, Lattice):
        return permutohedral_filter(values, kernel)
    return kernel @ values


def gaussian_matrix(features: Tensor) -> Tensor:
    """(P, P) exact kernel exp(-|f_i - f_j|^2 / 2) of (P, d) features."""
    return torch.exp(-0.5 * (features[:, None] - features[None]).square().sum(2))


def normalisers(kernel: Kernel, mode: str) -> tuple[Tensor, Tensor]:
    """(P, 1) factors before and after the filter: "none", "before", "after" or "symmetric"."""
    one = torch.ones_like((kernel.weight if isinstance(kernel, Lattice) else kernel)[:, :1])
    if mode == "none":
        return one, one
    mass = apply_kernel(kernel, one) + EPSILON
    if mode == "symmetric":
        return mass.rsqrt(), mass.rsqrt()
    return (1 / mass, one) if mode == "before" else (one, 1 / mass)


def message(q: Tensor, kernel: Kernel, mode: str) -> Tensor:
    """The normalised filter S applied to (P, L) values."""
    before, after = normalisers(kernel, mode)
    return after * apply_kernel(kernel, before * q)


def apply_cost(m: Tensor, cost: Tensor) -> Tensor:
    """What a term adds to the energies: cost is a number, one per label, or (L, L)."""
    return m @ cost.T if cost.dim() == 2 else m * cost


def mean_field(
    unary: Tensor,
    terms: Sequence[tuple[Kernel, Tensor]],
    *,
    mode: str = "symmetric",
    iterations: int = 10,
    q0: Tensor | None = None,
) -> Tensor:
    """(P, L) marginals after parallel mean field updates.

    Args:
        unary: (P, L) energies.
        terms: per pairwise term its kernel and its cost, signed: a Potts term of weight w has
            cost -w.
        mode: normalisation of the filters.
        iterations: number of updates.
        q0: (P, L) start; None is softmax(-unary).
    """
    q = torch.softmax(-unary, 1) if q0 is None else q0
    for _ in range(iterations):
        z = -unary
        for kernel, cost in terms:
            z = z - apply_cost(message(q, kernel, mode), cost)
        q = torch.softmax(z, 1)
    return q


def kl_divergence(
    q: Tensor, unary: Tensor, terms: Sequence[tuple[Kernel, Tensor]], *, mode: str = "symmetric"
) -> Tensor:
    """The objective that mean field lowers, up to a constant; the pairwise part counted twice."""
    total = (q * q.clamp(min=EPSILON).log() + q * unary).sum()
    for kernel, cost in terms:
        total = total + (q * apply_cost(message(q, kernel, mode), cost)).sum()
    return total


def image_features(
    image: Tensor, sxy: Width | tuple[Width, Width], srgb: Width | Sequence[Width] | None = None
) -> Tensor:
    """(H * W, 2) or (H * W, 2 + C) features of a (C, H, W) image: x / sx, y / sy, colour / srgb.

    Widths may be 0-d tensors: the features are differentiable in them and in the image.
    """
    channels, height, width = image.shape
    sx, sy = sxy if isinstance(sxy, tuple) else (sxy, sxy)
    ys, xs = torch.meshgrid(
        torch.arange(height, dtype=image.dtype),
        torch.arange(width, dtype=image.dtype),
        indexing="ij",
    )
    columns = [xs / sx, ys / sy]
    if srgb is not None:
        widths = srgb if isinstance(srgb, (list, tuple)) else [srgb] * channels
        columns += [image[c] / widths[c] for c in range(channels)]
    return torch.stack([column.flatten() for column in columns], 1)
