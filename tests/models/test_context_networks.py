"""Networks of context and refinement: counts, golden values of their parts, what is their own."""

from __future__ import annotations

import math

import pytest
import torch
from modeltester import CASES, images, seed_weights
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from segkern.models import WeightsError, create_model, danet, save_weights
from segkern.models.backbones import ResNet
from segkern.models.danet import ChannelAttention, PositionAttention
from segkern.models.gcn import BoundaryRefinement, GlobalConvolution, _deconv
from segkern.models.pspnet import PyramidPooling
from segkern.models.refinenet import ChainedPooling, ResidualUnit

models = pytest.importorskip("torchvision.models")

R50, MAIN = {"backbone": "resnet50"}, {"aux": False}

PARAMETERS = {
    "fc_densenet56": [({}, 1_376_795), ({"num_classes": 12}, 1_376_988)],
    "fc_densenet67": [({}, 3_463_243), ({"num_classes": 12}, 3_463_532)],
    "fc_densenet103": [({}, 9_322_091), ({"num_classes": 12}, 9_322_348)],
    "linknet": [
        ({"num_classes": 11}, 11_535_659),
        ({}, 11_536_691),
        ({"num_classes": 20}, 11_536_820),
    ],
    "pspnet": [
        ({}, 68_073_706),
        ({"num_classes": 19}, 68_072_166),
        (MAIN, 65_708_501),
        ({**MAIN, "num_classes": 19}, 65_707_475),
        ({**MAIN, "stem": "plain"}, 65_584_725),
        ({**R50, "num_classes": 150}, 49_180_908),
        ({**R50, **MAIN, "num_classes": 150}, 46_782_550),
    ],
    "refinenet": [
        ({}, 118_052_437),
        ({"num_classes": 19}, 118_047_827),
        ({"num_classes": 40}, 118_096_232),
        ({"num_classes": 60}, 118_142_332),
        ({"num_classes": 150}, 118_349_782),
        ({"pool_blocks": 2}, 109_794_901),
        ({"pool_blocks": 2, "num_classes": 19}, 109_790_291),
    ],
    "gfrnet": [
        ({}, 29_194_090),
        ({"num_classes": 12}, 29_223_264),
        ({"num_classes": 21}, 29_493_930),
    ],
    "gcn": [
        ({}, 60_688_084),
        ({"num_classes": 19}, 60_435_056),
        ({"kernel_size": 7}, 59_369_620),
        (R50, 26_052_308),
        ({"kernel_size": 25, "num_classes": 19}, 61_923_136),
        ({"upsample": "deconv"}, 60_688_084 + 35_280),
    ],
    "danet": [
        ({}, 66_454_779),
        ({"num_classes": 60}, 66_517_878),
        ({"num_classes": 21}, 66_457_857),
        ({"stem": "deep"}, 66_578_555),
    ],
}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters():
    with torch.device("meta"):
        found = {
            name: [(options, count(create_model(name, **options))) for options, _ in rows]
            for name, rows in PARAMETERS.items()
        }
        trunks = [ResNet("x", f"resnet{n}", 3, output_stride=32) for n in (18, 34, 152)]
        wide = GlobalConvolution(2048, 21, 15)
    assert found == PARAMETERS
    assert [count(trunk) for trunk in trunks] == [11_176_512, 21_284_672, 58_143_808]
    assert count(wide) == 1_303_554


