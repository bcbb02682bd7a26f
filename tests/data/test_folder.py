"""Somebody's own images/ and masks/."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from segkern.data import DatasetError, Folder, open_dataset


@pytest.fixture
def flat(maker):
    """Twenty pairs without split folders; images in several formats."""
    for i in range(20):
        maker.image(f"images/{i:02d}.{('png', 'jpg', 'bmp')[i % 3]}")
        maker.mask(f"masks/{i:02d}.png", labels=(0, 1, 4, 255))
    return maker


def names(dataset) -> list[str]:
    return [dataset.sample_name(i) for i in range(len(dataset))]


def test_split_without_folders_is_fixed(flat):
    spec = f"folder:{flat.root}"
    train, val = open_dataset(spec, "train"), open_dataset(spec, "val")
    assert len(train) == 16 and len(val) == 4
    assert not set(names(train)) & set(names(val))
    assert names(open_dataset(spec, "val", seed=5)) == names(val), "must not follow the seed"
    assert names(Folder(flat.root, "val", split_seed=1)) != names(val)
    assert len(Folder(flat.root, "val", val_fraction=0.5)) == 10


def test_both_sides_get_a_pair(maker):
    for i in range(2):
        maker.image(f"images/{i}.png")
        maker.mask(f"masks/{i}.png")
    spec = f"folder:{maker.root}"
    assert len(open_dataset(spec, "train")) == len(open_dataset(spec, "val")) == 1


def test_classes_from_the_labels(flat):
    dataset = open_dataset(f"folder:{flat.root}", "train")
    assert dataset.num_classes == 5
    assert dataset.class_names[4] == "class_4"
    assert dataset.palette.shape == (5, 3)
    assert len(np.unique(dataset.palette, axis=0)) == 5


def test_number_of_classes_does_not_depend_on_the_split(maker):
    for split, labels in (("train", (0, 1)), ("val", (0, 6))):
        maker.image(f"images/{split}/a.png")
        maker.mask(f"masks/{split}/a.png", labels=labels)
    for split in ("train", "val"):
        assert open_dataset(f"folder:{maker.root}", split).num_classes == 7


def test_split_folders(maker):
    for split, number in (("train", 3), ("val", 2), ("test", 1)):
        for i in range(number):
            maker.image(f"images/{split}/town/{i}.jpg")
            maker.mask(f"masks/{split}/town/{i}.png")
    for split, number in (("train", 3), ("val", 2), ("test", 1)):
        dataset = open_dataset(f"folder:{maker.root}", split)
        assert len(dataset) == number
        assert dataset.sample_name(0) == "town_0"


def test_missing_split_folder_names_those_there(maker):
    maker.image("images/train/a.png")
    maker.mask("masks/train/a.png")
    with pytest.raises(DatasetError, match="there are train"):
        open_dataset(f"folder:{maker.root}", "val")


def test_missing_masks_folder(maker):
    maker.image("images/a.png")
    with pytest.raises(DatasetError, match="no masks/"):
        open_dataset(f"folder:{maker.root}", "train")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("classes.txt", "# mine\nroad 128 64 128\ntraffic light\n\ntree 1 2 3  # green\na\nb\n"),
        (
            "classes.json",
            '[{"name": "road", "color": [128, 64, 128]}, "traffic light",'
            ' {"name": "tree", "color": [1, 2, 3]}, {"name": "a"}, "b"]',
        ),
        (
            "classes.json",
            '{"classes": [{"name": "road", "color": [128, 64, 128]}, "traffic light",'
            ' {"name": "tree", "color": [1, 2, 3]}, "a", "b"]}',
        ),
    ],
)
def test_class_file(flat, file, content):
    flat.text(file, content)
    dataset = open_dataset(f"folder:{flat.root}", "train")
    assert dataset.class_names == ["road", "traffic light", "tree", "a", "b"]
    assert dataset.palette[0].tolist() == [128, 64, 128]
    assert dataset.palette[2].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("classes.json", "{", "not valid json"),
        ("classes.json", '{"names": 3}', "list of classes"),
        ("classes.json", "[3]", "a class must be"),
        ("classes.json", '[{"name": "a", "color": [1, 2]}]', "three numbers"),
        ("classes.json", "[]", "1 to 255 classes"),
        ("classes.txt", "road 1 2 300", "three numbers"),
    ],
)
def test_wrong_class_file(flat, file, content, message):
    flat.text(file, content)
    with pytest.raises(DatasetError, match=message):
        open_dataset(f"folder:{flat.root}", "train")


def test_label_beyond_the_listed_classes(flat):
    flat.text("classes.txt", "a\nb\n")
    with pytest.raises(DatasetError, match="labels 4; allowed are 0-1, 255") as caught:
        open_dataset(f"folder:{flat.root}", "train")
    assert caught.value.counts["label out of range"] == 16


def test_binary_masks_with_255_are_explained(maker):
    maker.image("images/a.png")
    maker.mask("masks/a.png", labels=(0, 255))
    with pytest.raises(DatasetError, match="write two classes as 0 and 1"):
        open_dataset(f"folder:{maker.root}", "train")


def test_bad_files_are_named(flat):
    flat.image("images/extra.png")
    flat.mask("masks/other.png")
    flat.truncate("masks/03.png")
    flat.mask("masks/04.png", (3, 4))
    with pytest.raises(DatasetError) as caught:
        open_dataset(f"folder:{flat.root}", "train")
    for path in ("images/extra.png", "masks/other.png", "masks/03.png", "masks/04.png"):
        assert path in str(caught.value)


def test_palette_masks(maker):
    for i in range(4):
        maker.image(f"images/{i}.png")
        labels = maker.mask(f"masks/{i}.png", labels=(0, 2, 255))
        picture = Image.fromarray(labels)
        picture.putpalette(list(range(255, -1, -1)) * 3)
        picture.save(maker.root / f"masks/{i}.png")
    _, mask = open_dataset(f"folder:{maker.root}", "train")[0]
    assert set(mask.unique().tolist()) == {0, 2, 255}
