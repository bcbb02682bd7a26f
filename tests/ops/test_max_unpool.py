"""max_unpool2d against torch's where windows do not overlap, against the reference elsewhere."""

from __future__ import annotations

import pytest
import torch
from comparisons import assert_memory_format, assert_same_bits
from opcases import DTYPES, FORMATS, LAYOUTS, POOL_CASES, PoolCase, dtype_id
from pooling import (
    RAW,
    convert,
    lay_out,
    pool,
    raw_unpool_backward,
    reference_unpool,
    torchs_indices,
    unpool,
)

from segkern import ops, reference

# A window that holds nothing has nowhere to go back to; see the test of its own.
CASES = [case for case in POOL_CASES if not case.hollow]
by_case = pytest.mark.parametrize("case", CASES, ids=str)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
by_format = pytest.mark.parametrize("index_format", FORMATS)


def torchs_unpool(case: PoolCase, y: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
    """torch's unpooling, in float64 as it knows no half types everywhere."""
    plane = torch.ops.aten.max_unpool2d(y.double(), flat, list(case.input_size))
    return plane.to(y.dtype)


# ---- values -----------------------------------------------------------------------------------


@by_dtype
@by_case
def test_values(case, dtype, device):
    """torch's where each position has one window, the last window in raster order elsewhere."""
    values = case.noise(case.output_shape, dtype, device)
    flat = torchs_indices(case, "flat", device)
    for layout in LAYOUTS:
        laid = lay_out(values, layout)
        want = reference_unpool(case, laid.cpu().double(), flat).to(dtype)
        if case.disjoint:
            assert_same_bits(torchs_unpool(case, laid, flat), want, f"the reference, {layout}")
        for index_format in case.formats:
            indices = lay_out(torchs_indices(case, index_format, device), layout)
            if "expanded" in layout:
                indices = torchs_indices(case, index_format, device)
            got = unpool(case, laid, indices)
            assert_same_bits(got, want, f"{layout}, {index_format}")
            assert_memory_format(got, layout, index_format)


@by_dtype
def test_memory_format_is_torchs(dtype, device):
    """Also for the sizes of one, whose strides fit both formats."""
    for shape in [(2, 3, 4, 5), (1, 1, 4, 5), (2, 1, 3, 3), (1, 5, 1, 1), (3, 4, 5), (0, 3, 4, 4)]:
        case = PoolCase((*shape[:-2], 2 * shape[-2], 2 * shape[-1]))
        flat = torch.zeros(shape, dtype=torch.int64, device=device)
        for layout in LAYOUTS:
            y = lay_out(torch.zeros(shape, device=device, dtype=dtype), layout)
            want = torch.ops.aten.max_unpool2d(y.double(), flat, list(case.input_size))
            assert unpool(case, y, flat).stride() == want.stride(), (shape, layout)


@by_format
def test_special_values_are_moved_as_they_are(index_format, device):
    case = PoolCase((1, 2, 8, 8))
    for dtype in DTYPES:
        y = case.noise(case.output_shape, dtype, device)
        y.view(-1)[:5] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 0.0])
        got = unpool(case, y, torchs_indices(case, index_format, device))
        want = torchs_unpool(case, y, torchs_indices(case, "flat", device))
        assert_same_bits(got, want, str(dtype))


def test_the_reference_moves_special_values_too():
    """Infinities and NaN leave no trace at positions that no window names."""
    y = torch.tensor([[[torch.inf, -torch.inf], [torch.nan, -0.0]]], dtype=torch.float64)
    indices = torch.zeros(1, 2, 2, dtype=torch.uint8)
    plane = reference.max_unpool2d(y, indices, 2, output_size=(4, 4))
    assert_same_bits(plane[:, ::2, ::2], y)
    rest = plane.clone()
    rest[:, ::2, ::2] = 0
    assert_same_bits(rest, torch.zeros_like(rest))


@by_dtype
def test_flat_indices_may_name_any_position(dtype, device):
    """In any window, several times or never: also where the windows tile the plane."""
    for case in [PoolCase((2, 20, 8, 6)), PoolCase((2, 20, 9, 7), (3, 3), (2, 2), (1, 1))]:
        generator = torch.Generator().manual_seed(3)
        area = case.input_size[0] * case.input_size[1]
        flat = torch.randint(area, case.output_shape, generator=generator).to(device)
        assert flat.flatten(-2).sort()[0].diff().eq(0).any()
        values = case.noise(case.output_shape, dtype, device)
        grad = case.noise(case.shape, dtype, device)
        for layout in ("contiguous", "channels_last"):
            leaf = lay_out(values, layout).requires_grad_()
            got = unpool(case, leaf, lay_out(flat, layout))
            exact_leaf = values.cpu().double().requires_grad_()
            want = reference_unpool(case, exact_leaf, flat)
            assert_same_bits(got, want.to(dtype), layout)
            (got_grad,) = torch.autograd.grad(got, leaf, grad)
            (want_grad,) = torch.autograd.grad(want, exact_leaf, grad.cpu().double())
            assert_same_bits(got_grad, want_grad.to(dtype), layout)


