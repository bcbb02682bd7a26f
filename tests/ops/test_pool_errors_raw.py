"""The raw operators check what they are given themselves: they are called without the functions."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from pooling import RAW
from wrong_calls import (
    CONVERT,
    DTYPES,
    FLOATING,
    POOL,
    POOL_BACKWARD,
    RANK,
    UNPOOL,
    UNPOOL_BACKWARD,
    Wrong,
    given,
    int32,
    uint8,
    zeros,
)

_WINDOW = {"kernel_size": [2, 2], "stride": [2, 2], "padding": [0, 0], "dilation": [1, 1]}
GOOD: dict[str, dict[str, Any]] = {
    POOL: {"input": zeros(1, 2, 8, 8), **_WINDOW, "ceil_mode": False, "index_format": 0},
    POOL_BACKWARD: {
        "grad": zeros(1, 2, 4, 4),
        "indices": uint8(1, 2, 4, 4),
        **_WINDOW,
        "input_h": 8,
        "input_w": 8,
    },
    UNPOOL: {
        "input": zeros(1, 2, 4, 4),
        "indices": uint8(1, 2, 4, 4),
        **_WINDOW,
        "output_h": 8,
        "output_w": 8,
    },
    UNPOOL_BACKWARD: {
        "grad": zeros(1, 2, 8, 8),
        "indices": uint8(1, 2, 4, 4),
        **_WINDOW,
        "pooled_h": 4,
        "pooled_w": 4,
        "winners_only": True,
    },
    CONVERT: {
        "indices": uint8(1, 2, 4, 4),
        **_WINDOW,
        "input_h": 8,
        "input_w": 8,
        "pooled_h": 4,
        "pooled_w": 4,
        "index_format": 2,
    },
}


def raw_windows(op: str) -> list[Wrong]:
    cases = []
    for name, least in [("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)]:
        for value in ([], [2], [2, 2, 2], [least - 1, 2], [2, least - 1], [2, -(2**40)]):
            text = re.escape("(" + ", ".join(map(str, value)) + ("," * (len(value) == 1)) + ")")
            message = f"{name} must be two integers of at least {least}, got {text}"
            cases.append(Wrong(op, {name: value}, RuntimeError, message))
    return cases


def raw_indices(op: str) -> list[Wrong]:
    return [
        Wrong(op, {"indices": zeros(1, 2, 4, 4)}, RuntimeError, f"indices {DTYPES}Float"),
        Wrong(
            op,
            {"indices": zeros(1, 2, 4, 4, dtype=torch.int16)},
            RuntimeError,
            f"indices {DTYPES}Short",
        ),
        Wrong(
            op,
            {"indices": uint8(1, 2, 3, 4)},
            RuntimeError,
            r"indices \(offset\) must be \(1, 2, 4, 4\), got \(1, 2, 3, 4\)",
        ),
        Wrong(
            op,
            {"indices": int32(1, 2, 4, 4)},
            RuntimeError,
            r"indices \(packed\) must be \(1, 2, 4, 1\), got \(1, 2, 4, 4\)",
        ),
        Wrong(
            op,
            {"indices": int32(1, 2, 4, 1), "kernel_size": [5, 5]},
            RuntimeError,
            "kernel_size must have at most 16 elements for index_format 'packed', got 5x5",
        ),
        Wrong(
            op,
            {"kernel_size": [17, 16]},
            RuntimeError,
            "kernel_size must have at most 256 elements for index_format 'offset', got 17x16",
        ),
    ]


def raw_features(op: str, name: str) -> list[Wrong]:
    side = 4 if "indices" in GOOD[op] and op != UNPOOL_BACKWARD else 8
    return [
        Wrong(
            op,
            {name: zeros(1, 2, side, side, dtype=torch.int32)},
            RuntimeError,
            f"{name} {FLOATING}Int",
        ),
        Wrong(op, {name: zeros(4, 4)}, RuntimeError, rf"{name} {RANK}\(4, 4\)"),
        Wrong(op, {name: zeros(1, 1, 2, 4, 4)}, RuntimeError, rf"{name} {RANK}\(1, 1, 2, 4, 4\)"),
        Wrong(
            op,
            {name: zeros(1, 0, 4, 4)},
            RuntimeError,
            rf"{name} must have at least one channel, row and column, got \(1, 0, 4, 4\)",
        ),
    ]


WRONG = [
    *raw_features(POOL, "input"),
    *raw_windows(POOL),
    *[
        Wrong(
            POOL,
            {"index_format": number},
            RuntimeError,
            rf"index_format must be 0 \(offset\), 1 \(packed\) or 2 \(flat\), got {number}",
        )
        for number in (3, -1, 2**32)
    ],
    Wrong(
        POOL,
        {"kernel_size": [5, 5], "index_format": 1},
        RuntimeError,
        "kernel_size must have at most 16 elements for index_format 'packed', got 5x5",
    ),
    Wrong(
        POOL,
        {"kernel_size": [17, 16]},
        RuntimeError,
        "kernel_size must have at most 256 elements for index_format 'offset', got 17x16",
    ),
    Wrong(
        POOL,
        {"padding": [0, 2]},
        RuntimeError,
        "padding must be at most half of kernel_size, got 2 for 2",
    ),
    Wrong(POOL, {"kernel_size": [9, 9]}, RuntimeError, "input of length 8 is too small"),
    *raw_features(POOL_BACKWARD, "grad"),
    *raw_windows(POOL_BACKWARD),
    *raw_indices(POOL_BACKWARD),
    *[
        Wrong(
            POOL_BACKWARD, {"input_h": size}, RuntimeError, rf"input_h.* must .*, got \({size}, 8\)"
        )
        for size in (6, 0, -8)
    ],
    *raw_features(UNPOOL, "input"),
    *raw_windows(UNPOOL),
    *raw_indices(UNPOOL),
    *[
        Wrong(UNPOOL, {"output_w": size}, RuntimeError, rf"output_\w+ must .*, got \(8, {size}\)")
        for size in (6, 0, -8)
    ],
    *raw_features(UNPOOL_BACKWARD, "grad"),
    *raw_windows(UNPOOL_BACKWARD),
    *raw_indices(UNPOOL_BACKWARD),
    Wrong(
        UNPOOL_BACKWARD,
        {"grad": zeros(1, 2, 8, 6)},
        RuntimeError,
        r"grad must hold the start of each of the 4x4 windows, got \(8, 6\)",
    ),
    *[
        Wrong(
            UNPOOL_BACKWARD,
            {"pooled_h": size},
            RuntimeError,
            rf"pooled\w*[ \w]* must be .*, got \({size}, 4\)",
        )
        for size in (0, -4)
    ],
    *raw_windows(CONVERT),
    *raw_indices(CONVERT),
    Wrong(CONVERT, {"indices": uint8(4, 4)}, RuntimeError, rf"indices {RANK}\(4, 4\)"),
    *[
        Wrong(
            CONVERT,
            {"index_format": number},
            RuntimeError,
            rf"index_format must be 0 \(offset\), 1 \(packed\) or 2 \(flat\), got {number}",
        )
        for number in (3, -1)
    ],
    *[
        Wrong(CONVERT, {"input_h": size}, RuntimeError, rf"input_size must .*, got \({size}, 8\)")
        for size in (6, 0, -1)
    ],
    *[
        Wrong(CONVERT, {"pooled_w": size}, RuntimeError, r"\w+ .*must .*, got ")
        for size in (5, 3, 0, -4)
    ],
]


@pytest.mark.parametrize("op", GOOD)
def test_the_good_call_passes(op, device):
    getattr(RAW, op).default(**given(GOOD[op], {}, device))


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_wrong_arguments(wrong, device):
    arguments = given(GOOD[wrong.op], wrong.arguments, device)
    with pytest.raises(wrong.error, match=f"{wrong.op}: {wrong.message}"):
        getattr(RAW, wrong.op).default(**arguments)
