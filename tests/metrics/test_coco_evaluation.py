"""COCO's numbers against a published vector, the raw routine, and cases done by hand."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import sys

import numpy as np
import pytest
import torch

from segkern.data import DatasetError
from segkern.data._rle import as_rle, decode_masks, encode_masks
from segkern.metrics.coco import COCO_NAMES, CocoEvaluation

pytest.importorskip("pycocotools")

# Two images of 100x100: (image, class, x, y, width, height, crowd) and (..., score).
TRUTH = [
    (1, 1, 10, 10, 20, 20, 0),
    (1, 1, 50, 50, 40, 40, 0),
    (1, 1, 0, 60, 30, 30, 1),
    (2, 1, 30, 30, 20, 20, 0),
    (2, 2, 5, 5, 50, 50, 0),
]
FOUND = [
    (1, 1, 10, 10, 20, 20, 0.9),
    (1, 1, 52, 50, 40, 40, 0.8),
    (1, 1, 12, 10, 20, 20, 0.7),
    (1, 1, 0, 60, 10, 10, 0.65),
    (2, 1, 30, 34, 20, 20, 0.6),
    (2, 1, 70, 70, 10, 10, 0.95),
    (2, 2, 5, 5, 50, 40, 0.5),
]
TWELVE = (0.597822, 0.822112, 0.721122, 0.351485, 0.8, -1)
TWELVE += (0.516667, 0.733333, 0.733333, 0.7, 0.8, -1)


def filled(x: int, y: int, width: int, height: int, size=(100, 100)) -> torch.Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[y : y + height, x : x + width] = True
    return mask


def truth_of(rows, first_id=1, ids=(1, 2), segmentation="polygon", size=(100, 100)) -> dict:
    annotations = []
    for number, (image, label, x, y, w, h, crowd) in enumerate(rows, start=first_id):
        shape = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        if segmentation == "rle":
            shape = encode_masks(filled(x, y, w, h, size)[None])[0]
        annotations.append(
            {
                "id": number,
                "image_id": image,
                "category_id": ids[label - 1],
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": crowd,
                "segmentation": shape,
            }
        )
    images = [{"id": i, "height": size[0], "width": size[1]} for i in (1, 2)]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": str(i)} for i in sorted(ids)],
    }


def result_of(rows, image: int, size=(100, 100)) -> dict[str, torch.Tensor]:
    rows = [r for r in rows if r[0] == image]
    masks = [filled(*r[2:6], size) for r in rows]
    return {
        "labels": torch.tensor([r[1] for r in rows], dtype=torch.int64),
        "scores": torch.tensor([r[6] for r in rows], dtype=torch.float64),
        "boxes": torch.tensor([(x, y, x + w, y + h) for _, _, x, y, w, h, _ in rows]).reshape(
            -1, 4
        ),
        "masks": torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool),
    }


def twelve(scores: dict[str, float]) -> list[float]:
    assert tuple(scores) == COCO_NAMES
    return list(scores.values())


@pytest.mark.parametrize("segmentation", ["polygon", "rle"])
@pytest.mark.parametrize("first_id", [0, 1, 500])
def test_published_vector(segmentation, first_id):
    """The annotation's number 0 must not pass for "not matched"."""
    truth = truth_of(TRUTH, first_id, segmentation=segmentation)
    evaluation = CocoEvaluation(truth, [1, 2])
    evaluation.update([1, 2], [result_of(FOUND, 1), result_of(FOUND, 2)])
    scores = evaluation.compute()
    assert twelve(scores["bbox"]) == pytest.approx(TWELVE, abs=1e-6)
    assert twelve(scores["segm"]) == pytest.approx(TWELVE, abs=1e-6)
    # The one object of class 2 is found with IoU 0.8 at full recall: 7 of 10 thresholds.
    assert evaluation.class_ap("bbox")[1] == pytest.approx(0.7)
    assert np.mean(evaluation.class_ap("segm")) == pytest.approx(TWELVE[0], abs=1e-6)


def test_order_of_updates_and_of_categories_does_not_matter():
    plain = CocoEvaluation(truth_of(TRUTH), [1, 2])
    plain.update([1, 2], [result_of(FOUND, 1), result_of(FOUND, 2)])
    other = CocoEvaluation(truth_of(TRUTH, ids=(90, 7)), [90, 7])
    other.update([2], [result_of(FOUND, 2)])
    other.update(torch.tensor([1]), [result_of(FOUND, 1)])
    assert other.compute() == plain.compute()
    assert other.class_ap("bbox") == plain.class_ap("bbox")
    halves = [CocoEvaluation(truth_of(TRUTH), [1, 2]) for _ in range(2)]
    for image, half in zip((1, 2), halves, strict=True):
        half.update([image], [result_of(FOUND, image)])
    halves[0].merge(halves[1])
    assert halves[0].compute() == plain.compute()
    with pytest.raises(ValueError, match="both"):
        halves[0].merge(halves[1])


