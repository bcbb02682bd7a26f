"""Cityscapes in the form of its packages: label ids by city, 19 classes out."""

from __future__ import annotations

import pytest
import torch

from segkern.data import CITYSCAPES_CLASSES, Cityscapes, DatasetError, open_dataset

# Training id of each label id 0..33, from the data set's table; 255 is what it leaves out.
TRAIN_IDS = [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8, 9, 10]
TRAIN_IDS += [11, 12, 13, 14, 15, 255, 255, 16, 17, 18]

FRAMES = ("aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313")


@pytest.fixture
def cityscapes(maker):
    for frame in FRAMES:
        city = frame.partition("_")[0]
        maker.image(f"leftImg8bit/train/{city}/{frame}_leftImg8bit.png")
        maker.mask(f"gtFine/train/{city}/{frame}_gtFine_labelIds.png", labels=(*range(34), 255))
        maker.mask(f"gtFine/train/{city}/{frame}_gtFine_instanceIds.png")
        maker.image(f"gtFine/train/{city}/{frame}_gtFine_color.png")
    return maker


def test_label_ids_become_training_ids(cityscapes):
    dataset = open_dataset(f"cityscapes:{cityscapes.root}", "train")
    assert isinstance(dataset, Cityscapes)
    assert [dataset.sample_name(i) for i in range(len(dataset))] == list(FRAMES)
    assert dataset.class_names == list(CITYSCAPES_CLASSES)
    assert dataset.num_classes == 19
    assert dataset.class_names[13] == "car"
    assert dataset.palette[13].tolist() == [0, 0, 142]
    image, mask = dataset[0]
    assert image.shape == (3, 12, 16)
    # The maker writes all labels in their order first.
    expected = torch.tensor([*TRAIN_IDS, 255])
    assert torch.equal(mask.flatten()[:35], expected)


def test_faults(cityscapes):
    root = cityscapes.root
    (root / "gtFine/train/aachen/aachen_000001_000019_gtFine_labelIds.png").unlink()
    cityscapes.mask("gtFine/train/bochum/bochum_000000_000313_gtFine_labelIds.png", labels=(7, 34))
    cityscapes.mask("gtFine/train/ulm/ulm_000000_000001_gtFine_labelIds.png")
    with pytest.raises(DatasetError) as error:
        open_dataset(f"cityscapes:{root}", "train")
    text = str(error.value)
    for part in (
        "image without mask",
        "no gtFine/train/aachen/aachen_000001_000019_gtFine_labelIds.png",
        "mask without image",
        "no image leftImg8bit/train/ulm/ulm_000000_000001_leftImg8bit.png",
        "labels 34; allowed are 0-33, 255",
    ):
        assert part in text
    with pytest.raises(DatasetError, match="no folder .*leftImg8bit.val and no folder .*gtFine"):
        open_dataset(f"cityscapes:{root}", "val")
