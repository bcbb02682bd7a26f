"""Pooling cases and their expected results, from torch's own operators and a few lines of NumPy."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

FORMATS = {"offset": np.uint8, "packed": np.int32, "flat": np.int64}
DTYPES = ("float32", "float64", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class PoolCase:
    """A pooling of an (N, C, H, W) input; pairs are (height, width)."""

    shape: tuple[int, int, int, int]
    kernel: tuple[int, int] = (2, 2)
    stride: tuple[int, int] = (2, 2)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False
    special: str = ""  # "nan" or "-inf": some inputs are
    hollow: bool = False  # some window holds no element at all; then only forward is defined

    def __str__(self) -> str:
        pairs = (self.shape, self.kernel, self.stride, self.padding, self.dilation)
        text = "-".join("x".join(map(str, pair)) for pair in pairs)
        return text + ("-ceil" if self.ceil_mode else "") + self.special.replace("-", "-minus")

    @property
    def output_size(self) -> tuple[int, int]:
        return tuple(self.pool(torch.zeros(1, 1, *self.shape[2:]))[0].shape[2:])

    @property
    def window(self) -> tuple[int, ...]:
        """The fields of PoolWindow, in order."""
        pairs = (self.kernel, self.stride, self.padding, self.dilation)
        return sum((*pairs, self.shape[2:], self.output_size), ())

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def windows(self) -> int:
        return self.output_size[0] * self.output_size[1]

    @property
    def formats(self) -> list[str]:
        """The index formats that can hold this window's positions."""
        return [f for f in FORMATS if f != "packed" or self.taps <= 16]

    def pool(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """torch's pooled values and plane indices."""
        geometry = (self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)
        return F.max_pool2d(x, *geometry, return_indices=True)

    def input(self, dtype: str) -> torch.Tensor:
        """Small integers, full of ties and exact in every dtype."""
        generator = torch.Generator().manual_seed(sum(self.shape))
        x = torch.randint(-4, 5, self.shape, generator=generator).to(getattr(torch, dtype))
        if self.special and x.numel() > 0:
            x[torch.rand(self.shape, generator=generator) < 0.3] = float(self.special)
            x[:, 0] = float(self.special)  # windows of nothing else
        return x

    def indices_shape(self, index_format: str) -> tuple[int, ...]:
        out_h, out_w = self.output_size
        if index_format == "packed":
            out_w = -(-out_w * self.bits // 32)
        return (*self.shape[:2], out_h, out_w)

    @property
    def bits(self) -> int:
        return 2 if self.taps <= 4 else 4

    def encode(self, flat: np.ndarray, index_format: str) -> np.ndarray:
        """torch's plane indices (N, C, out_h, out_w) in another format; a window without elements
        has -1 or code 0, where torch names a place outside the window."""
        if index_format == "flat":
            return np.where(self._holds_elements(), flat, -1)
        in_w = self.shape[3]
        out_h, out_w = self.output_size
        top = (np.arange(out_h) * self.stride[0] - self.padding[0])[:, None]
        left = np.arange(out_w) * self.stride[1] - self.padding[1]
        kh = (flat // in_w - top) // self.dilation[0]
        kw = (flat % in_w - left) // self.dilation[1]
        code = np.where(self._holds_elements(), kh * self.kernel[1] + kw, 0)
        if index_format == "offset":
            return code.astype(np.uint8)
        words = np.zeros(self.indices_shape("packed"), np.uint32)
        for ow in range(out_w):
            bit = ow * self.bits
            words[..., bit // 32] |= (code[..., ow] << bit % 32).astype(np.uint32)
        return words.view(np.int32)

    def _holds_elements(self) -> np.ndarray:
        """(out_h, out_w): whether the window holds any element of the plane."""
        axes = []
        for i, (n, out) in enumerate(zip(self.shape[2:], self.output_size, strict=True)):
            starts = np.arange(out) * self.stride[i] - self.padding[i]
            taps = starts[:, None] + np.arange(self.kernel[i]) * self.dilation[i]
            axes.append(((taps >= 0) & (taps < n)).any(1))
        return axes[0][:, None] & axes[1]

    def unpool(self, values: np.ndarray, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Unpooled planes, the last window in raster order winning, and the winners' mask."""
        height, width = self.shape[2:]
        planes = np.zeros((*self.shape[:2], height * width), values.dtype)
        winner = np.full(planes.shape, -1)
        values, flat = (a.reshape(*self.shape[:2], self.windows) for a in (values, flat))
        for i in range(flat.shape[-1]):
            np.put_along_axis(planes, flat[..., i : i + 1], values[..., i : i + 1], -1)
            np.put_along_axis(winner, flat[..., i : i + 1], i, -1)
        won = np.take_along_axis(winner, flat, -1) == np.arange(flat.shape[-1])
        return planes.reshape(self.shape), won.reshape(*self.shape[:2], *self.output_size)

    def scatter_add(self, grad: np.ndarray, flat: np.ndarray) -> np.ndarray:
        """Pooling's backward: every window adds its gradient to the element it names."""
        height, width = self.shape[2:]
        planes = np.zeros((*self.shape[:2], height * width), np.float64)
        grad, flat = (a.reshape(*self.shape[:2], self.windows) for a in (grad, flat))
        for i in range(flat.shape[-1]):
            at = flat[..., i : i + 1]
            total = np.take_along_axis(planes, at, -1) + grad[..., i : i + 1]
            np.put_along_axis(planes, at, total, -1)
        return planes.reshape(self.shape)

    def gather(self, planes: np.ndarray, flat: np.ndarray) -> np.ndarray:
        """The plane element that each window names."""
        height, width = self.shape[2:]
        planes = planes.reshape(*self.shape[:2], height * width)
        taken = np.take_along_axis(planes, flat.reshape(*self.shape[:2], self.windows), -1)
        return taken.reshape(flat.shape)

    def taken(self, indices: np.ndarray, index_format: str) -> np.ndarray:
        """Whether each window's stored index names an element of the plane."""
        height, width = self.shape[2:]
        out_h, out_w = self.output_size
        if index_format == "flat":
            return (indices >= 0) & (indices < height * width)
        code = indices.astype(np.int64)
        if index_format == "packed":
            ow = np.arange(out_w) * self.bits
            code = indices.view(np.uint32)[..., ow // 32] >> ow % 32 & (2**self.bits - 1)
        top = (np.arange(out_h) * self.stride[0] - self.padding[0])[:, None]
        left = np.arange(out_w) * self.stride[1] - self.padding[1]
        h = top + code // self.kernel[1] * self.dilation[0]
        w = left + code % self.kernel[1] * self.dilation[1]
        return (code < self.taps) & (h >= 0) & (h < height) & (w >= 0) & (w < width)


CASES = (
    # Tiling windows: SegNet's and ENet's 2x2, and others found by a division.
    PoolCase((2, 3, 8, 8)),
    PoolCase((1, 2, 7, 9)),
    PoolCase((1, 2, 7, 9), ceil_mode=True),
    PoolCase((1, 1, 2, 66)),
    PoolCase((1, 4, 6, 40), ceil_mode=True, special="nan"),
    PoolCase((2, 1, 9, 12), kernel=(3, 3), stride=(3, 3)),
    PoolCase((1, 2, 6, 10), kernel=(3, 2), stride=(3, 2), ceil_mode=True),
    PoolCase((1, 3, 5, 70), kernel=(1, 2), stride=(1, 2)),
    PoolCase((1, 2, 7, 16)),
    PoolCase((1, 2, 7, 16), ceil_mode=True),
    PoolCase((3, 5, 20, 32)),
    # Overlapping, padded, dilated, gaps between windows.
    PoolCase((2, 3, 11, 13), kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
    PoolCase((1, 2, 9, 10), kernel=(3, 3), stride=(1, 1), padding=(1, 1), special="nan"),
    PoolCase((1, 2, 8, 9), kernel=(2, 3), stride=(2, 1), padding=(1, 0), ceil_mode=True),
    PoolCase((1, 2, 12, 11), kernel=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(2, 3)),
    PoolCase((1, 1, 10, 9), kernel=(2, 2), stride=(3, 3), special="-inf"),
    PoolCase((1, 2, 9, 9), kernel=(5, 5), stride=(2, 2), padding=(2, 2), ceil_mode=True),
    PoolCase((1, 1, 19, 20), kernel=(16, 16), stride=(3, 4), padding=(8, 8)),
    PoolCase((2, 2, 6, 7), special="-inf"),
    # Edges: one element, one window, no images, more channels than a warp has lanes.
    PoolCase((1, 1, 1, 1), kernel=(1, 1), stride=(1, 1)),
    PoolCase((1, 1, 3, 3), kernel=(3, 3), stride=(1, 1)),
    PoolCase((0, 3, 4, 4)),
    PoolCase((1, 67, 4, 6)),
    PoolCase((1, 64, 5, 6), ceil_mode=True),
    PoolCase((2, 40, 5, 5), kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
    PoolCase((1, 2, 2, 2), padding=(1, 1), dilation=(3, 3), hollow=True),
    PoolCase(
        (1, 2, 4, 2), kernel=(1, 2), stride=(1, 2), padding=(0, 1), dilation=(1, 3), hollow=True
    ),
)
