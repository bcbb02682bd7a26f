"""The permutohedral lattice filter in plain torch: any floating dtype, differentiable, slow.

Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lattice:
    """The lattice of P points in d dimensions; D = d + 1 corners a point, M vertices.

    Attributes:
        vertex: (P, D) int64, the vertices of each point's simplex; corner k is congruent to k.
        weight: (P, D), their barycentric weights.
        rank: (P, D) int64, the place of each embedded coordinate in descending order.
        keys: (M, d) int64, the vertices' coordinates, sorted.
        neighbours: (D, M, 2) int64, the vertices before and after along each axis; M where none.
    """

    vertex: Tensor
    weight: Tensor
    rank: Tensor
    keys: Tensor
    neighbours: Tensor

    @property
    def d(self) -> int:
        return self.vertex.shape[1] - 1

    @property
    def alpha(self) -> float:
        """The gain of slicing, 1 / (1 + 2^-d)."""
        return 1.0 / (1.0 + 2.0**-self.d)


def embedding_scales(d: int) -> list[float]:
    """Factors of the features for which the filter is a Gaussian of variance 1."""
    return [math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2)) for i in range(d)]


def embed(features: Tensor) -> Tensor:
    """(P, d) features to (P, d + 1) points of the hyperplane sum(y) = 0."""
    d = features.shape[1]
    scaled = [scale * features[:, i] for i, scale in enumerate(embedding_scales(d))]
    columns = []
    total = torch.zeros_like(features[:, 0])
    for j in range(d, 0, -1):
        columns.append(total - j * scaled[j - 1])
        total = total + scaled[j - 1]
    columns.append(total)
    return torch.stack(columns[::-1], 1)


def enclosing_simplex(y: Tensor) -> tuple[Tensor, Tensor]:
    """(P, D) embedded points to the simplex round each: its remainder-0 vertex and the ranks."""
    size = y.shape[1]
    rounded = torch.round(y.detach() * (1.0 / size)).long()
    rem0 = rounded * size
    difference = y.detach() - rem0
    rank = torch.zeros_like(rem0)
    for i in range(size):
        for j in range(i + 1, size):
            less = difference[:, i] < difference[:, j]
            rank[:, i] += less
            rank[:, j] += ~less
    rank = rank + rounded.sum(1, keepdim=True)
    shift = (rank < 0).long() - (rank >= size).long()
    return rem0 + shift * size, rank + shift * size


def barycentric(y: Tensor, rem0: Tensor, rank: Tensor) -> Tensor:
    """(P, D) weights of the simplex corners; differentiable in y."""
    points, size = y.shape
    t = (y - rem0) / size
    b = y.new_zeros(points, size + 1)
    b = b.scatter_add(1, size - 1 - rank, t).scatter_add(1, size - rank, -t)
    first = b[:, :1] + 1.0 + b[:, -1:]
    return torch.cat([first, b[:, 1:size]], 1)


def build(features: Tensor) -> Lattice:
    """The lattice of (P, d) features; the weights are differentiable in them."""
    d = features.shape[1]
    size = d + 1
    y = embed(features)
    rem0, rank = enclosing_simplex(y)
    weight = barycentric(y, rem0, rank)
    corners = torch.arange(size).view(1, size, 1)
    keys = rem0[:, None, :d] + corners - size * (rank[:, None, :d] > d - corners)
    unique, inverse = torch.unique(keys.reshape(-1, d), dim=0, return_inverse=True)
    neighbours = torch.stack([_neighbours(unique, axis) for axis in range(size)])
    return Lattice(inverse.view(-1, size), weight, rank, unique, neighbours)


def _neighbours(keys: Tensor, axis: int) -> Tensor:
    count, d = keys.shape
    step = torch.ones(d, dtype=torch.long)
    if axis < d:
        step[axis] = -d
    asked = torch.cat([keys - step, keys + step])
    # Number the asked keys together with the present ones; those that are new are missing.
    _, numbers = torch.unique(torch.cat([keys, asked]), dim=0, return_inverse=True)
    index_of = torch.full((3 * count,), count, dtype=torch.long)
    index_of[numbers[:count]] = torch.arange(count)
    return index_of[numbers[count:]].view(2, count).T


def splat(lattice: Lattice, values: Tensor) -> Tensor:
    """(P, C) values to (M + 1, C) vertex sums; the last row, of zeros, is for missing ones."""
    sums = values.new_zeros(lattice.keys.shape[0] + 1, values.shape[1])
    for k in range(lattice.d + 1):
        sums = sums.index_add(0, lattice.vertex[:, k], lattice.weight[:, k, None] * values)
    return sums


def blur(lattice: Lattice, sums: Tensor, reverse: bool = False) -> Tensor:
    """Weights 1/2, 1, 1/2 along each axis in turn, or in the opposite order."""
    axes = range(lattice.d + 1)
    for axis in reversed(axes) if reverse else axes:
        before, after = lattice.neighbours[axis].unbind(1)
        inner = sums[:-1] + 0.5 * (sums[before] + sums[after])
        sums = torch.cat([inner, sums[-1:]])
    return sums


def slice_(lattice: Lattice, sums: Tensor) -> Tensor:
    """(M + 1, C) vertex values to (P, C)."""
    return lattice.alpha * (lattice.weight[..., None] * sums[lattice.vertex]).sum(1)


def permutohedral_filter(values: Tensor, lattice: Lattice, *, reverse: bool = False) -> Tensor:
    """(P, C) values filtered with a unit Gaussian over the features of `lattice`.

    `reverse` blurs the axes in the opposite order, which gives exactly the transposed operator.
    """
    return slice_(lattice, blur(lattice, splat(lattice, values), reverse))


def feature_gradient(features: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The gradient of sum(a * filter(b)) to the (P, d) features, by the closed formula."""
    lattice = build(features)
    d, size = lattice.d, lattice.d + 1
    first = size - 1 - lattice.rank
    second = (first + 1) % size
    g = torch.zeros_like(lattice.weight)
    forward = blur(lattice, splat(lattice, b))
    backward = blur(lattice, splat(lattice, a), reverse=True)
    for value, sums in ((a, forward), (b, backward)):
        corner = (value[:, None, :] * sums[lattice.vertex]).sum(2)
        g = g + corner.gather(1, first) - corner.gather(1, second)
    g = g * (lattice.alpha / size)
    columns = [
        scale * (g[:, : m + 1].sum(1) - (m + 1) * g[:, m + 1])
        for m, scale in enumerate(embedding_scales(d))
    ]
    return torch.stack(columns, 1)
