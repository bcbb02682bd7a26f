"""FCN: crops from first principles, every image size, stages, surgery, counts."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from modeltester import seed_weights
from torch.nn import functional

from segkern.engine.settings import resolve
from segkern.losses import segmentation_loss
from segkern.models import WeightsError, create_model, get_entry, save_weights
from segkern.models._bilinear import bilinear_kernel
from segkern.models.fcn import GEOMETRIES

LIGHT = {"width": 1 / 64, "num_classes": 4}

# Kernel, stride and padding of the trunks down to fc6, and the layer after which each skip starts.
VGG = [(3, 1, 100), (3, 1, 1)] + [(2, 2, 0)]
for convolutions in (2, 3, 3, 3):
    VGG += [(3, 1, 1)] * convolutions + [(2, 2, 0)]
TRUNKS = {
    "vgg16": ([*VGG, (7, 1, 0)], {8: 10, 16: 14}),
    "alexnet": (
        [
            (11, 4, 100), (3, 2, 0), (5, 1, 2), (3, 2, 0), *[(3, 1, 1)] * 3, (3, 2, 0), (6, 1, 0),
        ],
        {8: 2, 16: 4},
    ),
    "googlenet": (
        [(7, 2, 3), (3, 2, 0), (3, 1, 1), (3, 2, 0), (5, 1, 2), (3, 2, 0), (5, 1, 2), (3, 2, 0)],
        {8: 4, 16: 6},
    ),
}  # fmt: skip


def offset(layers, ups):
    """Where output 0 lies in the input: b of the release's coordinate maps."""
    b, step = Fraction(0), 1
    for kernel, stride, padding in layers:
        b += step * (padding - Fraction(kernel - 1, 2))
        step *= stride
    for kernel, stride in ups:
        step //= stride
        b += Fraction(kernel - 1, 2) * step
    return b


@pytest.mark.parametrize("backbone", TRUNKS)
@pytest.mark.parametrize("finest", [32, 16, 8])
def test_crops_follow_from_the_layers(backbone, finest):
    layers, skips = TRUNKS[backbone]
    geometry = GEOMETRIES[backbone]
    small = (4 if geometry.even else 3, 2)
    ups = [small] * {32: 0, 16: 1, 8: 2}[finest]
    last = (2 * finest - (0 if geometry.even else 1), finest)
    assert offset(layers, [*ups, last]) == geometry.crops[finest]
    if finest < 32:
        assert -offset(layers[skips[finest] :], ups) == geometry.skip_crops[finest]


@pytest.mark.parametrize("backbone", TRUNKS)
@pytest.mark.parametrize("name", ["fcn32s", "fcn16s", "fcn8s"])
def test_scores_cover_images_of_every_size(backbone, name):
    """By arithmetic for each length up to 300, and by the network for a few."""
    layers, skips = TRUNKS[backbone]
    geometry = GEOMETRIES[backbone]
    finest = int(name[3:-1])
    for length in range(geometry.minimum, 300):
        n, sizes = length, {}
        for i, (kernel, stride, padding) in enumerate(layers):
            pool = stride == 2 and padding == 0
            n = (math.ceil if pool else math.floor)((n + 2 * padding - kernel) / stride) + 1
            sizes.update({s: n for s, after in skips.items() if after == i + 1})
        assert n >= 1
        for stride in (16, 8)[: {32: 0, 16: 1, 8: 2}[finest]]:
            n = 2 * (n - 1) + (4 if geometry.even else 3)
            left = sizes[stride] - geometry.skip_crops[stride]
            assert left >= n or geometry.skip_crops[stride] == 0
            n = min(n, left)
        full = finest * (n - 1) + 2 * finest - (0 if geometry.even else 1)
        assert full - geometry.crops[finest] >= length
    model = create_model(name, backbone=backbone, **LIGHT).eval()
    with torch.no_grad():
        for size in ((1, 30), (31, 77)):
            assert model(torch.zeros(1, 3, *size))["out"].shape[-2:] == size


@pytest.mark.parametrize(
    ("name", "options", "cells"),
    [("fcn32s", {}, 16), ("fcn32s", {"backbone": "alexnet"}, 16),
     ("fcn32s", {"backbone": "googlenet"}, 15), ("fcn16s", {}, 34), ("fcn8s", {}, 70)],
)  # fmt: skip
def test_cells_of_500_pixels(name, options, cells):
    with torch.device("meta"):
        model = create_model(name, width=1 / 64, **options).eval()
        assert model.score(torch.zeros(1, 3, 500, 500)).shape[-2:] == (cells, cells)


