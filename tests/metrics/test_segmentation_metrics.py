"""The confusion matrix and the figures made from it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from segkern.metrics import SegmentationMetrics, confusion_matrix


def naive(pred, target, classes, ignore=255):
    table = [[0] * classes for _ in range(classes)]
    for p, t in zip(pred.flatten().tolist(), target.flatten().tolist(), strict=True):
        if t != ignore:
            table[t][p] += 1
    return torch.tensor(table)


def random_maps(seed, classes=5, shape=(3, 11, 13), ignore=255, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, shape, generator=g)
    pred = torch.where(
        torch.rand(shape, generator=g) < 0.6, target, torch.randint(0, classes, shape, generator=g)
    )
    target[torch.rand(shape, generator=g) < 0.1] = ignore
    return pred.to(device), target.to(device)


def measured(pred, target, classes, **options):
    metrics = SegmentationMetrics(classes, **options)
    metrics.update(torch.as_tensor(pred), torch.as_tensor(target))
    return metrics.compute()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ignore", [255, -1, 2])
def test_confusion_against_a_loop_and_torchmetrics(seed, ignore, device):
    pred, target = random_maps(seed, ignore=ignore, device=device)
    got = confusion_matrix(pred, target, 5, ignore_index=ignore)
    assert got.dtype == torch.int64 and got.device.type == "cpu"
    assert torch.equal(got, naive(pred, target, 5, ignore))
    theirs = MulticlassConfusionMatrix(5, ignore_index=ignore).to(device)
    assert torch.equal(got, theirs(pred, target).cpu())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integer_types(dtype, device):
    pred, target = random_maps(0, device=device)
    assert torch.equal(
        confusion_matrix(pred.to(dtype), target.to(dtype), 5), naive(pred, target, 5)
    )


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 6).flatmap(
        lambda c: st.tuples(
            st.just(c),
            st.lists(
                st.tuples(st.integers(0, c - 1), st.one_of(st.just(255), st.integers(0, c - 1))),
                max_size=30,
            ),
        )
    )
)
def test_any_small_case(case):
    classes, pixels = case
    pred = torch.tensor([p for p, _ in pixels], dtype=torch.int64)
    target = torch.tensor([t for _, t in pixels], dtype=torch.int64)
    assert torch.equal(confusion_matrix(pred, target, classes), naive(pred, target, classes))


def test_figures_by_hand():
    """n = [[2, 1, 0], [0, 3, 0], [1, 0, 1]]: t = 3 3 2, predicted 3 4 1, unions 4 4 2."""
    target = [[[0, 0, 0, 1, 1, 1, 2, 2, 255]]]
    pred = [[[0, 0, 1, 1, 1, 1, 0, 2, 0]]]
    got = measured(pred, target, 3)
    assert got["iou"] == [2 / 4, 3 / 4, 1 / 2]
    assert got["miou"] == pytest.approx((0.5 + 0.75 + 0.5) / 3)
    assert got["pixel_accuracy"] == 6 / 8
    assert got["class_accuracy"] == [pytest.approx(2 / 3), 1.0, 0.5]
    assert got["mean_accuracy"] == pytest.approx((2 / 3 + 1 + 0.5) / 3)
    assert got["fw_iou"] == pytest.approx((3 * 0.5 + 3 * 0.75 + 2 * 0.5) / 8)
    assert got["pixels"] == 8 and got["images"] == 1
    assert got["ignore_index"] == 255 and got["absent"] == "skip"
    assert "boundary_f1" not in got
    json.dumps(got, allow_nan=False)


def test_absent_class_rules():
    """Class 2 is nowhere; class 3 is predicted but never true; class 1 is missed."""
    target, pred = [[[0, 0, 1, 1]]], [[[0, 0, 3, 0]]]
    skip = measured(pred, target, 4)
    assert skip["iou"] == [pytest.approx(2 / 3), 0.0, None, 0.0]
    assert skip["miou"] == pytest.approx(2 / 9)
    assert skip["class_accuracy"] == [1.0, 0.0, None, None]
    assert skip["mean_accuracy"] == 0.5
    zero = measured(pred, target, 4, absent="zero")
    assert zero["iou"][2] == 0 and zero["miou"] == pytest.approx(2 / 12)
    assert zero["mean_accuracy"] == pytest.approx(1 / 3)
    one = measured(pred, target, 4, absent="one")
    assert one["iou"][2] == 1 and one["miou"] == pytest.approx((2 / 3 + 1) / 4)
    assert one["class_accuracy"] == [1.0, 0.0, 1.0, None]
    assert one["absent"] == "one"
    for result in (skip, zero, one):
        assert result["pixel_accuracy"] == 0.5
        assert result["fw_iou"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ignore", [255, 1])
def test_miou_is_torchmetrics(seed, ignore, device):
    pred, target = random_maps(seed, 4, ignore=ignore, device=device)
    ours = measured(pred, target, 4, ignore_index=ignore)
    each = MulticlassJaccardIndex(4, average=None, ignore_index=ignore).to(device)(pred, target)
    mean = MulticlassJaccardIndex(4, average="macro", ignore_index=ignore).to(device)(pred, target)
    for c in range(4):
        if c != ignore:
            assert ours["iou"][c] == pytest.approx(each[c].item(), rel=1e-5)
    assert ours["miou"] == pytest.approx(mean.item(), rel=1e-5)


def test_ignored_class_is_left_out():
    got = measured([[[0, 1, 2, 0, 1]]], [[[0, 0, 0, 1, 2]]], 3, ignore_index=0)
    assert got["iou"] == [None, 0.0, 0.0] and got["class_accuracy"][0] is None
    assert got["pixels"] == 2


def test_whole_set_is_not_the_mean_over_images():
    metrics = SegmentationMetrics(2)
    metrics.update(torch.tensor([[[0, 0, 0, 0]]]), torch.tensor([[[0, 0, 0, 0]]]))
    metrics.update(torch.tensor([[[1, 1, 1, 0]]]), torch.tensor([[[1, 0, 0, 1]]]))
    assert metrics.compute()["iou"] == [4 / 7, 1 / 4]


def test_batches_and_images_and_merging_agree(device):
    pred, target = random_maps(3, device=device)
    whole = SegmentationMetrics(5, boundary=True)
    whole.update(pred, target)
    parts = SegmentationMetrics(5, boundary=True)
    other = SegmentationMetrics(5, boundary=True)
    parts.update(pred[:1], target[:1])
    other.update(pred[1:], target[1:])
    parts.merge(other)
    assert torch.equal(whole.confusion, parts.confusion)
    a, b = whole.compute(), parts.compute()
    assert a.pop("boundary_f1") == pytest.approx(b.pop("boundary_f1"))
    assert a == b
    with pytest.raises(ValueError, match="merge"):
        parts.merge(SegmentationMetrics(5, absent="zero", boundary=True))


def test_nothing_seen_and_all_ignored():
    for metrics in (SegmentationMetrics(3, boundary=True), SegmentationMetrics(3)):
        for update in (False, True):
            if update:
                metrics.update(torch.zeros(1, 2, 2).long(), torch.full((1, 2, 2), 255))
                metrics.update(torch.zeros(0, 2, 2).long(), torch.zeros(0, 2, 2).long())
                metrics.update(torch.zeros(1, 0, 2).long(), torch.zeros(1, 0, 2).long())
            got = metrics.compute()
            assert got["iou"] == [None] * 3 and got["pixels"] == 0
            for key in ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou"):
                assert math.isnan(got[key])
            assert math.isnan(got.get("boundary_f1", math.nan))


def test_one_class():
    got = measured([[[0, 0]]], [[[0, 255]]], 1)
    assert got["miou"] == got["pixel_accuracy"] == 1


def test_reset():
    metrics = SegmentationMetrics(2)
    metrics.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]]))
    metrics.reset()
    assert metrics.confusion.sum() == 0 and metrics.images == 0


def test_counts_beyond_32_bits():
    metrics = SegmentationMetrics(2)
    metrics.confusion += torch.tensor([[2**40, 1], [0, 2**40]])
    assert metrics.compute()["pixels"] == 2**41 + 1
    assert metrics.compute()["iou"][0] < 1


@pytest.mark.parametrize("value", [5, -1, 255])
def test_prediction_out_of_range(value, device):
    pred, target = random_maps(0, device=device)
    pred[0, 0, 0] = value
    metrics = SegmentationMetrics(5)
    with pytest.raises(ValueError, match=rf"pred must be in \[0, 5\), got \[{value}\] in 1 pixels"):
        metrics.update(pred, target)
    assert metrics.confusion.sum() == 0 and metrics.images == 0


def test_prediction_out_of_range_at_an_ignored_pixel():
    with pytest.raises(ValueError, match="pred must be in"):
        measured([[[0, 7]]], [[[0, 255]]], 2)


def test_target_out_of_range(device):
    pred, target = random_maps(0, device=device)
    target[0, 0, :3] = 5
    with pytest.raises(
        ValueError, match=r"target must be in \[0, 5\) or 255, got \[5\] in 3 pixels"
    ):
        measured(pred, target, 5)


def test_wrong_arguments():
    zeros = torch.zeros(1, 2, 2).long()
    metrics = SegmentationMetrics(2)
    for pred, target, message in (
        (zeros[0], zeros[0], r"must be \(N, H, W\)"),
        (zeros, zeros[:, :1], "shape of target"),
        (zeros.float(), zeros, "must hold integers"),
        (zeros, zeros.bool(), "must hold integers"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.update(pred, target)
    with pytest.raises(ValueError, match="absent must be"):
        SegmentationMetrics(2, absent="nan")
    with pytest.raises(ValueError, match="at least 1"):
        SegmentationMetrics(0)
    assert repr(metrics) == (
        "SegmentationMetrics(num_classes=2, ignore_index=255, absent='skip', boundary=False)"
    )


def test_without_processes_nothing_happens():
    metrics = SegmentationMetrics(2)
    metrics.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]]))
    metrics.all_reduce()
    assert metrics.confusion.tolist() == [[1, 1], [0, 0]]


def test_numpy_and_torch_rows_are_true_classes():
    table = confusion_matrix(torch.tensor([1, 1]), torch.tensor([0, 0]), 2)
    assert np.array_equal(table.numpy(), [[0, 2], [0, 0]])
