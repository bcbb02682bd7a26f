"""Scales, mirroring and windows against the same written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from segkern.engine.errors import EngineError
from segkern.engine.inference import Protocol, class_scores, window_starts


class Pixelwise(torch.nn.Module):
    """Scores of each pixel from its own colours, the second class growing to the right."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.sizes = []

    def forward(self, image):
        self.sizes.append(tuple(image.shape[-2:]))
        x = image[..., :: self.stride, :: self.stride]
        ramp = torch.linspace(0, 1, x.shape[-1]).expand_as(x[:, 0])
        return {"out": torch.stack([x[:, 0], x[:, 1] + ramp, x[:, 2]], dim=1)}


@pytest.fixture
def image():
    return torch.randn(2, 3, 21, 33)


def corners(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def test_one_pass_gives_the_networks_own_scores(image):
    network = Pixelwise()
    assert torch.equal(class_scores(network, image, Protocol()), network(image)["out"])


def test_the_mirror_image(image):
    network = Pixelwise()
    plain = network(image)["out"]
    mirrored = network(image.flip(-1))["out"].flip(-1)
    found = class_scores(network, image, Protocol(flip=True)).softmax(1)
    torch.testing.assert_close(found, (plain.softmax(1) + mirrored.softmax(1)) / 2)
    found = class_scores(network, image, Protocol(flip=True, merge="logits")).softmax(1)
    torch.testing.assert_close(found, ((plain + mirrored) / 2).softmax(1))


def test_scales(image):
    network = Pixelwise()
    found = class_scores(network, image, Protocol(scales=(0.5, 1, 1.75))).softmax(1)
    assert network.sizes == [(11, 17), (21, 33), (36, 57)]
    expected = sum(
        corners(network(corners(image, size))["out"].softmax(1), (21, 33))
        for size in ((11, 17), (21, 33), (36, 57))
    )
    torch.testing.assert_close(found, expected / 3)


@pytest.mark.parametrize(
    ("length", "window", "starts"),
    [(473, 473, [0]), (474, 473, [0, 1]), (800, 473, [0, 316, 327]), (100, 473, [0])],
)
def test_window_starts(length, window, starts):
    assert window_starts(length, window) == starts


@pytest.mark.parametrize("length", range(9, 40))
def test_windows_cover_everything_in_as_few_steps_as_the_formula_says(length):
    starts = window_starts(length, 9)
    assert len(starts) == math.ceil((length - 9) / 6) + 1
    assert {i for start in starts for i in range(start, start + 9)} == set(range(length))


def test_windows_average_where_they_overlap(image):
    network = Pixelwise()
    found = class_scores(network, image, Protocol(window=(12, 30))).softmax(1)
    assert network.sizes == [(12, 30)] * 6
    total, visits = torch.zeros(2, 3, 21, 33), torch.zeros(21, 33)
    for top in (0, 8, 9):
        for left in (0, 3):
            part = network(image[..., top : top + 12, left : left + 30])["out"].softmax(1)
            total[..., top : top + 12, left : left + 30] += part
            visits[top : top + 12, left : left + 30] += 1
    torch.testing.assert_close(found, total / visits)


def test_an_image_smaller_than_the_window_is_padded_with_zeros(image):
    network = Pixelwise()
    found = class_scores(network, image, Protocol(window=(30, 40))).softmax(1)
    padded = F.pad(image, (0, 7, 0, 9))
    assert network.sizes == [(30, 40)]
    torch.testing.assert_close(found, network(padded)["out"].softmax(1)[..., :21, :33])


def test_smaller_scores_are_enlarged(image):
    found = class_scores(Pixelwise(stride=2), image, Protocol(flip=True))
    assert found.shape == (2, 3, 21, 33)


@pytest.mark.parametrize(
    "bad", [{"scales": ()}, {"scales": (0.5, 0)}, {"window": (0, 3)}, {"merge": "mean"}]
)
def test_errors(bad):
    with pytest.raises(EngineError, match=f"{next(iter(bad))} must be"):
        Protocol(**bad)
