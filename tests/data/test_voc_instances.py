"""PASCAL VOC's single objects: borders, classes, lists, bad files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from segkern.data import DatasetError, default_palette, open_dataset

OBJECTS = np.zeros((10, 14), dtype=np.uint8)
OBJECTS[1:5, 1:6] = 1
OBJECTS[2:9, 8:13] = 3
OBJECTS[1, 1:6] = 255
CLASSES = np.zeros((10, 14), dtype=np.uint8)
CLASSES[1:5, 1:6] = 15
CLASSES[2:9, 8:13] = 7
CLASSES[1, 1:6] = 255
CLASSES[8, 8:13] = 255


class Tree:
    def __init__(self, root) -> None:
        self.root = root
        for folder in ("JPEGImages", "SegmentationObject", "SegmentationClass"):
            (root / folder).mkdir(parents=True)
        (root / "ImageSets/Segmentation").mkdir(parents=True)
        self.add("2007_01")
        self.add("2007_02", OBJECTS[:, ::-1], CLASSES[:, ::-1])
        border = np.where(OBJECTS > 0, 255, 0)
        self.add("2007_03", border, border)
        for split in ("train", "val"):
            self.list(split, "2007_01", "2007_03", "2007_02")

    def add(self, name: str, objects=OBJECTS, classes=CLASSES, size=(10, 14)) -> None:
        pixels = np.random.default_rng(len(name)).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(self.root / f"JPEGImages/{name}.jpg")
        self.map("Object", name, objects)
        self.map("Class", name, classes)

    def map(self, kind: str, name: str, values: np.ndarray) -> None:
        image = Image.fromarray(np.ascontiguousarray(values, dtype=np.uint8))
        image.putpalette(default_palette(256).ravel().tolist())
        image.save(self.root / f"Segmentation{kind}/{name}.png")

    def list(self, split: str, *names: str) -> None:
        file = self.root / f"ImageSets/Segmentation/{split}.txt"
        file.write_text("\n".join(names) + "\n")


@pytest.fixture
def tree(tmp_path) -> Tree:
    return Tree(tmp_path / "set")


def test_samples(tree):
    dataset = open_dataset(f"voc-instances:{tree.root}", "val")
    assert dataset.task == "instance" and dataset.num_classes == 21
    assert dataset.class_names[14] == "person" and dataset.category_ids == list(range(1, 21))
    assert dataset.palette[0].tolist() == [128, 0, 0]
    assert [dataset.sample_name(k) for k in range(3)] == ["2007_01", "2007_03", "2007_02"]
    image, target = dataset[0]
    assert image.shape == (3, 10, 14) and dataset.image_size(0) == (10, 14)
    assert target["labels"].tolist() == [15, 7]
    assert np.array_equal(target["masks"].numpy(), [OBJECTS == 1, OBJECTS == 3])
    assert target["boxes"].tolist() == [[1, 2, 6, 5], [8, 2, 13, 9]], "without the border"
    assert target["area"].tolist() == [15, 35] and not target["iscrowd"].any()
    assert [dataset[k][1]["image_id"].item() for k in range(3)] == [1, 2, 3]
    assert dataset[1][1]["masks"].shape == (0, 10, 14)
    assert dataset[1][1]["boxes"].shape == (0, 4)


def test_training_drops_images_without_objects(tree):
    dataset = open_dataset(f"voc-instances:{tree.root}", "train")
    assert [dataset.sample_name(k) for k in range(2)] == ["2007_01", "2007_02"]
    assert [dataset.image_id(k) for k in range(2)] == [1, 3]
    assert len(open_dataset(f"voc-instances:{tree.root}", "train", length=1)) == 1
    assert dataset.identity() != open_dataset(f"voc-instances:{tree.root}", "val").identity()


def test_below_the_given_folder_and_beside_the_augmented_list(tree):
    (tree.root.parent / "VOCdevkit").mkdir()
    tree.root.rename(tree.root.parent / "VOCdevkit/VOC2012")
    tree.root = tree.root.parent / "VOCdevkit/VOC2012"
    tree.list("trainaug", "2007_01", "2008_99")
    assert len(open_dataset(f"voc-instances:{tree.root.parent.parent}", "train")) == 2


def test_lines_with_two_paths(tree):
    tree.list("val", "/JPEGImages/2007_02.jpg /SegmentationClass/2007_02.png")
    target = open_dataset(f"voc-instances:{tree.root}", "val")[0][1]
    assert np.array_equal(target["masks"].numpy()[0], OBJECTS[:, ::-1] == 1)


def test_truth(tree):
    mask_api = pytest.importorskip("pycocotools.mask")
    truth = open_dataset(f"voc-instances:{tree.root}", "val").coco_truth()
    assert [i["id"] for i in truth["images"]] == [1, 2, 3]
    assert [a["image_id"] for a in truth["annotations"]] == [1, 1, 3, 3]
    assert [a["category_id"] for a in truth["annotations"]] == [15, 7, 15, 7]
    mask = mask_api.decode(truth["annotations"][1]["segmentation"])
    assert np.array_equal(mask, OBJECTS == 3)
    assert truth["annotations"][1]["bbox"] == [8, 2, 5, 7]


def test_all_bad_files_are_named(tree):
    tree.map("Class", "2007_02", np.where(CLASSES == 7, 21, CLASSES))
    tree.map("Object", "2007_03", OBJECTS)
    tree.add("2008_04", size=(5, 5))
    tree.add("2008_05", classes=CLASSES[1:])
    tree.add("2008_06")
    (tree.root / "SegmentationClass/2008_06.png").unlink()
    tree.list("val", "2007_01", "2007_02", "2007_03", "2008_04", "2008_05", "2008_06", "gone")
    with pytest.raises(DatasetError) as caught:
        open_dataset(f"voc-instances:{tree.root}", "val")
    found = {(p.kind, p.path) for p in caught.value.problems}
    assert found == {
        ("missing file", "JPEGImages/gone.jpg"),
        ("missing file", "SegmentationObject/gone.png"),
        ("missing file", "SegmentationClass/2008_06.png"),
        ("wrong size", "SegmentationObject/2008_04.png"),
        ("wrong size", "SegmentationClass/2008_04.png"),
        ("wrong size", "SegmentationClass/2008_05.png"),
        ("label out of range", "SegmentationClass/2007_02.png"),
        ("object without class", "SegmentationClass/2007_03.png"),
    }


def test_object_without_class_is_named_when_it_is_read(tree):
    tree.map("Class", "2007_01", np.where(CLASSES == 7, 0, CLASSES))
    dataset = open_dataset(f"voc-instances:{tree.root}", "val")
    with pytest.raises(DatasetError, match="2007_01.png: no class for object 3"):
        dataset[0]


def test_images_alone(tree):
    dataset = open_dataset(f"voc-instances:{tree.root}", "val")
    whole = dataset[0][0]
    dataset.images_only = True
    assert torch.equal(dataset[0][0], whole)
