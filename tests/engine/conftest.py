"""Small runs that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import TINY

pytest.importorskip("lightning", reason="needs the [train] extra")


def _devices() -> list[object]:
    no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
    return ["cpu", pytest.param("cuda", marks=no_gpu)]


@pytest.fixture(params=_devices())
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of ENet on the CPU."""
    from segkern.engine.train import fit

    run = tmp_path_factory.mktemp("runs") / "enet"
    fit("enet", run, device="cpu", **TINY)
    return run
