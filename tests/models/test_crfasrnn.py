"""CRF-as-RNN as a network of its own: FCN-8s and the layer, its start, its files, its rates."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from modeltester import seed_weights

from segkern.engine.optim import build_optimizer
from segkern.models import WeightsError, create_model, save_weights
from segkern.nn import attach_crf

LIGHT = {"width": 1 / 64, "num_classes": 5}


def image():
    generator = torch.Generator().manual_seed(0)
    return 255 * torch.rand(1, 3, 30, 41, generator=generator) - 110


def test_it_starts_from_the_releases_values():
    with torch.device("meta"):
        model = create_model("crfasrnn")
    own = {key: tuple(p.shape) for key, p in model.named_parameters() if "crf" in key}
    assert own == {
        f"crf_rnn.{key}": (21, 21)
        for key in ("spatial_weights", "bilateral_weights", "compatibility")
    }
    crf = create_model("crfasrnn", width=1 / 64).crf_rnn
    assert torch.equal(crf.spatial_weights, 3 * torch.eye(21))
    assert torch.equal(crf.bilateral_weights, 5 * torch.eye(21))
    assert torch.equal(crf.compatibility, -torch.eye(21))
    assert crf.gaussian_sxy == 3.0
    assert crf.bilateral_widths == (160.0, 3.0)
    assert (crf.training_iterations, crf.iterations) == (5, 10)


@pytest.mark.parametrize("mode", ["caffe", "unit", "imagenet"])
@torch.no_grad()
def test_it_is_an_fcn_with_a_crf_attached(mode):
    fcn = create_model("fcn8s", **LIGHT).eval()
    seed_weights(fcn)
    expected = attach_crf(fcn, input=mode)(image())["out"]
    own = create_model("crfasrnn", **LIGHT).eval()
    own.recipe = dataclasses.replace(own.recipe, input=mode)
    own.load_state_dict({**fcn.state_dict(), **crf_of(own)})
    assert torch.equal(own(image())["out"], expected)


def crf_of(model):
    return {key: value for key, value in model.state_dict().items() if key.startswith("crf_rnn.")}


@pytest.mark.parametrize("upsampling", ["fixed", "learnt"])
def test_it_starts_from_a_file_of_fcn8s(tmp_path, upsampling):
    fcn = create_model("fcn8s", upsampling=upsampling, **LIGHT)
    seed_weights(fcn)
    path = tmp_path / "fcn8s.safetensors"
    save_weights(path, fcn.state_dict(), {"input": '"unit"'})
    own = create_model("crfasrnn", upsampling=upsampling, **LIGHT, weights_backbone=path)
    state = own.state_dict()
    assert all(torch.equal(state[key], value) for key, value in fcn.state_dict().items())
    assert torch.equal(own.crf_rnn.compatibility, -torch.eye(5))
    assert own.recipe.input == "unit"
    with pytest.raises(WeightsError, match="does not fit"):
        create_model("crfasrnn", width=1 / 32, num_classes=5, weights_backbone=path)


def test_a_second_crf_is_refused():
    with pytest.raises(ValueError, match="no CRF yet, crfasrnn has one"):
        create_model("crfasrnn", crf=True, **LIGHT)


def test_rates_of_the_release():
    model = create_model("crfasrnn", **LIGHT)
    groups = {group["name"]: group for group in build_optimizer(model, model.recipe).param_groups}
    assert groups["crf_weights"]["lr"] == pytest.approx(1e-9)
    assert groups["crf_compatibility"]["lr"] == pytest.approx(1e-10)
    assert groups["bias"]["lr"] == pytest.approx(2e-13)
    assert groups["weight"]["lr"] == 1e-13


def test_the_gradient_reaches_the_first_layer():
    model = create_model("crfasrnn", **LIGHT)
    seed_weights(model)
    model(image())["out"][:, 1].sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_config_survives_json(tmp_path):
    model = create_model("crfasrnn", bilateral=[9.0, 5.0, 1.0], iterations=2, **LIGHT)
    again = create_model(**model.config)
    assert again.config == model.config
    assert again.crf_rnn.extra_repr() == model.crf_rnn.extra_repr()
