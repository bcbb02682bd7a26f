"""ImageNet weights for every encoder, by torchvision's names: copied whole, and nothing else."""

from __future__ import annotations

import pytest
import torch
from modeltester import CASES

from segkern.models import WeightsError, create_model, list_models, save_weights
from segkern.models.backbones import load_imagenet

models = pytest.importorskip("torchvision.models")

# torchvision's weights that start each network, and the options that its form needs. The encoders
# of SegNet, DeconvNet, G-FRNet and the Deep Parsing Network have other names, see test_backbone.
RESNET = {"backbone": "resnet50"}
TRUNKS = {
    "crfasrnn": ("VGG16_Weights", {}),
    "danet": ("ResNet50_Weights", {**RESNET, "multi_grid": (1, 2, 4)}),
    "deeplabv1": ("VGG16_Weights", {}),
    "deeplabv2": ("ResNet50_Weights", {**RESNET, "stride_in": "3x3"}),
    "deeplabv3": ("ResNet50_Weights", {**RESNET, "multi_grid": (1, 2, 4)}),
    "deeplabv3_cascade": ("ResNet50_Weights", {**RESNET, "multi_grid": (1, 2, 1)}),
    "deeplabv3plus": ("ResNet50_Weights", {**RESNET, "multi_grid": (1, 2, 4)}),
    "fcn16s": ("VGG16_Weights", {}),
    "fcn32s": ("VGG16_Weights", {}),
    "fcn8s": ("VGG16_Weights", {}),
    "gcn": ("ResNet50_Weights", RESNET),
    "linknet": ("ResNet18_Weights", {}),
    "pspnet": ("ResNet50_Weights", {**RESNET, "stem": "plain", "stride_in": "3x3"}),
    "refinenet": ("ResNet50_Weights", {**RESNET, "stride_in": "3x3"}),
}


def light(name, **options):
    own = {**CASES[name].options, **options} if name in CASES else options
    return {**own, "width": 1 / 16}


@pytest.mark.parametrize("name", TRUNKS)
def test_by_name(name, monkeypatch):
    family, needed = TRUNKS[name]
    options = light(name, **needed)
    before = create_model(name, **options)
    state = {
        key: torch.randn(value.shape) if value.is_floating_point() else torch.tensor(5)
        for key, value in before.backbone.state_dict().items()
        # The cascade's copies of layer 4 start from it.
        if not key.startswith(("layer5.", "layer6.", "layer7."))
    }
    asked = []

    def fetch(self, **_):
        asked.append(str(self))
        return {**state, "fc.weight": torch.zeros(7, 3), "fc.bias": torch.zeros(7)}

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", fetch)
    model = create_model(name, weights_backbone="IMAGENET1K_V1", **options)
    assert asked == [f"{family}.IMAGENET1K_V1"]
    own = model.backbone.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items())
    assert model.recipe.input == "imagenet"
    # Of another family, refused by name.
    other = "VGG16_Weights" if family != "VGG16_Weights" else "ResNet50_Weights"
    with pytest.raises(WeightsError, match=f"^{name}: "):
        create_model(name, weights_backbone=f"{other}.IMAGENET1K_V1", **options)


def test_no_network_with_a_trunk_is_left_out():
    """Those with a way to load one are here, or in test_backbone and the tests of their own."""
    elsewhere = {
        "aunet", "decoupled_solo", "decoupled_solo_light", "deconvnet", "deep_parsing_network",
        "dilation10", "dilation8", "dilation_frontend", "enet", "espnet", "gfrnet", "maskrcnn",
        "segnet", "solo", "solov2", "solov2_light",
    }  # fmt: skip
    found = set()
    with torch.device("meta"):
        for name in list_models():
            if hasattr(create_model(name), "load_backbone"):
                found.add(name)
    assert found == elsewhere | set(TRUNKS)


def test_gfrnet_starts_from_vgg16(tmp_path):
    model = create_model("gfrnet", width=1 / 16)
    state, number = {}, 0
    for i, block in enumerate(model.encoder.convolutions(), start=1):
        for key, value in block.conv.state_dict().items():
            state[f"features.{number}.{key}"] = torch.randn(value.shape)
        number += 3 if i in (2, 4, 7, 10) else 2
    assert number - 2 == 28
    save_weights(tmp_path / "vgg16.safetensors", state)
    model = create_model("gfrnet", width=1 / 16, weights_backbone=tmp_path / "vgg16.safetensors")
    convs = [block.conv for block in model.encoder.convolutions()]
    assert torch.equal(convs[0].weight, state["features.0.weight"])
    assert torch.equal(convs[12].bias, state["features.28.bias"])
    assert model.recipe.input == "imagenet"


@pytest.mark.parametrize("features", ["IMAGENET1K_V1", "IMAGENET1K_FEATURES"])
def test_depth_starts_from_the_mean_of_the_colours(features, monkeypatch):
    model = create_model("fcn32s", in_channels=4, width=1 / 64)
    state = model.backbone.state_dict()
    colours = torch.randn(4, 3, 3, 3)
    state = {**state, "features.0.weight": colours}
    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", lambda self, **_: dict(state))
    load_imagenet(model, model.backbone, "vgg16", features)
    weight = model.backbone.features[0].weight
    is_caffe = features.endswith("FEATURES")
    assert torch.equal(weight[:, :3], colours.flip(1) if is_caffe else colours)
    torch.testing.assert_close(weight[:, 3], (colours[:, 0] + colours[:, 1] + colours[:, 2]) / 3)
    assert model.recipe.input == ("caffe" if is_caffe else "imagenet")
    grey = create_model("fcn32s", in_channels=1, width=1 / 64)
    with pytest.raises(WeightsError, match="features.0.weight: file .4, 3, 3, 3., network .4, 1"):
        load_imagenet(grey, grey.backbone, "vgg16", features)


@pytest.mark.parametrize("backbone", ["alexnet", "googlenet"])
def test_caffes_classifiers_are_not_torchvisions(backbone):
    with pytest.raises(WeightsError, match=f"torchvision's {backbone} is another network"):
        create_model("fcn32s", backbone=backbone, width=1 / 64, weights_backbone="IMAGENET1K_V1")
