"""Panoptic quality: the reference evaluator's figures on real images, and cases made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from segkern.metrics import PanopticQuality

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "panoptic"

# The reference evaluator, the prediction being the truth moved cyclically by (rows, columns):
# PQ, SQ, RQ of all, of things, of stuff; TP, FP, FN over all classes.
SHIFTED = {
    (0, 0): ((1, 1, 1), (1, 1, 1), (1, 1, 1), (47, 0, 0)),
    (4, 7): (
        (0.508223, 0.588833, 0.738199),
        (0.285664, 0.446884, 0.476399),
        (0.730782, 0.730782, 1),
        (23, 24, 24),
    ),
    (16, 24): (
        (0.128988, 0.165060, 0.187500),
        (0, 0, 0),
        (0.257977, 0.330119, 0.375),
        (3, 41, 44),
    ),
}

THING, STUFF, OTHER = 1, 2, 3
CATEGORIES = [
    {"id": THING, "isthing": 1, "name": "a"},
    {"id": STUFF, "isthing": 0, "name": "b"},
    {"id": OTHER, "isthing": 1, "name": "c"},
]


@pytest.fixture
def samples():
    """Categories, and (ids, segments) of each image."""
    image = pytest.importorskip("PIL.Image")
    if not FIXTURES.is_dir():
        pytest.skip("no panoptic images beside the project (../shared/fixtures/panoptic)")
    given = json.loads((FIXTURES / "panoptic_examples.json").read_text())
    found = []
    for annotation in given["annotations"]:
        with image.open(FIXTURES / "panoptic_examples" / annotation["file_name"]) as opened:
            rgb = torch.from_numpy(np.array(opened.convert("RGB"))).long()
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        found.append((ids, annotation["segments_info"]))
    return given["categories"], found


@pytest.mark.parametrize("shift", SHIFTED)
def test_real_images(shift, samples):
    categories, images = samples
    metric = PanopticQuality(categories)
    for ids, segments in images:
        metric.update(ids, segments, ids.roll(shift, (0, 1)), segments_left(ids, segments))
    result = metric.compute()
    *wanted, cases = SHIFTED[shift]
    for group, figures in zip(("All", "Things", "Stuff"), wanted, strict=True):
        found = [result[group][name] for name in ("pq", "sq", "rq")]
        assert found == pytest.approx(figures, abs=6e-7)
    totals = [sum(c[name] for c in result["per_class"].values()) for name in ("tp", "fp", "fn")]
    assert tuple(totals) == cases
    assert metric.images == 2


def segments_left(ids, segments):
    """A prediction's segments: no crowds are known there, only ids and classes."""
    return [{"id": s["id"], "category_id": s["category_id"]} for s in segments]


def row(text, **classes):
    """A map of one row from letters, '.' being void, and its segments: class by letter; capital
    letters are crowds."""
    ids = torch.tensor([[0 if letter == "." else ord(letter) for letter in text]])
    segments = [
        {"id": ord(letter), "category_id": category, "iscrowd": int(letter.isupper())}
        for letter, category in classes.items()
    ]
    return ids, segments


def figures_of(*images):
    metric = PanopticQuality(CATEGORIES)
    for truth, guess in images:
        metric.update(*truth, *guess)
    return metric.compute()


def cases_of(result, category):
    found = result["per_class"][category]
    return found["tp"], found["fp"], found["fn"]


def test_exactly_half_is_no_match():
    result = figures_of((row("aab.", a=THING, b=STUFF), row("axbb", a=THING, x=OTHER, b=STUFF)))
    assert cases_of(result, THING) == (0, 1, 1), "1 of 2 pixels"
    assert cases_of(result, STUFF) == (1, 0, 0), "its other pixel is void and does not count"
    assert cases_of(result, OTHER) == (0, 1, 0)
    assert result["per_class"][STUFF]["pq"] == 1
    assert result["Things"] == {"pq": 0, "sq": 0, "rq": 0, "n": 2}
    assert result["All"]["pq"] == pytest.approx(1 / 3)


