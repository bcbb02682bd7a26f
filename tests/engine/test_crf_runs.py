"""A run with a CRF at the network's end: trained, resumed, evaluated and used."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from tiny_runs import TINY, run_command

from segkern.engine.errors import EngineError
from segkern.engine.evaluate import evaluate
from segkern.engine.loading import load_trained
from segkern.engine.train import fit


def test_trained_by_the_command_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [
        *("train", "enet", "--crf", "--output", run, "--device", "cpu", "--no-progress"),
        *("--option", 'crf={"kernel_weights": "scalar"}', "--input", "imagenet"),
        *("--crf-weights-lr-mult", 100, "--crf-compatibility-lr-mult", 10),
        *("--data", TINY["data"], "--limit-train", 4, "--limit-val", 2, "--batch-size", 2),
        *("--epochs", 1, "--class-weights", "none"),
    ]
    done = run_command(*arguments)
    assert done.returncode == 0, done.stderr
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert settings["model_options"] == {"crf": {"kernel_weights": "scalar"}}
    assert settings["recipe"]["crf_weights_lr_mult"] == 100
    trained = load_trained(run, "cpu")
    assert trained.card["config"]["crf"] == {"input": "imagenet", "kernel_weights": "scalar"}
    assert not trained.network.training
    crf = trained.network.crf
    # Adam's two steps of about the learning rate.
    assert 0.04 < abs(crf.spatial_weights.item() - 3) < 0.11
    assert 0.004 < (crf.compatibility + torch.eye(crf.num_labels)).abs().max() < 0.011


def test_resumed_and_evaluated(tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = {**TINY, "limit_train": 4, "batch_size": 2, "device": "cpu", "precision": "32"}
    given["model_options"] = {"crf": True}
    fit("enet", run, **{**given, "epochs": 1})
    fit("enet", run, resume=True, epochs=2)
    whole = tmp_path / "whole"
    fit("enet", whole, **{**given, "epochs": 2})
    rows = [
        list(csv.reader((folder / "metrics.csv").read_text().splitlines()))
        for folder in (run, whole)
    ]
    assert rows[0] == rows[1]
    result = evaluate(run, device="cpu", pictures=0)
    assert result["model"] == "enet"
    assert result["miou"] is not None


def test_wrong_options_end_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="train: attach_crf: there is no option 'width'"):
        fit("enet", tmp_path / "run", model_options={"crf": {"width": 3}}, device="cpu", **TINY)
    assert not (tmp_path / "run").exists()
