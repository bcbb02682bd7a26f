"""Elastic deformation against a computation in numpy, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segkern.models import get_entry
from segkern.transforms import ElasticDeformation, PairTransform, build_train_transform, deform


def cubic(t: float) -> list[float]:
    """Weights of the points at -1, 0, 1, 2 for a place t in [0, 1): Keys, a = -0.75."""
    a = -0.75

    def near(x):
        return (a + 2) * x**3 - (a + 3) * x**2 + 1

    def far(x):
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


def fine(coarse: np.ndarray, height: int, width: int) -> np.ndarray:
    grid = coarse.shape[-1]
    out = np.zeros((2, height, width))
    for y in range(height):
        for x in range(width):
            v, u = y * (grid - 1) / (height - 1), x * (grid - 1) / (width - 1)
            for i, wy in enumerate(cubic(v - int(v))):
                for j, wx in enumerate(cubic(u - int(u))):
                    row = min(max(int(v) + i - 1, 0), grid - 1)
                    column = min(max(int(u) + j - 1, 0), grid - 1)
                    out[:, y, x] += wy * wx * coarse[:, row, column]
    return out


def mirrored(index: int, length: int) -> int:
    while not 0 <= index < length:
        index = -index if index < 0 else 2 * (length - 1) - index
    return index


def test_agrees_with_numpy():
    generator = torch.Generator().manual_seed(0)
    coarse = 4 * torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    image = torch.rand(2, 13, 18, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 200, (13, 18), generator=generator)
    moves = fine(coarse.numpy(), 13, 18)
    warped = deform(image, coarse)
    nearest = deform(labels, coarse, nearest=True)
    assert np.abs(moves).max() > 4
    for y in range(13):
        for x in range(18):
            v, u = y + moves[0, y, x], x + moves[1, y, x]
            top, left = int(np.floor(v)), int(np.floor(u))
            expected = 0
            for row, wy in ((top, 1 - (v - top)), (top + 1, v - top)):
                for column, wx in ((left, 1 - (u - left)), (left + 1, u - left)):
                    expected += wy * wx * image[:, mirrored(row, 13), mirrored(column, 18)]
            # Displacements are in float32.
            torch.testing.assert_close(warped[:, y, x], expected, atol=1e-5, rtol=0)
            if min(abs(v % 1 - 0.5), abs(u % 1 - 0.5)) > 1e-4:
                row, column = (int(np.floor(value + 0.5)) for value in (v, u))
                assert nearest[y, x] == labels[mirrored(row, 13), mirrored(column, 18)]


def test_image_and_mask_move_together():
    row = torch.arange(60)
    mask = (row[:, None] // 6 + row // 6) % 7
    image = (30 * mask).to(torch.uint8).expand(3, -1, -1)
    step = PairTransform([ElasticDeformation(6.0)])
    generator = torch.Generator().manual_seed(1)
    warped, labels = step(image, mask, generator)
    assert (warped.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert not torch.equal(labels, mask)
    # Inside of squares an interpolated value is the label's.
    agree = (warped[0] == 30 * labels).double().mean()
    assert agree > 0.5
    again = step(image, mask, torch.Generator().manual_seed(1))
    assert torch.equal(again[0], warped) and torch.equal(again[1], labels)
    still = PairTransform([ElasticDeformation(0.0)])(image, mask)
    assert torch.equal(still[0], image) and torch.equal(still[1], mask)


def test_displacements_are_normal_on_a_coarse_grid():
    torch.manual_seed(0)
    step = ElasticDeformation(10.0)
    drawn = torch.stack([step.make_params([])["coarse"] for _ in range(500)])
    assert drawn.shape == (500, 2, 3, 3)
    assert drawn.std().item() == pytest.approx(10, rel=0.03)
    assert abs(drawn.mean().item()) < 0.4


def test_recipe_of_unet_asks_for_it():
    steps = build_train_transform(get_entry("unet").recipe).steps
    assert [step.sigma for step in steps if isinstance(step, ElasticDeformation)] == [10.0]


@pytest.mark.parametrize("options", [{"sigma": -1.0}, {"sigma": float("nan")}, {"grid": 1}])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match="ElasticDeformation: "):
        ElasticDeformation(**options)


def test_one_pixel():
    assert deform(torch.ones(1, 1, 1), torch.randn(2, 3, 3)).item() == 1