def test_truth_is_left_alone_and_nothing_is_printed(capsys):
    truth = truth_of(TRUTH)
    before = copy.deepcopy(truth)
    evaluation = CocoEvaluation(truth, [1, 2])
    evaluation.update([1], [result_of(FOUND, 1)])
    first = evaluation.compute()
    assert truth == before
    assert evaluation.compute() == first
    assert capsys.readouterr().out == ""


def test_soft_masks_count_from_one_half():
    size = (6, 8)
    truth = truth_of([(1, 1, 2, 1, 3, 4, 0)], size=size)
    soft = torch.where(filled(2, 1, 3, 4, size), 0.5, 0.499)
    result = {**result_of([(1, 1, 2, 1, 3, 4, 0.9)], 1, size), "masks": soft[None, None]}
    evaluation = CocoEvaluation(truth, [1, 2])
    evaluation.update([1], [result])
    assert evaluation.compute()["segm"]["AP"] == pytest.approx(1)
    assert (
        evaluation.results()[0]["segmentation"] == encode_masks(filled(2, 1, 3, 4, size)[None])[0]
    )


def test_area_of_a_result_is_that_of_its_mask():
    """A thin mask in a large box is small: unmatched, it only counts among the small ones."""
    size = (200, 200)
    truth = truth_of([(1, 1, 0, 0, 10, 10, 0), (1, 1, 100, 100, 80, 80, 0)], size=size)
    rows = [(1, 1, 20, 20, 150, 1, 0.9), (1, 1, 100, 100, 80, 80, 0.8)]
    evaluation = CocoEvaluation(truth, [1, 2], kinds=("segm",))
    result = result_of(rows, 1, size)
    result["boxes"][0] = torch.tensor([20, 20, 170, 170])
    evaluation.update([1], [result])
    assert evaluation.compute()["segm"]["APm"] == pytest.approx(1)
    assert evaluation.compute()["segm"]["APs"] == 0


def test_no_results_and_no_objects():
    evaluation = CocoEvaluation(truth_of(TRUTH), [1, 2])
    assert set(evaluation.compute()["segm"].values()) == {0, -1}
    evaluation.update([1, 2], [result_of([], 1), result_of([], 2)])
    assert evaluation.results() == []
    scores = evaluation.compute()["bbox"]
    assert scores["AP"] == 0 and scores["APl"] == -1
    empty = CocoEvaluation(truth_of([]), [1, 2])
    empty.update([1], [result_of(FOUND, 1)])
    assert set(empty.compute()["segm"].values()) == {-1}
    assert empty.class_ap("segm") == [None, None]


def test_results_are_json_that_the_reference_loader_reads():
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    size, truth_rows, found_rows = (60, 70), [], []
    for image in (1, 2):
        for _ in range(12):
            x, y = int(rng.integers(0, 40)), int(rng.integers(0, 30))
            w, h = (int(v) for v in rng.integers(4, 30, 2))
            truth_rows.append((image, int(rng.integers(1, 3)), x, y, w, h, int(rng.random() < 0.1)))
            if rng.random() < 0.8:
                dx, dy = (int(v) for v in rng.integers(0, 3, 2))
                label = int(rng.integers(1, 3)) if rng.random() < 0.2 else truth_rows[-1][1]
                found_rows.append((image, label, x + dx, y + dy, w, h, round(rng.random(), 2)))
    truth = truth_of(truth_rows, ids=(3, 8), size=size)
    evaluation = CocoEvaluation(truth, [3, 8])
    evaluation.update([1, 2], [result_of(found_rows, i, size) for i in (1, 2)])
    written = json.loads(json.dumps(evaluation.results()))
    assert len(written) == len(found_rows) and set(written[0]["segmentation"]) == {"size", "counts"}
    for kind in ("bbox", "segm"):
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = copy.deepcopy(truth)
            coco.createIndex()
            other = "segmentation" if kind == "bbox" else "bbox"
            rows = [{k: v for k, v in entry.items() if k != other} for entry in written]
            reference = COCOeval(coco, coco.loadRes(rows), kind)
            reference.evaluate()
            reference.accumulate()
            reference.summarize()
        assert twelve(evaluation.compute()[kind]) == reference.stats.tolist()
        assert 0.05 < reference.stats[0] < 0.95


