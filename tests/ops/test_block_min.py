"""block_min_pool and mixture_mean_field against plain torch in float64, and their promises."""

from __future__ import annotations

import pytest
import torch

from segkern import nn, ops
from segkern.reference import deep_parsing as reference
from tests.opcases import DTYPES, LAYOUTS
from tests.ops.comparisons import assert_error_as_torchs, assert_memory_format, assert_same_bits

# (N, L, H, W) and K; runs of 128 pixels on the CPU, blocks of 256 threads on CUDA.
CASES = [((2, 3, 5, 7), 5), ((1, 1, 1, 1), 1), ((1, 21, 9, 31), 5), ((2, 4, 3, 2), 256)]


def draw(shape, block, dtype, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch, labels, *size = shape
    unary = torch.randn(shape, generator=generator)
    penalty = torch.randn(batch, labels * block, *size, generator=generator)
    penalty[..., :1] = 0.5  # ties
    grad = torch.randn(shape, generator=generator)
    return [t.to(device, dtype) for t in (unary, penalty, grad)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "block"), CASES[:3])
def test_block_min(shape, block, dtype, layout, device):
    _, penalty, grad = draw(shape, block, dtype, device)
    given = LAYOUTS[layout](penalty).detach().requires_grad_()
    out, indices = ops.block_min_pool(given, block)
    wanted, places = reference.block_min_pool(given.detach(), block)
    assert_same_bits(out, wanted)
    assert torch.equal(indices, places)
    assert_memory_format(out, layout)
    out.backward(grad)
    routed = torch.zeros_like(penalty).unflatten(1, (-1, block))
    routed.scatter_(2, places[:, :, None].long(), grad[:, :, None])
    assert torch.equal(given.grad, routed.flatten(1, 2))


