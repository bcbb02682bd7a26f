"""dynamic_conv against torch's convolution image by image."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from segkern import ops


def data(device, counts, kernel_size=1, channels=4, size=(5, 6), dtype=torch.float64):
    torch.manual_seed(0)
    features = torch.randn(len(counts), channels, *size, dtype=dtype)
    kernels = torch.randn(sum(counts), channels * kernel_size**2, dtype=dtype)
    return features.to(device), kernels.to(device)


def slow(features, kernels, counts, kernel_size):
    """One kernel at a time, each tap by itself."""
    out, first, reach = [], 0, kernel_size // 2
    padded = F.pad(features, (reach,) * 4)
    height, width = features.shape[-2:]
    for image, count in enumerate(counts):
        for kernel in kernels[first : first + count]:
            total = torch.zeros_like(features[0, 0])
            values = iter(kernel)
            for channel in padded[image]:
                for row in range(kernel_size):
                    for column in range(kernel_size):
                        window = channel[row : row + height, column : column + width]
                        total = total + next(values) * window
            out.append(total)
        first += count
    return torch.stack(out)


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("counts", [(2, 0, 3), (1,), (0, 1)])
def test_values_and_gradients(device, counts, kernel_size):
    features, kernels = data(device, counts, kernel_size)
    features.requires_grad_(), kernels.requires_grad_()
    got = ops.dynamic_conv(features, kernels, counts, kernel_size=kernel_size)
    wanted = slow(features, kernels, counts, kernel_size)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    weight = torch.rand_like(wanted)
    slopes = torch.autograd.grad((got * weight).sum(), (features, kernels))
    expected = torch.autograd.grad((wanted * weight).sum(), (features, kernels))
    for mine, theirs in zip(slopes, expected):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_second_derivatives(kernel_size):
    features, kernels = data("cpu", [2, 0, 1], kernel_size, channels=2, size=(2, 3))
    inputs = (features.requires_grad_(), kernels.requires_grad_())

    def call(features, kernels):
        return ops.dynamic_conv(features, kernels, [2, 0, 1], kernel_size=kernel_size)

    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_layouts(device, kernel_size):
    counts = [1, 2]
    features, kernels = data(device, counts, kernel_size)
    wanted = ops.dynamic_conv(features, kernels, counts, kernel_size=kernel_size)
    transposed = kernels.T.contiguous().T
    for other in (
        features.contiguous(memory_format=torch.channels_last),
        torch.cat([features, features], 3)[..., :6],
    ):
        got = ops.dynamic_conv(other, transposed, counts, kernel_size=kernel_size)
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_no_kernels(device, kernel_size):
    features, kernels = data(device, [0, 0], kernel_size)
    features.requires_grad_(), kernels.requires_grad_()
    masks = ops.dynamic_conv(features, kernels, [0, 0], kernel_size=kernel_size)
    assert masks.shape == (0, 5, 6)
    masks.sum().backward()
    assert (features.grad == 0).all() and kernels.grad.shape == kernels.shape
    none = ops.dynamic_conv(features[:0], kernels, [], kernel_size=kernel_size)
    assert none.shape == (0, 5, 6)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_only_what_is_needed_has_a_gradient(kernel_size):
    features, kernels = data("cpu", [2, 1], kernel_size)
    kernels.requires_grad_()
    ops.dynamic_conv(features, kernels, [2, 1], kernel_size=kernel_size).sum().backward()
    assert features.grad is None and kernels.grad is not None


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_autocast(device, kernel_size):
    features, kernels = data(device, [2, 1], kernel_size, dtype=torch.float32)
    with torch.autocast(device.type, torch.bfloat16):
        got = ops.dynamic_conv(features, kernels, [2, 1], kernel_size=kernel_size)
        mixed = ops.dynamic_conv(features.bfloat16(), kernels, [2, 1], kernel_size=kernel_size)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, mixed)
    wanted = slow(features.bfloat16().double(), kernels.bfloat16().double(), [2, 1], kernel_size)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-2, atol=5e-2)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_compiles(kernel_size):
    features, kernels = data("cpu", [2, 0, 3], kernel_size)
    features.requires_grad_(), kernels.requires_grad_()

    def call(features, kernels):
        return ops.dynamic_conv(features, kernels, [2, 0, 3], kernel_size=kernel_size)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    results = [f(features, kernels) for f in (call, compiled)]
    torch.testing.assert_close(*results)
    slopes = [torch.autograd.grad(r.square().sum(), (features, kernels)) for r in results]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"features": 1}, TypeError, "features must be a Tensor, got int"),
        ({"features": torch.zeros(2, 4, 5)}, ValueError, r"features must be \(N, E, H, W\)"),
        ({"features": torch.zeros(2, 4, 5, 6).int()}, TypeError, "features must be floating"),
        ({"kernels": torch.zeros(3)}, ValueError, r"kernels must be \(M, E k k\)"),
        ({"kernels": torch.zeros(3, 5)}, ValueError, "kernels must have 4 values"),
        ({"kernels": torch.zeros(3, 4).half()}, TypeError, "kernels must be torch.float32"),
        ({"kernel_size": 3}, ValueError, "kernels must have 36 values"),
        ({"kernel_size": 2}, ValueError, "kernel_size must be 1 or 3, got 2"),
        ({"counts": torch.tensor([1, 2])}, TypeError, "counts must be a list of ints, got Tensor"),
        ({"counts": [1.0, 2]}, TypeError, "counts must be a list of ints"),
        ({"counts": [3]}, ValueError, "counts must be 2 numbers"),
        ({"counts": [-1, 4]}, ValueError, "counts must be 2 numbers of at least 0"),
        ({"counts": [1, 1]}, ValueError, "counts must add up to the 3 kernels"),
    ],
)
def test_errors(change, error, match):
    given = {
        "features": torch.zeros(2, 4, 5, 6),
        "kernels": torch.zeros(3, 4),
        "counts": [1, 2],
        **change,
    }
    with pytest.raises(error, match=f"dynamic_conv: {match}"):
        ops.dynamic_conv(given.pop("features"), given.pop("kernels"), given.pop("counts"), **given)
