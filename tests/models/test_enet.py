"""ENet: sizes, parts and routes of its specification."""

from __future__ import annotations

import pytest
import torch
from modeltester import build
from torch import nn
from torch.nn import functional

from segkern.models import WeightsError, create_model, save_weights

PARTS = {
    "encoder.initial": 412,
    "encoder.down1": 4_656,
    "encoder.section1.1": 4_656,
    "encoder.section1.4": 4_656,
    "encoder.down2": 22_112,
    "encoder.section2.1": 18_016,
    "encoder.section2.2": 18_016,
    "encoder.section2.3": 19_040,
    "encoder.section3.7": 19_040,
    "encoder.section3.8": 18_016,
    "encoder": 338_156,
    "decoder.up4": 13_904,
    "decoder.section4.2": 4_560,
    "decoder.up5": 1_572,
    "decoder.section5.1": 324,
    "decoder.fullconv": 65 * 12,
}


def _count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("classes", "count"), [(11, 363_791), (12, 363_856), (19, 364_311), (20, 364_376)]
)
def test_parameters(classes, count):
    model = create_model("enet", num_classes=classes)
    assert _count(model) == count
    encoder = create_model("enet_encoder", num_classes=classes)
    assert _count(encoder) == 338_156 + 129 * classes


def test_parameters_of_the_parts():
    model = create_model("enet")
    assert {name: _count(model.get_submodule(name)) for name in PARTS} == PARTS


def _shapes(model, names, size):
    shapes = {}
    for name in names:

        def record(_, __, output, name=name):
            output = output[0] if isinstance(output, tuple) else output
            shapes[name] = tuple(output.shape[1:])

        model.get_submodule(name).register_forward_hook(record)
    with torch.no_grad():
        model(torch.rand(1, 3, *size))
    return shapes


def test_sizes_at_360x480():
    expected = {
        "encoder.initial": (16, 180, 240),
        "encoder.down1": (64, 90, 120),
        "encoder.section1": (64, 90, 120),
        "encoder.down2": (128, 45, 60),
        "encoder.section2": (128, 45, 60),
        "encoder.section3": (128, 45, 60),
        "decoder.up4": (64, 90, 120),
        "decoder.section4": (64, 90, 120),
        "decoder.up5": (16, 180, 240),
        "decoder.section5": (16, 180, 240),
        "decoder.fullconv": (12, 360, 480),
    }
    assert _shapes(create_model("enet").eval(), expected, (360, 480)) == expected


def test_routes_and_unpooling(device):
    """Indices of 2.0 have 64 channels; the unpool of 4.0 fills one place of each 2x2 window."""
    model = build("enet", device)
    unpooled = {}
    for name in ("up4", "up5"):

        def record(_, args, output, name=name):
            unpooled[name] = (args, output)

        model.decoder.get_submodule(name).unpool.register_forward_hook(record)
    image = torch.rand(2, 3, 64, 80, device=device)
    with torch.no_grad():
        _, routes = model.encoder(image)
        model(image)
    (indices1, size1), (indices2, size2) = routes
    assert (tuple(indices1.shape), size1) == ((2, 16, 16, 20), (32, 40))
    assert (tuple(indices2.shape), size2) == ((2, 64, 8, 10), (16, 20))
    assert indices1.dtype == indices2.dtype == torch.uint8
    for (values, indices, size), output in unpooled.values():
        assert tuple(output.shape[-2:]) == tuple(size)
        assert values.shape == indices.shape
        windows = output.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
        assert ((windows != 0).sum(-1) == 1).all()
        assert torch.equal(windows.sum(-1), values)


def test_layers():
    model = create_model("enet")
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.eps == 1e-3 for norm in norms)
    encoder, decoder = model.encoder, model.decoder
    assert all(
        module.num_parameters == channels
        for module, channels in [(encoder.initial.act, 16), (encoder.down1.act1, 16)]
    )
    dilations = [
        conv.dilation[0] if isinstance(conv := block.conv, nn.Conv2d) else "5"
        for block in encoder.section3
    ]
    assert dilations == [1, 2, "5", 4, 1, 8, "5", 16]
    wide, tall = encoder.section2[2].conv
    assert (wide.kernel_size, wide.bias, tall.kernel_size) == ((1, 5), None, (5, 1))
    assert tall.bias is not None
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout2d)]
    assert rates == [0.01] * 5 + [0.1] * 17
    assert not any(isinstance(module, nn.Dropout2d) for module in decoder.modules())
    assert not any(isinstance(module, nn.PReLU) for module in decoder.modules())
    assert decoder.fullconv.kernel_size == decoder.fullconv.stride == (2, 2)


