"""`segkern crf`, `segkern crf tune` and `--crf` as they are typed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segkern.cli.names import _spelled_out
from segkern.engine.crf_settings import PRESETS

Call = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT.parent / "shared" / "fixtures" / "crf"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB"))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("kind", ["palette", "colours"])
def test_pydensecrfs_example_pictures(
    segkern: Call, tmp_path: Path, number: int, kind: str
) -> None:
    if not FIXTURES.is_dir():
        pytest.skip(f"needs the pictures {FIXTURES}, which are not here")
    labels, options = FIXTURES / f"anno{number}.png", ("--unknown", "#000000")
    if kind == "colours":  # black is unknown without being told
        labels, options = tmp_path / "anno.png", ()
        Image.fromarray(pixels(FIXTURES / f"anno{number}.png")).save(labels)
    output = tmp_path / "out.png"
    status, _, err = segkern("crf", FIXTURES / f"im{number}.png", labels, "-o", output, *options)
    assert status == 0, err
    wrong = (pixels(output) != pixels(FIXTURES / f"out{number}.png")).any(-1)
    assert int(wrong.sum()) == 0


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    image, labels = tmp_path / "a.png", tmp_path / "l.png"
    Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)).save(image)
    Image.fromarray(rng.integers(0, 3, (12, 16)).astype(np.uint8)).save(labels)
    return image, labels


def test_options_reach_the_crf(segkern: Call, pair: tuple[Path, Path], tmp_path: Path) -> None:
    def labels(*options: object) -> np.ndarray:
        output = tmp_path / "o.npy"
        status, out, err = segkern("crf", *pair, "-o", output, "--overwrite", *options)
        assert status == 0 and "3 labels: 0, 1, 2, 0 pixels unknown" in out, err
        return np.load(output)

    same = labels()
    assert np.array_equal(same, labels("--preset", "pydensecrf", "--gt-prob", 0.7))
    for options in (
        ("--gaussian-sxy", 1), ("--gaussian-weight", 1), ("--bilateral-sxy", 5),
        ("--bilateral-srgb", 60), ("--bilateral-weight", 0), ("--normalization", "before"),
        ("--iterations", 1), ("--feature-order", "xy"), ("--gt-prob", 0.9),
        ("--preset", "deeplabv2"),
    ):  # fmt: skip
        assert not np.array_equal(same, labels(*options)), options
    best = tmp_path / "best.json"
    best.write_text(json.dumps({"crf": PRESETS["deeplabv2"].as_dict()}))
    assert np.array_equal(labels("--params", best), labels("--preset", "deeplabv2"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--preset", "x"), "preset must be one of"),
        (("--params", "none.json"), "none.json"),
        (("--unknown", "x"), "unknown must be"),
        (("--bilateral-sxy", 0), "bilateral_sxy must be positive"),
        (("--save", "all"), "save must be"),
        (("--format", "png"), "for folders"),
        (("--device", "tpu"), "device must be"),
    ],
)
def test_wrong_use_is_a_message(
    segkern: Call, pair: tuple[Path, Path], tmp_path: Path, options: tuple, message: str
) -> None:
    status, _, err = segkern("crf", *pair, "-o", tmp_path / "o.png", *options)
    assert status == 2 and message in err and not (tmp_path / "o.png").exists()


def test_bad_pairs_are_named(segkern: Call, pair: tuple[Path, Path], tmp_path: Path) -> None:
    Image.new("L", (3, 3)).save(tmp_path / "small.png")
    status, _, err = segkern("crf", pair[0], tmp_path / "small.png", "-o", tmp_path / "o.png")
    assert status == 2 and "small.png: 3x3" in err


def test_predict_tune_and_use(segkern: Call, run: Path, tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    rng = np.random.default_rng(0)
    for folder in (images, labels):
        folder.mkdir()
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)).save(
            images / f"{name}.png"
        )
        Image.fromarray(rng.integers(0, 11, (24, 32)).astype(np.uint8)).save(labels / f"{name}.png")
    out, found = tmp_path / "out", tmp_path / "tuned"
    assert segkern("predict", run, images, "--probs", "-o", out, "--crf")[0] == 0
    arguments = ("crf", "tune", images, out / "probs", labels, "-o", found, "--rounds", 0)
    ranges = ("--bilateral-sxy", "20:20:40", "--bilateral-srgb", 5, "--bilateral-weight", "3:4")
    status, text, err = segkern(*arguments, *ranges)
    assert status == 0 and "after 4 trials" in text and "with the dense CRF" in text, err
    assert segkern(*arguments, *ranges)[0] == 0
    status, _, err = segkern(*arguments)
    assert status == 2 and "another search: space differ" in err
    best = found / "best.json"
    assert segkern("predict", run, "--crf", best, images, "-o", tmp_path / "p")[0] == 0
    assert segkern("crf", images, out / "probs", "-o", tmp_path / "q", "--params", best)[0] == 0
    assert (tmp_path / "p" / "labels" / "a.png").exists() and (tmp_path / "q" / "a.png").exists()
    status, text, _ = segkern("evaluate", run, "--crf", "gcrf", "--limit", 1, "--no-boundary")
    assert status == 0 and "dense CRF" in text and (run / "evaluation-crf").is_dir()
    status, _, err = segkern("crf", "tune", images, images, labels, "-o", found)
    assert status == 2 and "no .npy" in err
    assert "Usage: segkern crf tune" in segkern("crf", "tune", "-h")[1]


def test_crf_may_stand_alone() -> None:
    bare = ["--crf", "pydensecrf"]
    assert _spelled_out(["x", "--crf", "a.png"]) == ["x", *bare, "a.png"]
    assert _spelled_out(["x", "a.png", "--crf"]) == ["x", "a.png", *bare]
    assert _spelled_out(["x", "--crf", "-o", "y"]) == ["x", *bare, "-o", "y"]
    for given in (["--crf", "gcrf", "x"], ["--crf", "r/best.json"], ["--crf=gcrf"], ["x"]):
        assert _spelled_out(given) == given
    assert _spelled_out(["--", "--crf"]) == ["--", "--crf"]


def test_the_page_lists_the_presets() -> None:
    page = (ROOT / "docs" / "dense_crf.md").read_text(encoding="utf-8")
    row = r"^\| `(\w+)`[^|]*\| (\S+), (\S+), (\S+) \| (\S+), (\S+) \| (\d+) \| (\w+) \|$"
    found = {name: rest for name, *rest in re.findall(row, page, re.MULTILINE)}
    assert set(found) == set(PRESETS)
    for name, (weight, sxy, srgb, smooth, width, iterations, normalization) in found.items():
        own = PRESETS[name]
        assert (own.bilateral_weight, own.bilateral_sxy, own.bilateral_srgb) == tuple(
            map(float, (weight, sxy, srgb))
        )
        assert (own.gaussian_weight, own.gaussian_sxy) == (float(smooth), float(width))
        assert (own.iterations, own.normalization) == (int(iterations), normalization)
