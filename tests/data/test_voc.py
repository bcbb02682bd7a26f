"""PASCAL VOC 2012 in the devkit's format, and real photographs brought into it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segkern.data import VOC, VOC_CLASSES, DatasetError, default_palette, open_dataset

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "voc"


class Tree:
    """A devkit folder of random images and palette masks."""

    def __init__(self, root) -> None:
        self.root = root
        self.rng = np.random.default_rng(0)
        self.masks = {}

    def add(self, name: str, folder: str = "SegmentationClass", size=(10, 14)) -> None:
        pixels = self.rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        labels = self.rng.choice(np.array([0, 1, 15, 20, 255], dtype=np.uint8), size)
        self.save(f"JPEGImages/{name}.jpg", Image.fromarray(pixels))
        picture = Image.fromarray(labels, "P")
        picture.putpalette(default_palette(256).tobytes())
        self.save(f"{folder}/{name}.png", picture)
        self.masks[name] = labels

    def list(self, split: str, lines) -> None:
        file = self.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def save(self, path: str, picture: Image.Image) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)


@pytest.fixture
def tree(tmp_path) -> Tree:
    tree = Tree(tmp_path / "voc")
    for name in ("2007_000032", "2007_000039", "2007_000063"):
        tree.add(name)
    tree.list("train", ["2007_000032", "2007_000063"])
    tree.list("val", ["2007_000039"])
    return tree


def names(dataset) -> list[str]:
    return [dataset.sample_name(i) for i in range(len(dataset))]


def test_palette_indices_are_the_classes(tree):
    dataset = open_dataset(f"voc:{tree.root}", "train")
    assert isinstance(dataset, VOC)
    assert names(dataset) == ["2007_000032", "2007_000063"]
    assert dataset.class_names == list(VOC_CLASSES)
    assert dataset.num_classes == 21
    assert dataset.palette[20].tolist() == [0, 64, 128]
    image, mask = dataset[1]
    assert image.shape == (3, 10, 14)
    assert torch.equal(mask, torch.from_numpy(tree.masks["2007_000063"]).long())
    assert names(open_dataset(f"voc:{tree.root}", "val")) == ["2007_000039"]


def test_the_augmented_list(tree):
    tree.add("2008_000002", "SegmentationClassAug")
    Image.fromarray(tree.masks["2007_000032"]).save(
        tree.root / "SegmentationClassAug" / "2007_000032.png"
    )
    tree.list("trainaug", ["2007_000032", "2008_000002"])
    spec = f"voc:{tree.root}"
    assert names(open_dataset(spec, "train")) == ["2007_000032", "2008_000002"]
    assert names(VOC(tree.root, "train", augmented=False)) == ["2007_000032", "2007_000063"]
    assert torch.equal(
        open_dataset(spec, "trainaug")[1][1], torch.from_numpy(tree.masks["2008_000002"]).long()
    )


def test_lists_of_paths_and_masks_beside_the_others(tree):
    tree.add("2008_000002")
    line = "/JPEGImages/{0}.jpg /SegmentationClass/{0}.png"
    tree.list("trainaug", [line.format("2008_000002"), line.format("2007_000032")])
    assert names(open_dataset(f"voc:{tree.root}", "train")) == ["2008_000002", "2007_000032"]


@pytest.mark.parametrize("below", ["VOC2012", "VOCdevkit/VOC2012"])
def test_the_folder_above(tree, tmp_path, below):
    target = tmp_path / "above" / below
    target.parent.mkdir(parents=True)
    tree.root.rename(target)
    assert len(open_dataset(f"voc:{tmp_path / 'above'}", "train")) == 2


def test_every_fault_is_named(tree):
    tree.list("train", ["2007_000032", "2007_000032", "2007_000099", "a b c"])
    colours = np.zeros((10, 14, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tree.root / "SegmentationClass" / "2007_000032.png")
    with pytest.raises(DatasetError) as error:
        open_dataset(f"voc:{tree.root}", "train")
    text = str(error.value)
    for part in (
        "same name twice",
        "JPEGImages/2007_000099.jpg",
        "SegmentationClass/2007_000099.png",
        "a b c",
        "one channel or a palette",
    ):
        assert part in text
    with pytest.raises(DatasetError, match="the list .*nope.txt cannot be read.*train, val"):
        open_dataset(f"voc:{tree.root}", "nope")
    with pytest.raises(DatasetError, match="no folder JPEGImages"):
        open_dataset(f"voc:{tree.root / 'ImageSets'}", "train")


def test_labels_out_of_range(tree):
    mask = np.full((10, 14), 21, dtype=np.uint8)
    Image.fromarray(mask).save(tree.root / "SegmentationClass" / "2007_000039.png")
    with pytest.raises(DatasetError, match="labels 21; allowed are 0-20, 255"):
        open_dataset(f"voc:{tree.root}", "val")


def test_real_photographs(tmp_path):
    if not FIXTURES.is_dir():
        pytest.skip("no VOC photographs beside the project (../shared/fixtures/voc)")
    tree = Tree(tmp_path / "voc")
    labels = {}
    for file in sorted(FIXTURES.glob("*_labels.png")):
        name = file.stem.removesuffix("_labels")
        tree.save(f"JPEGImages/{name}.jpg", Image.open(FIXTURES / f"{name}.png"))
        mask = Image.open(file)
        labels[name] = np.asarray(mask)
        coded = Image.fromarray(labels[name], "P")
        coded.putpalette(default_palette(256).tobytes())
        tree.save(f"SegmentationClass/{name}.png", coded)
    tree.list("val", labels)
    dataset = open_dataset(f"voc:{tree.root}", "val")
    assert len(dataset) == len(labels) == 3
    for i, name in enumerate(labels):
        image, mask = dataset[i]
        assert image.shape[1:] == mask.shape
        assert np.array_equal(mask.numpy(), labels[name])
    assert {int(v) for m in labels.values() for v in np.unique(m)} <= {*range(21), 255}
