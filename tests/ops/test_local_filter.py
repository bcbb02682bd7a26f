"""local_quadratic_filter against the float64 sum over the window, and its promises."""

from __future__ import annotations

import pytest
import torch

from segkern import nn, ops
from segkern.reference import deep_parsing as reference
from tests.opcases import LAYOUTS

# Shapes over more than a band of 128 rows, windows of both parities and beyond the plane.
CASES = [
    ((2, 3, 11, 13), 3, (50, 50)),
    ((1, 2, 15, 17), 3, (4, 7)),
    ((1, 1, 140, 3), 1, (12, 2)),
    ((1, 2, 6, 40), 4, (1, 9)),
    ((1, 2, 5, 6), 2, (3, 200)),
    ((1, 1, 1, 1), 3, (50, 50)),
]


def inputs(shape, colours=3, dtype=torch.float64, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.rand(shape, generator=generator).to(device, dtype)
    image = torch.rand(shape[0], colours, *shape[2:], generator=generator).to(device)
    return q, image.double() if dtype == torch.float64 else image


def compare(q, image, weights, kernel, multiply):
    """Largest errors of result and gradients relative to the largest of each."""
    generator = torch.Generator().manual_seed(9)
    grad = torch.randn(q.shape, generator=generator, dtype=torch.float64).to(q.device, q.dtype)
    own = [t.clone().requires_grad_() for t in (q, *weights)]
    out = ops.local_quadratic_filter(own[0], image, *own[1:], kernel, multiply=multiply)
    out.backward(grad)
    exact = [t.double().clone().requires_grad_() for t in (q, weights)]
    wanted = reference.local_quadratic_filter(
        exact[0], image.double(), exact[1], kernel, multiply=multiply
    )
    wanted.backward(grad.double())
    got_weights = torch.stack([own[1].grad, own[2].grad])
    errors = []
    for got, want in ((out, wanted), (own[0].grad, exact[0].grad), (got_weights, exact[1].grad)):
        assert got.shape == want.shape
        scale = max(want.abs().max().item(), 1e-3)
        errors.append((got.double() - want).abs().max().item() / scale)
    assert out.dtype == q.dtype
    return errors


@pytest.mark.parametrize("multiply", [True, False])
@pytest.mark.parametrize(("shape", "colours", "kernel"), CASES)
def test_values_and_gradients(shape, colours, kernel, multiply, device):
    q, image = inputs(shape, colours, device=device)
    weights = torch.tensor([0.8, -0.3], dtype=torch.float64, device=device)
    assert max(compare(q, image, weights, kernel, multiply)) < 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_small_types_lose_only_the_last_rounding(dtype, device):
    """Sums are kept in double, so one rounding to the type is all that is lost."""
    q, image = inputs((1, 2, 30, 34), dtype=dtype, device=device)
    weights = torch.tensor([0.8, 0.01], dtype=torch.float64, device=device)
    for multiply in (True, False):
        out, grad, grad_weights = compare(q, image, weights, (50, 50), multiply)
        assert out <= torch.finfo(dtype).eps / 2 + 1e-10
        assert grad <= torch.finfo(dtype).eps / 2 + 1e-6
        assert grad_weights <= 1e-10


def test_nothing_is_left_where_the_expansion_cancels(device):
    """Nearly equal colours far from 0: the terms of the expansion are 2e9 times their sum."""
    generator = torch.Generator().manual_seed(0)
    q = torch.rand(1, 1, 40, 300, generator=generator).to(device)
    image = (200 + 0.01 * torch.rand(1, 3, 40, 300, generator=generator)).to(device)
    out = ops.local_quadratic_filter(q, image, 1.0, 0.0, 20, multiply=False)
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64, device=device)
    wanted = reference.local_quadratic_filter(
        q.double(), image.double(), weights, (20, 20), multiply=False
    )
    torch.testing.assert_close(out.double(), wanted, rtol=1e-4, atol=0)
    # And positions alone, on a plane of a thousand columns.
    ones = torch.ones(1, 1, 3, 1000, device=device)
    out = ops.local_quadratic_filter(ones, 0 * ones, 0.0, 1.0, (1, 3))
    wanted = torch.full_like(ones, 2.0)
    wanted[..., 0] = wanted[..., -1] = 1.0
    torch.testing.assert_close(out, wanted, rtol=1e-6, atol=0)


