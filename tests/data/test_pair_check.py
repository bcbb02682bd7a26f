"""Bad files are named, all of them, before anything starts."""

from __future__ import annotations

import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from segkern.data import DatasetError, _pairs, open_dataset, read_image, read_mask


def break_everything(maker) -> None:
    """One fault of each kind, beside five sound pairs."""
    maker.image("train/no_mask.png")
    maker.mask("trainannot/no_image.png")
    maker.image("train/cut.png")
    maker.mask("trainannot/cut.png")
    maker.truncate("train/cut.png")
    maker.image("train/cut_mask.png")
    maker.mask("trainannot/cut_mask.png")
    maker.truncate("trainannot/cut_mask.png")
    maker.text("train/text.png", "not an image")
    maker.mask("trainannot/text.png")
    maker.image("train/empty.png")
    maker.text("trainannot/empty.png", "")
    maker.image("train/small.png", (12, 16))
    maker.mask("trainannot/small.png", (11, 16))
    maker.image("train/label.png")
    maker.mask("trainannot/label.png", labels=(3, 12, 77, 255))
    maker.image("train/colour.png")
    maker.image("trainannot/colour.png")


def test_all_bad_files_in_one_error(camvid_maker):
    break_everything(camvid_maker)
    with pytest.raises(DatasetError) as caught:
        open_dataset(f"camvid:{camvid_maker.root}", "train")
    error = caught.value
    assert error.counts == {
        "image without mask": 1,
        "mask without image": 1,
        "unreadable image": 2,
        "unreadable mask": 3,
        "wrong size": 1,
        "label out of range": 1,
    }
    text = str(error)
    for path in (
        "train/no_mask.png",
        "trainannot/no_image.png",
        "train/cut.png",
        "trainannot/cut_mask.png",
        "train/text.png",
        "trainannot/empty.png",
        "trainannot/small.png",
        "trainannot/label.png",
        "trainannot/colour.png",
    ):
        assert path in text
    assert "9 bad files" in text
    assert "unreadable mask (3):" in text
    assert "mask is 16x11, image train/small.png is 16x12" in text
    assert "labels 12, 77; allowed are 0-11, 255" in text
    assert "got mode RGB" in text


def test_other_split_is_not_touched(camvid_maker):
    break_everything(camvid_maker)
    assert len(open_dataset(f"camvid:{camvid_maker.root}", "val")) == 3


def test_hundreds_of_bad_files_are_all_named(maker):
    for i in range(150):
        maker.image(f"train/{i:03d}.png", (2, 2))
        maker.mask(f"trainannot/{i:03d}.png", (2, 2), labels=(50,))
    with pytest.raises(DatasetError) as caught:
        open_dataset(f"camvid:{maker.root}", "train")
    assert caught.value.counts == {"label out of range": 150}
    assert all(f"trainannot/{i:03d}.png" in str(caught.value) for i in range(150))


def test_same_name_twice(camvid_maker):
    camvid_maker.image("train/00.jpg")
    with pytest.raises(DatasetError, match="same name twice"):
        open_dataset(f"camvid:{camvid_maker.root}", "train")


def test_empty_folders(maker):
    (maker.root / "train").mkdir()
    (maker.root / "trainannot").mkdir()
    with pytest.raises(DatasetError, match="no images found"):
        open_dataset(f"camvid:{maker.root}", "train")


def test_hidden_and_foreign_files_are_no_data(camvid_maker):
    camvid_maker.text("train/.DS_Store", "x")
    camvid_maker.text("train/._00.png", "x")
    camvid_maker.text("train/readme.txt", "x")
    assert len(open_dataset(f"camvid:{camvid_maker.root}", "train")) == 5


def test_verdict_is_kept_and_dropped_on_change(camvid_maker, cache_folder, monkeypatch):
    spec = f"camvid:{camvid_maker.root}"
    decoded = []
    real = _pairs.decode_mask
    monkeypatch.setattr(_pairs, "decode_mask", lambda path: decoded.append(path.name) or real(path))
    open_dataset(spec, "train")
    assert sorted(decoded) == [f"{i:02d}.png" for i in range(5)]
    assert len(list(cache_folder.rglob("*.json"))) == 1
    decoded.clear()
    open_dataset(spec, "train")
    assert decoded == []
    open_dataset(spec, "val")
    assert len(decoded) == 3
    decoded.clear()
    file = camvid_maker.root / "trainannot/03.png"
    camvid_maker.mask("trainannot/03.png", labels=(9, 20))
    os.utime(file, ns=(1, 1))
    with pytest.raises(DatasetError, match=r"trainannot/03.png: labels 20"):
        open_dataset(spec, "train")
    assert decoded == ["03.png"]
    with pytest.raises(DatasetError):
        open_dataset(spec, "train")


