"""Backward passes of the fused and grouped atrous operators: right, repeatable, and frugal."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from atrous import assert_close

from segkern import ops
from segkern.ops import conv_table


@pytest.fixture(autouse=True)
def _our_kernels():
    with conv_table.override(**dict.fromkeys(conv_table.KINDS, "segkern")):
        yield


def leaf(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("activation", [None, "relu", "prelu"])
def test_separable_gradcheck(activation):
    torch.manual_seed(0)
    tensors = (leaf(1, 2, 3, 4), leaf(2, 1, 3, 3), leaf(3, 2, 1, 1), leaf(2), leaf(3))
    residual = leaf(1, 3, 3, 4)

    def call(x, taps, square, inner, outer, residual):
        prelu = activation == "prelu"
        return ops.atrous_separable_conv2d(
            x,
            taps,
            square,
            padding=2,
            dilation=2,
            depthwise_scale=inner,
            depthwise_shift=inner,
            depthwise_activation=activation,
            depthwise_activation_weight=inner if prelu else None,
            scale=outer,
            shift=outer,
            residual=residual,
            activation=activation,
            activation_weight=outer if prelu else None,
        )

    assert torch.autograd.gradcheck(call, (*tensors, residual), fast_mode=activation is None)
    if activation == "relu":
        assert torch.autograd.gradgradcheck(call, (*tensors, residual), fast_mode=True)


@pytest.mark.parametrize("hierarchical", [True, False])
@pytest.mark.parametrize("activation", [None, "relu", "prelu"])
def test_esp_gradcheck(activation, hierarchical):
    torch.manual_seed(1)
    x, reduce, vector = leaf(1, 3, 3, 4), leaf(2, 3, 1, 1), leaf(4)
    residual, branches = leaf(1, 4, 3, 4), [leaf(1, 2, 3, 3) for _ in range(4)]

    def call(x, reduce, vector, residual, *branches):
        return ops.esp_block(
            x,
            reduce,
            branches,
            residual=residual,
            scale=vector,
            shift=vector,
            hierarchical=hierarchical,
            activation=activation,
            activation_weight=vector if activation == "prelu" else None,
        )

    assert torch.autograd.gradcheck(call, (x, reduce, vector, residual, *branches))
    if activation is None and hierarchical:
        assert torch.autograd.gradgradcheck(
            call, (x, reduce, vector, residual, *branches), fast_mode=True
        )


def test_some_gradients_only():
    """A weight alone, one branch alone: the others get none, and what is asked for is right."""
    torch.manual_seed(2)
    x, reduce = torch.randn(1, 6, 7, 9), torch.randn(3, 6, 1, 1)
    weights = [torch.randn(2, 3, 3, 3) for _ in range(3)]
    weights[1].requires_grad_()
    (of_one,) = torch.autograd.grad(ops.esp_block(x, reduce, weights).sum(), weights[1])
    with conv_table.override(esp="torch"):
        (expected,) = torch.autograd.grad(ops.esp_block(x, reduce, weights).sum(), weights[1])
    torch.testing.assert_close(of_one, expected, rtol=1e-4, atol=1e-4)
    taps, square = torch.randn(6, 1, 3, 3), torch.randn(4, 6, 1, 1, requires_grad=True)
    result = ops.atrous_separable_conv2d(x, taps, square, depthwise_activation="relu")
    (of_square,) = torch.autograd.grad(result.sum(), square)
    hidden = F.conv2d(x, taps, groups=6).relu()
    (expected,) = torch.autograd.grad(F.conv2d(hidden, square).sum(), square)
    torch.testing.assert_close(of_square, expected, rtol=1e-4, atol=1e-4)


def saved_bytes(call) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return sum(kept.values())


def test_nothing_between_is_kept():
    """Inputs, weights and the output, but no hidden or reduced map."""
    x = leaf(1, 16, 20, 24, dtype=torch.float32)
    taps, square = leaf(16, 1, 3, 3, dtype=torch.float32), leaf(8, 16, 1, 1, dtype=torch.float32)
    branches = [leaf(4, 8, 3, 3, dtype=torch.float32) for _ in range(4)]
    vector = torch.rand(16)

    def separable():
        return ops.atrous_separable_conv2d(
            x, taps, square, padding=6, dilation=6, depthwise_activation="relu", activation="relu"
        )

    def esp():
        return ops.esp_block(
            x,
            square,
            branches,
            residual=True,
            scale=vector,
            shift=vector,
            activation="prelu",
            activation_weight=vector,
        )

    slack = 12_000  # the weights
    assert saved_bytes(separable) <= x.nbytes + separable().nbytes + slack
    assert saved_bytes(esp) <= x.nbytes + slack
    with conv_table.override(separable="torch", esp="torch"):
        assert saved_bytes(separable) > x.nbytes + separable().nbytes + slack


def test_backward_gives_the_same_bits():
    torch.manual_seed(3)
    x = leaf(2, 16, 33, 41, dtype=torch.float32)
    taps, square = leaf(16, 1, 3, 3, dtype=torch.float32), leaf(8, 16, 1, 1, dtype=torch.float32)
    branches = [leaf(4, 8, 3, 3, dtype=torch.float32) for _ in range(4)]
    few = leaf(16, 4, 3, 3, dtype=torch.float32)
    calls = [
        (
            lambda: ops.atrous_separable_conv2d(x, taps, square, padding=6, dilation=6),
            [taps, square],
        ),
        (lambda: ops.esp_block(x, square, branches, residual=True), [square, *branches]),
        (lambda: ops.atrous_conv2d(x, few, padding=6, dilation=6, groups=4), [few]),
    ]
    for call, weights in calls:
        first = None
        for _ in range(5):
            y = call()
            grads = torch.autograd.grad(y, [x, *weights], y.detach())
            first = first or grads
            assert all(torch.equal(a, b) for a, b in zip(grads, first, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_grouped(dtype):
    """Values and gradients at random windows, small and large planes, with an epilogue."""
    rng = random.Random(str(dtype))
    torch.manual_seed(4)
    for _ in range(14):
        groups, inputs, outputs = rng.choice([1, 3]), rng.choice([2, 5, 32]), rng.choice([1, 4, 17])
        plane = rng.choice([(1, 1), (7, 20), (33, 41), (40, 300)])
        stride, rate, kernel = (
            rng.choice([1, 2, (1, 3)]),
            rng.choice([1, 6, 50]),
            rng.choice([1, 3]),
        )
        window = {"stride": stride, "padding": rate * (kernel // 2), "dilation": rate}
        x = torch.randn(2, groups * inputs, *plane).to(dtype).requires_grad_()
        weight = torch.randn(groups * outputs, inputs, kernel, kernel) / (kernel * inputs**0.5)
        weight = weight.to(dtype).requires_grad_()
        shift = torch.randn(groups * outputs)
        tail = {"shift": shift, "activation": rng.choice([None, "relu"])}
        if groups == 1:  # an operator of its own, below the table's kind
            wide = [1, 1] if stride == 1 else [2, 2] if stride == 2 else [1, 3]
            both = [window["padding"]] * 2, [rate] * 2
            result = torch.ops.segkern.grouped_conv2d(
                x,
                weight,
                None,
                shift,
                None,
                None,
                wide,
                *both,
                1,
                int(tail["activation"] == "relu"),
            )
        else:
            result = ops.atrous_conv2d(x, weight, groups=groups, **window, **tail)
        exact = [t.detach().double().requires_grad_() for t in (x, weight)]
        expected = F.conv2d(*exact, shift.double(), **window, groups=groups)
        expected = expected.relu() if tail["activation"] else expected
        assert_close(result.detach(), expected.detach(), dtype)
        upper = torch.randn_like(expected).to(dtype) * (result.detach() != 0)
        given = torch.autograd.grad(result, (x, weight), upper)
        wanted = torch.autograd.grad(expected, exact, upper.double())
        for ours, theirs in zip(given, wanted, strict=True):
            limit = {torch.float64: 1e-10, torch.float32: 4e-5}.get(dtype, 1.2e-2)
            assert (ours.double() - theirs).abs().max() <= limit * (1 + theirs.abs().max())


def test_grouped_layouts_and_double_backward():
    torch.manual_seed(5)
    x, weight = leaf(1, 4, 4, 5), leaf(6, 2, 3, 3)

    def call(x, weight):
        return ops.atrous_conv2d(x, weight, padding=2, dilation=2, groups=2)

    assert torch.autograd.gradgradcheck(call, (x, weight))
    last = x.detach().contiguous(memory_format=torch.channels_last)
    result = call(last, weight)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, F.conv2d(last, weight, None, 1, 2, 2, 2))
    window = ([1, 1], [2, 2], [2, 2], 2)
    native = torch.ops.segkern
    for operator, given in (
        (native.grouped_conv2d, (last, weight.detach(), *(None,) * 4, *window, 0)),
        (native._grouped_conv2d_grad_input, (result.detach(), weight.detach(), 4, 5, *window)),
        (native._grouped_conv2d_grad_weight, (result.detach(), last, 3, 3, *window)),
    ):
        torch.library.opcheck(operator.default, given, test_utils="test_faketensor")


def test_opcheck():
    torch.manual_seed(6)
    window = ([1, 1], [2, 2], [2, 2])
    x, few = leaf(2, 4, 7, 9, dtype=torch.float32), leaf(4, 2, 3, 3, dtype=torch.float32)
    vector, square = torch.rand(4), leaf(4, 4, 1, 1, dtype=torch.float32)
    taps, dense = leaf(4, 1, 3, 3, dtype=torch.float32), leaf(2, 4, 3, 3, dtype=torch.float32)
    none = (None,) * 4
    cases = {
        "grouped_conv2d": (x, few, vector, vector, x, vector, *window, 2, 2),
        "_grouped_conv2d_grad_input": (x, few, 7, 9, *window, 2),
        "_grouped_conv2d_grad_weight": (x, x, 3, 3, *window, 2),
        "separable_conv2d": (x, taps, vector, vector, None, square, *none, *window, 1, 1),
        "esp_pyramid": (x, square, [dense, dense], [1, 1, 2, 2], x, *none[1:], True, 1),
    }
    for name, given in cases.items():
        results = torch.library.opcheck(getattr(torch.ops.segkern, name).default, given)
        assert set(results.values()) == {"SUCCESS"}, (name, results)
