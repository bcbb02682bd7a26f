"""The pooling and unpooling kernels on the CPU, against torch, in every schedule and sanitised."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from .harness import Call, Schedule, check_orders, load, poisoned, run_sanitized, scheduled
from .pool_oracle import CASES, DTYPES, PoolCase


@dataclasses.dataclass
class Launch:
    """One function of the module, its arguments without the outputs, and what these must become."""

    function: str
    arguments: tuple[Any, ...]
    expected: list[np.ndarray]
    dtype: str

    def check(self, outputs: list[np.ndarray]) -> None:
        """Equal numbers, NaN for NaN."""
        for got, expected in zip(outputs, self.expected, strict=True):
            if self.dtype == "bfloat16" and got.dtype == np.uint16:
                got, expected = (_from_bits(a) for a in (got, expected))
            np.testing.assert_array_equal(got, expected, err_msg=f"{self.function} {self.dtype}")


def memory(values: torch.Tensor | np.ndarray, channels_last: bool) -> np.ndarray:
    """The elements of an (N, C, H, W) tensor in memory order; bfloat16 as uint16 bits."""
    if isinstance(values, torch.Tensor):
        values = values.view(torch.uint16) if values.dtype == torch.bfloat16 else values
        values = values.numpy()
    return np.ascontiguousarray(values.transpose(0, 2, 3, 1) if channels_last else values)


def _from_bits(bits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(bits).view(torch.bfloat16).float().numpy()


def launches(
    case: PoolCase, dtype: str, index_format: str, channels_last: bool, offset: int = 0
) -> list[Launch]:
    """Every operation of a case, with its result by torch; features lie `offset` bytes off."""
    x = case.input(dtype)
    y, flat_tensor = case.pool(x)
    flat = flat_tensor.numpy()

    def place(values: torch.Tensor | np.ndarray) -> np.ndarray:
        return memory(torch.as_tensor(values).to(x.dtype), channels_last)

    geometry = (case.fields, *case.shape[:2], dtype, index_format, channels_last)
    codes = {name: memory(case.encode(flat, name), channels_last) for name in case.formats}
    indices = codes[index_format]

    def launch(function: str, *arguments: Any, expected: list[np.ndarray]) -> Launch:
        return Launch(function, (geometry, *arguments), expected, dtype)

    found = [launch("max_pool_fwd", place(x), offset, expected=[place(y), indices])]
    found += [
        launch("convert_pool_indices", indices, name, expected=[codes[name]])
        for name in case.formats
    ]

    # Values and gradients: small integers, different between neighbours, with exact sums.
    pooled = np.arange(y.numel()).reshape(y.shape) % 61 + 1
    planes = np.arange(x.numel()).reshape(x.shape) % 59 + 1
    unpooled, won = case.unpool(pooled, flat)
    gathered = case.gather(planes, flat)
    grad_in = [place(case.scatter_add(pooled, flat))]
    return [
        *found,
        launch("max_pool_bwd", place(pooled), offset, indices, expected=grad_in),
        launch("max_unpool_fwd", place(pooled), offset, indices, expected=[place(unpooled)]),
        launch(
            "max_unpool_bwd", place(planes), offset, indices, True, expected=[place(gathered * won)]
        ),
        launch("max_unpool_bwd", place(planes), offset, indices, False, expected=[place(gathered)]),
    ]


def named(case: PoolCase, index_format: str, channels_last: bool) -> Any:
    layout = "channels_last" if channels_last else "contiguous"
    return pytest.param(case, index_format, channels_last, id=f"{case}-{index_format}-{layout}")


ALL = pytest.mark.parametrize(
    "case, index_format, channels_last",
    [named(case, f, layout) for case in CASES for f in case.formats for layout in (False, True)],
)
# Fast paths with a clipped last row or column, overlap, dilation, every format.
SANITIZED = [
    PoolCase((1, 2, 7, 16), ceil_mode=True),
    PoolCase((1, 8, 6, 8)),
    PoolCase((1, 2, 7, 9), ceil_mode=True),
    PoolCase((1, 2, 6, 10), kernel=(3, 2), stride=(3, 2), ceil_mode=True),
    PoolCase((1, 3, 11, 13), kernel=(3, 3), stride=(2, 2), padding=(1, 1), special="nan"),
    PoolCase((1, 2, 12, 11), kernel=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(2, 3)),
    PoolCase((1, 2, 4, 2), (1, 2), (1, 2), (0, 1), (1, 3)),
    PoolCase((0, 3, 4, 4)),
]


@pytest.fixture(scope="module")
def kernels():
    return load("max_pool")


def check(kernels, launch: Launch) -> None:
    """Runs a launch in every schedule and compares it with torch."""

    def run() -> list[np.ndarray]:
        outputs = [poisoned(kernels, array.shape, array.dtype) for array in launch.expected]
        getattr(kernels, launch.function)(*launch.arguments, *outputs)
        return outputs

    launch.check(check_orders(kernels, run))


@ALL
def test_kernels_agree_with_torch(kernels, case, index_format, channels_last):
    for dtype in DTYPES:
        for launch in launches(case, dtype, index_format, channels_last):
            check(kernels, launch)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_misaligned_features_take_a_path_without_vectors(kernels, dtype, channels_last):
    case = PoolCase((1, 16, 4, 16))
    size = 2 if "16" in dtype else int(dtype[-2:]) // 8
    for launch in launches(case, dtype, "offset", channels_last, offset=size):
        check(kernels, launch)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_kernels_that_count_in_64_bits(kernels, channels_last):
    kernels.set_int32_limit(0)  # as if there were more than 2^31 elements
    try:
        for case in (PoolCase((2, 8, 9, 32)), PoolCase((1, 3, 7, 9), kernel=(3, 3), stride=(2, 2))):
            for index_format in case.formats:
                for launch in launches(case, "float16", index_format, channels_last):
                    check(kernels, launch)
    finally:
        kernels.set_int32_limit(2**31 - 1)


def test_blocks_on_two_os_threads(kernels):
    case = PoolCase((3, 5, 20, 33), kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    for launch in launches(case, "float32", "offset", False):
        outputs = [np.zeros_like(array) for array in launch.expected]
        with scheduled(kernels, Schedule("shuffled", seed=4, workers=2)):
            getattr(kernels, launch.function)(*launch.arguments, *outputs)
        launch.check(outputs)


def test_sanitizers_find_nothing():
    wanted, calls = [], []
    for case in SANITIZED:
        for index_format in case.formats:
            for channels_last in (False, True):
                for dtype in ("float32", "float16"):
                    wanted += launches(case, dtype, index_format, channels_last)
    wanted += launches(PoolCase((1, 16, 4, 16)), "float16", "packed", False, offset=2)
    for launch in wanted:
        outputs = [np.full(array.shape, 77, array.dtype) for array in launch.expected]
        arguments = (*launch.arguments, *outputs)
        calls.append(
            Call(launch.function, arguments, Schedule("reversed"), str(launch.arguments[0]))
        )
    for launch, result in zip(wanted, run_sanitized("max_pool", calls), strict=True):
        launch.check(result[-len(launch.expected) :])


# Indices that name no element: dropped, never followed.


def bad_indices(case: PoolCase, index_format: str) -> np.ndarray:
    """Every other entry (word, for packed) out of range."""
    flat = case.pool(case.input("float32"))[1].numpy()
    indices = case.encode(flat, index_format).copy()
    far = {"offset": [255, case.taps], "packed": [-1], "flat": [-1, 10**6, -(2**62)]}[index_format]
    indices.reshape(-1)[::2] = np.resize(far, indices.reshape(-1)[::2].shape)
    return indices


BAD = [
    PoolCase((1, 2, 8, 16)),
    PoolCase((1, 2, 6, 9), kernel=(3, 3), stride=(3, 3)),
    PoolCase((1, 2, 9, 11), kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
]


def test_indices_out_of_range_are_dropped():
    """Under AddressSanitizer: no such entry is followed, whatever it holds."""
    calls, wanted = [], []
    for case in BAD:
        for index_format in case.formats:
            if index_format == "packed" and case.taps == 4:
                continue  # every 2-bit code is an element
            indices = bad_indices(case, index_format)
            geometry = (case.fields, *case.shape[:2], "float32", index_format, False)
            ones = np.ones(case.shape[:2] + case.output_size, np.float32)
            plane = np.ones(case.shape, np.float32)
            for function, arguments, shape in [
                ("max_pool_bwd", (ones, 0, indices), plane.shape),
                ("max_unpool_fwd", (ones, 0, indices), plane.shape),
                ("max_unpool_bwd", (plane, 0, indices, True), ones.shape),
                ("max_unpool_bwd", (plane, 0, indices, False), ones.shape),
            ]:
                output = np.full(shape, 77, np.float32)
                calls.append(Call(function, (geometry, *arguments, output)))
                wanted.append(case.taken(indices, index_format))
    for call, taken, result in zip(calls, wanted, run_sanitized("max_pool", calls), strict=True):
        output = result[-1]
        # Every window that names an element moves a one there or back; overlapping ones meet.
        if call.function == "max_unpool_bwd" and not call.arguments[-2]:
            assert (output == taken).all()
        elif call.function == "max_pool_bwd":
            assert output.sum() == taken.sum()
        else:
            assert set(np.unique(output)) <= {0.0, 1.0}
            assert 0 < output.sum() <= taken.sum()
