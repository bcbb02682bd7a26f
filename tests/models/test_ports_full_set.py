"""Ports of the full set: state dicts in their names load, and the scores are the port's.

The names and the order of the layers are facts of those repositories. What a port computes is
written out here in plain calls of torch, from the tensors under its own names.
"""

from __future__ import annotations

import pytest
import torch
from modeltester import assert_same
from plain_layers import Named, align, image
from torch.nn import functional as F

from segkern.models import WeightsError, create_model
from segkern.models._bilinear import bilinear_kernel
from segkern.models._ports import find_port
from segkern.nn import CRFAsRNN

models = pytest.importorskip("torchvision.models")

CLASSES = 4


def loaded(name, named, tmp_path, **options):
    path = tmp_path / "port.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in named.state.items()}}, path)
    model = create_model(name, weights=path, **options).double().eval()
    assert model.config["num_classes"] == CLASSES
    return model


def same(model, x, expected, tolerance=1e-9):
    with torch.no_grad():
        assert_same(model(x)["out"], expected, tolerance)


def vgg16(named, x):
    """Caffe's names at 1/64 of the width; what pools 3, 4 and 5 give."""
    pools = []
    for stage, depth in enumerate((2, 2, 3, 3, 3), start=1):
        for i in range(1, depth + 1):
            channels = max(4, (64, 128, 256, 512, 512)[stage - 1] // 64)
            pad = 100 if (stage, i) == (1, 1) else 1
            x = named.conv(f"conv{stage}_{i}", x, channels, 3, padding=pad).relu()
        x = F.max_pool2d(x, 2, ceil_mode=True)
        pools.append(x)
    return pools[2:]


def bilinear(size, stride, x):
    weight = torch.zeros(CLASSES, CLASSES, size, size, dtype=torch.float64)
    for i in range(CLASSES):
        weight[i, i] = bilinear_kernel(size)
    return F.conv_transpose2d(x, weight, stride=stride)


def fcn(named, x, finest, learnt=(), upscore2_bias=False):
    """Caffe's FCN; transposed convolutions are bilinear but for the names in ``learnt``."""
    pool3, pool4, pool5 = vgg16(named, x)
    y = named.conv("fc6", pool5, 64, 7).relu()
    y = named.conv("fc7", y, 64, 1).relu()
    y = named.conv("score_fr", y, CLASSES, 1)

    def enlarge(key, y, size, stride):
        if key in learnt:
            return named.up(key, y, CLASSES, size, stride, bias=False)
        named.state[f"{key}.weight"] = torch.zeros(CLASSES, CLASSES, size, size)
        for i in range(CLASSES):
            named.state[f"{key}.weight"][i, i] = bilinear_kernel(size)
        return bilinear(size, stride, y)

    def crop(y, first, like):
        height, width = like.shape[-2:]
        return y[..., first : first + height, first : first + width]

    if finest == 32:
        return crop(enlarge("upscore", y, 64, 32), 19, x)
    y = enlarge("upscore2", y, 4, 2)
    if upscore2_bias:
        y = y + named.tensor("upscore2.bias", CLASSES)[:, None, None]
    y = y + crop(named.conv("score_pool4", pool4, CLASSES, 1), 5, y)
    if finest == 16:
        return crop(enlarge("upscore16", y, 32, 16), 27, x)
    y = enlarge("upscore_pool4", y, 4, 2)
    y = y + crop(named.conv("score_pool3", pool3, CLASSES, 1), 9, y)
    return crop(enlarge("upscore8", y, 16, 8), 31, x)


@pytest.mark.parametrize(
    ("finest", "learnt", "option"),
    [
        (32, (), "fixed"),
        (8, (), "fixed"),
        (8, ("upscore2",), "intermediate"),
        (16, ("upscore16",), "learnt"),
    ],
)
def test_fcn(finest, learnt, option, tmp_path):
    named, x = Named(), image(33, 47)
    expected = fcn(named, x, finest, learnt)
    model = loaded(f"fcn{finest}s", named, tmp_path, width=1 / 64)
    assert model.config["upsampling"] == option
    same(model, x, expected)


def test_fcn_at_once_is_an_option(tmp_path):
    """Its files have the same names: pools are scaled where the option says so."""
    named, x = Named(), image(20, 24)
    fcn(named, x, 8)
    for key, factor in (("score_pool4", 0.01), ("score_pool3", 0.0001)):
        named.state[f"{key}.weight"] *= factor
    expected = fcn(named, x, 8)
    for key, factor in (("score_pool4", 0.01), ("score_pool3", 0.0001)):
        named.state[f"{key}.weight"] /= factor
    same(loaded("fcn8s", named, tmp_path, width=1 / 64, at_once=True), x, expected, 1e-6)


def test_a_port_is_where_a_finer_fcn_starts(tmp_path):
    named, x = Named(), image(20, 24)
    fcn(named, x, 32)
    torch.save(named.state, tmp_path / "port.pth")
    options = {"width": 1 / 64, "num_classes": CLASSES}
    model = create_model("fcn16s", weights_backbone=tmp_path / "port.pth", **options)
    assert torch.equal(model.backbone.features[28].weight, named.state["conv5_3.weight"])
    assert torch.equal(model.score_fr.weight, named.state["score_fr.weight"])
    assert not model.score_pool16.weight.any()


def test_crf_as_rnn(tmp_path):
    """FCN-8s with a bias after its first enlargement, and the layer in the port's signs."""
    named, x = Named(), image(20, 24)
    scores = fcn(named, x, 8, upscore2_bias=True)
    for key in ("spatial_ker_weights", "bilateral_ker_weights", "compatibility_matrix"):
        named.tensor(f"crfrnn.{key}", CLASSES, CLASSES, scale=0.3)
    model = loaded("crfasrnn", named, tmp_path, width=1 / 64, iterations=3)
    layer = CRFAsRNN(CLASSES, iterations=3).eval()
    layer.load_port(named.state)
    assert torch.equal(model.crf_rnn.compatibility.float(), layer.compatibility)
    with torch.no_grad():
        expected = layer(scores.float(), (x + 0.0).float())
        found = model(x)["out"]
    # The layer computes in float32.
    assert (found - expected).abs().max() < 1e-3 * expected.std()


def test_unet(tmp_path):
    named, x = Named(), image(188, 188, 1)

    def pair(key, y, channels):
        y = named.conv(f"{key}.block.0", y, channels, 3).relu()
        return named.conv(f"{key}.block.2", y, channels, 3).relu()

    y, skips = x, []
    for i in range(5):
        y = pair(f"down_path.{i}", y, 4 * 2**i)
        if i < 4:
            skips.append(y)
            y = F.max_pool2d(y, 2)
    for i in range(4):
        y = named.up(f"up_path.{i}.up", y, 4 * 2 ** (3 - i), 2, 2)
        skip = skips.pop()
        top, left = ((s - n) // 2 for s, n in zip(skip.shape[-2:], y.shape[-2:], strict=True))
        skip = skip[..., top : top + y.shape[2], left : left + y.shape[3]]
        y = pair(f"up_path.{i}.conv_block", torch.cat([y, skip], 1), 4 * 2 ** (3 - i))
    expected = named.conv("last", y, CLASSES, 1)
    assert expected.shape[-2:] == (4, 4)
    model = loaded("unet", named, tmp_path, border="none")
    assert (model.config["in_channels"], model.config["width"]) == (1, 1 / 16)
    same(model, x, expected)


def test_fc_densenet(tmp_path):
    named, x = Named(), image(45, 61)
    layers = (1, 2, 1, 1, 1, 2, 1, 1, 1, 2, 1)

    def dense(key, y, count):
        new = []
        for i in range(count):
            at = f"{key}.layers.{i}"
            new.append(
                named.conv(f"{at}.conv", named.norm(f"{at}.norm", y).relu(), 3, 3, padding=1)
            )
            y = torch.cat([y, new[-1]], 1)
        return y, torch.cat(new, 1)

    y, skips = named.conv("firstconv", x, 5, 3, padding=1), []
    for i in range(5):
        y, _ = dense(f"denseBlocksDown.{i}", y, layers[i])
        skips.append(y)
        at = f"transDownBlocks.{i}"
        y = F.max_pool2d(
            named.conv(f"{at}.conv", named.norm(f"{at}.norm", y).relu(), y.shape[1], 1), 2
        )
    _, y = dense("bottleneck.bottleneck", y, layers[5])
    for i in range(5):
        y = named.up(f"transUpBlocks.{i}.convTrans", y, y.shape[1], 3, 2)
        skip = skips.pop()
        top, left = ((n - s) // 2 for s, n in zip(skip.shape[-2:], y.shape[-2:], strict=True))
        y = y[..., top : top + skip.shape[2], left : left + skip.shape[3]]
        stack, y = dense(f"denseBlocksUp.{i}", torch.cat([y, skip], 1), layers[6 + i])
    expected = named.conv("finalConv", stack, CLASSES, 1)
    model = loaded("fc_densenet103", named, tmp_path)
    assert model.config["layers"] == layers
    # The float32 difference of a variance and the difference in eps costs a relative 1e-7.
    same(model, x, expected, 1e-5)


def pspnet(named, x, aux):
    for i, channels, stride in ((0, 4, 2), (3, 4, 1), (6, 8, 1)):
        conv, norm = f"layer0.{i}", f"layer0.{i + 1}"
        x = named.conv_norm_relu(conv, norm, x, channels, 3, stride=stride, padding=1)
    x = F.max_pool2d(x, 3, 2, 1)
    x = named.layer("layer1", x, 4, rates=(1, 1))
    x = named.layer("layer2", x, 8, stride=2)
    # Rates of the whole layer, the first block too: the line that these files go with.
    x = middle = named.layer("layer3", x, 16, rates=(2,))
    x = named.layer("layer4", x, 32, rates=(4,))
    parts = [x]
    for i, cells in enumerate((1, 2, 3, 6)):
        at = f"ppm.features.{i}"
        y = named.conv_norm_relu(f"{at}.1", f"{at}.2", F.adaptive_avg_pool2d(x, cells), 32, 1)
        parts.append(align(y, x.shape[-2:]))
    x = named.conv_norm_relu("cls.0", "cls.1", torch.cat(parts, 1), 32, 3, padding=1)
    if aux:
        y = named.conv_norm_relu("aux.0", "aux.1", middle, 16, 3, padding=1)
        named.conv("aux.4", y, CLASSES, 1)
    return named.conv("cls.4", x, CLASSES, 1)


LIGHT = {"width": 1 / 16, "backbone": "resnet17"}


@pytest.mark.parametrize("aux", [True, False])
def test_pspnet(aux, tmp_path):
    named, x = Named(), image(65, 81)
    expected = align(pspnet(named, x, aux), x.shape[-2:])
    model = loaded("pspnet", named, tmp_path, **LIGHT)
    assert (model.config["rates"], model.config["aux"]) == ("whole_layer", aux)
    assert [b.conv2.dilation[0] for b in (model.backbone.layer3[0], model.backbone.layer4[0])] == [
        2,
        4,
    ]
    same(model, x, expected)


def plain_stem(named, conv, norm, x):
    x = named.conv_norm_relu(conv, norm, x, 4, 7, stride=2, padding=3)
    return x, F.max_pool2d(x, 3, 2, 1)


def test_refinenet(tmp_path):
    named, x = Named(), image(45, 61)
    _, y = plain_stem(named, "conv1", "bn1", x)
    taps = []
    for i, planes, stride, rates in (
        (1, 4, 1, (1, 1)),
        (2, 8, 2, (1,)),
        (3, 16, 2, (1,)),
        (4, 32, 2, (1,)),
    ):
        y = named.layer(f"layer{i}", y, planes, stride, rates)
        taps.append(y)

    def conv3(key, y, channels, bias=False):
        return named.conv(key, y, channels, 3, bias=bias, padding=1)

    def units(key, y, count):
        for i in range(1, count + 1):
            z = conv3(f"{key}.0.{i}_conv", y.relu(), y.shape[1], bias=True)
            y = y + conv3(f"{key}.0.{i}_conv_relu_varout_dimred", z.relu(), y.shape[1])
        return y

    below = None
    for n, tap in enumerate(reversed(taps), start=1):
        channels = 32 if n == 1 else 16
        y = units(f"adapt_stage{n}_b", conv3(f"p_ims1d2_outl{n}_dimred", tap, channels), 2)
        if below is not None:
            below = conv3(f"mflow_conv_g{n - 1}_b3_joint_varout_dimred", below, channels)
            y = conv3(f"adapt_stage{n}_b2_joint_varout_dimred", y, channels)
            y = y + align(below, y.shape[-2:])
        y = top = y.relu()
        for i in range(1, 5):
            top = F.max_pool2d(top, 5, 1, 2)
            top = conv3(f"mflow_conv_g{n}_pool.0.{i}_outvar_dimred", top, channels)
            y = y + top
        below = units(f"mflow_conv_g{n}_b", y, 3)
    expected = align(conv3("clf_conv", below, CLASSES, bias=True), x.shape[-2:])
    model = loaded("refinenet", named, tmp_path, **LIGHT)
    assert model.recipe.input == "imagenet" and model.config["pool_blocks"] == 4
    same(model, x, expected)


def test_gcn(tmp_path):
    named, x = Named(), image(64, 96)
    half, y = plain_stem(named, "layer0.0", "layer0.1", x)
    taps = [named.layer("layer1.1", y, 4, rates=(1, 1))]
    for i, planes in ((2, 8), (3, 16), (4, 32)):
        taps.append(named.layer(f"layer{i}", taps[-1], planes, stride=2))

    def refine(n, y):
        z = named.conv(f"brm{n}.conv1", y, CLASSES, 3, padding=1).relu()
        return y + named.conv(f"brm{n}.conv2", z, CLASSES, 3, padding=1)

    scores = []
    for n, tap in enumerate(reversed(taps), start=1):
        k, tall, wide = 5, {"padding": (2, 0)}, {"padding": (0, 2)}
        left = named.conv(f"gcm{n}.conv_l1", tap, CLASSES, (k, 1), **tall)
        left = named.conv(f"gcm{n}.conv_l2", left, CLASSES, (1, k), **wide)
        right = named.conv(f"gcm{n}.conv_r1", tap, CLASSES, (1, k), **wide)
        right = named.conv(f"gcm{n}.conv_r2", right, CLASSES, (k, 1), **tall)
        scores.append(refine(n, left + right))
    y = scores[0]
    for n, beside in zip((5, 6, 7), scores[1:], strict=True):
        y = refine(n, align(y, beside.shape[-2:]) + beside)
    y = refine(8, align(y, half.shape[-2:]))
    expected = refine(9, align(y, x.shape[-2:]))
    model = loaded("gcn", named, tmp_path, **LIGHT)
    assert model.config["kernel_size"] == 5
    same(model, x, expected)


@pytest.mark.parametrize("stem", ["plain", "deep"])
def test_danet(stem, tmp_path):
    named, x = Named(), image(33, 41)
    trunk = "pretrained."
    if stem == "plain":
        _, y = plain_stem(named, f"{trunk}conv1", f"{trunk}bn1", x)
    else:
        y = x
        names = (
            ("conv1.0", "conv1.1", 4, 2),
            ("conv1.3", "conv1.4", 4, 1),
            ("conv1.6", "bn1", 8, 1),
        )
        for conv, norm, channels, stride in names:
            conv, norm = trunk + conv, trunk + norm
            y = named.conv_norm_relu(conv, norm, y, channels, 3, stride=stride, padding=1)
        y = F.max_pool2d(y, 3, 2, 1)
    y = named.layer(f"{trunk}layer1", y, 4, rates=(1, 1))
    y = named.layer(f"{trunk}layer2", y, 8, stride=2)
    y = named.layer(f"{trunk}layer3", y, 16, rates=(1,))
    # Without a multi-grid the first block keeps the rate before it.
    y = named.layer(f"{trunk}layer4", y, 32, rates=(2,))
    named.tensor(f"{trunk}fc.weight", 5, 128)

    def block(n, y):
        return named.conv_norm_relu(f"head.conv{n}.0", f"head.conv{n}.1", y, 32, 3, padding=1)

    a, c = block("5a", y), block("5c", y)
    query = named.conv("head.sa.query_conv", a, 4, 1).flatten(2)
    key = named.conv("head.sa.key_conv", a, 4, 1).flatten(2)
    value = named.conv("head.sa.value_conv", a, 32, 1).flatten(2)
    weights = torch.softmax(query.transpose(1, 2) @ key, -1)
    attended = (value @ weights.transpose(1, 2)).view_as(a)
    a = block("51", a + named.tensor("head.sa.gamma", 1, shift=1.0) * attended)
    flat = c.flatten(2)
    energy = flat @ flat.transpose(1, 2)
    weights = torch.softmax(energy.amax(-1, keepdim=True) - energy, -1)
    c = block("52", c + named.tensor("head.sc.gamma", 1, shift=1.0) * (weights @ flat).view_as(c))
    for n, part in ((6, a), (7, c)):
        named.conv(f"head.conv{n}.1", part, CLASSES, 1)
    expected = align(named.conv("head.conv8.1", a + c, CLASSES, 1), x.shape[-2:])
    model = loaded("danet", named, tmp_path, multi_grid=(1,), **LIGHT)
    assert model.config["stem"] == stem
    same(model, x, expected)


def test_depths_of_trunks_are_read(tmp_path):
    """Of semseg's names; the shapes alone tell the network."""
    for blocks, name in ((6, "resnet50"), (23, "resnet101"), (36, "resnet152")):
        state = {f"layer3.{i}.conv1.weight": torch.zeros(1) for i in range(blocks)}
        marks = ("layer0.0", "layer0.6", "ppm.features.0.1", "cls.4")
        state |= {f"{mark}.weight": torch.zeros(1) for mark in marks}
        torch.save(state, tmp_path / "port.pth")
        with torch.device("meta"), pytest.raises(WeightsError, match="names of hszhao/semseg"):
            create_model("pspnet", num_classes=4, weights=tmp_path / "port.pth")
        assert find_port("pspnet", state).infer(state)["backbone"] == name


REFUSED = {
    "fcn8s": [
        (["backbone.layer4.0.conv2.weight", "classifier.4.weight"], "a ResNet with holes"),
        (["features.0.weight", "features.28.weight", "classifier.6.weight"], "trunk, fc6 and fc7"),
    ],
    "unet": [
        (["inc.double_conv.0.weight", "outc.conv.weight"], "are padded, batch norm follows"),
        (["down_path.0.block.2.running_mean", "last.weight"], "batch norm follows every ReLU"),
        (["down_path.0.block.2.weight", "up_path.0.up.1.weight"], "enlarges bilinearly"),
    ],
    "linknet": [
        (["in_block.0.weight", "decoder1.tp_conv.0.weight", "tp_conv2.weight"], "no ReLU follows"),
        (
            ["encoder1.block1.conv1.weight", "decoder1.tp_conv.0.weight", "tp_conv2.weight"],
            "no ReLU follows",
        ),
    ],
}


@pytest.mark.parametrize(
    ("network", "keys", "reason"), [(name, *row) for name, rows in REFUSED.items() for row in rows]
)
def test_ports_of_other_networks_are_refused(network, keys, reason, tmp_path):
    torch.save({key: torch.zeros(1) for key in keys}, tmp_path / "port.pth")
    with pytest.raises(WeightsError, match=f"which is another network: .*{reason}"):
        create_model(network, weights=tmp_path / "port.pth")
