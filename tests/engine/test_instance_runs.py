"""Runs of networks of instances and of panoptic segments: training, resuming, measuring."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_instances import RECIPE, TINY, TinyInstances, key, registered

from segkern.data import open_dataset
from segkern.engine.callbacks import read_rows
from segkern.engine.checkpoint import read_state
from segkern.engine.errors import EngineError
from segkern.engine.evaluate import evaluate
from segkern.engine.instances import detect
from segkern.engine.loading import load_trained
from segkern.engine.report import write_report
from segkern.engine.train import fit
from segkern.metrics import CocoEvaluation, PanopticQuality
from segkern.models import get_entry, read_card

NAMES = ("tiny_instances", "tiny_panoptic")
SCORES = {"tiny_instances": "mask_ap", "tiny_panoptic": "pq"}


@pytest.fixture(scope="module", autouse=True)
def networks() -> Iterator[None]:
    with registered():
        yield


@pytest.fixture(scope="module")
def runs(networks: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each network."""
    folder = tmp_path_factory.mktemp("runs")
    for name in NAMES:
        fit(name, folder / name, **TINY)
    return {name: folder / name for name in NAMES}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]


def same_weights(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_leaves_what_is_promised(runs: dict[str, Path], name: str) -> None:
    run = runs[name]
    assert {p.name for p in run.iterdir()} == {
        "config.json", "metrics.csv", "last.ckpt", "best.safetensors", "log.txt", "tensorboard"
    }  # fmt: skip
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert settings["data"] == f"synthetic-{get_entry(name).task}".replace("ance", "ances")
    rows = read_rows(run / "metrics.csv")
    score = f"val_{SCORES[name]}"
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 2), (2, 4)]
    assert all(0 <= row[score] <= 1 and row["train_loss"] > 0 for row in rows)
    state = read_state(run / "last.ckpt")
    assert state.best_score == max(row[score] for row in rows)
    card = read_card(run / "best.safetensors")
    assert card["task"] == get_entry(name).task and card["config"]["num_classes"] == 5
    assert card[SCORES[name]] == pytest.approx(state.best_score)
    assert card["class_names"] == ["ball", "crate", "cone", "ring"]
    assert len(card["category_ids"]) == len(card["palette"]) == 4
    if name == "tiny_panoptic":
        assert card["config"]["num_stuff"] == len(card["stuff_ids"]) == 4


def test_every_loss_and_the_warm_up_are_logged(tmp_path: Path) -> None:
    given = {**TINY, "limit_train": 20, "warmup_steps": 4, "warmup_factor": 0.25}
    fit("tiny_instances", tmp_path / "run", **{**given, "epochs": 1})
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    parts = [events.Scalars(f"train/loss_{part}")[-1].value for part in ("class", "mask")]
    assert parts[0] == pytest.approx(3 * parts[1], rel=1e-5)
    row = read_rows(tmp_path / "run" / "metrics.csv")[0]
    assert row["lr"] == pytest.approx(0.1 * 0.05), "a milestone after half of ten steps"


