"""The small CRF with known marginals in every normalisation mode, and the lattices' masses."""

from __future__ import annotations

import torch

HEIGHT, WIDTH, LABELS = 5, 6, 3
PIXELS = (0, 7, 14, 29)
# Marginals after 5 updates: Gaussian width 3 weight 3, bilateral widths 60 and 20 weight 5.
MARGINALS = {
    "before": (
        (0.99228, 0.00589, 0.00183),
        (0.00413, 0.01019, 0.98569),
        (0.00069, 0.99534, 0.00397),
        (0.00274, 0.00240, 0.99485),
    ),
    "after": (
        (0.98968, 0.00790, 0.00243),
        (0.00386, 0.00780, 0.98834),
        (0.00086, 0.99522, 0.00392),
        (0.00217, 0.00254, 0.99529),
    ),
    "symmetric": (
        (0.99118, 0.00674, 0.00208),
        (0.00398, 0.00879, 0.98723),
        (0.00078, 0.99527, 0.00395),
        (0.00247, 0.00247, 0.99507),
    ),
    "none": ((0.0, 1.0, 0.0),) * 4,
}
FIRST_UPDATE = ((0.945260, 0.047803, 0.006937), (0.333524, 0.063217, 0.603259))
VERTICES = (9, 180)
MASSES = ((12.243891, 16.873758), (0.656145, 0.591833))  # at pixels 0 and 16


def image() -> torch.Tensor:
    """(3, H, W) float64, with whole numbers of 0 to 255."""
    values = [
        [[(37 * x + 71 * y + 29 * c * (x + 1)) % 256 for x in range(WIDTH)] for y in range(HEIGHT)]
        for c in range(3)
    ]
    return torch.tensor(values, dtype=torch.float64)


def unary() -> torch.Tensor:
    """(L, H, W) float64 energies."""
    values = [
        [((5 * label + 7 * i) % 11) / 5 for i in range(HEIGHT * WIDTH)] for label in range(LABELS)
    ]
    return torch.tensor(values, dtype=torch.float64).view(LABELS, HEIGHT, WIDTH)