def test_even_window_and_its_mirror(device):
    """A pixel's window of 50 reaches from -25 to 24; the gradient takes the mirrored one."""
    q = torch.zeros(1, 1, 101, 1, device=device)
    q[0, 0, 50] = 1
    q.requires_grad_()
    image = torch.zeros(1, 1, 101, 1, device=device)
    out = ops.local_quadratic_filter(q, image, 0.0, 1.0, 50, multiply=False)
    reached = (out[0, 0, :, 0] > 0.5).nonzero().flatten() - 50
    assert (reached.min().item(), reached.max().item()) == (-24, 25)
    out[0, 0, 50, 0].backward()
    reached = (q.grad[0, 0, :, 0] > 0.5).nonzero().flatten() - 50
    assert (reached.min().item(), reached.max().item()) == (-25, 24)


def test_gradcheck():
    q, image = inputs((1, 2, 4, 5))
    weights = torch.tensor([0.8, 0.3], dtype=torch.float64)
    for multiply in (True, False):

        def run(q, colour, position, multiply=multiply):
            return ops.local_quadratic_filter(q, image, colour, position, (4, 3), multiply=multiply)

        arguments = [t.clone().requires_grad_() for t in (q, *weights)]
        assert torch.autograd.gradcheck(run, arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, device):
    q, image = inputs((2, 3, 7, 9), dtype=torch.float32, device=device)
    q, image = LAYOUTS[layout](q), LAYOUTS[layout](image)
    out = ops.local_quadratic_filter(q, image, 1.0, 0.1, 5)
    assert out.is_contiguous()
    dense = ops.local_quadratic_filter(q.contiguous(), image.contiguous(), 1.0, 0.1, 5)
    assert torch.equal(out, dense)


def test_opcheck(device):
    q, image = inputs((1, 2, 5, 6), dtype=torch.float32, device=device)
    weights = torch.tensor([0.8, 0.3], dtype=torch.float64, device=device, requires_grad=True)
    forward = torch.ops.segkern.local_quadratic_filter.default
    backward = torch.ops.segkern._local_quadratic_filter_backward.default
    for multiply in (True, False):
        torch.library.opcheck(
            forward, (q.clone().requires_grad_(), image, weights, [4, 3], multiply)
        )
        torch.library.opcheck(backward, (q, q, image, weights.detach(), [4, 3], multiply))


def test_compiles_in_one_graph():
    q, image = inputs((1, 2, 9, 11), dtype=torch.float32)
    layer = nn.LocalQuadraticFilter(6)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((9, 11), (5, 8)):
        arguments = (q[..., : size[0], : size[1]].contiguous(), image[..., : size[0], : size[1]])
        torch.testing.assert_close(compiled(*arguments), layer(*arguments))


def test_threads_and_repeats_give_the_same_bits():
    q, image = inputs((2, 3, 150, 21), dtype=torch.float32)
    q.requires_grad_()
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            weight = torch.tensor(0.5, requires_grad=True)
            out = ops.local_quadratic_filter(q, image, weight, 0.1, 9)
            found.append((out, *torch.autograd.grad(out.square().sum(), (q, weight))))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("shape", [(0, 2, 4, 5), (2, 0, 4, 5), (2, 2, 0, 5)])
def test_without_elements(shape, device):
    q, image = inputs(shape, device=device)
    weight = torch.ones((), dtype=torch.float64, device=device, requires_grad=True)
    out = ops.local_quadratic_filter(q.requires_grad_(), image, weight, 1.0)
    assert out.shape == shape
    out.sum().backward()
    assert q.grad.shape == shape
    assert weight.grad.item() == 0.0


