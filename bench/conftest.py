"""Options of the benchmarks: ``pytest bench/ --benchmark`` times, without it cases run once, small.

The timing is our own. pytest-benchmark times one function after the other, while a comparison on
a shared machine needs both sides in the same rounds, CUDA events and a cache flush in between.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from bench import cases, results
from bench.runner import Runner

_RUNNER = pytest.StashKey[Runner]()
_DECLARED = pytest.StashKey[dict]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("segkern benchmarks")
    group.addoption(
        "--benchmark",
        action="store_true",
        help="time the cases at full size beside their peers and keep the results",
    )
    group.addoption(
        "--filter",
        default="",
        metavar="WORDS",
        help="only cases whose id has each of these blank-separated words",
    )
    group.addoption(
        "--threads",
        default="1,2",
        metavar="LIST",
        help="thread counts of the CPU rows (default: 1,2)",
    )
    group.addoption("--csv", type=Path, metavar="PATH", help="also write this run's figures here")
    group.addoption(
        "--results",
        type=Path,
        default=results.RESULTS,
        metavar="DIR",
        help="folder of the results files (default: bench/results)",
    )


def pytest_configure(config: pytest.Config) -> None:
    timed = config.getoption("--benchmark")
    if config.getoption("--csv") and not timed:
        raise pytest.UsageError("--csv writes figures, which need --benchmark")
    if timed and getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("--benchmark must be the machine's only load: leave out -n")
    thread_counts(config)
    config.stash[_DECLARED] = {}
    config.stash[_RUNNER] = Runner(timed, say=lambda text: announce(config, text))


def thread_counts(config: pytest.Config) -> list[int]:
    text = config.getoption("--threads")
    counts = [int(part) for part in text.split(",") if part.strip().isdecimal()]
    if not counts or len(counts) != len(text.split(",")) or 0 in counts:
        raise pytest.UsageError(f"--threads must be a list such as 1,2, got {text}")
    return counts


def announce(config: pytest.Config, text: str) -> None:
    """Write a line to the terminal while a test runs, past pytest's capture."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    capture = config.pluginmanager.getplugin("capturemanager")
    if reporter is None:
        return
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        reporter.ensure_newline()
        reporter.write_line(text)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise ``case`` with the test module's ``declare_cases(timed)`` on all devices."""
    if "case" not in metafunc.fixturenames:
        return
    config = metafunc.config
    timed = config.getoption("--benchmark")
    threads = thread_counts(config) if timed else [1]
    devices = (["cuda"] if torch.cuda.is_available() else []) + ["cpu"]
    declared = metafunc.module.declare_cases(timed)
    for case in cases.expand(declared, devices, threads):
        config.stash[_DECLARED].setdefault(case.family, set()).add(case.name)
    chosen = cases.expand(declared, devices, threads, config.getoption("--filter"))
    metafunc.parametrize("case", chosen, ids=[case.id for case in chosen])


@pytest.fixture
def runner(request: pytest.FixtureRequest) -> Runner:
    return request.config.stash[_RUNNER]


@pytest.fixture(autouse=True)
def _device_at_hand(request: pytest.FixtureRequest) -> None:
    """Skip a CUDA case, with the reason, where segkern has no CUDA kernels for this machine."""
    case = getattr(request.node, "callspec", None) and request.node.callspec.params.get("case")
    if case is not None and case.device == "cuda":
        import segkern

        here = segkern.env()
        if not here["modules"]["_C_cuda"]["loaded"] or not here["devices"][0]["covered"]:
            pytest.skip("; ".join(here["reasons"]))


def pytest_terminal_summary(terminalreporter, exitstatus: int, config: pytest.Config) -> None:
    """Write what was measured; an interrupted run keeps the rows it got to."""
    runner = config.stash[_RUNNER]
    if not runner.rows:
        return
    whole = not config.getoption("--filter") and exitstatus == pytest.ExitCode.OK
    declared = config.stash[_DECLARED] if whole else None
    if config.getoption("--csv"):
        results.write_csv(
            config.getoption("--csv"),
            [(*runner.describe(device), rows) for device, rows in runner.rows.items()],
        )
    terminalreporter.section("benchmark")
    for device, by_threads in runner.ceilings.items():
        for threads, rates in by_threads.items():
            text = ", ".join(f"{name} {rate}" for name, rate in rates.items())
            terminalreporter.write_line(f"limits of {device}, threads {threads}: {text}")
    if "cpu" in runner.rows:
        load = runner.describe("cpu")[1]["load"]
        terminalreporter.write_line(f"freed memory: {runner.malloc}; load at the start: {load}")
    for path in runner.store(config.getoption("--results"), declared):
        terminalreporter.write_line(f"written: {path}")
