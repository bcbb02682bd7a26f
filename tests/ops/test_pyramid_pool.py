"""pyramid_pool against float64 matrices and torch, and its promises."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from resampling import cell_matrix, run_at_several_threads

from segkern import ops
from tests.opcases import DTYPES, LAYOUTS
from tests.ops.comparisons import assert_memory_format, assert_same_bits

# Cells that divide the map and that overlap, more cells than pixels, one pixel, few and many
# channels, one grid, and the most cells.
CASES = [
    ((2, 3, 12, 18), (1, 2, 3, 6)),
    ((1, 20, 13, 7), (1, 2, 3, 6)),
    ((2, 130, 4, 5), (6, 1)),
    ((1, 2, 1, 1), (1, 2, 3)),
    ((3, 1, 61, 60), (5,)),
    ((1, 2, 70, 65), (64, 50, 14)),
]
RAW = torch.ops.segkern


def draw(shape, bins, dtype, device, layout="contiguous"):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device, dtype)
    grads = [torch.randn(*shape[:2], b, b, generator=generator).to(device, dtype) for b in bins]
    return LAYOUTS[layout](x).detach().requires_grad_(), grads


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "bins"), CASES)
def test_values_and_gradients(shape, bins, dtype, layout, device):
    x, grads = draw(shape, bins, dtype, device, layout)
    maps = ops.pyramid_pool(x, bins)
    torch.autograd.backward(maps, grads)
    if shape[2:] != (1, 1):
        assert_memory_format(x.grad, layout)
    exact = x.detach().cpu().double()
    wanted_grad = torch.zeros_like(exact)
    half = torch.finfo(dtype).eps / 2 if dtype.itemsize == 2 else 0.0
    slack = 16 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    for y, b, grad in zip(maps, bins, grads, strict=True):
        assert y.shape == (*shape[:2], b, b)
        assert y.dtype == dtype
        down, across = cell_matrix(shape[2], b), cell_matrix(shape[3], b)
        wanted = down @ exact @ across.T
        torch.testing.assert_close(wanted, F.adaptive_avg_pool2d(exact, b))
        error = (y.detach().cpu().double() - wanted).abs().max()
        assert error <= (half + slack) * exact.abs().max()
        # Half gradients of cells are rounded to half before they are added up.
        wanted_grad += down.T @ grad.cpu().double() @ across
    scale = wanted_grad.abs().max() + sum(
        (cell_matrix(shape[2], b).T @ g.abs().cpu().double() @ cell_matrix(shape[3], b)).max()
        for b, g in zip(bins, grads, strict=True)
    )
    assert (x.grad.cpu().double() - wanted_grad).abs().max() <= (half + slack) * scale


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, device):
    x, _ = draw((2, 20, 9, 10), (1, 2), torch.float32, device)
    given = LAYOUTS[layout](x.detach())
    last = torch.channels_last if "channels_last" in layout else torch.contiguous_format
    for got, want in zip(
        ops.pyramid_pool(given), ops.pyramid_pool(given.contiguous(memory_format=last)), strict=True
    ):
        assert_same_bits(got, want)
        assert got[0].stride()[0] == (1 if "channels_last" in layout else 50)
    packed = torch.randn(2, 20, 50, 1, device=device)
    back = RAW._pyramid_pool_backward.default
    got = back(LAYOUTS[layout](packed), [1, 2, 3, 6], 9, 10)
    same = LAYOUTS[layout](packed).contiguous(memory_format=last)
    assert_same_bits(got, back(same, [1, 2, 3, 6], 9, 10))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_of_gradients(layout):
    for shape, bins in (((1, 2, 4, 3), (1, 2)), ((1, 3, 2, 2), (3,))):
        x, _ = draw(shape, bins, torch.float64, "cpu", layout)
        assert torch.autograd.gradcheck(lambda x, b=bins: ops.pyramid_pool(x, b), x)
        assert torch.autograd.gradgradcheck(lambda x, b=bins: ops.pyramid_pool(x, b), x)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_and_batches_change_no_bit(dtype, layout):
    x, grads = draw((2, 70, 31, 42), (1, 2, 3, 6), dtype, "cpu", layout)

    def both(x=x, grads=grads):
        x = x.detach().requires_grad_()
        maps = ops.pyramid_pool(x)
        return [*(m.detach() for m in maps), *torch.autograd.grad(maps, x, grads)]

    whole = run_at_several_threads(both)
    for n in range(2):
        own = slice(n, n + 1)
        for one, all_ in zip(both(x[own], [g[own] for g in grads]), whole, strict=True):
            assert_same_bits(one, all_[own])


def test_opcheck(device):
    x, _ = draw((2, 3, 7, 9), (), torch.float32, device)
    grad = torch.randn(2, 3, 5, 1, device=device)
    for last in (False, True):
        layout = torch.channels_last if last else torch.contiguous_format
        given = x.detach().contiguous(memory_format=layout).requires_grad_()
        torch.library.opcheck(RAW.pyramid_pool.default, (given, [1, 2]))
        given = grad.contiguous(memory_format=layout).requires_grad_()
        torch.library.opcheck(RAW._pyramid_pool_backward.default, (given, [1, 2], 7, 9))


class Levels(torch.nn.Module):
    def forward(self, x):
        return torch.cat([m.flatten(2) for m in ops.pyramid_pool(x)], dim=2)


def test_compile_and_export_with_any_size():
    compiled = torch.compile(Levels(), fullgraph=True, dynamic=True, backend="aot_eager")
    sizes = {2: torch.export.Dim("h", min=2), 3: torch.export.Dim("w", min=2)}
    exported = torch.export.export(
        Levels(), (torch.randn(2, 3, 8, 9),), dynamic_shapes={"x": sizes}
    ).module()
    for shape in ((2, 3, 8, 9), (2, 3, 5, 13)):
        x = torch.randn(shape, requires_grad=True)
        wanted = Levels()(x)
        assert torch.equal(compiled(x), wanted)
        assert torch.equal(exported(x), wanted)
        (grad,) = torch.autograd.grad(compiled(x).square().sum(), x)
        (wanted_grad,) = torch.autograd.grad(wanted.square().sum(), x)
        torch.testing.assert_close(grad, wanted_grad)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5)])
def test_without_elements(shape, device):
    x = torch.ones(shape, device=device, requires_grad=True)
    maps = ops.pyramid_pool(x, (1, 3))
    assert [tuple(m.shape) for m in maps] == [(*shape[:2], 1, 1), (*shape[:2], 3, 3)]
    sum(m.sum() for m in maps).backward()
    assert x.grad.shape == shape


def test_infinities_stay_in_their_cells(device):
    x = torch.zeros(1, 2, 6, 6, device=device)
    x[:, :, 1, 4] = torch.inf
    one, two, three, six = ops.pyramid_pool(x)
    assert one.isinf().all()
    assert two.isinf().flatten().nonzero().flatten().tolist() == [1, 5]
    assert three.isinf()[0, 0].nonzero().tolist() == [[0, 2]]
    assert six.isinf()[0, 0].nonzero().tolist() == [[1, 4]]
    assert not torch.cat([m.flatten() for m in (two, three, six)]).isnan().any()


def test_wrong_arguments(device):
    x = torch.ones(1, 2, 3, 4, device=device)
    for bad in ((), (0,), (65,), (1,) * 9):
        with pytest.raises(ValueError, match="pyramid_pool: bins must be"):
            ops.pyramid_pool(x, bad)
    for bad in ((1.0,), (True,), None, "12"):
        with pytest.raises(TypeError, match="pyramid_pool: bins must be integers"):
            ops.pyramid_pool(x, bad)
    with pytest.raises(ValueError, match="pyramid_pool: bins must add up to at most 128"):
        ops.pyramid_pool(x, (64, 64, 1))
    with pytest.raises(ValueError, match=r"pyramid_pool: input must be \(N, C, H, W\), got"):
        ops.pyramid_pool(x[0])
    with pytest.raises(TypeError, match="pyramid_pool: input must be float64, float32"):
        ops.pyramid_pool(x.int())
    with pytest.raises(RuntimeError, match="with at least one row and column"):
        ops.pyramid_pool(x[:, :, :0])
    with pytest.raises(RuntimeError, match="bins must be 1 to 8 numbers, got"):
        RAW.pyramid_pool.default(x, [])
    with pytest.raises(RuntimeError, match="bins must add up to at most 128"):
        RAW.pyramid_pool.default(x, [64, 64, 1])
    with pytest.raises(RuntimeError, match=r"grad must be \(N, C, 5, 1\), got \(1, 2, 3, 4\)"):
        RAW._pyramid_pool_backward.default(x, [1, 2], 4, 4)


def test_cuda_waits_for_nothing_and_is_captured(cuda):
    x, grads = draw((2, 5, 31, 42), (1, 2, 3, 6), torch.float32, cuda)
    wanted = ops.pyramid_pool(x)
    torch.autograd.backward(wanted, grads)
    packed = torch.cat([g.flatten(2) for g in grads], 2).unsqueeze(-1)
    torch.cuda.synchronize(cuda)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            maps = ops.pyramid_pool(x)
            back = RAW._pyramid_pool_backward.default(packed, [1, 2, 3, 6], 31, 42)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    for _ in range(20):
        graph.replay()
        for got, want in zip(maps, wanted, strict=True):
            assert_same_bits(got, want)
        assert_same_bits(back, x.grad)
