"""atrous_conv2d, atrous_separable_conv2d and esp_block against float64 compositions of torch."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from atrous import Tail, assert_close, error
from opcases import DTYPES, LAYOUTS, dtype_id

from segkern import ops
from segkern.ops import conv_table


@pytest.fixture(autouse=True)
def _our_kernels():
    """Ours wherever there is one; the table is tested in test_atrous_errors.py."""
    with conv_table.override(**dict.fromkeys(conv_table.KINDS, "segkern")):
        yield


by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
PLANES = [(1, 1), (2, 5), (9, 9), (17, 33), (33, 16), (65, 65)]
WINDOWS = [  # kernel, stride, dilation, padding
    ((3, 3), (1, 1), (1, 1), (1, 1)),
    ((3, 3), (1, 1), (6, 6), (6, 6)),
    ((3, 3), (1, 1), (18, 18), (18, 18)),
    ((3, 3), (1, 1), (70, 70), (70, 70)),  # beyond every map: the centre tap alone
    ((3, 3), (2, 2), (1, 1), (1, 1)),
    ((3, 3), (2, 1), (2, 3), (2, 3)),
    ((5, 3), (1, 1), (2, 7), (4, 7)),
    ((1, 7), (1, 3), (1, 2), (0, 6)),
    ((4, 4), (1, 1), (4, 4), (6, 6)),  # DeepLab v1
    ((7, 7), (1, 1), (4, 4), (12, 12)),
    ((3, 3), (1, 1), (2, 2), (40, 3)),  # more padding than the kernel needs
]


def fitting(plane, window) -> bool:
    kernel, _, dilation, padding = window
    return all(plane[i] + 2 * padding[i] > dilation[i] * (kernel[i] - 1) for i in range(2))


CASES = [(plane, window) for plane in PLANES for window in WINDOWS if fitting(plane, window)]


def test_cases_reach_every_window():
    assert {window for _, window in CASES} == set(WINDOWS)


@by_dtype
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [3, 16, 70])
def test_depthwise(channels, layout, dtype, device):
    rng = random.Random(f"{channels}{layout}{dtype}")
    torch.manual_seed(channels)
    for plane, (kernel, stride, dilation, padding) in CASES:
        if rng.random() < 0.5 and channels > 3:
            continue
        x = LAYOUTS[layout](torch.randn(2, channels, *plane).to(device, dtype))
        weight = torch.randn(channels, 1, *kernel).to(device, dtype)
        window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": channels}
        plain = F.conv2d(x.double(), weight.double(), **window)
        tail = Tail.draw(rng, channels, plain.shape, dtype, device)
        result = ops.atrous_conv2d(x, weight, **window, **tail.arguments())
        assert_close(result, tail.apply(plain), dtype)
        if channels > 1 and plane != (1, 1):
            memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
            assert result.is_contiguous(memory_format=memory)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_depthwise_layouts(layout, device):
    x = LAYOUTS[layout](torch.randn(2, 6, 9, 11, device=device, dtype=torch.float64))
    weight = torch.randn(6, 1, 3, 3, device=device, dtype=torch.float64)
    result = ops.atrous_conv2d(x, weight, padding=4, dilation=4, groups=6)
    assert_close(result, F.conv2d(x, weight, None, 1, 4, 4, 6), torch.float64)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
def test_depthwise_large_plane(layout, dtype):
    """A plane that is not kept whole, and a result that is written past the caches."""
    x = LAYOUTS[layout](torch.randn(1, 3, 600, 401).to(dtype))
    weight = torch.randn(3, 1, 3, 3).to(dtype)
    plain = F.conv2d(x.double(), weight.double(), None, 1, 12, 12, 3)
    assert_close(ops.atrous_conv2d(x, weight, padding=12, dilation=12, groups=3), plain, dtype)
    wide = LAYOUTS[layout](torch.randn(1, 70, 130, 241).to(dtype))
    weight = torch.randn(70, 1, 3, 3).to(dtype)
    plain = F.conv2d(wide.double(), weight.double(), None, 1, 5, 5, 70)
    assert_close(ops.atrous_conv2d(wide, weight, padding=5, dilation=5, groups=70), plain, dtype)


@pytest.mark.parametrize("choice", conv_table.CHOICES)
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_dense_and_grouped(layout, groups, choice, device):
    rng = random.Random(f"{groups}{layout}{choice}")
    torch.manual_seed(groups)
    dtype = torch.float64
    with conv_table.override(dense=choice, grouped=choice, depthwise=choice, pointwise=choice):
        pointwise = ((5, 6), ((1, 1), (1, 1), (1, 1), (0, 0)))
        for plane, (kernel, stride, dilation, padding) in [*CASES[:30], pointwise]:
            x = LAYOUTS[layout](torch.randn(2, 6, *plane, device=device, dtype=dtype))
            weight = torch.randn(6, 6 // groups, *kernel, device=device, dtype=dtype)
            bias = torch.randn(6, device=device, dtype=dtype)
            window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
            plain = F.conv2d(x, weight, bias, **window)
            tail = Tail.draw(rng, 6, plain.shape, dtype, device)
            assert_close(
                ops.atrous_conv2d(x, weight, bias, **window, **tail.arguments()),
                tail.apply(plain),
                dtype,
            )


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes(mode, device):
    conv = torch.nn.Conv2d(3, 4, 3, padding=2, dilation=2, padding_mode=mode, dtype=torch.float64)
    conv = conv.to(device)
    x = torch.randn(2, 3, 8, 9, dtype=torch.float64, device=device)
    result = ops.atrous_conv2d(x, conv.weight, conv.bias, padding=2, dilation=2, padding_mode=mode)
    assert_close(result, conv(x), torch.float64)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4)])
def test_named_padding(kernel, padding, device):
    x = torch.randn(2, 4, 12, 13, dtype=torch.float64, device=device)
    weight = torch.randn(4, 1, *kernel, dtype=torch.float64, device=device)
    expected = F.conv2d(x, weight, None, 1, padding, 3, 4)
    result = ops.atrous_conv2d(x, weight, padding=padding, dilation=3, groups=4)
    assert_close(result, expected, torch.float64)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@by_dtype
def test_separable(dtype, layout, device):
    rng = random.Random(f"{dtype}{layout}")
    torch.manual_seed(1)
    sizes = [(3, 5, (1, 1)), (16, 14, (5, 7)), (130, 29, (33, 17)), (20, 300, (9, 40))]
    with conv_table.override(separable="segkern", pointwise="segkern"):
        for channels, outputs, plane in sizes:
            for kernel, stride, dilation, padding in WINDOWS[:6]:
                x = LAYOUTS[layout](torch.randn(2, channels, *plane).to(device, dtype))
                first = torch.randn(channels, 1, *kernel).to(device, dtype)
                second = (torch.randn(outputs, channels, 1, 1) / channels**0.5).to(device, dtype)
                window = {"stride": stride, "padding": padding, "dilation": dilation}
                inner = Tail.draw(rng, channels, device=device)
                hidden = F.conv2d(x.double(), first.double(), **window, groups=channels)
                plain = F.conv2d(inner.apply(hidden), second.double())
                outer = Tail.draw(rng, outputs, plain.shape, dtype, device)
                given = window | inner.arguments("depthwise_") | outer.arguments()
                result = ops.atrous_separable_conv2d(x, first, second, **given)
                factor = 1 if device.type == "cpu" else 3  # composed: the hidden map is rounded
                assert_close(result, outer.apply(plain), dtype, factor)
            result = ops.atrous_conv2d(x, second, **outer_without(outer))
            assert_close(result, without_residual(outer, x, second), dtype)


def outer_without(tail: Tail) -> dict:
    return tail.arguments() | {"residual": None}


def without_residual(tail: Tail, x, weight):
    plain = F.conv2d(x.double(), weight.double())
    return Tail(tail.scale, tail.shift, None, tail.activation, tail.slope).apply(plain)


def esp_reference(x, reduce, weights, rates, residual, tail, hierarchical):
    y = F.conv2d(x.double(), reduce.double()) if reduce is not None else x.double()
    parts = [
        F.conv2d(y, w.double(), None, 1, [r * (k // 2) for k in w.shape[2:]], r)
        for w, r in zip(weights, rates, strict=True)
    ]
    for k in range(2, len(parts) if hierarchical else 0):
        parts[k] = parts[k] + parts[k - 1]
    merged = torch.cat(parts, 1)
    return tail.apply(merged if residual is None else merged + residual.double())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@by_dtype
def test_esp(dtype, layout, device):
    rng = random.Random(f"{dtype}{layout}")
    torch.manual_seed(2)
    shapes = [(1, 1), (5, 7), (12, 12), (33, 70), (20, 300)]
    for plane in shapes:
        for branches, width, first, kernel in ((5, 4, 4, 3), (5, 12, 16, 3), (1, 17, 17, 5)):
            inputs = rng.choice([7, 20])
            hierarchical = rng.random() < 0.7
            reduced = rng.random() < 0.7
            x = LAYOUTS[layout](torch.randn(2, inputs, *plane).to(device, dtype))
            reduce = (torch.randn(width, inputs, 1, 1) / 4).to(device, dtype) if reduced else None
            depth = width if reduced else inputs
            widths = [first] + [width] * (branches - 1)
            weights = [
                (torch.randn(wide, depth, kernel, kernel) / 10).to(device, dtype) for wide in widths
            ]
            channels = first + (branches - 1) * width
            residual = torch.randn(2, channels, *plane).to(device, dtype)
            residual = residual if rng.random() < 0.5 else None
            tail = Tail.draw(rng, channels, device=device)
            given = tail.arguments() | {"hierarchical": hierarchical}
            given["residual"] = False if residual is None else residual
            result = ops.esp_block(x, reduce, weights, **given)
            rates = [2**k for k in range(branches)]
            expected = esp_reference(x, reduce, weights, rates, residual, tail, hierarchical)
            assert_close(result, expected, dtype, 1 if device.type == "cpu" else 4)


def test_esp_stride_and_rates(device):
    x = torch.randn(2, 7, 12, 13, dtype=torch.float64, device=device)
    reduce = torch.randn(3, 7, 3, 3, dtype=torch.float64, device=device)
    weights = [torch.randn(3, 3, 3, 3, dtype=torch.float64, device=device) for _ in range(3)]
    result = ops.esp_block(x, reduce, weights, stride=2, dilations=[1, 5, 40])
    small = F.conv2d(x, reduce, None, 2, 1)
    expected = esp_reference(small, None, weights, [1, 5, 40], None, Tail(*[None] * 5), True)
    assert_close(result, expected, torch.float64)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_aspp(layout, device):
    torch.manual_seed(3)

    def rand(*shape):
        return torch.randn(*shape, dtype=torch.float64, device=device)

    x = LAYOUTS[layout](rand(2, 12, 9, 10))
    pyramid = [
        ops.Branch(rand(4, 12, 1, 1), rand(4), rand(4)),
        ops.Branch(rand(5, 12, 3, 3), rand(5), rand(5), dilation=2),
        ops.Branch(rand(4, 12, 3, 3), dilation=30, activation=None),
        ops.Branch(rand(4, 12, 1, 1), rand(4), rand(4), "relu", 6, rand(12, 1, 3, 3), rand(12)),
        ops.Branch(rand(3, 12, 1, 1), rand(3), rand(3), pool=True),
    ]
    projection, scale, shift = rand(6, 20, 1, 1), rand(6), rand(6)

    def affine(y, a, b):
        y = y if a is None else y * a.view(1, -1, 1, 1)
        return y if b is None else y + b.view(1, -1, 1, 1)

    outputs = []
    for branch in pyramid:
        y = x.mean((2, 3), keepdim=True) if branch.pool else x
        rate = branch.dilation
        if branch.depthwise is not None:
            y = F.conv2d(y, branch.depthwise, None, 1, rate, rate, 12)
            y = F.conv2d(affine(y, branch.depthwise_scale, None).relu(), branch.weight)
        else:
            pad = rate * (branch.weight.shape[2] // 2)
            y = F.conv2d(y, branch.weight, None, 1, pad, rate)
        y = affine(y, branch.scale, branch.shift)
        y = y.relu() if branch.activation else y
        outputs.append(y.expand(-1, -1, 9, 10))
    expected = affine(F.conv2d(torch.cat(outputs, 1), projection), scale, shift)
    result = ops.aspp(x, pyramid, projection, scale=scale, shift=shift, activation=None)
    assert_close(result, expected, torch.float64)
    assert (
        result.stride()
        == expected.contiguous(
            memory_format=torch.channels_last
            if layout == "channels_last"
            else torch.contiguous_format
        ).stride()
    )
    with_relu = ops.aspp(x, pyramid[::-1], rotate(projection, pyramid), scale=scale, shift=shift)
    assert_close(with_relu, expected.relu(), torch.float64)


def rotate(projection, pyramid):
    """The projection for the branches in reverse order."""
    widths = [branch.weight.shape[0] for branch in pyramid]
    return torch.cat(projection.split(widths, 1)[::-1], 1)


@by_dtype
def test_relayout(dtype):
    """Copies between the memory formats, at sizes on both sides of a tile."""
    for shape in [(2, 3, 5, 7), (1, 64, 65, 65), (2, 70, 9, 33), (3, 130, 1, 1), (0, 4, 4, 4)]:
        x = torch.randn(shape).to(dtype)
        there = torch.ops.segkern._relayout(x, True)
        assert torch.equal(there, x) and there.is_contiguous(memory_format=torch.channels_last)
        back = torch.ops.segkern._relayout(there, False)
        assert torch.equal(back, x) and back.is_contiguous()


def test_empty_batch(device):
    x = torch.zeros(0, 6, 9, 9, device=device)
    weight = torch.zeros(6, 1, 3, 3, device=device)
    square = torch.zeros(6, 6, 1, 1, device=device)
    assert ops.atrous_conv2d(x, weight, padding=2, dilation=2, groups=6).shape == (0, 6, 9, 9)
    assert ops.atrous_separable_conv2d(x, weight, square).shape == (0, 6, 7, 7)
    assert ops.esp_block(x, square, [square, square]).shape == (0, 12, 9, 9)
    pyramid = [ops.Branch(square), ops.Branch(square, pool=True)]
    assert ops.aspp(x, pyramid, torch.zeros(6, 12, 1, 1, device=device)).shape == (0, 6, 9, 9)


def test_nan_and_infinity_stay_where_the_kernel_puts_them():
    """As torch in an eager depthwise convolution, for one bad input element."""
    for bad in (float("nan"), float("inf")):
        for layout in ("contiguous", "channels_last"):
            x = LAYOUTS[layout](torch.randn(1, 4, 21, 37))
            x[0, 2, 10, 20] = bad
            weight = torch.randn(4, 1, 3, 3)
            result = ops.atrous_conv2d(x, weight, padding=3, dilation=3, groups=4)
            expected = F.conv2d(x.double(), weight.double(), None, 1, 3, 3, 4)
            assert torch.equal(result.isfinite(), expected.isfinite())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_same_bits_for_any_number_of_threads(layout):
    torch.manual_seed(0)
    x = LAYOUTS[layout](torch.randn(2, 70, 33, 41))
    weight, square = torch.randn(70, 1, 3, 3), torch.randn(20, 70, 1, 1)
    branches = [torch.randn(20, 20, 3, 3) for _ in range(4)]
    window = ([1, 1], [6, 6], [6, 6])
    raw = torch.ops.segkern

    def results():
        return [
            ops.atrous_conv2d(x, weight, padding=6, dilation=6, groups=70),
            raw._depthwise_conv2d_grad_input(x, weight, 33, 41, *window),
            raw._depthwise_conv2d_grad_weight(x, x, 3, 3, *window),
            ops.atrous_separable_conv2d(x, weight, square, padding=6, dilation=6),
            ops.esp_block(x, square, branches),
        ]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = results()
        for count in (2, 3, 5):
            torch.set_num_threads(count)
            for _ in range(3):
                for ours, theirs in zip(results(), expected, strict=True):
                    assert torch.equal(ours, theirs)
    finally:
        torch.set_num_threads(threads)


def test_error_measure_can_fail():
    assert error(torch.tensor([1.0, float("nan")]), torch.ones(2)) == float("inf")
    assert error(torch.ones(2), torch.ones(3)) == float("inf")
