"""What the pooling and unpooling operators share: index formats, argument forms, sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

IntPair = Union[int, Sequence[int]]

#: Index formats in the order of the native enumeration, with the dtype that names each.
FORMATS = {"offset": torch.uint8, "packed": torch.int32, "flat": torch.int64}
_FORMAT_NUMBER = {name: number for number, name in enumerate(FORMATS)}

MAX_OFFSET_TAPS = 256
MAX_PACKED_TAPS = 16


def format_number(op: str, index_format: str) -> int:
    """The native number of an index format; ValueError for an unknown one."""
    if index_format not in _FORMAT_NUMBER:
        raise ValueError(
            f"{op}: index_format must be one of {', '.join(map(repr, FORMATS))}, "
            f"got {index_format!r}"
        )
    return _FORMAT_NUMBER[index_format]


def format_of(op: str, indices: Tensor) -> str:
    """The index format that the dtype of `indices` names; ValueError for another dtype."""
    for name, dtype in FORMATS.items():
        if indices.dtype == dtype:
            return name
    raise ValueError(
        f"{op}: indices must be uint8 (offset), int32 (packed) or int64 (flat), got {indices.dtype}"
    )


def pair(op: str, name: str, value: IntPair, least: int) -> list[int]:
    """Two integers of at least `least`, from one or two."""
    values = list(value) if isinstance(value, Sequence) else [value]
    if len(values) == 1:
        values = values * 2
    whole = all(isinstance(v, (int, torch.SymInt)) and not isinstance(v, bool) for v in values)
    if len(values) != 2 or not whole:
        raise ValueError(f"{op}: {name} must be an integer or a pair of integers, got {value!r}")
    if any(v < least for v in values):
        raise ValueError(f"{op}: {name} must be at least {least}, got {value!r}")
    return values


def window_arguments(
    op: str, kernel_size: IntPair, stride: IntPair | None, padding: IntPair, dilation: IntPair
) -> tuple[list[int], list[int], list[int], list[int]]:
    """kernel_size, stride (the kernel's where None or empty, as in torch), padding, dilation."""
    kernel = pair(op, "kernel_size", kernel_size, 1)
    given = stride is not None and not (isinstance(stride, Sequence) and len(stride) == 0)
    return (
        kernel,
        pair(op, "stride", stride, 1) if given else list(kernel),
        pair(op, "padding", padding, 0),
        pair(op, "dilation", dilation, 1),
    )


def check_features(op: str, name: str, tensor: Tensor) -> None:
    """Raises where `tensor` is not a floating (N, C, H, W) or (C, H, W) tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(tensor).__name__}")
    if tensor.dim() not in (3, 4):
        raise ValueError(
            f"{op}: {name} must be (N, C, H, W) or (C, H, W), got {tuple(tensor.shape)}"
        )
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(
            f"{op}: {name} must be float64, float32, float16 or bfloat16, got {tensor.dtype}"
        )


def check_indices_beside(op: str, indices: Tensor, features: Tensor) -> None:
    """Raises where `indices` is no tensor, or not on the device of `features`."""
    if not isinstance(indices, Tensor):
        raise TypeError(f"{op}: indices must be a Tensor, got {type(indices).__name__}")
    if indices.device != features.device:
        raise ValueError(
            f"{op}: indices must be on the device of input, {features.device}, got {indices.device}"
        )


def check_fake_indices(op: str, indices: Tensor, features: Tensor, columns: int) -> None:
    """Raises where indices do not go with features of one element a window, as the hosts do."""
    wanted = (*features.shape[:-1], columns)
    torch._check(
        tuple(indices.shape) == wanted,
        lambda: f"{op}: indices must be {wanted}, got {tuple(indices.shape)}",
    )


def check_format_fits(op: str, kernel: list[int], index_format: str) -> None:
    """Raises where codes of `index_format` cannot count the elements of a window."""
    most = {"offset": MAX_OFFSET_TAPS, "packed": MAX_PACKED_TAPS}.get(index_format)
    if most is not None and kernel[0] * kernel[1] > most:
        wider = "'flat'" if index_format == "offset" else "'offset' or 'flat'"
        raise ValueError(
            f"{op}: index_format {index_format!r} holds windows of at most {most} elements, "
            f"got kernel_size {kernel[0]}x{kernel[1]}; use {wider}"
        )


def pooled_length(
    length: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> int:
    """Number of windows along an axis, as torch counts them (ints or SymInts)."""
    span = length + 2 * padding - dilation * (kernel - 1) - 1
    out = (span + (stride - 1 if ceil_mode else 0)) // stride + 1
    # The last window may not start in the padding behind the input. Most geometries cannot come
    # there, and asking all the same would put a guard on symbolic sizes.
    possible = stride + padding >= dilation * (kernel - 1) + 2
    if ceil_mode and possible and (out - 1) * stride >= length + padding:
        out = out - 1
    return out


def index_columns(pooled_width: int, kernel: list[int], index_format: str) -> int:
    """Elements of one row of indices: the windows, or the words that hold them."""
    if index_format != "packed":
        return pooled_width
    per_word = 16 if kernel[0] * kernel[1] <= 4 else 8
    return (pooled_width + per_word - 1) // per_word


def empty_like_layout(
    like: Tensor, size: Sequence[int], dtype: torch.dtype | None = None
) -> Tensor:
    """What the native hosts allocate: in the memory format that the strides of `like` suggest."""
    return torch.empty(
        size,
        dtype=dtype or like.dtype,
        device=like.device,
        memory_format=suggest_memory_format(like),
    )