# The golden values of each part: sum, sum of squares, first and last element of the output.
PARTS = {
    "position attention": (
        lambda: PositionAttention(16),
        (1, 16, 5, 6),
        (0.671793303, 240.570852161, 0, -0.726532506),
    ),
    "position attention, gamma 1": (
        lambda: PositionAttention(16),
        (1, 16, 5, 6),
        (10.126286940, 250.204374103, -0.075605777, -0.884498854),
    ),
    "channel attention, gamma 1": (
        lambda: ChannelAttention("release"),
        (1, 4, 3, 3),
        (1.732120675, None, 0.041591261, -0.163918134),
    ),
    "pyramid": (
        lambda: PyramidPooling(16, 4, (1, 2, 3, 6)),
        (1, 16, 12, 12),
        (126.595250777, 1170.586916565, 0, 0.090389621),
    ),
    "pyramid, cells that do not divide": (
        lambda: PyramidPooling(16, 4, (1, 2, 3, 6)),
        (1, 16, 13, 13),
        (148.657956713, 1372.915710947, 0, 0.102243409),
    ),
    "residual units": (
        lambda: torch.nn.Sequential(ResidualUnit(4), ResidualUnit(4)),
        (1, 4, 7, 7),
        (-4.656692256, 434.518461963, 0.623716527, -0.111265570),
    ),
    "chained pooling, 2": (
        lambda: ChainedPooling(4, 2, True),
        (1, 4, 7, 7),
        (-17.923010763, 612.056706456, -1.115879733, 3.829560276),
    ),
    "chained pooling, 4": (
        lambda: ChainedPooling(4, 4, True),
        (1, 4, 7, 7),
        (-45.499237898, 1253.137839193, 1.172970296, 1.255245680),
    ),
    "chained pooling, 4, improved": (
        lambda: ChainedPooling(4, 4, False),
        (1, 4, 7, 7),
        (407.466228178, 916.740203816, 1.660301790, 1.897809557),
    ),
    "large kernels": (
        lambda: GlobalConvolution(6, 3, 15),
        (1, 6, 9, 9),
        (17.944644656, 2.735471705, 0.149913647, -0.083571278),
    ),
    "boundary refinement": (
        lambda: BoundaryRefinement(3),
        (1, 3, 9, 9),
        (-32.913068617, 398.420496217, 0.925216044, -0.564375283),
    ),
}


@pytest.mark.parametrize("part", PARTS)
def test_golden_values_of_parts(part):
    make, shape, expected = PARTS[part]
    module = make().double().eval()
    for i, parameter in enumerate(module.parameters()):
        steps = torch.arange(parameter.numel(), dtype=torch.float64)
        parameter.data = (0.2 * torch.sin(0.7 * steps + i)).view(parameter.shape)
    if "gamma 1" in part:
        module.gamma.data.fill_(1)
    x = torch.sin(0.3 * torch.arange(math.prod(shape), dtype=torch.float64)).view(shape)
    with torch.no_grad():
        y = module(0.2 * x if part.startswith("channel") else x)
    found = (y.sum(), y.square().sum(), y.flatten()[0], y.flatten()[-1])
    for value, wanted in zip(found, expected, strict=True):
        assert wanted is None or float(value) == pytest.approx(wanted, abs=1e-8)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operator returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor) and value.untyped_storage().size():
                stored = value.untyped_storage().nbytes() // value.element_size()
                self.elements = max(self.elements, stored)
        return result


def test_position_attention_never_holds_all_pairs(device, monkeypatch):
    monkeypatch.setattr(danet, "MOST_WEIGHTS", 2**16)
    attention = PositionAttention(64).to(device)
    torch.nn.init.ones_(attention.gamma)
    x = torch.randn(1, 64, 33, 40, device=device, requires_grad=True)
    pixels = 33 * 40
    with Largest() as seen:
        attention(x).square().sum().backward()
    assert seen.elements <= 4 * 64 * pixels < pixels**2

    attention, x = attention.double(), x.detach().double().requires_grad_()
    query, key, value = (
        layer(x).flatten(2) for layer in (attention.query, attention.key, attention.value)
    )
    weights = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
    expected = x + (value @ weights.transpose(1, 2)).view_as(x)
    torch.testing.assert_close(attention(x), expected, rtol=1e-9, atol=1e-9)
    (wanted,) = torch.autograd.grad(expected.square().sum(), x)
    (found,) = torch.autograd.grad(attention(x).square().sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


def test_position_attention_row_by_row(monkeypatch):
    """What the CPU computes, and CUDA where it is to be deterministic: in as little memory."""
    monkeypatch.setattr(danet, "MOST_WEIGHTS", 5 * 2 * 130)
    shapes = ((2, 1, 130, 3), (2, 1, 130, 3), (2, 1, 130, 8))
    tensors = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    weight = torch.randn(2, 1, 130, 8, dtype=torch.float64)
    with Largest() as seen:
        found = danet.attend_in_rows(*tensors)
        gradients = torch.autograd.grad((found * weight).sum(), tensors)
    assert seen.elements < 2 * 130 * 130 / 10
    query, key, value = tensors
    scores = torch.einsum("nhqd,nhkd->nhqk", query, key).exp()
    expected = torch.einsum("nhqk,nhkd->nhqd", scores / scores.sum(-1, keepdim=True), value)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad((expected * weight).sum(), tensors)
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-9)