def test_damaged_cache_is_ignored(camvid_maker, cache_folder):
    spec = f"camvid:{camvid_maker.root}"
    open_dataset(spec, "train")
    (file,) = cache_folder.rglob("*.json")
    for content in ("", "{", "[]", '{"trainannot/00.png": 3}', '{"trainannot/00.png": [1, "x"]}'):
        file.write_text(content)
        assert len(open_dataset(spec, "train")) == 5
    file.write_bytes(b"\xff\xfe\x00")
    assert len(open_dataset(spec, "train")) == 5


def test_cache_that_cannot_be_written_is_no_error(camvid_maker, tmp_path, monkeypatch):
    blocked = tmp_path / "a_file"
    blocked.write_text("")
    monkeypatch.setenv("SEGKERN_CACHE", str(blocked / "below"))
    assert len(open_dataset(f"camvid:{camvid_maker.root}", "train")) == 5


@pytest.mark.parametrize("call", ["tempfile.NamedTemporaryFile", "os.replace", "json.dump"])
def test_read_only_or_full_cache_is_no_error(camvid_maker, cache_folder, monkeypatch, call):
    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(f"segkern.data._cache.{call}", refuse)
    assert len(open_dataset(f"camvid:{camvid_maker.root}", "train")) == 5
    assert [f for f in cache_folder.rglob("*") if f.is_file()] == []


def test_file_damaged_after_the_check_is_named(camvid_maker):
    dataset = open_dataset(f"camvid:{camvid_maker.root}", "train")
    camvid_maker.truncate("train/01.png")
    camvid_maker.mask("trainannot/02.png", labels=(99,))
    camvid_maker.mask("trainannot/03.png", (5, 5))
    (camvid_maker.root / "trainannot/04.png").unlink()
    for index, name in (
        (1, r"train/01.png"),
        (2, r"trainannot/02.png: label out of range"),
        (3, r"trainannot/03.png: mask is 5x5"),
        (4, r"trainannot/04.png: No such file"),
    ):
        with pytest.raises(DatasetError, match=name):
            dataset[index]


def test_error_from_a_worker_names_the_file(camvid_maker):
    dataset = open_dataset(f"camvid:{camvid_maker.root}", "train")
    camvid_maker.truncate("train/01.png")
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=1)
    with pytest.raises(DatasetError, match="train/01.png"):
        list(loader)


def test_error_survives_pickling(camvid_maker):
    break_everything(camvid_maker)
    with pytest.raises(DatasetError) as caught:
        open_dataset(f"camvid:{camvid_maker.root}", "train")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_same_times_and_names_elsewhere_are_checked_anew(camvid_maker, tmp_path):
    open_dataset(f"camvid:{camvid_maker.root}", "train")
    copy = tmp_path / "copy"
    shutil.copytree(camvid_maker.root, copy)
    assert len(open_dataset(f"camvid:{copy}", "train")) == 5


@pytest.mark.parametrize(
    ("mode", "array"),
    [
        ("L", np.full((2, 3), 100, np.uint8)),
        ("RGBA", np.full((2, 3, 4), 100, np.uint8)),
        ("I;16", np.full((2, 3), 100 * 256 + 7, np.uint16)),
    ],
)
def test_read_image_gives_rgb(tmp_path, mode, array):
    file = tmp_path / "x.png"
    Image.fromarray(array).save(file)
    assert Image.open(file).mode == mode
    pixels = read_image(file)
    assert pixels.shape == (2, 3, 3) and pixels.dtype == np.uint8 and (pixels == 100).all()


def test_read_image_turns_upright(tmp_path):
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    turned = read_image(tmp_path / "x.png")
    assert turned.shape == (4, 2, 3) and turned[0, 1, 0] == 255


def test_read_mask_forms(tmp_path):
    labels = np.array([[0, 1], [1, 255]], np.uint8)
    palette = Image.fromarray(labels)
    palette.putpalette(list(range(256)) * 3)
    palette.save(tmp_path / "p.png")
    assert Image.open(tmp_path / "p.png").mode == "P"
    assert np.array_equal(read_mask(tmp_path / "p.png"), labels)
    Image.fromarray(labels.astype(np.uint16)).save(tmp_path / "wide.png")
    assert np.array_equal(read_mask(tmp_path / "wide.png"), labels)
    Image.fromarray(labels == 1).save(tmp_path / "one.png")
    assert np.array_equal(read_mask(tmp_path / "one.png"), labels == 1)
    with pytest.raises(DatasetError, match="none.png"):
        read_mask(tmp_path / "none.png")
