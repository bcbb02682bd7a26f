"""roi_align against float64 references, published numbers and torchvision, and its promises."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from segkern import ops
from segkern.reference import roi as reference
from tests.opcases import LAYOUTS

CASES = [
    # maps, bins, scale, sampling ratio, aligned
    ((2, 3, 13, 17), (7, 7), 0.5, 2, True),
    ((2, 70, 11, 9), (3, 5), 1.0, 0, True),
    ((1, 1, 20, 20), (14, 14), 0.25, 0, False),
    ((2, 130, 6, 21), (2, 1), 1.0, 3, False),
    ((1, 5, 40, 3), (28, 17), 1.0, 1, True),
    ((2, 2, 1, 1), (4, 4), 1.0, 2, True),
    ((1, 2, 50, 60), (1, 2), 1.0, 0, True),
]


def boxes(count, images, height, width, scale, *, seed=0):
    """Boxes inside, across the border, outside, on integers, of no size."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height]) / scale
    corner = (torch.rand(count, 2, generator=generator) * 1.5 - 0.25) * size
    extent = torch.rand(count, 2, generator=generator) * size
    corner[::4], extent[::4] = corner[::4].round(), extent[::4].round()
    extent[5::7, 0] = 0
    image = torch.randint(images, (count, 1), generator=generator)
    return torch.cat([image, corner, corner + extent], 1)


def pair_of(shape, scale, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return x, boxes(12, shape[0], *shape[2:], scale).to(device, wide)


def compare(x, rois, bins, **options):
    """Largest errors of result and gradient against float64, in units of the largest value."""
    generator = torch.Generator().manual_seed(2)
    shape = (rois.shape[0], x.shape[1], *bins)
    grad = torch.randn(shape, generator=generator, dtype=torch.float64).to(x.device, x.dtype)
    own = x.clone().requires_grad_()
    out = ops.roi_align(own, rois, bins, **options)
    out.backward(grad)
    exact = x.cpu().double().requires_grad_()
    wanted = reference.roi_align(exact, rois.cpu().double(), bins, **options)
    wanted.backward(grad.cpu().double())
    assert out.dtype == x.dtype
    assert out.shape == wanted.shape
    return [
        (got.double().cpu() - want).abs().max().item() / max(want.abs().max().item(), 1.0)
        for got, want in ((out, wanted), (own.grad, exact.grad))
    ]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("shape", "bins", "scale", "ratio", "aligned"), CASES)
def test_values_and_gradients(shape, bins, scale, ratio, aligned, channels_last, device):
    x, rois = pair_of(shape, scale, torch.float64, device)
    x = LAYOUTS["channels_last"](x) if channels_last else x
    options = {"spatial_scale": scale, "sampling_ratio": ratio, "aligned": aligned}
    assert max(compare(x, rois, bins, **options)) < 1e-13


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_small_types_lose_only_the_last_rounding(dtype, channels_last, device):
    x, rois = pair_of((2, 70, 13, 17), 0.5, dtype, device)
    x = LAYOUTS["channels_last"](x) if channels_last else x
    errors = compare(x, rois, (7, 7), spatial_scale=0.5, sampling_ratio=2)
    # Positions are float32: 17 pixels have 2e-6 of slope each.
    assert max(errors) < torch.finfo(dtype).eps / 2 + 2e-5


def test_published_numbers(device):
    """detectron2's and mmcv's test vectors, to the bit."""
    x = torch.arange(25.0, device=device).view(1, 1, 5, 5)
    roi = torch.tensor([[0, 1, 1, 3, 3.0]], device=device)
    row = torch.tensor([4.5, 5, 5.5, 6], device=device)
    step = 2.5 * torch.arange(4.0, device=device)[:, None]
    assert torch.equal(ops.roi_align(x, roi, 4)[0, 0], row + step)
    assert torch.equal(ops.roi_align(x, roi, 4, aligned=False)[0, 0], row + 3 + step)

    x = torch.tensor([[1.0, 2, 5, 6], [3, 4, 7, 8], [9, 10, 13, 14], [11, 12, 15, 16]])
    x = x.to(device).view(1, 1, 4, 4).requires_grad_()
    out = ops.roi_align(x, torch.tensor([[0, 0, 0, 3, 3.0]], device=device), 2, sampling_ratio=2)
    out.sum().backward()
    assert out.flatten().tolist() == [1.9375, 4.75, 7.5625, 10.375]
    factor = torch.tensor([0.6875, 0.625, 0.625, 0.0625], device=device)
    assert torch.equal(x.grad[0, 0], factor[:, None] * factor)
    assert x.grad[0, 0, 0].tolist() == [0.47265625, 0.4296875, 0.4296875, 0.04296875]

    x = torch.tensor([[1.0, 2], [3, 4]], device=device).view(1, 1, 2, 2).requires_grad_()
    out = ops.roi_align(x, torch.tensor([[0, 0, 0, 1, 1.0]], device=device), 2, sampling_ratio=2)
    out.sum().backward()
    assert out.flatten().tolist() == [1, 1.25, 1.5, 1.75]
    assert x.grad.flatten().tolist() == [3.0625, 0.4375, 0.4375, 0.0625]


