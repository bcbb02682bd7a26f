"""Trunks with holes: the rates of each output stride, exactness, torchvision's weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from modeltester import seed_weights

from segkern.models import WeightsError, create_model
from segkern.models._resize import interp_size, resize_corners
from segkern.models.backbones import ResNet, VGG16Features, Xception
from segkern.models.backbones.xception import Unit
from segkern.models.deeplabv1 import LARGE_FOV_POOLS
from segkern.nn import AtrousConv2d

models = pytest.importorskip("torchvision.models")


def seeded(module: torch.nn.Module) -> torch.nn.Module:
    seed_weights(module)
    return module.double().eval()


def rates(layer: torch.nn.Module) -> list[int]:
    return [block.conv2.dilation[0] for block in layer]


@pytest.mark.parametrize(
    ("options", "layer3", "layer4"),
    [
        # torchvision's lines, and the original's with the stride in the 1x1 convolution.
        ({"output_stride": 8}, (1, 2), [2, 4, 4]),
        ({"output_stride": 16}, (1, 1), [1, 2, 2]),
        ({"output_stride": 8, "stride_in": "1x1"}, (2, 2), [4, 4, 4]),
        ({"output_stride": 16, "stride_in": "1x1"}, (1, 1), [2, 2, 2]),
        # hszhao/semseg's: those rates in spite of the other stride.
        ({"output_stride": 8, "exact": False}, (2, 2), [4, 4, 4]),
        # DeepLab v3's multi-grid.
        ({"output_stride": 8, "multi_grid": (1, 2, 4)}, (1, 2), [4, 8, 16]),
        ({"output_stride": 16, "multi_grid": (1, 2, 4)}, (1, 1), [2, 4, 8]),
        ({"output_stride": 32, "multi_grid": (1, 2, 4)}, (1, 1), [1, 2, 4]),
    ],
)
def test_rates(options, layer3, layer4):
    with torch.device("meta"):
        net = ResNet("x", "resnet50", 3, **options)
    assert rates(net.layer3) == [layer3[0], *[layer3[1]] * 5]
    assert rates(net.layer4) == layer4
    for block in (*net.layer3, *net.layer4):
        assert isinstance(block.conv2, AtrousConv2d) == (block.conv2.dilation[0] > 1)
        assert block.conv2.padding == block.conv2.dilation


def test_rates_of_the_cascade():
    with torch.device("meta"):
        net = create_model("deeplabv3_cascade", backbone="resnet50").backbone
    found = [rates(getattr(net, f"layer{i}")) for i in range(4, 8)]
    assert found == [[2, 4, 2], [4, 8, 4], [8, 16, 8], [16, 32, 16]]
    assert all(block.downsample is None for block in net.layer5)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize(
    "make",
    [
        lambda stride: ResNet("x", "resnet50", 3, output_stride=stride, width=1 / 16),
        lambda stride: ResNet(
            "x", "resnet50", 3, output_stride=stride, width=1 / 16, stride_in="1x1", ceil_pool=True
        ),
        lambda stride: Xception("x", "xception41", 3, output_stride=stride, width=1 / 32),
    ],
    ids=["stride in 3x3", "stride in 1x1", "xception"],
)
def test_holes_compute_what_strides_do_and_more(make, output_stride):
    """Every n-th pixel of the finer features is one of the strided network's."""
    coarse, fine = seeded(make(32)), make(output_stride)
    fine.load_state_dict(coarse.state_dict())
    image = torch.randn(1, 3, 65, 97, dtype=torch.float64)
    with torch.no_grad():
        expected, low = coarse(image)
        found, same = fine.double().eval()(image)
    step = 32 // output_stride
    torch.testing.assert_close(found[..., ::step, ::step], expected, rtol=1e-9, atol=1e-9)
    assert found.shape[-2:] == (65 // output_stride + 1, 97 // output_stride + 1)
    assert torch.equal(low, same)
    assert low.shape[-2:] == (17, 25)


def test_a_unit_of_xception_by_hand():
    unit = seeded(Unit(4, (6, 6, 8), stride=2, rates=(1, 2, 3), norm_layer=torch.nn.BatchNorm2d))
    x = torch.randn(2, 4, 11, 12, dtype=torch.float64)

    def norm(y, layer):
        shape = (1, -1, 1, 1)
        y = (y - layer.running_mean.view(shape)) / (layer.running_var.view(shape) + 1e-5).sqrt()
        return y * layer.weight.view(shape) + layer.bias.view(shape)

    y, outputs = x, []
    for i, rate in enumerate((1, 2, 3), start=1):
        pair = unit.get_submodule(f"conv{i}")
        depthwise, pointwise = pair.depthwise, pair.pointwise
        stride = 2 if i == 3 else 1
        y = torch.conv2d(
            y.clamp(min=0), depthwise[0].weight, None, stride, rate, rate, groups=y.shape[1]
        )
        # Nothing between the two but batch norm, as released.
        y = norm(torch.conv2d(norm(y, depthwise[1]), pointwise[0].weight), pointwise[1])
        outputs.append(y)
    shortcut = torch.conv2d(x, unit.shortcut[0].weight, stride=2)
    with torch.no_grad():
        found, second = unit(x)
    torch.testing.assert_close(found, y + norm(shortcut, unit.shortcut[1]))
    torch.testing.assert_close(second, outputs[1])


@pytest.mark.parametrize(
    ("make", "layer", "channels"),
    [
        (lambda: ResNet("x", "resnet17", 3, width=1 / 16), "layer1.1.bn3", 16),
        (lambda: Xception("x", "xception20", 3, width=1 / 16), "block2.conv2", 16),
    ],
    ids=["resnet", "xception"],
)
def test_low_level_features_are_taken_before_sum_and_relu(make, layer, channels):
    net = seeded(make())
    seen = []
    net.get_submodule(layer).register_forward_hook(lambda *call: seen.append(call[-1].clone()))
    with torch.no_grad():
        _, low = net(torch.randn(1, 3, 41, 49, dtype=torch.float64))
    assert torch.equal(low, seen[0])
    assert low.shape == (1, channels, 11, 13) and low.min() < 0


def test_torchvisions_resnet_and_weights(tmp_path):
    theirs = models.resnet50(replace_stride_with_dilation=[False, True, True])
    seed_weights(theirs)
    file = tmp_path / "resnet50.pth"
    torch.save(theirs.state_dict(), file)
    model = create_model("deeplabv3", backbone="resnet50", output_stride=8, weights_backbone=file)
    assert model.recipe.input == "imagenet"
    ours = ResNet("x", "resnet50", 3, output_stride=8)
    ours.load_state_dict(model.backbone.state_dict())
    image = torch.randn(1, 3, 49, 41)
    features = torch.nn.Sequential(*list(theirs.eval().children())[:-2])
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(image)[0], features(image), rtol=1e-3, atol=1e-3)
    with pytest.raises(WeightsError, match="(?s)does not fit resnet50:.*conv1.weight: file"):
        create_model(
            "deeplabv3",
            backbone="resnet50",
            stem="deep",
            weights_backbone=file,
        )
    cascade = create_model("deeplabv3_cascade", backbone="resnet50", weights_backbone=file)
    assert torch.equal(cascade.backbone.layer4[2].conv3.weight, theirs.layer4[2].conv3.weight)


