"""Layers over the atrous operators, beside torch's own layers and the papers' numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn as tnn

from segkern import nn


def randomise(model: tnn.Module) -> tnn.Module:
    """Weights and statistics under which a wrong fold shows."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, tnn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            tnn.init.uniform_(module.weight, 0.5, 1.5)
            tnn.init.normal_(module.bias)
    return model


def parameters(module: tnn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


CONVS = [
    dict(in_channels=4, out_channels=6, kernel_size=3, padding=2, dilation=2),
    dict(in_channels=6, out_channels=6, kernel_size=3, padding=6, dilation=6, groups=6),
    dict(in_channels=4, out_channels=8, kernel_size=(3, 5), stride=2, groups=2, bias=False),
    dict(in_channels=4, out_channels=4, kernel_size=3, padding="same", dilation=3, groups=4),
    dict(in_channels=4, out_channels=4, kernel_size=3, padding=3, padding_mode="reflect"),
    dict(in_channels=4, out_channels=5, kernel_size=1),
]


@pytest.mark.parametrize("given", CONVS, ids=lambda g: "-".join(map(str, g.values())))
def test_atrous_conv_is_a_conv(given, device):
    theirs = tnn.Conv2d(**given, device=device, dtype=torch.float64)
    ours = nn.AtrousConv2d(**given, device=device, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    assert ours.extra_repr() == theirs.extra_repr()
    x = torch.randn(2, given["in_channels"], 11, 12, device=device, dtype=torch.float64)
    for layer in (ours, nn.AtrousConv2d.from_torch(theirs)):
        for value in (x, x[0]):
            a, b = value.clone().requires_grad_(), value.clone().requires_grad_()
            torch.testing.assert_close(layer(a), theirs(b), rtol=1e-10, atol=1e-10)
            layer(a).square().sum().backward()
            theirs(b).square().sum().backward()
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-9)
    adopted = nn.AtrousConv2d.from_torch(theirs)
    assert type(adopted) is nn.AtrousConv2d and adopted.weight is theirs.weight
    with pytest.raises(TypeError, match="AtrousConv2d: module must be a torch.nn.Conv2d, got ReLU"):
        nn.AtrousConv2d.from_torch(tnn.ReLU())


@pytest.mark.parametrize("activation", ["relu", "prelu", None])
@pytest.mark.parametrize("groups", [1, 6])
def test_conv_norm_act(groups, activation, device):
    block = nn.ConvNormAct(6, 6, 3, dilation=4, groups=groups, activation=activation)
    block = randomise(block).double().to(device)
    plain = tnn.Sequential(
        tnn.Conv2d(6, 6, 3, padding=4, dilation=4, groups=groups, bias=False),
        tnn.BatchNorm2d(6),
        *([tnn.ReLU()] if activation == "relu" else [tnn.PReLU(6)] if activation else []),
    )
    plain = plain.double().to(device)
    plain.load_state_dict(block.state_dict())
    x = torch.randn(2, 6, 9, 10, dtype=torch.float64, device=device)
    for training in (True, False):
        for grad in (True, False):
            block.train(training), plain.train(training)
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(block(x), plain(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(block[1].running_var, plain[1].running_var)
    residual = torch.randn_like(x)
    expected = plain[1](plain[0](x)) + residual
    expected = plain[-1](expected) if activation else expected
    torch.testing.assert_close(block(x, residual), expected, rtol=1e-9, atol=1e-9)


def test_conv_norm_act_forms():
    assert nn.ConvNormAct(3, 4, norm_layer=None)[0].bias is not None
    assert nn.ConvNormAct(3, 4)[0].bias is None
    group = nn.ConvNormAct(3, 4, norm_layer=lambda channels: tnn.GroupNorm(2, channels)).eval()
    x = torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(group(x), torch.relu(group[1](group[0](x))))
    with pytest.raises(ValueError, match="ConvNormAct: activation must be .*, got 'gelu'"):
        nn.ConvNormAct(3, 4, activation="gelu")


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.SeparableConv2d(8, 8),
        lambda: nn.ASPP(8, (2,), 8),
        lambda: nn.ASPP(8, (2,), 8, separable=True, image_pooling=False),
        lambda: nn.ESPModule(8, 8, 2),
        lambda: nn.ESPModule(8, 8, 2, stride=2),
        lambda: nn.ShuffleNetUnit(8, 8, 2),
    ],
)
def test_every_norm_is_looked_at(build):
    """Whichever norm of a layer is broken."""
    norms = [m for m in build().modules() if isinstance(m, tnn.BatchNorm2d)]
    for k in range(len(norms)):
        layer = build().eval()
        broken = [m for m in layer.modules() if isinstance(m, tnn.BatchNorm2d)][k]
        broken.running_mean[0] = float("inf")
        with pytest.raises(ValueError, match="batch-norm statistics must be finite"):
            layer(torch.zeros(2, 8, 5, 5))


def test_statistics_that_are_not_finite():
    block = nn.ConvNormAct(3, 4).eval()
    block[1].running_var[1] = float("nan")
    with pytest.raises(ValueError, match="BatchNorm2d: batch-norm statistics must be finite"):
        block(torch.zeros(1, 3, 5, 5))
    block[1].running_var[1] = -1.0
    with pytest.raises(ValueError, match="running_var must not be negative, got -1.0"):
        block(torch.zeros(1, 3, 5, 5))


@pytest.mark.parametrize("inner", ["relu", None])
@pytest.mark.parametrize("norm", [True, False])
def test_separable(norm, inner, device):
    given = {} if norm else {"norm_layer": None}
    block = nn.SeparableConv2d(6, 8, stride=2, dilation=3, depthwise_activation=inner, **given)
    block = randomise(block).double().to(device)
    x = torch.randn(2, 6, 13, 12, dtype=torch.float64, device=device)
    for training in (True, False):
        block.train(training)
        layers = [*block.depthwise, *block.pointwise]
        expected = x
        for layer in layers:
            plain = copy.deepcopy(layer)
            if isinstance(plain, nn.AtrousConv2d):
                plain.__class__ = tnn.Conv2d
            expected = plain(expected)
        with torch.no_grad():
            torch.testing.assert_close(block(x), expected.detach(), rtol=1e-9, atol=1e-9)
    assert list(block.state_dict())[0] == "depthwise.0.weight"


# ---- ASPP -------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_aspp_is_torchvisions(training, device):
    deeplab = pytest.importorskip("torchvision.models.segmentation.deeplabv3")
    theirs = randomise(deeplab.ASPP(12, [2, 4, 30], 8)).double().to(device)
    ours = nn.ASPP(12, (2, 4, 30), 8).double().to(device)
    ours.load_state_dict(theirs.state_dict())
    theirs.project[3].p = ours.project[3].p = 0.0
    theirs.train(training), ours.train(training)
    x = torch.randn(2, 12, 9, 10, dtype=torch.float64, device=device)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        ours.convs[2][1].running_mean, theirs.convs[2][1].running_mean, rtol=1e-9, atol=1e-9
    )
    if training:
        names = [name for name, _ in theirs.named_parameters()]
        ours(x).square().sum().backward()
        theirs(x).square().sum().backward()
        for name in names:
            ours_grad = ours.get_parameter(name).grad
            torch.testing.assert_close(ours_grad, theirs.get_parameter(name).grad)


