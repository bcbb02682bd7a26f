"""Rotation, blur, trimming, passes and the ways of padding a crop, against numpy and scipy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from segkern.data import open_dataset
from segkern.models import Recipe
from segkern.transforms import (
    CropWithMargin,
    PadTo,
    PairTransform,
    RandomTurn,
    ScalePair,
    TrimAndResize,
    build_train_transform,
)

PLAIN = Recipe(lr=0.1, batch_size=2, epochs=1)
FILL = (9, 19, 29)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_pair(height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = generator(seed)
    image = torch.randint(0, 256, (3, height, width), generator=numbers, dtype=torch.uint8)
    return image, torch.randint(0, 7, (height, width), generator=numbers)


def located(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image and a mask whose values say which row and column a pixel is from."""
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width)[None].expand(height, width)
    return torch.stack([rows, columns, rows + columns]).to(torch.uint8), rows * 200 + columns


def turned(image: np.ndarray, degrees: float, fill: np.ndarray) -> np.ndarray:
    """Counter-clockwise about the middle, bilinear in float64 and blended with the fill."""
    channels, height, width = image.shape
    angle = np.deg2rad(degrees)
    down, right = np.mgrid[:height, :width].astype(float)
    y, x = down - (height - 1) / 2, right - (width - 1) / 2
    rows = np.cos(angle) * y + np.sin(angle) * x + (height - 1) / 2
    columns = -np.sin(angle) * y + np.cos(angle) * x + (width - 1) / 2
    rows, columns = rows.round(9), columns.round(9)
    out = np.zeros(image.shape)
    covered = np.zeros((height, width))
    for row, row_weight in ((np.floor(rows), 1 - rows % 1), (np.floor(rows) + 1, rows % 1)):
        for column, weight in (
            (np.floor(columns), 1 - columns % 1),
            (np.floor(columns) + 1, columns % 1),
        ):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            at = np.clip(row, 0, height - 1).astype(int), np.clip(column, 0, width - 1).astype(int)
            share = row_weight * weight * inside
            covered += share
            out += share * image[(slice(None), *at)]
    return out + (1 - covered) * fill[:, None, None]


def test_rotation_agrees_with_numpy_for_images_and_masks():
    recipe = dataclasses.replace(PLAIN, rotate=10.0)
    transform = build_train_transform(recipe, fill=FILL)
    image, mask = random_pair(41, 60)
    one_hot = (mask == torch.arange(7)[:, None, None]).numpy().astype(float)
    angles = []
    for seed in range(24):
        new_image, new_mask = transform(image, mask, generator=generator(seed))
        if torch.equal(new_image, image):
            assert torch.equal(new_mask, mask)
            continue
        angle = drawn_angle(seed)
        angles.append(angle)
        expected = turned(image.numpy(), angle, np.array(FILL))
        assert np.abs(expected - new_image.numpy()).max() < 0.51  # rounded to whole levels
        votes = turned(one_hot, angle, np.zeros(7))
        sure = votes.max(0) > 0.9  # the nearest pixel has most of the weight
        assert sure.mean() > 0.02
        assert (new_mask.numpy()[sure] == votes.argmax(0)[sure]).all()
        outside = votes.sum(0) < 1e-6
        assert (new_mask.numpy()[outside] == 255).all()
        assert all((new_image.numpy()[c][outside] == FILL[c]).all() for c in range(3))
    assert 6 <= len(angles) <= 18
    assert min(angles) < -3 and max(angles) > 3 and max(map(abs, angles)) <= 10


