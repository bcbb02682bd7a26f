"""AddressSanitizer and UBSan stop the planted mistakes that only they see, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from .harness import ORDERS, Call, SanitizerFinding, Schedule, run_sanitized


def floats(n: int) -> np.ndarray:
    return np.zeros(n, np.float32)


def ints(n: int) -> np.ndarray:
    return np.zeros(n, np.int32)


def test_correct_kernels_and_reported_errors_pass():
    numbers = np.arange(65_536, dtype=np.float32) % 7
    calls = []
    for schedule in [*ORDERS, Schedule(workers=2)]:
        calls += [
            Call("block_sum", (numbers, floats(1), numbers.size, 256, 256), schedule),
            Call("barrier_and_shuffle", (ints(64), 1, 64, 0), schedule),
            Call("early_exit", (np.arange(256, dtype=np.int32), ints(256), 100, 1, 256), schedule),
            Call("shuffle_from_left", (ints(32), True, 1, 32, 0), schedule),
            Call("read_dynamic_shared", (floats(32), 0, 1, 32, 128), schedule),
            Call("load_float4", (floats(128), floats(128), 0, 1, 32), schedule),
        ]
    results = run_sanitized("planted", calls)
    for i in range(0, len(calls), 6):
        total, deadlock, early, left, dynamic, _ = results[i : i + 6]
        assert total[1] == numbers.sum()
        assert isinstance(deadlock, RuntimeError)
        assert "deadlock" in str(deadlock)
        assert early[1][:100].tolist() == list(range(99, -1, -1))
        assert isinstance(left, RuntimeError)
        assert "which has left" in str(left)
        assert dynamic[0].tolist() == list(range(32))


FINDINGS = {
    "write beyond": (
        Call("write_at", (floats(32), 32, 1, 1, 32, 0)),
        "heap-buffer-overflow",
        "planted::write_at",
    ),
    "write before": (
        Call("write_at", (floats(32), 32, -1, 1, 32, 0)),
        "heap-buffer-overflow",
        "planted::write_at",
    ),
    "dynamic shared read beyond": (
        Call("read_dynamic_shared", (floats(32), 1, 1, 32, 128)),
        "heap-buffer-overflow",
        "planted::read_dynamic_shared",
    ),
    "static shared read beyond": (
        Call("read_static_shared", (floats(32), 1, 1, 32, 0)),
        "out of bounds for type 'float [32]'",
        "planted.cuh",
    ),
    "signed overflow": (
        Call("signed_overflow", (ints(32), 2**31 - 5, 1, 32, 0)),
        "signed integer overflow",
        "planted.cuh",
    ),
    "shift": (
        Call("shift_too_far", (ints(32), 10, 1, 32, 0)),
        "shift exponent 32 is too large",
        "planted.cuh",
    ),
    "misaligned vector load": (
        Call("load_float4", (floats(132), floats(128), 1, 1, 32)),
        "misaligned address",
        "planted.cuh",
    ),
    "stack overflow": (
        Call("recurse", (ints(4), 2000, 1, 4, 0)),
        "stack-overflow",
        "planted::deep",
    ),
}


@pytest.mark.parametrize("mistake", FINDINGS)
def test_findings_stop_the_run(mistake):
    call, finding, where = FINDINGS[mistake]
    with pytest.raises(SanitizerFinding) as error:
        run_sanitized("planted", [call])
    report = str(error.value)
    assert finding in report
    assert where in report
