"""Runs kernels on the CPU: in this process, in several schedules, or under the sanitisers.

`load` gives an extension's module. `check_orders` runs something in every schedule and fails where
the results differ, which is a race (or a read of memory nobody wrote). `run_sanitized` runs calls
in a process of their own under AddressSanitizer and UBSan.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

if __package__:
    from .build import build, sanitizer_environment
else:  # the sanitised process runs this file as a program
    from build import build, sanitizer_environment


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How launches run: "lane", "reversed" or "shuffled" (by `seed`), on `workers` threads."""

    order: str = "lane"
    seed: int = 0
    workers: int = 1


ORDERS = (
    Schedule("lane"),
    Schedule("reversed"),
    Schedule("shuffled", seed=1),
    Schedule("shuffled", seed=2),
)


class OrderDependence(AssertionError):
    """A result differs between schedules."""


class SanitizerFinding(AssertionError):
    """AddressSanitizer or UBSan stopped a kernel; the message is its report."""


@functools.cache
def load(name: str, variant: str = "plain") -> ModuleType:
    """The module of extension `name`, built if needed."""
    return _import(build(name, variant))


@contextlib.contextmanager
def scheduled(module: ModuleType, schedule: Schedule) -> Iterator[None]:
    """Runs the launches inside with `schedule`, those after it in lane order."""
    module.set_schedule(*dataclasses.astuple(schedule))
    try:
        yield
    finally:
        module.set_schedule(*dataclasses.astuple(Schedule()))


def poisoned(module: ModuleType, shape: Sequence[int] | int, dtype: Any) -> np.ndarray:
    """An array as a fresh allocation may be: filled with a byte that differs between schedules."""
    array = np.empty(shape, dtype)
    array.reshape(-1).view(np.uint8)[:] = module.poison_byte()
    return array


def check_orders(
    module: ModuleType,
    run: Callable[[], np.ndarray | Sequence[np.ndarray]],
    orders: Sequence[Schedule] = ORDERS,
) -> list[np.ndarray]:
    """Calls `run` in each of `orders` and returns its arrays, which must be the same bits in all.

    Allocate outputs inside `run`, with `poisoned`: then a value that was never written differs too.
    """
    expected: list[np.ndarray] = []
    for schedule in orders:
        with scheduled(module, schedule):
            result = run()
        arrays = [result] if isinstance(result, np.ndarray) else list(result)
        if not expected:
            expected = arrays
        for number, (first, other) in enumerate(zip(expected, arrays, strict=True)):
            _check_same_bits(first, other, f"result {number}", orders[0], schedule)
    return expected


@dataclasses.dataclass
class Call:
    """A call for `run_sanitized`: a function of the module and its arguments."""

    function: str
    arguments: tuple[Any, ...]
    schedule: Schedule = Schedule()
    label: str = ""


def run_sanitized(name: str, calls: Sequence[Call]) -> list[tuple[Any, ...] | RuntimeError]:
    """Runs `calls` of extension `name` under AddressSanitizer and UBSan.

    Returns the arguments of each call after it, or the RuntimeError it raised. Raises
    SanitizerFinding with the report if a sanitiser stopped it; calls before it are lost.
    """
    module = build(name, "sanitized")
    environment = {**os.environ, **sanitizer_environment()}
    result = subprocess.run(
        [sys.executable, __file__, module],
        input=pickle.dumps([dataclasses.astuple(call) for call in calls]),
        capture_output=True,
        env=environment,
        timeout=300,
        check=False,
    )
    if result.returncode != 0:
        report = result.stderr.decode(errors="replace")
        raise SanitizerFinding(report[max(report.rfind("\ncalling "), 0) :].strip())
    return pickle.loads(result.stdout)


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.name.split(".")[0], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _check_same_bits(
    first: np.ndarray, other: np.ndarray, what: str, one: Schedule, two: Schedule
) -> None:
    different = first.view(_bits(first)) != other.view(_bits(other))
    if different.any():
        at = tuple(int(i) for i in np.argwhere(different)[0])
        raise OrderDependence(
            f"{what} depends on the schedule in {int(different.sum())} of {first.size} elements; "
            f"at {at}: {first[at]} in {one}, {other[at]} in {two}"
        )


def _bits(array: np.ndarray) -> str:
    return f"u{array.dtype.itemsize}"


def _run_calls(path: Path) -> None:
    """The sanitised process: calls come pickled on stdin, results go to stdout."""
    module = _import(path)
    results: list[Any] = []
    for function, arguments, schedule, label in pickle.load(sys.stdin.buffer):
        print(f"calling {function} {label}", file=sys.stderr, flush=True)
        module.set_schedule(*schedule)
        try:
            getattr(module, function)(*arguments)
            results.append(arguments)
        except RuntimeError as error:
            results.append(error)
    sys.stdout.buffer.write(pickle.dumps(results))


if __name__ == "__main__":
    _run_calls(Path(sys.argv[1]))
