"""Whole networks beside their tables: sizes, layers in order, constants; written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from modeltester import CASES, assert_same
from plain_layers import Named, align, image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from segkern.models import create_model
from segkern.models.backbones import CaffeNetFeatures, GoogLeNetFeatures, ResNet

# Name, options, input and output of the acceptance tables.
SHAPES = [
    ("fcn32s", {}, (3, 500, 500), (21, 500, 500)),
    ("fcn16s", {}, (3, 500, 500), (21, 500, 500)),
    ("fcn8s", {}, (3, 500, 500), (21, 500, 500)),
    ("fcn32s", {"backbone": "alexnet"}, (3, 500, 500), (21, 500, 500)),
    ("fcn32s", {"backbone": "googlenet"}, (3, 500, 500), (21, 500, 500)),
    ("unet", {"in_channels": 1, "border": "none"}, (1, 572, 572), (2, 388, 388)),
    ("fc_densenet103", {}, (3, 360, 480), (11, 360, 480)),
    ("linknet", {"num_classes": 11}, (3, 576, 768), (11, 576, 768)),
    ("linknet", {"num_classes": 20}, (3, 512, 1024), (20, 512, 1024)),
    ("pspnet", {"backbone": "resnet50"}, (3, 473, 473), (21, 473, 473)),
    ("refinenet", {}, (3, 400, 400), (21, 400, 400)),
    ("gfrnet", {}, (3, 360, 480), (11, 360, 480)),
    ("gcn", {}, (3, 512, 512), (21, 512, 512)),
    ("danet", {"backbone": "resnet50"}, (3, 768, 768), (19, 768, 768)),
]


@pytest.mark.parametrize(("name", "options", "given", "expected"), SHAPES)
def test_shapes_of_the_papers(name, options, given, expected):
    # Convolutions with holes have no kernels on the meta device.
    with FakeTensorMode() if name in ("pspnet", "danet") else torch.device("meta"):
        model = create_model(name, **options).eval()
        assert model(torch.zeros(1, *given))["out"].shape == (1, *expected)


# Of fc6 and of the last enlargement of each FCN, by the image's side.
FCN_SIZES = {
    224: (211, 106, 53, 27, 14, 8, 288, 304, 312),
    321: (260, 130, 65, 33, 17, 11, 384, 400, 408),
    375: (287, 144, 72, 36, 18, 12, 416, 432, 440),
    500: (349, 175, 88, 44, 22, 16, 544, 560, 568),
    512: (355, 178, 89, 45, 23, 17, 576, 592, 600),
    1024: (611, 306, 153, 77, 39, 33, 1088, 1104, 1112),
}


def test_sizes_of_fcn():
    with torch.device("meta"):
        nets = [create_model(f"fcn{n}s", width=1 / 64).eval() for n in (32, 16, 8)]
        for side, expected in FCN_SIZES.items():
            x = torch.zeros(1, 3, side, 1)
            deep, pools = nets[0].backbone(x)
            sizes = [pool.shape[2] for pool in pools] + [nets[0].fc6(deep).shape[2]]
            sizes += [net.up1(net.score(x)).shape[2] for net in nets]
            assert tuple(sizes) == expected


def sizes_along(model, names, x):
    """Height of what each of the named layers gives."""
    found = {}
    for name in names:
        layer = model.get_submodule(name)
        layer.register_forward_hook(
            lambda _, __, y, key=name: found.setdefault(key, []).append(y.shape[2])
        )
    with torch.no_grad():
        model(x)
    return [size for name in names for size in found[name]]


def test_sizes_of_fcn_on_other_trunks():
    with torch.device("meta"):
        alexnet = create_model("fcn32s", backbone="alexnet", width=1 / 64).eval()
        names = ("backbone.conv1", "backbone.pool", "fc6", "up1")
        assert sizes_along(alexnet, names, torch.zeros(1, 3, 500, 40)) == [173, 86, 43, 21, 16, 543]
        for side, cells, up in ((224, 7, 255), (500, 15, 511)):
            googlenet = create_model("fcn32s", backbone="googlenet", width=1 / 64).eval()
            x = torch.zeros(1, 3, side, 40)
            assert sizes_along(googlenet, ("score_fr", "up1"), x) == [cells, up]


def test_sizes_of_context_networks():
    with FakeTensorMode():
        pspnet = create_model("pspnet", width=1 / 16, backbone="resnet17").eval()
        stages = pspnet.backbone.stages(torch.zeros(1, 3, 473, 473))
        assert pspnet.backbone.conv3.stride == (1, 1)
        assert [stage.shape[2] for stage in stages] == [119, 119, 60, 60, 60]
        danet = create_model("danet", **CASES["danet"].options).eval()
        assert danet.backbone.stages(torch.zeros(1, 3, 768, 64))[-1].shape[2] == 96
    with torch.device("meta"):
        refinenet = create_model("refinenet", **CASES["refinenet"].options).eval()
        stages = refinenet.backbone.stages(torch.zeros(1, 3, 400, 400))
        assert [stage.shape[2] for stage in stages] == [100, 100, 50, 25, 13]
        refinenet.train()
        assert refinenet(torch.zeros(1, 3, 400, 400))["logits"].shape[2:] == (100, 100)
        gcn = create_model("gcn", **CASES["gcn"].options).eval()
        stages = gcn.backbone.stages(torch.zeros(1, 3, 512, 512))
        assert [stage.shape[2] for stage in stages[1:]] == [128, 64, 32, 16]
        resnets = {18: 122, 34: 218, 50: 320, 101: 626, 152: 932}
        for depth, entries in resnets.items():
            trunk = ResNet("x", f"resnet{depth}", 3, output_stride=32)
            assert len(trunk.state_dict()) + 2 == entries


def test_stacks_of_fc_densenet():
    stacks = {
        56: ([96, 144, 192, 240, 288, 336, 384, 336, 288, 240, 192], [48] * 5),
        67: ([128, 208, 288, 368, 448, 528, 608, 528, 448, 368, 288], [80] * 5),
        103: ([112, 192, 304, 464, 656, 896, 1088, 816, 576, 384, 256], [240, 192, 160, 112, 80]),
    }
    for depth, (expected, ups) in stacks.items():
        with torch.device("meta"):
            model = create_model(f"fc_densenet{depth}")
        blocks = (
            [f"down{i}" for i in range(1, 6)] + ["bottleneck"] + [f"up{i}" for i in range(5, 0, -1)]
        )
        assert [model.get_submodule(name).out_channels for name in blocks] == expected
        found = [model.get_submodule(f"transition_up{i}").out_channels for i in range(5, 0, -1)]
        assert found == ups
    with torch.device("meta"):
        model = create_model("fc_densenet103").eval()
        x = torch.zeros(1, 3, 360, 32)
        downs = [f"down{i}" for i in range(1, 6)] + ["bottleneck"]
        assert sizes_along(model, downs, x) == [360, 180, 90, 45, 22, 11]
        ups = [f"transition_up{i}" for i in range(5, 0, -1)]
        assert sizes_along(model, ups, x) == [23, 45, 91, 181, 361]


def lrn(x):
    """1 + alpha / 5 times the squares of five channels, to the power of 0.75."""
    padded = F.pad(x.square(), (0, 0, 0, 0, 2, 2))
    total = sum(padded[:, i : i + x.shape[1]] for i in range(5))
    return x / (1 + 1e-4 / 5 * total) ** 0.75


def pool3(x):
    """3x3 with stride 2, the size rounded up, windows cut off at the border."""
    return F.max_pool2d(x, 3, 2, ceil_mode=True)


def in_ours(module, named):
    module.load_state_dict(named.state)
    return module.double().eval()


def test_caffenet_layer_by_layer():
    """Pools before norms; two groups in the second, fourth and fifth convolution."""
    named, x = Named(), 60 * image(67, 90)
    y = named.conv("conv1", x, 12, 11, stride=4, padding=100).relu()
    pool1 = pool3(y)
    pool2 = pool3(named.conv("conv2", lrn(pool1), 32, 5, padding=2, groups=2).relu())
    y = named.conv("conv3", lrn(pool2), 48, 3, padding=1).relu()
    y = named.conv("conv4", y, 48, 3, padding=1, groups=2).relu()
    y = pool3(named.conv("conv5", y, 32, 3, padding=1, groups=2).relu())
    trunk = in_ours(CaffeNetFeatures(3, 100, 1 / 8), named)
    with torch.no_grad():
        found, pools = trunk(x)
    assert_same(found, y)
    assert_same(pools[8], pool1)
    assert_same(pools[16], pool2)
    # The norm is no small thing at these values.
    assert (lrn(pool1) - pool1).abs().max() > 0.1 * pool1.abs().max()


INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64), "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64), "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128), "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip


def test_googlenet_layer_by_layer():
    named, x = Named(), 60 * image(64, 75)

    def inception(name, x):
        one, red3, three, red5, five, project = (n // 8 if n >= 32 else 4 for n in INCEPTIONS[name])
        at = f"inception_{name}"
        y3 = named.conv(f"{at}.reduce3x3", x, red3, 1).relu()
        y5 = named.conv(f"{at}.reduce5x5", x, red5, 1).relu()
        branches = (
            named.conv(f"{at}.conv1x1", x, one, 1),
            named.conv(f"{at}.conv3x3", y3, three, 3, padding=1),
            named.conv(f"{at}.conv5x5", y5, five, 5, padding=2),
            named.conv(f"{at}.project", F.max_pool2d(x, 3, 1, 1), project, 1),
        )
        return torch.cat([branch.relu() for branch in branches], 1)

    y = lrn(pool3(named.conv("conv1", x, 8, 7, stride=2, padding=3).relu()))
    y = named.conv("conv2", named.conv("conv2_reduce", y, 8, 1).relu(), 24, 3, padding=1).relu()
    y = pool3(lrn(y))
    for name in INCEPTIONS:
        y = inception(name, y)
        if name in ("3b", "4e"):
            y = pool3(y)
    trunk = in_ours(GoogLeNetFeatures(3, 3, 1 / 8), named)
    with torch.no_grad():
        assert_same(trunk(x)[0], y)


def test_parameters_of_googlenets_blocks():
    counts = (163_696, 388_736, 376_176, 449_160, 510_104, 605_376, 868_352, 1_043_456, 1_444_080)
    with torch.device("meta"):
        trunk = GoogLeNetFeatures(3, 3)
    found = [
        sum(p.numel() for p in trunk.get_submodule(f"inception_{name}").parameters())
        for name in INCEPTIONS
    ]
    assert tuple(found) == counts


def gfrnet(named, x):
    """The table of stages; every stage's scores, first to last."""
    eps, taps, number = 1e-9, [], 0

    def block(key, y, channels, relu=True):
        y = named.norm(f"{key}.norm", named.conv(f"{key}.conv", y, channels, 3, padding=1), eps)
        return y.relu() if relu else y

    y = x
    for stage, (depth, channels) in enumerate(((2, 4), (2, 8), (3, 16), (3, 32), (3, 32)), 1):
        for i in range(1, depth + 1):
            y = block(f"encoder.stage{stage}.{i}", y, channels)
        taps.append(y)
        y = F.max_pool2d(y, 2, ceil_mode=True)
    deep = block("conv7", block("conv6", y, 64), 64)
    scores = [named.conv("predict1", deep, 11, 3, padding=1)]
    lateral = named.conv("lateral1", y, 11, 3, padding=1)
    for number, tap in enumerate(reversed(taps), start=2):
        at = f"refine{number}"
        own = block(f"{at}.lateral", tap, 11, relu=False)
        gated = named.norm(f"{at}.gate_norm", own * align(lateral, own.shape[2:]), eps)
        pair = [gated, align(scores[-1], own.shape[2:])]
        if number == 5:
            pair.reverse()
        scores.append(named.conv(f"{at}.predict", torch.cat(pair, 1), 11, 3, padding=1))
        lateral = own
    return scores


