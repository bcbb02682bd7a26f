"""The patch-wise network: one answer from its ways of evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segkern.models import create_model

LIGHT = {"width": 1 / 12, "in_channels": 1}


def test_parameters():
    with torch.device("meta"):
        model = create_model("patch_cnn", in_channels=1)
    assert sum(p.numel() for p in model.parameters()) == 219_290
    assert model.cells(torch.zeros(1, 1, 95, 95, device="meta")).shape == (1, 2, 1, 1)
    assert model.cells(torch.zeros(1, 1, 127, 111, device="meta")).shape == (1, 2, 3, 2)


@torch.no_grad()
@pytest.mark.parametrize("size", [(17, 18), (3, 17)])
def test_dense_evaluation_is_that_of_every_patch(size):
    torch.manual_seed(0)
    model = create_model("patch_cnn", **LIGHT).double().eval()
    image = torch.rand(2, 1, *size, dtype=torch.float64)
    pads = ((0, 0), (0, 0), (47, 47), (47, 47))
    padded = torch.from_numpy(np.pad(image.numpy(), pads, mode="reflect"))
    found = {}
    for evaluation in ("atrous", "stitch", "patches"):
        model.evaluation = evaluation
        found[evaluation] = model(image)["out"]
        assert found[evaluation].shape == (2, 2, *size)
    for y, x in ((0, 0), (2, 16), (1, 5)):
        own = model.cells(padded[..., y : y + 95, x : x + 95])[..., 0, 0]
        assert (found["patches"][..., y, x] - own).abs().max() <= 1e-14
    for evaluation in ("atrous", "stitch"):
        assert (found[evaluation] - found["patches"]).abs().max() <= 1e-14
    assert found["patches"].std() > 1e-6


@torch.no_grad()
def test_tiles_are_the_whole_image():
    model = create_model("patch_cnn", tile=20, **LIGHT).double().eval()
    image = torch.rand(1, 1, 33, 47, dtype=torch.float64)
    whole = model(image)["out"]
    tiled = torch.full_like(whole, torch.nan)
    for top, left, scores in model.tiles(image):
        tiled[..., top : top + scores.shape[-2], left : left + scores.shape[-1]] = scores
    assert (tiled - whole).abs().max() <= 1e-14


def test_options_are_checked():
    with pytest.raises(ValueError, match="patch_cnn: evaluation must be one of"):
        create_model("patch_cnn", evaluation="slow")
    with pytest.raises(ValueError, match="patch_cnn: tile must be at least 1"):
        create_model("patch_cnn", tile=0)
