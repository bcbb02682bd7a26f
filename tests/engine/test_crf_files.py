"""Dense CRF on files: what is read and written, what is refused; and inside a trained network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import segkern.crf as dcrf
from segkern.crf.utils import unary_from_labels
from segkern.data import DatasetError, default_palette
from segkern.data.image_io import UnreadableError
from segkern.engine.crf_evidence import parse_unknown, read_evidence
from segkern.engine.crf_files import refine_files
from segkern.engine.crf_settings import PRESETS, CrfSettings, find_settings
from segkern.engine.errors import EngineError
from segkern.engine.evaluate import evaluate
from segkern.engine.loading import load_trained
from segkern.engine.predict import predict

SIZE = (21, 30)
SETTINGS = PRESETS["densecrf"]


def scene(folder: Path, name: str = "a", size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    """A photograph of a bright square before a dark ground."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 40, (*size, 3)).astype(np.uint8)
    image[4:15, 6:20] += 180
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    Image.fromarray(image).save(path)
    return path


def truth(size: tuple[int, int] = SIZE) -> np.ndarray:
    rows = np.zeros(size, np.int64)
    rows[4:15, 6:20] = 1
    return rows


def noisy(count: int = 2, seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """`truth` with a fifth of the pixels drawn at random from `count` rows."""
    rng = np.random.default_rng(seed)
    random = rng.integers(0, count, size)
    return np.where(rng.random(size) < 0.2, random, truth(size))


def save_map(path: Path, labels: np.ndarray, mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels if mode in ("1", "RGB") else labels.astype(np.uint8))
    if mode == "P":
        picture.putpalette(default_palette(256)[::-1].tobytes())
    picture.save(path)
    return path


def read(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file)


# One image ----------------------------------------------------------------------------------------


def test_labels_are_those_of_pydensecrfs_calls(tmp_path: Path) -> None:
    image, labels = scene(tmp_path), noisy(3)
    labels[::4] = 3  # the unknown ones
    values = np.array([0, 15, 255, 1])
    save_map(tmp_path / "l.png", values[labels])
    settings = CrfSettings(2.0, 2.0, 20.0, 30.0, 4.0, "after", 3)
    refine_files(
        image, tmp_path / "l.png", tmp_path / "o.png", settings, certainty=0.6, unknown=1,
        device="cpu",
    )  # fmt: skip
    crf = dcrf.DenseCRF2D(SIZE[1], SIZE[0], 3)
    crf.setUnaryEnergy(unary_from_labels((labels + 1) % 4, 3, 0.6))
    after = dcrf.NORMALIZE_AFTER
    crf.addPairwiseGaussian(sxy=2, compat=2, normalization=after)
    crf.addPairwiseBilateral(sxy=20, srgb=30, rgbim=read(image), compat=4, normalization=after)
    wanted = values[:3][np.array(crf.inference(3)).argmax(0).reshape(SIZE)]
    found = read(tmp_path / "o.png")
    assert np.array_equal(found, wanted) and set(np.unique(found)) <= {0, 15, 255}


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGB", "I;16"])
def test_maps_keep_their_kind_values_and_colours(tmp_path: Path, mode: str) -> None:
    image, rows = scene(tmp_path), noisy()
    colours = np.array([[200, 10, 20], [0, 90, 255]], np.uint8)
    stored = {
        "L": rows * 255, "P": rows + 7, "1": rows == 1, "RGB": colours[rows],
        "I;16": rows * 40000 + 5,
    }[mode]  # fmt: skip
    path = tmp_path / "l.png"
    if mode == "I;16":
        Image.fromarray(stored.astype(np.uint16)).save(path)
    else:
        save_map(path, stored, mode)
    refine_files(image, path, tmp_path / "o.png", SETTINGS, device="cpu")
    before, after = Image.open(path), Image.open(tmp_path / "o.png")
    assert after.mode == before.mode and after.getpalette() == before.getpalette()
    good, changed = truth() == 1, np.asarray(after)
    assert len(np.unique(changed[good], axis=0)) == len(np.unique(changed[~good], axis=0)) == 1
    values = {tuple(np.atleast_1d(v).tolist()) for v in np.asarray(before).reshape(rows.size, -1)}
    assert {tuple(np.atleast_1d(v)) for v in changed.reshape(rows.size, -1).tolist()} == values


def test_black_is_unknown_in_colours_alone(tmp_path: Path) -> None:
    rows = noisy(3)
    table = np.array([[0, 0, 0], [9, 9, 9], [0, 0, 1]], np.uint8)
    colours = save_map(tmp_path / "c.png", table[rows], "RGB")
    assert (read_evidence(colours).rows < 0).sum() == (rows == 0).sum()
    assert (read_evidence(colours, None).rows < 0).sum() == 0
    assert np.array_equal(read_evidence(colours, (9, 9, 9)).rows < 0, rows == 1)
    numbers = save_map(tmp_path / "n.png", rows)
    assert (read_evidence(numbers).rows < 0).sum() == 0
    indexed = save_map(tmp_path / "p.png", rows, "P")  # index 255 is black there
    assert (read_evidence(indexed).rows < 0).sum() == 0
    colour = tuple(default_palette(256)[::-1][2].tolist())
    assert np.array_equal(read_evidence(indexed, colour).rows < 0, rows == 2)
    with pytest.raises(UnreadableError, match="unknown must be a colour"):
        read_evidence(colours, 1)
    with pytest.raises(UnreadableError, match="unknown must be a label"):
        read_evidence(numbers, (0, 0, 0))
    with pytest.raises(UnreadableError, match="every pixel is unknown"):
        read_evidence(save_map(tmp_path / "z.png", rows * 0), 0)
    assert parse_unknown("#0A00ff") == (10, 0, 255) and parse_unknown("255") == 255
    with pytest.raises(EngineError, match="unknown must be"):
        parse_unknown("black")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_probabilities_come_and_go(tmp_path: Path, suffix: str) -> None:
    image = scene(tmp_path)
    given = np.random.default_rng(0).dirichlet([1, 1, 1], SIZE).transpose(2, 0, 1)
    given[:, 0, 0] = [1, 0, 0]  # a zero must not become infinite
    path = tmp_path / f"p{suffix}"
    if suffix == ".npy":
        np.save(path, given.astype(np.float16))
    elif suffix == ".npz":
        np.savez(path, probs=given, labels=np.array([3, 5, 9]), other=np.zeros(2))
    else:
        save_file({"x": torch.from_numpy(given).bfloat16().contiguous()}, path)
    refine_files(image, path, tmp_path / f"o{suffix}", SETTINGS, device="cpu")
    found = read_evidence(tmp_path / f"o{suffix}")
    assert found.probabilities.shape == (3, *SIZE)
    assert found.values.tolist() == ([3, 5, 9] if suffix == ".npz" else [0, 1, 2])
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)
    refine_files(image, path, tmp_path / "o.png", SETTINGS, device="cpu")
    labels = read(tmp_path / "o.png")
    assert np.array_equal(labels, found.values[found.probabilities.argmax(0)])
    assert Image.open(tmp_path / "o.png").mode == "P"


