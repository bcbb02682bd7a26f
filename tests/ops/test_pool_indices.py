"""The three index formats: their bits by hand, their size, conversion between them."""

from __future__ import annotations

import math

import pytest
import torch
from comparisons import assert_memory_format, assert_same_integers
from opcases import FORMATS, LAYOUTS, POOL_CASES, PoolCase
from pooling import convert, lay_out, pool, reference_convert, torchs_indices

from segkern import ops

by_case = pytest.mark.parametrize("case", POOL_CASES, ids=str)


# ---- the bits, by hand ------------------------------------------------------------------------


def plane_with_maxima(codes: list[int], kernel: tuple[int, int], device) -> torch.Tensor:
    """A (1, 1, kernel_h, n * kernel_w) input whose n windows have their maxima at `codes`."""
    x = torch.zeros(1, 1, kernel[0], len(codes) * kernel[1], device=device)
    for window, code in enumerate(codes):
        x[0, 0, code // kernel[1], window * kernel[1] + code % kernel[1]] = 1
    return x


def test_two_bits_a_window_lowest_first(device):
    codes = [0, 1, 2, 3] * 4 + [3, 0, 2]
    x = plane_with_maxima(codes, (2, 2), device)
    _, words = ops.max_pool2d_with_indices(x, 2, index_format="packed")
    assert words.dtype == torch.int32
    assert words.shape == (1, 1, 1, 2)
    assert [w & 0xFFFFFFFF for w in words.flatten().tolist()] == [
        0b11100100_11100100_11100100_11100100,
        0b100011,  # unused high codes are zero
    ]


def test_four_bits_a_window_lowest_first(device):
    codes = [1, 2, 3, 4, 5, 6, 7, 15, 8]
    x = plane_with_maxima(codes, (4, 4), device)
    _, words = ops.max_pool2d_with_indices(x, 4, index_format="packed")
    assert words.shape == (1, 1, 1, 2)
    assert [w & 0xFFFFFFFF for w in words.flatten().tolist()] == [0xF7654321, 0x8]


def test_five_elements_take_four_bits(device):
    codes = [4, 0, 3]
    x = plane_with_maxima(codes, (1, 5), device)
    _, words = ops.max_pool2d_with_indices(x, (1, 5), index_format="packed")
    assert words.flatten().tolist() == [0x304]


def test_offsets_count_along_the_rows_of_the_window(device):
    codes = [0, 1, 2, 3, 4, 5]
    x = plane_with_maxima(codes, (2, 3), device)
    _, offsets = ops.max_pool2d_with_indices(x, (2, 3))
    assert offsets.dtype == torch.uint8
    assert offsets.flatten().tolist() == codes
    _, flat = ops.max_pool2d_with_indices(x, (2, 3), index_format="flat")
    assert flat.flatten().tolist() == [0, 4, 8, 18 + 9, 18 + 13, 18 + 17]


@pytest.mark.parametrize("channels_last", [False, True])
def test_packing_is_along_the_row_in_both_layouts(channels_last, device):
    """Word (n, c, oh, i) holds windows 16 i to 16 i + 15, whatever the memory format."""
    x = torch.randn(2, 5, 6, 74, device=device)
    want = ops.max_pool2d_with_indices(x, 2, index_format="packed")[1]
    if channels_last:
        x = lay_out(x, "channels_last")
    got = ops.max_pool2d_with_indices(x, 2, index_format="packed")[1]
    assert got.shape == (2, 5, 3, 3)
    assert got.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert_same_integers(got, want)


# ---- memory -----------------------------------------------------------------------------------


def test_packed_indices_are_a_32nd_of_torchs(device):
    """At the planes of SegNet's first pooling, 360 x 480."""
    x = torch.zeros(8, 2, 360, 480, device=device, dtype=torch.bfloat16)
    torchs = torch.nn.functional.max_pool2d(x, 2, return_indices=True)[1]
    packed = ops.max_pool2d_with_indices(x, 2, index_format="packed")[1]
    offset = ops.max_pool2d_with_indices(x, 2)[1]
    assert torchs.nbytes == 32 * packed.nbytes == 8 * offset.nbytes
    assert packed.untyped_storage().nbytes() == packed.nbytes


@by_case
def test_sizes_of_indices(case, device):
    x = case.input(torch.float32, device)
    for layout in ("contiguous", "channels_last"):
        for index_format in case.formats:
            indices = pool(case, lay_out(x, layout), index_format)[1]
            rows = math.prod(case.output_shape[:-1])
            words = math.ceil(case.output_size[1] * case.bits / 32)
            assert (
                indices.nbytes
                == {
                    "offset": rows * case.output_size[1],
                    "packed": rows * words * 4,
                    "flat": rows * case.output_size[1] * 8,
                }[index_format]
            )
            assert indices.untyped_storage().nbytes() == indices.nbytes


def test_the_gradient_keeps_the_indices_and_no_features(device):
    """What autograd saves for the way back: a 16th of a float32 input's bytes at most."""
    x = torch.randn(2, 8, 32, 64, device=device, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y, indices = ops.max_pool2d_with_indices(x, 2, index_format="packed")
        ops.max_unpool2d(y, indices, 2)
    assert [t.data_ptr() for t in saved] == [indices.data_ptr()] * 2


# ---- conversion -------------------------------------------------------------------------------


@by_case
def test_conversion_is_the_references(case, device):
    """From every format to every format, in every layout."""
    flat = torchs_indices(case, "flat", "cpu")
    for source in case.formats:
        indices = torchs_indices(case, source, device)
        for target in case.formats:
            want = flat if target == "flat" else reference_convert(case, flat, target)
            for layout in LAYOUTS:
                if "expanded" in layout:
                    continue  # other numbers, not indices of this pooling
                got = convert(case, lay_out(indices, layout), target)
                assert_same_integers(got, want, f"{source} -> {target}, {layout}")
                assert_memory_format(got, layout, f"{source} -> {target}")


@by_case
def test_what_pooling_makes_converts(case, device):
    """Whatever the windows hold, one pooling's formats are conversions of each other."""
    for layout in ("contiguous", "channels_last"):
        x = lay_out(case.input(torch.float32, device), layout)
        made = {name: pool(case, x, name)[1] for name in case.formats}
        for source in case.formats:
            for target in case.formats:
                got = convert(case, made[source], target)
                assert_same_integers(got, made[target], f"{source} -> {target}, {layout}")


def test_a_conversion_to_the_same_format_is_a_copy(device):
    case = PoolCase((1, 2, 4, 6))
    for index_format in FORMATS:
        indices = torchs_indices(case, index_format, device)
        got = convert(case, indices, index_format)
        assert torch.equal(got, indices)
        assert got.data_ptr() != indices.data_ptr()


def test_every_code_of_a_byte(device):
    """All 256 positions of a 16x16 window, and 16 of a packed one, there and back."""
    for kernel, formats in [((16, 16), ("offset", "flat")), ((4, 4), tuple(FORMATS))]:
        taps = kernel[0] * kernel[1]
        x = plane_with_maxima(list(range(taps)), kernel, device)
        case = PoolCase(tuple(x.shape), kernel, kernel)
        for index_format in formats:
            indices = pool(case, x, index_format)[1]
            codes = convert(case, indices, "offset")
            assert codes.flatten().tolist() == list(range(taps)), index_format
            assert torch.equal(convert(case, codes, index_format), indices), index_format