def test_all_windows_name_one_position(device):
    """The last window wins, and the others get no gradient."""
    flat = torch.full((1, 2, 5, 6), 17, device=device)
    for layout in ("contiguous", "channels_last"):
        y = torch.arange(60.0, device=device).view(1, 2, 5, 6) + 1
        y = lay_out(y, layout).requires_grad_()
        plane = ops.max_unpool2d(y, flat, 2, output_size=(10, 12))
        assert plane.flatten(-2)[0, :, 17].tolist() == [30.0, 60.0]
        assert torch.count_nonzero(plane) == 2
        (grad,) = torch.autograd.grad(plane.sum(), y)
        want = torch.zeros(1, 2, 5, 6)
        want[..., -1, -1] = 1
        assert_same_bits(grad, want)


@by_dtype
def test_windows_that_hold_nothing_unpool_to_nothing(dtype, device):
    for case in POOL_CASES:
        if not case.hollow:
            continue
        for layout in ("contiguous", "channels_last"):
            y = lay_out(torch.ones(case.output_shape, dtype=dtype, device=device), layout)
            for index_format in FORMATS:
                indices = pool(case, lay_out(case.input(dtype, device), layout), index_format)[1]
                plane = RAW.max_unpool2d.default(
                    y, indices, *[list(pair) for pair in case.window], *case.input_size
                )
                assert torch.count_nonzero(plane) == 0, (str(case), layout, index_format)


# ---- gradients --------------------------------------------------------------------------------


@by_dtype
@by_case
def test_gradients(case, dtype, device):
    """Copies, so exact in every dtype: the winners get the gradient, the others nothing."""
    values = case.noise(case.output_shape, dtype, device)
    grad = case.noise(case.shape, dtype, device)
    flat = torchs_indices(case, "flat", device)
    exact_leaf = values.cpu().double().requires_grad_()
    plane = reference_unpool(case, exact_leaf, flat)
    want = torch.autograd.grad(plane, exact_leaf, grad.cpu().double())[0].to(dtype)
    for layout in LAYOUTS:
        if "expanded" in layout:
            continue  # a test of its own below
        leaf = lay_out(values, layout).detach().requires_grad_()
        for index_format in case.formats:
            got = unpool(case, leaf, torchs_indices(case, index_format, device))
            (got_grad,) = torch.autograd.grad(got, leaf, lay_out(grad, layout))
            assert_same_bits(got_grad, want, f"{layout}, {index_format}")
    # The transpose of pooling's backward reads whatever a window names, won or not.
    gathered = grad.flatten(-2).gather(-1, flat.flatten(-2)).view(case.output_shape)
    for index_format in case.formats:
        for layout in ("contiguous", "channels_last"):
            indices = torchs_indices(case, index_format, device)
            got = raw_unpool_backward(case, lay_out(grad, layout), indices, winners_only=False)
            assert_same_bits(got, gathered, f"{layout}, {index_format}")


@pytest.mark.parametrize(
    "case",
    [PoolCase((2, 20, 8, 12)), PoolCase((2, 20, 9, 11), (3, 3), (2, 2), (1, 1))],
    ids=["tiled", "overlapping"],
)
def test_layout_of_the_incoming_gradient_does_not_matter(case, device):
    grad = case.noise(case.shape, torch.float32, device)
    for index_format in case.formats:
        indices = torchs_indices(case, index_format, device)
        for grad_layout in LAYOUTS:
            laid = lay_out(grad, grad_layout)
            want = raw_unpool_backward(case, laid.contiguous(), indices, winners_only=True)
            for index_layout in ("contiguous", "channels_last", "sliced", "transposed"):
                got = raw_unpool_backward(
                    case, laid, lay_out(indices, index_layout), winners_only=True
                )
                assert_same_bits(got, want, f"{grad_layout}, {index_layout}, {index_format}")


# ---- there and back ---------------------------------------------------------------------------


@by_dtype
@by_format
def test_a_plane_of_45_comes_back(index_format, dtype, device):
    """45 -> 23 -> 45, SegNet's way through its smallest maps, twice nested."""
    for layout in ("contiguous", "channels_last"):
        x = lay_out(torch.rand(2, 5, 45, 45, device=device).to(dtype) + 1, layout)
        y, outer = ops.max_pool2d_with_indices(x, 2, ceil_mode=True, index_format=index_format)
        assert y.shape[-2:] == (23, 23)
        z, inner = ops.max_pool2d_with_indices(y, 2, ceil_mode=True, index_format=index_format)
        back = ops.max_unpool2d(z, inner, 2, output_size=y.shape[-2:])
        plane = ops.max_unpool2d(back, outer, 2, output_size=x.shape[-2:])
        assert plane.shape == x.shape
        kept = plane != 0
        assert int(kept.sum()) == z.numel()
        assert_same_bits(plane, torch.where(kept, x, torch.zeros_like(x)))
        assert_same_bits(
            ops.max_pool2d_with_indices(plane, 2, ceil_mode=True, index_format=index_format)[0],
            back,
        )


