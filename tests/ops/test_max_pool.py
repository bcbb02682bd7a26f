"""max_pool2d_with_indices against torch's and the float64 reference: values, indices, gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from comparisons import (
    assert_error_as_torchs,
    assert_memory_format,
    assert_same_bits,
    assert_same_integers,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from opcases import DTYPES, FORMATS, LAYOUTS, POOL_CASES, PoolCase, dtype_id
from pooling import convert, lay_out, pool, raw_pool_backward, reference_pool, torchs_indices

from segkern import ops

by_case = pytest.mark.parametrize("case", POOL_CASES, ids=str)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
by_format = pytest.mark.parametrize("index_format", FORMATS)


# ---- values and indices -----------------------------------------------------------------------


@by_dtype
@by_case
def test_values_and_indices_are_torchs(case, dtype, device):
    inputs = [case.input(dtype, device)]  # ties and special values
    if not case.special:
        inputs.append(case.noise(case.shape, dtype, device))  # every element wins somewhere
    for x, layout in itertools.product(inputs, LAYOUTS):
        laid = lay_out(x, layout)
        want, want_flat = case.pool(laid)
        for index_format in case.formats:
            what = f"{layout}, {index_format}"
            got, indices = pool(case, laid, index_format)
            assert_same_bits(got, want, what)
            assert got.stride() == want.stride(), what
            assert indices.dtype == FORMATS[index_format]
            flat = indices if index_format == "flat" else convert(case, indices, "flat")
            assert_same_integers(flat, want_flat, what)
            assert flat.stride() == want_flat.stride(), what


@by_case
def test_indices_are_the_references(case, device):
    """Every bit of every format, the unused ones of the packed format too."""
    x = case.input(torch.float64, device)
    for layout in LAYOUTS:
        laid = lay_out(x, layout)
        for index_format in case.formats:
            got, indices = pool(case, laid, index_format)
            want, want_indices = reference_pool(case, laid.cpu(), index_format)
            assert_same_bits(got, want, f"{layout}, {index_format}")
            assert_same_integers(indices, want_indices, f"{layout}, {index_format}")


@by_dtype
def test_order_of_special_values(dtype, device):
    """Each pair in one window: the greater one wins, the first of equals, the last NaN."""
    values = [0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan, -torch.nan]
    finfo = torch.finfo(dtype)
    values += [finfo.max, finfo.min, finfo.tiny, -finfo.tiny, finfo.smallest_normal / 2]
    column = torch.tensor(values, dtype=torch.float64).to(dtype).to(device)
    pairs = torch.cartesian_prod(column, column)
    for x, kernel in [
        (pairs.view(1, 1, -1, 2), (1, 2)),
        (pairs.view(1, -1, 1, 2), (1, 2)),
        (pairs.view(1, 1, -1, 2).mT.contiguous(), (2, 1)),
    ]:
        case = PoolCase(tuple(x.shape), kernel, kernel)
        want, want_flat = case.pool(x)
        for layout in ("contiguous", "channels_last"):
            got, flat = pool(case, lay_out(x, layout), "flat")
            assert_same_bits(got, want, layout)
            assert_same_integers(flat, want_flat, layout)


@by_dtype
def test_four_ties_of_special_values(dtype, device):
    """All windows of four elements of a small set, in the vectorised path for 2x2."""
    values = torch.tensor([-torch.inf, -0.0, 0.0, torch.nan], dtype=torch.float64).to(dtype)
    windows = torch.cartesian_prod(values, values, values, values)
    x = windows.view(16, 16, 2, 2).permute(0, 2, 1, 3).reshape(1, 1, 32, 32).to(device)
    case = PoolCase((1, 1, 32, 32))
    want, want_flat = case.pool(x)
    for index_format in FORMATS:
        got, indices = pool(case, x, index_format)
        assert_same_bits(got, want, index_format)
        flat = indices if index_format == "flat" else convert(case, indices, "flat")
        assert_same_integers(flat, want_flat, index_format)


@by_format
def test_argument_forms(index_format, device):
    """One integer, pairs, lists, torch.Size, and the stride that is the kernel's."""
    x = torch.randn(1, 2, 9, 9, device=device)
    want = ops.max_pool2d_with_indices(
        x, (3, 3), (3, 3), (1, 1), (1, 1), ceil_mode=True, index_format=index_format
    )
    for kernel, stride, padding, dilation in [
        (3, None, 1, 1),
        ([3], [], [1], [1]),
        ([3, 3], (), (1, 1), (1, 1)),
        (torch.Size([3, 3]), 3, 1, 1),
    ]:
        got = ops.max_pool2d_with_indices(
            x, kernel, stride, padding, dilation, ceil_mode=True, index_format=index_format
        )
        assert_same_bits(got[0], want[0])
        assert_same_integers(got[1], want[1])


