"""More than 2^31 elements: a few windows before, at and beyond the 2^31st element."""

from __future__ import annotations

import math

import pytest
import torch
from opcases import FORMATS, PoolCase
from pooling import convert, pool, raw_pool_backward, raw_unpool_backward, unpool
from torch import Tensor

LIMIT = 2**31
THREE_BY_TWO = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}

# bfloat16: 4.3 GB of planes, a quarter of that pooled, flat indices of 4.3 GB. The searches for
# winners of overlapping or flat indices keep 8 bytes an element of the planes in hand, so these run
# on planes of a smaller size only.
CASES = [
    pytest.param(case, channels_last, index_format, id=f"{name}-{index_format}")
    for name, case, channels_last, formats in [
        ("one_plane", PoolCase((1, 1, 32770, 65536)), False, ("offset", "packed")),
        ("many_planes", PoolCase((3, 11, 8192, 8192)), False, FORMATS),
        ("channels_last", PoolCase((1, 16, 11586, 11586)), True, ("offset", "packed")),
        ("overlapping", PoolCase((1, 33, 8192, 8192), **THREE_BY_TWO), False, FORMATS),
        (
            "overlapping-channels_last",
            PoolCase((64, 33, 1024, 1024), **THREE_BY_TWO),
            True,
            FORMATS,
        ),
    ]
    for index_format in formats
]


def zeros(shape: tuple[int, ...], channels_last: bool, device) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(
        shape, dtype=torch.bfloat16, device=device, memory_format=memory_format
    ).zero_()


def in_memory_order(x: Tensor, channels_last: bool) -> Tensor:
    return (x.permute(0, 2, 3, 1) if channels_last else x).view(-1)


@pytest.mark.large(gib=14)
@pytest.mark.parametrize("case, channels_last, index_format", CASES)
def test_beyond_two_to_the_31(case, channels_last, index_format, device):
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 24 << 30:
        pytest.skip("large: needs 24 GiB of free memory on the CUDA device")
    count = math.prod(case.shape)
    assert count > LIMIT
    x = zeros(case.shape, channels_last, device)
    # Each in a window of its own, or in windows of its own where they overlap.
    marked = [1, LIMIT - 12_345, LIMIT - 1, LIMIT + 3, LIMIT + 12_345, count - 1]
    values = torch.arange(1.0, len(marked) + 1, dtype=torch.bfloat16, device=device)
    places = torch.tensor(marked, device=device)
    in_memory_order(x, channels_last)[places] = values

    y, indices = pool(case, x, index_format)
    named = y.nonzero()
    assert sorted(set(y[tuple(named.T)].tolist())) == values.tolist()
    if case.tiled:
        assert len(named) == len(marked)

    # Windows with a value name its position; the flat index is written out for those only.
    flat = indices if index_format == "flat" else None
    width = case.input_size[1]
    for n, c, oh, ow in named.tolist():
        if flat is None:
            row = convert_row(case, indices, n, c, oh)
            position = row[ow]
        else:
            position = int(flat[n, c, oh, ow])
        assert x[n, c, position // width, position % width] == y[n, c, oh, ow]
    del x, flat

    plane = unpool(case, y, indices)
    flattened = in_memory_order(plane, channels_last)
    assert torch.equal(flattened[places], values)
    assert int(torch.count_nonzero(plane)) == len(marked)

    picked = raw_unpool_backward(case, plane, indices, winners_only=False)
    assert torch.equal(picked, y)
    del picked
    winners = raw_unpool_backward(case, plane, indices, winners_only=True)
    assert int(torch.count_nonzero(winners)) == len(marked)
    del plane, flattened, winners

    grad = raw_pool_backward(case, y, indices)
    gathered = in_memory_order(grad, channels_last)[places]
    times = torch.tensor([int((y == value).sum()) for value in values], device=device)
    assert torch.equal(gathered, values * times)
    assert int(torch.count_nonzero(grad)) == len(marked)


def convert_row(case: PoolCase, indices: Tensor, n: int, c: int, oh: int) -> list[int]:
    """Plane indices of one row of windows, from offset or packed codes, in plain Python."""
    codes = indices[n, c, oh].tolist()
    if indices.dtype == torch.int32:
        per_word = 32 // case.bits
        codes = [
            codes[ow // per_word] >> case.bits * (ow % per_word) & (2**case.bits - 1)
            for ow in range(case.output_size[1])
        ]
    positions = []
    for ow, code in enumerate(codes):
        h = oh * case.stride[0] - case.padding[0] + code // case.kernel[1]
        w = ow * case.stride[1] - case.padding[1] + code % case.kernel[1]
        positions.append(h * case.input_size[1] + w)
    return positions


@pytest.mark.large(gib=8)
@pytest.mark.parametrize("index_format", ["offset", "packed"])
def test_conversion_of_more_than_two_to_the_31_windows(index_format, device):
    case = PoolCase((2, 1, 65540, 32770), kernel=(1, 2), stride=(1, 2))
    count = math.prod(case.output_shape)
    assert count > LIMIT
    codes = torch.zeros(case.output_shape, dtype=torch.uint8, device=device)
    places = torch.tensor([1, LIMIT - 1, LIMIT, LIMIT + 7, count - 1], device=device)
    codes.view(-1)[places] = 1
    again = convert(case, convert(case, codes, index_format), "offset")
    assert torch.equal(again.view(-1)[places], torch.ones_like(places, dtype=torch.uint8))
    assert int(torch.count_nonzero(again)) == len(places)
