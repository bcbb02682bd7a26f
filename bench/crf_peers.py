"""Peers of the dense CRF: pydensecrf where it can be imported, and eager torch operations.

Both get energies (N, L, P), images (N, 3, H, W) and the two terms of pydensecrf's example, and do
what a user of them would do: the eager chain builds its lattices by sorting packed keys, all labels
go through one filter, nothing is built twice.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Widths:
    """Width in pixels and weight of the smoothness term; both widths and weight of the other."""

    gaussian: tuple[float, float]
    bilateral: tuple[float, float, float]


def has_pydensecrf() -> bool:
    return importlib.util.find_spec("pydensecrf") is not None


class PyDenseCRF:
    """pydensecrf (one thread, on the CPU) over a batch, item after item."""

    library = "pydensecrf"

    def __init__(self, unary: Tensor, image: Tensor, widths: Widths):
        self.energies = [np.ascontiguousarray(item) for item in unary.numpy()]
        pixels = image.permute(0, 2, 3, 1).numpy()
        self.images = [np.ascontiguousarray(item) for item in pixels]
        self.widths = widths

    def build(self) -> list:
        import pydensecrf.densecrf as dcrf

        models = []
        for energies, image in zip(self.energies, self.images):
            height, width = image.shape[:2]
            model = dcrf.DenseCRF2D(width, height, len(energies))
            model.setUnaryEnergy(energies)
            sxy, weight = self.widths.gaussian
            model.addPairwiseGaussian(sxy=sxy, compat=weight)
            sxy, srgb, weight = self.widths.bilateral
            model.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=image, compat=weight)
            models.append(model)
        return models

    def iterate(self, models: list, iterations: int) -> Tensor:
        return torch.stack([torch.from_numpy(np.array(m.inference(iterations))) for m in models])


class EagerLattice:
    """The permutohedral filter of (P, d) features in torch operations."""

    def __init__(self, features: Tensor):
        d = features.shape[1]
        size = d + 1
        index = torch.arange(size, device=features.device)
        # The lattice depends on how its embedding is rounded, so that is in float64 here as well.
        y = features.double() @ self._embedding(d).to(features.device).T
        rounded = torch.round(y / size)
        remainder = y - rounded * size
        rank = torch.argsort(remainder, dim=1, descending=True, stable=True).argsort(1)
        rank = rank + rounded.sum(1, keepdim=True).long()
        shift = (rank < 0).long() - (rank >= size).long()
        base, rank = rounded.long() * size + shift * size, rank + shift * size
        ordered = ((y - base) / size).gather(1, rank.argsort(1)).flip(1)
        first = 1 + ordered[:, :1] - ordered[:, -1:]
        self.weight = torch.cat([first, ordered[:, 1:] - ordered[:, :-1]], 1).float()
        keys = base[:, None, :d] + index[:, None] - size * (rank[:, None, :d] > d - index[:, None])
        low = keys.amin((0, 1)) - size
        spans = (keys.amax((0, 1)) + size - low + 1).tolist()
        steps = [math.prod(spans[j + 1 :]) for j in range(d)]
        packed = ((keys - low) * torch.tensor(steps, device=keys.device)).sum(2)
        vertices, self.vertex = packed.unique(return_inverse=True)
        count = len(vertices)
        self.neighbours = []
        for axis in range(size):
            step = sum(steps) - (size * steps[axis] if axis < d else 0)
            for asked in (vertices - step, vertices + step):
                at = torch.searchsorted(vertices, asked).clamp(max=count - 1)
                self.neighbours.append(torch.where(vertices[at] == asked, at, count))
        self.count, self.alpha = count, 1 / (1 + 2.0**-d)

    @staticmethod
    def _embedding(d: int) -> Tensor:
        matrix = torch.zeros(d + 1, d, dtype=torch.float64)
        for i in range(d):
            scale = math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2))
            matrix[: i + 1, i] = scale
            matrix[i + 1, i] = -(i + 1) * scale
        return matrix

    def filter(self, values: Tensor) -> Tensor:
        """(P, C) values, channels last."""
        sums = values.new_zeros(self.count + 1, values.shape[1])
        for k in range(self.vertex.shape[1]):
            sums.index_add_(0, self.vertex[:, k], self.weight[:, k, None] * values)
        for before, after in zip(self.neighbours[::2], self.neighbours[1::2]):
            inner = sums[:-1] + 0.5 * (sums[before] + sums[after])
            sums = torch.cat([inner, sums[-1:]])
        parts = [
            self.weight[:, k, None] * sums[self.vertex[:, k]] for k in range(len(self.weight[0]))
        ]
        return self.alpha * sum(parts)


class EagerCRF:
    """Mean field over :class:`EagerLattice`, item after item; differentiable."""

    library = "torch eager"

    def __init__(self, unary: Tensor, image: Tensor, widths: Widths):
        self.unary, self.image, self.widths = unary, image, widths

    def build(self) -> list:
        size = self.image.shape[2:]
        rows, columns = (torch.arange(n, device=self.image.device) for n in size)
        places = torch.stack([columns.expand(size), rows[:, None].expand(size)], 2).flatten(0, 1)
        (near, smooth), (far, like, appearance) = self.widths.gaussian, self.widths.bilateral
        spatial = self._term(places / near, smooth)
        items = []
        for image in self.image:
            colours = image.flatten(1).T / like
            items.append([spatial, self._term(torch.cat([places / far, colours], 1), appearance)])
        return items

    @staticmethod
    def _term(features: Tensor, weight: float) -> tuple[EagerLattice, Tensor, float]:
        lattice = EagerLattice(features)
        mass = lattice.filter(torch.ones(len(features), 1, device=features.device))
        return lattice, (mass + 1e-20).rsqrt(), weight

    def iterate(self, items: list, iterations: int, unary: Tensor | None = None) -> Tensor:
        results = []
        for energies, terms in zip(self.unary if unary is None else unary, items):
            logits = -energies.T
            q = logits.softmax(1)
            for _ in range(iterations):
                z = logits
                for lattice, norm, weight in terms:
                    z = z + weight * norm * lattice.filter(norm * q)
                q = z.softmax(1)
            results.append(q.T)
        return torch.stack(results)
