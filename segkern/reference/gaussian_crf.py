"""Gaussian CRF in plain torch: the dense matrix, solved as a whole. Any dtype, differentiable.

Chandra and Kokkinos, "Fast, Exact and Multi-Scale Inference for Semantic Image Segmentation with
Deep Gaussian CRFs", arXiv:1603.08358. One item at a time; the variable of label l at node p has
number l * P + p, nodes counted over all levels, finest first, rows first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def edge_nodes(sizes: Sequence[tuple[int, int]]) -> list[tuple[Tensor, Tensor]]:
    """The first and second nodes of the edges: per level right, down and, but the last, across."""
    ends = []
    first = 0
    for number, (height, width) in enumerate(sizes):
        cells = first + torch.arange(height * width).view(height, width)
        first += height * width
        ends.append((cells[:, :-1].flatten(), cells[:, 1:].flatten()))
        ends.append((cells[:-1].flatten(), cells[1:].flatten()))
        if number + 1 < len(sizes):
            coarse = sizes[number + 1]
            rows = torch.arange(height) * coarse[0] // height
            columns = torch.arange(width) * coarse[1] // width
            parents = first + rows[:, None] * coarse[1] + columns
            ends.append((cells.flatten(), parents.flatten()))
    return ends


def pairwise_matrix(edges: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> Tensor:
    """(K P, K P) symmetric matrix of edges (K * K, ...), in the order of :func:`edge_nodes`."""
    nodes = sum(height * width for height, width in sizes)
    width = round(edges[0].shape[0] ** 0.5)
    size = width * nodes
    matrix = edges[0].new_zeros(size * size)
    for values, (p, q) in zip(edges, edge_nodes(sizes), strict=True):
        for channel, value in enumerate(values.flatten(1)):
            rows = channel // width * nodes + p
            columns = channel % width * nodes + q
            matrix = matrix.index_add(0, rows * size + columns, value)
    upper = matrix.view(size, size)
    return upper + upper.T


def potts_matrix(edges: Sequence[Tensor], sizes: Sequence[tuple[int, int]], labels: int) -> Tensor:
    """(L P, L P) matrix of one value an edge: between all different labels."""
    between = pairwise_matrix(edges, sizes)
    return torch.kron(1 - torch.eye(labels, dtype=between.dtype), between)


def gaussian_crf(
    unary: Tensor,
    edges: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    *,
    pairwise: str,
    diagonal: float,
) -> Tensor:
    """(L, P) scores from (L, P) unaries by a dense solve."""
    labels, nodes = unary.shape
    if pairwise == "reduced":
        matrix = torch.eye(nodes, dtype=unary.dtype) + pairwise_matrix(edges, sizes) / diagonal
        centred = unary - unary.sum(0) / (labels - 1)
        return torch.linalg.solve(matrix, centred.T).T
    if pairwise == "potts":
        matrix = potts_matrix(edges, sizes, labels)
    else:
        matrix = pairwise_matrix(edges, sizes)
    matrix = matrix + diagonal * torch.eye(labels * nodes, dtype=unary.dtype)
    return torch.linalg.solve(matrix, unary.flatten()).view(labels, nodes)
