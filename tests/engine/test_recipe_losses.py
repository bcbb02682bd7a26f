"""Losses chosen on the command line."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from segkern.cli import main
from segkern.engine.module import SegmentationModule
from segkern.losses import lovasz_softmax_loss, ohem_cross_entropy
from segkern.models import create_model

TRAIN = [
    "train", "enet_encoder", "--data", "synthetic:32x48", "--limit-train", "2", "--limit-val", "1",
    "--batch-size", "2", "--epochs", "1", "--device", "cpu", "--class-weights", "none",
]  # fmt: skip


def test_a_sum_of_losses_with_options(tmp_path, capsys):
    run = tmp_path / "run"
    chosen = ["--loss", "ohem+lovasz", "--loss-option", "min_kept=50", "--label-smoothing", "0.1"]
    assert main([*TRAIN, *chosen, "--output", str(run)]) == 0
    recipe = json.loads((run / "config.json").read_text())["settings"]["recipe"]
    assert recipe["loss"] == "ohem+lovasz" and recipe["label_smoothing"] == 0.1
    assert recipe["loss_options"] == {"min_kept": 50}
    # A run that goes on has these settings.
    assert main(["train", "--resume", "--output", str(run), "--epochs", "2"]) == 0
    assert "2 epochs" in (run / "log.txt").read_text()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["--loss", "hinge"], "loss must be one of"),
        (["--loss", "dice", "--loss-option", "gamma=1"], "loss_options must be among smooth"),
        (["--loss-option", "gamma"], "must be KEY=VALUE"),
        (["--label-smoothing", "1"], "label_smoothing must be in"),
    ],
)
def test_what_no_loss_takes_is_refused(chosen, message, tmp_path, capsys):
    assert main([*TRAIN, *chosen, "--output", str(tmp_path / "run")]) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_module_takes_the_recipes_loss():
    network = create_model("enet", num_classes=4)
    recipe = dataclasses.replace(
        network.recipe,
        loss="ohem+lovasz",
        loss_options={"threshold": 0.2, "min_kept": 30},
        label_smoothing=0.2,
    )
    weight = torch.rand(4)
    module = SegmentationModule(network, recipe, num_classes=4, total_steps=1, class_weights=weight)
    logits, target = torch.randn(2, 4, 8, 8), torch.randint(4, (2, 8, 8))
    expected = ohem_cross_entropy(
        logits, target, weight=weight, threshold=0.2, min_kept=30, label_smoothing=0.2
    ) + lovasz_softmax_loss(logits, target)
    assert torch.equal(module.loss(logits, target), expected)
