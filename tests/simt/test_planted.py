"""The rung runs correct kernels right, in every schedule, and catches each planted mistake."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from .arrays import to_array, to_tensor
from .harness import (
    ORDERS,
    OrderDependence,
    Schedule,
    check_orders,
    load,
    poisoned,
    scheduled,
)


@pytest.fixture(scope="module", params=["plain", "portable"])
def planted(request):
    """The planted kernels, on both kinds of fibre."""
    return load("planted", request.param)


@pytest.fixture(scope="module")
def plain():
    return load("planted")


def values(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-50, 50, n).astype(np.int32)


# What must work


def test_block_sum_is_right_in_every_order(planted):
    numbers = values(65_536).astype(np.float32)  # integers: the sum is exact in any order

    def run():
        total = np.zeros(1, np.float32)
        planted.block_sum(numbers, total, numbers.size, 256, 256)
        return total

    assert check_orders(planted, run)[0] == numbers.sum()


def test_block_sum_is_fast(plain):
    numbers = np.ones(65_536, np.float32)
    total = np.zeros(1, np.float32)
    start = time.perf_counter()
    plain.block_sum(numbers, total, numbers.size, 256, 256)
    assert time.perf_counter() - start < 1.0
    assert total == numbers.size


@pytest.mark.parametrize("order", ["lane", "reversed", "shuffled"])
def test_blocks_may_spread_over_os_threads(planted, order):
    numbers = values(10_000).astype(np.float32)
    total = np.zeros(1, np.float32)
    with scheduled(planted, Schedule(order, seed=3, workers=2)):
        planted.block_sum(numbers, total, numbers.size, 40, 256)
    assert total == numbers.sum()


def test_barrier_separates_writes_from_reads(planted):
    numbers = values(4 * 256)

    def run():
        out = poisoned(planted, numbers.size, np.int32)
        planted.reverse_block(numbers, out, 4, 256)
        return out

    assert (check_orders(planted, run)[0] == numbers.reshape(4, 256)[:, ::-1].reshape(-1)).all()


@pytest.mark.parametrize(
    "grid, block", [((3, 2, 4), (5, 7, 3)), ((1, 1, 1), (1, 1, 64)), ((9, 1, 1), (1024, 1, 1))]
)
def test_every_thread_of_a_3d_grid_runs_once(planted, grid, block):
    count = int(np.prod(grid) * np.prod(block))

    def run():
        out = poisoned(planted, count, np.int32)
        planted.coordinates(out, grid, block, 0)
        return out

    assert (check_orders(planted, run)[0] == np.arange(count)).all()


def test_exited_threads_count_as_arrived(planted):
    numbers = values(256)

    def run():
        out = np.zeros(256, np.int32)
        planted.early_exit(numbers, out, 100, 1, 256)
        return out

    out = check_orders(planted, run)[0]
    assert (out[:100] == numbers[:100][::-1]).all()
    assert (out[100:] == 0).all()


def test_spinning_threads_give_way(planted):
    def run():
        cells = np.zeros(2, np.int32)
        planted.spin_lock(cells, 3, 96)
        return cells

    assert check_orders(planted, run)[0].tolist() == [0, 3 * 96]


def test_warp_intrinsics(planted):
    value = values(32, seed=5)
    lane = np.arange(32)
    bits = value.view(np.uint32)
    segments = lane // 8 * 8
    up, down, xor = lane - 2, lane + 1, lane ^ 12
    # A lane of another segment: xor may read a lower one, never a higher.
    expected = [
        np.full(32, value[5]),
        value[segments + (lane + 3) % 8],
        value[np.where(lane >= 3, lane - 3, lane)],
        value[np.where(up // 16 == lane // 16, up, lane)],
        value[np.where(lane + 7 < 32, lane + 7, lane)],
        value[np.where(down // 4 == lane // 4, down, lane)],
        value[lane ^ 9],
        value[np.where(xor <= segments + 7, xor, lane)],
        np.full(32, (value == 3).any()),
        np.full(32, (value >= -100).all()),
        np.full(32, np.sum((value > 0) << lane).astype(np.uint32)),
        np.array([np.sum((value == v) << lane) for v in value]),
        np.full(32, value.sum()),
        np.full(32, value.min()),
        np.full(32, bits.max()),
        np.full(32, np.bitwise_xor.reduce(bits)),
        np.array([_popc(b) + _clz(b) + _ffs(b) for b in bits]),
        np.array([int(f"{b:032b}"[::-1], 2) for b in bits]),
    ]
    expected = np.stack([row.astype(np.int64).astype(np.uint32) for row in expected])

    def run():
        out = poisoned(planted, expected.shape, np.int32)
        planted.warp_intrinsics(value, out, 1, 32)
        return out

    np.testing.assert_array_equal(check_orders(planted, run)[0].view(np.uint32), expected)


def _popc(bits: np.uint32) -> int:
    return int(bits).bit_count()


def _clz(bits: np.uint32) -> int:
    return 32 - int(bits).bit_length()


def _ffs(bits: np.uint32) -> int:
    return (int(bits) & -int(bits)).bit_length()


def test_halves_of_a_warp_may_work_apart(planted):
    numbers = values(64)

    def run():
        out = poisoned(planted, 64, np.int32)
        planted.split_warp(numbers, out, 1, 64)
        return out

    halves = numbers.reshape(2, 2, 16)
    expected = np.stack([halves[:, 0].sum(1), halves[:, 1].max(1)], axis=1)
    assert (check_orders(planted, run)[0].reshape(2, 2, 16) == expected[..., None]).all()


@pytest.mark.parametrize("value", [np.arange(-40, 56), np.ones(96), np.zeros(96)])
def test_block_votes(planted, value):
    value = value.astype(np.int32)

    def run():
        out = poisoned(planted, (96, 3), np.int32)
        planted.block_votes(value, out, 1, 96)
        return out

    positive = value > 0
    expected = [positive.sum(), positive.all(), positive.any()]
    assert (check_orders(planted, run)[0] == expected).all()


def test_integer_atomics(planted):
    numbers = values(512, seed=9)
    bits = numbers.view(np.uint32)
    start = np.array([0, -1000, 1000, 0, -1, 0, -1000], np.int32)

    def run():
        cells = start.copy()
        planted.atomic_integers(numbers, cells, 4, 128)
        return cells

    expected = np.array(
        [
            numbers.sum(),
            numbers.max(),
            numbers.min(),
            np.bitwise_or.reduce(bits).astype(np.int32),
            np.bitwise_and.reduce(bits).astype(np.int32),
            np.bitwise_xor.reduce(bits).astype(np.int32),
            numbers.max(),
        ]
    )
    np.testing.assert_array_equal(check_orders(planted, run)[0], expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_floating_atomics(planted, dtype):
    numbers = torch.ones(256).to(getattr(torch, dtype))
    array = to_array(numbers)

    def run():
        total = np.zeros(1, array.dtype)
        planted.atomic_sum(array, total, dtype)
        return total

    assert to_tensor(check_orders(planted, run)[0], numbers.dtype).item() == 256


# Half types


def _all_patterns(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(65_536).to(torch.uint16).view(dtype)


def _assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Same bits, signed zeros included; any NaN for a NaN."""
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    number = ~expected.isnan()
    assert torch.equal(got[number].signbit(), expected[number].signbit())


