"""The box layers call their operators with the arguments they were built with."""

from __future__ import annotations

import doctest

import pytest
import torch

from segkern import nn, ops
from segkern.nn import roi

BOXES = [torch.tensor([[1.0, 2, 30, 25], [-3, 4, 9, 60]]), torch.tensor([[5.0, 5, 80, 90]])]


def maps(*sizes, channels=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, channels, *size, generator=generator) for size in sizes]


def test_examples():
    results = doctest.testmod(roi)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_is_torchvisions(aligned):
    torchvision = pytest.importorskip("torchvision")
    (x,) = maps((24, 25))
    wanted = torchvision.ops.RoIAlign((5, 3), 0.25, 2, aligned)(x, BOXES)
    assert (nn.RoIAlign((5, 3), 0.25, 2, aligned)(x, BOXES) - wanted).abs().max() < 1e-6


def test_pyramid_is_torchvisions_pooler():
    torchvision = pytest.importorskip("torchvision")
    levels = maps((32, 32), (16, 16), (8, 8), (4, 4), (2, 2))
    names = ["0", "1", "2", "3"]
    pooler = torchvision.ops.MultiScaleRoIAlign(names, 7, 2, canonical_scale=40)
    wanted = pooler(dict(zip([*names, "pool"], levels, strict=True)), BOXES, [(128, 128)] * 2)
    layer = nn.PyramidRoIAlign(7, (4, 8, 16, 32), 2, aligned=False, canonical_size=40)
    assert (layer(levels, BOXES) - wanted).abs().max() < 1e-6
    with pytest.raises(ValueError, match="PyramidRoIAlign: maps must be at least 4, got 3"):
        layer(levels[:3], BOXES)


@pytest.mark.parametrize("mode", ["gather", "norm", "pinv"])
def test_roi_upsample(mode):
    bins = torch.rand(3, 2, 5, 5)
    layer = nn.RoIUpsample(0.5, mode, "sum", sampling_ratio=2)
    found = layer(bins, BOXES, (2, 50, 50))
    wanted = ops.roi_upsample(
        bins,
        BOXES,
        (2, 50, 50),
        spatial_scale=0.5,
        mode=mode,
        reduction="sum",
        sampling_ratio=2,
    )
    assert torch.equal(found, wanted)
    assert found.any()
    assert mode in repr(layer)
