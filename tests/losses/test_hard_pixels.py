"""OHEM and focal loss beside numpy, and losses by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_overlap import CLASSES, case, columns

from segkern.losses import (
    focal_cross_entropy,
    ohem_cross_entropy,
    pixel_loss,
    segmentation_loss,
    soft_dice_loss,
)
from segkern.models import Recipe

WEIGHT = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("min_kept", [1, 20, 10_000])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_ohem(threshold, min_kept, weight):
    logits, target = case()
    p, labels = columns(logits, target)
    true = p[np.arange(len(labels)), labels]
    limit = max(threshold, np.sort(true)[min(min_kept, len(true)) - 1])
    kept = true <= limit
    assert kept.sum() >= min(min_kept, len(true))
    factor = np.ones(CLASSES) if weight is None else weight.numpy()
    expected = (-np.log(true) * factor[labels])[kept].mean()
    options = {"threshold": threshold, "min_kept": min_kept}
    loss = ohem_cross_entropy(logits, target, weight=weight, **options)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    easy = torch.zeros(target.shape, dtype=torch.bool)
    easy[target != 255] = torch.from_numpy(~kept)
    assert not logits.grad.transpose(0, 1)[:, easy].any()
    assert logits.grad.abs().sum(1)[~easy & (target != 255)].min() > 0


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("reduction", ["pixels", "weights", "batch"])
def test_focal(gamma, reduction):
    logits, target = case()
    p, labels = columns(logits, target)
    true = p[np.arange(len(labels)), labels]
    w = WEIGHT.numpy()[labels]
    divisor = {"pixels": len(labels), "weights": w.sum(), "batch": 2}[reduction]
    expected = (w * (1 - true) ** gamma * -np.log(true)).sum() / divisor

    def loss(x):
        return focal_cross_entropy(x, target, weight=WEIGHT, gamma=gamma, reduction=reduction)

    assert loss(logits).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(loss, (logits,))


def test_certain_pixels_have_a_finite_gradient():
    logits = torch.tensor([[[[80.0]], [[-80.0]]]], requires_grad=True)
    focal_cross_entropy(logits, torch.zeros(1, 1, 1, dtype=torch.int64), gamma=0.5).backward()
    assert logits.grad.isfinite().all()


def test_sums_by_name():
    logits, target = case()
    plain = segmentation_loss(logits, target, weight=WEIGHT, label_smoothing=0.1)
    given = {"weight": WEIGHT, "label_smoothing": 0.1}
    assert torch.equal(pixel_loss(logits, target, **given), plain)
    both = pixel_loss(logits, target, "cross_entropy+dice", **given, options={"smooth": 0.5})
    assert torch.equal(both, plain + soft_dice_loss(logits, target, smooth=0.5))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": "hinge"}, "loss must be one of cross_entropy, ohem"),
        ({"loss": "dice+dice"}, "loss must be one of"),
        ({"loss": "dice", "loss_options": {"gamma": 1.0}}, "among smooth for 'dice', got gamma"),
        ({"loss": "focal", "loss_options": {"gamma": "much"}}, "gamma must be a number"),
        ({"label_smoothing": 1.0}, "label_smoothing must be in"),
    ],
)
def test_recipes_refuse_unknown_losses(given, message):
    with pytest.raises(ValueError, match=message):
        Recipe(lr=0.1, batch_size=1, epochs=1, **given)


@pytest.mark.parametrize(
    ("function", "given", "message"),
    [
        (ohem_cross_entropy, {"threshold": 1.5}, "threshold must be in"),
        (ohem_cross_entropy, {"min_kept": 0}, "min_kept must be an int"),
        (focal_cross_entropy, {"gamma": -1.0}, "gamma must be at least 0"),
        (focal_cross_entropy, {"reduction": "mean"}, "focal_cross_entropy: reduction must be"),
    ],
)
def test_bad_numbers(function, given, message):
    with pytest.raises(ValueError, match=message):
        function(*case(), **given)
