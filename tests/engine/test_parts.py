"""Optimiser groups, schedules, settings, atomic files, random-number states, charts."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from segkern.engine import files
from segkern.engine.chart import Line, line_chart
from segkern.engine.errors import EngineError, is_disk_full
from segkern.engine.optim import LRFactor, build_optimizer, parameter_groups
from segkern.engine.settings import TrainSettings, parse_duration, parse_size, resolve, resume
from segkern.engine.state import RunState, capture_rng, restore_rng
from segkern.models import Recipe
from segkern.nn import CRFAsRNN, DenseCRF


def small_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.Conv2d(4, 2, 1, bias=False)
    )


def test_groups_follow_caffe_conventions() -> None:
    groups = parameter_groups(
        small_network(),
        lr=0.1,
        weight_decay=5e-4,
        bias_lr_mult=2,
        bias_decay_mult=0,
        norm_decay=False,
    )
    table = {g["name"]: (len(g["params"]), g["lr"], g["weight_decay"]) for g in groups}
    assert table == {"weight": (2, 0.1, 5e-4), "bias": (1, 0.2, 0.0), "norm": (3, 0.1, 0.0)}


def test_groups_of_a_crf_have_rates_of_their_own() -> None:
    network = small_network().append(CRFAsRNN(2)).append(DenseCRF(2, learnable=True))
    recipe = Recipe(
        lr=1e-3,
        weight_decay=5e-4,
        crf_weights_lr_mult=10000,
        crf_compatibility_lr_mult=1000,
        batch_size=1,
        epochs=1,
    )
    for optimizer in ("sgd", "adam", "rmsprop"):
        groups = build_optimizer(network, dataclasses.replace(recipe, optimizer=optimizer))
        table = {g["name"]: (len(g["params"]), g["lr"]) for g in groups.param_groups}
        assert table["crf_weights"] == (4, pytest.approx(10.0))
        assert table["crf_compatibility"] == (2, pytest.approx(1.0))
        assert table["weight"] == (2, 1e-3)
        decays = {g["name"]: g["weight_decay"] for g in groups.param_groups}
        assert decays["crf_weights"] == decays["crf_compatibility"] == 0


def test_groups_hold_each_trainable_parameter_once() -> None:
    network = small_network()
    network.append(network[0])
    network[3].weight.requires_grad_(False)
    groups = parameter_groups(network, lr=1, weight_decay=0)
    listed = [p for g in groups for p in g["params"]]
    assert {id(p) for p in listed} == {id(p) for p in network.parameters() if p.requires_grad}
    assert len(listed) == len({id(p) for p in listed})


def test_adam_adds_l2_to_the_gradient() -> None:
    network = small_network()
    recipe = Recipe(optimizer="adam", lr=5e-4, weight_decay=2e-4, batch_size=1, epochs=1)
    optimizer = build_optimizer(network, recipe)
    assert type(optimizer) is torch.optim.Adam
    assert all(g["weight_decay"] == 2e-4 for g in optimizer.param_groups)
    recipe = dataclasses.replace(recipe, optimizer="rmsprop", smoothing=0.9)
    optimizer = build_optimizer(network, recipe)
    assert type(optimizer) is torch.optim.RMSprop
    assert all((g["alpha"], g["weight_decay"]) == (0.9, 2e-4) for g in optimizer.param_groups)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1]),
        ({"schedule": "step", "step_size": 30, "gamma": 0.1}, [1, 1, 0.1, 0.001]),
        ({"schedule": "poly", "power": 0.9}, [1, 0.71**0.9, 0.7**0.9, 0.01**0.9]),
        (
            {"schedule": "multistep", "milestones": (0.3, 0.9), "gamma": 0.1},
            [1, 1, 0.1, 0.01],
        ),
        ({"warmup_steps": 58, "warmup_factor": 0.2}, [0.2, 0.6, 0.2 + 0.8 * 30 / 58, 1]),
        (
            {"schedule": "step", "step_size": 30, "warmup_steps": 60, "warmup_factor": 0.0},
            [0, 29 / 60, 0.05, 0.001],
        ),
    ],
)
def test_schedules(schedule: dict, expected: list[float]) -> None:
    factor = LRFactor(Recipe(lr=1, batch_size=1, epochs=1, **schedule), total_steps=100)
    assert [factor(step) for step in (0, 29, 30, 99)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"schedule": "multistep"}, "milestones must name"),
        ({"milestones": (0.9, 0.3)}, "milestones must rise"),
        ({"milestones": (8.0, 11.0)}, "between 0 and 1"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"warmup_factor": 2.0}, "warmup_factor"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"jitter": (2.0, 0.1)}, "jitter"),
        ({"loss": "hinge"}, "loss must be one of"),
    ],
)
def test_recipes_refuse_numbers_out_of_range(given: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Recipe(lr=1, batch_size=1, epochs=1, **given)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:50:00", 3000),
        ("1:02:03:04", 93784),
        ("5:30", 330),
        ("50m", 3000),
        ("1h30m", 5400),
        ("90", 90),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "-5m", "1:2:3", "5 apples"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(EngineError, match="max_time must be"):
        parse_duration(text)


def test_sizes() -> None:
    assert parse_size("360x480") == (360, 480)
    for text in ("360", "0x5", "axb", "3x4x5"):
        with pytest.raises(EngineError, match="HEIGHTxWIDTH"):
            parse_size(text)


def test_resolve_takes_recipe_then_what_was_given() -> None:
    settings = resolve(
        "enet", "x", {"lr": 0.01, "class_weights": "none", "seed": 3, "epochs": None}
    )
    assert (settings.recipe["lr"], settings.recipe["class_weights"]) == (0.01, None)
    assert (settings.recipe["epochs"], settings.recipe["optimizer"], settings.seed) == (
        300,
        "adam",
        3,
    )
    assert settings.size is None, "drawn images keep their own size"
    assert resolve("enet", "x", {"data": "camvid:d"}).size == (360, 480)
    assert resolve("enet", "x", {"data": "camvid:d", "size": (90, 120)}).size == (90, 120)


@pytest.mark.parametrize(
    "given",
    [
        {"lr": 0.0},
        {"batch_size": 0},
        {"precision": "8"},
        {"optimizer": "lion"},
        {"schedule": "step", "step_size": -1},
        {"devices": 0},
        {"seed": -1},
        {"absent": "maybe"},
        {"no_such_setting": 1},
    ],
)
def test_resolve_refuses(given: dict) -> None:
    with pytest.raises(EngineError) as error:
        resolve("enet", "x", given)
    assert next(iter(given)) in str(error.value) or "step_size" in str(error.value)


def test_resume_names_every_difference() -> None:
    stored = resolve("enet", "x", {"data": "camvid:d", "crop": (32, 48)})
    stored = TrainSettings.from_json(json.loads(json.dumps(stored.to_json())))
    assert stored.recipe["crop"] == (32, 48)
    with pytest.raises(EngineError) as error:
        resume(stored, "segnet", {"lr": 0.5, "seed": 1, "size": (1, 2), "crop": (32, 48)})
    text = str(error.value)
    assert all(part in text for part in ("model:", "lr:", "seed:", "size:")) and "crop:" not in text


def test_resume_may_change_what_does_not_count() -> None:
    stored = resolve("enet", "x", {"max_time": 5.0})
    settings = resume(stored, None, {"workers": 2, "max_time": 60.0, "epochs": 400})
    assert (settings.workers, settings.max_time, settings.recipe["epochs"]) == (2, 60.0, 400)
    assert resume(stored, None, {}).max_time is None
    poly = resolve("enet", "x", {"schedule": "poly"})
    with pytest.raises(EngineError, match="epochs"):
        resume(poly, None, {"epochs": 400})


def test_atomic_write_keeps_the_old_file_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    files.write_atomic(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        files.write_atomic(path, b"new")
    assert is_disk_full(error.value)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".last.ckpt.123.tmp").write_bytes(b"half")
    (tmp_path / ".best.safetensors.abc.part").write_bytes(b"half")
    (tmp_path / "last.ckpt").write_bytes(b"whole")
    files.remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_disk_full_is_found_behind_other_errors() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError as error:
            raise RuntimeError("while saving") from error
    except RuntimeError as error:
        assert is_disk_full(error)
    assert not is_disk_full(OSError(errno.EACCES, "no"))


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    torch.rand(3), np.random.rand(3), random.random()
    torch.save(capture_rng(), tmp_path / "rng")
    drawn = torch.rand(4), np.random.rand(4), random.random()
    restore_rng(torch.load(tmp_path / "rng", weights_only=True))
    again = torch.rand(4), np.random.rand(4), random.random()
    assert (
        torch.equal(drawn[0], again[0])
        and np.array_equal(drawn[1], again[1])
        and drawn[2] == again[2]
    )


def test_run_state_gives_each_process_its_own_loss() -> None:
    state = RunState(epoch=2, batch=1, losses=[(1.5, 3), (2.5, 4)])
    other = RunState()
    other.load_state_dict(state.state_dict(), rank=1)
    assert (other.loss_sum, other.loss_count, other.epoch) == (2.5, 4, 2)
    assert dataclasses.asdict(other)["batch"] == 1


def test_chart_draws_every_finite_point() -> None:
    svg = line_chart(
        [Line("a<b", "one", [(1, 0.5), (2, float("nan")), (3, 0.7)])],
        x_label="epoch",
        y_label="loss",
    )
    assert svg.count("<circle") == 2 and "a&lt;b" in svg and "nan" not in svg
    assert line_chart([Line("a", "one", [])], x_label="x", y_label="y") == ""
    assert "<svg" in line_chart([Line("a", "one", [(1, 2.0)])], x_label="x", y_label="y")
