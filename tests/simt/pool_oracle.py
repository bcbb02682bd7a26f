"""What the kernels must make of a pooling case, from torch's own operators and a little NumPy."""

from __future__ import annotations

import dataclasses

import numpy as np
import opcases
import torch

FORMATS = {"offset": np.uint8, "packed": np.int32, "flat": np.int64}
DTYPES = tuple(opcases.dtype_id(dtype) for dtype in opcases.DTYPES)


class PoolCase(opcases.PoolCase):
    """A case of the list that all back ends share, for arrays; always (N, C, H, W)."""

    @property
    def fields(self) -> tuple[int, ...]:
        """The fields of PoolWindow, in order."""
        return sum((*self.window, self.input_size, self.output_size), ())

    @property
    def windows(self) -> int:
        return self.output_size[0] * self.output_size[1]

    def input(self, dtype: str) -> torch.Tensor:
        return super().input(getattr(torch, dtype))

    def indices_shape(self, index_format: str) -> tuple[int, ...]:
        out_h, out_w = self.output_size
        if index_format == "packed":
            out_w = -(-out_w * self.bits // 32)
        return (*self.shape[:2], out_h, out_w)

    def encode(self, flat: np.ndarray, index_format: str) -> np.ndarray:
        """torch's plane indices (N, C, out_h, out_w) in another format."""
        if index_format == "flat":
            return flat
        in_w = self.shape[3]
        out_h, out_w = self.output_size
        top = (np.arange(out_h) * self.stride[0] - self.padding[0])[:, None]
        left = np.arange(out_w) * self.stride[1] - self.padding[1]
        kh = (flat // in_w - top) // self.dilation[0]
        kw = (flat % in_w - left) // self.dilation[1]
        code = np.where(self.held.numpy(), kh * self.kernel[1] + kw, 0)
        if index_format == "offset":
            return code.astype(np.uint8)
        words = np.zeros(self.indices_shape("packed"), np.uint32)
        for ow in range(out_w):
            bit = ow * self.bits
            words[..., bit // 32] |= (code[..., ow] << bit % 32).astype(np.uint32)
        return words.view(np.int32)

    def _planes_and_spare(self, dtype: np.dtype) -> np.ndarray:
        """Zeros, one more than a plane has elements: what the index -1 names in NumPy."""
        return np.zeros((*self.shape[:2], self.shape[2] * self.shape[3] + 1), dtype)

    def unpool(self, values: np.ndarray, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Unpooled planes, the last window in raster order winning, and the winners' mask."""
        planes = self._planes_and_spare(values.dtype)
        winner = np.full(planes.shape, -1)
        values, flat = (a.reshape(*self.shape[:2], self.windows) for a in (values, flat))
        for i in range(flat.shape[-1]):
            np.put_along_axis(planes, flat[..., i : i + 1], values[..., i : i + 1], -1)
            np.put_along_axis(winner, flat[..., i : i + 1], i, -1)
        won = np.take_along_axis(winner, flat, -1) == np.arange(flat.shape[-1])
        planes = planes[..., :-1].reshape(self.shape)
        return planes, won.reshape(*self.shape[:2], *self.output_size)

    def scatter_add(self, grad: np.ndarray, flat: np.ndarray) -> np.ndarray:
        """Pooling's backward: every window adds its gradient to the element it names."""
        planes = self._planes_and_spare(np.float64)
        grad, flat = (a.reshape(*self.shape[:2], self.windows) for a in (grad, flat))
        for i in range(flat.shape[-1]):
            at = flat[..., i : i + 1]
            total = np.take_along_axis(planes, at, -1) + grad[..., i : i + 1]
            np.put_along_axis(planes, at, total, -1)
        return planes[..., :-1].reshape(self.shape)

    def gather(self, planes: np.ndarray, flat: np.ndarray) -> np.ndarray:
        """The plane element that each window names, 0 where it names none."""
        spare = self._planes_and_spare(planes.dtype)
        spare[..., :-1] = planes.reshape(spare[..., :-1].shape)
        taken = np.take_along_axis(spare, flat.reshape(*self.shape[:2], self.windows), -1)
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


CASES = tuple(
    PoolCase(**dataclasses.asdict(case)) for case in opcases.POOL_CASES if len(case.shape) == 4
)
