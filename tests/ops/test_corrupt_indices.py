"""Indices that name no element: an error on the CPU, dropped on CUDA, never followed anywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from comparisons import assert_same_bits, assert_same_integers
from opcases import FORMATS, PoolCase
from pooling import (
    RAW,
    convert,
    lay_out,
    raw_pool_backward,
    raw_unpool_backward,
    reference_unpool,
    torchs_indices,
    window_lists,
)
from torch import Tensor

# One for each loop that follows indices: tiles with and without a clipped last row and column, of
# 2x2 and other sizes, and overlapping windows. 20 channels are more than a block of the CPU's.
CASES = [
    PoolCase((2, 3, 8, 16), notes="whole tiles"),
    PoolCase((1, 20, 7, 8), ceil_mode=True, notes="last row clipped"),
    PoolCase((1, 3, 8, 9), ceil_mode=True, notes="last column clipped"),
    PoolCase((1, 2, 7, 9), ceil_mode=True, notes="both"),
    PoolCase((2, 3, 9, 12), (3, 3), (3, 3), notes="whole tiles"),
    PoolCase((1, 2, 7, 11), (3, 3), (3, 3), ceil_mode=True, notes="both clipped"),
    PoolCase((1, 20, 9, 11), (3, 3), (2, 2), (1, 1), notes="overlapping"),
    PoolCase((1, 2, 8, 8), (2, 2), (3, 3), ceil_mode=True, notes="gaps"),
    PoolCase((1, 2, 9, 9), (5, 5), (2, 2), (2, 2), notes="overlapping"),
    PoolCase((2, 7, 9), ceil_mode=True, notes="unbatched"),
]


CLIPPED = "the clipped part of the window"


@dataclasses.dataclass(frozen=True)
class Fault:
    """A window, and what is written there instead of its index."""

    plane: int
    oh: int
    ow: int
    value: int
    why: str

    def __str__(self) -> str:
        return f"{self.why} ({self.value}) in window {(self.plane, self.oh, self.ow)}"

    def put(self, case: PoolCase, indices: Tensor) -> None:
        """Writes the fault into contiguous indices."""
        rows = indices.view(-1, *indices.shape[-2:])
        if indices.dtype != torch.int32:
            rows[self.plane, self.oh, self.ow] = self.value
            return
        per_word = 32 // case.bits
        shift = case.bits * (self.ow % per_word)
        at = (self.plane, self.oh, self.ow // per_word)
        word = int(rows[at]) & 0xFFFFFFFF & ~((2**case.bits - 1) << shift) | self.value << shift
        rows[at] = word - 2**32 if word >= 2**31 else word


def faults(case: PoolCase, index_format: str) -> Iterator[Fault]:
    """Bad values of a format, each in the first and the last window that it is bad for."""
    height, width = case.input_size
    out_h, out_w = case.output_size
    last_plane = case.shape[0] * case.shape[1] - 1 if len(case.shape) == 4 else case.shape[0] - 1
    corners = [(0, 0, 0), (last_plane, out_h - 1, out_w - 1), (last_plane // 2, out_h // 2, 1)]
    if index_format == "flat":
        for value in (-1, height * width, height * width * (last_plane + 1), 2**40, -(2**63)):
            for corner in corners[:2]:
                yield Fault(*corner, value, "outside the plane")
        return
    top = 255 if index_format == "offset" else 2**case.bits - 1
    for value in sorted({case.taps, case.taps + 1, top}):
        if case.taps <= value <= top:
            for corner in corners:
                yield Fault(*corner, value, "beyond the window")
    for oh, ow in [(0, 0), (0, out_w - 1), (out_h - 1, 0), (out_h - 1, out_w - 1)]:
        for code in range(case.taps):
            h = oh * case.stride[0] - case.padding[0] + code // case.kernel[1] * case.dilation[0]
            w = ow * case.stride[1] - case.padding[1] + code % case.kernel[1] * case.dilation[1]
            if not (0 <= h < height and 0 <= w < width):
                yield Fault(last_plane, oh, ow, code, CLIPPED)


def with_fault(
    case: PoolCase, index_format: str, fault: Fault, layout: str, device: torch.device | str
) -> Tensor:
    """torch's indices in a format with one fault, in a layout."""
    indices = torchs_indices(case, index_format, "cpu").clone()
    fault.put(case, indices)
    return lay_out(indices.to(device), layout)


