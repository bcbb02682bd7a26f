"""The cases that the operators' tests walk: geometry, values, dtypes and memory layouts.

An operator is covered by adding rows. tests/ops runs every row through the public functions on
each device; tests/simt runs the (N, C, H, W) ones on the CUDA kernels compiled for the CPU.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
FORMATS = {"offset": torch.uint8, "packed": torch.int32, "flat": torch.int64}


def dtype_id(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- memory layouts ---------------------------------------------------------------------------


def _sliced(x: Tensor) -> Tensor:
    lead = x.shape[:-2]
    big = x.new_zeros((*lead, x.shape[-2] + 3, 2 * x.shape[-1] + 1))
    view = big[..., 2:-1, 1::2]
    return view.copy_(x)


def _expanded(x: Tensor) -> Tensor:
    return x[..., :1, :, :].expand(x.shape)


def _expanded_batch(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


def _offset(x: Tensor) -> Tensor:
    return x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)


def _channels_last(x: Tensor) -> Tensor:
    return x.movedim(-3, -1).contiguous().movedim(-1, -3)


def _channels_last_sliced(x: Tensor) -> Tensor:
    big = torch.cat([x, x, x], dim=-3)
    return _channels_last(big)[..., x.shape[-3] : 2 * x.shape[-3], :, :]


def _channels_last_offset(x: Tensor) -> Tensor:
    return _offset(x.movedim(-3, -1)).movedim(-1, -3)


#: How the elements of an (N, C, H, W) or (C, H, W) tensor lie. Each function returns a tensor of
#: the same shape; the expanded ones repeat the first channel or image.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.Tensor.contiguous,
    "channels_last": _channels_last,
    "sliced": _sliced,
    "expanded": _expanded,
    "expanded_batch": _expanded_batch,
    "transposed": lambda x: x.mT.contiguous().mT,
    "offset": _offset,  # one element off: breaks the 16-byte alignment of every dtype
    "channels_last_sliced": _channels_last_sliced,  # not dense, still channels-last by its strides
    "channels_last_offset": _channels_last_offset,
}


# ---- pooling ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PoolCase:
    """A pooling of an (N, C, H, W) or (C, H, W) input; pairs are (height, width)."""

    shape: tuple[int, ...]
    kernel: tuple[int, int] = (2, 2)
    stride: tuple[int, int] = (2, 2)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False
    special: str = ""  # "nan", "inf", "-inf": some inputs are; "zeros", "relu", "rising": see input
    notes: str = ""  # what the row is there for

    def __str__(self) -> str:
        pairs = (self.shape, self.kernel, self.stride, self.padding, self.dilation)
        text = "-".join("x".join(map(str, pair)) for pair in pairs)
        special = self.special.replace("-", "minus_")
        return text + "-ceil" * self.ceil_mode + ("-" + special if special else "")

    # Geometry.

    @property
    def window(self) -> tuple[tuple[int, int], ...]:
        """The arguments kernel_size, stride, padding, dilation of the operators."""
        return self.kernel, self.stride, self.padding, self.dilation

    @property
    def input_size(self) -> tuple[int, int]:
        return self.shape[-2:]

    @functools.cached_property
    def output_size(self) -> tuple[int, int]:
        """As torch counts the windows."""
        plane = torch.empty(1, 1, *self.input_size, device="meta")
        return tuple(self.pool(plane)[0].shape[-2:])

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (*self.shape[:-2], *self.output_size)

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def bits(self) -> int:
        """Bits of a window's code in the packed format."""
        return 2 if self.taps <= 4 else 4

    @property
    def formats(self) -> list[str]:
        """The index formats that can hold this window's positions."""
        most = {"offset": 256, "packed": 16}
        return [f for f in FORMATS if self.taps <= most.get(f, self.taps)]

    @property
    def tiled(self) -> bool:
        """No element belongs to two windows, and no window reaches over the near edges."""
        return self.kernel == self.stride and self.padding == (0, 0) and self.dilation == (1, 1)

    @property
    def disjoint(self) -> bool:
        """No element belongs to two windows."""
        reach = [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation)]
        return all(r <= s for r, s in zip(reach, self.stride))

    @functools.cached_property
    def held(self) -> Tensor:
        """bool (Ho, Wo): whether the window holds an element of the plane. Dilation with padding,
        and ceil mode with them, can leave windows that do not."""
        axes = []
        for i, (n, out) in enumerate(zip(self.input_size, self.output_size)):
            starts = torch.arange(out) * self.stride[i] - self.padding[i]
            taps = starts[:, None] + torch.arange(self.kernel[i]) * self.dilation[i]
            axes.append(((taps >= 0) & (taps < n)).any(1))
        return axes[0][:, None] & axes[1]

    @property
    def hollow(self) -> bool:
        """Some window holds no element."""
        return not bool(self.held.all())

    # Data.

    def input(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Small integers, full of ties and exact in every dtype, and the special values; zeros of
        both signs; no negative number; or numbers that rise, so that the last element wins."""
        generator = torch.Generator().manual_seed(sum(self.shape))
        x = torch.randint(-4, 5, self.shape, generator=generator).to(dtype)
        chosen = torch.rand(self.shape, generator=generator) < 0.3
        if self.special == "relu":
            x = x.relu()
        elif self.special == "zeros":
            x = torch.where(chosen, torch.zeros_like(x), -torch.zeros_like(x))
        elif self.special == "rising":
            x = torch.arange(x.numel()).view(x.shape).to(dtype)
        elif self.special:
            x[chosen] = float(self.special)
            x[..., :1, :, :] = float(self.special)  # windows of nothing else
        return x.to(device)

    def noise(
        self, shape: Iterable[int], dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Normal numbers of a shape, the same for every dtype but for the rounding."""
        generator = torch.Generator().manual_seed(sum(self.shape) + 1)
        values = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
        return values.to(dtype).to(device)

    # torch.

    def pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """torch's pooled values and plane indices; -1 for a window that holds nothing, where torch
        names a position outside the window."""
        y, flat = F.max_pool2d(x, *self.window, self.ceil_mode, return_indices=True)
        if x.device.type != "meta" and self.hollow:
            flat = torch.where(self.held.to(flat.device), flat, -1)
        return y, flat


def _square(n: int) -> dict[str, tuple[int, int]]:
    return {"kernel": (n, n), "stride": (n, n)}


_THREE_BY_TWO = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}  # ResNet's first pooling
_THREE_BY_ONE = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1)}  # GoogLeNet's

