"""Prediction of pictures that are large beside a tile: memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.timing import peak_extra_bytes
from segkern.engine.drawing import overlay
from segkern.engine.predict import predict
from segkern.models import create_model, save_weights

# Of a picture's pixel: decoded and beside it as a tensor (3 each), its labels (8), both as they
# are written (4), a copy of each while a file is read or written.
BYTES_A_PIXEL = 26


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = create_model("unet", width=1 / 32, num_classes=3, tile=128)
    card = {
        "config": model.config,
        "input": "unit",
        "class_names": ["a", "b", "c"],
        "palette": [[0, 0, 0], [255, 0, 0], [0, 0, 255]],
    }
    path = tmp_path / "unet.safetensors"
    save_weights(path, model.state_dict(), {"card": json.dumps(card)})
    return path


def test_memory_beside_the_picture_does_not_grow(checkpoint, tmp_path):
    """Seven times the pixels take their bytes and no more; as floats alone they would take 12."""
    peaks, pixels = [], []
    for side in (384, 1024):
        photo = tmp_path / f"{side}.png"
        Image.effect_noise((side, side), 60).convert("RGB").save(photo)

        def call(photo=photo):
            predict(checkpoint, [photo], tmp_path / "out", device="cpu")

        peak = peak_extra_bytes(call, "cpu")
        if peak is None:
            pytest.skip("this system keeps no mark of resident memory")
        peaks.append(peak)
        pixels.append(side * side)
    growth = (peaks[1] - peaks[0]) / (pixels[1] - pixels[0])
    assert growth < BYTES_A_PIXEL + 4, f"{growth:.1f} bytes a pixel"


@pytest.mark.slow
def test_u_net_of_full_width_on_24_megapixels(tmp_path):
    """The bound that docs/networks.md states; five minutes of one thread."""
    model = create_model("unet", num_classes=11)
    card = {
        "config": model.config,
        "input": "unit",
        "class_names": [str(n) for n in range(11)],
        "palette": [[23 * n, 0, 255 - 23 * n] for n in range(11)],
    }
    path = tmp_path / "unet.safetensors"
    save_weights(path, model.state_dict(), {"card": json.dumps(card)})
    del model
    photo = tmp_path / "large.png"
    Image.effect_noise((6000, 4000), 60).convert("RGB").save(photo)
    peak = peak_extra_bytes(lambda: predict(path, [photo], tmp_path / "out", device="cpu"), "cpu")
    if peak is None:
        pytest.skip("this system keeps no mark of resident memory")
    assert peak <= 1.1 * 2**30, f"{peak / 2**20:.0f} MiB"


def test_overlays_in_strips_are_overlays():
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (700, 300, 3), np.uint8)
    labels = generator.integers(0, 4, (700, 300))
    labels[::7] = 255
    palette = generator.integers(0, 256, (4, 3)).astype(np.uint8)
    drawn = overlay(image, labels, palette, opacity=0.25)
    for row in (0, 1, 217, 218, 219, 699):
        for column in range(5):
            expected = image[row, column].astype(float)
            if labels[row, column] != 255:
                expected = 0.75 * expected + 0.25 * palette[labels[row, column]]
            assert np.abs(drawn[row, column] - expected).max() <= 0.5


@pytest.mark.parametrize("name", ["unet", "patch_cnn", "random_forest", "texton_forest"])
def test_windows_are_prepared_one_by_one(name):
    """Bytes prepared window by window give what the prepared image gives."""
    if "forest" in name:
        pytest.importorskip("skimage")
    light = {} if "forest" in name else {"width": 1 / 12}
    network = create_model(name, num_classes=3, tile=16, **light).eval()
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 20, 36), generator=generator, dtype=torch.uint8)
    seen = []

    def prepare(window):
        seen.append(tuple(window.shape[-2:]))
        return window.float() / 255

    with torch.no_grad():
        expected = list(network.tiles(image.float() / 255))
        found = list(network.tiles(image, prepare))
    assert len(seen) == len(found) == 6
    for (*place, scores), (*own, other) in zip(expected, found, strict=True):
        assert place == own
        torch.testing.assert_close(other, scores)
