"""U-Net: sizes, mirrored borders, tiles equal to the whole image, counts, initialisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from modeltester import seed_weights

from segkern.models import create_model

LIGHT = {"width": 1 / 32, "in_channels": 1}


def light(**options):
    model = create_model("unet", **{**LIGHT, **options})
    seed_weights(model)
    return model.double().eval()


def image(height, width, channels=1):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, channels, height, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("given", "left"), [(572, 388), (188, 4), (380, 196), (588, 404)])
def test_valid_sizes(given, left):
    with torch.device("meta"):
        model = create_model("unet", border="none", width=1 / 64)
        assert model(torch.zeros(1, 3, given, 188))["out"].shape == (1, 2, left, 4)


@pytest.mark.parametrize("size", [(187, 188), (188, 172), (572, 573)])
def test_other_sizes_are_refused(size):
    model = light(border="none")
    with pytest.raises(ValueError, match="must be 16 k \\+ 60 and at least 188"):
        model(torch.zeros(1, 1, *size))


@torch.no_grad()
def test_borders_are_mirrored():
    """On an image mirrored by numpy, the bare network gives what the whole one does."""
    model = light()
    given = image(36, 52)
    missing = [-(n + 124) % 16 for n in given.shape[-2:]]
    pads = ((0, 0), (0, 0), *((92, 92 + m) for m in missing))
    padded = torch.from_numpy(np.pad(given.numpy(), pads, mode="reflect"))
    expected = model.scores(padded)[..., :36, :52]
    assert torch.equal(model(given)["out"], expected)


@torch.no_grad()
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("size", [(200, 270), (33, 230)])
def test_tiles_are_the_whole_image(padding, size):
    model = light(padding=padding, tile=64)
    given = image(*size)
    whole = model(given)["out"]
    seen = []
    hook = model.down0.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[-2:]))
    tiled = torch.full_like(whole, torch.nan)
    for top, left, scores in model.tiles(given):
        height, width = scores.shape[-2:]
        tiled[..., top : top + height, left : left + width] = scores
    hook.remove()
    assert (tiled - whole).abs().max() <= 1e-12 * whole.abs().max()
    # The memory of a tile, whatever the image: 64 pixels and what surrounds them.
    assert max(max(shape) for shape in seen) <= 64 + 2 * 96
    assert len(seen) == -(-size[0] // 64) * -(-size[1] // 64)


@torch.no_grad()
def test_a_tile_of_another_phase_differs():
    """Which is why tiles start at multiples of 16."""
    model = light()
    given = image(96, 96)
    shifted = model(given[..., 8:, 8:])["out"][..., 20:60, 20:60]
    assert (shifted - model(given)["out"][..., 28:68, 28:68]).abs().max() > 1e-6


@torch.no_grad()
def test_valid_form_sees_no_zeros():
    """A constant image gives constant scores without padding, and not with it."""
    given = torch.ones(1, 1, 40, 40, dtype=torch.float64)
    for padding, constant in (("valid", True), ("same", False)):
        out = light(padding=padding)(given)["out"][0, 0]
        # An up-convolution has four different taps, so the period is 16.
        spread = (out[16:32, 16:32] - out[:16, :16]).abs().max()
        assert (spread < 1e-12) == constant


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"in_channels": 1}, 31_030_658),
        ({"in_channels": 1, "num_classes": 1}, 31_030_593),
        ({"num_classes": 11}, 31_032_395),
        ({"num_classes": 19}, 31_032_915),
        ({"num_classes": 21, "padding": "same"}, 31_033_045),
        ({"in_channels": 1, "variant": "release"}, 31_100_354),
    ],
)
def test_parameters(options, expected):
    with torch.device("meta"):
        model = create_model("unet", **options)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_initialisation():
    torch.manual_seed(0)
    model = create_model("unet", width=1 / 4)
    conv, up = model.down3[2], model.upconv2
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.01)
    assert up.weight.std().item() == pytest.approx((2 / (4 * 64)) ** 0.5, rel=0.02)
    assert not conv.bias.any()


def test_dropout_is_after_the_last_two_levels():
    seen = []
    model = light()
    model.dropout.register_forward_hook(lambda _, x, y: seen.append((x[0].shape[1], y)))
    model.down4.register_forward_pre_hook(lambda _, x: seen.append("down4"))
    model.train()(image(16, 16))
    assert [s if s == "down4" else s[0] for s in seen] == [16, "down4", 32]
    # Half of what the ReLU lets through, and elements rather than channels.
    dropped = seen[0][1] == 0
    assert 0.5 < dropped.double().mean() < 0.95
    assert not dropped.flatten(2).all(-1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "full"}, "padding must be one of"),
        ({"tile": 100}, "tile must be a multiple of 16"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"padding": "same", "border": "none"}, "border='none' is for padding='valid'"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("unet", **options)
