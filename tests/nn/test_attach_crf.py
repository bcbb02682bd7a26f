"""Networks of the registry ended by a CRF: what it sees, training, files, compile and export."""

from __future__ import annotations

import copy
import doctest
import json

import pytest
import torch
from torch.nn import functional

from segkern import nn
from segkern.models import (
    WeightsError,
    create_model,
    load_weights,
    preprocess,
    save_weights,
)
from segkern.models._preprocess import CAFFE_MEAN_BGR, to_levels
from segkern.nn import CRFAsRNN, CRFNetwork, attach_crf

NETWORKS = ("enet", "segnet_basic")
OPTIONS = {"gaussian": (2.0, 1.0), "bilateral": (20.0, 20.0, 2.0)}


def scene(batch: int = 2, size: tuple[int, int] = (32, 40), seed: int = 0):
    """uint8 pictures of two halves, and which half a pixel is in."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(batch, *size, dtype=torch.int64)
    labels[:, :, size[1] // 2 :] = 1
    noise = torch.randint(0, 60, (batch, 3, *size), generator=generator)
    return (noise + 120 * labels[:, None]).to(torch.uint8), labels


def built(name: str, **options):
    torch.manual_seed(0)
    return create_model(name, num_classes=3, **options)


def scaled(name_or_model, picture):
    return preprocess(picture, name_or_model.recipe.input)


@pytest.mark.parametrize("mode", ["unit", "imagenet", "bgr", "caffe"])
def test_the_crf_sees_levels_of_the_picture(mode):
    picture, _ = scene()
    model = attach_crf(built("enet"), input=mode, **OPTIONS)
    seen = []
    model.crf.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    model(preprocess(picture, mode))
    wanted = picture.float()
    if mode in ("bgr", "caffe"):
        wanted = wanted.flip(1)
    if mode == "caffe":
        wanted = wanted - torch.tensor(CAFFE_MEAN_BGR).view(3, 1, 1)
    torch.testing.assert_close(seen[0], wanted, atol=1e-3, rtol=0)


def test_levels_of_other_channels():
    scale, shift = to_levels("unit", 5)
    assert scale.shape == shift.shape == (5, 1, 1)
    assert bool((scale == 255).all())
    with pytest.raises(ValueError, match="needs 3 channels"):
        to_levels("imagenet", 4)
    with pytest.raises(ValueError, match="mode must be one of"):
        to_levels("grey")


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_the_networks_refined(name):
    picture, _ = scene()
    plain = built(name).eval()
    model = attach_crf(plain, **OPTIONS)
    assert not model.training
    image = scaled(plain, picture)
    with torch.no_grad():
        outputs = model(image)
        own = plain(image)["out"]
    levels = picture if plain.recipe.input == "unit" else picture.flip(1)
    # Levels come back from floats, so that they are not the whole numbers of the picture.
    torch.testing.assert_close(outputs["out"], model.crf(own, levels), atol=1e-2, rtol=1e-3)
    assert not torch.equal(outputs["out"], own)
    assert model.recipe == plain.recipe


@pytest.mark.parametrize("name", NETWORKS)
def test_trains_end_to_end(name):
    picture, labels = scene()
    labels[:, 0] = 255
    model = attach_crf(built(name), **OPTIONS).train()
    image = scaled(model, picture)
    before = copy.deepcopy(model.state_dict())
    crf = list(model.crf.parameters())
    optimizer = torch.optim.SGD(
        [{"params": model.network.parameters(), "lr": 1e-2}, {"params": crf, "lr": 1e-1}],
        momentum=0.9,
    )
    losses = []
    for _ in range(6):
        loss = functional.cross_entropy(model(image)["out"], labels, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        assert all(bool(p.grad.any()) for p in crf)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    after = model.state_dict()
    first = next(key for key, _ in model.network.named_parameters())
    for key in ("network." + first, *(f"crf.{key}" for key, _ in model.crf.named_parameters())):
        assert not torch.equal(after[key], before[key]), key


@pytest.mark.parametrize("name", NETWORKS)
def test_saved_and_loaded(name, tmp_path):
    picture, _ = scene()
    options = {"kernel_weights": "vector", **OPTIONS}
    model = attach_crf(built(name), **options).eval()
    with torch.no_grad():
        model.crf.spatial_weights.add_(torch.rand(3))
    image = scaled(model, picture)
    config = json.loads(json.dumps(model.config))
    assert config == model.config
    wanted = json.loads(json.dumps(options))
    assert config["crf"] == {"input": model.recipe.input, **wanted}
    again = create_model(**config)
    assert isinstance(again, CRFNetwork)
    assert again.config == config
    assert again.crf.kernel_weights == "vector"
    path = tmp_path / "with.safetensors"
    save_weights(path, model.state_dict(), {"card": json.dumps({"config": config})})
    for loaded in (create_model(name, weights=path), again):
        load_weights(loaded, path)
        assert loaded.config == config
        with torch.no_grad():
            assert torch.equal(loaded.eval()(image)["out"], model(image)["out"])
    with pytest.raises(WeightsError, match=r"crf\.compatibility"):
        load_weights(built(name), path)


def test_starts_from_weights_of_the_network_alone(tmp_path):
    plain = built("enet")
    path = tmp_path / "plain.safetensors"
    save_weights(path, plain.state_dict(), {"card": json.dumps({"config": plain.config})})
    model = create_model("enet", weights=path, crf={"iterations": 3})
    assert model.crf.iterations == 3
    assert model.crf.num_labels == 3
    for key, value in plain.state_dict().items():
        assert torch.equal(model.network.state_dict()[key], value)
    assert isinstance(create_model("enet", crf=True).crf, CRFAsRNN)
    assert not hasattr(create_model("enet", crf=False), "crf")


def test_the_scaling_of_loaded_weights_is_that_of_the_crf(tmp_path):
    plain = built("enet")
    path = tmp_path / "bgr.safetensors"
    card = {"config": plain.config, "input": "bgr"}
    save_weights(path, plain.state_dict(), {"card": json.dumps(card)})
    model = create_model("enet", weights=path, crf=True)
    assert model.config["crf"] == {"input": "bgr"}
    assert model.recipe.input == "bgr"
    assert bool((model.scale == 1).all())


def test_built_in_weights_take_a_crf():
    model = create_model("enet", weights="camvid", crf=True)
    assert model.crf.num_labels == model.config["num_classes"]


def test_smaller_scores_are_enlarged():
    picture, _ = scene()
    model = attach_crf(built("enet_encoder"), **OPTIONS)
    out = model(scaled(model, picture))["out"]
    assert out.shape == (2, 3, 32, 40)
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_compiles_in_one_graph():
    """Forward and backward, with the gradients of the plain network."""
    torch._dynamo.reset()
    picture, _ = scene(1, (17, 24))
    gradients = []
    for backend in (None, "aot_eager"):
        model = attach_crf(built("segnet_basic"), **OPTIONS).train()
        run = model if backend is None else torch.compile(model, backend=backend, fullgraph=True)
        run(scaled(model, picture))["out"].square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch._dynamo.reset()
    assert functional.cosine_similarity(*gradients, dim=0) > 0.999


def test_exports_with_dynamic_sizes():
    model = attach_crf(built("segnet_basic"), **OPTIONS).eval()
    picture, _ = scene(1)
    dims = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(model, (scaled(model, picture),), dynamic_shapes=(dims,))
    other = scaled(model, scene(1, (37, 51))[0])
    with torch.no_grad():
        torch.testing.assert_close(program.module()(other)["out"], model(other)["out"])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: attach_crf(torch.nn.Conv2d(3, 3, 1)), ValueError, "must be of the registry"),
        (lambda: attach_crf(attach_crf(built("enet"))), ValueError, "enet has one"),
        (lambda: attach_crf(built("enet"), width=3), TypeError, "no option 'width'"),
        (lambda: attach_crf(built("enet"), input="rgb"), ValueError, "mode must be one of"),
        (lambda: attach_crf(built("enet"), iterations=0), ValueError, "iterations must be"),
        (lambda: create_model("enet", crf="yes"), TypeError, "crf must be a bool or a dict"),
        (lambda: create_model("enet", crf={"width": 3}), TypeError, "no option 'width'"),
    ],
)
def test_wrong_calls(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_example_in_the_documentation():
    (example,) = doctest.DocTestFinder(recurse=False).find(attach_crf, globs={**vars(nn)})
    report: list[str] = []
    result = doctest.DocTestRunner().run(example, out=report.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(report)