def test_mostly_void_or_crowd_is_no_false_positive():
    """Alone void and crowd cover too little of `p`, together 3 of 5 pixels; the crowd of another
    class does not count for `q`."""
    truth = row("C..bbbCCCbb", C=THING, b=STUFF)
    guess = row("pppppbqqqqb", p=THING, q=OTHER, b=STUFF)
    result = figures_of((truth, guess))
    assert cases_of(result, THING) == (0, 0, 0)
    assert cases_of(result, OTHER) == (0, 1, 0)
    assert cases_of(result, STUFF) == (0, 1, 1), "2 of 5"
    exactly_half = figures_of((row("..bb", b=STUFF), row("pppp", p=THING)))
    assert cases_of(exactly_half, THING) == (0, 1, 0)


def test_a_crowd_is_never_matched_or_missed_and_the_last_one_counts():
    same = figures_of((row("CCC", C=THING), row("ppp", p=THING)))
    assert cases_of(same, THING) == (0, 0, 0)
    assert math.isnan(same["All"]["pq"]) and same["All"]["n"] == 0
    missed = figures_of((row("CCC", C=THING), row("...")))
    assert cases_of(missed, THING) == (0, 0, 0)
    truth, guess = row("CCCD", C=THING, D=THING), row("pppp", p=THING)
    assert cases_of(figures_of((truth, guess)), THING) == (0, 1, 0)


def test_classes_of_pairs_must_agree_and_void_predictions_cost_recall_alone():
    result = figures_of((row("aabb", a=THING, b=OTHER), row("xx..", x=OTHER)))
    assert cases_of(result, THING) == (0, 0, 1)
    assert cases_of(result, OTHER) == (0, 1, 1)


def test_means_leave_out_absent_classes_and_sum_over_images():
    """Two images: IoU 2/3 and 1 for the thing, one missed; stuff never occurs."""
    first = (row("aaab", a=THING, b=THING), row("aa..", a=THING))
    second = (row("ab", a=THING, b=OTHER), row("cb", c=THING, b=OTHER))
    result = figures_of(first, second)
    assert result["per_class"][THING]["pq"] == pytest.approx((2 / 3 + 1) / 2.5)
    assert result["per_class"][THING]["sq"] == pytest.approx((2 / 3 + 1) / 2)
    assert result["per_class"][THING]["rq"] == pytest.approx(2 / 2.5)
    assert result["per_class"][STUFF]["pq"] is None
    assert result["Stuff"]["n"] == 0 and math.isnan(result["Stuff"]["pq"])
    assert result["All"]["pq"] == pytest.approx((5 / 7.5 + 1) / 2)
    assert result["All"]["n"] == 2


def test_merge_is_the_same_as_one_after_the_other():
    one, two = PanopticQuality(CATEGORIES), PanopticQuality(CATEGORIES)
    images = [
        (row("aaab", a=THING, b=THING), row("aa..", a=THING)),
        (row("ab", a=THING, b=OTHER), row("cb", c=THING, b=OTHER)),
    ]
    for metric, (truth, guess) in zip((one, two), images, strict=True):
        metric.update(*truth, *guess)
    one.merge(two)
    assert str(one.compute()) == str(figures_of(*images))
    assert one.images == 2
    with pytest.raises(ValueError, match="same categories"):
        one.merge(PanopticQuality(CATEGORIES[:1]))


