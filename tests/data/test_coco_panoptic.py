"""COCO's panoptic form: ids in colours, things and stuff, bad files, and two real images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segkern.data import DatasetError, open_dataset

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "panoptic"

# Ids of more than one byte; 0 is unlabelled. Things: 18 (dog), 3 (car). Stuff: 149, 92.
IDS = np.zeros((8, 12), dtype=np.int64)
IDS[:3] = 70000
IDS[3:6, :5] = 513
IDS[3:6, 6:9] = 7
IDS[6:, 2:9] = 250
IDS[6:, 9:] = 66051
SEGMENTS = [(513, 18, 0), (70000, 149, 0), (7, 3, 0), (250, 92, 0), (66051, 3, 1)]


def segment(number: int, category: int, crowd: int = 0) -> dict:
    rows, columns = np.nonzero(IDS == number)
    x, y = int(columns.min(initial=99)), int(rows.min(initial=99))
    box = [x, y, int(columns.max(initial=0)) + 1 - x, int(rows.max(initial=0)) + 1 - y]
    return {
        "id": number,
        "category_id": category,
        "iscrowd": crowd,
        "area": len(rows),
        "bbox": box,
    }


def colours(ids: np.ndarray) -> Image.Image:
    parts = [(ids >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)]
    return Image.fromarray(np.stack(parts, axis=-1))


class Tree:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.maps = {"a.png": IDS, "b.png": np.full((5, 4), 9)}
        stuff = {"id": 9, "category_id": 92, "iscrowd": 0, "area": 20, "bbox": [0, 0, 4, 5]}
        self.content = {
            "images": [
                {"id": 21, "file_name": "a.jpg", "height": 8, "width": 12},
                {"id": 3, "file_name": "b.jpg", "height": 5, "width": 4},
            ],
            "annotations": [
                {
                    "image_id": 21,
                    "file_name": "a.png",
                    "segments_info": [segment(*s) for s in SEGMENTS],
                },
                {"image_id": 3, "file_name": "b.png", "segments_info": [stuff]},
            ],
            "categories": [
                {"id": 149, "name": "road", "isthing": 0, "color": [1, 2, 3]},
                {"id": 18, "name": "dog", "isthing": 1, "color": [4, 5, 6]},
                {"id": 92, "name": "banner", "isthing": 0},
                {"id": 3, "name": "car", "isthing": 1},
            ],
        }

    def save(self, split: str = "val", stem: str = "annotations/panoptic_{}2017") -> str:
        file = self.root / f"{stem.format(split)}.json"
        folder, images = self.root / stem.format(split), self.root / f"{split}2017"
        for path in (folder, images):
            path.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self.content))
        for name, ids in self.maps.items():
            colours(ids).save(folder / name)
            grey = Image.fromarray(np.full((*ids.shape, 3), 90, dtype=np.uint8))
            grey.save(images / name.replace("png", "jpg"))
        return f"coco-panoptic:{self.root}"

    def segments(self) -> list[dict]:
        return self.content["annotations"][0]["segments_info"]


@pytest.fixture
def tree(tmp_path) -> Tree:
    return Tree(tmp_path / "set")


def test_samples(tree):
    dataset = open_dataset(tree.save(), "val")
    assert dataset.task == "panoptic"
    assert dataset.class_names == ["car", "dog"] and dataset.category_ids == [3, 18]
    assert dataset.stuff_names == ["banner", "road"] and dataset.stuff_ids == [92, 149]
    assert (dataset.num_classes, dataset.num_stuff) == (3, 2)
    assert dataset.stuff_palette[1].tolist() == [1, 2, 3]
    assert [c["id"] for c in dataset.categories] == [3, 18, 92, 149]
    assert [dataset.image_id(k) for k in range(2)] == [3, 21]
    image, target = dataset[1]
    assert image.shape == (3, 8, 12) and dataset.image_size(1) == (8, 12)
    assert target["labels"].tolist() == [2, 1, 1]
    assert target["iscrowd"].tolist() == [False, False, True]
    wanted = np.stack([IDS == number for number in (513, 7, 66051)])
    assert target["masks"].dtype == torch.uint8
    assert np.array_equal(target["masks"].numpy(), wanted)
    assert target["boxes"].tolist() == [[0, 3, 5, 6], [6, 3, 9, 6], [9, 6, 12, 8]]
    assert target["area"].tolist() == [15, 9, 6]
    semantic = np.full(IDS.shape, 255)
    semantic[np.isin(IDS, [513, 7, 66051])] = 0
    semantic[IDS == 250], semantic[IDS == 70000] = 1, 2
    assert target["semantic"].dtype == torch.int64
    assert np.array_equal(target["semantic"].numpy(), semantic)
    assert dataset[0][1]["masks"].shape == (0, 5, 4)
    assert (dataset[0][1]["semantic"] == 1).all()


def test_panoptic_truth_is_the_file(tree):
    dataset = open_dataset(tree.save(), "val")
    ids, segments = dataset.panoptic(1)
    assert ids.dtype == torch.int64 and np.array_equal(ids.numpy(), IDS)
    assert segments == [segment(*s) for s in SEGMENTS]
    for entry in tree.segments():
        del entry["area"], entry["bbox"]
    assert open_dataset(tree.save(), "val").panoptic(1)[1] == segments


def test_training_drops_crowds_and_images_without_things(tree):
    dataset = open_dataset(tree.save("train"), "train")
    assert len(dataset) == 1
    target = dataset[0][1]
    assert target["labels"].tolist() == [2, 1]
    assert (target["semantic"].numpy()[IDS == 66051] == 0).all()
    dataset.mask_limit = 1
    some = dataset[0][1]
    assert len(some["labels"]) == 1 and some["labels"][0] in (1, 2)
    assert torch.equal(some["semantic"], target["semantic"])


def test_coco_truth_of_the_things(tree):
    mask_api = pytest.importorskip("pycocotools.mask")
    truth = open_dataset(tree.save(), "val").coco_truth()
    rows = [(a["id"], a["image_id"], a["category_id"], a["iscrowd"]) for a in truth["annotations"]]
    assert rows == [(1, 21, 18, 0), (2, 21, 3, 0), (3, 21, 3, 1)]
    for entry, number in zip(truth["annotations"], (513, 7, 66051), strict=True):
        assert np.array_equal(mask_api.decode(entry["segmentation"]), IDS == number)


@pytest.mark.parametrize("stem", ["annotations/panoptic_{}", "panoptic_{}", "{}"])
def test_simple_forms(tree, stem):
    assert len(open_dataset(tree.save(stem=stem), "val")) == 2


def test_all_bad_entries_are_named_at_once(tree):
    tree.segments()[:] = [
        *tree.segments(),
        {"id": 8, "category_id": 555},
        {"id": 7, "category_id": 3},
        {"id": 0, "category_id": 3},
        {"category_id": 3},
        {"id": 11, "category_id": 3, "area": 4, "bbox": [1, 1, 0, 4]},
        {"id": 12},
    ]
    tree.content["annotations"] += [
        {"image_id": 21, "file_name": "a.png", "segments_info": []},
        {"image_id": 4, "file_name": "c.png", "segments_info": []},
        {"image_id": 5, "file_name": "gone.png", "segments_info": []},
        {"image_id": 6, "segments_info": []},
        {"image_id": 8, "file_name": "a.png"},
        {"file_name": "a.png"},
        {"image_id": 9, "file_name": "b.png", "segments_info": []},
    ]
    tree.content["images"] += [
        {"id": 5, "file_name": "a.jpg"},
        {"id": 7, "file_name": "gone.jpg"},
        {"id": 9, "file_name": "a.jpg"},
    ]
    with pytest.raises(DatasetError) as caught:
        open_dataset(tree.save(), "val")
    assert caught.value.counts == {
        "missing image": 2,
        "bad segment": 3,
        "unknown category": 1,
        "duplicate id": 2,
        "box without area": 1,
        "unknown image": 1,
        "bad annotation": 2,
        "no segmentation": 1,
        "mask of another size": 1,
    }
    text = str(caught.value)
    assert "annotation of image 21: segment 8: category 555" in text
    assert "annotations/panoptic_val2017/gone.png" in text and "val2017/gone.jpg" in text
    assert "panoptic_val2017/b.png: map is 4x5, image 9 is 12x8" in text


def test_ids_that_do_not_agree(tree):
    spec = tree.save()
    removed = tree.segments().pop()
    tree.save()
    with pytest.raises(DatasetError, match=r"a.png.*image 21; without an entry: \[66051\]"):
        open_dataset(spec, "val")[1]
    tree.segments().extend([removed, {**removed, "id": 5}])
    tree.save()
    with pytest.raises(DatasetError, match=r"without a pixel: \[5\]"):
        open_dataset(spec, "val").panoptic(1)


def test_map_that_is_not_in_colours(tree):
    spec = tree.save()
    Image.fromarray(IDS.astype(np.uint8)).save(tree.root / "annotations/panoptic_val2017/a.png")
    with pytest.raises(DatasetError, match="must be in RGB"):
        open_dataset(spec, "val")[1]


def test_truncated_json_and_missing_folder(tree):
    spec = tree.save()
    file = tree.root / "annotations/panoptic_val2017.json"
    text = file.read_text()
    file.write_text(text[:-30])
    with pytest.raises(DatasetError, match="panoptic_val2017.json: truncated"):
        open_dataset(spec, "val")
    file.write_text(text)
    shutil.rmtree(tree.root / "annotations/panoptic_val2017")
    with pytest.raises(DatasetError, match="no folder annotations/panoptic_val2017"):
        open_dataset(spec, "val")
    with pytest.raises(DatasetError, match="panoptic_train2017.json"):
        open_dataset(spec, "train")


def test_real_images(tmp_path):
    if not FIXTURES.is_dir():
        pytest.skip("no COCO panoptic images beside the project (../shared/fixtures/panoptic)")
    (tmp_path / "set/annotations").mkdir(parents=True)
    stem = tmp_path / "set/annotations/panoptic_val2017"
    shutil.copy(FIXTURES / "panoptic_examples.json", stem.with_suffix(".json"))
    stem.symlink_to(FIXTURES / "panoptic_examples")
    (tmp_path / "set/val2017").symlink_to(FIXTURES / "input_images")
    dataset = open_dataset(f"coco-panoptic:{tmp_path / 'set'}", "val")
    assert len(dataset) == 2 and (dataset.num_classes, dataset.num_stuff) == (81, 53)
    number = 0
    for index in range(2):
        image, target = dataset[index]
        ids, segments = dataset.panoptic(index)
        assert image.shape[1:] == ids.shape == target["semantic"].shape
        number += sum(not s["iscrowd"] for s in segments)
        for entry in segments:
            mask = ids == entry["id"]
            assert mask.sum() == entry["area"], "areas of the file are the maps' pixels"
            if entry["category_id"] in dataset.stuff_ids:
                label = dataset.stuff_ids.index(entry["category_id"]) + 1
                assert (target["semantic"][mask] == label).all()
        things = [s for s in segments if s["category_id"] in dataset.category_ids]
        assert target["area"].tolist() == [s["area"] for s in things]
        names = [dataset.class_names[k - 1] for k in target["labels"]]
        assert "person" in names
    assert number == 47