def test_names_of_torchvision_weights(monkeypatch):
    small = {"width": 1 / 16, "backbone": "resnet50"}
    state = create_model("deeplabv3", **small).backbone.state_dict()
    asked = []

    def fetch(self, **_):
        asked.append(str(self))
        return {**state, "fc.weight": torch.zeros(1000, 128), "fc.bias": torch.zeros(1000)}

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", fetch)
    model = create_model("deeplabv3", weights_backbone="IMAGENET1K_V2", **small)
    assert asked == ["ResNet50_Weights.IMAGENET1K_V2"]
    assert torch.equal(model.backbone.conv1.weight, state["conv1.weight"])
    for name, options, text in (
        ("deeplabv3", small, "VGG16_Weights.IMAGENET1K_V1"),
        ("deeplabv3plus", {"backbone": "xception41", "width": 1 / 32}, "IMAGENET1K_V1"),
    ):
        with pytest.raises(WeightsError, match="neither a file nor the name of torchvision"):
            create_model(name, weights_backbone=text, **options)
    with pytest.raises(WeightsError, match="build the network with stride_in='3x3'"):
        create_model("deeplabv2", weights_backbone="IMAGENET1K_V1", **small)


def test_dense_layers_of_vgg16_are_thinned_out(tmp_path):
    width = {"width": 1 / 16}
    trunk = VGG16Features(3, LARGE_FOV_POOLS, **width)
    fc6, fc7 = torch.randn(256, 32, 7, 7), torch.randn(256, 256)
    state = {
        **trunk.state_dict(),
        "classifier.0.weight": fc6.flatten(1),
        "classifier.0.bias": torch.arange(256.0),
        "classifier.3.weight": fc7,
        "classifier.3.bias": torch.arange(256.0),
    }
    file = tmp_path / "vgg16.pth"
    torch.save(state, file)
    large = create_model("deeplabv1", weights_backbone=file, **width)
    assert torch.equal(large.backbone.features[28].weight, state["features.28.weight"])
    assert torch.equal(large.head.fc6.weight, fc6[::4, :, ::3, ::3])
    assert torch.equal(large.head.fc6.bias, torch.arange(0.0, 256, 4))
    assert torch.equal(large.head.fc7.weight[..., 0, 0], fc7[::4, ::4])
    square = create_model("deeplabv1", variant="4x4", weights_backbone=file, **width)
    assert torch.equal(square.head.fc6.weight, fc6[..., ::2, ::2])
    whole = create_model("deeplabv1", variant="7x7", weights_backbone=file, **width)
    assert torch.equal(whole.head.fc6.weight, fc6)
    branches = create_model("deeplabv2", backbone="vgg16", weights_backbone=file, **width).branches
    assert all(torch.equal(branch.fc6.weight, fc6[::4, :, ::3, ::3]) for branch in branches)
    front = create_model("dilation_frontend", weights_backbone=file, **width).frontend
    assert torch.equal(front.fc6.weight, fc6)
    torch.save({**state, "classifier.0.weight": fc6.flatten(1) * torch.nan}, file)
    kept = create_model("deeplabv1", weights_backbone=file, **width)
    assert kept.head.fc6.weight.isfinite().all()


