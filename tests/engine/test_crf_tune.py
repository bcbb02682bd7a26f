"""The search for a dense CRF's settings: what it tries, its figures, going on, refusals."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segkern.data import DatasetError, open_dataset
from segkern.engine import crf_tune
from segkern.engine.crf_search import SPACES, Point, Space, by_widths, parse_range
from segkern.engine.crf_settings import CrfSettings, energies_of, find_settings
from segkern.engine.crf_tune import tune
from segkern.engine.errors import EngineError
from segkern.metrics import SegmentationMetrics

SMALL = Space((20.0, 40.0), (5.0, 15.0), (0.0, 3.0, 4.0))
CLASSES = 11


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Drawn scenes with probabilities that are wrong at a third of the pixels."""
    root = tmp_path_factory.mktemp("tune")
    folders = root / "images", root / "probs", root / "labels"
    rng = np.random.default_rng(0)
    for folder in folders:
        folder.mkdir()
    for number, size in enumerate(((24, 40), (30, 32), (24, 40))):
        image, mask = open_dataset("synthetic", "val", size=size, length=3)[number]
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folders[0] / f"{number}.png")
        Image.fromarray(mask.numpy().astype(np.uint8)).save(folders[2] / f"{number}.png")
        likely = np.where(mask.numpy() == 255, 0, mask.numpy())
        likely = np.where(rng.random(size) < 1 / 3, rng.integers(0, CLASSES, size), likely)
        probs = np.full((CLASSES, *size), 0.05, np.float32)
        np.put_along_axis(probs, likely[None], 0.5, 0)
        np.savez(folders[1] / f"{number}.npz", probs=probs)
    Image.new("RGB", (5, 5)).save(folders[0] / "more.png")  # not used: no probabilities
    return folders


