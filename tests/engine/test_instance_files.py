"""What `predict` writes of instances and panoptic segments, and how they are drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_instances import TINY, TinyInstances, TinyPanoptic, key, registered
from torch.nn.functional import max_pool2d

from segkern.data import open_dataset
from segkern.engine import instances as instances_module
from segkern.engine.errors import EngineError
from segkern.engine.evaluate import evaluate
from segkern.engine.inference import Protocol
from segkern.engine.instance_drawing import Canvas, draw_instances, instance_colour
from segkern.engine.instances import Instances, reduced, whole_mask
from segkern.engine.predict import predict
from segkern.engine.tasks.instance import image_numbers
from segkern.engine.train import fit

pycoco = pytest.importorskip("pycocotools.mask")


@pytest.fixture(scope="module", autouse=True)
def networks() -> Iterator[None]:
    with registered():
        yield


@pytest.fixture(scope="module")
def runs(networks: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each network."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("tiny_instances", "tiny_panoptic"):
        fit(name, folder / name, **{**TINY, "epochs": 1})
    return {path.name: path for path in folder.iterdir()}


def known_image(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """A file of 40 x 60, and the two objects that the networks find in it."""
    array = np.random.default_rng(3).integers(0, 256, (40, 60, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    masks = torch.zeros(2, 40, 60)
    masks[0, 5:20, 10:30] = 0.9
    masks[1, 15:38, 25:50] = 0.6
    answer = {
        "boxes": torch.tensor([[10.0, 5.0, 30.0, 20.0], [25.0, 15.0, 50.0, 38.0]]),
        "labels": torch.tensor([3, 1]), "scores": torch.tensor([0.9, 0.3]),
        "masks": masks[:, None],
    }  # fmt: skip
    image = torch.from_numpy(array.transpose(2, 0, 1).copy()) / 255
    monkeypatch.setattr(TinyInstances, "answers", {key(image): answer})
    return answer


def test_results_are_coco_s(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = known_image(tmp_path / "in" / "000042.png", monkeypatch)
    (tmp_path / "in" / "7.png").write_bytes(b"no image")
    run, out = runs["tiny_instances"], tmp_path / "out"
    result = predict(run, [tmp_path / "in"], out, score=0.2, json=True, device="cpu")
    assert list(result.done.values()) == ["000042"] and len(result.failed) == 1
    found = json.loads((out / "instances.json").read_text())
    categories = open_dataset("synthetic-instances", "val").category_ids
    assert [entry["category_id"] for entry in found] == [categories[2], categories[0]]
    assert all((e["image_id"], e["file_name"]) == (42, "000042.png") for e in found)
    assert found[0]["bbox"] == [10, 5, 20, 15] and found[1]["score"] == pytest.approx(0.3)
    for entry, soft in zip(found, answer["masks"], strict=True):
        assert np.array_equal(pycoco.decode(entry["segmentation"]), soft[0].numpy() >= 0.5)
    overlay = np.array(Image.open(out / "overlays" / "000042.png"))
    photo = np.array(Image.open(tmp_path / "in" / "000042.png"))
    changed = (overlay != photo).any(-1)
    assert overlay.shape == photo.shape and changed[37, 49] and not changed[39].any()
    # Only the object of the better score by default, and no list.
    predict(run, [tmp_path / "in" / "000042.png"], tmp_path / "half", device="cpu")
    overlay = np.array(Image.open(tmp_path / "half" / "overlays" / "000042.png"))
    changed = (overlay != photo).any(-1)
    assert changed[10, 20] and not changed[21:].any()
    assert not (tmp_path / "half" / "instances.json").exists()


def test_panoptic_files_are_coco_s(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = known_image(tmp_path / "in" / "a.png", monkeypatch)
    ids = torch.full((40, 60), 300)
    ids[5:20, 10:30] = 70_000
    ids[30:] = 0
    segments = [
        {"id": 70_000, "label": 3, "isthing": True, "score": 0.9, "area": 300},
        {"id": 300, "label": 2, "isthing": False, "score": None, "area": 1500},
    ]
    panoptic = {**answer, "panoptic": ids, "segments": segments}
    monkeypatch.setattr(TinyPanoptic, "result", lambda self, one, image: panoptic)
    out = tmp_path / "out"
    predict(runs["tiny_panoptic"], [tmp_path / "in"], out, json=True, device="cpu")
    stored = json.loads((out / "panoptic.json").read_text())
    rgb = np.array(Image.open(out / "panoptic" / "a.png")).astype(np.int64)
    assert np.array_equal(rgb @ [1, 256, 65536], ids.numpy())
    dataset = open_dataset("synthetic-panoptic", "val")
    assert stored["images"] == [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}]
    assert stored["annotations"] == [
        {
            "image_id": 1,
            "file_name": "a.png",
            "segments_info": [
                {"id": 70_000, "category_id": dataset.category_ids[2], "iscrowd": 0,
                 "area": 300, "bbox": [10, 5, 20, 15]},
                {"id": 300, "category_id": dataset.stuff_ids[1], "iscrowd": 0,
                 "area": 1500, "bbox": [0, 0, 60, 30]},
            ],
        }
    ]  # fmt: skip
    assert [(c["id"], c["isthing"]) for c in stored["categories"]] == [
        (c["id"], int(c["isthing"])) for c in dataset.categories
    ]
    assert len(json.loads((out / "instances.json").read_text())) == 1
    assert (out / "legend.png").exists() and (out / "overlays" / "a.png").exists()


@pytest.mark.parametrize("name", ["tiny_instances", "tiny_panoptic"])
def test_large_images_are_reduced_for_the_network_alone(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(instances_module, "WORKING_PIXELS", 40 * 60)
    seen = []
    forward = TinyInstances.forward

    def spied(self: TinyInstances, images: list[torch.Tensor], targets: object = None) -> object:
        seen.extend(tuple(image.shape[1:]) for image in images)
        return forward(self, images, targets)

    monkeypatch.setattr(TinyInstances, "forward", spied)
    noise = np.random.default_rng(0).integers(0, 256, (203, 307, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    predict(runs[name], [tmp_path / "large.png"], tmp_path / "out", score=0, json=True)
    assert len(seen) == 1 and seen[0][0] * seen[0][1] <= 2400
    with Image.open(tmp_path / "out" / "overlays" / "large.png") as overlay:
        assert overlay.size == (307, 203)
    for entry in json.loads((tmp_path / "out" / "instances.json").read_text()):
        assert entry["segmentation"]["size"] == [203, 307]
        assert entry["bbox"] == pytest.approx([0, 0, 307, 203])


def test_enlarged_masks_are_interpolated_bilinearly() -> None:
    generator = torch.Generator().manual_seed(0)
    soft = torch.zeros(1, 1, 30, 44)
    soft[..., 4:20, 0:31] = torch.rand(16, 31, generator=generator)
    result = {
        "boxes": torch.tensor([[0.0, 4.0, 31.0, 20.0]]), "labels": torch.ones(1).long(),
        "scores": torch.ones(1), "masks": soft,
    }  # fmt: skip
    for size in ((95, 131), (30, 44), (600, 60)):
        instance = Instances(result, (30, 44), size)[0]
        expected = torch.nn.functional.interpolate(soft.double(), size, mode="bilinear")[0, 0]
        unsure = (expected - 0.5).abs() < 1e-5
        mask = torch.from_numpy(whole_mask(instance.region(), size))
        assert torch.equal(mask | unsure, (expected >= 0.5) | unsure)
        assert instance.box == pytest.approx(
            (0, 4 * size[0] / 30, 31 * size[1] / 44, 20 * size[0] / 30)
        )


def test_masks_of_nothing_and_lists_of_nothing() -> None:
    result = {
        "boxes": torch.zeros(1, 4), "labels": torch.ones(1).long(), "scores": torch.ones(1),
        "masks": torch.zeros(1, 8, 9, dtype=torch.bool),
    }  # fmt: skip
    instances = Instances(result, (8, 9), (16, 18))
    assert not whole_mask(instances[0].region(), (16, 18)).any()
    photo = np.zeros((16, 18, 3), np.uint8)
    assert draw_instances(photo, instances, ["x"]).shape == photo.shape
    none = {name: value[:0] for name, value in result.items()}
    assert np.array_equal(draw_instances(photo, Instances(none, (8, 9), (16, 18)), []), photo)


def test_outlines_lie_on_the_rim() -> None:
    mask = np.random.default_rng(1).random((40, 50)) < 0.97
    canvas = Canvas(np.full((60, 70, 3), 100, np.uint8))
    for stroke in (1, 2, 5):
        canvas.stroke = stroke
        canvas.pixels[:] = 100
        canvas.fill(8, 9, mask, (200, 0, 50))
        outside = torch.from_numpy(~np.pad(mask, stroke))[None, None].float()
        inner = max_pool2d(outside, 2 * stroke + 1, 1)[0, 0].numpy() == 0
        part = canvas.pixels[8:48, 9:59]
        assert (part[mask & ~inner] == (200, 0, 50)).all()
        assert (part[inner] == (145, 55, 78)).all() and (part[~mask] == 100).all()
        assert (canvas.pixels[:8] == 100).all()


def test_colours_of_objects_are_their_own() -> None:
    colours = [instance_colour(number) for number in range(60)]
    assert colours == [instance_colour(number) for number in range(60)]
    distances = [
        np.abs(np.subtract(colours[i], colours[i + 1])).sum() for i in range(len(colours) - 1)
    ]
    assert len(set(colours)) == 60 and min(distances) > 100


def test_numbers_of_images() -> None:
    numbers = image_numbers([Path("a/000139.jpg"), Path("5.png")])
    assert list(numbers.values()) == [139, 5]
    for names in (("a.jpg", "5.png"), ("5.jpg", "05.png"), ("²", "1")):
        assert list(image_numbers([Path(name) for name in names]).values()) == [1, 2]


def test_reduced_images_keep_their_shape() -> None:
    image = np.zeros((400, 800, 3), np.uint8)
    assert reduced(image, 320_000) is image
    assert reduced(image, 20_000).shape == (100, 200, 3)
    assert reduced(np.zeros((1, 9000, 3), np.uint8), 100).shape[0] == 1


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"tta": True}, "tta is for networks of classes of pixels"),
        ({"probs": True}, "no probabilities"),
        ({"protocol": Protocol((0.5, 1.0))}, "only scores of pixels"),
        ({"protocol": Protocol(window=(32, 32))}, "only scores of pixels"),
        ({"score": 1.5}, "score must be between 0 and 1"),
        ({"output_stride": 8}, "no option output_stride"),
    ],
)
def test_what_means_nothing_is_refused(
    runs: dict[str, Path], tmp_path: Path, given: dict, match: str
) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(EngineError, match=match):
        predict(runs["tiny_instances"], [tmp_path / "a.png"], tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_wrong_data_for_a_checkpoint_is_named(runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs["tiny_instances"]
    with pytest.raises(EngineError, match=r"tiny_instances finds instances.*coco:DIR"):
        evaluate(run, "synthetic:48x64")
    with pytest.raises(EngineError, match="absent is for networks of classes"):
        evaluate(run, absent="zero")
    with pytest.raises(EngineError, match="size is for networks of classes"):
        evaluate(run, size=(48, 64))