def test_gfrnet_stage_by_stage():
    named, x = Named(), image(45, 61)
    expected = gfrnet(named, x)
    model = in_ours(create_model("gfrnet", width=1 / 16), named)
    with torch.no_grad():
        assert_same(model(x)["out"], expected[-1])
        # What training supervises, with the statistics and without the dropout of evaluation.
        model.training = True
        outputs = model(x)
    for i, scores in enumerate(expected[:-1], start=1):
        assert_same(outputs[f"stage_{i}"], align(scores, (45, 61)))


def test_linknet_layer_by_layer():
    """A ReLU after every addition; biases and another eps in the decoders; stride 1 in the last."""
    named, x = Named(), image(64, 96)

    def up(key, y, channels, stride):
        inner = y.shape[1] // 4
        y = named.norm(f"{key}.1", named.conv(f"{key}.0", y, inner, 1), 1e-3).relu()
        y = named.up(f"{key}.3", y, inner, 3, stride, padding=1, output_padding=stride - 1)
        y = named.norm(f"{key}.4", y, 1e-3).relu()
        return named.norm(f"{key}.7", named.conv(f"{key}.6", y, channels, 1), 1e-3).relu()

    y = named.conv_norm_relu("backbone.conv1", "backbone.bn1", x, 8, 7, stride=2, padding=3)
    skips = [F.max_pool2d(y, 3, 2, 1)]
    for i, planes in enumerate((8, 16, 32, 64), start=1):
        stride = 1 if i == 1 else 2
        skips.append(named.basic_layer(f"backbone.layer{i}", skips[-1], planes, stride))
    y = skips.pop()
    for i, stride in ((4, 2), (3, 2), (2, 2), (1, 1)):
        skip = skips.pop()
        y = (skip + up(f"decoder{i}", y, skip.shape[1], stride)).relu()
    y = named.up("final.0", y, 4, 3, 2, padding=1, output_padding=1)
    y = named.norm("final.1", y).relu()
    y = named.norm("final.4", named.conv("final.3", y, 4, 3, padding=1), 1e-3).relu()
    expected = named.up("classifier", y, 19, 2, 2)
    model = in_ours(create_model("linknet", width=1 / 8), named)
    with torch.no_grad():
        assert_same(model(x)["out"], expected)


