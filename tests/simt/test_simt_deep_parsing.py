"""DPN's kernels on the CPU, against float64, in every schedule and sanitised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segkern.reference import deep_parsing as reference

from .arrays import to_array, to_double
from .harness import Call, check_orders, load, poisoned, run_sanitized

WEIGHTS = np.array([0.7, 0.02])


def filter_case(shape, colours, dtype):
    generator = torch.Generator().manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    q = torch.rand(shape, generator=generator).to(dtype)
    image = torch.rand(shape[0], colours, *shape[2:], generator=generator).to(wide)
    grad = torch.randn(shape, generator=generator).to(dtype)
    return q, image, grad


# Rows over more than a band, columns over more than a tile (256 less the window), windows beyond
# the plane, one pixel.
FILTERS = [
    ((2, 2, 5, 21), 3, (4, 5), torch.float32),
    ((1, 1, 66, 11), 1, (10, 4), torch.float32),
    ((1, 1, 3, 270), 3, (2, 50), torch.float32),
    ((1, 1, 2, 130), 4, (1, 192), torch.float32),
    ((1, 1, 5, 7), 2, (50, 50), torch.float64),
    ((1, 1, 6, 9), 3, (4, 4), torch.bfloat16),
    ((1, 1, 6, 9), 3, (4, 4), torch.float16),
    ((1, 1, 1, 1), 3, (50, 50), torch.float32),
]


@pytest.mark.parametrize("multiply", [True, False])
@pytest.mark.parametrize(("shape", "colours", "kernel", "dtype"), FILTERS)
def test_filter(shape, colours, kernel, dtype, multiply):
    module = load("deep_parsing")
    name = str(dtype).removeprefix("torch.")
    q, image, grad = filter_case(shape, colours, dtype)
    arrays = [to_array(t) for t in (q, image, grad)]

    def run():
        out, grad_q = (poisoned(module, shape, arrays[0].dtype) for _ in range(2))
        through = poisoned(module, shape if multiply else (0,), arrays[1].dtype)
        sums = poisoned(module, 2, np.float64)
        module.filter_fwd(name, arrays[0], arrays[1], WEIGHTS, kernel, multiply, out)
        module.filter_bwd(
            name, arrays[2], arrays[0], arrays[1], WEIGHTS, kernel, through, grad_q, sums
        )
        return [out, grad_q, sums]

    out, grad_q, sums = check_orders(module, run)
    exact = q.double().clone().requires_grad_()
    weights = torch.from_numpy(WEIGHTS).requires_grad_()
    wanted = reference.local_quadratic_filter(
        exact, image.double(), weights, kernel, multiply=multiply
    )
    wanted.backward(grad.double())
    rounding = torch.finfo(dtype).eps
    for got, want in ((to_double(out, dtype), wanted), (to_double(grad_q, dtype), exact.grad)):
        scale = max(want.abs().max().item(), 1e-3)
        error = (got - want).abs().max().item()
        assert error <= (rounding + 1e-12) * scale, f"{error} of {scale}"
    scale = weights.grad.abs().max().item() + 1.0
    assert np.abs(sums - weights.grad.numpy()).max() <= 1e-12 * scale


def memory_order(planes: torch.Tensor, channels_last: bool) -> np.ndarray:
    """(N, C, H, W) as (N, C, H * W) or (N, H * W, C)."""
    rows = planes.flatten(2)
    return to_array(rows.transpose(1, 2) if channels_last else rows)


@pytest.mark.parametrize("limit", [2**31 - 1, 0], ids=["int32", "int64"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("labels", "block"), [(1, 1), (3, 5), (21, 2)])
def test_block_min_and_mean_field(labels, block, dtype, channels_last, limit):
    module = load("deep_parsing")
    module.set_int32_limit(limit)
    name = str(dtype).removeprefix("torch.")
    generator = torch.Generator().manual_seed(labels)
    shape = (2, labels, 5, 31)
    penalty = torch.randn(2, labels * block, 5, 31, generator=generator).to(dtype)
    penalty[0, :, 0, :9] = 1.0  # ties: the first counts
    unary = torch.randn(shape, generator=generator).to(dtype)
    grad = torch.randn(shape, generator=generator).to(dtype)
    costs, logits, g = (memory_order(t, channels_last) for t in (penalty, unary, grad))

    def run():
        results = []
        out, grad_unary = (poisoned(module, logits.shape, logits.dtype) for _ in range(2))
        grad_wide = poisoned(module, costs.shape, costs.dtype)
        codes = poisoned(module, logits.shape, np.uint8)
        module.block_min(name, block, channels_last, costs, out, codes)
        module.block_min_bwd(name, block, channels_last, g, codes, grad_wide)
        results += [out, codes, grad_wide]
        for log in (True, False):
            out, grad_unary = (poisoned(module, logits.shape, logits.dtype) for _ in range(2))
            grad_wide = poisoned(module, costs.shape, costs.dtype)
            codes = poisoned(module, logits.shape, np.uint8)
            module.mean_field(name, block, channels_last, log, logits, costs, out, codes)
            module.mean_field_bwd(
                name, block, channels_last, log, g, out, codes, grad_unary, grad_wide
            )
            results += [out, codes, grad_unary, grad_wide]
        return results

    got = check_orders(module, run)
    module.set_int32_limit(2**31 - 1)

    def planes(array, count):
        rows = to_double(array, dtype) if array.dtype != np.uint8 else torch.from_numpy(array)
        rows = rows.transpose(1, 2) if channels_last else rows
        return rows.reshape(2, count, 5, 31)

    exact = penalty.double().clone().requires_grad_()
    least, indices = reference.block_min_pool(exact, block)
    least.backward(grad.double())
    assert torch.equal(planes(got[0], labels), least)
    assert torch.equal(planes(got[1], labels), indices)
    assert torch.equal(planes(got[2], labels * block), exact.grad)
    tolerance = 4 * torch.finfo(dtype).eps + 1e-14
    for log, results in ((True, got[3:7]), (False, got[7:])):
        p, u = (t.double().clone().requires_grad_() for t in (penalty, unary))
        wanted = reference.mixture_mean_field(u, p, log=log)
        wanted.backward(grad.double())
        assert torch.equal(planes(results[1], labels), indices)
        for array, want, count in (
            (results[0], wanted, labels),
            (results[2], u.grad, labels),
            (results[3], p.grad, labels * block),
        ):
            scale = 1.0 + want.abs().max().item()
            # The gradient is computed from rounded marginals, one for each label.
            error = (planes(array, count) - want).abs().max().item()
            assert error <= tolerance * scale * (1 + labels / 4), (log, error, scale)


def test_nans_are_the_smallest():
    module = load("deep_parsing")
    costs = np.array([[[2.0], [np.nan], [np.nan], [1.0], [np.inf], [-np.inf]]], np.float32)
    out, codes = np.zeros((1, 2, 1), np.float32), np.zeros((1, 2, 1), np.uint8)
    module.block_min("float32", 3, False, costs, out, codes)
    assert np.isnan(out[0, 0, 0])
    assert out[0, 1, 0] == -np.inf
    assert codes.flatten().tolist() == [1, 2]


def test_sanitized():
    calls = []
    for shape, colours, kernel, dtype in FILTERS[:6]:
        q, image, grad = (to_array(t) for t in filter_case(shape, colours, dtype))
        name = str(dtype).removeprefix("torch.")
        out = np.zeros_like(q)
        calls.append(Call("filter_fwd", (name, q, image, WEIGHTS, kernel, True, out)))
        calls.append(
            Call(
                "filter_bwd",
                (name, grad, q, image, WEIGHTS, kernel, np.zeros(shape, image.dtype), out)
                + (np.zeros(2),),
            )
        )
        empty = np.zeros(0, image.dtype)
        calls.append(
            Call(
                "filter_bwd",
                (name, grad, q, image, WEIGHTS, kernel, empty, out, np.zeros(2)),
            )
        )
    for last in (False, True):
        wide = np.random.default_rng(0).random((2, 31, 6) if last else (2, 6, 31), np.float32)
        narrow = np.zeros((2, 31, 2) if last else (2, 2, 31), np.float32)
        codes = np.zeros(narrow.shape, np.uint8)
        calls += [
            Call("block_min", ("float32", 3, last, wide, narrow, codes)),
            Call("block_min_bwd", ("float32", 3, last, narrow, codes + 200, wide.copy())),
            Call("mean_field", ("float32", 3, last, True, narrow, wide, narrow.copy(), codes)),
            Call(
                "mean_field_bwd",
                ("float32", 3, last, True, narrow, narrow, codes, narrow.copy(), wide.copy()),
            ),
        ]
    for result in run_sanitized("deep_parsing", calls):
        assert not isinstance(result, RuntimeError), result
