"""Flip, crop and jitter of boxes, masks and labels: always the same place in all of them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from segkern.data import open_dataset
from segkern.transforms import (
    HorizontalFlip,
    InstanceTransform,
    LargeScaleJitter,
    RandomCrop,
    build_instance_transform,
)


def recipe(**fields) -> SimpleNamespace:
    known = {"flip": False, "crop": None, "jitter": None}
    return SimpleNamespace(**{**known, "resize": None, "scale": None, "elastic": None, **fields})


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coded(height: int, width: int, objects: int = 5) -> tuple[torch.Tensor, dict]:
    """A picture whose first channel is the object's number, and the target of these objects."""
    rng = np.random.default_rng(0)
    ids = np.zeros((height, width), dtype=np.uint8)
    for k in range(1, objects + 1):
        y, x = int(rng.integers(height)), int(rng.integers(width))
        ids[y : y + max(height // 3, 1), x : x + max(width // 3, 1)] = k
    numbers = [k for k in range(1, objects + 1) if (ids == k).any()]
    masks = torch.from_numpy(np.array([ids == k for k in numbers], dtype=np.uint8))
    masks = masks.reshape(len(numbers), height, width)
    image = torch.from_numpy(np.repeat(ids[None], 3, axis=0))
    semantic = torch.where(torch.from_numpy(ids) > 0, 0, 2).long()
    return image, {
        "boxes": boxes_of(masks),
        "labels": torch.tensor(numbers),
        "masks": masks,
        "iscrowd": torch.zeros(len(numbers), dtype=torch.bool),
        "area": masks.sum((1, 2)).float(),
        "image_id": torch.tensor(3),
        "semantic": semantic,
    }


def boxes_of(masks: torch.Tensor) -> torch.Tensor:
    found = []
    for mask in masks:
        rows, columns = mask.nonzero(as_tuple=True)
        found.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return torch.tensor(found, dtype=torch.float32).reshape(-1, 4)


def check(image: torch.Tensor, target: dict) -> None:
    """What must hold of every target whose boxes were fitted to its masks."""
    size = image.shape[-2:]
    number = len(target["labels"])
    assert target["masks"].shape == (number, *size) and target["masks"].dtype == torch.uint8
    assert target["semantic"].shape == size and target["semantic"].dtype == torch.int64
    assert target["boxes"].shape == (number, 4) and target["boxes"].dtype == torch.float32
    assert torch.equal(target["boxes"], boxes_of(target["masks"]))
    assert torch.equal(target["area"], target["masks"].sum((1, 2)).float())
    assert target["iscrowd"].shape == (number,) and target["image_id"] == 3


def test_flip():
    image, target = coded(6, 10)
    for again in (False, True):
        flipped, mirrored = HorizontalFlip(1.0)(image, target, None)
        assert torch.equal(flipped, image.flip(-1))
        check(flipped, mirrored)
        assert torch.equal(mirrored["semantic"], target["semantic"].flip(-1))
        assert torch.equal(mirrored["labels"], target["labels"])
        back, twice = HorizontalFlip(1.0)(flipped, mirrored, None)
        assert torch.equal(back, image)
        assert all(torch.equal(twice[k], target[k]) for k in target)
        # Boxes that are not those of the masks are mirrored as they are.
        target = {**target, "boxes": target["boxes"] + 0.25} if again else target
    unchanged = HorizontalFlip(0.0)(image, target, None)
    assert unchanged[0] is image and unchanged[1] is target


def test_flip_happens_half_of_the_times():
    image, target = coded(4, 7)
    flip = HorizontalFlip()
    flips = sum(flip(image, target, generator(k))[0] is not image for k in range(200))
    assert 70 < flips < 130


@pytest.mark.parametrize("size", [(4, 5), (1, 1), (30, 3), (100, 100)])
def test_crop(size):
    image, target = coded(12, 16)
    before = {k: v.clone() for k, v in target.items()}
    for seed in range(20):
        cut, rest = RandomCrop(size, smallest=1)(image, target, generator(seed))
        assert cut.shape[1:] == (min(size[0], 12), min(size[1], 16))
        check(cut, rest)
        # The picture tells which objects are left, and where.
        assert rest["labels"].tolist() == sorted(set(cut[0].unique().tolist()) - {0})
        for label, mask in zip(rest["labels"], rest["masks"], strict=True):
            assert torch.equal(mask.bool(), cut[0] == label)
        assert torch.equal(rest["semantic"], torch.where(cut[0] > 0, 0, 2))
    assert all(torch.equal(target[k], before[k]) for k in target)


def test_crop_reaches_every_place():
    image, target = coded(5, 4)
    image = torch.arange(20).reshape(1, 5, 4).repeat(3, 1, 1)
    corners = {int(RandomCrop((3, 3))(image, target, generator(k))[0][0, 0, 0]) for k in range(80)}
    assert corners == {0, 1, 4, 5, 8, 9}


def test_tiny_objects_are_left_out():
    image, target = coded(12, 12, objects=1)
    target["masks"].zero_()
    target["masks"][0, 2:9, 4:6] = 1
    for smallest, number in ((2, 1), (2.5, 0)):
        rest = RandomCrop((12, 12), smallest)(image, target, None)[1]
        assert len(rest["labels"]) == number and rest["masks"].shape == (number, 12, 12)


def test_jitter_outwards_pads():
    image, target = coded(20, 30)
    cut, rest = LargeScaleJitter(0.5, 0.5, smallest=1)(image, target, generator(0))
    assert cut.shape == image.shape and cut.dtype == torch.uint8
    check(cut, rest)
    assert (rest["semantic"][10:] == 255).all() and (rest["semantic"][:, 15:] == 255).all()
    assert (rest["semantic"][:10, :15] != 255).all()
    assert cut[:, 19, 29].tolist() == [124, 116, 104]
    assert not rest["masks"][:, 10:].any() and not rest["masks"][:, :, 15:].any()
    shrunk = target["masks"][:, 1::2, 1::2]
    assert torch.equal(rest["masks"][:, :10, :15], shrunk[shrunk.amax((1, 2)) > 0])
    light = LargeScaleJitter(0.5, 0.5)(image.float() / 255, target, generator(0))[0]
    assert light[0, 19, 29] == pytest.approx(124 / 255)


def test_jitter_inwards_enlarges():
    image, target = coded(20, 30)
    smooth = torch.stack(torch.meshgrid(torch.arange(20), torch.arange(30), indexing="ij"))
    picture = torch.cat([smooth, smooth[:1]]).to(torch.float32)
    for seed in range(10):
        cut, rest = LargeScaleJitter(2.0, 2.0, smallest=1)(picture, target, generator(seed))
        assert cut.shape == picture.shape
        check(cut, rest)
        rows, columns = cut[0].round().long(), cut[1].round().long()
        steps = cut[1, 10].diff()
        assert steps[3:-3] == pytest.approx([0.5] * 23, abs=1e-4)
        # Labels lie where the picture was sampled, to half a pixel.
        near = target["semantic"][rows.clamp(max=19), columns.clamp(max=29)]
        assert (near == rest["semantic"]).float().mean() > 0.85


def test_jitter_range_and_identity():
    image, target = coded(40, 40)
    same, unchanged = LargeScaleJitter(1.0, 1.0, smallest=1)(image, target, generator(0))
    assert torch.equal(same, image) and torch.equal(unchanged["masks"], target["masks"])
    sides = []
    for seed in range(60):
        semantic = LargeScaleJitter(0.25, 1.0)(image, target, generator(seed))[1]["semantic"]
        sides.append(int((semantic[0] != 255).sum()))
    assert min(sides) < 16 and max(sides) > 34 and np.mean(sides) == pytest.approx(25, abs=4)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 1), (3, 5)])
