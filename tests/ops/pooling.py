"""The operators and the reference, called by case; raw operators; indices by hand."""

from __future__ import annotations

import torch
from opcases import LAYOUTS, PoolCase
from torch import Tensor

from segkern import ops, reference

RAW = torch.ops.segkern
FORMAT_NUMBERS = {"offset": 0, "packed": 1, "flat": 2}


def window_lists(case: PoolCase) -> list[list[int]]:
    return [list(pair) for pair in case.window]


def pool(case: PoolCase, x: Tensor, index_format: str) -> tuple[Tensor, Tensor]:
    return ops.max_pool2d_with_indices(
        x, *case.window, ceil_mode=case.ceil_mode, index_format=index_format
    )


def reference_pool(case: PoolCase, x: Tensor, index_format: str) -> tuple[Tensor, Tensor]:
    return reference.max_pool2d_with_indices(
        x, *case.window, ceil_mode=case.ceil_mode, index_format=index_format
    )


def unpool(case: PoolCase, y: Tensor, indices: Tensor) -> Tensor:
    return ops.max_unpool2d(y, indices, *case.window, output_size=case.input_size)


def reference_unpool(case: PoolCase, y: Tensor, indices: Tensor) -> Tensor:
    return reference.max_unpool2d(
        y, indices.cpu(), *case.window, output_size=tuple(case.input_size)
    )


def convert(case: PoolCase, indices: Tensor, index_format: str) -> Tensor:
    return ops.convert_pool_indices(
        indices,
        index_format,
        *case.window,
        input_size=case.input_size,
        output_size=case.output_size,
    )


def reference_convert(case: PoolCase, indices: Tensor, index_format: str) -> Tensor:
    return reference.convert_pool_indices(
        indices.cpu(),
        index_format,
        *case.window,
        input_size=case.input_size,
        output_size=case.output_size,
    )


def raw_pool(case: PoolCase, x: Tensor, index_format: str) -> tuple[Tensor, Tensor]:
    return RAW.max_pool2d_with_indices.default(
        x, *window_lists(case), case.ceil_mode, FORMAT_NUMBERS[index_format]
    )


def raw_pool_backward(case: PoolCase, grad: Tensor, indices: Tensor) -> Tensor:
    return RAW._max_pool2d_backward.default(grad, indices, *window_lists(case), *case.input_size)


def raw_unpool_backward(
    case: PoolCase, grad: Tensor, indices: Tensor, *, winners_only: bool
) -> Tensor:
    return RAW._max_unpool2d_backward.default(
        grad, indices, *window_lists(case), *case.output_size, winners_only
    )


def torchs_indices(case: PoolCase, index_format: str, device: torch.device | str) -> Tensor:
    """What torch's pooling of the case's input names, in one of our formats by the reference."""
    flat = case.pool(case.input(torch.float64))[1]
    if index_format != "flat":
        flat = reference_convert(case, flat, index_format)
    return flat.to(device)


def lay_out(x: Tensor, layout: str) -> Tensor:
    """`x` in one of `opcases.LAYOUTS`."""
    return LAYOUTS[layout](x)
