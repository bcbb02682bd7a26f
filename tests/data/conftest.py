"""Small data sets on disk, and a cache folder of the test's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PROJECT = Path(__file__).resolve().parents[2]
CAMVID = PROJECT.parent / "shared" / "camvid"


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SEGKERN_CACHE", str(folder))
    return folder


@pytest.fixture
def camvid_folder() -> Path:
    if not (CAMVID / "train").is_dir():
        pytest.skip("no CamVid data beside the project (../shared/camvid)")
    return CAMVID


class Maker:
    """Writes images and masks of random content."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rng = np.random.default_rng(0)

    def image(self, path: str, size: tuple[int, int] = (12, 16)) -> np.ndarray:
        pixels = self.rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        self._save(path, Image.fromarray(pixels))
        return pixels

    def mask(self, path: str, size: tuple[int, int] = (12, 16), labels=(0, 1, 2)) -> np.ndarray:
        array = self.rng.choice(np.array(labels, dtype=np.uint8), size)
        array.flat[: len(labels)] = labels
        self._save(path, Image.fromarray(array))
        return array

    def text(self, path: str, content: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")

    def truncate(self, path: str) -> None:
        file = self.root / path
        file.write_bytes(file.read_bytes()[:-40])

    def _save(self, path: str, image: Image.Image) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)


@pytest.fixture
def maker(tmp_path) -> Maker:
    root = tmp_path / "set"
    root.mkdir()
    return Maker(root)


@pytest.fixture
def camvid_maker(maker) -> Maker:
    """Five sound training pairs and three validation pairs in CamVid's form."""
    for split, number in (("train", 5), ("val", 3)):
        for i in range(number):
            maker.image(f"{split}/{i:02d}.png")
            maker.mask(f"{split}annot/{i:02d}.png", labels=(0, 3, 10, 11))
    return maker
