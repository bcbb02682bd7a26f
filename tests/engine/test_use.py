"""Evaluation, prediction, pictures, report and demo of a trained network."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import TINY

from segkern.data import open_dataset
from segkern.engine.drawing import colour_map, legend, overlay, panel, save_labels
from segkern.engine.errors import EngineError
from segkern.engine.evaluate import evaluate, spread
from segkern.engine.loading import load_trained
from segkern.engine.predict import collect, predict, unique_names
from segkern.engine.report import write_report
from segkern.engine.speed import measure_speed
from segkern.metrics import SegmentationMetrics
from segkern.models import create_model, save_weights

PALETTE = np.array([[10, 20, 30], [200, 100, 0]], dtype=np.uint8)


def write_image(
    path: Path, size: tuple[int, int] = (40, 56), mode: str = "RGB", **options: object
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)
    return path


# Evaluation ---------------------------------------------------------------------------------------


def test_evaluation_agrees_with_the_metrics_by_hand(
    trained: Path, tmp_path: Path, device: str
) -> None:
    result = evaluate(
        trained, device=device, batch_size=2, limit=5, pictures=3, output=tmp_path / "e"
    )
    network = load_trained(trained, "cpu")
    metrics = SegmentationMetrics(11, boundary=True)
    dataset = open_dataset(TINY["data"], "val", length=5)
    for image, target in (dataset[i] for i in range(5)):
        metrics.update(network.predict(image[None]), target[None])
    expected = metrics.compute()
    tolerance = 0 if device == "cpu" else 0.05
    for name in ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou", "boundary_f1"):
        assert result[name] == pytest.approx(expected[name], abs=tolerance), name
    assert [row["iou"] for row in result["per_class"]] == pytest.approx(
        expected["iou"], abs=tolerance
    )
    assert (result["images"], result["pixels"]) == (5, expected["pixels"])


def test_evaluation_names_its_rules_and_leaves_pictures(trained: Path, tmp_path: Path) -> None:
    result = evaluate(trained, limit=5, pictures=3, output=tmp_path, absent="zero")
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert stored["ignore_label"] == 255 and stored["absent_classes"] == "zero"
    assert "count as 0" in stored["absent_rule"] and "0.75 %" in stored["boundary_tolerance"]
    assert np.array(stored["confusion"]).sum() == stored["pixels"]
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [p.name for p in pictures] == stored["pictures"] and len(pictures) == 3
    width, height = Image.open(pictures[0]).size
    assert width > 3 * 64 and height > 48
    (tmp_path / "pictures" / "mine.png").write_bytes(b"not ours")
    evaluate(trained, limit=5, pictures=1, output=tmp_path)
    (tmp_path / "pictures" / "mine.png").unlink()
    assert len(list((tmp_path / "pictures").iterdir())) == 1, (
        "pictures of an earlier evaluation are gone"
    )


def test_evaluation_says_what_is_missing(trained: Path, tmp_path: Path) -> None:
    weights = trained / "best.safetensors"
    bare = tmp_path / "bare.safetensors"
    network = create_model("enet", num_classes=3)
    save_weights(bare, network.state_dict(), {})
    with pytest.raises(EngineError, match="no card"):
        evaluate(bare, "synthetic:48x64")
    card = {
        "config": network.config, "input": "unit", "class_names": ["a", "b", "c"],
        "palette": [[0, 0, 0]] * 3, "data": "folder:leaves",
    }  # fmt: skip
    save_weights(bare, network.state_dict(), {"card": json.dumps(card)})
    with pytest.raises(EngineError, match="trained on folder:leaves"):
        evaluate(bare)
    with pytest.raises(EngineError, match="knows 3 classes.*has 11"):
        evaluate(bare, "synthetic:48x64")
    assert evaluate(weights, "synthetic:48x64", limit=2, boundary=False)["images"] == 2
    with pytest.raises(EngineError, match="no such checkpoint"):
        evaluate(tmp_path / "none")
    with pytest.raises(EngineError, match="no built-in weights 'moon'"):
        evaluate("enet:moon")
    with pytest.raises(EngineError, match="holds no best.safetensors"):
        evaluate(tmp_path)
    with pytest.raises(EngineError, match="device"):
        evaluate(trained, device="tpu")


def test_a_folder_of_mixed_sizes_is_measured_without_padding(trained: Path, tmp_path: Path) -> None:
    counted = 0
    for index, size in enumerate([(40, 56), (48, 64), (40, 56)]):
        write_image(tmp_path / "images" / "val" / f"{index}.png", size)
        mask = np.full(size, 3 + index, np.uint8)
        mask[:8] = 255
        counted += int((mask != 255).sum())
        (tmp_path / "masks" / "val").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "masks" / "val" / f"{index}.png")
    (tmp_path / "classes.txt").write_text("\n".join(load_trained(trained).class_names))
    result = evaluate(
        trained, f"folder:{tmp_path}", batch_size=3, output=tmp_path / "e", pictures=3
    )
    assert (result["images"], result["pixels"], result["size"]) == (3, counted, None)
    assert len(result["pictures"]) == 3
    resized = evaluate(trained, f"folder:{tmp_path}", size=(32, 48), boundary=False)
    assert resized["size"] == [32, 48] and "boundary_f1" not in resized


# Prediction ---------------------------------------------------------------------------------------


def test_prediction_writes_label_map_overlay_and_legend(
    trained: Path, tmp_path: Path, device: str
) -> None:
    image = write_image(tmp_path / "in" / "street.png", (45, 61))
    result = predict(trained, [image], tmp_path / "out", device=device)
    assert result.failed == {} and list(result.done.values()) == ["street"]
    picture = Image.open(tmp_path / "out" / "labels" / "street.png")
    assert picture.mode == "P" and picture.size == (61, 45)
    network = load_trained(trained, device)
    array = torch.from_numpy(np.array(Image.open(image)).transpose(2, 0, 1).copy())
    assert np.array_equal(np.array(picture), network.predict(array[None])[0].numpy())
    assert np.array_equal(
        np.array(picture.convert("RGB")), colour_map(np.array(picture), network.palette)
    )
    assert Image.open(tmp_path / "out" / "overlays" / "street.png").size == (61, 45)
    assert Image.open(tmp_path / "out" / "legend.png").size[1] > 11 * 20


def test_any_kind_of_image_is_read_upright(trained: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "grey.png", mode="L")
    write_image(tmp_path / "alpha.png", mode="RGBA")
    write_image(tmp_path / "palette.png", mode="P")
    write_image(tmp_path / "tiny.png", (1, 1))
    Image.fromarray(np.full((40, 56), 40000, np.uint16)).save(tmp_path / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(tmp_path / "turned.jpg", exif=exif)
    result = predict(trained, [tmp_path], tmp_path / "out")
    assert len(result.done) == 6 and not result.failed
    assert Image.open(tmp_path / "out" / "labels" / "turned.png").size == (40, 56)
    assert Image.open(tmp_path / "out" / "labels" / "tiny.png").size == (1, 1)


def test_bad_images_do_not_stop_the_others(trained: Path, tmp_path: Path) -> None:
    good = write_image(tmp_path / "good.png")
    broken = tmp_path / "broken.png"
    broken.write_bytes(good.read_bytes()[:100])
    result = predict(trained, [broken, tmp_path / "absent.png", good], tmp_path / "out")
    assert list(result.done) == [good] and set(result.failed) == {broken, tmp_path / "absent.png"}
    assert all(result.failed.values())


def test_batches_and_single_images_agree(trained: Path, tmp_path: Path) -> None:
    files = [write_image(tmp_path / f"{i}.png", [(40, 56), (32, 48)][i % 2]) for i in range(5)]
    predict(trained, files, tmp_path / "one", device="cpu", batch_size=1)
    steps: list[tuple[int, int]] = []
    predict(
        trained,
        files,
        tmp_path / "many",
        device="cpu",
        batch_size=3,
        step=lambda d, t: steps.append((d, t)),
    )
    for file in files:
        a, b = (np.array(Image.open(tmp_path / w / "labels" / file.name)) for w in ("one", "many"))
        assert (a == b).mean() > 0.999
    assert steps[-1] == (5, 5)


def test_mirroring_at_test_time_is_symmetric(trained: Path) -> None:
    network = load_trained(trained, "cpu")
    images = torch.randint(0, 256, (1, 3, 48, 64), dtype=torch.uint8)
    upright = network.predict(images, tta=True)
    mirrored = network.predict(images.flip(-1), tta=True).flip(-1)
    assert (upright == mirrored).float().mean() > 0.99


def test_names_never_collide() -> None:
    files = [
        Path(p)
        for p in ("/a/x.png", "/a/x.jpg", "/b/x.png", "/b/y.png", "/c/X.PNG", "/a_x/png.png")
    ]
    names = unique_names(files)
    assert len({name.casefold() for name in names.values()}) == len(files)
    assert names[Path("/b/y.png")] == "y" and names[Path("/a/x.jpg")] == "x_jpg"
    assert names == unique_names(files)


def test_names_never_collide_however_they_are_made() -> None:
    files = [
        Path(p) for p in ("/r/a/x_png.png", "/r/x.png", "/r/a/x.png", "/r/r_x_png.png", "/r_x.png")
    ]
    assert len({name.casefold() for name in unique_names(files).values()}) == len(files)


def test_collect_takes_each_file_once(tmp_path: Path) -> None:
    file = write_image(tmp_path / "d" / "e" / "a.png")
    (tmp_path / "d" / "notes.txt").write_text("no image")
    assert collect([file, tmp_path / "d", tmp_path]) == [file]
    (tmp_path / "empty").mkdir()
    with pytest.raises(EngineError, match="no images in the folder"):
        collect([tmp_path / "empty"])


def test_prediction_does_not_write_over_its_input(trained: Path, tmp_path: Path) -> None:
    file = write_image(tmp_path / "labels" / "a.png")
    before = file.read_bytes()
    with pytest.raises(EngineError, match="could be overwritten"):
        predict(trained, [file], tmp_path)
    assert file.read_bytes() == before


# Drawing ------------------------------------------------------------------------------------------


def test_colours_and_overlay(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [255, 1]])
    assert colour_map(labels, PALETTE)[1, 0].tolist() == [0, 0, 0]
    image = np.full((2, 2, 3), 100, np.uint8)
    mixed = overlay(image, labels, PALETTE, opacity=0.5)
    assert mixed[0, 0].tolist() == [55, 60, 65] and mixed[1, 0].tolist() == [100, 100, 100]
    save_labels(tmp_path / "l.png", labels, PALETTE)
    assert np.array_equal(np.array(Image.open(tmp_path / "l.png")), labels)


def test_legend_and_panel() -> None:
    key = np.array(legend(["sky", "road"], PALETTE))
    assert all((key == colour).all(-1).any() for colour in PALETTE)
    pictures = [
        ("a", np.zeros((300, 400, 3), np.uint8)),
        ("b", np.full((300, 400, 3), 255, np.uint8)),
    ]
    assert panel(pictures).size[0] > 800


def test_spread() -> None:
    assert spread(3, 9) == [0, 3, 6] and spread(5, 2) == [0, 1] and spread(0, 5) == []


# Report, speed, demo ------------------------------------------------------------------------------


class Links(HTMLParser):
    """Collects everything a page would load, and checks that tags close."""

    VOID = {"meta", "img", "line", "circle", "polyline"}

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.pictures = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loaded += [
            v or "" for k, v in attributes if k in ("src", "href", "srcset", "data", "action")
        ]
        self.pictures += tag == "img"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def check_page(page: Path, samples: int) -> str:
    text = page.read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert links.open == [] and links.pictures == 3 * samples
    assert all(link.startswith("data:image/") for link in links.loaded)
    assert not re.search(r"https?://|<script|@import|url\(", text)
    return text


def test_report_is_one_file_with_everything(trained: Path, tmp_path: Path) -> None:
    page = write_report(trained, tmp_path / "deep" / "report.html", pictures=2, speed=True)
    text = check_page(page, samples=2)
    for word in (
        "mIoU",
        "Boundary F1",
        "pedestrian",
        "max unpool",
        "torch",
        "polyline",
        "prefers-color-scheme",
    ):
        assert word in text, word
    assert "nan" not in text.lower().replace("finance", "")
    plain = write_report(trained, tmp_path / "plain.html", pictures=0, speed=False).read_text()
    assert "Not measured" in plain
    with pytest.raises(EngineError, match="not the folder of a run"):
        write_report(tmp_path)


def test_report_does_not_use_figures_of_other_weights(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    evaluate(run, limit=2, output=run / "evaluation")
    lines: list[str] = []
    write_report(run, speed=False, pictures=1, show=lines.append)
    assert lines == [], "the evaluation at hand is used"
    stored = json.loads((run / "evaluation" / "metrics.json").read_text())
    stored["weights_sha256"] = "0" * 64
    (run / "evaluation" / "metrics.json").write_text(json.dumps(stored))
    write_report(run, speed=False, pictures=1, show=lines.append)
    assert lines == ["report: evaluating"]


def test_speed_is_measured_beside_torch(device: str) -> None:
    report = measure_speed(device, (1, 8, 32, 48), seconds=0.2)
    assert len(report.rows) == 8 and all(r.segkern_ms > 0 and r.torch_ms > 0 for r in report.rows)
    assert report.index_bytes["torch"] == 8 and report.index_bytes["segkern, packed"] < 1


def test_demo_does_everything(tmp_path: Path) -> None:
    from segkern.engine.demo import demo

    lines: list[str] = []
    for _ in range(2):  # a second demo replaces the first
        page = demo(
            tmp_path / "out", device="cpu", data="synthetic:48x64", epochs=1, limit_train=16,
            limit_val=4, photos=2, show=lines.append,
        )  # fmt: skip
    assert page == tmp_path / "out" / "report.html"
    check_page(page, samples=4)
    assert len(list((tmp_path / "out" / "predictions" / "labels").iterdir())) == 2
    assert any("mIoU" in line for line in lines)
