"""What only the Deep Parsing Network has: its parts, its stages, its start, its weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional

from segkern.models import WeightsError, create_model, preprocess
from segkern.nn import LocalQuadraticFilter, MixtureMRF
from segkern.reference import deep_parsing as reference

LIGHT = {"fc_channels": 8, "num_classes": 3, "context_size": 3}


def count(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_parameters_of_each_part():
    with torch.device("meta"):
        model = create_model("deep_parsing_network")
    assert count(model.encoder) == 14_714_688
    assert count(model.fc6) == 102_764_544
    assert count(model.fc7) == 16_781_312
    assert count(model.score) == 86_037
    mrf = model.mrf
    assert (count(mrf.filter), count(mrf.filter_affine)) == (2, 42)
    assert (count(mrf.contexts), count(mrf.contexts_affine)) == (178_605, 210)
    assert count(model) == 134_525_440


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return create_model("deep_parsing_network", dropout=0.0, **LIGHT).eval()


@torch.no_grad()
def test_stages_by_the_formulas(network):
    """Every stage's output from the reference's operators and torch's convolution."""
    torch.manual_seed(1)
    image = 255 * torch.rand(1, 3, 21, 30) - 100
    network.mrf.contexts.weight.normal_(std=0.3)  # penalties that count
    network.mrf.filter_affine.bias.normal_()
    network.score.weight.normal_(std=0.3)
    outputs = {}
    for stage in (1, 2, 3, 4):
        network.configure_stage(stage)
        assert network.config["stage"] == stage
        outputs[stage] = network(image)["out"]
    scores = outputs[1]
    assert scores.shape == (1, 3, 21, 30)
    q = scores.softmax(1)
    weights = torch.tensor([1 / 2500, 1 / 2500 / 625], dtype=torch.float64)
    filtered = reference.local_quadratic_filter(q.double(), image.double() / 255, weights, (50, 50))
    mrf = network.mrf
    o12 = filtered.float() + mrf.filter_affine.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(outputs[2], (scores - o12).log_softmax(1))
    o13 = functional.conv2d(o12, mrf.contexts.weight, padding=1)
    o14 = o13.unflatten(1, (3, 5)).amin(2)
    torch.testing.assert_close(outputs[4], (scores - o14).log_softmax(1), rtol=1e-4, atol=1e-4)
    assert torch.equal(outputs[3], outputs[4])
    assert (outputs[4] - scores.log_softmax(1)).abs().max() > 0.1


def test_stages_train_their_own_parts(network):
    trained = {
        1: {"encoder", "fc6", "fc7", "score"},
        2: {"mrf.filter", "mrf.filter_affine"},
        3: {"mrf.contexts", "mrf.contexts_affine"},
        4: {"encoder", "fc6", "fc7", "score", "mrf.filter", "mrf.filter_affine"}
        | {"mrf.contexts", "mrf.contexts_affine"},
    }
    image = torch.rand(1, 3, 16, 16)
    for stage, parts in trained.items():
        network.configure_stage(stage)
        network.zero_grad(set_to_none=True)
        functional.cross_entropy(network(image)["out"], torch.zeros(1, 16, 16).long()).backward()
        found = {
            ".".join(key.split(".")[: 2 if key.startswith("mrf") else 1])
            for key, parameter in network.named_parameters()
            if parameter.grad is not None
        }
        assert found == parts
    with pytest.raises(ValueError, match="stage must be 1, 2, 3 or 4"):
        network.configure_stage(5)
    assert create_model("deep_parsing_network", stage=2, **LIGHT).stage == 2


@pytest.mark.parametrize("unary", ["softmax", "sigmoid"])
@torch.no_grad()
def test_starts_near_the_unary_term(unary):
    torch.manual_seed(0)
    model = create_model("deep_parsing_network", unary=unary, **{**LIGHT, "context_size": 9}).eval()
    image = 255 * torch.rand(1, 3, 24, 40) - 100
    out = model(image)["out"].softmax(1)
    model.configure_stage(1)
    start = model(image)["out"].softmax(1)
    assert (out - start).abs().max() < 0.05
    assert not torch.equal(out, start)


@torch.no_grad()
def test_factor_of_the_filter_is_a_choice(network):
    other = create_model("deep_parsing_network", filter_product=False, **LIGHT)
    assert not other.mrf.filter.multiply
    q, image = torch.rand(1, 3, 9, 9), torch.rand(1, 3, 9, 9)
    torch.testing.assert_close(network.mrf.filter(q, image), q * other.mrf.filter(q, image))