def test_a_nan_stays_in_its_plane():
    q, image = inputs((2, 2, 6, 7), dtype=torch.float32)
    q[0, 1, 2, 3] = float("nan")
    out = ops.local_quadratic_filter(q, image, 1.0, 1.0, 3)
    assert out[0, 1].isnan().any()
    assert out[0, 0].isfinite().all()
    assert out[1].isfinite().all()


def test_second_derivatives_are_refused():
    q, image = inputs((1, 1, 4, 5))
    out = ops.local_quadratic_filter(q.requires_grad_(), image, 1.0, 1.0, 3)
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": "x"}, TypeError, "input must be a Tensor"),
        ({"input": torch.ones(1, 2, 4, 5).int()}, TypeError, "input must be floating"),
        ({"input": torch.ones(2, 4, 5)}, ValueError, "input must have 4 axes"),
        ({"image": None}, TypeError, "image must be a Tensor"),
        ({"image": torch.ones(1, 3, 4, 6)}, RuntimeError, "image must be"),
        ({"image": torch.ones(1, 5, 4, 5)}, RuntimeError, "image must be"),
        ({"image": torch.ones(2, 3, 4, 5)}, RuntimeError, "image must be"),
        ({"colour_weight": torch.ones(2)}, ValueError, "colour_weight must be"),
        ({"position_weight": "1"}, TypeError, "position_weight must be"),
        ({"kernel_size": 0}, ValueError, "kernel_size must be at least 1"),
        ({"kernel_size": (3, 3, 3)}, ValueError, "kernel_size must be"),
        ({"kernel_size": 2**40}, RuntimeError, "kernel_size must be"),
    ],
)
def test_wrong_arguments(change, error, message):
    arguments = {
        "input": torch.ones(1, 2, 4, 5),
        "image": torch.ones(1, 3, 4, 5),
        "colour_weight": 1.0,
        "position_weight": 1.0,
    }
    with pytest.raises(error, match=f"local_quadratic_filter: {message}"):
        ops.local_quadratic_filter(**{**arguments, **change})


def test_raw_calls_are_checked():
    q, image = inputs((1, 2, 4, 5), dtype=torch.float32)
    weights = torch.ones(2, dtype=torch.float64)
    forward = torch.ops.segkern.local_quadratic_filter.default
    backward = torch.ops.segkern._local_quadratic_filter_backward.default
    with pytest.raises(RuntimeError, match="weights must be float64"):
        forward(q, image, weights.float(), [3, 3], True)
    with pytest.raises(RuntimeError, match="image must be"):
        forward(q, image.double(), weights, [3, 3], True)
    with pytest.raises(RuntimeError, match="kernel_size must be two"):
        forward(q, image, weights, [3], True)
    with pytest.raises(RuntimeError, match="grad must be like input"):
        backward(q[..., :4], q, image, weights, [3, 3], True)
    with pytest.raises(RuntimeError, match="input must be float64, float32"):
        forward(q.to(torch.float8_e4m3fn), image, weights, [3, 3], True)


def test_cuda_refuses_very_wide_windows(cuda):
    q, image = inputs((1, 1, 4, 5), dtype=torch.float32, device=cuda)
    with pytest.raises(RuntimeError, match="at most 192 wide"):
        ops.local_quadratic_filter(q, image, 1.0, 1.0, (3, 193))


def test_cuda_gives_the_cpus_numbers(cuda):
    q, image = inputs((2, 5, 130, 300), dtype=torch.float32)
    here = ops.local_quadratic_filter(q, image, 1.0, 0.01)
    there = ops.local_quadratic_filter(q.to(cuda), image.to(cuda), 1.0, 0.01)
    torch.testing.assert_close(there.cpu(), here, rtol=3e-7, atol=0)
