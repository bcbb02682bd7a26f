"""roi_upsample against the float64 reference and worked numbers, and its promises."""

from __future__ import annotations

import math

import pytest
import torch

from segkern import ops
from segkern.reference import roi as reference
from tests.opcases import LAYOUTS
from tests.ops.test_roi_align import boxes

MODES = ["gather", "norm", "pinv", "pinv_mean"]
CASES = [
    # bins, map, scale, sampling ratio
    ((9, 3, 4, 5), (2, 13, 17), 0.5, 0),
    ((9, 70, 3, 2), (2, 9, 9), 1.0, 2),
    ((6, 1, 14, 14), (1, 40, 20), 0.25, 1),
    ((5, 2, 1, 33), (3, 1, 50), 1.0, 0),
]


def arguments_of(mode):
    return {"mode": "pinv", "divide_by_count": True} if mode == "pinv_mean" else {"mode": mode}


def compare(shape, size, scale, ratio, mode, reduction, dtype, layout, device):
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
    values = LAYOUTS[layout](values)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rois = boxes(shape[0], size[0], *size[1:], scale).to(device, wide)
    rois[-1, 0] = size[0]  # of no image: skipped
    grad = torch.randn(size[0], shape[1], *size[1:], generator=generator, dtype=torch.float64)
    grad = grad.to(device, dtype)
    own = values.detach().clone().requires_grad_()
    options = {"spatial_scale": scale, "reduction": reduction, "sampling_ratio": ratio}
    out = ops.roi_upsample(own, rois, size, **options, **arguments_of(mode))
    out.backward(grad)
    exact = values.cpu().double().detach().requires_grad_()
    wanted = reference.roi_upsample(
        exact, rois.cpu().double(), size, mode=mode, aligned="pinv" not in mode, **options
    )
    wanted.backward(grad.cpu().double())
    assert out.dtype == dtype
    return [
        (got.double().cpu() - want).abs().max().item() / max(want.abs().max().item(), 1.0)
        for got, want in ((out, wanted), (own.grad, exact.grad))
    ]


