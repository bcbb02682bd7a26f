"""U-Net's weight map against distances to every cell, one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segkern.losses import (
    border_cross_entropy,
    border_weights,
    connected_components,
    pixel_loss,
    segmentation_loss,
    separate_instances,
)
from segkern.models import get_entry


def slow(instances: np.ndarray, w0: float, sigma: float, balance: bool) -> np.ndarray:
    height, width = instances.shape
    out = np.ones((height, width))
    cells = [np.argwhere(instances == n) for n in np.unique(instances) if n != 0]
    for y in range(height):
        for x in range(width):
            inside = instances[y, x] != 0
            if balance:
                count = ((instances != 0) == inside).sum()
                out[y, x] = instances.size / (2 * count)
            if not inside and len(cells) > 1:
                distances = sorted(
                    np.sqrt(((cell - (y, x)) ** 2).sum(axis=1)).min() for cell in cells
                )
                out[y, x] += w0 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2))
    return out


def cells(seed: int, size: tuple[int, int], count: int) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    out = torch.zeros(size, dtype=torch.int64)
    for label in range(1, count + 1):
        y, x = (int(generator.integers(0, n)) for n in size)
        h, w = (int(n) for n in generator.integers(1, 9, 2))
        out[y : y + h, x : x + w] = label
    return out


def scattered(seed: int, size: tuple[int, int], count: int) -> torch.Tensor:
    """Cells of single pixels here and there, which a search along straight lines may miss."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(1, count + 1, size)
    return torch.from_numpy(np.where(generator.random(size) < 0.04, labels, 0))


@pytest.mark.parametrize("make", [cells, scattered])
@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize(
    ("size", "count", "sigma"), [((37, 52), 6, 5.0), ((20, 23), 14, 2.0), ((60, 9), 5, 1.0)]
)
def test_agrees_with_every_distance(make, size, count, sigma, balance, device):
    instances = make(3, size, count)
    weights = border_weights(instances.to(device), sigma=sigma, balance=balance).cpu()
    expected = slow(instances.numpy(), 10.0, sigma, balance)
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights.numpy(), expected, rtol=2e-6, atol=1e-7)
    assert expected.max() > expected.min() + 0.5


def test_few_cells_and_batches():
    none = torch.zeros(4, 5, dtype=torch.int32)
    one = none.clone()
    one[1, 1] = 9
    assert torch.equal(border_weights(none, balance=False), torch.ones(4, 5))
    assert torch.equal(border_weights(one, balance=False), torch.ones(4, 5))
    # With one part alone, balancing leaves half the mean weight.
    assert torch.equal(border_weights(none), torch.full((4, 5), 0.5))
    pair = border_weights(torch.stack([none, one]))
    assert torch.equal(pair[1], border_weights(one)) and pair.shape == (2, 4, 5)
    assert border_weights(none[None, :0]).shape == (1, 0, 5)


def test_separated_cells():
    instances = torch.tensor([[1, 1, 1, 2, 2, 2], [1, 1, 1, 0, 2, 2], [0, 0, 3, 0, 0, 2]])
    expected = instances.numpy().copy()
    for y, x in np.ndindex(expected.shape):
        around = instances.numpy()[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        if ((around != 0) & (around != instances.numpy()[y, x])).any():
            expected[y, x] = 0
    assert torch.equal(separate_instances(instances), torch.from_numpy(expected))
    assert (separate_instances(instances, 2) != 0).sum() < (expected != 0).sum()


def test_weighted_energy():
    """Equation 1 of the paper by hand."""
    logits = torch.randn(1, 2, 6, 7, dtype=torch.float64)
    instances = cells(1, (6, 7), 2)[None]
    weights = border_weights(instances)
    loss = (weights * segmentation_loss(logits, (instances > 0).long(), reduction="none")).sum()
    logs = logits.log_softmax(1)
    expected = 0.0
    for y, x in np.ndindex(6, 7):
        expected -= weights[0, y, x] * logs[0, int(instances[0, y, x] > 0), y, x]
    torch.testing.assert_close(loss, expected.double())


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (torch.zeros(3), {}, "must be \\(H, W\\)"),
        (torch.zeros(3, 3), {}, "must hold integers"),
        (torch.zeros(3, 3, dtype=torch.int64), {"sigma": 0}, "sigma must be above 0"),
        (torch.zeros(3, 3, dtype=torch.int64), {"w0": -1}, "w0 must be at least 0"),
    ],
)
def test_bad_arguments(given, options, message):
    with pytest.raises(ValueError, match=f"border_weights: .*{message}"):
        border_weights(given, **options)