POOL_CASES = (
    # Tiling windows: SegNet's and ENet's 2x2, and others whose window is found by a division.
    PoolCase((2, 3, 8, 8), notes="even"),
    PoolCase((1, 2, 7, 9), notes="odd, last row and column left out"),
    PoolCase((1, 2, 7, 9), ceil_mode=True, notes="odd, last windows clipped"),
    PoolCase((1, 2, 7, 16), notes="whole vectors, odd rows"),
    PoolCase((1, 2, 7, 16), ceil_mode=True, notes="whole vectors, last row clipped"),
    PoolCase((1, 2, 45, 61), notes="SegNet's 360 -> 45 and on"),
    PoolCase((1, 2, 45, 61), ceil_mode=True, notes="SegNet's 45 -> 23"),
    PoolCase((1, 3, 13, 17), notes="primes"),
    PoolCase((1, 1, 2, 66), notes="more than one word of codes"),
    PoolCase((1, 2, 1, 37), ceil_mode=True, notes="a single row"),
    PoolCase((2, 2, 37, 1), ceil_mode=True, notes="a single column"),
    PoolCase((1, 3, 5, 70), kernel=(1, 2), stride=(1, 2), notes="windows of one row"),
    PoolCase((1, 3, 6, 5), kernel=(2, 1), stride=(2, 1), notes="windows of one column"),
    PoolCase((1, 4, 6, 40), ceil_mode=True, special="nan"),
    PoolCase((2, 1, 9, 12), **_square(3)),
    PoolCase((1, 2, 7, 11), **_square(3), ceil_mode=True),
    PoolCase((1, 2, 6, 10), kernel=(3, 2), stride=(3, 2), ceil_mode=True, notes="rectangular"),
    PoolCase((1, 2, 14, 37), **_square(4), ceil_mode=True, notes="16 codes of 4 bits"),
    PoolCase((1, 2, 15, 16), **_square(5), ceil_mode=True, notes="beyond the packed format"),
    PoolCase((3, 5, 20, 32), notes="several blocks"),
    PoolCase((1, 2, 4, 1034), notes="rows longer than a tile"),
    PoolCase((1, 1, 5, 1061), **_THREE_BY_TWO, ceil_mode=True, notes="rows longer than a tile"),
    # Overlapping, padded, dilated, gaps between windows.
    PoolCase((2, 3, 11, 13), **_THREE_BY_TWO),
    PoolCase((1, 2, 10, 12), **_THREE_BY_TWO, ceil_mode=True),
    PoolCase((1, 2, 9, 10), **_THREE_BY_ONE, special="nan"),
    PoolCase((2, 2, 7, 7), **_THREE_BY_ONE, special="relu"),
    PoolCase((1, 2, 8, 9), kernel=(2, 3), stride=(2, 1), padding=(1, 0), ceil_mode=True),
    PoolCase((1, 2, 11, 13), kernel=(4, 4), stride=(2, 3), padding=(2, 1), notes="16 codes"),
    PoolCase((1, 2, 5, 21), kernel=(2, 8), stride=(1, 3), padding=(1, 4), notes="16 codes"),
    PoolCase((1, 2, 12, 11), **_THREE_BY_TWO, dilation=(2, 3)),
    PoolCase((1, 2, 9, 9), kernel=(2, 2), stride=(1, 1), dilation=(3, 2), notes="dilated only"),
    PoolCase((1, 1, 10, 9), kernel=(2, 2), stride=(3, 3), special="-inf", notes="gaps"),
    PoolCase((1, 2, 9, 9), kernel=(5, 5), stride=(2, 2), padding=(2, 2), ceil_mode=True),
    # 256, 255 and 272 elements a window: the last code of a byte, the one before, and flat only.
    PoolCase((1, 1, 19, 20), kernel=(16, 16), stride=(3, 4), padding=(8, 8), special="rising"),
    PoolCase((1, 2, 21, 19), kernel=(17, 15), stride=(2, 3), padding=(8, 7), special="rising"),
    PoolCase((1, 2, 19, 20), kernel=(17, 16), stride=(1, 2), padding=(8, 8), special="rising"),
    # Values.
    PoolCase((2, 2, 6, 7), special="-inf"),
    PoolCase((1, 3, 6, 8), special="inf"),
    PoolCase((1, 3, 6, 8), special="zeros", notes="the first zero wins, whatever its sign"),
    PoolCase((1, 2, 7, 8), **_THREE_BY_TWO, special="-inf", notes="beside padding"),
    # Edges: one element, one window, no images, no batch, channels that fill no vector or several.
    PoolCase((1, 1, 1, 1), **_square(1)),
    PoolCase((1, 1, 3, 3), kernel=(3, 3), stride=(1, 1)),
    PoolCase((0, 3, 4, 4)),
    PoolCase((0, 3, 9, 7), **_THREE_BY_TWO),
    PoolCase((3, 8, 10)),
    PoolCase((3, 9, 11), ceil_mode=True),
    PoolCase((2, 9, 11), **_THREE_BY_TWO),
    PoolCase((1, 67, 4, 6)),
    PoolCase((1, 64, 5, 6), ceil_mode=True),
    PoolCase((2, 17, 6, 6), **_square(3)),
    PoolCase((2, 40, 5, 5), **_THREE_BY_TWO),
    # Windows that hold no element at all.
    PoolCase((1, 2, 2, 2), padding=(1, 1), dilation=(3, 3)),
    PoolCase((1, 2, 4, 2), kernel=(1, 2), stride=(1, 2), padding=(0, 1), dilation=(1, 3)),
    PoolCase((2, 3, 3, 4), kernel=(2, 2), stride=(1, 1), padding=(1, 1), dilation=(4, 5)),
)