def trials(run: Path) -> list[dict[str, str]]:
    with open(run / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_trial_is_the_dense_crf_measured(
    data: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    best = tune(*data, tmp_path, SMALL, rounds=0, iterations=4, device="cpu")
    rows = trials(tmp_path)
    assert len(rows) == 12 and len({tuple(row.values())[1:6] for row in rows}) == 12
    for row in rows[:2] + rows[-1:]:
        numbers = {name: float(row[name]) for name in Point._fields}
        settings = CrfSettings(**numbers, normalization="after", iterations=4)
        metrics, plain = SegmentationMetrics(CLASSES), SegmentationMetrics(CLASSES)
        for number in range(3):
            image = np.array(Image.open(data[0] / f"{number}.png")).transpose(2, 0, 1)
            truth = torch.from_numpy(np.array(Image.open(data[2] / f"{number}.png"))).long()[None]
            probs = torch.from_numpy(np.load(data[1] / f"{number}.npz")["probs"])[None]
            refined = settings.refine(energies_of(probs), torch.from_numpy(image.copy())[None])
            metrics.update(refined.argmax(1), truth)
            plain.update(probs.argmax(1), truth)
        assert float(row["miou"]) == pytest.approx(metrics.compute()["miou"], abs=1e-3)
        assert best["unary_miou"] == plain.compute()["miou"]
    top = max(rows, key=lambda row: float(row["miou"]))
    assert best["miou"] == float(top["miou"]) > best["unary_miou"]
    assert best["crf"]["bilateral_weight"] == float(top["bilateral_weight"])
    assert json.loads((tmp_path / "best.json").read_text()) == best
    assert find_settings(tmp_path / "best.json").as_dict() == best["crf"]


def test_an_interrupted_search_goes_on_to_the_same_result(
    data: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"rounds": 1, "iterations": 2, "device": "cpu"}
    steps: list[tuple[int, int]] = []
    whole = tune(*data, tmp_path / "a", SMALL, step=lambda *c: steps.append(c), **options)
    assert steps[11] == (12, 12) and steps[-1][0] == steps[-1][1]
    measure, calls = crf_tune._measure, []

    def stopping(*arguments):
        calls.append(len(arguments[0]))
        if len(calls) % 3 == 0:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(crf_tune, "_measure", stopping)
    for _ in range(20):
        try:
            again = tune(*data, tmp_path / "b", SMALL, **options)
            break
        except KeyboardInterrupt:
            assert len(trials(tmp_path / "b")) > 0
    assert len(calls) > 6 and again == whole
    timeless = [
        [{**row, "seconds": None} for row in trials(tmp_path / name)] for name in ("a", "b")
    ]
    assert timeless[0] == timeless[1]
    calls.clear()
    assert tune(*data, tmp_path / "a", SMALL, **options) == whole and not calls


def test_another_search_is_refused(data: tuple[Path, Path, Path], tmp_path: Path) -> None:
    options = {"rounds": 0, "iterations": 1, "device": "cpu"}
    point = Space((20.0,), (5.0,), (3.0,))
    tune(*data, tmp_path / "r", point, **options)
    before = (tmp_path / "r" / "trials.csv").read_bytes()
    copied = tmp_path / "probs"
    shutil.copytree(data[1], copied)
    tune(data[0], copied, data[2], tmp_path / "r", point, **options)  # the same data elsewhere
    probs = np.load(copied / "0.npz")["probs"]
    np.savez(copied / "0.npz", probs=probs[::-1])
    for message, folder, space, more in (
        ("space differ", data[1], SMALL, {}),
        ("iterations differ", data[1], point, {"iterations": 2}),
        ("normalization differ", data[1], point, {"normalization": "symmetric"}),
        ("images, data_sha256 differ", data[1], point, {"limit": 2}),
        ("data_sha256 differ", copied, point, {}),
    ):
        with pytest.raises(EngineError, match=message):
            tune(data[0], folder, data[2], tmp_path / "r", space, **{**options, **more})
    assert (tmp_path / "r" / "trials.csv").read_bytes() == before
    tune(*data, tmp_path / "r", SMALL, overwrite=True, **options)
    assert len(trials(tmp_path / "r")) == 12
    (tmp_path / "r" / "search.json").unlink()
    with pytest.raises(EngineError, match="not of a search"):
        tune(*data, tmp_path / "r", point, **options)


def test_every_bad_file_is_named(data: tuple[Path, Path, Path], tmp_path: Path) -> None:
    images, probs, labels = (tmp_path / f.name for f in data)
    for source, target in zip(data, (images, probs, labels)):
        shutil.copytree(source, target)
    shutil.copy(probs / "0.npz", probs / "alone.npz")
    with pytest.raises(DatasetError) as caught:
        tune(images, probs, labels, tmp_path / "r", SMALL, device="cpu")
    assert "without image" in str(caught.value) and "without labels" in str(caught.value)
    (probs / "alone.npz").unlink()
    Image.fromarray(np.full((24, 40), 200, np.uint8)).save(labels / "0.png")
    np.savez(probs / "1.npz", probs=np.full((3, 30, 32), 1 / 3))
    Image.new("RGB", (9, 9)).save(images / "2.png")
    with pytest.raises(DatasetError) as caught:
        tune(images, probs, labels, tmp_path / "r", SMALL, device="cpu")
    for text in ("labels 200", "3 classes", "image 9x9"):
        assert text in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_grids() -> None:
    grid = SPACES["deeplabv2"].grid()
    assert len(grid) == 8 * 4 * 4 and len(SPACES["deeplabv1"].grid()) == 6 * 8 * 6
    assert {len(group) for group in by_widths(grid, set())} == {4}
    assert len(by_widths(grid, set(grid[:6]))) == 31
    around = SPACES["deeplabv2"].around(Point(30.0, 3.0, 3.0, 6.0, 3.0), 1)
    assert {p.bilateral_sxy for p in around} == {25.0, 30.0, 35.0}
    assert {p.bilateral_weight for p in around} == {5.5, 6.0, 6.5}
    assert {p.gaussian_sxy for p in around} == {3.0}
    low = Space((5.0, 10.0), (1.0, 2.0), (0.0, 1.0)).around(Point(2.5, 1.0, 3.0, 0.0, 3.0), 1)
    assert all(p.bilateral_sxy > 0 and p.bilateral_weight >= 0 for p in low)
    assert {p.bilateral_sxy for p in low} == {2.5, 5.0}


def test_ranges() -> None:
    assert parse_range("x", "3:6") == (3, 4, 5, 6)
    assert parse_range("x", "30:30:100") == (30, 60, 90)
    assert parse_range("x", "0:0.1:0.3") == (0, 0.1, 0.2, 0.3)
    assert parse_range("x", "5,3,3.5") == (3, 3.5, 5) and parse_range("x", "7") == (7,)
    for text in ("", "a", "6:3", "1:0:3", "1:2:3:4", "1,", "-1:3", "0:0.001:9", "1:2,3"):
        with pytest.raises(EngineError, match="x must"):
            parse_range("x", text)
    with pytest.raises(EngineError, match="bilateral_sxy must be positive"):
        Space((0.0, 1.0), (1.0,), (1.0,))