def test_wrong_results():
    evaluation = CocoEvaluation(truth_of(TRUTH), [1, 2])
    good = result_of(FOUND, 1)
    for change, match in (
        ({"labels": good["labels"] + 2}, "labels must be in 1 .. 2"),
        ({"labels": good["labels"] - 1}, "labels must be in 1 .. 2"),
        ({"labels": good["labels"][1:]}, "labels and scores"),
        ({"scores": good["scores"] * float("nan")}, "finite"),
        ({"boxes": good["boxes"][:, :3]}, "boxes must be"),
        ({"masks": good["masks"][:, 1:]}, "masks must be"),
        ({"masks": None}, "must have a tensor 'masks'"),
    ):
        with pytest.raises(ValueError, match=match):
            evaluation.update([1], [{**good, **change}])
    with pytest.raises(ValueError, match="in the truth, got 3"):
        evaluation.update([3], [good])
    with pytest.raises(ValueError, match="one for each"):
        evaluation.update([1, 2], [good])
    with pytest.raises(ValueError, match="kinds"):
        CocoEvaluation(truth_of(TRUTH), [1, 2], kinds=("keypoints",))
    with pytest.raises(ValueError, match="computed"):
        evaluation.class_ap("segm")
    evaluation.update([1], [good])
    with pytest.raises(ValueError, match="added before"):
        evaluation.update([1], [good])


def test_gathering_keeps_no_pixels():
    """Twenty masks of 800x1000 are 16 MB as bytes; their outlines are a few KB."""
    size = (800, 1000)
    truth = truth_of([(1, 1, 0, 0, 5, 5, 0)], size=size)
    evaluation = CocoEvaluation(truth, [1, 2], kinds=("segm",))
    masks = filled(100, 200, 300, 400, size).expand(20, *size)
    labels = torch.ones(20, dtype=torch.int64)
    evaluation.update([1], [{"labels": labels, "scores": labels.double(), "masks": masks}])
    assert sum(len(e["segmentation"]["counts"]) for e in evaluation.results()) < 40_000


def test_published_strings():
    mask = torch.zeros(5, 6, dtype=torch.uint8)
    mask[1:4, 2:5] = 1
    mask[2, 3] = 0
    mask[0, 5] = 1
    assert encode_masks(mask[None]) == [{"size": [5, 6], "counts": ";32NO012ON3"}]
    counts = [11, 3, 2, 1, 1, 1, 2, 3, 1, 1, 4]
    for form in (";32NO012ON3", counts):
        assert torch.equal(decode_masks([{"size": [5, 6], "counts": form}], 5, 6)[0], mask)
    large = torch.zeros(480, 640)
    large[100:300, 200:500] = 1
    assert encode_masks(large[None])[0]["counts"].startswith("Tkm2X6h8")


def test_published_polygons():
    masks = decode_masks([[[1, 1, 4, 1, 4, 3, 1, 3]], [[0.5, 0.5, 5.2, 1.1, 3.3, 4.9]]], 6, 7)
    wanted = torch.zeros(2, 6, 7, dtype=torch.uint8)
    wanted[0, 1:3, 1:4] = 1
    for row, first, last in ((1, 1, 4), (2, 2, 4), (3, 3, 3), (4, 3, 3)):
        wanted[1, row, first : last + 1] = 1
    assert torch.equal(masks, wanted)
    assert as_rle([[0.5, 0.5, 5.2, 1.1, 3.3, 4.9]], 6, 7)["counts"] == "7151O2NN="


def test_sizes_from_one_pixel_up():
    for size in ((1, 1), (1, 9), (7, 1), (33, 2)):
        masks = (torch.rand(5, *size) < 0.5).to(torch.uint8)
        again = decode_masks(encode_masks(masks), *size)
        assert torch.equal(again, masks)
    assert encode_masks(torch.zeros(0, 4, 4)) == []
    assert decode_masks([], 3, 4).shape == (0, 3, 4)
    with pytest.raises(ValueError, match="of size"):
        decode_masks([{"size": [3, 4], "counts": "\\<"}], 4, 3)
    with pytest.raises(ValueError, match=r"\(n, H, W\)"):
        encode_masks(torch.zeros(3, 4))


def test_without_pycocotools(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.delitem(sys.modules, "pycocotools.mask", raising=False)
    with pytest.raises(DatasetError, match=r"pip install 'segkern\[coco\]'"):
        CocoEvaluation(truth_of(TRUTH), [1, 2])
