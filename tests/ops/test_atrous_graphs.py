"""Export, fullgraph compile and autocast: every operator and layer of the atrous family alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn as tnn

from segkern import nn, ops


class Call(tnn.Module):
    """An operator with parameters, as a module."""

    def __init__(self, call, **tensors) -> None:
        super().__init__()
        self.call = call
        for name, tensor in tensors.items():
            self.register_parameter(name, tnn.Parameter(tensor))

    def forward(self, x):
        return self.call(self, x)


def modules() -> dict[str, tnn.Module]:
    torch.manual_seed(0)
    taps, square = torch.randn(8, 1, 3, 3) / 3, torch.randn(8, 8, 1, 1) / 3
    vector, narrow = torch.rand(8) + 0.5, torch.randn(2, 8, 3, 3) / 9
    few, full = torch.randn(8, 2, 3, 3) / 4, torch.randn(8, 8, 3, 3) / 9
    wide = torch.randn(8, 16, 1, 1) / 4
    six = {"padding": 6, "dilation": 6}
    return {
        "depthwise": Call(
            lambda m, x: ops.atrous_conv2d(
                x, m.w, **six, groups=8, scale=m.v, activation="prelu", activation_weight=m.v
            ),
            w=taps,
            v=vector,
        ),
        "grouped": Call(
            lambda m, x: ops.atrous_conv2d(x, m.w, m.v, **six, groups=4), w=few, v=vector
        ),
        "dense": Call(lambda m, x: ops.atrous_conv2d(x, m.w, **six, residual=x), w=full),
        "pointwise": Call(lambda m, x: ops.atrous_conv2d(x, m.w, activation="relu"), w=square),
        "separable": Call(
            lambda m, x: ops.atrous_separable_conv2d(
                x,
                m.t,
                m.w,
                **six,
                depthwise_scale=m.v,
                depthwise_activation="relu",
                activation="relu",
            ),
            t=taps,
            w=square,
            v=vector,
        ),
        "esp": Call(
            lambda m, x: ops.esp_block(
                x,
                m.w,
                [m.n, m.n, m.n, m.n],
                residual=True,
                scale=m.v,
                activation="prelu",
                activation_weight=m.v,
            ),
            w=square,
            n=narrow,
            v=vector,
        ),
        "aspp": Call(
            lambda m, x: ops.aspp(
                x, [ops.Branch(m.f, dilation=2), ops.Branch(m.w, pool=True)], m.p
            ),
            f=full,
            w=square,
            p=wide,
        ),
        "AtrousConv2d": nn.AtrousConv2d(8, 8, 3, padding=6, dilation=6, groups=8),
        "ConvNormAct": nn.ConvNormAct(8, 8, dilation=2),
        "SeparableConv2d": nn.SeparableConv2d(8, 8, dilation=6),
        "ASPP": nn.ASPP(8, (2, 5), 8, separable=True, dropout=0.0),
        "ESPModule": nn.ESPModule(8, 8, 4),
        "MobileNetUnit": nn.MobileNetUnit(8, 8),
        "ShuffleNetUnit": nn.ShuffleNetUnit(8, 8, 2),
        "ASPUnit": nn.ASPUnit(8, 8, 2),
    }


every = pytest.mark.parametrize("name", modules())
OPERATORS = ("depthwise", "grouped", "dense", "pointwise", "separable", "esp", "aspp")


@every
def test_export(name):
    """At dynamic height and width, in evaluation."""
    model = modules()[name].eval()
    x = torch.randn(2, 8, 17, 20)
    sides = {2: torch.export.Dim("height", min=14, max=64), 3: torch.export.Dim("width", max=64)}
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=(sides,))
        for size in ((17, 20), (24, 31)):
            y = torch.randn(2, 8, *size)
            torch.testing.assert_close(program.module()(y), model(y), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@every
def test_fullgraph(name):
    """Forward in evaluation, forward and backward in training, each in one graph."""
    torch._dynamo.reset()
    for training in (False, True):
        model = modules()[name].train(training)
        plain = copy.deepcopy(model)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        x = torch.randn(2, 8, 17, 20)
        with torch.set_grad_enabled(training):
            result, expected = compiled(x), plain(x)
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
        if training:
            ours = torch.autograd.grad(result.square().mean(), list(model.parameters()))
            theirs = torch.autograd.grad(expected.square().mean(), list(plain.parameters()))
            torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_autocast_is_lower(name, dtype):
    """Runs and ends in autocast's dtype; parameters get gradients in their own; float64 stays."""
    model = modules()[name]
    x = torch.randn(2, 8, 17, 20)
    with torch.autocast("cpu", dtype=dtype):
        result = model(x)
        exact = copy.deepcopy(model).double()(x.double())
    assert result.dtype == dtype and exact.dtype == torch.float64
    limit = 0.05 if dtype == torch.bfloat16 else 0.01
    assert (result.double() - exact).abs().max() < limit * exact.abs().max()
    result.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