# Rates of dropout layers by kind, and of batch norms (eps, momentum, how many).
CONSTANTS = {
    "fcn8s": ({("Dropout", 0.5): 1}, {}),
    "unet": ({("Dropout", 0.5): 1}, {}),
    "fc_densenet56": ({("Dropout", 0.2): 49}, {(1e-4, 0.1): 49}),
    "linknet": ({}, {(1e-5, 0.1): 21, (1e-3, 0.1): 13}),
    "pspnet": ({("Dropout", 0.1): 2}, {(1e-5, 0.05): 112}),
    "refinenet": ({("Dropout", 0.0): 2, ("Dropout", 0.5): 3}, {(1e-5, 0.1): 104}),
    "gfrnet": ({("Dropout", 0.5): 4}, {(1e-9, 0.1): 25}),
    "gcn": ({}, {(1e-5, 0.1): 155}),
    "danet": ({("Dropout2d", 0.1): 1}, {(1e-5, 0.1): 108}),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_dropout_and_batch_norm(name):
    with torch.device("meta"):
        model = create_model(name)
    dropouts, norms = {}, {}
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            key = (type(module).__name__, module.p)
            dropouts[key] = dropouts.get(key, 0) + 1
        elif isinstance(module, nn.BatchNorm2d):
            key = (module.eps, module.momentum)
            norms[key] = norms.get(key, 0) + 1
    assert (dropouts, norms) == CONSTANTS[name]
    with torch.device("meta"):
        assert create_model("fcn32s", backbone="googlenet", width=1 / 64).dropout.p == 0.4


def test_first_values():
    torch.manual_seed(0)
    model = create_model("gfrnet", width=1 / 4)
    assert not model.encoder.stage3[0].norm.bias.any()
    for norm in (model.conv6.norm, model.refine3.lateral.norm, model.refine3.gate_norm):
        assert torch.equal(norm.bias, torch.full_like(norm.bias, 1e-3))
    conv = model.conv7.conv
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    model = create_model("refinenet", width=1 / 4, backbone="resnet17")
    weight = model.refine2.units_in[0].conv1.weight
    assert weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not model.refine2.units_in[0].conv1.bias.any()
    model = create_model("linknet", width=1 / 2)
    assert model.decoder4[0].weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.03)
    assert model.backbone.layer4[1].conv1.weight.std().item() == pytest.approx(
        (2 / (9 * 256)) ** 0.5, rel=0.02
    )
    conv = create_model("fc_densenet56").up1[3].conv
    bound = (6 / (9 * conv.in_channels)) ** 0.5
    assert 0.98 * bound < conv.weight.abs().max() <= bound and not conv.bias.any()
    model = create_model("danet", **CASES["danet"].options)
    assert not model.position.gamma.any() and not model.channel.gamma.any()


