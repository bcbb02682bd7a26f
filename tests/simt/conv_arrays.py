"""Convolution cases for the SIMT tests: geometry as the kernels take it, tensors as memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from .arrays import to_array, to_tensor

#: Largest error relative to 1 + |reference|, for sums of some hundred products of numbers near one.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 3e-5,
    torch.bfloat16: 1.2e-2,
    torch.float16: 2e-3,
}


@dataclasses.dataclass(frozen=True)
class ConvCase:
    """Sizes of one convolution; shape is (N, C, H, W)."""

    shape: tuple[int, int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def output_size(self) -> tuple[int, int]:
        return tuple(
            (self.shape[2 + i] + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1)
            // self.stride[i]
            + 1
            for i in range(2)
        )

    @property
    def arguments(self) -> dict:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    @property
    def fields(self) -> tuple[int, ...]:
        """The fields of ConvWindow, in order."""
        return (
            *(*self.kernel, *self.stride, *self.padding, *self.dilation, 1, 1),
            *(*self.shape[2:], *self.output_size),
        )

    @property
    def transposed(self) -> tuple[int, ...]:
        """The fields of the window of the gradient of the input."""
        padding = [self.dilation[i] * (self.kernel[i] - 1) - self.padding[i] for i in range(2)]
        return (
            *(*self.kernel, 1, 1, *padding, *self.dilation, *self.stride),
            *(*self.output_size, *self.shape[2:]),
        )


def in_memory(tensor: torch.Tensor, channels_last: bool) -> np.ndarray:
    """(N, C, H, W) as (N, C, H * W) or (N, H * W, C)."""
    rows = tensor.flatten(2)
    return to_array(rows.transpose(1, 2) if channels_last else rows)


def from_memory(array: np.ndarray, shape, channels_last: bool, dtype: torch.dtype) -> torch.Tensor:
    """The (N, C, H, W) float64 tensor whose memory `array` is."""
    rows = to_tensor(array, dtype).double()
    return (rows.transpose(1, 2) if channels_last else rows).reshape(shape)


def dense_geometry(
    case: ConvCase,
    dtype: torch.dtype,
    fields: tuple[int, ...] | None = None,
    channels: int | None = None,
) -> tuple:
    """The geometry of a channels-last convolution, or of the one that `fields` describe."""
    name = str(dtype).removeprefix("torch.")
    return (fields or case.fields, case.shape[0], channels or case.shape[1], name, True)


def dense_operands(case: ConvCase, outputs: int, number: int, dtype: torch.dtype) -> tuple:
    """(tensors x and weight, epilogue as `after_sums` takes it, arrays); `number` draws them and
    decides what the epilogue has."""
    torch.manual_seed(number)
    x = torch.randn(case.shape).to(dtype)
    weight = torch.randn(outputs, case.shape[1], *case.kernel).to(dtype)
    residual = torch.randn(case.shape[0], outputs, *case.output_size).to(dtype)
    scale = torch.rand(outputs) + 0.5 if number % 2 == 0 else None
    shift = torch.randn(outputs) if number % 3 != 1 else None
    activation = number % 3
    slope = torch.rand(1 if number == 2 else outputs) if activation == 2 else None
    residual = residual if number != 1 else None
    tail = [np.zeros(0, np.float32) if t is None else t.numpy() for t in (scale, shift, slope)]
    tail.append(tail[0][:0] if residual is None else in_memory(residual, True))
    arrays = (in_memory(x, True), to_array(weight.permute(0, 2, 3, 1)), *tail)
    return x, weight, (scale, shift, slope, residual, activation), arrays


def after_sums(
    sums: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    slope: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: int,
) -> torch.Tensor:
    """The float64 reference of what follows a convolution's float64 sums."""
    if scale is not None:
        sums = sums * scale.double().view(1, -1, 1, 1)
    if shift is not None:
        sums = sums + shift.double().view(1, -1, 1, 1)
    if residual is not None:
        sums = sums + residual.double()
    if activation == 1:
        return sums.relu()
    return F.prelu(sums, slope.double()) if activation == 2 else sums


def close_to(result: torch.Tensor, reference: torch.Tensor, dtype: torch.dtype) -> None:
    """Within the tolerance of `dtype`."""
    worst = ((result.double() - reference).abs() / (1 + reference.abs())).max().item()
    assert worst <= TOLERANCE[dtype], worst
