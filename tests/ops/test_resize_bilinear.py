"""resize_bilinear against float64 matrices and torch, and its promises."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from resampling import run_at_several_threads, sample_matrix

from segkern import ops
from tests.opcases import DTYPES, LAYOUTS
from tests.ops.comparisons import assert_memory_format, assert_same_bits

# Up by whole and other factors, more than a vector and a block of columns; down; one axis each
# way; one pixel; one channel; channels of whole vectors, of less and of more; wide pixels.
CASES = [
    ((2, 3, 5, 7), (11, 13)),
    ((1, 21, 9, 9), (65, 65)),
    ((1, 64, 6, 5), (13, 30)),
    ((1, 72, 3, 4), (5, 9)),
    ((2, 17, 1, 1), (6, 9)),
    ((1, 5, 20, 30), (7, 9)),
    ((1, 40, 3, 70), (23, 9)),
    ((1, 1, 8, 8), (16, 16)),
    ((1, 2, 33, 1), (90, 4)),
    ((3, 11, 9, 20), (9, 41)),
    ((1, 16, 4, 6), (1, 1)),
    ((1, 3, 4, 6), (4, 6)),
]
RAW = torch.ops.segkern


def draw(shape, size, dtype, device, layout="contiguous"):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device, dtype)
    grad = torch.randn(*shape[:2], *size, generator=generator).to(device, dtype)
    return LAYOUTS[layout](x).detach().requires_grad_(), LAYOUTS[layout](grad)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("shape", "size"), CASES)
def test_values_and_gradients(shape, size, align_corners, dtype, layout, device):
    x, grad = draw(shape, size, dtype, device, layout)
    y = ops.resize_bilinear(x, size, align_corners)
    y.backward(grad)
    assert y.shape == (*shape[:2], *size)
    assert y.dtype == dtype
    if shape[2:] != (1, 1):  # which says nothing of how its pixels lie
        assert_memory_format(y, layout)
        assert_memory_format(x.grad, layout)

    # torch at float32 too, whose coordinates are rounded as ours are.
    plain = x.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    torchs = F.interpolate(plain, size, mode="bilinear", align_corners=align_corners)
    torchs.backward(grad.to(plain.dtype))
    down, across = (sample_matrix(n, m, align_corners) for n, m in zip(shape[2:], size))
    exact = down @ x.detach().cpu().double() @ across.T
    exact_grad = down.T @ grad.cpu().double() @ across
    half = torch.finfo(dtype).eps / 2 if dtype != plain.dtype else 0.0
    for got, other, want in ((y, torchs, exact), (x.grad, plain.grad, exact_grad)):
        largest = want.abs().max()
        allowed = 2 * (other.cpu().double() - want).abs().max()
        allowed += (half + 4 * torch.finfo(plain.dtype).eps) * largest
        assert (got.detach().cpu().double() - want).abs().max() <= allowed


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "size"), [CASES[0], CASES[2]])
def test_layouts(shape, size, dtype, layout, device):
    x, grad = draw(shape, size, dtype, device)
    given, given_grad = LAYOUTS[layout](x.detach()), LAYOUTS[layout](grad)
    last = torch.channels_last if "channels_last" in layout else torch.contiguous_format
    same, same_grad = (t.contiguous(memory_format=last) for t in (given, given_grad))
    y = ops.resize_bilinear(given, size)
    assert_memory_format(y, layout)
    assert_same_bits(y, ops.resize_bilinear(same, size))
    back = RAW._resize_bilinear_backward.default
    assert_same_bits(
        back(given_grad, *shape[2:], False), back(same_grad, *shape[2:], False), layout
    )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_of_gradients(layout):
    for shape, size in (((1, 2, 2, 3), (5, 4)), ((1, 3, 4, 5), (2, 3)), ((1, 2, 1, 1), (3, 2))):
        x, _ = draw(shape, size, torch.float64, "cpu", layout)
        for align_corners in (False, True):
            arguments = (x, size, align_corners)
            assert torch.autograd.gradcheck(ops.resize_bilinear, arguments)
            assert torch.autograd.gradgradcheck(ops.resize_bilinear, arguments)


def test_exact_cases(device):
    x = torch.randn(2, 5, 7, 9, device=device)
    assert_same_bits(ops.resize_bilinear(x, (7, 9)), x)
    one = x[..., :1, :1]
    assert_same_bits(ops.resize_bilinear(one, 6), one.expand(2, 5, 6, 6))
    # Corners on corners: every second output pixel is an input pixel.
    assert_same_bits(ops.resize_bilinear(x, (13, 17), align_corners=True)[..., ::2, ::2], x)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_where_it_has_a_weight(bad, layout, device):
    for channels in (3, 64):
        for size, align_corners in (((7, 10), False), ((9, 13), True), ((2, 3), False)):
            down, across = (
                sample_matrix(n, m, align_corners) for n, m in zip((5, 7), size, strict=True)
            )
            touched = (down[:, 2, None] * across[:, 3]) > 1e-6
            x, grad = draw((1, channels, 5, 7), size, torch.float32, device, layout)
            x.data[0, :, 2, 3] = bad
            y = ops.resize_bilinear(x, size, align_corners)
            assert torch.equal(y.isfinite().cpu(), ~touched.expand(y.shape))
            o = (size[0] // 2, size[1] // 2)
            grad[0, :, o[0], o[1]] = bad
            y.backward(grad)
            touched = (down[o[0], :, None] * across[o[1]]) > 1e-6
            assert torch.equal(x.grad.isfinite().cpu(), ~touched.expand(x.shape))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_threads_and_batches_change_no_bit(dtype, layout):
    for shape, size in (((2, 70, 9, 12), (65, 90)), ((1, 21, 33, 33), (129, 130))):
        x, grad = draw(shape, size, dtype, "cpu", layout)

        def both(x=x, grad=grad, size=size, shape=shape):
            back = RAW._resize_bilinear_backward.default(grad, *shape[2:], False)
            return [ops.resize_bilinear(x.detach(), size), back]

        whole = run_at_several_threads(both)
        for n in range(shape[0]):
            own = slice(n, n + 1)
            for one, all_ in zip(both(x[own], grad[own]), whole, strict=True):
                assert_same_bits(one, all_[own])


def test_autocast_keeps_the_type(device):
    x = torch.randn(1, 2, 3, 4, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        assert ops.resize_bilinear(x, 6).dtype == torch.float32
        assert ops.resize_bilinear(x.half(), 6).dtype == torch.float16


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(layout, device):
    x, grad = draw((2, 3, 4, 5), (7, 6), torch.float32, device, layout)
    torch.library.opcheck(RAW.resize_bilinear.default, (x, 7, 6, True))
    torch.library.opcheck(RAW._resize_bilinear_backward.default, (grad, 4, 5, False))
    grad.requires_grad_()
    torch.library.opcheck(RAW._resize_bilinear_backward.default, (grad, 4, 5, False))


class Beside(torch.nn.Module):
    """Maps at the size of others."""

    def forward(self, small, large):
        return ops.resize_bilinear(small, large.shape[-2:]) + large


def test_compile_and_export_with_any_size():
    compiled = torch.compile(Beside(), fullgraph=True, dynamic=True, backend="aot_eager")
    small = {0: "n", 2: torch.export.Dim("h", min=2), 3: torch.export.Dim("w", min=2)}
    large = {0: "n", 2: torch.export.Dim("H", min=2), 3: torch.export.Dim("W", min=2)}
    small[0] = large[0] = torch.export.Dim("n", min=2)
    example = (torch.randn(2, 3, 4, 5), torch.randn(2, 3, 9, 11))
    exported = torch.export.export(
        Beside(), example, dynamic_shapes={"small": small, "large": large}
    ).module()
    for shape, size in (((2, 3, 4, 5), (9, 11)), ((3, 3, 7, 6), (5, 12))):
        x, y = torch.randn(shape, requires_grad=True), torch.randn(*shape[:2], *size)
        wanted = Beside()(x, y)
        assert torch.equal(compiled(x, y), wanted)
        assert torch.equal(exported(x, y), wanted)
        (grad,) = torch.autograd.grad(compiled(x, y).square().sum(), x)
        (wanted_grad,) = torch.autograd.grad(wanted.square().sum(), x)
        torch.testing.assert_close(grad, wanted_grad)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5)])
def test_without_elements(shape, device):
    x = torch.ones(shape, device=device, requires_grad=True)
    y = ops.resize_bilinear(x, (6, 7))
    assert y.shape == (*shape[:2], 6, 7)
    y.sum().backward()
    assert x.grad.shape == shape


def test_wrong_arguments(device):
    x = torch.ones(1, 2, 3, 4, device=device)
    for bad in (0, (3, -1), (1, 2, 3), 2.0, True, "3", None):
        with pytest.raises(ValueError, match="resize_bilinear: size must be"):
            ops.resize_bilinear(x, bad)
    with pytest.raises(TypeError, match="resize_bilinear: input must be a Tensor, got list"):
        ops.resize_bilinear([1.0], 3)
    with pytest.raises(ValueError, match=r"resize_bilinear: input must be \(N, C, H, W\), got"):
        ops.resize_bilinear(x[0], 3)
    with pytest.raises(TypeError, match="resize_bilinear: input must be float64, float32"):
        ops.resize_bilinear(x.int(), 3)
    with pytest.raises(RuntimeError, match="with at least one row and column"):
        ops.resize_bilinear(x[:, :, :0], 3)
    with pytest.raises(RuntimeError, match=r"size must be positive, got \(0, 3\)"):
        RAW.resize_bilinear.default(x, 0, 3, False)
    with pytest.raises(RuntimeError, match="_resize_bilinear_backward: grad must be"):
        RAW._resize_bilinear_backward.default(x[0], 2, 2, False)
    with pytest.raises(RuntimeError, match="input_h and input_w must be positive"):
        RAW._resize_bilinear_backward.default(x, 2, 0, False)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.large(gib=9)
def test_beyond_two_to_the_31(layout, device):
    """Outputs of 3 x 2^30 elements; every corner and the middle of every channel."""
    x = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]) + 4 * torch.arange(3).view(1, 3, 1, 1)
    x = x.to(device, torch.bfloat16).contiguous(memory_format=layout)
    side = 2**15
    y = ops.resize_bilinear(x, side, align_corners=True)
    assert torch.equal(y[..., :: side - 1, :: side - 1], x)
    middle = y[..., side // 2, side // 2].float().cpu()
    torch.testing.assert_close(middle, torch.tensor([[1.5, 5.5, 9.5]]), rtol=8e-3, atol=0)
    del y
    grad = torch.empty(
        1, 3, side, side, dtype=torch.bfloat16, device=device, memory_format=layout
    ).fill_(1)
    back = RAW._resize_bilinear_backward.default(grad, 2, 2, True).float().cpu()
    torch.testing.assert_close(back, torch.full_like(back, side**2 / 4), rtol=1e-2, atol=0)


def test_cuda_waits_for_nothing_and_is_captured(cuda):
    x, grad = draw((2, 5, 6, 7), (33, 40), torch.float32, cuda)
    wanted = ops.resize_bilinear(x, (33, 40))
    wanted.backward(grad)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize(cuda)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad():
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = ops.resize_bilinear(x, (33, 40))
                back = RAW._resize_bilinear_backward.default(grad, 6, 7, False)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    for _ in range(20):
        graph.replay()
        assert_same_bits(y, wanted)
        assert_same_bits(back, x.grad)