def test_gradients_are_clipped(tmp_path: Path) -> None:
    for run, norm in (("free", "none"), ("tight", 1e-9)):
        given = {**TINY, "clip_norm": norm, "warmup_steps": 0, "max_steps": 1}
        fit("tiny_instances", tmp_path / run, **given)
    free, tight = weights(tmp_path / "free"), weights(tmp_path / "tight")
    fit("tiny_instances", tmp_path / "still", **{**TINY, "lr": 1e-30, "max_steps": 1})
    start = weights(tmp_path / "still")
    key = "network.head.weight"
    assert not torch.allclose(free[key], start[key], atol=1e-5)
    assert torch.allclose(tight[key], start[key], atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_stopping_and_resuming_changes_nothing(
    tmp_path: Path, runs: dict[str, Path], name: str
) -> None:
    run = tmp_path / "run"
    # The rate follows the length of the run, so the length is the same.
    result = fit(name, run, **TINY, max_time=1e-3)
    assert (result.reason, result.steps) == ("max_time", 1)
    assert fit(name, run, resume=True).steps == 4
    assert same_weights(runs[name], run)
    assert (runs[name] / "metrics.csv").read_text() == (run / "metrics.csv").read_text()
    with pytest.raises(EngineError, match="max_steps: the run has None, got 9"):
        fit(name, run, resume=True, max_steps=9)


def test_evaluation_is_coco_s(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs["tiny_instances"]
    dataset = open_dataset("synthetic-instances:48x64", "val", length=4)
    answers = {}
    for index in range(4):
        image, target = dataset[index]
        soft = 0.7 * target["masks"].roll(1, -1).float() + 0.1
        answers[key(image / 255)] = {
            "boxes": target["boxes"] + 1, "labels": target["labels"], "masks": soft[:, None],
            "scores": torch.linspace(0.9, 0.2, len(soft)),
        }  # fmt: skip
    monkeypatch.setattr(TinyInstances, "answers", answers)
    result = evaluate(
        run, "synthetic-instances:48x64", limit=4, batch_size=3, pictures=2, output=tmp_path,
        device="cpu", score=0.0,
    )  # fmt: skip
    truth = CocoEvaluation(dataset.coco_truth(), dataset.category_ids)
    trained = load_trained(run, "cpu")
    for index in range(4):
        image, target = dataset[index]
        found = detect(trained, [image])
        assert found[0]["masks"].dtype == torch.bool
        truth.update([int(target["image_id"])], found)
    expected = truth.compute()
    assert 0.1 < expected["segm"]["AP"] < 1 and 0.1 < expected["bbox"]["AP"] < 1
    for kind in ("bbox", "segm"):
        for name, value in expected[kind].items():
            got = result[kind][name]
            assert got == pytest.approx(value) if value >= 0 else got is None
    assert result["mask_ap"] == result["segm"]["AP"] and len(result["per_class"]) == 4
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored == json.loads(json.dumps(result)) and stored["images"] == 4
    assert [p.name for p in sorted((tmp_path / "pictures").iterdir())] == stored["pictures"]
    panel = np.array(Image.open(tmp_path / "pictures" / stored["pictures"][0]))
    assert panel.shape[1] > 3 * 64 and not (tmp_path / "legend.png").exists()


def test_evaluation_of_segments_is_panoptic_quality(runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs["tiny_panoptic"]
    result = evaluate(run, limit=3, batch_size=2, pictures=1, output=tmp_path, device="cpu")
    dataset = open_dataset("synthetic-panoptic", "val", length=3)
    quality = PanopticQuality(dataset.categories)
    trained = load_trained(run, "cpu")
    for index in range(3):
        found = detect(trained, [dataset[index][0]])[0]
        segments = [
            {
                "id": s["id"],
                "category_id": (dataset.category_ids if s["isthing"] else dataset.stuff_ids)[
                    s["label"] - 1
                ],
            }
            for s in found["segments"]
        ]
        quality.update(*dataset.panoptic(index), found["panoptic"], segments)
    expected = quality.compute()
    assert expected["All"]["pq"] > 0
    for part in ("All", "Things", "Stuff"):
        assert result[part] == pytest.approx(expected[part])
    assert (result["pq"], result["pq_stuff"]) == (result["All"]["pq"], result["Stuff"]["pq"])
    assert [row["pq"] for row in result["per_class"]] == [
        expected["per_class"][c["id"]]["pq"] for c in dataset.categories
    ]
    assert (tmp_path / "legend.png").exists() and len(result["pictures"]) == 1


@pytest.mark.parametrize("name", NAMES)
def test_report_shows_the_figures_of_the_task(
    runs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs[name], run)
    evaluate(run, limit=3, output=run / "evaluation")
    text = write_report(run, pictures=1, speed=False).read_text()
    text = re.sub(r"base64,[^\"]*", "", text)
    title = {"tiny_instances": "Mask AP", "tiny_panoptic": "PQ, things"}[name]
    for word in (title, "crate", "polyline", "by validation"):
        assert word in text
    assert "mIoU" not in text and "nan" not in text.lower()


@pytest.mark.parametrize(
    ("name", "given", "match"),
    [
        ("tiny_instances", {"data": "synthetic"}, r"synthetic does not have.*coco:DIR"),
        ("tiny_panoptic", {"data": "synthetic-instances"}, r"panoptic segments.*coco-panoptic:DIR"),
        ("enet", {"data": "synthetic-instances"}, r"finds classes of pixels.*camvid:DIR"),
        ("tiny_instances", {"size": (48, 64)}, "its own size"),
        ("tiny_instances", {"scale": (0.5, 2.0)}, "scale means nothing to tiny_instances"),
        ("tiny_instances", {"class_weights": "enet"}, "class_weights means nothing"),
        ("tiny_instances", {"model_options": {"crf": True}}, "a CRF refines labels"),
        ("tiny_instances", {"absent": "zero"}, "one of mIoU"),
        ("tiny_instances", {"loss": "cross_entropy"}, "loss must be 'network'"),
        ("enet", {"loss": "network"}, "loss must be 'cross_entropy'"),
        ("enet", {"aspect_groups": True}, "aspect_groups means nothing to enet"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, name: str, given: dict, match: str) -> None:
    with pytest.raises(EngineError, match=match):
        fit(name, tmp_path / "run", **{**TINY, **given})
    assert not (tmp_path / "run").exists()


def test_an_instance_network_takes_panoptic_data_too(tmp_path: Path) -> None:
    given = {**TINY, "data": "synthetic-panoptic:48x64", "max_steps": 1}
    assert fit("tiny_instances", tmp_path / "run", **given).steps == 1


def test_runs_of_earlier_versions_go_on(runs: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit("enet", run, data="synthetic:48x64", limit_train=4, limit_val=2, batch_size=4, epochs=1,
        class_weights="none", device="cpu")  # fmt: skip
    # As they were before there were other tasks.
    config = json.loads((run / "config.json").read_text())
    recipe = config["settings"]["recipe"]
    for name in ("milestones", "warmup_steps", "warmup_factor", "clip_norm", "jitter",
                 "aspect_groups"):  # fmt: skip
        del recipe[name]
    (run / "config.json").write_text(json.dumps(config))
    stored = torch.load(run / "last.ckpt", weights_only=True)
    best = stored["segkern"]["best_miou"] = stored["segkern"].pop("best_score")
    torch.save(stored, run / "last.ckpt")
    assert read_state(run / "last.ckpt").best_score == best
    with pytest.raises(EngineError, match="clip_norm: the run has None, got 1.0"):
        fit("enet", run, resume=True, clip_norm=1.0)
    result = fit("enet", run, resume=True, epochs=2)
    assert result.epochs == 2 and result.best_score >= best
    with open(run / "metrics.csv", newline="") as file:
        assert next(csv.reader(file)) == [
            "epoch", "step", "lr", "train_loss", "val_loss", "val_miou", "val_pixel_accuracy",
            "val_mean_accuracy", "val_fw_iou",
        ]  # fmt: skip


def test_the_recipe_is_the_run_s(runs: dict[str, Path]) -> None:
    recipe = json.loads((runs["tiny_instances"] / "config.json").read_text())["settings"]["recipe"]
    assert recipe["milestones"] == list(RECIPE.milestones) and recipe["clip_norm"] == 5.0