def test_small_images(size):
    image, target = coded(*size, objects=2)
    steps = [LargeScaleJitter(0.1, 3.0, smallest=1), RandomCrop((2, 2), 1), HorizontalFlip()]
    for seed in range(30):
        check(*InstanceTransform(steps)(image, target, generator(seed)))


def test_no_objects():
    image, target = coded(9, 11, objects=0)
    steps = [LargeScaleJitter(), RandomCrop((5, 5)), HorizontalFlip(1.0)]
    result = InstanceTransform(steps)(image, target, generator(0))
    assert result[1]["masks"].shape == (0, 5, 5) and result[1]["boxes"].shape == (0, 4)


def test_recipe():
    full = recipe(flip=True, crop=(5, 6), jitter=(0.5, 1.5))
    kinds = [type(step) for step in build_instance_transform(full, True).steps]
    assert kinds == [LargeScaleJitter, RandomCrop, HorizontalFlip]
    assert build_instance_transform(full, False).steps == []
    assert build_instance_transform(recipe(), True).steps == []
    for field, value in (("resize", (4, 4)), ("scale", (0.5, 2)), ("elastic", 10.0)):
        with pytest.raises(ValueError, match=f"{field} must not be set"):
            build_instance_transform(recipe(**{field: value}), True)


def test_same_generator_same_result_and_global_numbers_untouched():
    steps = build_instance_transform(recipe(flip=True, crop=(20, 20), jitter=(0.5, 2.0)), True)
    dataset = open_dataset("synthetic-panoptic:48x64", "val", transform=steps)
    state = torch.get_rng_state()
    (a, first), (b, second) = dataset[3], dataset[3]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a, b) and all(torch.equal(first[k], second[k]) for k in first)
    dataset.set_epoch(1)
    assert not torch.equal(dataset[3][0], a)
    for index in range(30):
        image, target = dataset[index]
        check(image, {**target, "image_id": 3})


def test_wrong_arguments():
    for make, match in (
        (lambda: HorizontalFlip(1.5), "p must be"),
        (lambda: RandomCrop((0, 4)), "size must be"),
        (lambda: RandomCrop((4, 4), 0), "smallest must be"),
        (lambda: LargeScaleJitter(0, 1), "0 < low <= high"),
        (lambda: LargeScaleJitter(2, 1), "0 < low <= high"),
        (lambda: LargeScaleJitter(1, 2, 0.5), "smallest must be"),
    ):
        with pytest.raises(ValueError, match=match):
            make()
