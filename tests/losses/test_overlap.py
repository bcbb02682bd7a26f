"""Dice and Lovasz-softmax beside loops over numbers, in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from segkern.losses import lovasz_softmax_loss, soft_dice_loss

CLASSES = 4


def case(ignored=True, classes=CLASSES):
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(2, classes, 5, 7, generator=generator, dtype=torch.float64)
    # Class 3 is never true.
    target = torch.randint(classes - 1, (2, 5, 7), generator=generator)
    if ignored:
        target[torch.rand(2, 5, 7, generator=generator) < 0.2] = 255
    return logits.requires_grad_(), target


def columns(logits, target):
    """Probabilities and labels of the pixels that count, as numpy sees them."""
    scores = np.moveaxis(logits.detach().numpy(), 1, -1).reshape(-1, logits.shape[1])
    raised = np.exp(scores - scores.max(1, keepdims=True))
    labels = target.numpy().ravel()
    kept = labels != 255
    return (raised / raised.sum(1, keepdims=True))[kept], labels[kept]


def lovasz_by_sets(errors, wrong_if):
    """Sum over the sorted errors of the growth of 1 - IoU, each IoU counted from its sets."""
    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    total, before = 0.0, 0.0
    truth = {i for i in range(len(errors)) if wrong_if[i]}
    for k in range(1, len(order) + 1):
        wrong = set(order[:k])
        jaccard = len(truth - wrong) / len(truth | wrong)
        total += errors[order[k - 1]] * (1 - jaccard - before)
        before = 1 - jaccard
    return total


@pytest.mark.parametrize("ignored", [False, True])
def test_lovasz(ignored):
    logits, target = case(ignored)
    p, labels = columns(logits, target)
    terms = []
    for c in sorted(set(labels)):
        errors = np.abs((labels == c) - p[:, c])
        terms.append(lovasz_by_sets(errors, labels == c))
    loss = lovasz_softmax_loss(logits, target)
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: lovasz_softmax_loss(x, target), (logits,))


def test_lovasz_of_hard_predictions_is_one_minus_iou():
    """The extension agrees with the loss it extends at its corners."""
    for predicted in itertools.product((0, 1), repeat=4):
        truth = torch.tensor([[[0, 1, 1, 0]]])
        logits = 200.0 * torch.nn.functional.one_hot(torch.tensor([[predicted]]), 2)
        loss = lovasz_softmax_loss(logits.permute(0, 3, 1, 2).double(), truth)
        ious = []
        for c in (0, 1):
            a, b = (
                {i for i in range(4) if predicted[i] == c},
                {i for i in range(4) if i in CELLS[c]},
            )
            ious.append(len(a & b) / len(a | b))
        assert loss.item() == pytest.approx(1 - np.mean(ious), abs=1e-12)


CELLS = {0: {0, 3}, 1: {1, 2}}


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_dice(smooth):
    logits, target = case()
    p, labels = columns(logits, target)
    terms = []
    for c in sorted(set(labels)):
        both = p[labels == c, c].sum()
        sizes = p[:, c].sum() + (labels == c).sum()
        terms.append(1 - (2 * both + smooth) / (sizes + smooth))
    loss = soft_dice_loss(logits, target, smooth=smooth)
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: soft_dice_loss(x, target), (logits,))


@pytest.mark.parametrize("loss", [soft_dice_loss, lovasz_softmax_loss])
def test_nothing_to_count(loss):
    logits, _ = case()
    value = loss(logits, torch.full((2, 5, 7), 255))
    value.backward()
    assert value.item() == 0 and not logits.grad.any()
    assert loss(torch.zeros(0, 2, 3, 3), torch.zeros(0, 3, 3, dtype=torch.int64)).item() == 0


@pytest.mark.parametrize("loss", [soft_dice_loss, lovasz_softmax_loss])
def test_half_precision_is_summed_in_float32(loss, device):
    logits, target = case()
    half = logits.detach().to(device, torch.bfloat16)
    with torch.autocast(device.type, torch.bfloat16):
        value = loss(half, target.to(device))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(half.double(), target.to(device)).item(), rel=1e-5)


@pytest.mark.parametrize("loss", [soft_dice_loss, lovasz_softmax_loss])
def test_bad_input(loss):
    logits, target = case()
    for bad in (logits[0], logits.long()):
        with pytest.raises(ValueError, match="logits must be"):
            loss(bad, target)
    with pytest.raises(ValueError, match="target must be"):
        loss(logits, target[:, :3])
    with pytest.raises(ValueError, match="target must be in"):
        loss(logits, torch.full_like(target, CLASSES))