NETWORKS = (
    "crfasrnn", "danet", "fc_densenet56", "fcn16s", "fcn32s", "fcn8s", "gcn", "gfrnet", "linknet",
    "patch_cnn", "pspnet", "random_forest", "refinenet", "texton_forest", "unet",
)  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_wrong_inputs_name_the_network(name):
    options = CASES[name].options if name in CASES else {}
    model = create_model(name, **options).eval()
    x = torch.zeros(1, 3, 40, 40)
    for bad, error, message in (
        (x[0], ValueError, r"must be \(N, C, H, W\) with at least one pixel, got \(3, 40, 40\)"),
        (x[..., :0], ValueError, r"must be \(N, C, H, W\) with at least one pixel, got"),
        (x[:, :2], ValueError, "must have 3 channels, got"),
        (x.to(torch.uint8), TypeError, "must be floating point, got torch.uint8"),
        (x.long(), TypeError, "must be floating point, got torch.int64"),
        (x.numpy(), TypeError, "must be a tensor, got ndarray"),
    ):
        with pytest.raises(error, match=f"^{name}: input {message}"):
            model(bad)


@pytest.mark.parametrize("name", NETWORKS)
def test_options_of_another_type(name):
    with pytest.raises(ValueError, match=f"^{name}: num_classes must be a positive int, got 0"):
        create_model(name, num_classes=0)
    with pytest.raises(ValueError, match=f"^{name}: in_channels must be a positive int, got 3.0"):
        create_model(name, in_channels=3.0)
    with pytest.raises(TypeError, match=f"{name} takes no argument 'colour'"):
        create_model(name, colour=1)
    if name.endswith("forest"):
        with pytest.raises(TypeError, match=f"^{name}: tile must be an int, got '512'"):
            create_model(name, tile="512")
    elif not name.startswith("fc_"):
        for width in (0, -1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=f"^{name}: width must be a number above 0, got"):
                create_model(name, width=width)
        with pytest.raises(TypeError, match=f"^{name}: width must be a number, got '1'"):
            create_model(name, width="1")


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("unet", {"tile": 384.0}, "tile must be an int, got 384.0"),
        ("unet", {"dropout": "0.5"}, "dropout must be a number, got '0.5'"),
        ("fcn8s", {"at_once": 1}, "at_once must be a bool, got 1"),
        ("fc_densenet56", {"layers": 4}, r"layers must be tuple\[int, ...\], got 4"),
        ("fc_densenet56", {"growth_rate": True}, "growth_rate must be an int, got True"),
        ("pspnet", {"bins": (1, 2.0)}, r"bins must be tuple\[int, ...\], got \(1, 2.0\)"),
        ("danet", {"multi_grid": (1, True, 4)}, r"multi_grid must be tuple\[int, ...\]"),
        ("crfasrnn", {"gaussian": 3.0}, r"gaussian must be tuple\[float, ...\], got 3.0"),
        ("linknet", {"backbone": 18}, "backbone must be a str, got 18"),
        ("patch_cnn", {"tile": None}, "tile must be an int, got None"),
    ],
)
def test_types_of_options(name, option, message):
    with pytest.raises(TypeError, match=f"^{name}: {message}"):
        create_model(name, **option)


