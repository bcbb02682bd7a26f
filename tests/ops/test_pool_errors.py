"""Every wrong argument is refused by a message that names the function and the argument."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from wrong_calls import (
    CONVERT,
    DTYPES,
    FLOATING,
    PAIR,
    POOL,
    RANK,
    UNPOOL,
    Wrong,
    given,
    int32,
    uint8,
    zeros,
)

from segkern import _load, ops

GOOD: dict[str, dict[str, Any]] = {
    POOL: {"input": zeros(1, 2, 8, 8), "kernel_size": 2},
    UNPOOL: {"input": zeros(1, 2, 4, 4), "indices": uint8(1, 2, 4, 4), "kernel_size": 2},
    CONVERT: {
        "indices": uint8(1, 2, 4, 4),
        "index_format": "flat",
        "kernel_size": 2,
        "input_size": (8, 8),
        "output_size": (4, 4),
    },
}


def bad_windows(op: str) -> list[Wrong]:
    """What every public function says about kernel_size, stride, padding and dilation."""
    cases = []
    for name, least in [("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)]:
        for value in (least - 1, (1, least - 1)):
            message = rf"{name} must be at least {least}, got {re.escape(repr(value))}"
            cases.append(Wrong(op, {name: value}, ValueError, message))
        for value in ((2, 2, 2), "2", 2.0, (2.0, 2), True, (2, None), {}):
            if name == "stride" and value == {}:
                continue  # empty: the kernel's, as in torch
            message = rf"{name} {PAIR}{re.escape(repr(value))}"
            cases.append(Wrong(op, {name: value}, (ValueError, TypeError), message))
    for name in ("kernel_size", "padding", "dilation"):
        cases.append(Wrong(op, {name: None}, (ValueError, TypeError), rf"{name} {PAIR}None"))
    return cases


def bad_features(op: str) -> list[Wrong]:
    return [
        Wrong(op, {"input": [1.0]}, TypeError, "input must be a Tensor, got list"),
        Wrong(op, {"input": None}, TypeError, "input must be a Tensor, got NoneType"),
        Wrong(op, {"input": zeros(8, 8)}, ValueError, rf"input {RANK}\(8, 8\)"),
        Wrong(op, {"input": zeros(1, 1, 2, 8, 8)}, ValueError, rf"input {RANK}\(1, 1, 2, 8, 8\)"),
        Wrong(op, {"input": zeros()}, ValueError, rf"input {RANK}\(\)"),
        *[
            Wrong(
                op,
                {"input": zeros(1, 2, 4, 4, dtype=dtype)},
                TypeError,
                f"input {FLOATING}{dtype}",
            )
            for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64)
        ],
    ]


PUBLIC = [
    *bad_features(POOL),
    *bad_windows(POOL),
    Wrong(
        POOL,
        {"input": zeros(1, 0, 8, 8)},
        RuntimeError,
        r"input must have at least one channel, row and column, got \(1, 0, 8, 8\)",
    ),
    Wrong(
        POOL,
        {"input": zeros(1, 2, 0, 8)},
        RuntimeError,
        r"input must have at least one channel, row and column, got \(1, 2, 0, 8\)",
    ),
    Wrong(
        POOL,
        {"index_format": "bits"},
        ValueError,
        "index_format must be one of 'offset', 'packed', 'flat', got 'bits'",
    ),
    Wrong(
        POOL,
        {"index_format": None},
        ValueError,
        "index_format must be one of 'offset', 'packed', 'flat', got None",
    ),
    Wrong(
        POOL,
        {"index_format": torch.uint8},
        ValueError,
        "index_format must be one of 'offset', 'packed', 'flat', got torch.uint8",
    ),
    Wrong(
        POOL,
        {"kernel_size": (17, 16), "padding": (8, 8)},
        ValueError,
        "index_format 'offset' holds windows of at most 256 elements, got kernel_size 17x16; "
        "use 'flat'",
    ),
    Wrong(
        POOL,
        {"kernel_size": 5, "index_format": "packed"},
        ValueError,
        "index_format 'packed' holds windows of at most 16 elements, got kernel_size 5x5; "
        "use 'offset' or 'flat'",
    ),
    Wrong(
        POOL,
        {"kernel_size": 3, "padding": 2},
        RuntimeError,
        "padding must be at most half of kernel_size, got 2 for 3",
    ),
    Wrong(
        POOL,
        {"kernel_size": (2, 3), "padding": (1, 2)},
        RuntimeError,
        "padding must be at most half of kernel_size, got 2 for 3",
    ),
    Wrong(
        POOL,
        {"kernel_size": (9, 2)},
        RuntimeError,
        "input of length 8 is too small for kernel_size 9, dilation 1, padding 0",
    ),
    Wrong(
        POOL,
        {"kernel_size": (2, 5), "dilation": (1, 2)},
        RuntimeError,
        "input of length 8 is too small for kernel_size 5, dilation 2, padding 0",
    ),
    Wrong(
        POOL,
        {"kernel_size": 12, "stride": 2, "ceil_mode": True},
        RuntimeError,
        "input of length 8 is too small for kernel_size 12",
    ),
    *bad_features(UNPOOL),
    *bad_windows(UNPOOL),
    Wrong(UNPOOL, {"indices": [[0]]}, TypeError, "indices must be a Tensor, got list"),
    *[
        Wrong(
            UNPOOL,
            {"indices": zeros(1, 2, 4, 4, dtype=dtype)},
            ValueError,
            f"indices {DTYPES}{dtype}",
        )
        for dtype in (torch.float32, torch.int16, torch.bool, torch.int8)
    ],
    Wrong(
        UNPOOL,
        {"indices": uint8(1, 2, 4, 4), "kernel_size": 17},
        ValueError,
        "index_format 'offset' holds windows of at most 256 elements, got kernel_size 17x17",
    ),
    Wrong(
        UNPOOL,
        {"indices": int32(1, 2, 4, 1), "kernel_size": (2, 9)},
        ValueError,
        "index_format 'packed' holds windows of at most 16 elements, got kernel_size 2x9",
    ),
    Wrong(
        UNPOOL,
        {"indices": uint8(1, 2, 4, 3)},
        RuntimeError,
        r"indices \(offset\) must be \(1, 2, 4, 4\), got \(1, 2, 4, 3\)",
    ),
    Wrong(
        UNPOOL,
        {"indices": int32(1, 2, 4, 4)},
        RuntimeError,
        r"indices \(packed\) must be \(1, 2, 4, 1\), got \(1, 2, 4, 4\)",
    ),
    Wrong(
        UNPOOL,
        {"indices": uint8(2, 4, 4)},
        RuntimeError,
        r"indices \(offset\) must be \(1, 2, 4, 4\), got \(2, 4, 4\)",
    ),
    Wrong(
        UNPOOL,
        {"output_size": (6, 8)},
        ValueError,
        r"output_size must lie between \(7, 9\) along axis -2, got 6",
    ),
    Wrong(
        UNPOOL,
        {"output_size": (8, 10)},
        ValueError,
        r"output_size must lie between \(7, 9\) along axis -1, got 10",
    ),
    Wrong(
        UNPOOL,
        {"output_size": (1, 2, 8, 11)},
        ValueError,
        r"output_size must lie between \(7, 9\) along axis -1, got 11",
    ),
    Wrong(
        UNPOOL,
        {"output_size": (2, 8, 8)},
        ValueError,
        r"output_size must be \(H, W\) or the whole output shape of 4 numbers, got \(2, 8, 8\)",
    ),
    Wrong(
        UNPOOL,
        {"output_size": ()},
        ValueError,
        r"output_size must be \(H, W\) or the whole output shape of 4 numbers, got \(\)",
    ),
    Wrong(
        UNPOOL,
        {"output_size": 8},
        (ValueError, TypeError),
        r"output_size must be \(H, W\) or the whole output shape .*, got 8",
    ),
    Wrong(
        UNPOOL,
        {"output_size": (8.0, 8.0)},
        (ValueError, TypeError, RuntimeError),
        r"output_size must be .*, got \(8.0, 8.0\)",
    ),
    Wrong(
        UNPOOL, {"output_size": "88"}, (ValueError, TypeError), "output_size must be .*, got '?8"
    ),
    Wrong(
        UNPOOL,
        {"padding": 1, "input": zeros(1, 2, 1, 1), "indices": uint8(1, 2, 1, 1)},
        RuntimeError,
        r"output_size must .*, got \(0, 0\)",
    ),
    *bad_windows(CONVERT),
    Wrong(CONVERT, {"indices": None}, TypeError, "indices must be a Tensor, got NoneType"),
    Wrong(CONVERT, {"indices": zeros(1, 2, 4, 4)}, ValueError, f"indices {DTYPES}torch.float32"),
    Wrong(CONVERT, {"indices": uint8(4, 4)}, RuntimeError, rf"indices {RANK}\(4, 4\)"),
    Wrong(
        CONVERT,
        {"indices": uint8(1, 2, 4, 5)},
        RuntimeError,
        r"indices \(offset\) must be \(1, 2, 4, 4\), got \(1, 2, 4, 5\)",
    ),
    Wrong(
        CONVERT,
        {"index_format": "torch"},
        ValueError,
        "index_format must be one of 'offset', 'packed', 'flat', got 'torch'",
    ),
    Wrong(
        CONVERT,
        {"index_format": "packed", "kernel_size": 5},
        ValueError,
        "index_format 'packed' holds windows of at most 16 elements, got kernel_size 5x5",
    ),
    Wrong(
        CONVERT,
        {"kernel_size": 17},
        ValueError,
        "index_format 'offset' holds windows of at most 256 elements, got kernel_size 17x17",
    ),
    Wrong(
        CONVERT, {"input_size": (0, 8)}, ValueError, r"input_size must be at least 1, got \(0, 8\)"
    ),
    Wrong(CONVERT, {"input_size": (1, 2, 8, 8)}, ValueError, rf"input_size {PAIR}\(1, 2, 8, 8\)"),
    Wrong(CONVERT, {"input_size": None}, (ValueError, TypeError), f"input_size {PAIR}None"),
    Wrong(
        CONVERT,
        {"input_size": (6, 8)},
        RuntimeError,
        r"input_size must hold the start of each of the 4x4 windows, got \(6, 8\)",
    ),
    Wrong(CONVERT, {"output_size": -1}, ValueError, "output_size must be at least 1, got -1"),
    Wrong(
        CONVERT,
        {"output_size": (4, 3)},
        RuntimeError,
        r"indices \(offset\) must be \(1, 2, 4, 3\), got \(1, 2, 4, 4\)",
    ),
]


@pytest.mark.parametrize("op", GOOD)
def test_the_good_call_passes(op, device):
    getattr(ops, op)(**given(GOOD[op], {}, device))


@pytest.mark.parametrize("wrong", PUBLIC, ids=str)
def test_wrong_arguments(wrong, device):
    arguments = given(GOOD[wrong.op], wrong.arguments, device)
    with pytest.raises(wrong.error, match=rf"^{wrong.op}: {wrong.message}"):
        getattr(ops, wrong.op)(**arguments)


def test_arguments_after_the_window_are_named():
    x = torch.zeros(1, 2, 8, 8)
    for call in (
        lambda: ops.max_pool2d_with_indices(x, 2, 2, 0, 1, False),
        lambda: ops.max_unpool2d(x, x, 2, 2, 0, 1, (8, 8)),
        lambda: ops.convert_pool_indices(x, "flat", 2, 2, 0, 1, (8, 8), (4, 4)),
        lambda: ops.convert_pool_indices(x, "flat", 2),
    ):
        with pytest.raises(TypeError, match="positional|keyword-only"):
            call()


# ---- devices ----------------------------------------------------------------------------------


def test_features_and_indices_on_two_devices(device):
    """Here the CPU or CUDA, and tensors without memory: the simplest second device there is."""
    on_device = torch.zeros(1, 2, 4, 4, device=device)
    nowhere = torch.zeros(1, 2, 4, 4, device="meta")
    for y, indices in [(on_device, nowhere), (nowhere, on_device)]:
        with pytest.raises((ValueError, RuntimeError), match="max_unpool2d: indices must be on"):
            ops.max_unpool2d(y, indices.byte(), 2)


def test_cpu_and_cuda_tensors_do_not_mix(cuda):
    for devices in [("cpu", cuda), (cuda, "cpu")]:
        y = torch.zeros(1, 2, 4, 4, device=devices[0])
        indices = torch.zeros(1, 2, 4, 4, device=devices[1], dtype=torch.uint8)
        with pytest.raises((ValueError, RuntimeError), match="max_unpool2d: indices must be on"):
            ops.max_unpool2d(y, indices, 2)


def test_missing_cuda_kernels_are_explained(monkeypatch):
    """The reason that the loader keeps, not the dispatcher's list of backends."""
    monkeypatch.setattr(_load, "CUDA", _load.NativeModule("_C_cuda", False, "built without them"))
    with FakeTensorMode():
        x = torch.zeros(1, 2, 8, 8, device="cuda")
        for op, call in {
            POOL: lambda: ops.max_pool2d_with_indices(x, 2),
            UNPOOL: lambda: ops.max_unpool2d(x, x.byte(), 2),
            CONVERT: lambda: ops.convert_pool_indices(
                x.byte(), "flat", 2, input_size=16, output_size=8
            ),
        }.items():
            with pytest.raises(RuntimeError, match=f"^{op}: no CUDA kernels: built without them"):
                call()