def test_interp():
    """Caffe's Interp: shrink and zoom fix the size, one resampling fills it."""
    assert [interp_size(n, 4, 3) for n in (321, 513)] == [241, 385]
    assert [interp_size(n, 2) for n in (321, 513)] == [161, 257]
    assert interp_size(31, 3, 4) == 41
    x = torch.sin(0.3 * torch.arange(961, dtype=torch.float64)).view(1, 1, 31, 31)
    y = resize_corners(x, (41, 41))
    found = (y.sum(), y.square().sum(), y.flatten()[0], y.flatten()[-1])
    expected = (1.798520242, 326.177947833, 0, -0.855504371)
    assert [float(v) for v in found] == pytest.approx(expected, abs=1e-8)


def test_grids_of_deeplab_v1_and_v2():
    light = {"width": 1 / 16}
    image = torch.zeros(1, 3, 321, 306)
    for options, shape in (({}, (41, 40)), ({"variant": "7x7"}, (41, 39))):
        model = create_model("deeplabv1", **light, **options).train()
        with torch.no_grad():
            outputs = model(image)
        assert outputs["logits"].shape[-2:] == shape
        assert outputs["out"].shape[-2:] == (321, 306)
    model = create_model("deeplabv2", backbone="resnet17", **light).train()
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 321, 321))
    sizes = {name: tuple(scores.shape[-2:]) for name, scores in outputs.items()}
    assert sizes == {
        "out": (321, 321),
        "logits": (41, 41),
        "scale_100": (41, 41),
        "scale_75": (41, 41),
        "scale_50": (21, 21),
    }
    assert (outputs["logits"] >= torch.maximum(outputs["scale_100"], outputs["scale_75"])).all()


