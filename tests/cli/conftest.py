"""The command line in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGKERN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def segkern(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call the command line: segkern("models", "enet") -> (exit status, output, errors)."""
    from segkern.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def run(cache_folder: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run made by the command line."""
    from segkern.cli import main

    folder = tmp_path_factory.mktemp("cli") / "run"
    arguments = [
        "train", "enet", "--data", "synthetic:48x64", "--limit-train", "8", "--limit-val", "4",
        "--batch-size", "4", "--epochs", "1", "--device", "cpu", "--class-weights", "none",
        "--output", str(folder),
    ]  # fmt: skip
    assert main(arguments) == 0
    return folder