HALVES = pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"]
)


def _small_float(
    module, what: str, dtype: torch.dtype, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor
):
    array = to_array(out)
    module.small_float(what, str(dtype).removeprefix("torch."), to_array(a), to_array(b), array)
    return to_tensor(array, out.dtype)


@HALVES
def test_every_pattern_widens_as_torch_widens_it(plain, dtype):
    patterns = _all_patterns(dtype)
    got = _small_float(plain, "widen", dtype, patterns, patterns, torch.empty(65_536))
    _assert_same(got, patterns.float())


@HALVES
def test_every_pattern_survives_a_round_trip(plain, dtype):
    patterns = _all_patterns(dtype)
    wide = patterns.float()
    got = _small_float(plain, "narrow", dtype, wide, wide, torch.empty_like(patterns))
    number = ~wide.isnan()
    assert torch.equal(got.view(torch.uint16)[number], patterns.view(torch.uint16)[number])
    assert got[~number].isnan().all()


@HALVES
def test_narrowing_rounds_to_nearest_even(plain, dtype):
    patterns = _all_patterns(dtype).float()
    patterns = patterns[patterns.isfinite()].sort().values.unique().double()
    halfway = ((patterns[1:] + patterns[:-1]) / 2).float()  # exact: one bit more than the format
    beyond = torch.nextafter(halfway, torch.tensor(torch.inf))
    below = torch.nextafter(halfway, torch.tensor(-torch.inf))
    limits = torch.tensor(
        [65519.0, 65520.0, 3.4e38, -3.4e38, 1e-45, torch.inf, -torch.inf, torch.nan]
    )
    wide = torch.cat([halfway, beyond, below, limits])
    got = _small_float(plain, "narrow", dtype, wide, wide, torch.empty(len(wide), dtype=dtype))
    _assert_same(got, wide.to(dtype))


