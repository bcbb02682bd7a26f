"""Pooling with indices and unpooling in plain torch: any dtype, differentiable, slow."""

from __future__ import annotations

import torch
from torch import Tensor

from segkern.ops._pooling import (
    IntPair,
    format_of,
    index_columns,
    pair,
    pooled_length,
    window_arguments,
)


def _positions(code: Tensor, window: tuple[list[int], ...], input_size: tuple[int, int]) -> Tensor:
    """Plane index of each window's code; -1 where the code names no element of the plane."""
    kernel, stride, padding, dilation = window
    out_h, out_w = code.shape[-2:]
    rows = torch.arange(out_h).view(-1, 1) * stride[0] - padding[0]
    cols = torch.arange(out_w).view(1, -1) * stride[1] - padding[1]
    code = code.long()
    h = rows + code.div(kernel[1], rounding_mode="floor") * dilation[0]
    w = cols + code.remainder(kernel[1]) * dilation[1]
    height, width = input_size
    inside = (h >= 0) & (h < height) & (w >= 0) & (w < width) & (code < kernel[0] * kernel[1])
    return torch.where(inside, h * width + w, -1)


def _pack(code: Tensor, kernel: list[int]) -> Tensor:
    bits = 2 if kernel[0] * kernel[1] <= 4 else 4
    per_word = 32 // bits
    words = index_columns(code.shape[-1], kernel, "packed")
    padded = torch.nn.functional.pad(code.long(), (0, words * per_word - code.shape[-1]))
    fields = padded.unflatten(-1, (words, per_word)) << (torch.arange(per_word) * bits)
    word = fields.sum(-1)
    return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32)


def _unpack(words: Tensor, kernel: list[int], out_w: int) -> Tensor:
    bits = 2 if kernel[0] * kernel[1] <= 4 else 4
    per_word = 32 // bits
    fields = words.long().remainder(2**32).unsqueeze(-1) >> (torch.arange(per_word) * bits)
    return (fields & (2**bits - 1)).flatten(-2)[..., :out_w]


def _codes_of_flat(
    flat: Tensor, window: tuple[list[int], ...], input_size: tuple[int, int]
) -> Tensor:
    kernel, stride, padding, dilation = window
    out_h, out_w = flat.shape[-2:]
    h = flat.div(input_size[1], rounding_mode="floor")
    h = h - (torch.arange(out_h).view(-1, 1) * stride[0] - padding[0])
    w = flat.remainder(input_size[1]) - (torch.arange(out_w).view(1, -1) * stride[1] - padding[1])
    kh = h.div(dilation[0], rounding_mode="floor")
    kw = w.div(dilation[1], rounding_mode="floor")
    # A window without elements has flat index -1 and code 0.
    return torch.where(flat < 0, 0, kh * kernel[1] + kw)


def _flat_positions(
    indices: Tensor,
    window: tuple[list[int], ...],
    input_size: tuple[int, int],
    out_w: int,
    op: str,
) -> Tensor:
    index_format = format_of(op, indices)
    if index_format == "flat":
        return indices
    code = _unpack(indices, window[0], out_w) if index_format == "packed" else indices
    return _positions(code, window, input_size)


def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    *,
    ceil_mode: bool = False,
    index_format: str = "offset",
) -> tuple[Tensor, Tensor]:
    """As :func:`segkern.ops.max_pool2d_with_indices`, tap by tap in plain torch."""
    op = "max_pool2d_with_indices"
    window = window_arguments(op, kernel_size, stride, padding, dilation)
    kernel, step, pad, dil = window
    height, width = input.shape[-2:]
    out_h, out_w = (
        pooled_length(length, kernel[i], step[i], pad[i], dil[i], ceil_mode)
        for i, length in enumerate((height, width))
    )
    best = torch.full((*input.shape[:-2], out_h, out_w), -torch.inf, dtype=input.dtype)
    code = torch.full(best.shape, -1, dtype=torch.long)
    rows = torch.arange(out_h) * step[0] - pad[0]
    cols = torch.arange(out_w) * step[1] - pad[1]
    for kh in range(kernel[0]):
        for kw in range(kernel[1]):
            h, w = rows + kh * dil[0], cols + kw * dil[1]
            inside = ((h >= 0) & (h < height)).view(-1, 1) & ((w >= 0) & (w < width))
            tap = input[..., h.clamp(0, height - 1), :][..., w.clamp(0, width - 1)]
            take = inside & ((code < 0) | (tap > best) | tap.isnan())
            best = torch.where(take, tap, best)
            code = torch.where(take, kh * kernel[1] + kw, code)
    code = code.clamp(min=0)
    if index_format == "flat":
        return best, _positions(code, window, (height, width))
    return best, _pack(code, kernel) if index_format == "packed" else code.to(torch.uint8)


def convert_pool_indices(
    indices: Tensor,
    index_format: str,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    *,
    input_size: IntPair,
    output_size: IntPair,
) -> Tensor:
    """As :func:`segkern.ops.convert_pool_indices`."""
    op = "convert_pool_indices"
    window = window_arguments(op, kernel_size, stride, padding, dilation)
    plane = tuple(pair(op, "input_size", input_size, 1))
    out_w = pair(op, "output_size", output_size, 1)[1]
    flat = _flat_positions(indices, window, plane, out_w, op)
    if index_format == "flat":
        return flat
    code = _codes_of_flat(flat, window, plane)
    return _pack(code, window[0]) if index_format == "packed" else code.to(torch.uint8)


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    *,
    output_size: tuple[int, int],
) -> Tensor:
    """As :func:`segkern.ops.max_unpool2d`: the last window in raster order wins a position."""
    op = "max_unpool2d"
    window = window_arguments(op, kernel_size, stride, padding, dilation)
    height, width = output_size
    positions = _flat_positions(indices, window, (height, width), input.shape[-1], op)
    positions = positions.flatten(-2)
    values = input.flatten(-2)
    order = torch.arange(values.shape[-1]).expand_as(positions).contiguous()
    # Entries that name nothing go to a spare last position.
    target = torch.where(positions < 0, height * width, positions)
    winner = torch.full((*values.shape[:-1], height * width + 1), -1, dtype=torch.long)
    winner = winner.scatter_reduce(-1, target, order, "amax")[..., :-1]
    plane = torch.where(winner >= 0, values.gather(-1, winner.clamp(min=0)), 0)
    return plane.unflatten(-1, (height, width))