def test_deterministic_attention_is_taken_on_cuda(cuda):
    attention = PositionAttention(64).to(cuda)
    torch.nn.init.ones_(attention.gamma)
    x = torch.randn(2, 64, 48, 48, device=cuda)
    plain = attention(x)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        runs = []
        for _ in range(2):
            attention.zero_grad()
            scores = attention(x)
            scores.square().sum().backward()
            runs.append([p.grad.clone() for p in attention.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(scores, plain, rtol=1e-3, atol=1e-3)
    assert all(map(torch.equal, *runs))


def test_channel_attention_of_the_paper():
    x = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    module = ChannelAttention("paper").double()
    assert torch.equal(module(x), x)
    torch.nn.init.constant_(module.gamma, 0.5)
    flat = x.reshape(2, 5, 12)
    weights = torch.softmax(torch.einsum("nip,njp->nij", flat, flat), dim=2)
    expected = x + 0.5 * torch.einsum("nij,njp->nip", weights, flat).view_as(x)
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("form", ["release", "paper"])
def test_channel_attention_does_not_overflow_in_half_precision(form):
    x = torch.full((1, 3, 40, 40), 100.0, dtype=torch.float16)
    module = ChannelAttention(form).half()
    torch.nn.init.ones_(module.gamma)
    assert torch.equal(module(x), 2 * x)


def test_transposed_convolutions_start_bilinear():
    ramp = torch.arange(6.0).expand(1, 2, 6, 6)
    expected = functional.interpolate(ramp, scale_factor=2, mode="bilinear", align_corners=False)
    found = _deconv(2)(ramp)
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])
    model = create_model("gcn", **CASES["gcn"].options, upsample="deconv").eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 45, 61))["out"].shape == (1, 21, 45, 61)


OUTPUTS = {
    "pspnet": {"out", "aux"},
    "danet": {"out", "position", "channel"},
    "refinenet": {"out", "logits"},
    "gfrnet": {"out", *(f"stage_{i}" for i in range(1, 6))},
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_training(name):
    case = CASES[name]
    model = create_model(name, **case.options)
    image = images(name, (45, 61), batch=2, like=torch.empty(0))
    output = model(image)
    assert set(output) == OUTPUTS[name] >= set(model.recipe.outputs)
    sizes = {key: tuple(value.shape[-2:]) for key, value in output.items()}
    assert sizes.pop("logits", (12, 16)) == (12, 16)
    assert set(sizes.values()) == {(45, 61)}
    assert set(model.eval()(image)) == {"out"}


@pytest.mark.parametrize(
    ("name", "size", "layer"),
    [
        ("fc_densenet56", 32, "bottleneck.0.norm"),
        ("linknet", 32, "backbone.layer4.0.bn1"),
        ("pspnet", 65, "pyramid.levels.0.1"),
        ("gcn", 32, "backbone.layer4.0.bn2"),
        ("danet", 8, "backbone.layer2.0.bn2"),
        ("gfrnet", 32, "conv6.norm"),
    ],
)
def test_one_value_for_a_norm_is_refused(name, size, layer):
    model = create_model(name, **CASES[name].options)
    assert layer in dict(model.named_modules())
    with pytest.raises(ValueError, match=f"{name}: {layer} sees one 1x1 feature map"):
        model(torch.zeros(1, 3, size, size))
    assert model.eval()(torch.zeros(1, 3, size, size))["out"].isfinite().all()


def test_one_pixel_without_a_pyramid_of_one_cell():
    model = create_model("pspnet", **CASES["pspnet"].options, bins=(2, 3))
    with pytest.raises(ValueError, match="pspnet: backbone.layer2.0.bn2 sees one 1x1 feature map"):
        model(torch.zeros(1, 3, 1, 1))
    assert model(torch.zeros(1, 3, 9, 1))["out"].isfinite().all()


def test_fc_densenet_with_the_statistics_of_the_batch():
    options = CASES["fc_densenet56"].options
    model = create_model("fc_densenet56", **options, dropout=0.0)
    seed_weights(model)
    image = images("fc_densenet56", (48, 64), batch=2, like=torch.empty(0))
    trained = model(image)["out"]
    other = create_model("fc_densenet56", **options, statistics="batch").eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(image)["out"], trained)
    assert (model.eval()(image)["out"] - trained).abs().max() > 1e-2
    with pytest.raises(ValueError, match="bottleneck.0.norm"):
        other(image[:1, :, :32, :32])