def test_pictures(tmp_path: Path) -> None:
    image, path = scene(tmp_path), save_map(tmp_path / "l.png", noisy(), "P")
    for save in ("overlay", "panel"):
        refine_files(image, path, tmp_path / f"{save}.png", SETTINGS, save=save, device="cpu")
    assert read(tmp_path / "overlay.png").shape == (*SIZE, 3)
    assert read(tmp_path / "panel.png").shape[1] > 3 * SIZE[1]
    refine_files(image, path, tmp_path / "l.npy", SETTINGS, save="labels", device="cpu")
    refine_files(image, path, tmp_path / "o.png", SETTINGS, device="cpu")
    assert np.array_equal(np.load(tmp_path / "l.npy"), read(tmp_path / "o.png"))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, *SIZE), np.float32), "add up to 1"),
        (np.full((2, *SIZE), np.nan), "add up to 1"),
        (np.full((*SIZE, 2), 0.5), "add up to 1"),
        (np.zeros((2, *SIZE), np.int64), "must be floating"),
        (np.full((300, 2, 2), 1 / 300), "at most 256 labels"),
        (np.arange(300).reshape(20, 15), "at most 256"),
        (np.zeros((0, 5), np.int64), "empty"),
        (np.array([{}]), "no readable array"),
    ],
)
def test_arrays_that_are_neither_are_refused(
    tmp_path: Path, array: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "p.npy", array, allow_pickle=True)
    with pytest.raises(UnreadableError, match=message):
        read_evidence(tmp_path / "p.npy")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    for suffix in (".npy", ".npz", ".safetensors", ".png"):
        path = tmp_path / f"x{suffix}"
        for content in (b"", b"no file of this kind at all"):
            path.write_bytes(content)
            with pytest.raises(UnreadableError):
                read_evidence(path)
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    with pytest.raises(UnreadableError, match="called probs"):
        read_evidence(tmp_path / "two.npz")


