"""The resampling and pyramid pooling kernels on the CPU, against float64 matrices, in every
schedule and sanitised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.ops.resampling import cell_matrix, sample_matrix

from .harness import Call, check_orders, load, poisoned, run_sanitized

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def to_array(maps: torch.Tensor, channels_last: bool) -> np.ndarray:
    """(N, C, H, W) in memory order; bfloat16 travels as uint16."""
    maps = (maps.permute(0, 2, 3, 1) if channels_last else maps).contiguous()
    return (maps.view(torch.uint16) if maps.dtype == torch.bfloat16 else maps).numpy()


def to_double(array: np.ndarray, dtype: torch.dtype, channels_last: bool) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    tensor = (tensor.view(dtype) if array.dtype == np.uint16 else tensor).double()
    return tensor.permute(0, 3, 1, 2) if channels_last else tensor


def assert_near(got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype, slack: float) -> None:
    """Within the rounding of results and `slack` roundings of float sums or coordinates."""
    wide = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    scale = max(1.0, wanted.abs().max().item())
    error = (got - wanted).abs().max().item()
    assert error <= (torch.finfo(dtype).eps + slack * wide) * scale, f"{error} of {scale}"


# Rows beyond a thread's band and vectors and single columns; many readers of a pixel by rows, by
# lanes, over more than a block's span, and by parts; maps that shrink; one row; vectors of channels
# and what they leave over.
RESIZES = [
    ((2, 3, 5, 7), (11, 13)),
    ((1, 8, 6, 4), (19, 8)),
    ((1, 36, 2, 1), (20, 30)),
    ((1, 2, 3, 40), (25, 330)),
    ((1, 1, 2, 2), (3, 2600)),
    ((1, 5, 20, 30), (7, 9)),
    ((1, 3, 1, 9), (1, 9)),
    ((1, 2, 6, 1), (1, 1)),
]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("shape", "size"), RESIZES)
def test_resize(shape, size, align_corners, channels_last):
    module = load("resize")
    generator = torch.Generator().manual_seed(0)
    down, across = (sample_matrix(n, m, align_corners) for n, m in zip(shape[2:], size))
    # Every type with every case, in one of the layouts and alignments.
    number = RESIZES.index((shape, size)) + 2 * align_corners + channels_last
    dtype = DTYPES[number % len(DTYPES)]
    module.set_int32_limit([2**31 - 1, 0][number // 4 % 2])
    name = str(dtype).removeprefix("torch.")
    x = torch.randn(shape, generator=generator).to(dtype)
    grad = torch.randn(*shape[:2], *size, generator=generator).to(dtype)
    small, large = to_array(x, channels_last), to_array(grad, channels_last)

    def run():
        out = poisoned(module, large.shape, large.dtype)
        grad_in = poisoned(module, small.shape, small.dtype)
        module.resize_fwd(name, channels_last, align_corners, small, out)
        module.resize_bwd(name, channels_last, align_corners, large, grad_in)
        return [out, grad_in]

    out, grad_in = (to_double(a, dtype, channels_last) for a in check_orders(module, run))
    slack = 4.0 * max(*shape[2:], *size)
    assert_near(out, down @ x.double() @ across.T, dtype, slack)
    assert_near(grad_in, down.T @ grad.double() @ across, dtype, slack)


# Cells that divide the map and that overlap, more cells than pixels, one row, many channels.
PYRAMIDS = [
    ((2, 3, 12, 12), (1, 2, 3, 6)),
    ((1, 5, 7, 10), (1, 2, 3, 6)),
    ((1, 36, 3, 4), (6, 1)),
    ((1, 2, 1, 90), (5,)),
]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("shape", "bins"), PYRAMIDS)
def test_pyramid(shape, bins, channels_last):
    module = load("resize")
    generator = torch.Generator().manual_seed(0)
    matrix = torch.cat(
        [torch.kron(cell_matrix(shape[2], b), cell_matrix(shape[3], b)) for b in bins]
    )  # (cells, pixels)
    cells = matrix.shape[0]
    number = PYRAMIDS.index((shape, bins)) + 2 * channels_last
    for dtype in (DTYPES[number % 4], DTYPES[(number + 1) % 4]):
        name = str(dtype).removeprefix("torch.")
        x = torch.randn(shape, generator=generator).to(dtype)
        grad = torch.randn(*shape[:2], cells, 1, generator=generator).to(dtype)
        maps, grads = to_array(x, channels_last), to_array(grad, channels_last)

        def run(name=name, maps=maps, grads=grads):
            out = poisoned(module, grads.shape, grads.dtype)
            grad_in = poisoned(module, maps.shape, maps.dtype)
            module.pyramid_fwd(name, list(bins), channels_last, maps, out)
            module.pyramid_bwd(name, list(bins), channels_last, grads, grad_in)
            return [out, grad_in]

        out, grad_in = (to_double(a, dtype, channels_last) for a in check_orders(module, run))
        assert_near(out.squeeze(-1), x.double().flatten(2) @ matrix.T, dtype, 8.0)
        wanted = (grad.double().squeeze(-1) @ matrix).unflatten(2, shape[2:])
        assert_near(grad_in, wanted, dtype, 8.0)


def test_sanitized():
    calls = []
    for channels_last in (False, True):
        for shape, size in RESIZES:
            x, grad = torch.zeros(shape), torch.zeros(*shape[:2], *size)
            small, large = to_array(x, channels_last), to_array(grad, channels_last)
            calls += [
                Call("resize_fwd", ("float32", channels_last, False, small, large)),
                Call("resize_bwd", ("float32", channels_last, False, large, small)),
            ]
        for shape, bins in PYRAMIDS:
            maps = to_array(torch.zeros(shape), channels_last)
            grad = torch.zeros(*shape[:2], sum(b * b for b in bins), 1)
            cells = to_array(grad, channels_last)
            calls += [
                Call("pyramid_fwd", ("float32", list(bins), channels_last, maps, cells)),
                Call("pyramid_bwd", ("float32", list(bins), channels_last, cells, maps)),
            ]
    run_sanitized("resize", calls)
