"""The specification's forms, and what a data set gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segkern.data import CAMVID_CLASSES, DatasetError, open_dataset


@pytest.mark.parametrize(
    "spec", ["", "lvis:/tmp", "coco:", "camvid", "camvid:", "folder:", "camvid:/no/such/folder"]
)
def test_error_lists_the_known_forms(spec):
    with pytest.raises(DatasetError, match="camvid:DIR") as caught:
        open_dataset(spec, "train")
    for form in ("synthetic:HxW", "folder:DIR"):
        assert form in str(caught.value)


@pytest.mark.parametrize("spec", ["synthetic:", "synthetic:240", "synthetic:ax3", "synthetic:-3x5"])
def test_wrong_synthetic_size(spec):
    with pytest.raises(DatasetError, match="HxW"):
        open_dataset(spec, "train")


def test_error_is_a_value_error():
    assert issubclass(DatasetError, ValueError)


def test_camvid_sample(camvid_maker):
    dataset = open_dataset(f"camvid:{camvid_maker.root}", "train")
    assert len(dataset) == 5
    assert dataset.num_classes == 11
    assert dataset.class_names == list(CAMVID_CLASSES)
    assert dataset.palette.shape == (11, 3) and dataset.palette.dtype == np.uint8
    assert dataset.ignore_index == 255
    image, mask = dataset[2]
    assert image.shape == (3, 12, 16) and image.dtype == torch.uint8
    assert mask.shape == (12, 16) and mask.dtype == torch.int64
    assert set(mask.unique().tolist()) == {0, 3, 10, 255}
    assert dataset.sample_name(2) == "02"


def test_camvid_pixels_are_those_of_the_file(camvid_maker):
    pixels = camvid_maker.image("train/02.png")
    labels = camvid_maker.mask("trainannot/02.png", labels=(1, 11, 4))
    image, mask = open_dataset(f"camvid:{camvid_maker.root}", "train")[2]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels)
    assert np.array_equal(mask.numpy(), np.where(labels == 11, 255, labels))


def test_index_out_of_range(camvid_maker):
    dataset = open_dataset(f"camvid:{camvid_maker.root}", "val")
    for index in (-1, 3):
        with pytest.raises(IndexError, match="must be in"):
            dataset[index]


def test_missing_split_folder(camvid_maker):
    with pytest.raises(DatasetError, match="test"):
        open_dataset(f"camvid:{camvid_maker.root}", "test")


def test_size_resizes_image_and_mask(camvid_maker):
    dataset = open_dataset(f"camvid:{camvid_maker.root}", "train", size=(6, 10))
    image, mask = dataset[0]
    assert image.shape == (3, 6, 10) and mask.shape == (6, 10)
    assert set(mask.unique().tolist()) <= {0, 3, 10, 255}


def test_length_takes_samples_spread_over_the_set(camvid_maker):
    spec = f"camvid:{camvid_maker.root}"
    dataset = open_dataset(spec, "train", length=2)
    assert [dataset.sample_name(i) for i in range(len(dataset))] == ["00", "02"]
    assert len(open_dataset(spec, "train", length=99)) == 5
    with pytest.raises(ValueError, match="length"):
        open_dataset(spec, "train", length=0)


def test_images_kept_in_memory_are_the_same(camvid_maker):
    camvid_maker.image("train/01.png", (7, 9))
    camvid_maker.mask("trainannot/01.png", (7, 9))
    spec = f"camvid:{camvid_maker.root}"
    plain, kept = open_dataset(spec, "train"), open_dataset(spec, "train", cache_images=True)
    for i in range(len(plain)):
        for a, b in zip(plain[i], kept[i], strict=True):
            assert torch.equal(a, b)
    kept[0][0].zero_()
    assert kept[0][0].any(), "a sample given out must not be the stored one"


def test_real_camvid(camvid_folder):
    train = open_dataset(f"camvid:{camvid_folder}", "train")
    val = open_dataset(f"camvid:{camvid_folder}", "val")
    assert (len(train), len(val)) == (367, 101)
    image, mask = val[0]
    assert image.shape == (3, 360, 480) and mask.shape == (360, 480)