@HALVES
def test_arithmetic_rounds_once(plain, dtype):
    a = _all_patterns(dtype)
    b = a[torch.randperm(65_536, generator=torch.Generator().manual_seed(0))]
    got = _small_float(
        plain, "arithmetic", dtype, a, b, torch.empty(6 * 65_536, dtype=dtype)
    ).reshape(6, -1)
    x, y = a.double(), b.double()
    for row, exact in zip(got, [x, x + y, x - y, x * y, x / y], strict=False):
        # float has twice the precision and two bits more: rounding through it rounds as once.
        _assert_same(row, exact.float().to(dtype))
    product = x * y  # exact in double; where the sum is too, one rounding is torch's
    total = product + x
    exact = ((total - product) == x) & ((total - x) == product)
    assert exact.float().mean() > 0.3
    _assert_same(got[5][exact], _round_from_double(total[exact], dtype))


def _round_from_double(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Double to half in one rounding: through a float rounded to odd."""
    near = exact.float()
    away = torch.where(near.double() < exact, torch.inf, -torch.inf).float()
    inexact = (near.double() != exact) & near.isfinite()
    even = near.view(torch.int32) % 2 == 0
    odd = torch.where(inexact & even, torch.nextafter(near, away), near)
    return odd.to(dtype)


# What must be caught


def test_missing_barrier_is_reported(plain):
    numbers = values(256)

    def run():
        out = np.zeros(256, np.int32)
        plain.reverse_block_race(numbers, out, 1, 256)
        return out

    with pytest.raises(OrderDependence, match="depends on the schedule"):
        check_orders(plain, run)


def test_missing_barrier_differs_between_shuffles(plain):
    numbers = values(256)

    def run():
        out = np.zeros(256, np.int32)
        plain.reverse_block_race(numbers, out, 1, 256)
        return out

    with pytest.raises(OrderDependence):
        check_orders(plain, run, [Schedule("shuffled", 1), Schedule("shuffled", 2)])


def test_lost_update_is_reported(plain):
    def run():
        counter = np.zeros(1, np.int32)
        plain.lost_update(counter, 1, 64, 0)
        return counter

    with pytest.raises(OrderDependence):
        check_orders(plain, run)


@pytest.mark.parametrize("schedule", ORDERS, ids=str)
def test_different_barriers_are_reported(planted, schedule):
    with scheduled(planted, schedule), pytest.raises(RuntimeError) as error:
        planted.two_barriers(np.zeros(64, np.int32), 1, 64, 0)
    message = str(error.value)
    assert "kernel planted::two_barriers, block (0, 0, 0), thread (" in message
    assert message.count("__syncthreads (planted.cuh:") == 2


@pytest.mark.parametrize("schedule", ORDERS, ids=str)
def test_deadlock_is_reported_with_both_places(planted, schedule):
    with scheduled(planted, schedule), pytest.raises(RuntimeError, match="deadlock") as error:
        planted.barrier_and_shuffle(np.zeros(64, np.int32), 1, 64, 0)
    assert "32 thread(s) from (16, 0, 0) wait at __shfl_xor_sync" in str(error.value)
    assert "32 thread(s) from (0, 0, 0) wait at __syncthreads" in str(error.value)


def test_the_rung_works_on_after_an_error(planted):
    for _ in range(3):
        with pytest.raises(RuntimeError, match="deadlock"):
            planted.barrier_and_shuffle(np.zeros(64, np.int32), 4, 64, 0)
        out = np.zeros(32, np.int32)
        planted.shuffle_from_left(out, False, 1, 32, 0)
        assert (out == 31).all()


def test_error_on_a_second_os_thread_reaches_python(planted):
    with scheduled(planted, Schedule(workers=2)), pytest.raises(RuntimeError, match="deadlock"):
        planted.barrier_and_shuffle(np.zeros(64, np.int32), 16, 64, 0)


@pytest.mark.parametrize(
    "kernel, arguments, message",
    [
        ("shuffle_from_left", (True, 1, 32, 0), "reads lane 31, which has left the kernel"),
        (
            "shuffle_from_left",
            (False, 1, 20, 0),
            "reads lane 31, which does not exist in the block",
        ),
        ("shuffle_outside_mask", (1, 32, 0), "which is not in the mask 0x0000ffff"),
        ("not_in_own_mask", (1, 32, 0), "the calling lane is not in the mask 0x00000001"),
    ],
)
@pytest.mark.parametrize("schedule", ORDERS, ids=str)
def test_bad_shuffles_are_reported(plain, kernel, arguments, message, schedule):
    with scheduled(plain, schedule), pytest.raises(RuntimeError, match=message):
        getattr(plain, kernel)(np.zeros(32, np.int32), *arguments)


def test_endless_spinning_is_reported(plain):
    with pytest.raises(RuntimeError, match="no thread of the block makes progress"):
        plain.spin_forever(np.zeros(1, np.int32), 1, 32, 0)


@pytest.mark.parametrize(
    "grid, block, shared, message",
    [
        ((1, 1, 1), (32, 33, 1), 0, "at most 1024 threads"),
        ((1, 1, 1), (2048, 1, 1), 0, "at most 1024 threads"),
        ((1, 1, 1), (1, 1, 65), 0, "block z must be at most 64"),
        ((1, 65_536, 1), (1, 1, 1), 0, "grid must be at most"),
        ((1, 1, 65_536), (1, 1, 1), 0, "grid must be at most"),
        ((2**31, 1, 1), (1, 1, 1), 0, "grid must be at most"),
        ((0, 1, 1), (1, 1, 1), 0, "is empty"),
        ((1, 1, 1), (1, 0, 1), 0, "is empty"),
        ((1, 1, 1), (1, 1, 1), 48 * 1024 + 1, "shared memory must be at most 49152 bytes"),
    ],
)
def test_launch_limits(plain, grid, block, shared, message):
    with pytest.raises(RuntimeError, match=f"planted::coordinates: invalid launch.*{message}"):
        plain.coordinates(np.zeros(1, np.int32), grid, block, shared)


def test_static_and_dynamic_shared_memory_are_limited_together(planted):
    out = np.zeros(32, np.int32)
    planted.static_shared_40k(out, 1, 32, 8 * 1024)
    with pytest.raises(RuntimeError, match="40960 static \\+ 8193 dynamic"):
        planted.static_shared_40k(out, 1, 32, 8 * 1024 + 1)
    planted.allow_dynamic_shared(187 * 1024)
    planted.static_shared_40k(out, 1, 32, 187 * 1024)
    with pytest.raises(RuntimeError, match="at most 232448 bytes"):
        planted.static_shared_40k(out, 1, 32, 187 * 1024 + 1)
    with pytest.raises(RuntimeError, match="at most 191488 bytes"):
        planted.allow_dynamic_shared(187 * 1024 + 1)
    planted.allow_dynamic_shared(0)


@pytest.mark.parametrize("kernel", ["uninitialised_static_shared", "uninitialised_dynamic_shared"])
def test_uninitialised_shared_memory_shows(planted, kernel):
    def run():
        out = np.zeros(32, np.uint32)
        getattr(planted, kernel)(out, 1, 32, 128)
        return out

    assert run()[0] == 0xCDCDCDCD
    with pytest.raises(OrderDependence):
        check_orders(planted, run)


def test_output_nobody_wrote_shows(plain):
    def run():
        out = poisoned(plain, 32, np.float32)
        plain.write_at(out, 31, 0, 1, 32, 0)
        return out

    with pytest.raises(OrderDependence, match="in 1 of 32 elements; at \\(31,\\)"):
        check_orders(plain, run)


def test_stack_overflow_is_reported(planted):
    out = np.zeros(4, np.int32)
    planted.recurse(out, 20, 1, 4, 0)
    with pytest.raises(
        RuntimeError, match=r"planted::recurse, .* stack overflow: a thread has 64 KB"
    ):
        planted.recurse(out, 1000, 1, 4, 0)


def test_wild_access_is_reported(planted):
    with pytest.raises(
        RuntimeError, match=r"planted::write_at, .* illegal or misaligned memory access"
    ):
        planted.write_at(np.zeros(32, np.float32), 32, 1 << 30, 1, 32, 0)
