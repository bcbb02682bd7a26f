"""What the networks of atrous convolution ask of training and evaluation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tiny_runs import TINY
from torch import nn

from segkern.cli.use import _protocol
from segkern.engine.errors import EngineError
from segkern.engine.evaluate import evaluate
from segkern.engine.inference import Protocol
from segkern.engine.loading import load_trained
from segkern.engine.module import SegmentationModule, labels_at
from segkern.engine.optim import LRFactor, build_optimizer
from segkern.engine.train import fit
from segkern.losses import segmentation_loss
from segkern.models import Recipe, create_model
from segkern.nn import SeparableConv2d

LIGHT = {"width": 1 / 16, "backbone": "resnet17"}
RUN = {**TINY, "epochs": 1, "crop": (33, 49), "device": "cpu"}


@pytest.fixture(scope="module")
def deeplab(cache_folder, tmp_path_factory) -> Path:
    """A run of DeepLab v3+ of three steps."""
    run = tmp_path_factory.mktemp("runs") / "deeplab"
    fit("deeplabv3plus", run, model_options={**LIGHT, "norm_momentum": 0.1}, **RUN)
    return run


def test_training_and_another_output_stride_at_evaluation(deeplab):
    plain = evaluate(deeplab, device="cpu", limit=2, boundary=False)
    assert plain["output_stride"] == 16
    assert plain["protocol"] == {
        "scales": [1.0],
        "flip": False,
        "window": None,
        "merge": "softmax",
    }
    protocol = Protocol(scales=(0.75, 1), window=(41, 41))
    result = evaluate(
        deeplab, device="cpu", limit=2, boundary=False, output_stride=8, protocol=protocol, tta=True
    )
    assert result["output_stride"] == 8
    assert result["protocol"]["scales"] == [0.75, 1.0]
    assert result["weights_sha256"] == plain["weights_sha256"]
    finer = load_trained(deeplab, "cpu", output_stride=8).network
    assert finer.backbone(torch.zeros(1, 3, 64, 64))[0].shape[-2:] == (8, 8)
    assert finer.aspp.convs[1].depthwise[0].dilation == (12, 12)


def test_output_stride_of_a_network_without_one(trained):
    with pytest.raises(EngineError, match="enet has no option output_stride"):
        load_trained(trained, "cpu", output_stride=8)


def test_training_with_losses_on_several_outputs_and_frozen_norm(tmp_path):
    options = {**LIGHT, "stride_in": "3x3"}
    torch.manual_seed(0)
    fit("deeplabv2", tmp_path / "run", model_options=options, max_steps=2, **RUN)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert stored["recipe"]["outputs"]["scale_75"] == 1.0
    network = load_trained(tmp_path / "run", "cpu").network
    before = create_model("deeplabv2", num_classes=11, **options)
    norms = [key for key in before.state_dict() if ".bn" in key and "tracked" not in key]
    assert norms
    for key in norms:
        assert torch.equal(network.state_dict()[key], before.state_dict()[key]), key


def test_frozen_norm_by_the_recipe(tmp_path):
    fit("espnet_c", tmp_path / "run", freeze_norm=True, model_options={"p": 1, "q": 1}, **TINY)
    state = load_trained(tmp_path / "run", "cpu").network.state_dict()
    means = [value for key, value in state.items() if key.endswith("running_mean")]
    assert means and all(not value.any() for value in means)


def test_a_run_says_that_its_weights_expect_another_input(tmp_path):
    trunk = create_model("deeplabv3plus", **LIGHT).backbone.state_dict()
    torch.save(trunk, tmp_path / "trunk.pth")
    lines = []
    for name, given in (("default", {}), ("asked", {"input": "imagenet"})):
        fit(
            "deeplabv3plus",
            tmp_path / name,
            model_options=LIGHT,
            weights_backbone=str(tmp_path / "trunk.pth"),
            max_steps=1,
            show=lines.append,
            **RUN,
            **given,
        )
    notes = [line for line in lines if "expect --input imagenet" in line]
    assert len(notes) == 1 and "this run has symmetric" in notes[0]


@pytest.mark.parametrize(
    ("scales", "window", "expected"),
    [
        (None, None, Protocol()),
        ("0.5,1,1.75", "513x769", Protocol((0.5, 1.0, 1.75), window=(513, 769))),
    ],
)
def test_protocols_of_the_command_line(scales, window, expected):
    assert _protocol(scales, window) == expected
    merged = dataclasses.replace(expected, merge="logits")
    assert _protocol(scales, window, "logits") == merged


def test_bad_merge_of_the_command_line():
    with pytest.raises(EngineError, match="merge must be one of softmax, logits, got 'mean'"):
        _protocol(None, None, "mean")


def test_bad_scales_of_the_command_line():
    with pytest.raises(EngineError, match="scales must be numbers, like 0.5,1,1.5, got 'a'"):
        _protocol("a", None)


class Outputs(nn.Module):
    """Gives fixed scores under several names."""

    def __init__(self, **scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = nn.ParameterDict(scores)

    def forward(self, image):
        return dict(self.scores)


def test_the_loss_is_the_weighted_sum_of_those_that_there_are():
    recipe = Recipe(lr=0.1, batch_size=1, epochs=1, outputs={"out": 1.0, "aux": 0.4, "other": 9.0})
    out, aux = torch.randn(2, 4, 9, 9), torch.randn(2, 4, 5, 5)
    target = torch.randint(0, 4, (2, 9, 9))
    target[:, 0] = 255
    module = SegmentationModule(Outputs(out=out, aux=aux), recipe, num_classes=4, total_steps=1)
    found = module.training_step((torch.zeros(2, 3, 9, 9, dtype=torch.uint8), target), 0)
    expected = segmentation_loss(out, target) + 0.4 * segmentation_loss(
        aux, labels_at(target, (5, 5))
    )
    assert found.item() == pytest.approx(expected.item())
    missing = dataclasses.replace(recipe, outputs={"logits": 1.0})
    module = SegmentationModule(Outputs(out=out), missing, num_classes=4, total_steps=1)
    with pytest.raises(EngineError, match="loss is on logits, and the network gives out"):
        module.training_loss({"out": out}, target)


def test_labels_of_smaller_outputs():
    target = torch.arange(321 * 321).view(1, 321, 321)
    grid = torch.arange(321)
    small = labels_at(target, (41, 41), "corners")
    assert torch.equal(small[0], target[0][8 * grid[:41, None], 8 * grid[:41]])
    # 31 maps of scale 0.75: each 10 2/3 pixels.
    rows = labels_at(target, (31, 31), "corners")[0, :, 0] // 321
    assert rows.tolist() == [round(i * 320 / 30) for i in range(31)]
    small = labels_at(target[:, :256, :250], (32, 32), "stride")
    assert torch.equal(small[0], target[0, 0:256:8, 0:250:8])
    assert labels_at(target, (1, 1), "corners").item() == 0


def test_poly_schedule_to_the_digits_of_the_papers():
    factor = LRFactor(Recipe(lr=0.01, batch_size=1, epochs=1, schedule="poly"), 30_000)
    found = [0.01 * factor(step) for step in (0, 15_000, 29_999)]
    assert found == pytest.approx([0.01, 0.00535887, 9.3452e-7], rel=1e-4)


def test_groups_of_heads_and_depthwise_convolutions():
    network = nn.ModuleDict({"body": SeparableConv2d(4, 6), "head": nn.Conv2d(6, 2, 1)})
    network.head_names = ("head",)
    recipe = Recipe(
        lr=0.1,
        batch_size=1,
        epochs=1,
        weight_decay=0.5,
        bias_lr_mult=2.0,
        bias_decay_mult=0.0,
        head_lr_mult=10.0,
        depthwise_decay=False,
    )
    groups = {g["name"]: g for g in build_optimizer(network, recipe).param_groups}
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "weight": (0.1, 0.5),
        "depthwise_weight": (0.1, 0.0),
        "norm": (0.1, 0.5),
        "head_weight": (1.0, 0.5),
        "head_bias": (2.0, 0.0),
    }
    assert groups["head_bias"]["params"][0] is network["head"].bias
    assert groups["depthwise_weight"]["params"][0] is network["body"].depthwise[0].weight
    count = sum(len(g["params"]) for g in groups.values())
    assert count == len(list(network.parameters()))
