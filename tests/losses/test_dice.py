"""Dice loss: values by hand, its gradient against autograd's, shared targets."""

from __future__ import annotations

import pytest
import torch

from segkern.losses import dice, dice_loss


def plain(masks, target, eps=1e-3):
    """The definition, for autograd."""
    p, q = masks.flatten(1), target.flatten(1).to(masks.dtype)
    denominator = (p**2).sum(1) + eps + (q**2).sum(1) + eps
    return 1 - 2 * (p * q).sum(1) / denominator


def test_published_values(device):
    masks = torch.tensor([[0.1, 0.5, 0.9, 0.3]], device=device, requires_grad=True)
    loss = dice_loss(masks, torch.tensor([[0, 1, 1, 0]], device=device))
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.114485, abs=6e-7)
    slopes = [0.056010, -0.352462, -0.128423, 0.168030]
    assert masks.grad[0].tolist() == pytest.approx(slopes, abs=6e-7)


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("shape", [(5, 4, 6), (3, 1), (2, 300, 400)])
def test_agrees_with_autograd(device, shape, from_logits, monkeypatch):
    monkeypatch.setattr(dice, "_CPU_ELEMENTS", 30)  # a part is a row or two
    torch.manual_seed(0)
    values = torch.randn(shape, dtype=torch.float64, device=device)
    target = (torch.rand(shape, device=device) < 0.4).to(torch.uint8)
    weight = torch.rand(shape[0], dtype=torch.float64, device=device)
    ours, theirs = ((values if from_logits else values.sigmoid()).clone() for _ in range(2))
    ours.requires_grad_(), theirs.requires_grad_()
    got = dice_loss(ours, target, from_logits=from_logits, eps=0.01)
    wanted = plain(theirs.sigmoid() if from_logits else theirs, target, 0.01)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)
    (got * weight).sum().backward()
    (wanted * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-14)


def test_masks_share_targets(device):
    torch.manual_seed(0)
    masks = torch.rand(6, 7, 5, device=device, requires_grad=True)
    target = torch.rand(3, 7, 5, device=device) < 0.5
    rows = torch.tensor([2, 0, 0, 1, 2, 2], device=device)
    got = dice_loss(masks, target, rows=rows)
    torch.testing.assert_close(got, dice_loss(masks, target[rows]))


def test_rows_beyond_the_targets():
    with pytest.raises(IndexError):
        dice_loss(torch.rand(1, 4), torch.zeros(2, 4), rows=torch.tensor([2]))


def test_extremes(device):
    full, empty = torch.ones(1, 9, device=device), torch.zeros(1, 9, device=device)
    assert dice_loss(full, full).item() == pytest.approx(0.002 / 18.002, rel=1e-3)
    assert dice_loss(empty, full).item() == 1
    assert dice_loss(empty, empty).item() == 1
    assert dice_loss(full[:, :0], full[:, :0]).item() == 1
    logits = torch.tensor([[1e4, -1e4, 1e4]], device=device, requires_grad=True)
    loss = dice_loss(logits, torch.tensor([[1, 0, 0]], device=device), from_logits=True)
    loss.sum().backward()
    assert loss.item() == pytest.approx(1 - 2 / 3.002)
    assert (logits.grad == 0).all()


def test_no_masks(device):
    masks = torch.zeros(0, 4, 4, device=device, requires_grad=True)
    target = torch.ones(2, 4, 4, device=device)
    loss = dice_loss(masks, target, rows=torch.zeros(0, dtype=torch.int64, device=device))
    assert loss.shape == (0,)
    loss.sum().backward()
    assert masks.grad.shape == (0, 4, 4)


def test_half_types_are_computed_in_float():
    torch.manual_seed(0)
    masks = torch.randn(3, 40, 40).to(torch.float16).requires_grad_()
    target = torch.rand(3, 40, 40) < 0.5
    loss = dice_loss(masks, target, from_logits=True)
    exact = dice_loss(masks.detach().float(), target, from_logits=True)
    assert loss.dtype == torch.float32 and torch.equal(loss, exact)
    loss.sum().backward()
    assert masks.grad.dtype == torch.float16


@pytest.mark.parametrize("from_logits", [False, True])
def test_derivatives(from_logits):
    torch.manual_seed(0)
    masks = torch.rand(3, 5, dtype=torch.float64, requires_grad=True)
    target, rows = torch.rand(2, 5) < 0.5, torch.tensor([1, 0, 1])

    def call(masks):
        return dice_loss(masks, target, rows=rows, from_logits=from_logits, eps=0.1)

    assert torch.autograd.gradcheck(call, (masks,))
    assert torch.autograd.gradgradcheck(call, (masks,))


def test_compiles():
    masks = torch.rand(3, 8, dtype=torch.float64, requires_grad=True)
    target = torch.rand(3, 8) < 0.5
    compiled = torch.compile(dice_loss, fullgraph=True, backend="aot_eager")
    slopes = [
        torch.autograd.grad(f(masks, target, from_logits=True).sum(), masks)[0]
        for f in (dice_loss, compiled)
    ]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"masks": None}, TypeError, "masks must be a Tensor"),
        ({"masks": torch.zeros(2, 4).long()}, TypeError, "masks must be floating"),
        ({"masks": torch.zeros(2)}, ValueError, r"masks must be \(N, ...\)"),
        ({"target": torch.zeros(2, 5)}, ValueError, r"target must have masks of \(4,\)"),
        ({"target": torch.zeros(3, 4)}, ValueError, r"target must be \(2, 4\)"),
        ({"rows": torch.zeros(2)}, TypeError, "rows must be an int64 Tensor"),
        ({"rows": torch.zeros(3).long()}, ValueError, r"rows must be \(2,\)"),
        ({"from_logits": 1}, TypeError, "from_logits must be a bool"),
        ({"eps": 0}, ValueError, "eps must be finite and above 0"),
        ({"eps": None}, TypeError, "eps must be a number"),
    ],
)
def test_errors(change, error, match):
    given = {"masks": torch.zeros(2, 4), "target": torch.zeros(2, 4), **change}
    with pytest.raises(error, match=f"dice_loss: {match}"):
        dice_loss(given.pop("masks"), given.pop("target"), **given)