def test_refinenet_trains_scales_but_no_statistics():
    model = create_model("refinenet", **CASES["refinenet"].options).train()
    before = model.backbone.bn1.running_mean.clone()
    model(torch.rand(2, 3, 33, 33))["logits"].square().sum().backward()
    assert torch.equal(model.backbone.bn1.running_mean, before)
    assert model.backbone.layer4[0].bn2.weight.grad.abs().max() > 0


def test_gates_of_the_paper_are_rectified():
    options = CASES["gfrnet"].options
    nets = [create_model("gfrnet", **options, gate_relu=relu).eval() for relu in (False, True)]
    nets[1].load_state_dict(nets[0].state_dict())
    lateral = nets[1].refine6.lateral
    assert (lateral(torch.randn(1, lateral.conv.in_channels, 9, 9)) >= 0).all()
    image = images("gfrnet", (32, 32), like=torch.empty(0))
    plain, rectified = (net(image)["out"] for net in nets)
    assert not torch.equal(plain, rectified)


def test_a_basic_trunk_is_torchvisions(tmp_path):
    theirs = models.resnet18(weights=None).eval()
    seed_weights(theirs)
    save_weights(tmp_path / "resnet18.safetensors", theirs.state_dict(), {})
    model = create_model("linknet", weights_backbone=tmp_path / "resnet18.safetensors").eval()
    assert model.recipe.input == "imagenet"
    image = torch.rand(1, 3, 33, 64)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        for i, stage in enumerate(model.backbone.stages(image)):
            x = x if i == 0 else getattr(theirs, f"layer{i}")(x)
            torch.testing.assert_close(stage, x)
    with torch.device("meta"):
        ours = ResNet("x", "resnet152", 3, output_stride=32).state_dict()
        theirs = models.resnet152(weights=None).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in theirs.items() if not k.startswith("fc.")
    }


@pytest.mark.parametrize("name", ["pspnet", "refinenet", "danet"])
def test_torchvision_weights_need_its_form(name):
    options = {**CASES[name].options, **({"stem": "deep"} if name == "danet" else {})}
    with pytest.raises(WeightsError, match=f"{name}: torchvision's ResNet has .*; build the"):
        create_model(name, **options, weights_backbone="IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("fc_densenet56", {"layers": (4,) * 10}),
        ("fc_densenet56", {"growth_rate": 0}),
        ("fc_densenet56", {"statistics": "image"}),
        ("fc_densenet56", {"dropout": 1.0}),
        ("linknet", {"backbone": "resnet50"}),
        ("linknet", {"pad_mode": "wrap"}),
        ("pspnet", {"bins": (0,)}),
        ("pspnet", {"stem": "wide"}),
        ("gcn", {"kernel_size": 4}),
        ("gcn", {"upsample": "nearest"}),
        ("danet", {"channel_attention": "none"}),
        ("refinenet", {"pool_blocks": 0}),
        ("refinenet", {"pool_order": "last"}),
    ],
)
def test_errors(name, bad):
    with pytest.raises(ValueError, match=f"{name}: {next(iter(bad))} must be"):
        create_model(name, **bad)


def test_linknet_can_refuse_sizes():
    model = create_model("linknet", width=1 / 8, strict_size=True).eval()
    with pytest.raises(ValueError, match="linknet: input height .* a multiple of 32"):
        model(torch.zeros(1, 3, 360, 480))