def test_block_min_of_nans(device):
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([2.0, nan, nan, 1.0, inf, -inf], device=device).view(1, 6, 1, 1)
    out, indices = ops.block_min_pool(x, 3)
    assert out.flatten()[0].isnan()
    assert out.flatten()[1] == -inf
    assert indices.flatten().tolist() == [1, 2]


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "block"), CASES)
def test_mean_field(shape, block, dtype, log, device):
    unary, penalty, grad = draw(shape, block, dtype, device)

    def run(function, dtype):
        inputs = [t.to(dtype).clone().requires_grad_() for t in (unary, penalty)]
        out = function(*inputs, log=log)
        out.backward(grad.to(dtype))
        return out.detach(), inputs[0].grad, inputs[1].grad

    ours = run(ops.mixture_mean_field, dtype)
    torchs = run(reference.mixture_mean_field, dtype)
    exact = run(reference.mixture_mean_field, torch.float64)
    # Marginals are rounded once, then their gradient uses them.
    for got, plain, want in zip(ours, torchs, exact, strict=True):
        if dtype == torch.float64:
            torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
        elif want.abs().max() > 1e-12:
            assert_error_as_torchs(got, plain, want, k=3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mean_field_layouts(layout, device):
    unary, penalty, _ = draw((2, 3, 5, 7), 5, torch.float32, device)
    unary, costs = LAYOUTS[layout](unary), LAYOUTS[layout](penalty)
    out = ops.mixture_mean_field(unary, costs)
    assert_memory_format(out, layout)
    assert torch.equal(out, ops.mixture_mean_field(unary.contiguous(), costs.contiguous()))
    mixed = ops.mixture_mean_field(unary, costs.contiguous(memory_format=torch.channels_last))
    assert torch.equal(out, mixed)


def test_mean_field_of_unusual_pixels(device):
    inf, nan = float("inf"), float("nan")
    rows = torch.tensor([[0.0, -inf], [-inf, -inf], [nan, 0.0], [inf, 0.0]], device=device)
    unary = rows.T.reshape(1, 2, 1, 4)
    penalty = torch.zeros(1, 2, 1, 4, device=device)
    q = ops.mixture_mean_field(unary, penalty, log=False)[0, :, 0]
    assert q[:, 0].tolist() == [1.0, 0.0]
    assert q[:, 1:].isnan().all()


def test_mixed_types():
    unary, penalty, _ = draw((1, 3, 4, 5), 2, torch.float32, "cpu")
    out = ops.mixture_mean_field(unary, penalty.bfloat16().requires_grad_())
    assert out.dtype == torch.float32
    out.sum().backward()


def test_gradcheck():
    unary, penalty, _ = draw((1, 3, 2, 3), 2, torch.float64, "cpu")
    penalty[..., :1] += torch.linspace(0, 1, 6, dtype=torch.float64).view(1, 6, 1, 1)  # no ties
    inputs = [t.requires_grad_() for t in (unary, penalty)]
    for log in (True, False):
        assert torch.autograd.gradcheck(
            lambda u, p, log=log: ops.mixture_mean_field(u, p, log=log), inputs
        )
    assert torch.autograd.gradcheck(lambda p: ops.block_min_pool(p, 2)[0], inputs[1])


def test_opcheck(device):
    unary, penalty, grad = draw((2, 3, 4, 5), 2, torch.float32, device)
    raw = torch.ops.segkern
    for last in (False, True):
        layout = torch.channels_last if last else torch.contiguous_format
        u, p, g = (t.contiguous(memory_format=layout) for t in (unary, penalty, grad))
        leaves = [t.clone().requires_grad_() for t in (u, p)]
        torch.library.opcheck(raw.block_min_pool.default, (leaves[1], 2))
        out, indices = raw.block_min_pool.default(p, 2)
        torch.library.opcheck(raw._block_min_pool_backward.default, (g, indices, 2))
        for log in (True, False):
            torch.library.opcheck(raw.mixture_mean_field.default, (*leaves, log))
            out, indices = raw.mixture_mean_field.default(u, p, log)
            torch.library.opcheck(
                raw._mixture_mean_field_backward.default, (g, out, indices, 2, log)
            )


def test_compiles_in_one_graph():
    mrf = nn.MixtureMRF(3, mixtures=2, filter_size=4, context_size=3)
    compiled = torch.compile(mrf, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((7, 9), (4, 6)):
        scores, image = torch.randn(1, 3, *size), torch.rand(1, 3, *size)
        arguments = (scores, scores.softmax(1), image)
        torch.testing.assert_close(compiled(*arguments), mrf(*arguments))


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 0, 3, 3), (1, 4, 0, 3)])
def test_without_elements(shape, device):
    x = torch.ones(shape, device=device, requires_grad=True)
    out, indices = ops.block_min_pool(x, 2)
    assert out.shape == indices.shape == (shape[0], shape[1] // 2, *shape[2:])
    out.sum().backward()
    assert x.grad.shape == shape


def test_second_derivatives_are_refused():
    unary, penalty, _ = draw((1, 3, 2, 3), 2, torch.float32, "cpu")
    penalty.requires_grad_()
    for name, out in (
        ("block_min_pool", ops.block_min_pool(penalty, 2)[0]),
        ("mixture_mean_field", ops.mixture_mean_field(unary, penalty)),
    ):
        (grad,) = torch.autograd.grad(out.square().sum(), penalty, create_graph=True)
        with pytest.raises(RuntimeError, match=f"{name}: second derivatives"):
            grad.square().sum().backward()


def test_wrong_arguments():
    x = torch.ones(1, 6, 2, 2)
    for bad, error in ((0, ValueError), (257, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="block_min_pool: block_size must be"):
            ops.block_min_pool(x, bad)
    with pytest.raises(RuntimeError, match="block_min_pool: input must have a multiple"):
        ops.block_min_pool(x, 4)
    with pytest.raises(ValueError, match=r"block_min_pool: input must be \(N, C, H, W\)"):
        ops.block_min_pool(x[0], 2)
    with pytest.raises(TypeError, match="block_min_pool: input must be floating"):
        ops.block_min_pool(x.int(), 2)
    with pytest.raises(TypeError, match="mixture_mean_field: penalty must be a Tensor"):
        ops.mixture_mean_field(x, 1.0)
    for unary in (torch.ones(1, 4, 2, 2), torch.ones(2, 6, 2, 2), torch.ones(1, 0, 2, 2)):
        with pytest.raises(RuntimeError, match="mixture_mean_field: penalty must be"):
            ops.mixture_mean_field(unary, x)
    with pytest.raises(RuntimeError, match="K must be from 1 to 256"):
        ops.mixture_mean_field(torch.ones(1, 1, 2, 2), torch.ones(1, 300, 2, 2))
    raw = torch.ops.segkern
    codes = torch.zeros(1, 6, 2, 2, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="indices must be"):
        raw._block_min_pool_backward.default(x, codes.int(), 2)
    with pytest.raises(RuntimeError, match="mixtures must be from 1 to 256"):
        raw._mixture_mean_field_backward.default(x, x, codes, 0, True)
    # A code beyond the block names no element.
    assert not raw._block_min_pool_backward.default(x, codes + 9, 2).any()