def test_bilinear_kernel_and_interior():
    assert bilinear_kernel(4)[0].tolist() == [0.0625, 0.1875, 0.1875, 0.0625]
    for size, total in ((4, 4), (16, 64), (32, 256), (64, 1024)):
        assert bilinear_kernel(size).sum() == total
    for upsampling in ("fixed", "learnt"):
        for options in ({}, {"backbone": "alexnet"}):
            model = create_model("fcn8s", upsampling=upsampling, **options, **LIGHT)
            out = model.up1(torch.ones(1, 4, 5, 5))
            assert torch.equal(out[..., 8:-8, 8:-8], torch.ones_like(out[..., 8:-8, 8:-8]))
    scores = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    fixed = create_model("fcn16s", **LIGHT).up1(scores)
    learnt = create_model("fcn16s", upsampling="learnt", **LIGHT).double().up1(scores)
    torch.testing.assert_close(fixed, learnt)
    enlarged = functional.interpolate(scores, scale_factor=16, mode="bilinear")
    torch.testing.assert_close(fixed[..., 24:-24, 24:-24], enlarged[..., 16:-16, 16:-16])


def test_untrained_scores_are_zero():
    out = create_model("fcn8s", **LIGHT)(torch.randn(1, 3, 20, 24))["out"]
    assert not out.any()
    target = torch.randint(4, (1, 20, 24))
    target[:, :5] = 255
    loss = segmentation_loss(out, target, reduction=get_entry("fcn8s").recipe.loss_reduction)
    assert loss.item() == pytest.approx(15 * 24 * math.log(4))


