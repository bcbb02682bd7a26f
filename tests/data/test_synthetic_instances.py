"""Objects drawn on the fly: the contract of the samples, their truth and their randomness."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from segkern.data import DatasetError, InstanceDataset, open_dataset
from segkern.data.collate import collate_instances

DTYPES = {
    "boxes": torch.float32,
    "labels": torch.int64,
    "masks": torch.uint8,
    "iscrowd": torch.bool,
    "area": torch.float32,
    "image_id": torch.int64,
}


def same(a, b) -> bool:
    return torch.equal(a[0], b[0]) and all(torch.equal(a[1][k], b[1][k]) for k in a[1])


def crowded(dataset: InstanceDataset) -> int:
    """The first index with a crowd."""
    return next(i for i in range(len(dataset)) if dataset.load(i)[1]["iscrowd"].any())


def test_sample():
    dataset = open_dataset("synthetic-instances:48x80", "val")
    assert isinstance(dataset, InstanceDataset) and dataset.task == "instance"
    assert dataset.class_names == ["ball", "crate", "cone", "ring"]
    assert dataset.num_classes == 5 and dataset.category_ids == [1, 2, 3, 4]
    assert dataset.palette.shape == (4, 3) and dataset.num_stuff == 0
    for index in range(30):
        image, target = dataset[index]
        assert image.shape == (3, 48, 80) and image.dtype == torch.uint8
        assert {k: v.dtype for k, v in target.items()} == DTYPES
        number = len(target["labels"])
        assert target["masks"].shape == (number, 48, 80) and number >= 1
        assert target["masks"].max() == 1 and target["masks"].sum(0).max() == 1
        assert target["image_id"].item() == index + 1
        assert 1 <= target["labels"].min() and target["labels"].max() <= 4
        assert torch.equal(target["area"], target["masks"].sum((1, 2)).float())
        for mask, box in zip(target["masks"].numpy(), target["boxes"].tolist(), strict=True):
            rows, columns = np.nonzero(mask)
            x1, y1, x2, y2 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            assert box == [x1, y1, x2, y2]


def test_both_tasks_draw_the_same_scenes():
    instances = open_dataset("synthetic-instances", "val")
    panoptic = open_dataset("synthetic-panoptic", "val")
    (image, target), (other, more) = instances[5], panoptic[5]
    assert image.shape == (3, 128, 128) and torch.equal(image, other)
    assert more.keys() - target.keys() == {"semantic"}
    assert all(torch.equal(target[k], more[k]) for k in target)


def test_panoptic_truth_agrees_with_the_target():
    dataset = open_dataset("synthetic-panoptic:64x64", "val")
    assert dataset.num_stuff == 4 and dataset.stuff_ids == [5, 6, 7, 8]
    assert [c["isthing"] for c in dataset.categories] == [True] * 4 + [False] * 4
    void = 0
    for index in range(40):
        target = dataset.load(index)[1]
        ids, segments = dataset.panoptic(index)
        assert ids.dtype == torch.int64 and ids.shape == (64, 64)
        assert {s["id"] for s in segments} == set(ids.unique().tolist()) - {0}
        semantic = torch.full_like(ids, 255)
        things = iter(range(len(target["labels"])))
        for segment in segments:
            mask = ids == segment["id"]
            assert segment["area"] == mask.sum()
            rows, columns = mask.nonzero(as_tuple=True)
            x, y, width, height = segment["bbox"]
            assert (x, x + width) == (columns.min(), columns.max() + 1)
            assert (y, y + height) == (rows.min(), rows.max() + 1)
            if segment["category_id"] <= 4:
                k = next(things)
                assert torch.equal(target["masks"][k].bool(), mask)
                assert target["labels"][k] == segment["category_id"]
                assert target["iscrowd"][k] == bool(segment["iscrowd"])
                semantic[mask] = 0
            else:
                semantic[mask] = segment["category_id"] - 4
        assert next(things, None) is None
        assert torch.equal(semantic, target["semantic"])
        void += (ids == 0).any().item()
    assert 3 <= void <= 25, "some scenes have an unlabelled patch"


def test_training_leaves_crowds_out_and_validation_keeps_them():
    train = open_dataset("synthetic-panoptic:64x64", "train")
    index = crowded(train)
    whole, target = train.load(index)[1], train[index][1]
    assert whole["iscrowd"].sum() == 1 and not target["iscrowd"].any()
    kept = ~whole["iscrowd"]
    for key in ("boxes", "labels", "masks", "area"):
        assert torch.equal(target[key], whole[key][kept])
    assert torch.equal(target["semantic"], whole["semantic"])
    val = open_dataset("synthetic-panoptic:64x64", "val")
    assert val[crowded(val)][1]["iscrowd"].any()


def test_randomness():
    base = open_dataset("synthetic-instances:32x32", "train", seed=3)
    again = open_dataset("synthetic-instances:32x32", "train", seed=3)
    for index in (4, 0, 7):
        assert same(base[index], again[index])
    assert not same(base[0], base[1])
    assert not same(base[0], open_dataset("synthetic-instances:32x32", "train", seed=4)[0])
    for split, changes in (("train", True), ("val", False)):
        dataset = open_dataset("synthetic-instances:32x32", split)
        before = dataset[4]
        dataset.set_epoch(1)
        assert same(before, dataset[4]) != changes
        dataset.set_epoch(0)
        assert same(before, dataset[4])


def test_transform_gets_a_generator_of_seed_epoch_and_index():
    def draw(image, target, generator):
        return torch.rand(3, generator=generator), target

    dataset = open_dataset("synthetic-instances:32x32", "val", transform=draw, seed=1)
    first = dataset[2][0]
    assert torch.equal(first, dataset[2][0]) and not torch.equal(first, dataset[3][0])
    dataset.set_epoch(1)
    assert not torch.equal(first, dataset[2][0])


def test_objects_differ_in_class_and_size():
    dataset = open_dataset("synthetic-instances", "val")
    targets = [dataset[i][1] for i in range(100)]
    labels = torch.cat([t["labels"] for t in targets])
    assert (labels.bincount(minlength=5)[1:] > 0.15 * len(labels)).all()
    areas = torch.cat([t["area"] for t in targets])
    assert (areas < 32**2).float().mean() > 0.2 and (areas > 32**2).float().mean() > 0.2
    numbers = torch.tensor([len(t["labels"]) for t in targets])
    assert numbers.min() == 1 and numbers.max() >= 6
    assert 3 <= sum(t["iscrowd"].any().item() for t in targets) <= 25


@pytest.mark.parametrize("size", [(16, 16), (17, 301), (200, 16)])
def test_odd_shapes(size):
    dataset = open_dataset("synthetic-panoptic", "train", size=size, length=20)
    assert dataset.image_size(0) == size
    for image, target in (dataset[i] for i in range(20)):
        assert image.shape == (3, *size) and target["semantic"].shape == size
        assert (target["area"] > 0).all()


def test_wrong_arguments():
    with pytest.raises(DatasetError, match="split"):
        open_dataset("synthetic-instances", "holdout")
    with pytest.raises(DatasetError, match="16x16"):
        open_dataset("synthetic-panoptic:8x8", "train")
    with pytest.raises(DatasetError, match="HxW as in synthetic-panoptic"):
        open_dataset("synthetic-panoptic:8", "train")
    with pytest.raises(ValueError, match="length"):
        open_dataset("synthetic-instances", "train", length=0)
    dataset = open_dataset("synthetic-instances", "train")
    with pytest.raises(IndexError, match="must be in"):
        dataset[512]
    with pytest.raises(ValueError, match="no panoptic truth"):
        dataset.panoptic(0)


def test_drawing_is_quick():
    """About 2 ms on one core; the bound leaves room for a busy machine."""
    dataset = open_dataset("synthetic-panoptic", "train")
    dataset[0]
    start = time.process_time()
    for index in range(1, 31):
        dataset[index]
    assert (time.process_time() - start) / 30 < 0.02


def test_collate_keeps_lists():
    dataset = open_dataset("synthetic-instances:32x48", "val")
    images, targets = collate_instances([dataset[0], dataset[1]])
    assert [tuple(image.shape) for image in images] == [(3, 32, 48)] * 2
    assert [t["image_id"].item() for t in targets] == [1, 2]


def test_truth_is_the_masks_in_coco_form():
    mask = pytest.importorskip("pycocotools.mask")
    dataset = open_dataset("synthetic-panoptic:40x56", "val", length=12)
    truth = dataset.coco_truth()
    assert [i["id"] for i in truth["images"]] == list(range(1, 13))
    assert all((i["height"], i["width"]) == (40, 56) for i in truth["images"])
    assert [c["name"] for c in truth["categories"]] == dataset.class_names
    entries = iter(truth["annotations"])
    for index in range(12):
        target = dataset[index][1]
        for k in range(len(target["labels"])):
            entry = next(entries)
            assert entry["image_id"] == index + 1
            assert entry["category_id"] == target["labels"][k]
            assert np.array_equal(mask.decode(entry["segmentation"]), target["masks"][k].numpy())
            assert entry["area"] == mask.area(entry["segmentation"])
            assert entry["bbox"] == mask.toBbox(entry["segmentation"]).tolist()
            assert isinstance(entry["segmentation"]["counts"], str)
    assert next(entries, None) is None
    assert [a["id"] for a in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))