@pytest.mark.parametrize("options", [{}, {"variant": "4x4"}])
def test_scores_lie_over_the_pixels_they_are_of(options):
    """A bright square moves the scores under it, not beside it."""
    model = create_model("deeplabv1", num_classes=1, width=1 / 32, **options).double().eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.constant_(parameter, 0.02 if parameter.dim() > 1 else 0.0)
        if name.endswith("fc6.weight"):
            # The centre alone, of four taps the middle four.
            kernel = parameter.shape[-1]
            inside = slice((kernel - 1) // 2, kernel // 2 + 1)
            kept = parameter[..., inside, inside].clone()
            parameter.data.zero_()[..., inside, inside] = kept
    image = torch.zeros(1, 3, 193, 194, dtype=torch.float64)
    image[..., 92:101, 92:101] = 1
    with torch.no_grad():
        scores = model(image)["out"][0, 0]
    rows, columns = torch.arange(193.0), torch.arange(194.0)
    middle = (
        float((scores.sum(1) * rows).sum() / scores.sum()),
        float((scores.sum(0) * columns).sum() / scores.sum()),
    )
    assert middle == pytest.approx((96, 96), abs=4)


def test_the_dense_crf_ends_the_network_in_evaluation():
    model = create_model("deeplabv1", num_classes=3, dense_crf=True, width=1 / 16).eval()
    plain = create_model("deeplabv1", num_classes=3, width=1 / 16).eval()
    plain.load_state_dict(model.state_dict())
    image = 40 * torch.randn(1, 3, 41, 49)
    with torch.no_grad():
        refined, scores = model(image)["out"], plain(image)["out"]
        torch.testing.assert_close(refined.exp().sum(1), torch.ones(1, 41, 49))
        assert not torch.allclose(refined, scores.log_softmax(1))
        # The recipe says how far colours are apart in the image.
        model.recipe = dataclasses.replace(model.recipe, input="unit")
        assert not torch.allclose(model(image)["out"], refined)
    assert "logits" in model.train()(image)
    with pytest.raises(ValueError, match="dense_crf must be False unless in_channels is 3"):
        create_model("deeplabv2", dense_crf=True, in_channels=1, width=1 / 16)


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("deeplabv3", {"backbone": "vgg16"}, "deeplabv3: backbone must be one of"),
        ("deeplabv3", {"output_stride": 4}, "deeplabv3: output_stride must be one of 8, 16, 32"),
        ("deeplabv3", {"multi_grid": (1, 2)}, "deeplabv3: multi_grid must be 3 positive ints"),
        ("deeplabv3", {"stem": "wide"}, "deeplabv3: stem must be one of"),
        ("deeplabv3_cascade", {"blocks": 8}, "deeplabv3_cascade: blocks must be one of"),
        ("deeplabv3plus", {"backbone": "resnet18"}, "deeplabv3plus: backbone must be one of"),
        ("deeplabv3plus", {"multi_grid": (1, 2)}, "deeplabv3plus: multi_grid must be 3"),
        ("deeplabv2", {"head": "aspp"}, "deeplabv2: head must be one of"),
        ("deeplabv1", {"variant": "3x3"}, "deeplabv1: variant must be one of"),
        (
            "deeplabv1",
            {"variant": "7x7", "multi_scale": True},
            "deeplabv1: multi_scale must be False unless",
        ),
    ],
)
def test_errors(name, bad, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        create_model(name, **bad)


def test_one_image_in_training_names_the_layer():
    model = create_model("deeplabv3", width=1 / 16, backbone="resnet17", multi_grid=(1,))
    with pytest.raises(ValueError, match="deeplabv3: aspp.convs.4.2 sees one 1x1 feature map"):
        model(torch.zeros(1, 3, 33, 33))


def test_torchvisions_deeplab_is_another_network(tmp_path):
    state = {
        "backbone.layer4.0.conv2.weight": torch.zeros(1),
        "classifier.0.convs.0.0.weight": torch.zeros(1),
    }
    torch.save(state, tmp_path / "deeplab.pth")
    with pytest.raises(WeightsError, match="its head has another 3x3 convolution"):
        create_model("deeplabv3", weights=tmp_path / "deeplab.pth", width=1 / 16)
