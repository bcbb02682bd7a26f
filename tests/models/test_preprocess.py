"""The input scalings against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from segkern.models import preprocess
from segkern.models._preprocess import colour_scale, mean_pixel

PIXEL = torch.tensor([255, 51, 0], dtype=torch.uint8).view(1, 3, 1, 1)

EXPECTED = {
    "unit": [1.0, 0.2, 0.0],
    "bgr": [0.0, 51.0, 255.0],
    "caffe": [-104.00699, 51 - 116.66877, 255 - 122.67892],
    "symmetric": [1.0, -0.6, -1.0],
    "rgb_128": [127.0, 51.0 - 128, -128.0],
    "espnet": [
        -72.3923111 / 45.3192215 / 255,
        (51 - 82.90893555) / 46.15289307 / 255,
        (255 - 73.15840149) / 44.91483307 / 255,
    ],
    "bgr_voc": [-102.93, 51 - 111.36, 255 - 116.52],
    "bgr_camvid": [-110.703, 51 - 108.778, 255 - 105.412],
    "bgr_cityscapes": [-72.39, 51 - 82.91, 255 - 73.16],
    "imagenet": [(1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, -0.406 / 0.225],
}


@pytest.mark.parametrize("mode", EXPECTED)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_modes(mode, dtype, device):
    got = preprocess(PIXEL.to(device, dtype), mode)
    assert got.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    expected = torch.tensor(EXPECTED[mode], dtype=got.dtype, device=device)
    torch.testing.assert_close(got.flatten(), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("mode", EXPECTED)
def test_shapes_and_layouts(mode):
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    before = images.clone()
    batch = preprocess(images.to(memory_format=torch.channels_last), mode)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(preprocess(images[1], mode), batch[1])
    assert torch.equal(images, before)
    floats = images.float()
    preprocess(floats, mode)
    assert torch.equal(floats, before.float())


@pytest.mark.parametrize("mode", EXPECTED)
def test_the_mean_pixel_is_near_zero_and_colours_have_their_scale(mode):
    mean = torch.tensor(mean_pixel(mode)).view(3, 1, 1)
    factors = torch.tensor(colour_scale(mode)).view(3, 1, 1)
    levels = preprocess(mean.float(), mode) * factors
    assert levels.abs().max() <= 0.501
    brighter = preprocess(mean.float() + 10, mode) * factors
    torch.testing.assert_close(brighter - levels, torch.full((3, 1, 1), 10.0), rtol=1e-4, atol=1e-4)


def test_errors():
    with pytest.raises(ValueError, match="mode must be one of unit, caffe, bgr, imagenet"):
        preprocess(PIXEL, "rgb")
    with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\)"):
        preprocess(torch.zeros(1, 4, 2, 2), "unit")
    with pytest.raises(TypeError, match="uint8 or floating"):
        preprocess(PIXEL.long(), "unit")
