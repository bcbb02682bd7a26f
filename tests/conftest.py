"""What all tests share: devices, with the reason where one is missing; seeds; the large tests."""

from __future__ import annotations

import functools
import gc
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--large",
        action="store_true",
        help="also run the tests on tensors beyond 2^31 elements; they need much memory",
    )
    parser.addoption(
        "--slow", action="store_true", help="also run the tests marked slow; they take minutes"
    )


def pytest_configure(config: pytest.Config) -> None:
    """The processes of a parallel run share the cores: threads that wait for one another's turn
    on a core cost more than they bring."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") is not None and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: runs with --slow"))
        marker = item.get_closest_marker("large")
        if marker is None:
            continue
        needed = marker.kwargs.get("gib")
        memory = f"{needed} GiB of free memory" if needed else "much memory"
        if not config.getoption("--large"):
            reason = f"large: needs {memory}; runs with --large"
        elif needed and (free := free_memory_gib()) is not None and free < needed:
            reason = f"large: needs {memory}, and {free:.1f} GiB are free"
        else:
            continue
        item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """Leave what the collection made out of garbage collections: its objects are millions, and
    going through them takes longer than most tests."""
    gc.collect()
    gc.freeze()


def free_memory_gib() -> float | None:
    """Main memory that a process can still take, in GiB; None where the system does not say."""
    report = Path("/proc/meminfo")
    if not report.is_file():
        return None
    for line in report.read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 2**20
    return None


@functools.cache
def missing_cuda() -> str | None:
    """Why the kernels cannot run on a CUDA device of this machine; None where they can."""
    import segkern

    env = segkern.env()
    covered = any(device["covered"] for device in env["devices"])
    if env["modules"]["_C_cuda"]["loaded"] and covered:
        return None
    return "; ".join(env["reasons"]) or "CUDA: no usable device"


@pytest.fixture(scope="module")
def cuda() -> torch.device:
    """The first CUDA device, or a skip with the reason why there is none."""
    reason = missing_cuda()
    if reason is not None:
        pytest.skip(reason)
    return torch.device("cuda", 0)


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device in turn. Folders may have a fixture of this name of their own."""
    return request.getfixturevalue("cuda") if request.param == "cuda" else torch.device("cpu")


@pytest.fixture(autouse=True)
def seeds() -> None:
    """The same random numbers in every test, alone or in a whole run."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
