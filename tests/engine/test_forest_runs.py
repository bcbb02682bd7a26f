"""Forests through the commands that networks have."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from segkern.cli import main
from segkern.engine.callbacks import read_rows
from segkern.engine.loading import load_trained

pytest.importorskip("sklearn")
pytest.importorskip("skimage")

DATA = ["--data", "synthetic:32x48", "--limit-train", "4", "--limit-val", "3"]
LIGHT = {
    "random_forest": ["--option", "trees=5", "--option", "share=0.5"],
    "texton_forest": ["--option", "tests=60", "--option", "bag_tests=20"],
}


@pytest.mark.parametrize("name", LIGHT)
def test_train_evaluate_predict_report(name, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", name, *DATA, *LIGHT[name], "--output", str(run)]) == 0
    assert "fitted on" in capsys.readouterr().out
    (row,) = read_rows(run / "metrics.csv")
    assert row["epoch"] == 1 and row["lr"] is None and row["val_loss"] > 0
    assert main(["evaluate", str(run), "--limit", "3"]) == 0
    measured = json.loads((run / "evaluation" / "metrics.json").read_text())
    # The same images and the same trees as at the end of the fit.
    assert measured["miou"] == pytest.approx(row["val_miou"], rel=1e-12)
    assert measured["miou"] > 0.05
    card = load_trained(run, "cpu").card
    assert card["config"]["nodes"] > 20 and card["miou"] == measured["miou"]

    photo = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).resize((60, 40)).save(photo)
    out = tmp_path / "out"
    # As unary potentials of a dense CRF too.
    for extra in ([], ["--crf"]):
        assert main(["predict", str(run), str(photo), "-o", str(out), "--probs", *extra]) == 0
        assert np.asarray(Image.open(out / "labels" / "photo.png")).shape == (40, 60)
        shares = np.load(out / "probs" / "photo.npz")["probs"].astype(np.float64)
        assert np.abs(shares.sum(0) - 1).max() < 5e-3
    assert main(["report", str(run), "--no-speed"]) == 0
    assert main(["train", name, *DATA, "--output", str(run)]) != 0
    assert "already holds a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["--max-steps", "5"], "max_steps"),
        (["--max-time", "5m"], "max_time"),
        (["--devices", "2"], "devices"),
        (["--weights", "camvid"], "weights"),
    ],
)
def test_settings_of_steps_are_refused(extra, named, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "random_forest", *DATA, *extra, "--output", str(run)]) != 0
    assert f"{named} cannot be followed" in capsys.readouterr().err
    assert not run.exists()


def test_resuming_is_refused(tmp_path, capsys):
    run = tmp_path / "run"
    train = ["train", "random_forest", *DATA, *LIGHT["random_forest"], "--output", str(run)]
    assert main(train) == 0
    assert main(["train", "--resume", "--output", str(run)]) != 0
    assert "no checkpoint" in capsys.readouterr().err


def test_a_network_needs_an_optimizer(tmp_path, capsys):
    run = ["train", "enet", *DATA, "--optimizer", "fit", "--output", str(tmp_path / "run")]
    assert main(run) != 0
    assert "optimizer must not be 'fit'" in capsys.readouterr().err


def test_two_fits_are_equal(tmp_path):
    first, second = (tmp_path / name for name in ("first", "second"))
    for run in (first, second):
        train = ["train", "random_forest", *DATA, *LIGHT["random_forest"], "--output"]
        assert main([*train, str(run)]) == 0
    one, other = (load_trained(run, "cpu").network.state_dict() for run in (first, second))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
