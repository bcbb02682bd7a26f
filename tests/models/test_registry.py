"""Finding and building networks by name, and the errors on the way."""

from __future__ import annotations

import json

import pytest
import torch

from segkern.models import (
    ModelEntry,
    Recipe,
    create_model,
    get_entry,
    get_weights,
    list_models,
    register_model,
)
from segkern.models import _registry as registry


def test_list_models():
    names = list_models()
    assert names == sorted(names)
    assert {"deconvnet", "enet", "enet_encoder", "segnet", "segnet_basic"} <= set(names)
    assert list_models("segnet*") == ["segnet", "segnet_basic"]
    assert list_models("enet*") == ["enet", "enet_encoder"]
    assert list_models("nothing*") == []


def test_entries():
    entry = get_entry("enet")
    assert isinstance(entry, ModelEntry)
    assert entry.name == "enet"
    assert entry.num_classes == 12
    assert "1606.02147" in entry.paper
    assert entry.reported["CamVid test class IoU"] == 51.3
    assert entry.recipe.optimizer == "adam"


def test_an_unknown_name_gets_close_matches():
    with pytest.raises(ValueError, match="no network is named 'SegNet_basik'.*segnet_basic"):
        create_model("SegNet_basik")
    with pytest.raises(ValueError, match="no network is named 'zzz'; there are .*enet, enet_enc"):
        create_model("zzz")
    with pytest.raises(ValueError, match="no network"):
        get_weights("zzz")


def test_an_unknown_option_gets_the_networks_own():
    with pytest.raises(TypeError, match="enet takes no argument 'droput'; its own are .*dropout"):
        create_model("enet", droput=0.2)


@pytest.mark.parametrize("key", ["num_classes", "in_channels"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3"])
def test_counts_must_be_positive_integers(key, value):
    with pytest.raises(ValueError, match=f"enet: {key} must be a positive int"):
        create_model("enet", **{key: value})


def test_config_rebuilds_the_architecture():
    model = create_model("enet", num_classes=5, dropout=0.3, pad_mode="zeros")
    assert model.config == {
        "name": "enet",
        "num_classes": 5,
        "in_channels": 3,
        "dropout_early": 0.01,
        "dropout": 0.3,
        "decoder_prelu": False,
        "pad_mode": "zeros",
        "strict_size": False,
    }
    again = create_model(**json.loads(json.dumps(model.config)))
    assert str(again) == str(model)


def test_registering(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    entry = get_entry("enet")

    @register_model(
        entry.config, parameters=1, paper="A paper", recipe=entry.recipe, head="x", name="other"
    )
    def builder(config):
        return torch.nn.Linear(config.in_channels, config.num_classes)

    model = create_model("other", num_classes=2)
    assert model.config["name"] == "other"
    assert model.out_features == 2
    with pytest.raises(ValueError, match="the name 'enet' is taken"):
        register_model(
            entry.config, parameters=1, paper="", recipe=entry.recipe, head="x", name="enet"
        )(builder)


def test_a_network_without_a_backbone():
    with pytest.raises(ValueError, match="segnet_basic has no backbone"):
        create_model("segnet_basic", weights_backbone="IMAGENET1K_V1")


@pytest.mark.parametrize(
    "bad",
    [{"optimizer": "lamb"}, {"input": "rgb"}, {"loss_reduction": "mean"}, {"schedule": "step"}],
)
def test_recipes_refuse_what_they_do_not_know(bad):
    with pytest.raises(ValueError, match="Recipe: "):
        Recipe(**{"lr": 0.1, "batch_size": 1, "epochs": 1, **bad})
