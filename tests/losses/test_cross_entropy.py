"""Class-weighted cross entropy under each convention."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from segkern.losses import SegmentationLoss, segmentation_loss

REDUCTIONS = ("pixels", "weights", "batch", "none")


@pytest.fixture
def batch(device):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, 9, generator=g, dtype=torch.float64) * 3
    target = torch.randint(0, 5, (2, 7, 9), generator=g)
    target[torch.rand(2, 7, 9, generator=g) < 0.2] = 255
    weight = torch.rand(5, generator=g, dtype=torch.float64) + 0.1
    return logits.to(device), target.to(device), weight.to(device)


def slow(logits, target, weight, ignore=255):
    """Weighted losses and weights of the pixels that count, one by one."""
    losses, weights = [], []
    for n in range(target.shape[0]):
        for y in range(target.shape[1]):
            for x in range(target.shape[2]):
                c = target[n, y, x].item()
                if c == ignore:
                    continue
                scores = logits[n, :, y, x].tolist()
                top = max(scores)
                log_sum = top + math.log(sum(math.exp(s - top) for s in scores))
                w = 1.0 if weight is None else weight[c].item()
                losses.append(w * (log_sum - scores[c]))
                weights.append(w)
    return losses, weights


@pytest.mark.parametrize("weighted", [False, True])
def test_conventions_against_a_loop(batch, weighted):
    logits, target, weight = batch
    weight = weight if weighted else None
    losses, weights = slow(logits, target, weight)
    wanted = {
        "pixels": sum(losses) / len(losses),
        "weights": sum(losses) / sum(weights),
        "batch": sum(losses) / 2,
    }
    for reduction, value in wanted.items():
        got = segmentation_loss(logits, target, weight=weight, reduction=reduction)
        assert got.dtype == torch.float64
        assert got.item() == pytest.approx(value, rel=1e-12)
    each = segmentation_loss(logits, target, weight=weight, reduction="none")
    assert each.shape == target.shape
    assert (each[target == 255] == 0).all()
    assert each.sum().item() == pytest.approx(sum(losses), rel=1e-12)


def test_caffe_segnet_convention_by_hand(device):
    """Two pixels of equal scores: l = ln 2; weights 3 and 1: (3 + 1) ln 2 / 2 pixels."""
    logits = torch.zeros(1, 2, 1, 3, device=device)
    target = torch.tensor([[[0, 1, 255]]], device=device)
    weight = torch.tensor([3.0, 1.0], device=device)
    got = segmentation_loss(logits, target, weight=weight)
    assert got.item() == pytest.approx(2 * math.log(2))
    got = segmentation_loss(logits, target, weight=weight, reduction="weights")
    assert got.item() == pytest.approx(math.log(2))
    got = segmentation_loss(logits, target, weight=weight, reduction="batch")
    assert got.item() == pytest.approx(4 * math.log(2))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore", [255, 0, -100])
def test_weights_convention_is_torchs_mean(batch, weighted, smoothing, ignore):
    logits, target, weight = batch
    target = target.masked_fill(target == 255, ignore)
    weight = weight if weighted else None
    logits.requires_grad_()
    ours = segmentation_loss(
        logits,
        target,
        weight=weight,
        ignore_index=ignore,
        reduction="weights",
        label_smoothing=smoothing,
    )
    (our_gradient,) = torch.autograd.grad(ours, logits)
    theirs = F.cross_entropy(logits, target, weight, ignore_index=ignore, label_smoothing=smoothing)
    (their_gradient,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradcheck(reduction, smoothing, device):
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 2, 3, generator=g, dtype=torch.float64).to(device).requires_grad_()
    target = torch.tensor([[[0, 1, 2], [255, 2, 1]], [[255, 255, 0], [1, 1, 1]]], device=device)
    weight = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64, device=device)
    assert torch.autograd.gradcheck(
        lambda x: segmentation_loss(
            x, target, weight=weight, reduction=reduction, label_smoothing=smoothing
        ),
        logits,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_all_ignored_gives_zero_and_no_gradient(batch, reduction, weighted):
    logits, target, weight = batch
    logits = logits.float().requires_grad_()
    loss = segmentation_loss(
        logits,
        torch.full_like(target, 255),
        weight=weight.float() if weighted else None,
        reduction=reduction,
    )
    loss.sum().backward()
    assert (loss == 0).all()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("reduction", ["pixels", "weights", "batch"])
def test_weights_of_zero(batch, reduction):
    logits, target, _ = batch
    logits.requires_grad_()
    loss = segmentation_loss(logits, target, weight=logits.new_zeros(5), reduction=reduction)
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty_batch(reduction, device):
    logits = torch.zeros(0, 3, 4, 4, device=device, requires_grad=True)
    target = torch.zeros(0, 4, 4, dtype=torch.int64, device=device)
    loss = segmentation_loss(logits, target, reduction=reduction)
    assert loss.sum().item() == 0
    loss.sum().backward()


def test_ignored_pixels_get_no_gradient(batch):
    logits, target, weight = batch
    logits.requires_grad_()
    segmentation_loss(logits, target, weight=weight).backward()
    ignored = (target == 255)[:, None].expand_as(logits)
    assert (logits.grad[ignored] == 0).all() and (logits.grad[~ignored] != 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_computed_in_float32(batch, dtype):
    logits, target, weight = batch
    half = (logits * 10).to(dtype)
    wanted = segmentation_loss(half.float(), target, weight=weight.float())
    assert wanted.dtype == torch.float32
    got = segmentation_loss(half, target, weight=weight.float())
    assert got.dtype == torch.float32 and torch.equal(got, wanted)
    with torch.autocast(logits.device.type, dtype):
        assert torch.equal(segmentation_loss(half, target, weight=weight.float()), wanted)


def test_large_sum_keeps_its_digits(device):
    """65536 pixels in half precision: neither the sum nor the count may overflow."""
    logits = torch.zeros(1, 2, 256, 256, dtype=torch.float16, device=device)
    target = torch.zeros(1, 256, 256, dtype=torch.int64, device=device)
    assert segmentation_loss(logits, target).item() == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_integer_targets(batch, dtype):
    logits, target, _ = batch
    assert torch.equal(
        segmentation_loss(logits, target.to(dtype)), segmentation_loss(logits, target)
    )


def test_channels_last_and_strides(batch):
    logits, target, weight = batch
    wanted = segmentation_loss(logits, target, weight=weight)
    for view in (
        logits.contiguous(memory_format=torch.channels_last),
        torch.stack([logits, logits], -1)[..., 0],
    ):
        torch.testing.assert_close(segmentation_loss(view, target, weight=weight), wanted)


def test_same_bits_every_time(batch):
    logits, target, weight = batch
    results, gradients = set(), []
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(20):
            x = logits.float().requires_grad_()
            loss = segmentation_loss(x, target, weight=weight.float())
            loss.backward()
            results.add(loss.item())
            gradients.append(x.grad)
    finally:
        torch.use_deterministic_algorithms(before)
    assert len(results) == 1
    assert all(torch.equal(gradients[0], g) for g in gradients)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_no_host_synchronisation():
    logits = torch.randn(2, 3, 4, 4, device="cuda", requires_grad=True)
    target = torch.zeros(2, 4, 4, dtype=torch.int64, device="cuda")
    weight = torch.ones(3, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for reduction in REDUCTIONS:
            segmentation_loss(logits, target, weight=weight, reduction=reduction).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiles_in_one_graph(batch):
    logits, target, weight = batch
    compiled = torch.compile(segmentation_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(logits, target, weight=weight), segmentation_loss(logits, target, weight=weight)
    )


def test_module(batch):
    logits, target, weight = batch
    loss = SegmentationLoss(weight, reduction="weights", label_smoothing=0.1)
    wanted = segmentation_loss(
        logits, target, weight=weight, reduction="weights", label_smoothing=0.1
    )
    assert torch.equal(loss(logits, target), wanted)
    assert loss.state_dict() == {}
    assert loss.to(torch.float32).weight.dtype == torch.float32
    assert "reduction='weights'" in repr(loss)
    assert SegmentationLoss()(logits, target) == segmentation_loss(logits, target)
    with pytest.raises(ValueError, match="reduction must be"):
        SegmentationLoss(reduction="mean")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(5, 7, 9)}, r"logits must be \(N, C, H, W\)"),
        ({"logits": torch.zeros(2, 5, 7, 9, dtype=torch.int64)}, "floating point"),
        ({"target": torch.zeros(2, 7, 8, dtype=torch.int64)}, r"\(2, 7, 9\).*got \(2, 7, 8\)"),
        ({"target": torch.zeros(2, 1, 7, 9, dtype=torch.int64)}, "target must be"),
        ({"target": torch.zeros(2, 7, 9)}, "must hold integers"),
        ({"target": torch.full((2, 7, 9), 5)}, r"in \[0, 5\) or 255, got \[5\]"),
        ({"target": torch.full((2, 7, 9), -1)}, r"got \[-1\]"),
        ({"weight": torch.zeros(4)}, r"shape \(5,\)"),
        ({"weight": torch.zeros(5, dtype=torch.int64)}, "weight must be floating point"),
        ({"reduction": "mean"}, "pixels, weights, batch, none"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
    ],
)
def test_errors(change, message):
    arguments = {
        "logits": torch.zeros(2, 5, 7, 9),
        "target": torch.zeros(2, 7, 9, dtype=torch.int64),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        segmentation_loss(arguments.pop("logits"), arguments.pop("target"), **arguments)


def test_range_check_on_request(device):
    logits = torch.zeros(1, 2, 1, 1, device=device)
    with pytest.raises(ValueError, match="target must be in"):
        segmentation_loss(logits, torch.full((1, 1, 1), 2, device=device), check_range=True)