def flooded(mask: np.ndarray) -> np.ndarray:
    """Parts of a mask, numbered in raster order of their first pixels by filling one by one."""
    found = np.zeros(mask.shape, dtype=int)
    for start in zip(*np.nonzero(mask)):
        if found[start]:
            continue
        number, waiting = found.max() + 1, [start]
        while waiting:
            y, x = waiting.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and not found[y, x]:
                found[y, x] = number
                waiting += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    return found


def spiral(size: int) -> np.ndarray:
    """A path one pixel wide that winds through the whole square."""
    mask = np.zeros((size, size), dtype=bool)
    y, x, dy, dx = 0, 0, 0, 1
    mask[0, 0] = True
    for length in [size - 1, *(n for n in range(size - 1, 0, -2) for _ in (0, 1))]:
        for _ in range(length):
            y, x = y + dy, x + dx
            mask[y, x] = True
        dy, dx = dx, -dy
    return mask


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0, "spiral"])
def test_components_are_those_of_a_flood(share, device):
    mask = spiral(41) if share == "spiral" else np.random.default_rng(1).random((37, 53)) < share
    found = connected_components(torch.from_numpy(mask).to(device)).cpu().numpy()
    expected = flooded(mask)
    firsts = np.array(
        [0, *(1 + np.flatnonzero(expected == n)[0] for n in range(1, expected.max() + 1))]
    )
    assert np.array_equal(found, firsts[expected])


@pytest.mark.parametrize("reduction", ["pixels", "batch", "none"])
def test_border_loss_agrees_with_numpy(reduction):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 2, 14, 17, generator=generator, dtype=torch.float64)
    target = torch.stack([(cells(seed, (14, 17), 4) > 0).long() for seed in (5, 6)])
    target[0, 3, :] = 255
    assert len(np.unique(flooded((target[0] == 1).numpy()))) > 2
    scores = logits.numpy()
    likely = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    losses = np.zeros((2, 14, 17))
    for n in range(2):
        labels = target[n].numpy()
        picked = np.where(labels == 1, likely[n, 1], likely[n, 0])
        weight = slow(flooded(labels == 1), 7.0, 2.0, balance=True)
        losses[n] = np.where(labels == 255, 0, -picked * weight)
    expected = {"pixels": losses.sum() / (2 * 14 * 17 - 17), "batch": losses.sum() / 2}
    found = border_cross_entropy(logits, target, reduction=reduction, w0=7.0, sigma=2.0)
    np.testing.assert_allclose(found.numpy(), expected.get(reduction, losses), rtol=1e-6)
    named = pixel_loss(
        logits, target, "border", reduction=reduction, options={"w0": 7.0, "sigma": 2.0}
    )
    assert torch.equal(found, named)


def test_border_loss_of_more_classes_is_plain():
    logits, target = torch.randn(1, 3, 6, 6), torch.randint(3, (1, 6, 6))
    assert torch.equal(border_cross_entropy(logits, target), segmentation_loss(logits, target))


def test_the_loss_of_unets_recipe():
    recipe = get_entry("unet").recipe
    assert (recipe.loss, recipe.loss_options) == ("border", {"w0": 10.0, "sigma": 5.0})


@pytest.mark.parametrize("mask", [torch.ones(2, 3), torch.ones(3, dtype=torch.bool)])
def test_bad_masks(mask):
    with pytest.raises(ValueError, match="connected_components: mask must be"):
        connected_components(mask)