def test_boxes_without_area():
    x = torch.rand(1, 2, 8, 8, requires_grad=True)
    roi = torch.tensor([[0, 3, 4, 5, 4.0], [0, 5, 5, 2, 2.0]])
    out = ops.roi_align(x, roi, 7)
    out.sum().backward()
    assert not out.any()
    assert not x.grad.any()
    assert ops.roi_align(x, roi, 7, aligned=False).all()
    assert ops.roi_align(x, roi, 7, sampling_ratio=2).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchvision(dtype):
    torchvision = pytest.importorskip("torchvision")
    for case, (shape, bins, scale, ratio, aligned) in enumerate(CASES):
        x = torch.randn(shape, dtype=dtype).requires_grad_()
        rois = boxes(40, shape[0], *shape[2:], scale, seed=case).to(dtype)
        if ratio > 0:
            rois[::3, 3] -= 20  # read backwards
        theirs = torchvision.ops.roi_align(x, rois, bins, scale, ratio, aligned)
        grad = torch.randn_like(theirs)
        (wanted,) = torch.autograd.grad(theirs, x, grad)
        ours = ops.roi_align(
            x, rois, bins, spatial_scale=scale, sampling_ratio=ratio, aligned=aligned
        )
        (found,) = torch.autograd.grad(ours, x, grad)
        rounding = 20 * torch.finfo(dtype).eps
        torch.testing.assert_close(ours, theirs, rtol=0, atol=rounding * x.abs().max().item())
        torch.testing.assert_close(
            found, wanted, rtol=0, atol=rounding * wanted.abs().max().clamp(min=1).item()
        )