def drawn_angle(seed: int) -> float:
    """The angle of a draw: a first number decides whether, a second one how far."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator(seed))))
        torch.rand(())
        return 10 * (2 * torch.rand(()).item() - 1)


def test_blur_agrees_with_numpy_and_leaves_the_mask():
    transform = build_train_transform(dataclasses.replace(PLAIN, blur=5))
    image, mask = random_pair(20, 31)
    taps = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 1.1**2))
    taps /= taps.sum()
    padded = np.pad(image.numpy().astype(float), ((0, 0), (2, 2), (2, 2)), mode="reflect")
    expected = sum(
        taps[i] * taps[j] * padded[:, i : i + 20, j : j + 31] for i in range(5) for j in range(5)
    )
    blurred = 0
    for seed in range(40):
        new_image, new_mask = transform(image, mask, generator=generator(seed))
        assert torch.equal(new_mask, mask)
        if not torch.equal(new_image, image):
            blurred += 1
            assert np.abs(new_image.numpy() - expected).max() < 0.51
    assert 10 < blurred < 30


def test_vertical_flip_happens_half_the_time():
    image, mask = located(16, 24)
    transform = build_train_transform(dataclasses.replace(PLAIN, vertical_flip=True))
    flipped = 0
    for seed in range(60):
        new_image, new_mask = transform(image, mask, generator=generator(seed))
        if not torch.equal(new_mask, mask):
            flipped += 1
            assert torch.equal(new_mask, mask.flip(0)) and torch.equal(new_image, image.flip(1))
    assert 15 < flipped < 45


@pytest.mark.parametrize("place", ["centre", "end"])
def test_crops_larger_than_the_image(place):
    recipe = dataclasses.replace(PLAIN, crop=(21, 40), crop_pad=place)
    image, mask = located(16, 60)
    top = 2 if place == "centre" else 0  # of the five rows that are missing
    for seed in range(5):
        new_image, new_mask = build_train_transform(recipe, fill=FILL)(
            image, mask, generator=generator(seed)
        )
        assert new_image.shape == (3, 21, 40) and new_mask.shape == (21, 40)
        left = int(new_mask[top, 0])
        inside = slice(top, top + 16), slice(0, 40)
        assert torch.equal(new_mask[inside], mask[:, left : left + 40])
        assert torch.equal(new_image[(slice(None), *inside)], image[:, :, left : left + 40])
        border = torch.ones(21, 40, dtype=torch.bool)
        border[inside] = False
        assert (new_mask[border] == 255).all()
        for channel in range(3):
            assert (new_image[channel][border] == FILL[channel]).all()
    black = dataclasses.replace(recipe, crop_colour="black")
    assert (build_train_transform(black, fill=FILL)(image, mask)[0][:, border] == 0).all()


def test_padding_of_both_axes_and_of_none():
    fills = {tv_tensors.Image: 0, tv_tensors.Mask: 255}
    image, mask = located(5, 6)
    _, padded = PairTransform([PadTo((8, 11), "centre", fills)])(image, mask)
    assert padded.shape == (8, 11) and torch.equal(padded[1:6, 2:8], mask)
    whole = PairTransform([PadTo((5, 4), "end", fills)])(image, mask)
    assert torch.equal(whole[0], image) and torch.equal(whole[1], mask)


def test_a_margin_is_seen_and_not_labelled():
    image, mask = random_pair(30, 44)
    step = PairTransform([CropWithMargin((12, 16), 40)])
    around = np.pad(image.numpy(), ((0, 0), (40, 40), (40, 40)), mode="reflect")
    places = set()
    for seed in range(12):
        new_image, new_mask = step(image, mask, generator=generator(seed))
        assert new_image.shape == (3, 92, 96) and new_mask.shape == (92, 96)
        labelled = new_mask[40:52, 40:56]
        found = [
            (top, left)
            for top in range(19)
            for left in range(29)
            if torch.equal(labelled, mask[top : top + 12, left : left + 16])
        ]
        assert len(found) == 1
        places.add(found[0])
        top, left = found[0]
        assert np.array_equal(new_image.numpy(), around[:, top : top + 92, left : left + 96])
        assert (new_mask == 255).sum() == 92 * 96 - 12 * 16
    assert len(places) > 8


def test_a_margin_around_an_image_smaller_than_the_window():
    image, mask = random_pair(7, 9)
    new_image, new_mask = PairTransform([CropWithMargin((10, 9), 3)])(image, mask)
    around = np.pad(image.numpy(), ((0, 0), (3, 6), (3, 3)), mode="reflect")
    assert np.array_equal(new_image.numpy(), around)
    assert torch.equal(new_mask[3:10, 3:12], mask) and (new_mask[10:] == 255).all()


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Enlarged, pixel centres at halves, in float64."""
    for axis, wanted in ((1, height), (2, width)):
        length = image.shape[axis]
        at = np.clip((np.arange(wanted) + 0.5) * length / wanted - 0.5, 0, length - 1)
        first = np.floor(at).astype(int)
        share = (at - first).reshape([-1 if a == axis else 1 for a in range(3)])
        upper = np.minimum(first + 1, length - 1)
        image = image.take(first, axis) * (1 - share) + image.take(upper, axis) * share
    return image