def positions_with(case: PoolCase, fault: Fault) -> Tensor:
    """torch's plane indices with -1, which names nothing, in the faulty window."""
    flat = torchs_indices(case, "flat", "cpu").clone()
    flat.view(-1, *case.output_size)[fault.plane, fault.oh, fault.ow] = -1
    return flat


def wanted_gather(case: PoolCase, grad: Tensor, flat: Tensor) -> Tensor:
    flat = flat.flatten(-2)
    taken = grad.flatten(-2).gather(-1, flat.clamp(min=0))
    return torch.where(flat >= 0, taken, 0).view(case.output_shape)


def wanted_winners(case: PoolCase, grad: Tensor, flat: Tensor) -> Tensor:
    values = torch.zeros(case.output_shape, dtype=torch.float64, requires_grad=True)
    plane = reference_unpool(case, values, flat)
    return torch.autograd.grad(plane, values, grad.double())[0].float()


def wanted_sums(case: PoolCase, grad: Tensor, flat: Tensor) -> Tensor:
    area = case.input_size[0] * case.input_size[1]
    flat = flat.flatten(-2)
    sums = torch.zeros(*case.shape[:-2], area + 1)
    sums.scatter_add_(-1, torch.where(flat >= 0, flat, area), grad.flatten(-2))
    return sums[..., :-1].view(case.shape)


@dataclasses.dataclass(frozen=True)
class Consumer:
    """An operator that follows indices, and its result where a fault names nothing."""

    call: Callable[[PoolCase, Tensor, Tensor], Tensor]
    wanted: Callable[[PoolCase, Tensor, Tensor], Tensor]
    windows_in: bool


CONSUMERS = {
    "max_unpool2d": Consumer(
        lambda case, y, indices: RAW.max_unpool2d.default(
            y, indices, *window_lists(case), *case.input_size
        ),
        lambda case, y, flat: reference_unpool(case, y, flat),
        True,
    ),
    "_max_pool2d_backward": Consumer(raw_pool_backward, wanted_sums, True),
    "_max_unpool2d_backward, winners": Consumer(
        lambda case, grad, indices: raw_unpool_backward(case, grad, indices, winners_only=True),
        wanted_winners,
        False,
    ),
    "_max_unpool2d_backward, all": Consumer(
        lambda case, grad, indices: raw_unpool_backward(case, grad, indices, winners_only=False),
        wanted_gather,
        False,
    ),
}


def features(case: PoolCase, consumer: Consumer) -> Tensor:
    """Whole numbers, so that sums are exact; none of them zero."""
    shape = case.output_shape if consumer.windows_in else case.shape
    count = torch.Size(shape).numel()
    return (torch.arange(count) % 61 + 1).float().view(shape)


by_case = pytest.mark.parametrize("case", CASES, ids=str)
by_format = pytest.mark.parametrize("index_format", FORMATS)
by_consumer = pytest.mark.parametrize("name", CONSUMERS)
by_layout = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])


@by_layout
@by_format
@by_case
@by_consumer
def test_an_index_that_names_nothing(name, case, index_format, layout, device):
    if index_format not in case.formats:
        pytest.skip(f"{case.taps} elements a window do not fit the packed format")
    consumer = CONSUMERS[name]
    given = features(case, consumer)
    laid = lay_out(given.to(device), layout)
    found = list(faults(case, index_format))
    if not found:
        pytest.skip("every code of the format is an element of every window")
    for fault in found:
        indices = with_fault(case, index_format, fault, layout, device)
        if device.type == "cpu":
            with pytest.raises(RuntimeError, match=f"{name.split(',')[0]}: indices must be in"):
                consumer.call(case, laid, indices)
                print(fault)
        else:
            want = consumer.wanted(case, given, positions_with(case, fault))
            assert_same_bits(consumer.call(case, laid, indices), want, str(fault))


@by_layout
@by_format
@by_case
def test_conversion_of_an_index_that_names_nothing(case, index_format, layout, device):
    if index_format not in case.formats:
        pytest.skip(f"{case.taps} elements a window do not fit the packed format")
    found = [fault for fault in faults(case, index_format) if fault.why != CLIPPED]
    if index_format == "flat":
        # An element of the plane, but not of this window.
        corner = case.input_size[0] * case.input_size[1] - 1
        found.append(Fault(0, 0, 0, corner, "another window's element"))
    if not found:
        pytest.skip("every code of the format is an element of a whole window")
    for fault in found:
        indices = with_fault(case, index_format, fault, layout, device)
        for target in case.formats:
            if device.type == "cpu":
                with pytest.raises(RuntimeError, match="convert_pool_indices: indices must name"):
                    convert(case, indices, target)
                    print(fault, target)
            else:
                got = convert(case, indices, target).cpu()
                want = torchs_indices(case, target, "cpu").clone()
                nothing = {"offset": 255, "packed": 0, "flat": -1}[target]
                dataclasses.replace(fault, value=nothing).put(case, want)
                assert_same_integers(got, want, f"{fault} to {target}")