def test_aspp_parameters_and_one_image():
    """DeepLab v3's 15,535,104 and v3+'s 3,019,776."""
    with torch.device("meta"):
        assert parameters(nn.ASPP(2048)) == 15_535_104
        assert parameters(nn.ASPP(2048, separable=True)) == 3_019_776
    head = nn.ASPP(4, (2,), 3)
    wanted = "ASPP: the image-pooling branch must see more than one .*, layer 'convs.2.2'"
    with pytest.raises(ValueError, match=wanted):
        head(torch.zeros(1, 4, 5, 5))
    head.convs[-1].eval()
    assert head(torch.zeros(1, 4, 5, 5)).shape == (1, 3, 5, 5)
    assert nn.ASPP(4, (2,), 3, image_pooling=False)(torch.zeros(1, 4, 5, 5)).shape == (1, 3, 5, 5)


@pytest.mark.parametrize("training", [True, False])
def test_separable_aspp(training, device):
    head = randomise(nn.ASPP(6, (2, 5), 4, separable=True, dropout=0.0)).double().to(device)
    head.train(training)
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64, device=device)
    outputs = [branch(x).expand(-1, -1, 7, 8) for branch in copy.deepcopy(head).convs]
    expected = copy.deepcopy(head.project)(torch.cat(outputs, 1))
    torch.testing.assert_close(head(x), expected, rtol=1e-9, atol=1e-9)