def test_dropout_switches():
    model = create_model("enet", dropout=0.0, dropout_early=0.0).train()
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(image)["out"], model(image)["out"])


@pytest.mark.parametrize("pad_mode", ["replicate", "reflect", "zeros"])
def test_other_sizes_are_padded_and_cropped(pad_mode, device):
    model = build("enet", device, pad_mode=pad_mode)
    image = torch.rand(1, 3, 45, 61, device=device)
    mode = "constant" if pad_mode == "zeros" else pad_mode
    padded = functional.pad(image, (0, 3, 0, 3), mode=mode)
    with torch.no_grad():
        assert torch.equal(model(image)["out"], model(padded)["out"][..., :45, :61])


def test_padding_costs_nothing_where_the_size_fits(monkeypatch):
    model = build("enet")
    seen = []
    model.encoder.initial.conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    image = torch.rand(1, 3, 40, 48)
    with torch.no_grad():
        scores = model(image)["out"]
    assert seen[0] is image
    assert scores._base is None


def test_sizes_refused():
    strict = create_model("enet", strict_size=True).eval()
    assert strict(torch.rand(1, 3, 16, 24))["out"].shape[-2:] == (16, 24)
    message = "multiple of 8, got 361x480; nearest valid: 360x480 and 368x480"
    with pytest.raises(ValueError, match=message):
        strict(torch.rand(1, 3, 361, 480))
    with pytest.raises(ValueError, match="nearest valid: 8x8"):
        create_model("enet_encoder", strict_size=True)(torch.rand(2, 3, 3, 5))
    with pytest.raises(ValueError, match="too small to mirror"):
        create_model("enet", pad_mode="reflect")(torch.rand(2, 3, 3, 5))
    with pytest.raises(ValueError, match="pad_mode must be one of replicate, reflect, zeros"):
        create_model("enet", pad_mode="wrap")
    for shape in ((3, 8, 8), (1, 3, 0, 8)):
        with pytest.raises(ValueError, match=r"enet: input must be \(N, C, H, W\)"):
            strict(torch.rand(*shape))
    with pytest.raises(ValueError, match="in_channels must be 1 to 15, got 16"):
        create_model("enet", in_channels=16)


def test_one_pixel_in_training():
    model = create_model("enet").train()
    with pytest.raises(ValueError, match="enet: encoder.down2.norm1 sees one 1x1 feature map"):
        model(torch.rand(1, 3, 8, 8))
    model(torch.rand(2, 3, 8, 8))
    model(torch.rand(1, 3, 8, 16))
    model.eval()(torch.rand(1, 3, 8, 8))


def test_an_empty_batch():
    assert build("enet")(torch.rand(0, 3, 16, 24))["out"].shape == (0, 12, 16, 24)


def test_transposed_convolutions_start_within_the_fan_in():
    torch.manual_seed(0)
    decoder = create_model("enet").decoder
    for conv, fan_in in ((decoder.up4.conv, 16 * 9), (decoder.fullconv, 16 * 4)):
        bound = fan_in**-0.5
        assert 0.9 * bound < conv.weight.abs().max() <= bound
        assert conv.bias.abs().max() <= bound


def test_the_second_stage_starts_from_the_first(tmp_path):
    first = build("enet_encoder", num_classes=5)
    path = tmp_path / "encoder.safetensors"
    save_weights(path, first.state_dict())
    model = create_model("enet", num_classes=7, weights_backbone=path).eval()
    image = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        assert torch.equal(model.encoder(image)[0], first.encoder(image)[0])
    with pytest.raises(WeightsError, match="of another shape: encoder.initial.conv.weight"):
        create_model("enet", in_channels=3, weights_backbone=_other(tmp_path))


def _other(folder):
    path = folder / "other.safetensors"
    state = create_model("enet_encoder").state_dict()
    state["encoder.initial.conv.weight"] = torch.zeros(1)
    save_weights(path, state)
    return path