@pytest.mark.parametrize("reduction", ["mean", "sum", "max"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("shape", "size", "scale", "ratio"), CASES)
def test_values_and_gradients(shape, size, scale, ratio, mode, reduction, device):
    for layout in ("contiguous", "channels_last"):
        case = (shape, size, scale, ratio, mode, reduction)
        assert max(compare(*case, torch.float64, layout, device)) < 1e-12


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_small_types(dtype, mode, device):
    errors = compare(*CASES[0], mode, "mean", dtype, "contiguous", device)
    # The gradient is divided by the count of boxes in the small type first.
    assert errors[0] < torch.finfo(dtype).eps / 2 + 2e-5
    assert errors[1] < torch.finfo(dtype).eps * 2 + 2e-5


def test_worked_numbers(device):
    values = torch.tensor([[1.0, 2], [3, 4]], device=device).view(1, 1, 2, 2)
    roi = torch.tensor([[0, 1, 1, 5, 4.0]], device=device)

    def check(rows, columns, wanted, **options):
        out = ops.roi_upsample(values, roi, (1, 6, 6), **options)[0, 0]
        full = torch.zeros(6, 6)
        full[rows, columns] = torch.tensor(wanted)
        torch.testing.assert_close(out.cpu(), full, rtol=2e-6, atol=2e-6)

    check(
        slice(0, 5),
        slice(0, 6),
        [
            [0.041667, 0.125, 0.208333, 0.291667, 0.25, 0.083333],
            [0.208333, 0.625, 1.041667, 1.458333, 1.25, 0.416667],
            [0.5, 1.5, 2.25, 2.75, 2.25, 0.75],
            [0.625, 1.875, 2.708333, 3.125, 2.5, 0.833333],
            [0.125, 0.375, 0.541667, 0.625, 0.5, 0.166667],
        ],
    )
    check(
        slice(0, 5),
        slice(1, 5),
        [[1.0, 1, 2, 2], [1, 1, 2, 2], [2, 2, 3, 3], [3, 3, 4, 4], [3, 3, 4, 4]],
        mode="norm",
    )
    check(
        slice(1, 5),
        slice(1, 6),
        [
            [1.176471, 2.352941, 3.529412, 4.705882, 2.352941],
            [2.305882, 4.611765, 6.597647, 8.583529, 4.291765],
            [5.637647, 11.275294, 13.261176, 15.247059, 7.623529],
            [3.529412, 7.058824, 8.235294, 9.411765, 4.705882],
        ],
        mode="pinv",
    )
    check(
        slice(1, 5),
        slice(2, 6, 2),
        [[0.4, 0.8], [1.2, 2.4], [3.6, 4.8], [1.2, 1.6]],
        mode="pinv",
        sampling_ratio=1,
    )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_largest_box_wins(device, layout):
    """Two boxes over one pixel each and one together: the larger, negative ones too, and its own
    gradient; the first of equals; a NaN; 0 where no box is."""
    first = torch.tensor([[5.0, 5], [-3, -3], [2, 2], [7, 7], [1, 1]])  # (C, 2)
    second = torch.tensor([[4.0, 4], [-2, -2], [2, 2], [math.nan, 1], [9, 1]])
    values = torch.stack([first, second])[:, :, None].to(device)
    values = LAYOUTS[layout](values).requires_grad_()
    rois = torch.tensor([[0, 0, 0, 2, 1], [0, 1, 0, 3, 1.0]], device=device)
    out = ops.roi_upsample(values, rois, (2, 1, 4), reduction="max")
    nan = math.nan
    wanted = [[5.0, 5, 4, 0], [-3, -2, -2, 0], [2, 2, 2, 0], [7, nan, 1, 0], [1, 9, 1, 0]]
    torch.testing.assert_close(
        out[0, :, 0].cpu(), torch.tensor(wanted), rtol=0, atol=0, equal_nan=True
    )
    assert not out[1].any()
    grad = torch.arange(1.0, 5, device=device).expand_as(out)
    (own,) = torch.autograd.grad(out, values, grad)
    wanted_own = [
        [[1.0, 2], [1, 0], [1, 2], [1, 0], [1, 0]],
        [[0.0, 3], [2, 3], [0, 3], [2, 3], [2, 3]],
    ]
    assert torch.equal(own[:, :, 0].cpu(), torch.tensor(wanted_own))


def test_the_largest_is_the_mean_where_boxes_are_apart(device):
    """Where one box covers a pixel the three reductions agree, 300 boxes on a map of 70 x 90."""
    generator = torch.Generator().manual_seed(5)
    rois = boxes(300, 2, 70, 90, 1.0).float().to(device)
    rois[:, 3:] = rois[:, 1:3] + (rois[:, 3:] - rois[:, 1:3]) * 0.15
    values = torch.randn(300, 3, 4, 4, generator=generator).to(device)
    found = {
        name: ops.roi_upsample(values, rois, (2, 70, 90), reduction=name)
        for name in ("sum", "mean", "max")
    }
    ones = torch.ones(300, 1, 1, 1, device=device)
    depth = torch.zeros(2, 1, 70, 90, device=device)
    for roi, one in zip(rois, ones):
        depth += ops.roi_upsample(one[None], roi[None], (2, 70, 90), mode="gather") > 0
    once = (depth == 1).expand_as(found["sum"])
    assert once.any() and (depth > 3).any()
    torch.testing.assert_close(found["max"][once], found["mean"][once])
    assert (found["max"] >= found["mean"] - 1e-5).all()


def test_pinv_is_the_inverse_of_roi_align():
    """With one sample a bin and no pixel in common, reading what was written gives it back."""
    values = torch.randn(1, 3, 3, 4, dtype=torch.float64)
    roi = torch.tensor([[0, 1.3, 2.2, 1.3 + 4 * 3.1, 2.2 + 3 * 2.7]])
    out = ops.roi_upsample(values, roi, (1, 16, 20), mode="pinv", sampling_ratio=1)
    back = ops.roi_align(out, roi, (3, 4), sampling_ratio=1, aligned=False)
    torch.testing.assert_close(back, values)


def test_norm_keeps_constants(device):
    rois = boxes(7, 1, 20, 24, 1.0).to(device)
    out = ops.roi_upsample(torch.ones(7, 2, 5, 5, device=device), rois, (1, 20, 24), mode="norm")
    covered = out > 0
    torch.testing.assert_close(out[covered], torch.ones_like(out[covered]))
    assert covered.any()


def test_opcheck(device):
    values = torch.randn(4, 3, 3, 2, device=device)
    rois = boxes(4, 2, 9, 8, 1.0).to(device)
    forward = torch.ops.segkern.roi_upsample.default
    backward = torch.ops.segkern._roi_upsample_backward.default
    for layout in ("contiguous", "channels_last"):
        given = LAYOUTS[layout](values).requires_grad_()
        for mode in range(1, 5):
            reduction = mode % 3
            torch.library.opcheck(forward, (given, rois, 2, 9, 8, 1.0, mode, reduction, 0, True))
        grad = LAYOUTS[layout](torch.randn(2, 3, 9, 8, device=device))
        _, chosen = forward(given, rois, 2, 9, 8, 1.0, 4, 2, 0, True)
        for owners in (None, chosen):
            torch.library.opcheck(backward, (grad, rois, owners, 3, 2, 1.0, 4, 0, True))


def test_compiles_in_one_graph():
    def run(values, rois):
        largest = ops.roi_upsample(values, rois, (2, 9, 8), reduction="max")
        return ops.roi_upsample(values, rois, (2, 9, 8)) + largest

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (4, 7):
        values, rois = torch.randn(count, 3, 4, 5), boxes(count, 2, 9, 8, 1.0)
        torch.testing.assert_close(compiled(values, rois), run(values, rois))


def test_gradcheck():
    rois = boxes(3, 1, 6, 7, 1.0)
    for mode, reduction in [(mode, "mean") for mode in MODES] + [(mode, "max") for mode in MODES]:
        given = {"reduction": reduction, **arguments_of(mode)}
        assert torch.autograd.gradcheck(
            lambda v, given=given: ops.roi_upsample(v, rois, (1, 6, 7), **given),
            torch.randn(3, 2, 2, 3, dtype=torch.float64, requires_grad=True),
        )


def test_cuda_repeats_give_the_same_bits(cuda):
    values = torch.randn(40, 9, 14, 14, device=cuda, requires_grad=True)
    rois = boxes(40, 2, 50, 60, 1.0).to(cuda)
    for reduction in ("mean", "max"):
        found = []
        for _ in range(20):
            out = ops.roi_upsample(values, rois, (2, 50, 60), reduction=reduction)
            found.append((out, *torch.autograd.grad(out.square().sum(), values)))
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other))