# ---- ESP --------------------------------------------------------------------------------------

# From the released code: sum, sum of squares, first and last element of the output.
GOLDEN = [
    ((20, 20, 1), (265.156710819, 49.281368588, 0.133915148, 0.224938000)),
    ((24, 12, 1), (190.417615180, 43.550038935, 0.140375261, 0.141415126)),
    ((7, 13, 2), (43.532189581, 6.991975161, 0.115900768, 0.082712821)),
]


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("sizes, expected", GOLDEN, ids=lambda v: str(v)[:12])
def test_esp_golden_values(sizes, expected, grad):
    inputs, outputs, stride = sizes
    module = nn.ESPModule(inputs, outputs, stride=stride).eval().double()
    convs = [module.c1, *(getattr(module, f"d{rate}") for rate in (1, 2, 4, 8, 16))]
    bn, act = (module.bn.bn, module.bn.act) if stride == 1 else (module.bn, module.act)
    tensors = [*(conv.conv.weight for conv in convs), bn.weight, bn.bias, act.weight]
    assert len(tensors) == len(list(module.parameters()))
    with torch.no_grad():
        for i, tensor in enumerate(tensors):
            flat = torch.arange(tensor.numel(), dtype=torch.float64)
            tensor.copy_((0.2 * torch.sin(0.7 * flat + i)).view_as(tensor))
    flat = torch.arange(inputs * 144, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        y = module(torch.sin(0.3 * flat).view(1, inputs, 12, 12)).flatten()
    result = (y.sum(), y.square().sum(), y[0], y[-1])
    assert [v.item() for v in result] == pytest.approx(expected, abs=1e-8)


def test_esp_parameters():
    """The counts of the paper and of the released networks."""
    assert parameters(nn.ESPModule(64, 64)) == 7_872
    assert parameters(nn.ESPModule(128, 128)) == 32_384
    assert parameters(nn.ESPModule(19, 64, stride=2)) == 9_156
    assert parameters(nn.ESPModule(131, 128, stride=2)) == 58_659
    assert parameters(nn.ESPModule(40, 20)) == 940
    bare = dict(norm_layer=None, activation=False)
    assert parameters(tnn.Conv2d(128, 128, 3, bias=False)) == 147_456
    assert parameters(nn.ESPModule(128, 128, 4, **bare)) == 40_960
    assert parameters(nn.ESPModule(128, 128, 8, **bare)) == 20_480


@pytest.mark.parametrize("branches, field", [(4, 17), (5, 33)])
def test_esp_field(branches, field):
    """((n - 1) 2^(K-1) + 1)^2 input pixels reach an output."""
    module = nn.ESPModule(8, 8, branches, norm_layer=None, activation=False)
    x = torch.randn(1, 8, 41, 41, requires_grad=True)
    module(x)[0, :, 20, 20].square().sum().backward()
    rows, columns = x.grad[0].abs().sum(0).nonzero(as_tuple=True)
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (field, field)


def test_units_of_the_comparison():
    """Table 1 of the ESP paper at M = N = 128, n = 3, K = 4, d = 32, g = 4."""
    assert parameters(nn.MobileNetUnit(128, 128, norm_layer=None)) == 17_536
    assert parameters(nn.ShuffleNetUnit(128, 128, 4, norm_layer=None)) == 2_336
    assert parameters(nn.ASPUnit(128, 128)) == 589_824
    x = torch.randn(2, 16, 10, 10)
    assert nn.MobileNetUnit(16, 24, stride=2)(x).shape == (2, 24, 5, 5)
    assert nn.ShuffleNetUnit(16, 16)(x).shape == (2, 16, 10, 10)
    assert nn.ShuffleNetUnit(16, 48, stride=2)(x).shape == (2, 48, 5, 5)
    assert nn.ASPUnit(16, 4)(x).shape == (2, 16, 10, 10)
    with pytest.raises(ValueError, match="ShuffleNetUnit: groups must divide width, 6, got 4"):
        nn.ShuffleNetUnit(24, 24, 4)


# ---- convert ----------------------------------------------------------------------------------


def small_deeplab(name="deeplabv3_resnet50"):
    segmentation = pytest.importorskip("torchvision.models.segmentation")
    model = getattr(segmentation, name)(
        weights=None, weights_backbone=None, num_classes=5, aux_loss=True
    )
    return randomise(model.eval())


@pytest.mark.parametrize(
    "given, count",
    [({}, 13), ({"convolutions": "none"}, 1), ({"convolutions": "all"}, 65), ({"fold": True}, 13)],
    ids=str,
)
def test_convert_deeplab(given, count, device):
    model = small_deeplab().to(device)
    torch.manual_seed(0)
    x = torch.randn(2, 3, 65, 81, device=device)
    with torch.no_grad():
        expected = model(x)
        keys = list(model.state_dict())
        swaps = nn.convert(model, **given)
        result = model(x)
    assert len(swaps) == count
    for key, value in expected.items():
        assert (result[key] - value).abs().max() < 1e-4 * value.abs().max()
    if given.get("fold"):
        assert not any("backbone.bn1" in key for key in model.state_dict())
    else:
        assert list(model.state_dict()) == keys
    if given.get("convolutions") != "none":
        assert type(model.classifier[0]) is nn.ASPP
        assert "torchvision.models.segmentation.deeplabv3.ASPP -> segkern.nn.ASPP" in str(
            next(swap for swap in swaps if swap.new is nn.ASPP)
        )
    assert nn.convert(model, **{k: v for k, v in given.items() if k != "fold"}) == []


def test_convert_deeplab101():
    """The same keys and outputs, and gradients to every parameter."""
    model = small_deeplab("deeplabv3_resnet101")
    keys, x = list(model.state_dict()), torch.randn(2, 3, 33, 41)
    with torch.no_grad():
        expected = model(x)
        nn.convert(model)
        result = model(x)
    assert list(model.state_dict()) == keys and type(model.classifier[0]) is nn.ASPP
    for key, value in expected.items():
        assert (result[key] - value).abs().max() < 1e-4 * value.abs().max()
    model.train()
    loss = sum(value.square().mean() for value in model(torch.randn(2, 3, 33, 33)).values())
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_convert_leaves_other_pyramids():
    """Something called convs and project that computes something else."""

    class Other(tnn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = tnn.ModuleList(tnn.Conv2d(2, 2, 1) for _ in range(2))
            self.project = tnn.Sequential(tnn.Conv2d(4, 2, 1), tnn.ReLU())

    model = Other()
    assert nn.convert(model) == [] and type(model) is Other


def test_convert_errors():
    with pytest.raises(ValueError, match="convert: convolutions must be one of .*, got 'some'"):
        nn.convert(tnn.Conv2d(1, 1, 1), convolutions="some")
    with pytest.raises(ValueError, match="convert: model must be in eval mode to fold"):
        nn.convert(tnn.Sequential(tnn.Conv2d(1, 1, 1), tnn.BatchNorm2d(1)), fold=True)
    broken = tnn.Sequential(tnn.Conv2d(2, 2, 3, dilation=2), tnn.BatchNorm2d(2)).eval()
    broken[1].running_mean[0] = float("inf")
    with pytest.raises(ValueError, match="convert: 1: batch-norm statistics must be finite"):
        nn.convert(broken, fold=True)
    assert type(broken[0]) is tnn.Conv2d

    class Branching(tnn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="convert: model must be traceable to fold its norms"):
        nn.convert(Branching().eval(), fold=True)


def test_fold_shared_norm_stays():
    """A convolution whose output something else reads keeps its norm."""

    class Both(tnn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = tnn.Conv2d(2, 2, 1), tnn.BatchNorm2d(2)

        def forward(self, x):
            x = self.conv(x)
            return x + self.norm(x)

    model = randomise(Both().eval())
    x = torch.randn(1, 2, 3, 3)
    expected = model(x)
    nn.convert(model, fold=True)
    assert type(model.norm) is tnn.BatchNorm2d
    torch.testing.assert_close(model(x), expected)