def test_samples_on_the_border_rule():
    """Positions that are exactly -1 or the size still count; the next float does not."""
    x = torch.ones(1, 1, 4, 4)
    for left, inside in ((-1.0, 1.0), (-1.0 - 2e-7, 0.0), (4.0, 1.0), (4.0 + 1e-6, 0.0)):
        roi = torch.tensor([[0, left + 0.5, 1, left + 0.5, 2]])
        assert ops.roi_align(x, roi, 1, sampling_ratio=1).item() == inside


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("channels_last", [False, True])
def test_pyramid(channels_last, aligned, device):
    torchvision = pytest.importorskip("torchvision")
    maps = [torch.randn(2, 9, 64 >> k, 96 >> k) for k in range(4)]
    extent = torch.cat([torch.rand(60, 2) * 60, 224 * 2.0 ** torch.arange(-3, 2).repeat(2, 1).T])
    corner = torch.rand(len(extent), 2) * 100
    rows = torch.cat([corner, corner + extent], 1)
    per_image = [rows[:30], rows[30:]]
    own = [m.to(device) for m in maps]
    own = [LAYOUTS["channels_last"](m) if channels_last else m.clone() for m in own]
    own = [m.detach().requires_grad_() for m in own]
    scales = [2.0**-k for k in range(2, 6)]
    out = ops.roi_align(
        own,
        [b.to(device) for b in per_image],
        7,
        spatial_scale=scales,
        sampling_ratio=2,
        aligned=aligned,
    )
    # The level of each box by the formula, then one call a level.
    sizes = (rows[:, 2:] - rows[:, :2]).prod(1).sqrt()
    level = (4 + torch.log2(sizes / 224) + 1e-6).floor().clamp(2, 5).long() - 2
    assert level.unique().numel() == 4
    image = torch.arange(2).repeat_interleave(torch.tensor([30, len(rows) - 30]))[:, None]
    rois = torch.cat([image, rows], 1)
    exact = [m.double().detach().requires_grad_() for m in maps]
    wanted = torch.stack(
        [
            torchvision.ops.roi_align(exact[k], r[None].double(), 7, scales[k], 2, aligned)[0]
            for k, r in zip(level.tolist(), rois)
        ]
    )
    torch.testing.assert_close(out.cpu().double(), wanted, rtol=0, atol=2e-4)
    grad = torch.randn(out.shape)
    out.backward(grad.to(device))
    wanted.backward(grad.double())
    for mine, theirs in zip(own, exact):
        torch.testing.assert_close(mine.grad.cpu().double(), theirs.grad, rtol=0, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_few_boxes_on_a_large_map(dtype, device):
    """Planes are then read where boxes lie, not turned as a whole; the values are the same."""
    x = torch.randn(2, 67, 60, 50).to(device, dtype)
    rois = torch.tensor([[1, 3.2, 40, 9.1, 48.5], [0, 44, 55, 60, 70]], device=device)
    out = ops.roi_align(x, rois, (3, 5), sampling_ratio=2)
    turned = x.contiguous(memory_format=torch.channels_last)
    other = ops.roi_align(turned, rois, (3, 5), sampling_ratio=2)
    torch.testing.assert_close(out, other, rtol=1e-6, atol=torch.finfo(dtype).eps)
    assert compare(x, rois.to(rois.dtype if dtype != torch.float64 else dtype), (3, 5))[0] < (
        torch.finfo(dtype).eps + 2e-5
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, device):
    x, rois = pair_of((2, 6, 9, 10), 1.0, torch.float32, device)
    given = LAYOUTS[layout](x)
    out = ops.roi_align(given, rois, 3)
    dense = ops.roi_align(given.contiguous(), rois, 3)
    torch.testing.assert_close(out, dense, rtol=0, atol=1e-5)
    if layout.startswith("channels_last"):
        assert out.is_contiguous(memory_format=torch.channels_last)


def test_opcheck(device):
    x, rois = pair_of((2, 3, 8, 9), 0.5, torch.float32, device)
    y = torch.randn(2, 3, 4, 5, device=device)
    forward = torch.ops.segkern.roi_align.default
    backward = torch.ops.segkern._roi_align_backward.default
    for layout in ("contiguous", "channels_last"):
        maps = [LAYOUTS[layout](m).requires_grad_() for m in (x, y)]
        torch.library.opcheck(forward, (maps[:1], rois, 3, 4, [0.5], [], 2, True))
        torch.library.opcheck(forward, (maps, rois, 3, 4, [0.5, 0.25], [9.0], 0, False))
        grad = torch.randn(len(rois), 3, 3, 4, device=device)
        sizes = [2, 3, 8, 9, 4, 5]
        last = layout == "channels_last"
        torch.library.opcheck(backward, (grad, rois, sizes, [0.5, 0.25], [9.0], 0, True, last))


def test_gradcheck():
    x, rois = pair_of((1, 2, 5, 6), 1.0, torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: ops.roi_align(x, rois[:4], (2, 3)), x.clone().requires_grad_()
    )


def test_compiles_in_one_graph():
    def run(x, rois):
        return ops.roi_align(x, rois, 3, sampling_ratio=2) * 2

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for size, count in (((9, 11), 12), ((5, 8), 7)):
        x, rois = torch.randn(2, 3, *size), boxes(count, 2, *size, 1.0)
        torch.testing.assert_close(compiled(x, rois), run(x, rois))


def test_threads_and_repeats_give_the_same_bits():
    x, rois = pair_of((2, 70, 40, 30), 1.0, torch.float32)
    x.requires_grad_()
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            out = ops.roi_align(x, rois, 7)
            found.append((out, *torch.autograd.grad(out.square().sum(), x)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


def test_cuda_repeats_give_the_same_bits(cuda):
    x, rois = pair_of((2, 70, 40, 30), 1.0, torch.float32, cuda)
    x.requires_grad_()
    found = []
    for _ in range(20):
        out = ops.roi_align(x, rois, 7)
        found.append((out, *torch.autograd.grad(out.square().sum(), x)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


def test_cuda_graph_and_no_synchronisation(cuda):
    x, rois = pair_of((2, 9, 20, 30), 1.0, torch.float32, cuda)
    wanted = ops.roi_align(x, rois, 7)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.roi_align(x, rois, 7)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.roi_align(x, rois, 7)
    graph.replay()
    assert torch.equal(out, wanted)


def test_hard_boxes(device):
    x = torch.rand(1, 3, 6, 7, device=device, requires_grad=True)
    far = [math.nan, math.inf, -math.inf, 1e9, -1e30]
    rows = [[0, value, 1, 4, 4] for value in far] + [[0, 1, 1, 4, value] for value in far]
    rows += [[0, 100, 100, 120, 130], [0, -90, 0, -50, 5]]
    rois = torch.tensor(rows, device=device)
    for ratio in (0, 2):
        for aligned in (True, False):
            out = ops.roi_align(x, rois, 3, sampling_ratio=ratio, aligned=aligned)
            assert not out.any()
            (grad,) = torch.autograd.grad(out.sum(), x)
            assert not grad.any()
    # Large, but not too large: the map is a corner of one bin.
    big = torch.tensor([[0, -4e6, -4e6, 4e6, 4e6]], device=device)
    assert ops.roi_align(x, big, 2).isfinite().all()


ENDS = """
import torch
from segkern import ops
ends = torch.arange(1.0, 200.0)
rows = []
for _ in range(39):
    ends = torch.nextafter(ends, torch.tensor(0.0))
    rows.append(torch.stack([0 * ends, 0 * ends, 0 * ends, ends, ends], 1))
x = torch.ones(1, 1, 260, 260)
for bins in (7, 14):
    out = ops.roi_align(x, torch.cat(rows), bins, sampling_ratio=2, aligned=False)
    assert (out - 1).abs().max() < 1e-5
"""


def test_boxes_that_end_just_below_a_pixel():
    # In a process of its own: rounding once let a bin write beside the weights of its box.
    subprocess.run([sys.executable, "-c", ENDS], check=True, timeout=120)


@pytest.mark.parametrize("shape", [(0, 2, 4, 5), (2, 0, 4, 5), (2, 2, 0, 5), (2, 2, 4, 5)])
def test_without_elements(shape, device):
    x = torch.rand(shape, device=device, requires_grad=True)
    out = ops.roi_align(x, torch.zeros(0, 5, device=device), (3, 4))
    assert out.shape == (0, shape[1], 3, 4)
    out.sum().backward()
    assert x.grad.shape == shape
    assert not x.grad.any()
    assert ops.roi_align(x, [], 3).shape == (0, shape[1], 3, 3)


def test_boxes_of_no_image(device):
    x = torch.rand(2, 3, 4, 5, device=device)
    for image in (-1.0, 2.0, math.nan):
        rois = torch.tensor([[image, 0, 0, 3, 3]], device=device)
        if device.type == "cpu":
            with pytest.raises(RuntimeError, match="roi_align: the first column of rois must be"):
                ops.roi_align(x, rois, 2)
        else:
            assert not ops.roi_align(x, rois, 2).any()


def test_second_derivatives_are_refused():
    x, rois = pair_of((1, 1, 4, 5), 1.0, torch.float64)
    out = ops.roi_align(x.requires_grad_(), rois, 3)
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": "x"}, TypeError, "input must be a Tensor"),
        ({"input": []}, ValueError, "input must have 1 to 8 levels"),
        ({"input": torch.ones(1, 2, 4, 5).int()}, TypeError, "input must be floating"),
        ({"input": torch.ones(2, 4, 5)}, ValueError, "input must have 4 axes"),
        ({"rois": torch.ones(3, 4)}, ValueError, "rois must be"),
        ({"rois": [torch.ones(3, 5)]}, ValueError, "rois must be"),
        ({"output_size": 0}, ValueError, "output_size must be at least 1"),
        ({"output_size": 2**20}, RuntimeError, "output_size must be"),
        ({"spatial_scale": [1.0, 0.5]}, ValueError, "spatial_scale must have one number a level"),
        ({"spatial_scale": 0.0}, ValueError, "spatial_scale must be positive"),
        ({"spatial_scale": math.nan}, ValueError, "spatial_scale must be positive"),
        ({"sampling_ratio": 0.5}, TypeError, "sampling_ratio must be an integer"),
        ({"sampling_ratio": 2000}, ValueError, "sampling_ratio must be at most"),
    ],
)
def test_wrong_arguments(change, error, message):
    arguments = {
        "input": torch.ones(1, 2, 4, 5),
        "rois": torch.tensor([[0, 0, 0, 2, 2.0]]),
        "output_size": 3,
    }
    with pytest.raises(error, match=f"roi_align: {message}"):
        ops.roi_align(**{**arguments, **change})


def test_wrong_pyramids():
    x, rois = torch.ones(1, 2, 4, 5), torch.tensor([[0, 0, 0, 2, 2.0]])
    with pytest.raises(ValueError, match="spatial_scale must halve"):
        ops.roi_align([x, x], rois, 3, spatial_scale=[0.5, 0.5])
    with pytest.raises(ValueError, match="spatial_scale must be powers of 2"):
        ops.roi_align([x, x], rois, 3, spatial_scale=[0.6, 0.3])
    with pytest.raises(RuntimeError, match="input must be .* of one dtype"):
        ops.roi_align([x, x.double()], rois, 3, spatial_scale=[0.5, 0.25])
    with pytest.raises(RuntimeError, match="input must be .* of one dtype"):
        ops.roi_align([x, x[:, :1]], rois, 3, spatial_scale=[0.5, 0.25])