def test_trimmed_images_are_enlarged_again():
    image, mask = random_pair(40, 64)
    step = PairTransform([TrimAndResize(12)])
    lost = set()
    same = 0
    for seed in range(40):
        new_image, new_mask = step(image, mask, generator=generator(seed))
        if torch.equal(new_image, image):
            same += 1
            continue
        # At most a quarter of 40 rows, 12 of 64 columns.
        fits = []
        for rows in range(11):
            at = (np.arange(40) + 0.5) * (40 - 2 * rows) / 40
            for columns in range(13):
                across = (np.arange(64) + 0.5) * (64 - 2 * columns) / 64
                taken = mask.numpy()[rows + at.astype(int)][:, columns + across.astype(int)]
                if np.array_equal(taken, new_mask.numpy()):
                    fits.append((rows, columns))
        assert len(fits) == 1
        rows, columns = fits[0]
        kept = image.numpy().astype(float)[:, rows : 40 - rows, columns : 64 - columns]
        # Rounded after the rows and after the columns.
        assert np.abs(bilinear(kept, 40, 64) - new_image.numpy()).max() < 1.01
        lost.add(fits[0])
    assert 8 < same < 32 and len(lost) > 5


def test_passes_take_turns_by_epoch():
    recipe = dataclasses.replace(PLAIN, passes=((1.5, 1.5, 0), (0.5, 0.8, 4)))
    transforms = build_train_transform(recipe)
    dataset = open_dataset("synthetic:32x60", "train", transform=transforms, length=2)
    shapes = []
    for epoch in range(4):
        dataset.set_epoch(epoch)
        image, mask = dataset[1]
        assert image.shape[1:] == mask.shape
        assert torch.equal(dataset[1][0], image)
        shapes.append(tuple(mask.shape))
    assert shapes == [(48, 88), (16, 48)] * 2  # multiples of 8: 90 and 48
    sized = build_train_transform(recipe, size=(40, 80))
    assert sized[0](*located(20, 30))[1].shape == (64, 120)


def test_geometry_of_all_steps_together():
    """Rows and columns that image and mask show are the same, rotation and all."""
    recipe = dataclasses.replace(
        PLAIN, scale=(0.8, 1.6), rotate=10.0, crop=(56, 72), crop_pad="centre", flip=True,
        vertical_flip=True,
    )  # fmt: skip
    image, mask = located(64, 80)
    for seed in range(10):
        new_image, new_mask = build_train_transform(recipe)(image, mask, generator=generator(seed))
        known = new_mask != 255
        rows, columns = new_mask // 200, new_mask % 200
        off = (new_image[0].float() - rows).abs().maximum((new_image[1].float() - columns).abs())
        assert known.float().mean() > 0.5
        assert (off[known] <= 1.5).float().mean() > 0.97  # but for the rotation's soft border
        again = build_train_transform(recipe)(image, mask, generator=generator(seed))
        assert torch.equal(again[0], new_image) and torch.equal(again[1], new_mask)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PadTo((4, 4), "left", {}), "PadTo: place must be 'centre' or 'end', got 'left'"),
        (lambda: PadTo((0, 4), "end", {}), "PadTo: size must be"),
        (lambda: RandomTurn(200.0, {}), "RandomTurn: degrees must be between 0 and 180, got 200"),
        (lambda: CropWithMargin((4, 4), -1), "CropWithMargin: margin must be at least 0, got -1"),
        (lambda: TrimAndResize(2.5), "TrimAndResize: pixels must be an int of at least 0, got 2.5"),
        (lambda: ScalePair(0, 1), "ScalePair: height and width must be above 0, got 0 and 1"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