@torch.no_grad()
def test_colours_do_not_depend_on_the_scaling_of_the_input(network):
    rgb = torch.rand(1, 3, 8, 8)
    network.configure_stage(4)
    seen = {}
    for mode in ("unit", "bgr", "caffe", "imagenet"):
        network.recipe = dataclasses.replace(network.recipe, input=mode)
        colours = network._colours(preprocess(255 * rgb, mode))
        # Differences between neighbours, in the order of the channels.
        steps = colours.diff(dim=3)
        seen[mode] = steps.flip(1) if mode in ("bgr", "caffe") else steps
    network.recipe = type(network).recipe
    for steps in seen.values():
        torch.testing.assert_close(steps, seen["unit"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_padding_for_the_trunk_stays_out_of_the_field(network):
    """Only b1 to b11 see the rows that fill up to multiples of 8."""
    image = torch.rand(1, 3, 13, 17)
    network.configure_stage(4)
    out = network(image)["out"]
    padded = functional.pad(image, (0, 7, 0, 3), mode="replicate")
    network.configure_stage(1)
    scores = network(padded)["out"][..., :13, :17]
    torch.testing.assert_close(network.mrf(scores, scores.softmax(1), image / 255), out)
    network.configure_stage(4)


def test_vgg16_weights(tmp_path):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        vgg, with_norm = models.vgg16(), models.vgg16_bn()
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, value in vgg.features.state_dict().items():
        state[f"features.{key}"] = 0.05 * torch.randn(value.shape, generator=generator)
    for key, shape in (("0", (8, 512 * 49)), ("3", (8, 8))):
        state[f"classifier.{key}.weight"] = torch.randn(shape, generator=generator)
        state[f"classifier.{key}.bias"] = torch.randn(8, generator=generator)
    torch.save(state, tmp_path / "vgg16.pth")
    model = create_model("deep_parsing_network", weights_backbone=tmp_path / "vgg16.pth", **LIGHT)
    assert model.recipe.input == "imagenet"
    blocks = model.encoder.convolutions()
    assert torch.equal(blocks[0].conv.weight, state["features.0.weight"])
    assert torch.equal(blocks[12].conv.bias, state["features.28.bias"])
    assert torch.equal(model.fc6.conv.weight.flatten(1), state["classifier.0.weight"])
    assert torch.equal(model.fc7.conv.weight.flatten(1), state["classifier.3.weight"])
    for key, value in with_norm.features.state_dict().items():
        state[f"features.{key}"] = torch.ones(value.shape)
    torch.save(
        {key: value for key, value in state.items() if key.startswith("features")},
        tmp_path / "vgg16_bn.pth",
    )
    with pytest.raises(WeightsError, match="VGG16"):
        create_model("deep_parsing_network", weights_backbone=tmp_path / "vgg16_bn.pth", **LIGHT)


@pytest.mark.parametrize(
    "bad",
    [
        {"unary": "relu"},
        {"stage": 0},
        {"context_size": 4},
        {"mixtures": 257},
        {"filter_size": 0},
        {"in_channels": 5},
        {"dropout": 1.0},
        {"pad_mode": "wrap"},
    ],
)
def test_options_out_of_range(bad):
    with pytest.raises(ValueError, match=f"deep_parsing_network: {next(iter(bad))} must be"):
        create_model("deep_parsing_network", **{"fc_channels": 8, **bad})


def test_layers_refuse_what_they_cannot_do():
    for bad in ((0, 3), "x", (3, 3, 3)):
        with pytest.raises(ValueError, match="kernel_size must be"):
            LocalQuadraticFilter(bad)
    with pytest.raises(ValueError, match="position_unit must be"):
        LocalQuadraticFilter(3, position_unit=0.0)
    for bad in ({"mixtures": 0}, {"mixtures": 257}, {"context_size": 2}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            MixtureMRF(3, **bad)


def test_training_tells_the_network_how_its_input_is_scaled(tmp_path):
    pytest.importorskip("lightning")
    from segkern.engine.settings import resolve
    from segkern.engine.train import Job

    given = {"data": "synthetic:16x24", "limit_train": 2, "limit_val": 1, "device": "cpu"}
    given |= {"batch_size": 2, "crop": "none"}
    given |= {"input": "unit", "model_options": {"fc_channels": 8, "stage": 2}}
    job = Job(resolve("deep_parsing_network", tmp_path / "run", given), resume=False, show=None)
    assert job.network.recipe.input == "unit"
    assert job.network.stage == 2
