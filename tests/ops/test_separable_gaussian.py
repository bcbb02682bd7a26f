"""The exact Gaussian over a grid against dense float64 matrices, and its promises."""

from __future__ import annotations

import pytest
import torch

from segkern import ops, reference

SHAPES = [
    ((2, 3, 7), (1.5,)),
    ((1, 2, 9, 65), (3.0, 0.7)),
    ((2, 1, 33, 140), (0.2, 40.0)),
    ((1, 1, 200, 17), (80.0, 4.0)),
    ((1, 2, 4, 5, 6), (1.0, 2.0, 3.0)),
    ((2, 2, 1, 1), (3.0, 3.0)),
    ((1, 3, 12, 1), (2.0, 2.0)),
]


def values_of(shape, seed=0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("shape", "widths"), SHAPES)
def test_values(shape, widths):
    values = values_of(shape)
    wanted = reference.separable_gaussian(values.double(), widths)
    filtered = ops.separable_gaussian(values, widths)
    torch.testing.assert_close(filtered.double(), wanted, rtol=3e-6, atol=1e-6)


def test_sum_over_all_pairs():
    values = values_of((1, 2, 5, 6))
    filtered = ops.separable_gaussian(values, (1.5, 2.5))
    for y in range(5):
        for x in range(6):
            total = torch.zeros(2, dtype=torch.float64)
            for v in range(5):
                for u in range(6):
                    distance = ((x - u) / 1.5) ** 2 + ((y - v) / 2.5) ** 2
                    total += torch.tensor(-distance / 2).double().exp() * values[0, :, v, u]
            torch.testing.assert_close(filtered[0, :, y, x].double(), total, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("shape", "widths"), SHAPES[:5])
def test_gradients(shape, widths):
    values, grad = values_of(shape), values_of(shape, 1)
    own = [values.clone().requires_grad_(), torch.tensor(widths, requires_grad=True)]
    exact = [t.detach().double().requires_grad_() for t in own]
    ops.separable_gaussian(*own).backward(grad)
    reference.separable_gaussian(exact[0], exact[1].unbind()).backward(grad.double())
    for one, other in zip(own, exact, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=5e-6, atol=1e-5)


def test_reference_gradients_are_finite_differences():
    values = values_of((1, 1, 4, 5)).double().requires_grad_()
    widths = torch.tensor([1.5, 2.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda v, w: reference.separable_gaussian(v, w.unbind()), (values, widths)
    )


def test_one_width_for_all_axes():
    values = values_of((1, 1, 6, 8))
    wanted = ops.separable_gaussian(values, (2.0, 2.0))
    assert torch.equal(ops.separable_gaussian(values, 2), wanted)
    width = torch.tensor(2.0, requires_grad=True)
    filtered = ops.separable_gaussian(values, width)
    assert torch.equal(filtered, wanted)
    filtered.sum().backward()
    step = 1e-2
    ends = [ops.separable_gaussian(values, 2 + s * step).double().sum() for s in (1, -1)]
    torch.testing.assert_close(
        width.grad.double(), (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_and_layouts(dtype):
    values = values_of((1, 3, 9, 10)).to(dtype)
    wanted = ops.separable_gaussian(values.float(), 2.0).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.separable_gaussian(values, 2.0), wanted)
    last = values.contiguous(memory_format=torch.channels_last)
    assert torch.equal(ops.separable_gaussian(last, 2.0), wanted)
    assert ops.separable_gaussian(values[:0], 2.0).shape == (0, 3, 9, 10)


def test_same_bits_for_a_batch_and_on_any_number_of_threads():
    values = values_of((16, 2, 70, 90))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together = ops.separable_gaussian(values, 5.0)
        few = ops.separable_gaussian(values[:1, :1], 5.0)
        torch.set_num_threads(1)
        assert torch.equal(ops.separable_gaussian(values, 5.0), together)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(few, together[:1, :1])
    for item in range(16):
        assert torch.equal(ops.separable_gaussian(values[item : item + 1], 5.0)[0], together[item])


def test_opcheck_and_compile():
    raw = torch.ops.segkern.separable_gaussian.default
    values = values_of((1, 2, 5, 6)).requires_grad_()
    widths = torch.tensor([1.0, 2.0], requires_grad=True)
    torch.library.opcheck(raw, (values, widths, -1))
    torch.library.opcheck(raw, (values.detach(), widths.detach(), 1))

    def run(values, widths):
        return ops.separable_gaussian(values, widths)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(values, widths), run(values, widths))


def test_second_derivatives():
    values = values_of((1, 1, 4, 5)).requires_grad_()
    grad = torch.autograd.grad(
        ops.separable_gaussian(values, 1.0).square().sum(), values, create_graph=True
    )[0]
    grad.sum().backward()
    wanted = 2 * ops.separable_gaussian(ops.separable_gaussian(torch.ones(1, 1, 4, 5), 1.0), 1.0)
    torch.testing.assert_close(values.grad, wanted)
    widths = torch.ones(2, requires_grad=True)
    filtered = ops.separable_gaussian(values, widths).square().sum()
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(filtered, widths, create_graph=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("x", 1.0), TypeError, "values must be a Tensor"),
        ((torch.ones(1, 1, 3).int(), 1.0), TypeError, "values must be floating"),
        ((torch.ones(3, 3), 1.0), ValueError, "values must be"),
        ((torch.ones(1, 1, 3, 3), 0.0), ValueError, "sxy must be positive"),
        ((torch.ones(1, 1, 3, 3), -1.0), ValueError, "sxy must be positive"),
        ((torch.ones(1, 1, 3, 3), float("nan")), ValueError, "sxy must be positive"),
        ((torch.ones(1, 1, 3, 3), torch.tensor([1.0, 0.0])), ValueError, "sxy must be positive"),
        ((torch.ones(1, 1, 3, 3), torch.ones(3)), ValueError, "sxy must be"),
        ((torch.ones(1, 1, 3, 3), (1.0, 2.0, 3.0)), ValueError, "sxy must be"),
        ((torch.ones(1, 1, 3, 3), None), TypeError, "sxy must be"),
        ((torch.ones(1, 1, 3, 3), "wide"), TypeError, "sxy must be"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ops.separable_gaussian(*arguments)


def test_wrong_arguments_of_the_raw_operator():
    raw = torch.ops.segkern.separable_gaussian.default
    good = torch.ones(1, 1, 3, 3), torch.ones(2)
    for values, widths, derivative, message in (
        (torch.ones(3, 3), good[1], -1, "values must be"),
        (good[0].double(), good[1], -1, "values must be float32"),
        (good[0], torch.ones(3), -1, "widths must be"),
        (good[0], torch.tensor([1.0, float("nan")]), -1, "widths must be positive"),
        (good[0], good[1], 2, "derivative must be"),
    ):
        with pytest.raises(RuntimeError, match=message):
            raw(values, widths, derivative)


def test_values_that_are_not_finite_stay_where_they_reach():
    values = torch.zeros(1, 1, 40, 40)
    values[0, 0, 3, 3] = float("nan")
    filtered = ops.separable_gaussian(values, 1.0)
    assert bool(filtered[0, 0, 3, 3].isnan())
    assert bool((filtered[0, 0, 20:, 20:] == 0).all())
