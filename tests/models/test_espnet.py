"""ESPNet: the authors' weights and their outputs, golden values of parts, the two stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segkern.models import WeightsError, create_model, load_weights
from segkern.models._ports import _ESPNET_DECODER, _ESPNET_LAYERS
from segkern.models.espnet import shrink

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "espnet"

# Mean, standard deviation, least, largest, y[0, 0, 0, 0], y[0, 5, 3, 7] of the released networks.
RELEASED = {
    "espnet_c": (
        "encoder_p2_q3.pth",
        (-0.151783, 3.997977, -10.926604, 13.733706, -1.693273, 6.224746),
    ),
    "espnet": (
        "decoder_p2_q3.pth",
        (-0.006062, 5.043833, -18.570660, 17.286522, -0.803275, 2.830970),
    ),
}


@pytest.fixture
def folder():
    if not FIXTURES.is_dir():
        pytest.skip("no ESPNet weights beside the project (../shared/fixtures/espnet)")
    return FIXTURES


@pytest.mark.parametrize("name", RELEASED)
def test_released_weights(name, folder):
    file, expected = RELEASED[name]
    model = create_model(name, weights=folder / file).eval()
    assert (model.config["p"], model.config["q"], model.config["num_classes"]) == (2, 3, 20)
    assert model.config.get("tail", "level1") == "level1"
    rows, columns = torch.arange(64)[:, None], torch.arange(128)
    image = torch.stack([torch.sin(0.05 * rows + 0.03 * columns + c) for c in range(3)])
    with torch.no_grad():
        y = model(0.01 * image[None])["out"].double()
    size = (64, 128) if name == "espnet" else (8, 16)
    assert y.shape == (1, 20, *size)
    found = (y.mean(), y.std(), y.min(), y.max(), y[0, 0, 0, 0], y[0, 5, 3, 7])
    assert [float(v) for v in found] == pytest.approx(expected, abs=1e-3)


def test_the_encoder_starts_the_second_stage(folder):
    encoder = create_model("espnet_c", weights=folder / "encoder_p2_q3.pth")
    model = create_model("espnet", q=3, weights_backbone=folder / "encoder_p2_q3.pth")
    for key, value in encoder.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[key], value)
    with pytest.raises(WeightsError, match="does not hold the encoder.*level3.3"):
        create_model("espnet", q=4, weights_backbone=folder / "encoder_p2_q3.pth")
    with pytest.raises(WeightsError, match="weights_backbone= takes"):
        load_weights(model, folder / "encoder_p2_q3.pth")


def test_the_tail_is_read_from_the_weights(tmp_path):
    source = create_model("espnet", q=1, p=1, tail="b1", num_classes=7)
    # The release's names, which the fixtures check, from ours.
    theirs = {ours: name for name, ours in _ESPNET_DECODER.items()}
    theirs |= {f"encoder.{ours}": f"encoder.{name}" for name, ours in _ESPNET_LAYERS.items()}
    released = {}
    for key, value in source.state_dict().items():
        layer, _, parameter = key.rpartition(".")
        released[f"module.{theirs.get(layer, layer)}.{parameter}"] = value
    torch.save(released, tmp_path / "camvid.pth")
    model = create_model("espnet", weights=tmp_path / "camvid.pth")
    assert model.config["tail"] == "b1"
    assert (model.config["p"], model.config["q"], model.config["num_classes"]) == (1, 1, 7)
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


def test_image_reinforcement():
    image = torch.sin(0.3 * torch.arange(3 * 144, dtype=torch.float64)).view(1, 3, 12, 12)
    small = shrink(shrink(image))
    assert small.shape == (1, 3, 3, 3)
    found = (small.sum(), small.square().sum(), small.flatten()[0], small.flatten()[-1])
    expected = (-0.192129198, 0.245688602, -0.066772346, 0.163872435)
    assert [float(v) for v in found] == pytest.approx(expected, abs=1e-8)


def test_sizes():
    model = create_model("espnet", q=1, strict_size=True).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 360, 480))["out"].shape == (1, 20, 360, 480)
    with pytest.raises(ValueError, match="espnet: input height and width must be a multiple of 8"):
        model(torch.zeros(1, 3, 100, 100))


@pytest.mark.parametrize("bad", [{"p": -1}, {"q": -1}, {"tail": "b2"}, {"pad_mode": "wrap"}])
def test_errors(bad):
    with pytest.raises(ValueError, match=f"espnet: {next(iter(bad))} must be"):
        create_model("espnet", **bad)