def test_offset_is_the_default_format(device):
    x = torch.randn(1, 2, 4, 6, device=device)
    assert ops.max_pool2d_with_indices(x, 2)[1].dtype == torch.uint8


_length = st.integers(1, 24)
_pair = st.tuples(st.integers(1, 5), st.integers(1, 5))


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    lead=st.sampled_from([(1, 2), (2, 3), (3,), (1, 17)]),
    size=st.tuples(_length, _length),
    kernel=_pair,
    stride=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    ceil_mode=st.booleans(),
    layout=st.sampled_from(sorted(LAYOUTS)),
    dtype=st.sampled_from(DTYPES),
    special=st.sampled_from(["", "nan", "-inf", "relu"]),
)
def test_any_geometry(
    device, lead, size, kernel, stride, padding, dilation, ceil_mode, layout, dtype, special
):
    """All formats agree with torch, and their gradients and unpoolings with each other."""
    padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel))
    case = PoolCase((*lead, *size), kernel, stride, padding, dilation, ceil_mode, special)
    x = lay_out(case.input(dtype, device), layout)
    try:
        want, want_flat = case.pool(x)
    except RuntimeError:
        with pytest.raises(RuntimeError, match="max_pool2d_with_indices: .*(small|empty)"):
            pool(case, x, "flat")
        return
    grad = case.noise(want.shape, torch.float64, device).to(dtype)
    exact = reference_grad(case, x, grad) if not case.special else None
    for index_format in case.formats:
        got, indices = pool(case, x, index_format)
        assert_same_bits(got, want, index_format)
        if index_format != "flat":
            assert_same_integers(convert(case, indices, "flat"), want_flat, index_format)
        if exact is not None and not case.hollow:
            grad_input = raw_pool_backward(case, grad, indices)
            assert_error_as_torchs(grad_input, exact.to(dtype), exact, k=2, what=index_format)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    size=st.tuples(_length, _length),
    kernel=_pair,
    channels_last=st.booleans(),
    ceil_mode=st.booleans(),
)
def test_any_tiling_comes_back(device, size, kernel, channels_last, ceil_mode):
    """Pooled and unpooled, the maxima are where they were and all else is zero."""
    case = PoolCase((1, 3, *size), kernel, kernel, ceil_mode=ceil_mode)
    assume(ceil_mode or (kernel[0] <= size[0] and kernel[1] <= size[1]))
    x = case.noise(case.shape, torch.float32, device)
    if channels_last:
        x = lay_out(x, "channels_last")
    for index_format in case.formats:
        y, indices = pool(case, x, index_format)
        plane = ops.max_unpool2d(y, indices, *case.window, output_size=case.input_size)
        assert int((plane != 0).sum()) == y.numel()
        assert torch.equal(plane, torch.where(plane != 0, x, torch.zeros_like(x)))


# ---- gradients --------------------------------------------------------------------------------


