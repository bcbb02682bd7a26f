"""Runs in this process: what they leave behind, and how they stop."""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import TINY

from segkern.engine import files
from segkern.engine.callbacks import read_rows
from segkern.engine.checkpoint import read_state
from segkern.engine.errors import EngineError, RunStopped
from segkern.engine.train import fit
from segkern.models import create_model, read_card


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]


def same_weights(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_leaves_what_is_promised(tmp_path: Path, device: str) -> None:
    lines: list[str] = []
    run = tmp_path / "run"
    result = fit("enet", run, device=device, show=lines.append, **TINY)
    assert (result.reason, result.epochs, result.steps) == ("epochs", 2, 6)
    names = {p.name for p in run.iterdir()}
    assert names == {
        "config.json", "metrics.csv", "last.ckpt", "best.safetensors", "log.txt", "tensorboard"
    }  # fmt: skip
    rows = read_rows(run / "metrics.csv")
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 3), (2, 6)]
    assert all(0 <= row["val_miou"] <= 1 and row["train_loss"] > 0 for row in rows)
    card = read_card(run / "best.safetensors")
    assert card["config"]["name"] == "enet" and card["config"]["num_classes"] == 11
    assert card["miou"] == pytest.approx(result.best_score)
    assert card["protocol"]["images"] == 5 and card["protocol"]["absent_classes"] == "skip"
    assert len(card["palette"]) == len(card["class_names"]) == 11 and card["input"] == "unit"
    rebuilt = create_model(weights=run / "best.safetensors", **card["config"])
    assert set(rebuilt.state_dict()) == set(load_file(run / "best.safetensors"))
    assert any(p.name.startswith("events") for p in (run / "tensorboard").rglob("*"))
    assert any("epoch 2" in line for line in lines)


def test_equal_settings_give_equal_bits(tmp_path: Path, trained: Path) -> None:
    fit("enet", tmp_path / "again", device="cpu", **TINY)
    assert same_weights(trained, tmp_path / "again")
    assert (trained / "metrics.csv").read_text() == (tmp_path / "again" / "metrics.csv").read_text()
    fit("enet", tmp_path / "other", device="cpu", **{**TINY, "seed": 1})
    assert not same_weights(trained, tmp_path / "other")


def test_stopping_inside_an_epoch_changes_nothing(tmp_path: Path, trained: Path) -> None:
    run = tmp_path / "run"
    result = fit("enet", run, device="cpu", max_steps=4, **TINY)
    assert (result.reason, result.epochs, result.steps) == ("max_steps", 1, 4)
    assert len(read_rows(run / "metrics.csv")) == 2, "the part of the second epoch has a row"
    assert read_state(run / "last.ckpt").batch == 1
    fit("enet", run, resume=True, max_steps=6)
    assert same_weights(trained, run)
    assert (trained / "metrics.csv").read_text() == (run / "metrics.csv").read_text()


def test_a_longer_run_can_follow(tmp_path: Path, trained: Path) -> None:
    run = tmp_path / "run"
    fit("enet", run, device="cpu", **{**TINY, "epochs": 1})
    assert fit("enet", run, resume=True, epochs=2).epochs == 2
    assert same_weights(trained, run)
    assert fit(None, run, resume=True).reason == "complete"


