"""Class weights against the numbers of the papers' specification."""

from __future__ import annotations

import json

import pytest
import torch

from segkern.data import SEGNET_CAMVID_WEIGHTS, ClassCounts, class_weights, open_dataset
from segkern.data.class_weights import count_classes, enet_weights, median_frequency_weights

IMAGE_PIXELS = 360 * 480
PIXELS = (
    10682767,
    14750079,
    623349,
    20076880,
    2845085,
    6166762,
    743859,
    714595,
    3719877,
    405385,
    184967,
)
IMAGES = (366, 365, 366, 367, 349, 319, 351, 173, 360, 317, 201)
CAMVID = ClassCounts(PIXELS, tuple(n * IMAGE_PIXELS for n in IMAGES), 2503995, 367 * IMAGE_PIXELS)
"""CamVid's training split, 360x480."""

MEDIAN_11 = (0.2793, 0.2017, 4.7865, 0.1490, 1.0, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747, 8.8587)
MEDIAN_12 = (
    0.2565,
    0.1853,
    4.3963,
    0.1369,
    0.9185,
    0.3873,
    3.5331,
    1.8127,
    0.7246,
    5.8550,
    8.1365,
    1.0974,
)
ENET_11 = (
    5.6035,
    4.2953,
    33.5736,
    3.3355,
    15.4856,
    8.7387,
    31.5420,
    32.0120,
    12.8288,
    38.0141,
    43.9074,
)
ENET_12 = (
    5.7920,
    4.4403,
    34.0217,
    3.4469,
    15.9119,
    9.0202,
    32.0138,
    32.4789,
    13.2071,
    38.3877,
    44.1345,
    17.3064,
)


def same(got: torch.Tensor, wanted: tuple[float, ...]) -> None:
    assert got.dtype == torch.float32 and got.shape == (len(wanted),)
    torch.testing.assert_close(got, torch.tensor(wanted), rtol=0, atol=5.1e-5)


def test_camvid_vectors_from_the_counts():
    same(median_frequency_weights(CAMVID), MEDIAN_11)
    same(median_frequency_weights(CAMVID.with_void()), MEDIAN_12)
    same(enet_weights(CAMVID), ENET_11)
    same(enet_weights(CAMVID.with_void()), ENET_12)


def test_camvid_vectors_from_the_files(camvid_folder):
    train = open_dataset(f"camvid:{camvid_folder}", "train")
    assert count_classes(train) == CAMVID
    same(class_weights(train, "median_frequency"), MEDIAN_11)
    same(class_weights(train, "median_frequency", with_void=True), MEDIAN_12)
    same(class_weights(train, "enet"), ENET_11)
    same(class_weights(train, "enet", with_void=True), ENET_12)
    same(class_weights(train, "segnet_camvid"), SEGNET_CAMVID_WEIGHTS)


def test_by_hand():
    # Two images of 4 pixels: class 0 in both (4 of 8), class 1 in one (2 of 4), class 2 in one (1).
    counts = ClassCounts((4, 2, 1, 0), (8, 4, 4, 0), 1, 4)
    assert median_frequency_weights(counts).tolist() == [1.0, 1.0, 2.0, 0.0]
    assert enet_weights(counts, c=2.0)[3].item() == pytest.approx(1.4426950)


def test_files_are_counted_without_the_transform(camvid_maker):
    spec = f"camvid:{camvid_maker.root}"
    plain = count_classes(open_dataset(spec, "train"))
    assert sum(plain.pixels) + plain.void == 5 * 12 * 16

    def fail(image, mask, generator):
        raise AssertionError("the transform must not run")

    assert count_classes(open_dataset(spec, "train", transform=fail)) == plain
    dataset = open_dataset(spec, "train")
    dataset.label_counts = lambda: None
    assert count_classes(dataset) == plain, "counting pixels and the check's counts agree"


def test_resized_files_are_counted_at_their_new_size(camvid_maker):
    counts = count_classes(open_dataset(f"camvid:{camvid_maker.root}", "train", size=(6, 8)))
    assert sum(counts.pixels) + counts.void == 5 * 6 * 8


def test_synthetic_counts_are_of_epoch_zero():
    dataset = open_dataset("synthetic:40x48", "train", length=4)
    first = count_classes(dataset)
    dataset.set_epoch(3)
    assert count_classes(dataset) == first and dataset.epoch == 3


def test_counts_are_kept(camvid_maker, tmp_path, monkeypatch):
    spec, folder = f"camvid:{camvid_maker.root}", tmp_path / "kept"
    dataset = open_dataset(spec, "train")
    first = class_weights(dataset, "enet", folder)
    (file,) = folder.iterdir()
    value = json.loads(file.read_text())
    assert value["identity"] == dataset.identity()
    monkeypatch.setattr(type(dataset), "label_counts", lambda self: 1 / 0)
    assert torch.equal(class_weights(dataset, "enet", folder), first)
    class_weights(dataset, "median_frequency", folder)
    assert len(list(folder.iterdir())) == 1, "one file serves all methods"
    with pytest.raises(ZeroDivisionError):
        class_weights(dataset, "enet", False)


def test_changed_files_are_counted_anew(camvid_maker, tmp_path):
    spec, folder = f"camvid:{camvid_maker.root}", tmp_path / "kept"
    first = class_weights(open_dataset(spec, "train"), "enet", folder)
    camvid_maker.mask("trainannot/00.png", labels=(1, 2, 3, 4, 5))
    assert not torch.equal(class_weights(open_dataset(spec, "train"), "enet", folder), first)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"identity": 1}'])
def test_damaged_cache(camvid_maker, tmp_path, content):
    dataset = open_dataset(f"camvid:{camvid_maker.root}", "train")
    first = class_weights(dataset, "enet", tmp_path / "kept")
    (file,) = (tmp_path / "kept").iterdir()
    file.write_text(content)
    assert torch.equal(class_weights(dataset, "enet", tmp_path / "kept"), first)


def test_cache_that_cannot_be_written(camvid_maker, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    dataset = open_dataset(f"camvid:{camvid_maker.root}", "train")
    assert class_weights(dataset, "enet", blocked / "below").shape == (11,)


def test_wrong_arguments(maker, camvid_maker):
    dataset = open_dataset(f"camvid:{camvid_maker.root}", "train")
    with pytest.raises(ValueError, match="median_frequency, enet"):
        class_weights(dataset, "balanced")
    with pytest.raises(ValueError, match="11 classes"):
        class_weights(dataset, "segnet_camvid", with_void=True)
    with pytest.raises(ValueError, match="above 1"):
        class_weights(dataset, "enet", c=1.0)


def test_segnets_vector_is_for_camvid_alone(camvid_maker):
    files = open_dataset(f"camvid:{camvid_maker.root}", "train")
    assert torch.equal(class_weights(files, "segnet"), torch.tensor(SEGNET_CAMVID_WEIGHTS))
    drawn = open_dataset("synthetic:32x32", "train", length=3)
    assert torch.equal(class_weights(drawn, "segnet"), class_weights(drawn, "median_frequency"))
