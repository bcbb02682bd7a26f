"""VGG16 weights of torchvision as the start of SegNet and DeconvNet."""

from __future__ import annotations

import pytest
import torch

from segkern.models import WeightsError, create_model

models = pytest.importorskip("torchvision.models")

FEATURES = {
    "encoder.stage1.1": 0,
    "encoder.stage1.2": 2,
    "encoder.stage2.1": 5,
    "encoder.stage3.3": 14,
    "encoder.stage5.3": 28,
}


def _shrunk(builder):
    """torchvision's network without its 120 M parameters of dense layers."""
    with torch.device("meta"):
        model = builder()
    model.classifier = torch.nn.Sequential()
    return model.to_empty(device="cpu")


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory):
    torch.manual_seed(0)
    state = _shrunk(models.vgg16).state_dict()
    state = {key: torch.randn(value.shape) * 0.05 for key, value in state.items()}
    # Dense layers of a DeconvNet with 16 channels where VGG16 has 4096.
    state["classifier.0.weight"] = torch.randn(16, 512 * 7 * 7)
    state["classifier.0.bias"] = torch.randn(16)
    state["classifier.3.weight"] = torch.randn(16, 16)
    state["classifier.3.bias"] = torch.randn(16)
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, path)
    return path, state


def test_segnet_from_vgg16(vgg16):
    path, state = vgg16
    model = create_model("segnet", weights_backbone=path)
    for name, number in FEATURES.items():
        conv = model.get_submodule(name).conv
        assert torch.equal(conv.weight, state[f"features.{number}.weight"])
        assert torch.equal(conv.bias, state[f"features.{number}.bias"])
    norm = model.get_submodule("encoder.stage5.3").norm
    assert torch.equal(norm.weight, torch.ones(512))
    assert torch.equal(norm.bias, torch.full((512,), 1e-3))
    assert model.recipe.input == "imagenet"
    assert create_model("segnet").recipe.input == "bgr"


def test_segnet_from_vgg16_bn_computes_its_features(tmp_path):
    torch.manual_seed(0)
    vgg = _shrunk(models.vgg16_bn)
    for key, value in vgg.state_dict().items():
        if value.is_floating_point():
            value.copy_(
                torch.rand(value.shape) + 0.1 if "var" in key else 0.1 * torch.randn(value.shape)
            )
        else:
            value.fill_(5)
    torch.save(vgg.state_dict(), tmp_path / "vgg16_bn.pth")
    model = create_model("segnet", weights_backbone=tmp_path / "vgg16_bn.pth").eval().double()
    assert model.encoder.stage1[0].norm.num_batches_tracked == 5
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        features, _ = model.encoder(image)
        expected = vgg.eval().double().features(image)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-6)


def test_deconvnet_takes_the_dense_layers(vgg16):
    path, state = vgg16
    model = create_model("deconvnet", fc_channels=16, weights_backbone=path)
    pooled = torch.randn(1, 512, 7, 7)
    with torch.no_grad():
        fc6 = model.fc6.conv(pooled).flatten()
        fc7 = model.fc7.conv(fc6.view(1, 16, 1, 1)).flatten()
    dense6 = state["classifier.0.weight"] @ pooled.flatten() + state["classifier.0.bias"]
    dense7 = state["classifier.3.weight"] @ fc6 + state["classifier.3.bias"]
    torch.testing.assert_close(fc6, dense6, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(fc7, dense7, rtol=1e-4, atol=1e-3)
    assert model.recipe.input == "imagenet"


def test_names_of_torchvision_weights(vgg16, monkeypatch):
    _, state = vgg16
    asked = []

    def fetch(self, **_):
        asked.append(str(self))
        return dict(state)

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", fetch)
    for name in ("IMAGENET1K_V1", "VGG16_Weights.IMAGENET1K_V1"):
        model = create_model("segnet", weights_backbone=name)
        assert torch.equal(model.encoder.stage1[0].conv.weight, state["features.0.weight"])
        assert model.recipe.input == "imagenet"
    model = create_model("segnet", weights_backbone="IMAGENET1K_FEATURES")
    # Caffe's own weights, which torchvision keeps for RGB.
    assert torch.equal(model.encoder.stage1[0].conv.weight.flip(1), state["features.0.weight"])
    assert torch.equal(model.encoder.stage1[1].conv.weight, state["features.2.weight"])
    assert model.recipe.input == "caffe"
    assert asked == ["VGG16_Weights.IMAGENET1K_V1"] * 2 + ["VGG16_Weights.IMAGENET1K_FEATURES"]


@pytest.mark.parametrize(
    "name", ["IMAGENET1K_V7", "ResNet50_Weights.IMAGENET1K_V1", "a/b.pth", "x"]
)
def test_unknown_names(name):
    with pytest.raises(WeightsError, match="neither a file nor the name of torchvision weights"):
        create_model("segnet", weights_backbone=name)


def test_other_networks(tmp_path, vgg16):
    path, state = vgg16
    torch.save(models.resnet18().state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match="not a torchvision VGG16"):
        create_model("segnet", weights_backbone=tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match="3 input channels, the network has 1"):
        create_model("segnet", in_channels=1, weights_backbone=path)
    with pytest.raises(WeightsError, match="classifier.0 is .*flattened"):
        create_model("deconvnet", fc_channels=8, weights_backbone=path)
    broken = {**state, "classifier.0.weight": torch.full((16, 25088), torch.nan)}
    torch.save(broken, tmp_path / "features.pth")
    with pytest.raises(WeightsError, match="not finite"):
        create_model("deconvnet", fc_channels=16, weights_backbone=tmp_path / "features.pth")