def reference_grad(case: PoolCase, x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """float64 gradient of the input, by the reference's autograd on the CPU."""
    leaf = x.detach().cpu().double().requires_grad_()
    y, _ = reference_pool(case, leaf, "flat")
    return torch.autograd.grad(y, leaf, grad.cpu().double())[0]


@by_dtype
@by_case
def test_gradients_are_torchs(case, dtype, device):
    x = case.input(dtype, device)
    grad = case.noise(case.output_shape, dtype, device)
    for layout in LAYOUTS:
        laid = lay_out(x, layout).detach().requires_grad_()
        exact = reference_grad(case, laid, grad)
        if case.hollow:
            torchs = exact.to(dtype)  # torch's backward follows indices out of the plane
        else:
            torchs = torch.autograd.grad(case.pool(laid)[0], laid, grad)[0]
        for index_format in case.formats:
            what = f"{layout}, {index_format}"
            y, _ = pool(case, laid, index_format)
            got = torch.autograd.grad(y, laid, grad)[0]
            if case.disjoint and not case.hollow:
                assert_same_bits(got, torchs, what)
            # Ours adds in float and rounds once: no worse than torch at this dtype.
            assert_error_as_torchs(got, torchs, exact, k=1, what=what)


@by_dtype
@pytest.mark.parametrize(
    "case",
    [PoolCase((2, 20, 8, 12)), PoolCase((2, 20, 9, 11), (3, 3), (2, 2), (1, 1))],
    ids=["tiled", "overlapping"],
)
def test_layout_of_the_incoming_gradient_does_not_matter(case, dtype, device):
    """Gradient and indices may lie differently; the result lies as the gradient does."""
    x = case.noise(case.shape, dtype, device)
    grad = case.noise(case.output_shape, dtype, device)
    for index_format in case.formats:
        indices = pool(case, x, index_format)[1]
        for grad_layout in LAYOUTS:
            laid = lay_out(grad, grad_layout)
            # A sequential sum of what the windows name, in the plainest layout.
            want = raw_pool_backward(case, laid.contiguous(), indices)
            exact = reference_grad(case, x, laid)
            assert_error_as_torchs(want, exact.to(dtype), exact, k=2)
            for index_layout in ("contiguous", "channels_last", "sliced", "channels_last_sliced"):
                got = raw_pool_backward(case, laid, lay_out(indices, index_layout))
                assert_same_bits(got, want, f"{grad_layout}, {index_layout}, {index_format}")
                assert_memory_format(got, grad_layout, index_format)


def test_many_gradients_meet_in_a_half_type(device):
    """81 windows name one element: a sum in the half type would stall at 256 (bfloat16)."""
    case = PoolCase((1, 1, 24, 24), (9, 9), (1, 1))
    x = torch.zeros(case.shape, device=device, dtype=torch.bfloat16)
    x[0, 0, 12, 12] = 1
    x.requires_grad_()
    y, _ = pool(case, x, "offset")
    y.backward(torch.full_like(y, 5.0))
    assert x.grad[0, 0, 12, 12].item() == 405 // 2 * 2  # 405 rounded to 8 bits
    assert torch.count_nonzero(x.grad) > 1  # the windows of zeros name their first element


def test_no_gradient_where_none_is_asked_for(device):
    x = torch.randn(1, 2, 4, 4, device=device)
    y, indices = ops.max_pool2d_with_indices(x.requires_grad_(), 2)
    assert y.requires_grad
    assert not indices.requires_grad
    with torch.no_grad():
        assert not ops.max_pool2d_with_indices(x, 2)[0].requires_grad
    with torch.inference_mode():
        want = ops.max_pool2d_with_indices(x, 2)[0]
    assert_same_bits(y, want)


def test_negated_views_are_resolved(device):
    """The imaginary part of a conjugated tensor is a view with a pending sign."""
    z = torch.view_as_complex(torch.randn(1, 2, 4, 6, 2, device=device))
    x = z.conj().imag
    assert x.is_neg()
    got, indices = ops.max_pool2d_with_indices(x, 2, index_format="flat")
    want, want_flat = torch.nn.functional.max_pool2d(-z.imag, 2, return_indices=True)
    assert_same_bits(got, want)
    assert_same_integers(indices, want_flat)


def test_the_oracle_of_indices_agrees_with_torchs_kernels():
    """The reference, which other tests lean on, against torch."""
    for case in POOL_CASES:
        want, want_flat = case.pool(case.input(torch.float64))
        y, flat = reference_pool(case, case.input(torch.float64), "flat")
        assert_same_bits(y, want, str(case))
        assert_same_integers(flat, want_flat, str(case))
        for index_format in case.formats:
            _, indices = reference_pool(case, case.input(torch.float64), index_format)
            assert_same_integers(indices, torchs_indices(case, index_format, "cpu"), str(case))
