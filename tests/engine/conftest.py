"""Small runs that several tests look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_runs import TINY


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGKERN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    """The name of each device in turn, as the command line takes it."""
    if request.param == "cuda":
        request.getfixturevalue("cuda")
    return request.param


@pytest.fixture(scope="session")
def trained(cache_folder: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of ENet on the CPU."""
    from segkern.engine.train import fit

    run = tmp_path_factory.mktemp("runs") / "enet"
    fit("enet", run, device="cpu", **TINY)
    return run
