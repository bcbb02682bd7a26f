"""Image and mask are moved together."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torchvision.transforms import v2

from segkern.models._recipe import Recipe
from segkern.transforms import (
    PairTransform,
    RandomScale,
    ResizePair,
    build_eval_transform,
    build_train_transform,
)

PLAIN = Recipe(lr=0.1, batch_size=2, epochs=1)


def coded(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image that shows its own mask: large blocks whose grey is ten times the class."""
    rows, columns = torch.arange(height)[:, None] // 8, torch.arange(width)[None] // 8
    mask = (rows + 3 * columns) % 7 + 1
    return (mask * 10).to(torch.uint8).expand(3, -1, -1).clone(), mask


def agreement(image: torch.Tensor, mask: torch.Tensor) -> float:
    inside = mask != 255
    return (((image[0].float() / 10).round() == mask) & inside).sum().item() / inside.sum().item()


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nothing_asked_nothing_done():
    image, mask = coded(16, 24)
    for build in (build_train_transform, build_eval_transform):
        got = build(PLAIN)(image, mask, generator=generator(0))
        assert got[0] is image and got[1] is mask


def test_all_together_stays_aligned():
    recipe = dataclasses.replace(PLAIN, crop=(40, 56), scale=(0.75, 2.0), flip=True)
    transform = build_train_transform(recipe)
    for seed in range(20):
        image, mask = transform(*coded(64, 80), generator=generator(seed))
        assert image.shape == (3, 40, 56) and image.dtype == torch.uint8
        assert mask.shape == (40, 56) and mask.dtype == torch.int64
        assert type(image) is torch.Tensor and type(mask) is torch.Tensor
        assert agreement(image, mask) > 0.75


def test_crop_pads_image_with_fill_and_mask_with_ignore():
    recipe = dataclasses.replace(PLAIN, crop=(40, 40))
    image, mask = build_train_transform(recipe, fill=(1, 2, 3))(*coded(16, 24))
    outside = mask == 255
    assert 0 < outside.sum() < 1600
    for channel in range(3):
        assert (image[channel][outside] == channel + 1).all()
    assert agreement(image, mask) == 1
    image, mask = build_train_transform(recipe, ignore_index=9)(*coded(16, 24))
    assert (image[0][mask == 9] == 0).all() and (mask == 9).any()


def test_flip_happens_half_the_time():
    image, mask = coded(16, 24)
    transform = build_train_transform(dataclasses.replace(PLAIN, flip=True))
    flipped = 0
    for seed in range(60):
        new_image, new_mask = transform(image, mask, generator=generator(seed))
        if not torch.equal(new_mask, mask):
            flipped += 1
            assert torch.equal(new_mask, mask.flip(1)) and torch.equal(new_image, image.flip(2))
    assert 15 < flipped < 45


def test_scale_range():
    sizes = set()
    for seed in range(40):
        image, mask = PairTransform([RandomScale(0.5, 2.0)])(
            *coded(32, 48), generator=generator(seed)
        )
        assert image.shape[1:] == mask.shape
        assert 16 <= mask.shape[0] <= 64 and abs(mask.shape[1] / mask.shape[0] - 1.5) < 0.1
        sizes.add(tuple(mask.shape))
    assert len(sizes) > 20


@pytest.mark.parametrize("size", [(24, 40), (97, 131), (64, 80)])
def test_resize_in_both_builds(size):
    recipe = dataclasses.replace(PLAIN, resize=size)
    results = [
        build(recipe)(*coded(64, 80)) for build in (build_train_transform, build_eval_transform)
    ]
    for image, mask in results:
        assert image.shape == (3, *size) and mask.shape == size
        assert set(mask.unique().tolist()) <= set(range(1, 8))
        assert agreement(image, mask) > 0.6


def test_mask_resize_is_centred():
    """Halving takes neither the upper left nor the lower right by preference."""
    mask = torch.arange(9)[None].expand(9, -1).contiguous()
    image = torch.zeros(3, 9, 9, dtype=torch.uint8)
    _, small = PairTransform([ResizePair((3, 3))])(image, mask)
    assert small[0].tolist() == [1, 4, 7]


def test_colour_jitter_leaves_the_mask():
    image, mask = coded(16, 24)
    new_image, new_mask = build_train_transform(PLAIN, color_jitter=0.4)(
        image, mask, generator=generator(0)
    )
    assert torch.equal(new_mask, mask) and not torch.equal(new_image, image)


def test_generator_decides_alone():
    transform = build_train_transform(dataclasses.replace(PLAIN, crop=(20, 20), flip=True))
    image, mask = coded(64, 80)
    torch.manual_seed(1)
    first = transform(image, mask, generator=generator(5))
    torch.manual_seed(2)
    second = transform(image, mask, generator=generator(5))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    others = [transform(image, mask, generator=generator(s))[1] for s in range(6, 12)]
    assert any(not torch.equal(first[1], other) for other in others)


def test_without_a_generator_the_global_numbers_are_used():
    transform = PairTransform([v2.RandomCrop((5, 5))])
    image, mask = coded(64, 80)
    torch.manual_seed(1)
    first = transform(image, mask)
    torch.manual_seed(1)
    assert torch.equal(first[1], transform(image, mask)[1])


def test_wrong_arguments():
    image, mask = coded(16, 24)
    with pytest.raises(ValueError, match="image must be"):
        build_train_transform(PLAIN)(image, mask[:8])
    with pytest.raises(ValueError, match="low <= high"):
        RandomScale(2, 1)
    with pytest.raises(ValueError, match="size must be"):
        ResizePair((0, 4))
    with pytest.raises(ValueError, match="crop must be"):
        build_train_transform(dataclasses.replace(PLAIN, crop=(4,)))
