"""The PReLU of ENet beside torch's."""

from __future__ import annotations

import pytest
import torch

from segkern.models._prelu import PReLU


@pytest.mark.parametrize("slopes", [1, 6])
@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (3, 6), (2, 6, 4), (0, 6, 2, 2)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_torch(slopes, shape, channels_last, device):
    ours, torchs = PReLU(slopes).to(device), torch.nn.PReLU(slopes).to(device)
    assert repr(ours) == repr(torchs)
    values = torch.randn(slopes)
    for layer in (ours, torchs):
        layer.load_state_dict({"weight": values})
    x = torch.randn(shape, device=device).round(decimals=1)
    if channels_last and len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    results = []
    for layer in (ours, torchs):
        leaf = x.clone().requires_grad_()
        output = layer(leaf)
        output.backward(torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device))
        results.append((output, leaf.grad, layer.weight.grad))
    (output, grad, slope_grad), (output2, grad2, slope_grad2) = results
    assert torch.equal(output, output2)
    assert output.stride() == output2.stride()
    assert torch.equal(grad, grad2)
    torch.testing.assert_close(slope_grad, slope_grad2, rtol=1e-5, atol=1e-5)


def test_gradients():
    layer = PReLU(3).double()
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)

    def function(x, weight):
        return torch.func.functional_call(layer, {"weight": weight}, x)

    assert torch.autograd.gradcheck(function, (x, layer.weight))
    assert torch.autograd.gradgradcheck(function, (x, layer.weight))


def test_frozen_slopes_and_frozen_inputs():
    layer = PReLU(3)
    x = torch.randn(2, 3, 4, 4)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    layer.requires_grad_(False)
    leaf = x.requires_grad_()
    layer(leaf).sum().backward()
    assert leaf.grad is not None


def test_autocast(device):
    layer = PReLU(3).to(device)
    x = torch.randn(2, 3, 4, 4, device=device, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast(device.type, torch.bfloat16):
        layer(x).float().sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == torch.float32
