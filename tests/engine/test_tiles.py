"""Overlap-tile prediction: of files, of whole pictures, and beside averaging."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from segkern.cli import main
from segkern.engine.inference import Protocol, class_scores
from segkern.engine.loading import load_trained
from segkern.engine.module import SegmentationModule, labels_at
from segkern.engine.predict import predict
from segkern.models import create_model, save_weights
from segkern.models._preprocess import preprocess
from segkern.models.unet import UNet

OPTIONS = {"width": 1 / 32, "num_classes": 3}


@pytest.fixture
def checkpoint(tmp_path: Path):
    """A U-Net of random weights in a file, by its options."""

    def write(**options) -> Path:
        torch.manual_seed(0)
        model = create_model("unet", **OPTIONS, **options)
        # Scores of random weights hardly depend on the image, their differences over it do.
        torch.nn.init.normal_(model.score.bias, std=0.01)
        card = {
            "config": model.config,
            "input": model.recipe.input,
            "class_names": ["a", "b", "c"],
            "palette": [[0, 0, 0], [255, 0, 0], [0, 0, 255]],
        }
        path = tmp_path / "unet.safetensors"
        save_weights(path, model.state_dict(), {"card": json.dumps(card)})
        return path

    return write


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (14, 20, 3), np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(noise).resize((300, 210), Image.Resampling.BICUBIC).save(path)
    return path


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None]


@pytest.mark.parametrize("options", [{"padding": "same"}, {"border": "mirror"}, {"border": "none"}])
def test_a_large_picture_is_predicted_in_tiles(checkpoint, picture, tmp_path, options, monkeypatch):
    """The labels of the whole picture, while the network never sees more than a tile's share."""
    whole = {"border": "mirror"} if options == {"border": "none"} else options
    network = load_trained(checkpoint(**whole), "cpu").network.double()
    with torch.no_grad():
        expected = network(preprocess(pixels(picture).double(), "unit"))["out"]
    path = checkpoint(**options, tile=64)
    largest = []
    bare = UNet.scores

    def watched(self, x):
        largest.append(max(x.shape[-2:]))
        return bare(self, x)

    monkeypatch.setattr(UNet, "scores", watched)
    for extra in ({}, {"probs": True}):
        out = tmp_path / f"out{len(extra)}"
        predict(path, [picture], out, device="cpu", **extra)
        labels = np.asarray(Image.open(out / "labels" / "picture.png"))
        top = expected[0].topk(2, dim=0).values
        clear = ((top[0] - top[1]) > 1e-5).numpy()
        assert labels.shape == (210, 300) and clear.mean() > 0.99
        assert np.array_equal(labels[clear], expected[0].argmax(0).numpy()[clear])
        assert len(np.unique(labels)) > 1
    assert max(largest) <= 64 + 2 * 96
    assert len(largest) == 2 * 4 * 5


def test_averaging_works_in_tiles_too(checkpoint, picture):
    network = load_trained(checkpoint(tile=64), "cpu").network
    whole = load_trained(checkpoint(), "cpu").network
    inputs = preprocess(pixels(picture), "unit")
    protocol = Protocol(scales=(0.5, 1.0), flip=True)
    with torch.no_grad():
        torch.testing.assert_close(
            class_scores(network, inputs, protocol), class_scores(whole, inputs, protocol)
        )


def test_the_command_line(checkpoint, picture, tmp_path, capsys):
    out = tmp_path / "out"
    path = str(checkpoint(tile=64))
    assert main(["predict", path, str(picture), "-o", str(out), "--device", "cpu"]) == 0
    labels = np.asarray(Image.open(out / "labels" / "picture.png"))
    assert np.array_equal(labels, load_trained(path, "cpu").predict(pixels(picture))[0].numpy())
    assert "1 images segmented" in capsys.readouterr().out


def test_elastic_deformation_is_an_option(tmp_path, capsys):
    run = ["train", "unet", "--data", "synthetic:16x16", "--limit-train", "1", "--limit-val", "1"]
    run += ["--epochs", "1", "--device", "cpu", "--option", "width=0.03125", "--output"]
    for text, kept in (("none", None), ("2.5", 2.5)):
        folder = tmp_path / text
        assert main([*run, str(folder), "--elastic", text]) == 0
        recipe = json.loads((folder / "config.json").read_text())["settings"]["recipe"]
        assert recipe["elastic"] == kept
    assert main([*run, str(tmp_path / "bad"), "--elastic", "much"]) != 0
    assert "elastic must be a number" in capsys.readouterr().err


def test_labels_of_valid_outputs_are_those_in_the_middle():
    target = torch.arange(9 * 8).view(1, 9, 8)
    assert torch.equal(labels_at(target, (5, 4), "centre"), target[:, 2:7, 2:6])
    network = create_model("unet", border="none", **OPTIONS)
    module = SegmentationModule(network, network.recipe, num_classes=3, total_steps=1)
    seen = []
    module._metrics = SimpleNamespace(update=lambda labels, target: seen.append((labels, target)))
    labels = torch.arange(188 * 188).view(1, 188, 188) % 3
    with torch.no_grad():
        module.validation_step([(torch.zeros(1, 3, 188, 188), labels)], 0)
    assert seen[0][0].shape == (1, 4, 4)
    assert torch.equal(seen[0][1], labels[:, 92:96, 92:96])
