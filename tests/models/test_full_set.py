"""A walk over the registry: every network there, with its parameters, at work at two sizes."""

from __future__ import annotations

import json

import pytest
import torch
from modeltester import case_of, images, networks, run, seed_weights
from torch.nn import functional

from segkern.models import create_model, get_entry, list_models, save_weights

# Trainable parameters at a number of classes, as counted from the papers' and releases' layers.
# The patch network and U-Net are counted for grey images.
PARAMETERS = {
    "crfasrnn": (21, 134_364_074),
    "danet": (19, 66_454_779),
    "deconvnet": (21, 251_805_653),
    "deep_parsing_network": (21, 134_525_440),
    "deeplabv1": (21, 20_505_429),
    "deeplabv2": (21, 43_943_188),  # 44,048,532 with the frozen scales of its batch norms
    "deeplabv3": (21, 58_040_661),
    "deeplabv3_cascade": (21, 82_706_517),
    "deeplabv3plus": (21, 41_055_413),
    "dilation10": (19, 134_368_179),
    "dilation8": (21, 141_149_720),
    "dilation_frontend": (21, 134_346_581),
    "enet": (12, 363_856),
    "enet_encoder": (12, 339_704),
    "espnet": (20, 364_569),
    "espnet_a": (20, 330_272),
    "espnet_b": (20, 348_384),
    "espnet_c": (20, 349_449),
    "fc_densenet103": (11, 9_322_091),
    "fc_densenet56": (11, 1_376_795),
    "fc_densenet67": (11, 3_463_243),
    "fcn16s": (21, 134_357_354),
    "fcn32s": (21, 134_346_581),
    "fcn8s": (21, 134_362_751),
    "gcn": (21, 60_688_084),
    "gfrnet": (12, 29_223_264),
    "linknet": (20, 11_536_820),
    "patch_cnn": (2, 219_290),
    "pspnet": (21, 68_073_706),
    "random_forest": (11, 0),
    "refinenet": (40, 118_096_232),
    "segnet": (11, 29_449_355),
    "segnet_basic": (11, 1_416_587),
    "texton_forest": (11, 0),
    "unet": (2, 31_030_658),
}
GREY = ("patch_cnn", "unet")


def test_every_network_is_there():
    semantic = {name for name in list_models() if get_entry(name).task == "semantic"}
    assert semantic == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    classes, expected = PARAMETERS[name]
    options = {"in_channels": 1} if name in GREY else {}
    with torch.device("meta"):
        model = create_model(name, num_classes=classes, **options)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


@pytest.mark.parametrize("name", networks())
def test_forward_and_backward_at_two_sizes_saved_and_loaded(name, tmp_path):
    case, entry = case_of(name), get_entry(name)
    model = create_model(name, num_classes=4, **case.options)
    seed_weights(model)
    sizes = [case.size, case.export_sizes[1]]
    assert sizes[0] != sizes[1]
    for size in sizes:
        model.train().zero_grad()
        outputs = model(images(name, size, case.batch))
        assert outputs["out"].shape == (
            case.batch,
            4,
            *(-(-n // case.stride) for n in size),
        )
        trained = [outputs[key] for key in entry.recipe.outputs if key in outputs]
        target = [torch.randint(4, scores[:, 0].shape) for scores in trained]
        pairs = zip(trained, target, strict=True)
        sum(functional.cross_entropy(s.float(), t) for s, t in pairs).backward()
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad.isfinite().all(), key
    path = tmp_path / "network.safetensors"
    card = json.dumps({"config": model.config})
    save_weights(path, model.state_dict(), {"card": card})
    loaded = create_model(name, weights=path).eval()
    assert loaded.config == model.config
    model.eval()
    for size in sizes:
        assert torch.equal(run(name, loaded, size), run(name, model, size))


@pytest.mark.parametrize("name", networks())
def test_compiles(name):
    """One graph for two sizes, traced by dynamo and run eagerly, with the same scores."""
    torch._dynamo.reset()
    case = case_of(name)
    model = create_model(name, num_classes=4, **case.options).eval()
    seed_weights(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    for size in (case.size, case.export_sizes[1]):
        expected = run(name, model, size)
        torch.testing.assert_close(run(name, compiled, size), expected, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
