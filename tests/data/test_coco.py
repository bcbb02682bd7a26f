"""COCO's instances: forms of files and segmentations, the target, the truth, and bad files."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from segkern.data import DatasetError, collate_instances, open_dataset
from segkern.data._coco_table import counts_total

mask_api = pytest.importorskip("pycocotools.mask")

TRIANGLE = [2.0, 1.5, 9.5, 2.0, 4.0, 8.25]
SQUARE = [10, 3, 14, 3, 14, 7, 10, 7]
SIZES = {9: (12, 16), 4: (10, 20), 30: (12, 16), 7: (5, 5)}


def string_rle(mask: np.ndarray) -> dict:
    rle = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def number_rle(mask: np.ndarray) -> dict:
    flat = mask.astype(bool).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def drawn(height: int, width: int, *polygons: list[float]) -> np.ndarray:
    parts = mask_api.frPyObjects([list(map(float, p)) for p in polygons], height, width)
    return mask_api.decode(mask_api.merge(parts))


def annotation(number, image, category, segmentation, box, **more) -> dict:
    entry = {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
        "bbox": box,
        "area": 17.5,
        "iscrowd": 0,
    }
    return {**entry, **more}


CROWD = np.zeros((10, 20), bool)
CROWD[4:9, 3:18] = True
CROWD[6, 5] = False
CORNER = np.zeros((12, 16), bool)
CORNER[:3, :4] = True


class Tree:
    """A small COCO tree; `content` is written by `save`."""

    def __init__(self, root) -> None:
        self.root = root
        self.file = "annotations/instances_val2017.json"
        self.folder = "val2017"
        names = {9: "b.png", 4: "a.png", 30: "c.png", 7: "empty.png"}
        self.content = {
            "info": {"year": 2017, "url": "none"},
            "images": [
                {"id": k, "file_name": n, "height": SIZES[k][0], "width": SIZES[k][1], "license": 1}
                for k, n in names.items()
            ],
            "annotations": [
                annotation(11, 9, 18, [TRIANGLE], [2, 1.5, 7.5, 6.75]),
                annotation(12, 4, 3, string_rle(CROWD), [3, 4, 15, 5], iscrowd=1, area=74),
                annotation(13, 9, 3, [TRIANGLE, SQUARE], [2, 1.5, 12, 6.75]),
                annotation(14, 4, 1, [SQUARE], [10, 3, 14, 4]),
                annotation(15, 30, 1, number_rle(CORNER), [-1, 0, 5, 3]),
            ],
            "categories": [
                {"id": 18, "name": "dog", "supercategory": "animal"},
                {"id": 1, "name": "person"},
                {"id": 3, "name": "car"},
            ],
        }
        rng = np.random.default_rng(0)
        self.pixels = {k: rng.integers(0, 256, (*s, 3), dtype=np.uint8) for k, s in SIZES.items()}

    def save(self, split: str = "val", text: str | None = None) -> str:
        file = self.root / self.file.replace("val", split)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text if text is not None else json.dumps(self.content))
        folder = self.root / self.folder.replace("val", split)
        folder.mkdir(parents=True, exist_ok=True)
        for image in self.content["images"]:
            if image.get("id") in self.pixels and "file_name" in image:
                Image.fromarray(self.pixels[image["id"]]).save(folder / image["file_name"])
        return f"coco:{self.root}"

    def entry(self, number: int) -> dict:
        return next(a for a in self.content["annotations"] if a["id"] == number)


@pytest.fixture
def tree(tmp_path) -> Tree:
    return Tree(tmp_path / "set")


def test_samples(tree):
    dataset = open_dataset(tree.save(), "val")
    assert dataset.task == "instance" and dataset.num_stuff == 0
    assert dataset.class_names == ["person", "car", "dog"]
    assert dataset.category_ids == [1, 3, 18] and dataset.num_classes == 4
    assert [dataset.image_id(k) for k in range(4)] == [4, 7, 9, 30]
    assert [dataset.sample_name(k) for k in range(4)] == ["a", "empty", "b", "c"]
    for k in range(4):
        image, target = dataset[k]
        number = dataset.image_id(k)
        assert target["image_id"].item() == number and dataset.image_size(k) == SIZES[number]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), tree.pixels[number])
    target = dataset[0][1]
    assert target["labels"].tolist() == [2, 1]
    assert target["iscrowd"].tolist() == [True, False]
    assert target["area"].tolist() == [74, 17.5]
    assert target["boxes"].tolist() == [[3, 4, 18, 9], [10, 3, 20, 7]], "clipped to the image"
    wanted = np.stack([CROWD, drawn(10, 20, SQUARE)])
    assert np.array_equal(target["masks"].numpy(), wanted)
    target = dataset[2][1]
    wanted = np.stack([drawn(12, 16, TRIANGLE), drawn(12, 16, TRIANGLE, SQUARE)])
    assert np.array_equal(target["masks"].numpy(), wanted)
    assert target["boxes"][0].tolist() == [2, 1.5, 9.5, 8.25]
    target = dataset[3][1]
    assert np.array_equal(target["masks"].numpy()[0], CORNER)
    assert target["boxes"].tolist() == [[0, 0, 4, 3]]
    target = dataset[1][1]
    shapes = {"boxes": (0, 4), "masks": (0, 5, 5), "labels": (0,), "iscrowd": (0,), "area": (0,)}
    assert {k: tuple(target[k].shape) for k in shapes} == shapes
    assert target["boxes"].dtype == torch.float32 and target["area"].dtype == torch.float32


def test_training_leaves_out_crowds_and_images_without_objects(tree):
    tree.content["annotations"].append(annotation(16, 4, 1, [[1, 1, 1.1, 1, 1, 1.1]], [1, 1, 1, 1]))
    tree.entry(14)["iscrowd"] = 1
    tree.entry(12)["iscrowd"] = 0
    dataset = open_dataset(tree.save("train"), "train")
    assert [dataset.image_id(k) for k in range(len(dataset))] == [4, 9, 30]
    target = dataset[0][1]
    assert target["labels"].tolist() == [2], "neither the crowd nor the mask without pixels"
    assert len(dataset.load(0)[1]["labels"]) == 3
    assert len(dataset.coco_truth()["annotations"]) == 6


def test_truth_is_the_file(tree):
    dataset = open_dataset(tree.save(), "val")
    truth = dataset.coco_truth()
    wanted = sorted(tree.content["annotations"], key=lambda a: (a["image_id"], a["id"]))
    given = [{**a, "id": w["id"]} for a, w in zip(truth["annotations"], wanted, strict=True)]
    assert given == wanted
    assert [a["id"] for a in truth["annotations"]] == [1, 2, 3, 4, 5]
    assert [c["id"] for c in truth["categories"]] == [1, 3, 18]
    assert [i["id"] for i in truth["images"]] == [4, 7, 9, 30]
    json.dumps(truth)


def test_missing_box_area_and_size_come_from_mask_and_image(tree):
    for number in (11, 12):
        del tree.entry(number)["bbox"], tree.entry(number)["area"]
    for image in tree.content["images"]:
        del image["height"], image["width"]
    dataset = open_dataset(tree.save(), "val")
    target = dataset[0][1]
    assert target["boxes"][0].tolist() == [3, 4, 18, 9] and target["area"][0] == CROWD.sum()
    target = dataset[2][1]
    triangle = drawn(12, 16, TRIANGLE)
    assert target["area"].tolist() == [triangle.sum(), 17.5]
    truth = {a["category_id"]: a for a in dataset.annotations(2)}
    x, y, w, h = mask_api.toBbox(mask_api.encode(np.asfortranarray(triangle))).tolist()
    assert truth[18]["bbox"] == [x, y, w, h] and truth[18]["area"] == triangle.sum()
    assert target["boxes"][0].tolist() == [x, y, x + w, y + h]


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("annotations/instances_val.json", "val"),
        ("annotations/val.json", "images/val2017"),
        ("val.json", "images"),
        ("val.json", "."),
        ("val/_annotations.coco.json", "val"),
    ],
)
def test_simple_forms(tree, file, folder):
    tree.file, tree.folder = file, folder
    tree.entry(11)["segmentation"] = TRIANGLE
    dataset = open_dataset(tree.save(), "val")
    assert len(dataset) == 4
    assert np.array_equal(dataset[2][1]["masks"][0].numpy(), drawn(12, 16, TRIANGLE))


def test_folders_in_names(tree):
    for image in tree.content["images"]:
        image["file_name"] = f"part/{image['file_name']}"
    (tree.root / "val2017/part").mkdir(parents=True)
    assert open_dataset(tree.save(), "val").sample_name(0) == "part_a"


def test_length_and_identity(tree):
    spec = tree.save()
    whole, some = open_dataset(spec, "val"), open_dataset(spec, "val", length=2)
    assert [some.image_id(k) for k in range(2)] == [4, 9]
    assert whole.identity() != some.identity()
    assert whole.identity() == open_dataset(spec, "val").identity()
    tree.content["info"]["year"] = 2014
    tree.content["info"]["url"] = "changed"
    tree.save()
    assert whole.identity() != open_dataset(spec, "val").identity()
    with pytest.raises(ValueError, match="length"):
        open_dataset(spec, "val", length=0)
    with pytest.raises(ValueError, match="keep their sizes"):
        open_dataset(spec, "val", size=(8, 8))


def test_images_alone(tree):
    dataset = open_dataset(tree.save(), "val")
    whole = dataset[2][0]
    dataset.images_only = True
    image, target = dataset[2]
    assert torch.equal(image, whole) and list(target) == ["image_id"]


def test_bounded_memory_of_a_training_sample(tree):
    tree.content["annotations"] += [
        annotation(100 + k, 9, 3, [TRIANGLE], [2, 1.5, 7.5, 6.75], area=float(k))
        for k in range(2000)
    ]
    dataset = open_dataset(tree.save("train"), "train")
    assert dataset[1][1]["masks"].shape == (2002, 12, 16)
    dataset.mask_limit = 12 * 16 * 50
    first, again = dataset[1][1], dataset[1][1]
    assert first["masks"].shape == (50, 12, 16)
    assert torch.equal(first["area"], again["area"])
    dataset.set_epoch(1)
    assert not torch.equal(first["area"], dataset[1][1]["area"])
    assert len(dataset.coco_truth()["annotations"]) == 2005


def test_images_of_one_pixel_and_of_many(tree):
    sizes = {1: (1, 1), 2: (4000, 8000)}
    tree.pixels = {k: np.zeros((*size, 3), dtype=np.uint8) for k, size in sizes.items()}
    tree.content["images"] = [
        {"id": k, "file_name": f"{k}.png", "height": h, "width": w} for k, (h, w) in sizes.items()
    ]
    wide = [[100, 50, 7900, 50, 7900, 3900, 100, 3900]]
    tree.content["annotations"] = [
        annotation(1, 1, 1, {"size": [1, 1], "counts": [0, 1]}, [0, 0, 1, 1]),
        *(annotation(k, 2, 1, wide, [100, 50, 7800, 3850]) for k in range(2, 1002)),
    ]
    dataset = open_dataset(tree.save("train"), "train")
    assert dataset[0][1]["masks"].tolist() == [[[1]]]
    dataset.mask_limit = 70_000_000
    target = dataset[1][1]
    assert target["masks"].shape == (2, 4000, 8000) and target["masks"][0].sum() == 7800 * 3850
    assert len(dataset.coco_truth()["annotations"]) == 1001


def test_workers_give_the_same_samples(tree):
    for number in range(100, 130):
        entry = annotation(number, 9, 3, [TRIANGLE], [2, 1.5, 7, 6], area=float(number))
        tree.content["annotations"].append(entry)
    dataset = open_dataset(tree.save("train"), "train")
    dataset.mask_limit = 12 * 16 * 4
    loader = DataLoader(
        dataset, num_workers=1, persistent_workers=True, collate_fn=collate_instances
    )
    for epoch in range(2):
        dataset.set_epoch(epoch)
        for index, (images, targets) in enumerate(loader):
            image, target = dataset[index]
            assert torch.equal(images[0], image)
            assert all(torch.equal(targets[0][k], target[k]) for k in target)


def problems_of(tree, split="val") -> dict[str, list[str]]:
    with pytest.raises(DatasetError) as caught:
        open_dataset(tree.save(split), split)
    found: dict[str, list[str]] = {}
    for problem in caught.value.problems:
        assert problem.path in str(caught.value) and problem.detail in str(caught.value)
        found.setdefault(problem.kind, []).append(f"{problem.path}: {problem.detail}")
    return found


def test_all_bad_entries_are_named_at_once(tree):
    content = tree.content
    sound = [TRIANGLE], [2, 1.5, 7, 6]
    content["annotations"] += [
        annotation(20, 9, 1, [], [1, 1, 3, 3]),
        annotation(21, 9, 99, *sound),
        annotation(22, 555, 1, *sound),
        annotation(11, 30, 1, *sound),
        annotation(23, 9, 1, [TRIANGLE], [1, 1, 0, 3]),
        annotation(24, 9, 1, [TRIANGLE], [16, 1, 5, 3]),
        annotation(25, 9, 1, string_rle(CROWD), [1, 1, 3, 3], iscrowd=1),
        annotation(26, 9, 1, [[1, 2, 3, 4]], [1, 1, 3, 3]),
        annotation(27, 9, 1, {"size": [12, 16], "counts": "0"}, [1, 1, 3, 3]),
        annotation(28, 9, 1, {"size": [12, 16], "counts": [10, 30]}, [1, 1, 3, 3]),
        annotation(29, 9, 1, [[1, 2, 3, float("nan"), 5, 6]], [1, 1, 3, 3]),
        annotation(31, 9, 1, [[1, 2, 3, "x", 5, 6]], [1, 1, 3, 3]),
        annotation(32, 9, 1, [TRIANGLE], [1, 1, 3]),
        annotation("33", 9, 1, *sound),
        annotation(34, 8, 1, *sound),
        annotation(35, 31, 1, *sound),
        annotation(36, 9, 1, {"size": [12, 16]}, [1, 1, 3, 3]),
        annotation(37, 9, 1, "none", [1, 1, 3, 3]),
        {"id": 38, "segmentation": [TRIANGLE]},
        77,
        None,
    ]
    del content["annotations"][1]["segmentation"]
    content["images"] += [
        {"id": 8, "file_name": "gone.png", "height": 5, "width": 5},
        {"id": 31, "file_name": "text.png", "height": 5, "width": 5},
        {"id": 9, "file_name": "b.png", "height": 5, "width": 5},
        {"id": 40, "height": 5, "width": 5},
        {"id": 41, "file_name": "a.png", "height": 5, "width": 0},
        {"id": 42, "file_name": "a.png", "height": 9, "width": 9},
        {"file_name": "a.png"},
    ]
    content["categories"] += [{"id": 3, "name": "again"}, {"name": "no id"}]
    (tree.root / "val2017").mkdir(parents=True)
    (tree.root / "val2017/text.png").write_text("no image")
    found = problems_of(tree)
    file = "annotations/instances_val2017.json"
    number = {kind: len(details) for kind, details in found.items()}
    assert number == {
        "bad category": 1,
        "duplicate id": 3,
        "bad image entry": 3,
        "missing image": 1,
        "unreadable image": 1,
        "wrong size": 1,
        "bad annotation": 4,
        "no segmentation": 2,
        "bad segmentation": 7,
        "bad box": 1,
        "unknown category": 1,
        "unknown image": 1,
        "mask of another size": 1,
        "box without area": 1,
        "box outside the image": 1,
    }
    assert found["missing image"] == ["val2017/gone.png: No such file or directory"]
    assert found["wrong size"][0].startswith("val2017/a.png: is 20x10")
    assert found["no segmentation"][1] == f"{file}: annotation 20 (image 9)"
    assert found["unknown category"] == [f"{file}: annotation 21: category 99"]
    assert found["unknown image"] == [f"{file}: annotation 22: image 555"]
    assert "annotation 23" in found["box without area"][0]
    assert "mask is 20x10, image 16x12" in found["mask of another size"][0]
    assert any("annotation 11" in d for d in found["duplicate id"])
    for k, name in enumerate(("26", "27", "28", "29", "31", "36", "37")):
        assert f"annotation {name}:" in found["bad segmentation"][k]


@pytest.mark.parametrize("text", ["", "[1, 2]", "{}", '{"images": [], "annotations": 3}'])
def test_other_contents(tree, text):
    tree.save(text=text)
    with pytest.raises(DatasetError, match="instances_val2017.json"):
        open_dataset(f"coco:{tree.root}", "val")


def test_truncated_json(tree):
    whole = json.dumps(tree.content)
    tree.save(text=whole[: len(whole) // 2])
    with pytest.raises(
        DatasetError, match="instances_val2017.json: truncated or no json"
    ) as caught:
        open_dataset(f"coco:{tree.root}", "val")
    assert caught.value.counts == {"unreadable json": 1}


def test_missing_files(tree):
    tree.save()
    with pytest.raises(DatasetError, match="annotations/instances_train2017.json"):
        open_dataset(f"coco:{tree.root}", "train")
    (tree.root / "val2017").rename(tree.root / "elsewhere")
    found = problems_of_saved(tree)
    assert len(found["missing image"]) == 4


def problems_of_saved(tree) -> dict[str, list[str]]:
    with pytest.raises(DatasetError) as caught:
        open_dataset(f"coco:{tree.root}", "val")
    found: dict[str, list[str]] = {}
    for problem in caught.value.problems:
        found.setdefault(problem.kind, []).append(problem.path)
    return found


def test_no_usable_images(tree):
    tree.content["annotations"] = []
    with pytest.raises(DatasetError, match="no images found"):
        open_dataset(tree.save("train"), "train")
    assert open_dataset(tree.save(), "val").coco_truth()["annotations"] == []


def test_the_two_boxes_without_height_of_the_released_file_are_left_out(tree):
    tree.content["images"][0]["id"] = 200365
    tree.pixels[200365] = tree.pixels.pop(9)
    flat = [[2, 1.5, 2, 1.5, 3, 1.5, 3, 1.5]]
    tree.entry(11).update(image_id=200365, segmentation=flat, bbox=[2, 1.5, 1, 0], area=0)
    tree.entry(13)["image_id"] = 200365
    dataset = open_dataset(tree.save(), "val")
    assert dataset[3][1]["labels"].tolist() == [2]


def test_image_that_was_cut_short_is_named_when_it_is_read(tree):
    spec = tree.save()
    file = tree.root / "val2017/b.png"
    file.write_bytes(file.read_bytes()[:-40])
    dataset = open_dataset(spec, "val")
    with pytest.raises(DatasetError, match="b.png"):
        dataset[2]


def test_second_opening_reads_no_image(tree, monkeypatch):
    spec = tree.save()
    open_dataset(spec, "val")
    monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("an image was opened"))
    assert len(open_dataset(spec, "val")) == 4


def test_opening_decodes_nothing(tree, monkeypatch):
    spec = tree.save()
    monkeypatch.setattr(mask_api, "decode", lambda *a: pytest.fail("a mask was decoded"))
    dataset = open_dataset(spec, "val")
    dataset.coco_truth()
    with pytest.raises(pytest.fail.Exception):
        dataset[0]


def test_without_pycocotools(tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.delitem(sys.modules, "pycocotools.mask", raising=False)
    with pytest.raises(DatasetError, match=r"pip install 'segkern\[coco\]'"):
        open_dataset(tree.save(), "val")


def test_turned_photograph(tree):
    spec = tree.save()
    turned = Image.fromarray(np.rot90(tree.pixels[9]).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # To be shown a quarter turned to the right.
    turned.save(tree.root / "val2017/b.png", exif=exif)
    image = open_dataset(spec, "val")[2][0]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), tree.pixels[9])


def test_sum_of_counts():
    rng = np.random.default_rng(0)
    for size in [(1, 1), (5, 6), (40, 70), (900, 1300)]:
        for share in (0.0, 0.02, 0.5, 1.0):
            rle = mask_api.encode(np.asfortranarray(rng.random(size) < share, dtype=np.uint8))
            assert counts_total(rle["counts"]) == size[0] * size[1]
    assert counts_total(b";32NO012ON3") == 30
    for damaged in (b"", b"0n", b"Tkm2X6h", b"\xff0", b"~~~~~~~~~~~0", b"0N"):
        assert counts_total(damaged) is None
