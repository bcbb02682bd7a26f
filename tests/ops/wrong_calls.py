"""Wrong calls of the pooling operators as data: what is given, and what must be said about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

POOL = "max_pool2d_with_indices"
POOL_BACKWARD = "_max_pool2d_backward"
UNPOOL = "max_unpool2d"
UNPOOL_BACKWARD = "_max_unpool2d_backward"
CONVERT = "convert_pool_indices"


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Callable[[Any], torch.Tensor]:
    return lambda device: torch.zeros(shape, dtype=dtype, device=device)


def uint8(*shape: int) -> Callable[[Any], torch.Tensor]:
    return zeros(*shape, dtype=torch.uint8)


def int32(*shape: int) -> Callable[[Any], torch.Tensor]:
    return zeros(*shape, dtype=torch.int32)


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A call with one wrong argument, and what must be said about it.

    The fields of `arguments` replace those of a good call; functions of a device make tensors.
    """

    op: str
    arguments: dict[str, Any]
    error: type[Exception] | tuple[type[Exception], ...]
    message: str  # after "<op>: "

    def __str__(self) -> str:
        parts = []
        for name, value in self.arguments.items():
            if callable(value):
                tensor = value("meta")
                value = f"{str(tensor.dtype)[6:]}{tuple(tensor.shape)}"
            parts.append(f"{name}={value}".replace(" ", ""))
        return f"{self.op}-{','.join(parts)}"


def given(good: dict[str, Any], arguments: dict[str, Any], device) -> dict[str, Any]:
    assert arguments.keys() <= good.keys() | {
        "stride",
        "padding",
        "dilation",
        "ceil_mode",
        "index_format",
        "output_size",
    }
    merged = {**good, **arguments}
    return {name: value(device) if callable(value) else value for name, value in merged.items()}


# Phrases of messages, as patterns.
FLOATING = "must be float64, float32, float16 or bfloat16, got "
RANK = r"must be \(N, C, H, W\) or \(C, H, W\), got "
PAIR = "must be an integer or a pair of integers, got "
DTYPES = r"must be uint8 \(offset\), int32 \(packed\) or int64 \(flat\), got "
