"""Focal loss: values by hand, torchvision's, numbers that overflow, labels."""

from __future__ import annotations

import math

import pytest
import torch

from segkern.losses import sigmoid_focal_loss

LOGITS, TARGET = (-2.0, -1.0, 0.0, 1.0, 2.0), (0, 1, 0, 1, 0)


def by_hand(z: float, y: int, alpha: float, gamma: float) -> tuple[float, float]:
    """Loss and slope of one logit, from the definition and by differences of it."""

    def loss(z: float) -> float:
        p = 1 / (1 + math.exp(-z))
        if y:
            return -alpha * (1 - p) ** gamma * math.log(p)
        return -(1 - alpha) * p**gamma * math.log(1 - p)

    step = 1e-5
    return loss(z), (loss(z + step) - loss(z - step)) / (2 * step)


def test_published_values(device):
    logits = torch.tensor(LOGITS, device=device, requires_grad=True)
    losses = sigmoid_focal_loss(logits, torch.tensor(TARGET, device=device), reduction="none")
    losses.sum().backward()
    expected = [0.001353, 0.175467, 0.129965, 0.005665, 1.237559]
    slopes = [0.003653, -0.192059, 0.223715, -0.013145, 0.807535]
    assert losses.tolist() == pytest.approx(expected, abs=6e-7)
    assert logits.grad.tolist() == pytest.approx(slopes, abs=6e-7)
    total = sigmoid_focal_loss(logits, torch.tensor(TARGET, device=device))
    assert total.item() == pytest.approx(1.550008, abs=2e-6)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 0.5), (1.0, 0.0), (0.1, 5.0)])
def test_definition(device, alpha, gamma):
    z = torch.linspace(-6, 6, 25, dtype=torch.float64, device=device)
    for y in (0, 1):
        logits = z.clone().requires_grad_()
        target = torch.full(z.shape, bool(y), device=device)
        losses = sigmoid_focal_loss(logits, target, alpha=alpha, gamma=gamma, reduction="none")
        losses.sum().backward()
        expected = [by_hand(value, y, alpha, gamma) for value in z.tolist()]
        assert losses.tolist() == pytest.approx([e[0] for e in expected], rel=1e-9)
        assert logits.grad.tolist() == pytest.approx([e[1] for e in expected], rel=1e-6, abs=1e-9)


def test_torchvision_agrees(device):
    ops = pytest.importorskip("torchvision.ops")
    torch.manual_seed(0)
    ours = (4 * torch.randn(50, 7, dtype=torch.float64)).to(device).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    target = (torch.rand(50, 7, device=device) < 0.2).double()
    for reduction in ("sum", "mean", "none"):
        got = sigmoid_focal_loss(ours, target, reduction=reduction)
        wanted = ops.sigmoid_focal_loss(theirs, target, 0.25, 2.0, reduction)
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)
        got.square().sum().backward()
        wanted.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_large_logits_are_safe(device, gamma):
    z = torch.tensor([-1e4, -100.0, -50.0, 50.0, 100.0, 1e4], device=device)
    for y in (0, 1):
        logits = z.clone().requires_grad_()
        losses = sigmoid_focal_loss(
            logits, torch.full(z.shape, y, device=device), gamma=gamma, reduction="none"
        )
        losses.sum().backward()
        sign = -1 if y else 1
        weight = 0.25 if y else 0.75
        for value, loss, slope in zip(z.tolist(), losses.tolist(), logits.grad.tolist()):
            wrong = sign * value > 0
            assert loss == pytest.approx(weight * abs(value) if wrong else 0, abs=1e-10)
            assert slope == pytest.approx(weight * sign if wrong else 0, abs=1e-6)


def test_labels_are_rows_of_one():
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 4, dtype=torch.float64)
    labels = torch.tensor([[0, 1, 2, 3, 4, 0], [4, 4, 0, 0, 0, 1]])
    target = torch.zeros(2, 6, 4)
    for image, cell in torch.nonzero(labels).tolist():
        target[image, cell, labels[image, cell] - 1] = 1
    for dtype in (torch.int64, torch.uint8):
        got = sigmoid_focal_loss(logits, labels.to(dtype), reduction="none")
        assert torch.equal(got, sigmoid_focal_loss(logits, target, reduction="none"))


def test_half_types_are_computed_in_float():
    torch.manual_seed(0)
    logits = (8 * torch.randn(64)).to(torch.bfloat16).requires_grad_()
    target = torch.rand(64) < 0.5
    loss = sigmoid_focal_loss(logits, target)
    assert loss.dtype == torch.float32
    assert loss.item() == sigmoid_focal_loss(logits.detach().float(), target).item()
    loss.backward()
    assert logits.grad.dtype == torch.bfloat16


def test_nothing_gives_nothing():
    logits = torch.zeros(0, 5, requires_grad=True)
    for reduction in ("sum", "mean"):
        loss = sigmoid_focal_loss(logits, torch.zeros(0, dtype=torch.int64), reduction=reduction)
        assert loss.item() == 0
    loss.backward()
    assert logits.grad.shape == (0, 5)


def test_compiles():
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 0, 0])
    compiled = torch.compile(sigmoid_focal_loss, fullgraph=True, backend="aot_eager")
    slopes = [
        torch.autograd.grad(f(logits, labels), logits)[0] for f in (sigmoid_focal_loss, compiled)
    ]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("gamma", [0.0, 2.0, 3.5])
def test_derivatives(gamma):
    torch.manual_seed(0)
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 3, 0])

    def call(logits):
        return sigmoid_focal_loss(logits, labels, gamma=gamma, reduction="none")

    assert torch.autograd.gradcheck(call, (logits,))
    assert torch.autograd.gradgradcheck(call, (logits,))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"logits": [1.0]}, TypeError, "logits must be a Tensor, got list"),
        ({"logits": torch.zeros(4, 3).long()}, TypeError, "logits must be floating"),
        ({"target": None}, TypeError, "target must be a Tensor"),
        ({"target": torch.zeros(3).long()}, ValueError, r"target must be \(4, 3\), or labels"),
        ({"target": torch.zeros(4)}, TypeError, "target must hold integer labels"),
        ({"alpha": 2}, ValueError, r"alpha must be in \[0, 1\], got 2"),
        ({"alpha": "x"}, TypeError, "alpha must be a number"),
        ({"gamma": -1.0}, ValueError, "gamma must be finite"),
        ({"gamma": float("nan")}, ValueError, "gamma must be finite"),
        ({"reduction": "max"}, ValueError, "reduction must be one of"),
    ],
)
def test_errors(change, error, match):
    given = {"logits": torch.zeros(4, 3), "target": torch.zeros(4).long(), **change}
    with pytest.raises(error, match=f"sigmoid_focal_loss: {match}"):
        sigmoid_focal_loss(given.pop("logits"), given.pop("target"), **given)