@by_format
def test_pooling_undoes_unpooling(index_format, device):
    """pool(unpool(y)) is y for positive values wherever windows do not overlap."""
    for case in CASES:
        if not case.disjoint or index_format not in case.formats:
            continue
        y = case.noise(case.output_shape, torch.float32, device).abs() + 0.5
        indices = torchs_indices(case, index_format, device)
        again, found = pool(case, unpool(case, y, indices), index_format)
        assert_same_bits(again, y, str(case))
        assert torch.equal(found, indices), str(case)


def test_pooling_by_torch_and_unpooling_here(device):
    """int64 indices of torch's own pooling are taken as they come."""
    x = torch.randn(2, 3, 9, 11, device=device)
    y, indices = torch.nn.functional.max_pool2d(x, 3, return_indices=True)
    want = torch.nn.functional.max_unpool2d(y, indices, 3, output_size=x.shape[-2:])
    assert_same_bits(ops.max_unpool2d(y, indices, 3, output_size=x.shape), want)


# ---- output_size ------------------------------------------------------------------------------


def test_forms_of_output_size(device):
    x = torch.randn(2, 3, 9, 11, device=device)
    y, indices = ops.max_pool2d_with_indices(x, 2)
    want = ops.max_unpool2d(y, indices, 2, output_size=(9, 11))
    assert want.shape == x.shape
    for form in ([9, 11], x.shape, x.shape[-2:], list(x.shape), (2, 3, 9, 11)):
        assert_same_bits(ops.max_unpool2d(y, indices, 2, output_size=form), want, str(form))
    unbatched = ops.max_unpool2d(y[0], indices[0], 2, output_size=x[0].shape)
    assert_same_bits(unbatched, want[0])


@pytest.mark.parametrize(
    "arguments, size",
    [((2,), (8, 10)), ((3, 2, 1), (7, 9)), ((3, 1, 1), (4, 5)), (((2, 3), (4, 3)), (14, 15))],
    ids=str,
)
def test_default_output_size_is_torchs(arguments, size, device):
    y = torch.randn(1, 2, 4, 5, device=device)
    indices = torch.zeros(1, 2, 4, 5, dtype=torch.int64, device=device)
    got = ops.max_unpool2d(y, indices, *arguments)
    assert got.shape[-2:] == size
    assert got.shape == torch.nn.functional.max_unpool2d(y, indices, *arguments).shape


def test_default_output_size_counts_dilation(device):
    """torch's unpooling knows no dilation; here the default is the span of the windows."""
    x = torch.randn(1, 2, 9, 9, device=device)
    y, indices = ops.max_pool2d_with_indices(x, 2, 1, 0, 3)
    assert y.shape[-1] == 6
    assert ops.max_unpool2d(y, indices, 2, 1, 0, 3).shape == x.shape


@pytest.mark.parametrize("size", [(7, 9), (8, 10), (9, 11), (7, 11), (9, 9)], ids=str)
@by_format
def test_every_size_within_a_stride(index_format, size, device):
    """Smaller than the windows' span (clipped by ceil mode) and larger (rows left over)."""
    y = torch.rand(2, 3, 4, 5, device=device) + 1
    x = torch.zeros(2, 3, 8, 10, device=device)
    x[..., ::2, ::2] = 1
    indices = ops.max_pool2d_with_indices(x, 2, index_format="offset")[1]
    if index_format != "offset":
        case = PoolCase((2, 3, *size), ceil_mode=size[0] < 8 or size[1] < 10)
        indices = ops.convert_pool_indices(
            indices, index_format, *case.window, input_size=size, output_size=(4, 5)
        )
    for layout in ("contiguous", "channels_last"):
        plane = ops.max_unpool2d(lay_out(y, layout), indices, 2, output_size=size)
        want = torch.zeros(2, 3, *size, device=device)
        want[..., :8:2, :10:2] = y
        assert_same_bits(plane, want, layout)


def test_conversion_in_between_changes_nothing(device):
    case = PoolCase((2, 3, 11, 13), (3, 3), (2, 2), (1, 1))
    y, indices = pool(case, case.noise(case.shape, torch.float32, device), "packed")
    want = unpool(case, y, indices)
    for index_format in FORMATS:
        assert_same_bits(unpool(case, y, convert(case, indices, index_format)), want, index_format)