@by_layout
@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", ["offset", "packed"])
def test_conversion_of_a_code_in_the_clipped_part(source, target, layout):
    """A code of no element of the plane has no flat index, and is as corrupt in other formats."""
    for case in CASES:
        if source not in case.formats or target not in case.formats:
            continue
        for fault in faults(case, source):
            if fault.why == CLIPPED:
                indices = with_fault(case, source, fault, layout, "cpu")
                with pytest.raises(RuntimeError, match="convert_pool_indices: indices must name"):
                    convert(case, indices, target)
                    print(case, fault)


@by_consumer
@by_format
def test_all_good_indices_pass(name, index_format, device):
    """The tests above would pass if every call were refused."""
    consumer = CONSUMERS[name]
    for case in CASES:
        if index_format not in case.formats:
            continue
        given = features(case, consumer)
        indices = torchs_indices(case, index_format, device)
        got = consumer.call(case, given.to(device), indices)
        want = consumer.wanted(case, given, torchs_indices(case, "flat", "cpu"))
        assert_same_bits(got, want, str(case))


@by_layout
@by_consumer
@by_format
def test_nothing_is_written_beside_the_output(name, index_format, layout, device):
    """Tensors of the output's size all around it hold their values, whatever the indices hold."""
    consumer = CONSUMERS[name]
    for case in CASES[:7]:
        if index_format not in case.formats:
            continue
        laid = lay_out(features(case, consumer).to(device), layout)
        size = case.shape if consumer.windows_in else case.output_shape
        around = [torch.full(size, 77.0, device=device) for _ in range(64)]
        del around[1::8]  # room for the output between tensors that are looked at
        generator = torch.Generator().manual_seed(5)
        for _ in range(4):
            template = torchs_indices(case, index_format, "cpu")
            bounds = {"offset": (0, 256), "packed": (-(2**31), 2**31), "flat": (-3000, 3000)}
            indices = torch.randint(*bounds[index_format], template.shape, generator=generator)
            indices = lay_out(indices.to(template.dtype).to(device), layout)
            kept = laid.clone(), indices.clone()
            try:
                consumer.call(case, laid, indices)
            except RuntimeError as error:
                assert device.type == "cpu", error
            assert all(bool((tensor == 77).all()) for tensor in around), str(case)
            assert torch.equal(laid, kept[0])
            assert torch.equal(indices, kept[1])


@by_consumer
@pytest.mark.parametrize(
    "make, wrong",
    [
        (lambda i: i[..., :-1], "a column short"),
        (lambda i: i[..., :-1, :], "a row short"),
        (lambda i: i[:, :1], "a channel short"),
        (lambda i: i[:1], "an image short"),
        (lambda i: i[0], "unbatched"),
        (lambda i: i[None], "a dimension more"),
        (lambda i: i.mT, "transposed"),
        (lambda i: torch.cat([i, i], -1), "twice as wide"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_indices_of_another_shape(name, make, wrong, device):
    case = PoolCase((2, 3, 8, 12))
    for index_format in FORMATS:
        consumer = CONSUMERS[name]
        given = features(case, consumer).to(device)
        indices = make(torchs_indices(case, index_format, device))
        wanted = r"\(2, 3, 4, (6|1)\)"
        message = rf"{name.split(',')[0]}: indices \({index_format}\) must be {wanted}, got \("
        with pytest.raises(RuntimeError, match=message):
            consumer.call(case, given, indices)


def test_indices_of_a_larger_plane_are_noticed():
    """Flat indices of a 16x16 plane name rows that an 8x8 plane does not have."""
    large = PoolCase((1, 2, 16, 16))
    small = PoolCase((1, 2, 9, 9), ceil_mode=True)
    flat = torchs_indices(large, "flat", "cpu")[..., -5:, -5:].contiguous()
    with pytest.raises(RuntimeError, match=r"max_unpool2d: .*\(9, 9\).*another pooling"):
        RAW.max_unpool2d.default(torch.zeros(1, 2, 5, 5), flat, *window_lists(small), 9, 9)