@torch.no_grad()
@pytest.mark.parametrize(
    ("backbone", "field", "first"), [("vgg16", 404, 189), ("alexnet", 355, 164)]
)
def test_a_score_is_that_of_the_bare_net_on_its_window(backbone, field, first):
    """The specification's window test: exact where the window lies inside the image."""
    model = create_model("fcn32s", backbone=backbone, **LIGHT).double().eval()
    seed_weights(model)
    image = torch.randn(1, 3, 440, 452, dtype=torch.float64)
    scores = model.score(image)
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.MaxPool2d)):
            module.padding = 0
    inside = -(-first // 32)
    for i, j in ((inside, inside), (inside, inside + 1)):
        top, left = 32 * i - first, 32 * j - first
        window = image[..., top : top + field, left : left + field]
        assert window.shape[-2:] == (field, field)
        expected = model.score(window)
        assert expected.shape == (1, 4, 1, 1)
        error = (scores[..., i, j] - expected[..., 0, 0]).abs().max()
        assert error <= 1e-12 * expected.abs().max()


def cut(enlarged, name):
    first = {"fcn32s": 19, "fcn16s": 27, "fcn8s": 31}[name]
    return enlarged[..., first : first + 40, first : first + 52]


@pytest.mark.parametrize(("name", "coarse"), [("fcn16s", "fcn32s"), ("fcn8s", "fcn16s")])
@pytest.mark.parametrize("upsampling", ["fixed", "learnt"])
def test_a_stage_starts_from_the_coarser_net(name, coarse, upsampling, tmp_path):
    before = create_model(coarse, upsampling=upsampling, **LIGHT).eval()
    seed_weights(before)
    path = tmp_path / "coarse.safetensors"
    save_weights(path, before.state_dict(), {"card": '{"input": "imagenet"}'})
    model = create_model(name, upsampling=upsampling, weights_backbone=path, **LIGHT).eval()
    assert model.recipe.input == "imagenet"
    assert model.recipe.lr == get_entry(name).recipe.lr
    image = 50 * torch.randn(1, 3, 40, 52)
    with torch.no_grad():
        coarse_scores = before.score(image)
        scores = model.score(image)
        # The skip adds exactly nothing: the coarser scores, enlarged in two steps.
        stride = int(name[3:-1])
        assert torch.equal(scores, model.get_submodule(f"up{stride}")(coarse_scores))
        # The crops that the release has.
        assert torch.equal(model(image)["out"], cut(model.up1(scores), name))
        assert torch.equal(before(image)["out"], cut(before.up1(coarse_scores), coarse))
    assert scores.abs().max() > 0
    with pytest.raises(WeightsError, match="score_fr.bias"):
        create_model(name, weights_backbone=path, **{**LIGHT, "num_classes": 5})


def test_stages_cannot_be_skipped(tmp_path):
    path = tmp_path / "coarse.safetensors"
    save_weights(path, create_model("fcn32s", **LIGHT).state_dict())
    with pytest.raises(WeightsError, match="score_pool16"):
        create_model("fcn8s", weights_backbone=path, **LIGHT)


def test_surgery_copies_fc6_and_fc7(tmp_path):
    """With the names and the flattened layers of a classifier of the same trunk."""
    model = create_model("fcn32s", **LIGHT)
    state = {key: torch.randn(v.shape) for key, v in model.backbone.state_dict().items()}
    flat = {"classifier.0": model.fc6, "classifier.3": model.fc7}
    for key, layer in flat.items():
        state[f"{key}.weight"] = torch.randn(layer.weight.shape).flatten(1)
        state[f"{key}.bias"] = torch.randn(layer.bias.shape)
    path = tmp_path / "vgg.safetensors"
    save_weights(path, state)
    model = create_model("fcn32s", weights_backbone=path, **LIGHT)
    assert torch.equal(model.backbone.features[0].weight, state["features.0.weight"])
    x = torch.randn(1, model.fc6.in_channels, 7, 7)
    weight, bias = state["classifier.0.weight"], state["classifier.0.bias"]
    expected = functional.linear(x.flatten(1), weight, bias)
    torch.testing.assert_close(model.fc6(x).flatten(1), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.fc7.weight.flatten(1), state["classifier.3.weight"])
    assert not model.score_fr.weight.any() and model.recipe.input == "imagenet"


def test_surgery_on_caffenet(tmp_path):
    options = {"backbone": "alexnet", **LIGHT}
    model = create_model("fcn32s", **options)
    state = {key: torch.randn(v.shape) for key, v in model.backbone.state_dict().items()}
    for name in ("fc6", "fc7"):
        layer = model.get_submodule(name)
        state[f"{name}.weight"] = torch.randn(layer.weight.shape).flatten(1)
        state[f"{name}.bias"] = torch.randn(layer.bias.shape)
    state["fc8.weight"] = torch.zeros(3)
    path = tmp_path / "caffenet.safetensors"
    save_weights(path, state)
    model = create_model("fcn32s", weights_backbone=path, **options)
    assert torch.equal(model.backbone.conv4.weight, state["conv4.weight"])
    assert torch.equal(model.fc6.weight.flatten(1), state["fc6.weight"])
    save_weights(path, {key: v for key, v in state.items() if not key.startswith("conv3")})
    with pytest.raises(WeightsError, match="backbone.conv3.bias: none"):
        create_model("fcn32s", weights_backbone=path, **options)
    with pytest.raises(WeightsError, match="is no file"):
        create_model("fcn32s", weights_backbone="IMAGENET1K_V1", **options)


def test_at_once_scales_pools_before_their_scores():
    plain = create_model("fcn8s", **LIGHT).double().eval()
    seed_weights(plain)
    scaled = create_model("fcn8s", at_once=True, **LIGHT).double().eval()
    scaled.load_state_dict(plain.state_dict())
    with torch.no_grad():
        plain.score_pool16.weight *= 0.01
        plain.score_pool8.weight *= 0.0001
        image = torch.randn(1, 3, 33, 41, dtype=torch.float64)
        torch.testing.assert_close(plain(image)["out"], scaled(image)["out"])
    with pytest.raises(ValueError, match="at_once needs backbone='vgg16'"):
        create_model("fcn8s", at_once=True, backbone="alexnet")


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("fcn32s", {"backbone": "alexnet"}, 56_954_261),
        ("fcn32s", {"backbone": "googlenet"}, 5_995_077),
        ("fcn32s", {"upsampling": "learnt"}, 134_346_581 + 1_806_336),
        ("fcn32s", {"upsampling": "intermediate"}, 134_346_581),
        ("fcn16s", {"upsampling": "learnt"}, 134_357_354 + 458_640),
        ("fcn8s", {"upsampling": "learnt"}, 134_362_751 + 127_008),
        ("fcn8s", {"upsampling": "intermediate"}, 134_362_751 + 2 * 16 * 21 * 21),
        ("fcn8s", {"at_once": True}, 134_362_751),
        ("fcn8s", {"num_classes": 60}, 134_552_564),
        ("fcn32s", {"num_classes": 40, "in_channels": 4}, 134_425_000),
    ],
)
def test_parameters(name, options, expected):
    with torch.device("meta"):
        model = create_model(name, **options)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_recipes_by_backbone():
    assert get_entry("fcn8s").recipe.lr == 1e-14
    assert create_model("fcn8s", at_once=True, width=1 / 64).recipe.lr == 1e-10
    settings = resolve("fcn32s", "runs", {"model_options": {"backbone": "alexnet"}})
    assert (settings.recipe["lr"], settings.recipe["momentum"]) == (1e-4, 0.9)
    heavy = resolve("fcn32s", "runs", {}).recipe
    assert (heavy["lr"], heavy["momentum"], heavy["loss_reduction"]) == (1e-10, 0.99, "batch")
    with pytest.raises(ValueError, match="fcn32s: backbone must be one of"):
        create_model("fcn32s", backbone="resnet50")