def test_max_time_finishes_step_validates_and_saves(tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = fit("enet", run, device="cpu", max_time=1e-3, **TINY)
    assert (result.reason, result.steps) == ("max_time", 1)
    assert (run / "best.safetensors").exists() and read_state(run / "last.ckpt").step == 1
    assert len(read_rows(run / "metrics.csv")) == 1


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision(tmp_path: Path, device: str, precision: str) -> None:
    if device == "cpu" and precision == "16-mixed":
        with pytest.raises(EngineError, match="needs a GPU"):
            fit("enet", tmp_path / "run", device=device, precision=precision, **TINY)
        return
    result = fit("enet", tmp_path / "run", device=device, precision=precision, max_steps=2, **TINY)
    assert result.steps == 2


@pytest.mark.parametrize("name", ["enet_encoder", "segnet_basic"])
def test_other_networks_and_recipes(tmp_path: Path, name: str) -> None:
    given = {
        **TINY,
        "class_weights": "median_frequency",
        "limit_train": 4,
        "flip": True,
        "crop": (32, 48),
    }
    result = fit(name, tmp_path / "run", device="cpu", max_steps=1, **given)
    assert result.steps == 1 and (tmp_path / "run" / "best.safetensors").exists()


def test_second_stage_starts_from_the_encoder(tmp_path: Path) -> None:
    given = {**TINY, "limit_train": 4, "epochs": 1}
    fit("enet_encoder", tmp_path / "one", device="cpu", **given)
    encoder = tmp_path / "one" / "best.safetensors"
    fit("enet", tmp_path / "two", device="cpu", weights_backbone=str(encoder), **given)
    with pytest.raises(EngineError, match="enet"):
        fit("enet", tmp_path / "three", device="cpu", weights_backbone=str(tmp_path), **given)
    assert not (tmp_path / "three").exists()


def test_an_existing_run_is_never_overwritten_by_itself(trained: Path) -> None:
    before = {p: p.read_bytes() for p in trained.iterdir() if p.is_file()}
    with pytest.raises(EngineError, match="already holds a run"):
        fit("enet", trained, device="cpu", **TINY)
    assert {p: p.read_bytes() for p in trained.iterdir() if p.is_file()} == before


def test_overwrite_replaces_a_run_and_nothing_else(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit("enet", run, device="cpu", max_steps=1, **TINY)
    (run / "notes.txt").write_text("mine")
    fit("enet", run, device="cpu", overwrite=True, max_steps=2, **TINY)
    assert read_state(run / "last.ckpt").step == 2 and (run / "notes.txt").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(EngineError, match="holds no run"):
        fit("enet", other, device="cpu", overwrite=True, **TINY)


def test_resume_says_what_is_wrong(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(EngineError, match="there is no run"):
        fit("enet", tmp_path / "none", resume=True)
    with pytest.raises(EngineError, match=r"lr: the run has 0.0005, got 0.1"):
        fit("enet", trained, resume=True, lr=0.1)
    with pytest.raises(EngineError, match="not both"):
        fit("enet", trained, resume=True, overwrite=True)
    half = tmp_path / "half"
    half.mkdir()
    (half / "config.json").write_text((trained / "config.json").read_text())
    with pytest.raises(EngineError, match="no checkpoint"):
        fit("enet", half, resume=True)


def test_nothing_is_left_where_the_settings_are_wrong(tmp_path: Path) -> None:
    for given, match in (
        ({"batch_size": 64}, "at most the number of training samples"),
        ({"model_options": {"depth": 3}}, "depth"),
        ({"weights": str(tmp_path / "none.safetensors")}, "none.safetensors"),
    ):
        with pytest.raises(EngineError, match=match):
            fit("enet", tmp_path / "run", device="cpu", **{**TINY, **given})
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, device: str) -> None:
    run = tmp_path / "run"
    fit("enet", run, device=device, **{**TINY, "epochs": 1})
    good = (run / "last.ckpt").read_bytes(), (run / "best.safetensors").read_bytes()
    broken = torch.load(run / "last.ckpt", weights_only=True, map_location="cpu")
    # As a bad sample or an overflow would: the weights become nan in the second epoch.
    broken["optimizer_states"][0]["param_groups"][0]["lr"] = float("nan")
    broken["lr_schedulers"][0]["base_lrs"] = [float("nan")] * 3
    torch.save(broken, run / "last.ckpt")
    stored = (run / "last.ckpt").read_bytes()
    with pytest.raises(
        RunStopped, match=r"loss became nan at step .*last good checkpoint, of epoch 1"
    ) as error:
        fit("enet", run, resume=True, epochs=3)
    assert error.value.exit_code == 1
    assert (run / "last.ckpt").read_bytes() == stored
    assert (run / "best.safetensors").read_bytes() == good[1]
    assert len(read_rows(run / "metrics.csv")) == 1


def test_a_full_disk_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    fit("enet", run, device="cpu", **{**TINY, "epochs": 1})
    good = (run / "last.ckpt").read_bytes()
    real = files.write_atomic

    def full(path: Path, data: bytes) -> None:
        if Path(path).name == "last.ckpt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, data)

    monkeypatch.setattr("segkern.engine.checkpoint.write_atomic", full)
    with pytest.raises(RunStopped, match=r"disk is full.*last good checkpoint is intact"):
        fit("enet", run, resume=True, epochs=2)
    assert (run / "last.ckpt").read_bytes() == good
    monkeypatch.undo()
    assert fit("enet", run, resume=True, epochs=2).epochs == 2


def test_a_disk_that_really_is_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=9m", "none", disk], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        # The first checkpoint (5 MB) and the weights (1.5 MB) fit, a second one beside them does
        # not.
        with pytest.raises(RunStopped, match="disk is full"):
            fit("enet", disk / "run", device="cpu", **TINY)
        assert read_state(disk / "run" / "last.ckpt").epoch == 1
        assert not list((disk / "run").glob(".*"))
        subprocess.run(["mount", "-o", "remount,size=40m", disk], check=True, capture_output=True)
        assert fit("enet", disk / "run", resume=True).epochs == 2
    finally:
        subprocess.run(["umount", "-l", disk], check=True, capture_output=True)


def test_config_says_how_the_run_was_made(trained: Path) -> None:
    stored = json.loads((trained / "config.json").read_text())
    assert stored["settings"]["recipe"]["lr"] == 5e-4 and stored["settings"]["data"] == TINY["data"]


def test_processes_started_outside_must_agree_with_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EngineError, match="2 processes were started"):
        fit("enet", tmp_path / "run", device="cpu", **TINY)
    assert not (tmp_path / "run").exists()


def test_freed_memory_is_kept_where_the_library_allows() -> None:
    from segkern.engine.memory import keep_freed_memory

    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")


def test_camvid_is_trained_at_the_size_asked_for(tmp_path: Path) -> None:
    camvid = Path(__file__).resolve().parents[3] / "shared" / "camvid"
    if not (camvid / "train").is_dir():
        pytest.skip("no CamVid data beside the project (../shared/camvid)")
    given = {**TINY, "data": f"camvid:{camvid}", "limit_train": 4, "class_weights": "enet"}
    fit("enet", tmp_path / "run", device="cpu", size=(45, 61), max_steps=1, **given)
    card = read_card(tmp_path / "run" / "best.safetensors")
    assert card["data"] == "camvid" and "CC BY-NC 4.0" in card["licence"]
    assert card["protocol"]["size"] == [45, 61]
    assert str(camvid.parent) not in json.dumps(card), "a card says nothing of the machine"
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert stored["size"] == [45, 61]
