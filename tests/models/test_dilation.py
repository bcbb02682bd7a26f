"""The dilated networks: geometry, identity initialisation, mirroring, tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segkern.models import create_model
from segkern.models._resize import reflect
from segkern.models.dilation import RATES, Context, FrontEnd, _deconvolve, enlarge_cells

LIGHT = {"width": 1 / 64}


@pytest.mark.parametrize(("length", "cells"), [(900, 66), (500, 16), (628, 32), (380, 1)])
def test_front_end_sizes(length, cells):
    net = FrontEnd(1, 2, 1 / 64).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 1, length, 380)).shape == (1, 2, cells, 1)


def test_a_cell_sees_380_pixels_from_its_margin_on():
    net = FrontEnd(1, 1, 1 / 64).double().eval()
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, 0.01 if parameter.dim() > 1 else 0.0)
    image = torch.ones(1, 1, 396, 396, dtype=torch.float64, requires_grad=True)
    net(image)[0, 0, 1, 2].backward()
    rows, columns = (image.grad[0, 0] != 0).nonzero(as_tuple=True)
    # Not every pixel of the field wins a pool where all are equal; those outside must not.
    assert 8 <= rows.min() and rows.max() < 8 + 380
    assert 16 <= columns.min() and columns.max() < 16 + 380


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("padding", ["once", "each"])
@pytest.mark.parametrize("layers", [7, 8, 10])
def test_identity_initialisation(large, padding, layers):
    if large and layers != 8:
        with pytest.raises(ValueError, match="context must be 'basic'"):
            Context("dilation8", 5, RATES[layers], large=True)
        return
    context = Context("dilation8", 5, RATES[layers], large=large, padding=padding)
    scores = torch.randn(2, 5, 9, 14)
    with torch.no_grad():
        noisy = context(scores)
        context.set_identity(noise=0)
        clean = context(scores)
    tolerance = 1e-6 * float(scores.max()) if large else 0
    assert (clean - scores.clamp(min=0)).abs().max() <= tolerance
    # The noise is in the large form alone.
    assert torch.equal(noisy, clean) != large


def test_mirroring_agrees_with_numpy():
    image = torch.arange(2 * 5 * 7.0).view(1, 2, 5, 7)
    expected = np.pad(image.numpy(), ((0, 0), (0, 0), (17, 20), (17, 3)), mode="reflect")
    assert torch.equal(reflect(image, 17, (20, 3)), torch.from_numpy(expected))
    pixel = image[..., :1, :1]
    assert torch.equal(reflect(pixel, 2, (1, 1)), pixel.expand(1, 2, 4, 4))


def test_cells_are_enlarged_from_their_corners():
    cells = torch.tensor([[0.0, 8.0], [16.0, 32.0]]).view(1, 1, 2, 2)
    out = enlarge_cells(cells)[0, 0]
    assert out.shape == (16, 16)
    assert torch.allclose(out[0], torch.cat([torch.arange(8.0), torch.full((8,), 8.0)]))
    assert out[8, 0] == 16 and out[15, 15] == 32
    assert out[4, 4] == pytest.approx((0 + 8 + 16 + 32) / 4)


def test_deconvolution_of_the_cityscapes_network():
    scores = torch.randn(1, 3, 6, 5, dtype=torch.float64)
    inside = torch.nn.functional.interpolate(scores, scale_factor=8, mode="bilinear")
    out = _deconvolve(scores)
    assert out.shape == inside.shape
    torch.testing.assert_close(out[..., 4:-4, 4:-4], inside[..., 4:-4, 4:-4])


def test_tiles_of_the_front_end_give_the_whole():
    """Without a context module, tiles see all that the whole image shows them."""
    whole = create_model("dilation_frontend", num_classes=3, **LIGHT).double().eval()
    tiled = create_model("dilation_frontend", num_classes=3, tile=[388, 396], **LIGHT).double()
    tiled.load_state_dict(whole.state_dict())
    image = torch.randn(1, 3, 24, 40, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(tiled.eval()(image)["out"], whole(image)["out"])
    with pytest.raises(ValueError, match="tile must be"):
        create_model("dilation8", tile=(900, 901), **LIGHT)


def test_outputs_in_training():
    model = create_model("dilation8", num_classes=3, context="basic", padding="each", **LIGHT)
    outputs = model.train()(torch.randn(1, 3, 20, 33))
    assert outputs["logits"].shape == (1, 3, 3, 5)
    assert outputs["out"].shape == (1, 3, 20, 33)
    assert set(model.eval()(torch.randn(1, 3, 20, 33))) == {"out"}
