"""How the operators run: the same bits every time, threads, streams, CUDA graphs, devices."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from opcases import FORMATS, PoolCase
from pooling import convert, lay_out, pool, raw_pool_backward, raw_unpool_backward, unpool
from torch import Tensor

CASES = [
    PoolCase((2, 24, 45, 61), ceil_mode=True, notes="tiled: SegNet's"),
    PoolCase((2, 24, 45, 61), (3, 3), (2, 2), (1, 1), notes="overlapping"),
    PoolCase((2, 24, 30, 42), (3, 2), (3, 2), notes="tiled, rectangular"),
]
by_case = pytest.mark.parametrize("case", CASES, ids=["tiled", "overlapping", "rectangular"])
by_format = pytest.mark.parametrize("index_format", FORMATS)
by_layout = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
by_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def everything(case: PoolCase, x: Tensor, grad: Tensor, index_format: str) -> list[Tensor]:
    """The results of all operators of a case, forwards and backwards."""
    y, indices = pool(case, x, index_format)
    plane = unpool(case, y, indices)
    return [
        y,
        indices,
        plane,
        convert(case, indices, "offset"),
        convert(case, indices, "packed"),
        convert(case, indices, "flat"),
        raw_pool_backward(case, grad, indices),
        raw_unpool_backward(case, plane + 1, indices, winners_only=True),
        raw_unpool_backward(case, plane + 1, indices, winners_only=False),
    ]


def inputs(case: PoolCase, dtype: torch.dtype, layout: str, device) -> tuple[Tensor, Tensor]:
    """Planes full of ties, so that windows meet, and gradients whose sums depend on the order."""
    x = case.noise(case.shape, dtype, device).mul(4).round()
    grad = case.noise(case.output_shape, dtype, device)
    return lay_out(x, layout), lay_out(grad, layout)


def assert_equal(results: list[Tensor], wanted: list[Tensor], what: str) -> None:
    for number, (got, want) in enumerate(zip(results, wanted)):
        assert torch.equal(got, want), f"{what}: result {number}"


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@by_dtype
@by_layout
@by_format
@by_case
def test_the_same_bits_in_twenty_runs(case, index_format, layout, dtype, device):
    x, grad = inputs(case, dtype, layout, device)
    wanted = everything(case, x, grad, index_format)
    for run in range(19):
        assert_equal(everything(case, x, grad, index_format), wanted, f"run {run + 2}")


@by_dtype
@by_layout
@by_format
@by_case
def test_the_same_bits_for_any_number_of_threads(case, index_format, layout, dtype):
    x, grad = inputs(case, dtype, layout, "cpu")
    with threads(1):
        wanted = everything(case, x, grad, index_format)
    for count in (2, 3, 5):
        with threads(count):
            assert_equal(everything(case, x, grad, index_format), wanted, f"{count} threads")


def test_sums_are_in_raster_order_on_every_device(device):
    """Half of a float's last bit is lost or kept by the order of a sum; pinned here."""
    case = PoolCase((1, 1, 5, 5), (3, 3), (1, 1))
    x = torch.zeros(case.shape, device=device)
    x[0, 0, 2, 2] = 1  # in all nine windows
    y, indices = pool(case, x, "offset")
    grad = torch.tensor([2.0**24, 1, 1, 1, 1, 1, 1, 1, -(2.0**24)], device=device).view(y.shape)
    # From the first on, each 1 rounds away beside 2^24; from the last on, they all stay.
    assert raw_pool_backward(case, grad, indices)[0, 0, 2, 2].item() == 0
    assert raw_pool_backward(case, grad.flip(-1, -2), indices)[0, 0, 2, 2].item() == 7


def test_deterministic_algorithms_are_no_obstacle(device):
    case = CASES[1]
    x, grad = inputs(case, torch.float32, "contiguous", device)
    wanted = everything(case, x, grad, "packed")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        results = everything(case, x, grad, "packed")
    finally:
        torch.use_deterministic_algorithms(before)
    assert_equal(results, wanted, "deterministic mode")


def test_large_outputs_take_the_streaming_stores(device):
    """Outputs beyond the caches are written by other instructions; heads and tails of rows too."""
    for layout in ("contiguous", "channels_last"):
        for width in (1021, 1024):
            case = PoolCase((1, 9, 525, width), ceil_mode=True)
            x = lay_out(case.noise(case.shape, torch.float32, device), layout)
            assert x.nbytes > 2 * 8 << 20
            want, want_flat = case.pool(x)
            for index_format in FORMATS:
                y, indices = pool(case, x, index_format)
                assert torch.equal(y, want), (layout, width, index_format)
                assert torch.equal(convert(case, indices, "flat"), want_flat)
                plane = unpool(case, y, indices)
                kept = plane != 0
                assert int(kept.sum()) == y.numel()
                assert torch.equal(plane[kept], x[kept])
                back = raw_unpool_backward(case, plane, indices, winners_only=True)
                assert torch.equal(back, y)


# ---- CUDA -------------------------------------------------------------------------------------


@by_layout
@by_format
@by_case
def test_no_operator_waits_for_the_device(case, index_format, layout, cuda):
    x, grad = inputs(case, torch.float32, layout, cuda)
    everything(case, x, grad, index_format)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything(case, x, grad, index_format)
        leaf = x.detach().requires_grad_()
        y, indices = pool(case, leaf, index_format)
        unpool(case, y, indices).backward(torch.ones_like(x))
    finally:
        torch.cuda.set_sync_debug_mode(before)


@by_layout
@by_format
@by_case
def test_operators_are_captured_in_a_graph(case, index_format, layout, cuda):
    x, grad = inputs(case, torch.float32, layout, cuda)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        everything(case, x, grad, index_format)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = everything(case, x, grad, index_format)
    for _ in range(2):
        x.copy_(torch.randn_like(x).mul(4).round())
        grad.copy_(torch.randn_like(grad))
        graph.replay()
        torch.cuda.synchronize()
        assert_equal(results, everything(case, x, grad, index_format), "replay")


@by_layout
@by_format
@by_case
def test_operators_run_on_the_current_stream(case, index_format, layout, cuda):
    """The input arrives on a side stream after a pause: a kernel elsewhere would come too early."""
    x, grad = inputs(case, torch.float32, layout, cuda)
    wanted = everything(case, x, grad, index_format)
    late_x, late_grad = torch.zeros_like(x), torch.zeros_like(grad)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late_x.copy_(x)
        late_grad.copy_(grad)
        results = everything(case, late_x, late_grad, index_format)
    side.synchronize()
    assert_equal(results, wanted, "side stream")


@by_format
@by_case
def test_a_second_device(case, index_format, cuda):
    """On the tensors' device, whichever is current."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    second = torch.device("cuda", 1)
    x, grad = inputs(case, torch.float32, "contiguous", second)
    with torch.cuda.device(0):
        results = everything(case, x, grad, index_format)
        assert torch.cuda.current_device() == 0
    assert all(tensor.device == second for tensor in results)
    wanted = everything(case, x.cpu(), grad.cpu(), index_format)
    assert_equal([tensor.cpu() for tensor in results], wanted, "second device")


@by_layout
@by_format
@by_case
def test_cuda_gives_the_cpus_bits(case, index_format, layout, cuda):
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        x, grad = inputs(case, dtype, layout, "cpu")
        wanted = everything(case, x, grad, index_format)
        results = everything(case, x.to(cuda), grad.to(cuda), index_format)
        assert_equal([tensor.cpu() for tensor in results], wanted, str(dtype))