def test_features_of_the_random_forest():
    """Gaussian, edges and eigenvalues of the Hessian at each width, then place and colour."""
    ndimage = pytest.importorskip("scipy.ndimage")
    pytest.importorskip("skimage")
    from segkern.models.random_forest import pixel_features

    picture = np.random.default_rng(0).random((3, 23, 31), dtype=np.float32)
    found = pixel_features(picture)
    assert found.shape == (23, 31, 77) and found.dtype == np.float32
    smooth, wide = np.array([1, 2, 1]) / 4, np.array([1, 0, -1])
    planes = []
    for plane in picture.astype(np.float64):
        for sigma in (0.5, 1, 2, 4, 8, 16):
            blurred = ndimage.gaussian_filter(plane, sigma, mode="nearest")
            edges = [
                ndimage.convolve1d(ndimage.convolve1d(blurred, smooth, axis=a), wide, axis=1 - a)
                for a in (0, 1)
            ]
            dy, dx = np.gradient(blurred)
            yy, yx = np.gradient(dy)
            xx = np.gradient(dx, axis=1)
            middle, spread = (yy + xx) / 2, np.sqrt(((yy - xx) / 2) ** 2 + yx**2)
            planes += [blurred, np.sqrt((edges[0] ** 2 + edges[1] ** 2) / 2)]
            planes += [middle + spread, middle - spread]
    rows, columns = np.indices((23, 31))
    planes += [rows / 22, columns / 30]
    assert np.abs(found[..., :74] - np.stack(planes, -1)).max() < 1e-5
    # CIELab of white is (100, 0, 0).
    white = pixel_features(np.ones((3, 4, 4), dtype=np.float32))[..., 74:]
    assert np.abs(white - [1, 0, 0]).max() < 1e-3