# Folders ------------------------------------------------------------------------------------------


def folders(root: Path) -> tuple[Path, Path]:
    for number in range(5):
        size = [SIZE, (12, 40)][number % 2]
        scene(root / "images" / "sub", f"{number}.x", size, number)
        save_map(root / "labels" / "sub" / f"{number}.x.png", noisy(2 + number // 3, number, size))
    return root / "images", root / "labels"


def test_folders_give_what_single_files_give(tmp_path: Path) -> None:
    images, labels = folders(tmp_path)
    steps: list[tuple[int, int]] = []
    done = refine_files(
        images, labels, tmp_path / "o", SETTINGS, device="cpu",
        step=lambda *count: steps.append(count),
    )  # fmt: skip
    assert len(done) == 5 and steps[-1] == (5, 5)
    for number in range(5):
        name = f"sub/{number}.x.png"
        refine_files(images / name, labels / name, tmp_path / "1.png", SETTINGS, overwrite=True)
        assert (tmp_path / "1.png").read_bytes() == (tmp_path / "o" / name).read_bytes()
    refine_files(images, labels, tmp_path / "p", SETTINGS, save="probs")
    assert len(list((tmp_path / "p" / "sub").glob("*.npz"))) == 5


def test_every_bad_file_is_named_and_nothing_written(tmp_path: Path) -> None:
    images, labels = folders(tmp_path)
    (images / "sub" / "0.x.png").unlink()
    (labels / "sub" / "1.x.png").unlink()
    (labels / "sub" / "2.x.png").write_bytes(b"no picture")
    save_map(labels / "sub" / "3.x.png", np.zeros((9, 9)))
    with pytest.raises(DatasetError) as caught:
        refine_files(images, labels, tmp_path / "o", SETTINGS)
    for number in range(4):
        assert f"sub/{number}.x" in str(caught.value)
    assert "sub/4.x" not in str(caught.value) and not (tmp_path / "o").exists()


def test_inputs_and_existing_outputs_are_safe(tmp_path: Path) -> None:
    image, path = scene(tmp_path / "i"), save_map(tmp_path / "l" / "a.png", noisy())
    before = path.read_bytes()
    for output in (path, image):
        with pytest.raises(EngineError, match="is an input"):
            refine_files(image, path, output, SETTINGS, overwrite=True)
    with pytest.raises(EngineError, match="is an input"):
        refine_files(image.parent, path.parent, path.parent, SETTINGS, overwrite=True)
    other = save_map(tmp_path / "o.png", noisy())
    with pytest.raises(EngineError, match="--overwrite"):
        refine_files(image, path, other, SETTINGS)
    assert path.read_bytes() == before == other.read_bytes()
    refine_files(image, path, other, SETTINGS, overwrite=True)
    assert other.read_bytes() != before


def test_wrong_use(tmp_path: Path) -> None:
    image, path = scene(tmp_path / "i"), save_map(tmp_path / "l" / "a.png", noisy())
    np.save(tmp_path / "p.npy", np.full((2, *SIZE), 0.5))
    for message, arguments, options in (
        ("two files or two folders", (image, path.parent, tmp_path / "o.png"), {}),
        ("no such file", (image, tmp_path / "x", tmp_path / "o.png"), {}),
        ("must end in", (image, path, tmp_path / "o.jpg"), {}),
        ("save must be", (image, path, tmp_path / "o.png"), {"save": "x"}),
        ("to save probs", (image, path, tmp_path / "o.png"), {"save": "probs"}),
        ("save a picture", (image, path, tmp_path / "o.npy"), {"save": "panel"}),
        ("chosen for folders", (image, path, tmp_path / "o.png"), {"suffix": ".png"}),
        ("is a file", (image.parent, path.parent, path), {}),
        ("gt_prob must be", (image, path, tmp_path / "o.png"), {"certainty": 1.0}),
        ("are for label maps", (image, tmp_path / "p.npy", tmp_path / "o.png"), {"unknown": 0}),
    ):
        with pytest.raises(EngineError, match=message):
            refine_files(*arguments, SETTINGS, **options)
    assert not list(tmp_path.glob("o.*"))


def test_settings_are_checked(tmp_path: Path) -> None:
    for name, value in (
        ("gaussian_sxy", 0), ("bilateral_srgb", float("nan")), ("bilateral_weight", -1),
        ("iterations", 1.5), ("normalization", "x"), ("order", "xyz"), ("bilateral_sxy", "3"),
    ):  # fmt: skip
        with pytest.raises(EngineError, match=name):
            SETTINGS.replace(**{name: value})
    path = tmp_path / "best.json"
    path.write_text(json.dumps({"crf": SETTINGS.as_dict(), "miou": 0.5}))
    assert find_settings(path) == SETTINGS and find_settings("gcrf") == PRESETS["gcrf"]
    for text in ("", "[]", "{}", json.dumps({"crf": {"iterations": 3}})):
        path.write_text(text)
        with pytest.raises(EngineError, match="best.json"):
            find_settings(path)
    with pytest.raises(EngineError, match="pydensecrf"):
        find_settings("deeplab")


def test_weight_zero_leaves_a_term_out() -> None:
    energies = torch.rand(1, 3, *SIZE)
    image = torch.randint(0, 256, (1, 3, *SIZE), dtype=torch.uint8)
    for order in ("xy", "yx"):
        none = SETTINGS.replace(gaussian_weight=0, bilateral_weight=0, order=order)
        assert torch.allclose(none.refine(energies, image), (-energies).softmax(1), atol=1e-6)
        one = SETTINGS.replace(gaussian_weight=0, order=order)
        assert not torch.allclose(
            one.refine(energies, image), SETTINGS.replace(order=order).refine(energies, image)
        )


# Networks -----------------------------------------------------------------------------------------


def test_prediction_is_refined_at_full_size(trained: Path, tmp_path: Path, device: str) -> None:
    image = scene(tmp_path / "in", size=(45, 61))
    predict(trained, [image], tmp_path / "o", device=device, crf=SETTINGS, probs=True)
    plain = tmp_path / "plain"
    predict(trained, [image], plain, device=device, probs=True)
    refine_files(image, plain / "probs" / "a.npz", tmp_path / "x.npy", SETTINGS, device=device)
    stored = read_evidence(tmp_path / "o" / "probs" / "a.npz").probabilities
    np.testing.assert_allclose(stored, np.load(tmp_path / "x.npy"), atol=0.02)
    labels = read(tmp_path / "o" / "labels" / "a.png")
    assert (labels == stored.argmax(0)).mean() > 0.99
    assert not np.array_equal(labels, read(plain / "labels" / "a.png"))
    pixels = torch.from_numpy(read(image).transpose(2, 0, 1).copy())[None]
    network = load_trained(trained, device)
    for tta in (False, True):
        given = network.probabilities(pixels, tta=tta)
        assert torch.allclose(given.sum(1), torch.ones_like(given[:, 0]), atol=1e-5)
        assert torch.equal(given.argmax(1).cpu(), network.predict(pixels, tta=tta))


def test_evaluation_is_refined(trained: Path, tmp_path: Path) -> None:
    options = {"limit": 2, "device": "cpu", "boundary": False}
    plain = evaluate(trained, **options)
    refined = evaluate(trained, crf=SETTINGS, output=tmp_path, pictures=1, **options)
    assert plain["crf"] is None and refined["crf"] == SETTINGS.as_dict()
    assert plain["confusion"] != refined["confusion"]
