"""Recipes on the command line: printed, changed, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from segkern.models import get_entry

Call = Callable[..., tuple[int, str, str]]

TRAIN = (
    "train", "enet_encoder", "--data", "synthetic:48x64", "--limit-train", "4", "--limit-val", "1",
    "--batch-size", "4", "--epochs", "2", "--device", "cpu", "--no-progress",
)  # fmt: skip

GIVEN = {
    "--rotate": "5", "--blur": "3", "--crop": "40x72", "--crop-pad": "centre",
    "--crop-colour": "black", "--passes": "1,1,4;0.75,1,0", "--micro-batch": "2",
    "--step-epochs": "1", "--optimizer": "rmsprop", "--square-eps": "1e-6",
    "--class-weights": "segnet",
}  # fmt: skip


@pytest.mark.parametrize("name", ["espnet", "unet", "danet"])
def test_models_prints_the_whole_recipe_beside_the_reported_result(
    segkern: Call, name, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = segkern("models", name)
    entry = get_entry(name)
    assert status == 0
    for what, value in entry.reported.items():
        assert f"{what}: {value:g}" in out
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    for field, value in vars(entry.recipe).items():
        shown = "none" if value is None else str(value)
        text = lines[field] if field not in ("notes", "source") else " ".join(out.split())
        assert shown in text, field


def test_models_prints_the_recipe_of_an_option(segkern: Call) -> None:
    def line(*arguments: str) -> str:
        out = segkern("models", "fcn32s", *arguments)[1]
        return next(line for line in out.splitlines() if line.strip().startswith("micro_batch"))

    assert line().split()[-1] == "none"
    assert line("--option", "backbone=alexnet").split()[-1] == "1"
    status, _, err = segkern("models", "fcn32s", "--option", "trunk=alexnet")
    assert status == 2 and "fcn32s has no option trunk; its own are backbone" in err


def test_train_takes_every_number(segkern: Call, tmp_path: Path) -> None:
    words = [word for pair in GIVEN.items() for word in pair]
    status, _, err = segkern(*TRAIN, *words, "--vertical-flip", "--no-norm-shift-decay",
                             "--output", tmp_path / "run")  # fmt: skip
    assert status == 0, err
    recipe = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["recipe"]
    expected = {
        "rotate": 5.0, "blur": 3, "crop": [40, 72], "crop_pad": "centre", "crop_colour": "black",
        "passes": [[1.0, 1.0, 4], [0.75, 1.0, 0]], "micro_batch": 2, "step_epochs": 1,
        "square_eps": 1e-6, "class_weights": "segnet", "vertical_flip": True,
        "norm_shift_decay": False, "flip": False,
    }  # fmt: skip
    assert {name: recipe[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rotate", "far"), "rotate must be a number or none, got 'far'"),
        (("--rotate", "200"), "rotate must be between 0 and 180, got 200"),
        (("--blur", "4"), "blur must be an odd number of pixels, got 4"),
        (("--blur", "2.5"), "blur must be a whole number or none, got '2.5'"),
        (("--passes", "1,1"), "passes must be H,W,TRIM;..., like 1,1,32;0.5,0.5,0, or none"),
        (("--passes", "0,1,4"), "passes must be (height, width, trim) each, factors above 0"),
        (("--crop-pad", "left"), "crop_pad must be one of 'random', 'centre', 'end', got 'left'"),
        (("--crop-colour", "red"), "crop_colour must be one of 'mean', 'black', got 'red'"),
        (("--crop-margin", "-1"), "crop_margin must be at least 0, got -1"),
        (("--micro-batch", "3"), "micro_batch must divide the images of a step (4), got 3"),
        (("--micro-batch", "0"), "micro_batch must be at least 1, got 0"),
        (("--square-eps", "0"), "square_eps must be above 0, got 0"),
        (("--step-epochs", "-1"), "step_size or step_epochs must be at least 1 and the other 0"),
        (("--elastic", "-1"), "elastic must be from 0 on, got -1"),
    ],
)
def test_wrong_numbers_are_refused(segkern: Call, tmp_path: Path, arguments, message) -> None:
    status, _, err = segkern(*TRAIN, *arguments, "--output", tmp_path / "run")
    assert status == 2 and message in " ".join(err.split())
    assert not (tmp_path / "run").exists()


def test_networks_of_instances_refuse_what_is_for_pixels(segkern: Call) -> None:
    for words in (("--rotate", "5"), ("--micro-batch", "1"), ("--vertical-flip",)):
        status, _, err = segkern("train", "maskrcnn", *words)
        name = words[0][2:].replace("-", "_")
        assert status == 2 and f"{name} means nothing to maskrcnn" in err