def test_hard_boxes(device):
    rows = [[0, v, 1, 4, 4] for v in (math.nan, math.inf, -math.inf, 1e9)]
    rows += [[v, 1, 1, 4, 4] for v in (-1, 1, math.nan, math.inf)] + [[0, 90, 90, 99, 99]]
    rois = torch.tensor(rows, dtype=torch.float32, device=device)
    values = torch.ones(len(rois), 2, 3, 3, device=device, requires_grad=True)
    for mode, reduction in (("gather", "mean"), ("norm", "mean"), ("pinv", "sum"), ("norm", "max")):
        out = ops.roi_upsample(values, rois, (1, 6, 7), mode=mode, reduction=reduction)
        assert not out.any()
        (grad,) = torch.autograd.grad(out.sum(), values)
        assert not grad.any()
    empty = torch.tensor([[0, 3, 3, 3, 5.0], [0, 5, 5, 2, 2]], device=device)
    for mode in ("gather", "norm"):
        assert not ops.roi_upsample(values[:2], empty, (1, 6, 7), mode=mode).any()


@pytest.mark.parametrize("size", [(0, 4, 5), (2, 0, 5), (2, 4, 5)])
def test_without_elements(size, device):
    values = torch.rand(0, 3, 2, 2, device=device, requires_grad=True)
    for reduction in ("mean", "sum", "max"):
        out = ops.roi_upsample(values, torch.zeros(0, 5, device=device), size, reduction=reduction)
        assert out.shape == (size[0], 3, *size[1:])
        assert not out.any()
        out.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": None}, TypeError, "input must be a Tensor"),
        ({"input": torch.ones(2, 3, 4)}, ValueError, "input must have 4 axes"),
        ({"rois": torch.zeros(2, 5)}, ValueError, "rois must be one for each of the 1"),
        ({"rois": torch.zeros(1, 6)}, ValueError, "rois must be"),
        ({"output_size": (4, 5)}, ValueError, "output_size must be three sizes"),
        ({"output_size": (1, -4, 5)}, ValueError, "output_size must be three sizes"),
        ({"output_size": (1, 2**24, 1)}, RuntimeError, "maps must have at most"),
        ({"mode": "max"}, ValueError, "mode must be"),
        ({"reduction": "min"}, ValueError, "reduction must be"),
        ({"divide_by_count": True}, ValueError, "divide_by_count must be False"),
        ({"spatial_scale": -1}, ValueError, "spatial_scale must be positive"),
        ({"sampling_ratio": True}, TypeError, "sampling_ratio must be an integer"),
    ],
)
def test_wrong_arguments(change, error, message):
    arguments = {
        "input": torch.ones(1, 2, 3, 3),
        "rois": torch.tensor([[0, 0, 0, 2, 2.0]]),
        "output_size": (1, 4, 5),
    }
    with pytest.raises(error, match=f"roi_upsample: {message}"):
        ops.roi_upsample(**{**arguments, **change})