def slow(truth, truth_segments, guess, segments):
    """TP, FP, FN and the sum of IoUs by class, straight from the sets of pixels."""
    pixels = [
        {key: set(torch.nonzero(ids.flatten() == key).flatten().tolist()) for key in {0, *listed}}
        for ids, listed in (
            (truth, [s["id"] for s in truth_segments]),
            (guess, [s["id"] for s in segments]),
        )
    ]
    result = {c["id"]: [0, 0, 0, 0.0] for c in CATEGORIES}
    taken = set()
    for g in truth_segments:
        if g["iscrowd"]:
            continue
        hits = 0
        for p in segments:
            a, b = pixels[0][g["id"]], pixels[1][p["id"]]
            union = len((a | b) - (b & pixels[0][0]))
            if g["category_id"] == p["category_id"] and len(a & b) / union > 0.5:
                hits += 1
                taken.add(p["id"])
                result[g["category_id"]][3] += len(a & b) / union
        assert hits <= 1
        result[g["category_id"]][0 if hits else 2] += 1
    for p in segments:
        if p["id"] in taken:
            continue
        own = pixels[1][p["id"]]
        free = own & pixels[0][0]
        crowds = [
            g for g in truth_segments if g["iscrowd"] and g["category_id"] == p["category_id"]
        ]
        if crowds:
            free |= own & pixels[0][crowds[-1]["id"]]
        result[p["category_id"]][1] += len(free) / len(own) <= 0.5
    return result


def test_random_maps_against_sets_of_pixels():
    g = torch.Generator().manual_seed(0)
    matches = 0
    for _ in range(60):
        truth = torch.randint(0, 7, (4, 5), generator=g).repeat_interleave(3, 1)
        moved = torch.rand(truth.shape, generator=g) < 0.25
        guess = torch.where(moved, torch.randint(0, 7, truth.shape, generator=g), truth)
        sides = []
        for ids in (truth, guess):
            keys = sorted(set(ids.flatten().tolist()) - {0})
            sides.append(
                [
                    {"id": k, "category_id": 1 + (k + (k == 6)) % 3, "iscrowd": int(k > 4)}
                    for k in keys
                ]
            )
        metric = PanopticQuality(CATEGORIES)
        metric.update(truth, sides[0], guess, sides[1])
        found = metric.compute()["per_class"]
        for category, (tp, fp, fn, iou) in slow(truth, sides[0], guess, sides[1]).items():
            assert cases_of({"per_class": found}, category) == (tp, fp, fn)
            if tp:
                assert found[category]["sq"] == pytest.approx(iou / tp)
                matches += tp
    assert matches > 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guess": torch.zeros(2, 3).long()}, r"image 0: ids must be of size \(1, 3\)"),
        ({"guess": torch.zeros(1, 3)}, r"image 0: ids must be integers \(H, W\)"),
        ({"truth": [[1]]}, "truth_ids must be integers"),
        ({"segments": []}, "image 0: id 8 of the prediction has pixels but is not listed"),
        ({"image": "7.png", "true_segments": []}, "image 7.png: id 5 of the truth has pixels"),
        (
            {"segments": [{"id": 8, "category_id": 1}, {"id": 9, "category_id": 1}]},
            "id 9 of the prediction is listed but has no pixels",
        ),
        ({"segments": [{"id": 8, "category_id": 77}]}, "id 8 .* a known category, got 77"),
        ({"segments": [{"id": 8, "category_id": 1}] * 2}, "id 8 .* must be listed once"),
        ({"segments": [{"id": 0, "category_id": 1}]}, "id 0 of the prediction is void"),
        ({"segments": [{"id": 8}]}, "must have id and category_id"),
    ],
)
def test_wrong_input(change, message):
    given = {
        "truth": torch.tensor([[5, 5, 0]]),
        "true_segments": [{"id": 5, "category_id": 1}],
        "guess": torch.tensor([[8, 0, 0]]),
        "segments": [{"id": 8, "category_id": 1}],
        "image": None,
        **change,
    }
    metric = PanopticQuality(CATEGORIES)
    with pytest.raises(ValueError, match=message):
        metric.update(
            given["truth"],
            given["true_segments"],
            given["guess"],
            given["segments"],
            image=given["image"],
        )
    assert metric.images == 0 and metric.compute()["All"]["n"] == 0


@pytest.mark.parametrize("categories", [[], [{"id": 1}], [{"id": 1, "isthing": 1}] * 2])
def test_wrong_categories(categories):
    with pytest.raises(ValueError, match="PanopticQuality: categories must"):
        PanopticQuality(categories)
