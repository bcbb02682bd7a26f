"""State dicts in the names of public ports: mapped faithfully, or refused with the reason.

The names and layer orders below are facts of those repositories. Where a port is mapped, a plain
torch network made from the same tensors computes the expected scores.
"""

from __future__ import annotations

import copy

import pytest
import torch
from modeltester import assert_same, correlation, images, seed_weights
from torch import nn
from torch.nn import functional

from segkern.models import WeightsError, create_model
from segkern.models._port_rules import VGG16_DEPTHS

WIDTHS = {1: 64, 2: 128, 3: 256, 4: 512, 5: 512}


def _norm(channels):
    return {
        "weight": torch.rand(channels) + 0.5,
        "bias": torch.randn(channels) * 0.1,
        "running_mean": torch.randn(channels) * 0.1,
        "running_var": torch.rand(channels) + 1e-7,
        "num_batches_tracked": torch.tensor(7),
    }


def _conv(out_channels, in_channels, *kernel):
    fan_in = in_channels * torch.tensor(kernel).prod()
    weight = torch.randn(out_channels, in_channels, *kernel) * (2 / fan_in) ** 0.5
    return {"weight": weight, "bias": torch.randn(out_channels) * 0.1}


def _put(state, prefix, tensors):
    state.update({f"{prefix}.{key}": value for key, value in tensors.items()})


def _segnet_state(conv, norm, conv_up, norm_up, classes=3, last_norm=False):
    """SegNet in the names of a port that numbers by VGG16's (stage, convolution)."""
    state = {}
    channels = 3
    for stage, depth in VGG16_DEPTHS.items():
        for i in range(1, depth + 1):
            _put(state, conv.format(stage, i), _conv(WIDTHS[stage], channels, 3, 3))
            _put(state, norm.format(stage, i), _norm(WIDTHS[stage]))
            channels = WIDTHS[stage]
    for stage in (5, 4, 3, 2, 1):
        for i in range(VGG16_DEPTHS[stage], 0, -1):
            out = classes if (stage, i) == (1, 1) else WIDTHS[stage if i > 1 else stage - 1]
            _put(state, conv_up.format(stage, i), _conv(out, channels, 3, 3))
            if (stage, i) != (1, 1) or last_norm:
                _put(state, norm_up.format(stage, i), _norm(out))
            channels = out
    return state


def _conv_norm_relu(state, x, conv, norm):
    x = functional.conv2d(x, state[f"{conv}.weight"], state[f"{conv}.bias"], padding=1)
    mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
    scale, shift = state[f"{norm}.weight"], state[f"{norm}.bias"]
    return functional.batch_norm(x, mean, var, scale, shift, eps=1e-5).relu()


def _segnet_scores(state, x, conv, norm, conv_up, norm_up):
    state = {k: v.double() if v.is_floating_point() else v for k, v in state.items()}
    routes = []
    for stage, depth in VGG16_DEPTHS.items():
        for i in range(1, depth + 1):
            x = _conv_norm_relu(state, x, conv.format(stage, i), norm.format(stage, i))
        x, indices = functional.max_pool2d(x, 2, return_indices=True)
        routes.append(indices)
    for stage in (5, 4, 3, 2, 1):
        x = functional.max_unpool2d(x, routes[stage - 1], 2)
        for i in range(VGG16_DEPTHS[stage], 0, -1):
            if (stage, i) != (1, 1):
                x = _conv_norm_relu(state, x, conv_up.format(stage, i), norm_up.format(stage, i))
    last = conv_up.format(1, 1)
    return functional.conv2d(x, state[f"{last}.weight"], state[f"{last}.bias"], padding=1)


ONERA = ("conv{}{}", "bn{}{}", "conv{}{}d", "bn{}{}d")
VINCEECWS = ("ConvEn{}{}", "BNEn{}{}", "ConvDe{}{}", "BNDe{}{}")


@pytest.mark.parametrize(
    ("names", "last_norm"), [(ONERA, False), (VINCEECWS, True)], ids=["onera", "vinceecws"]
)
def test_segnet_ports(names, last_norm, tmp_path):
    torch.manual_seed(0)
    state = _segnet_state(*names, last_norm=last_norm)
    path = tmp_path / "port.pth"
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    model = create_model("segnet", weights=path).eval().double()
    assert model.config["num_classes"] == 3
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        scores = model(image)["out"]
        expected = _segnet_scores(state, image, *names)
    # The float32 sum of a variance of 1e-7 and the difference in eps costs a relative 1e-7.
    assert (scores - expected).abs().max() < 1e-4 * expected.std()


def test_a_port_with_names_missing_and_left_over(tmp_path):
    state = _segnet_state(*ONERA)
    del state["conv42.weight"]
    state["stray"] = torch.zeros(1)
    torch.save(state, tmp_path / "port.pth")
    with pytest.raises(WeightsError) as caught:
        create_model("segnet", weights=tmp_path / "port.pth")
    message = str(caught.value)
    assert "names of delta-onera/segnet_pytorch" in message
    assert "missing from the file (1):\n  encoder.stage4.2.conv.weight" in message
    assert "left over in the file (1):\n  stray" in message


def test_deconvnet_port(tmp_path):
    torch.manual_seed(0)
    width, classes = 8, 3
    state, layers = {}, []

    def add(prefix, start, module):
        position = start
        for layer in module:
            seed_weights(layer)
            _put(state, f"{prefix}.{position}", layer.state_dict())
            position += 1
        layers.append((prefix, module))

    def block(conv):
        return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()]

    channels = 3
    for stage, depth in VGG16_DEPTHS.items():
        stack = []
        for _ in range(depth):
            stack += block(nn.Conv2d(channels, WIDTHS[stage], 3, padding=1))
            channels = WIDTHS[stage]
        add(f"conv{stage}", 0, nn.Sequential(*stack))
    add(
        "conv67",
        0,
        nn.Sequential(*block(nn.Conv2d(512, width, 7)), *block(nn.Conv2d(width, width, 1))),
    )
    add("deconv67", 0, nn.Sequential(*block(nn.ConvTranspose2d(width, 512, 7))))
    for stage in (5, 4, 3, 2, 1):
        stack = []
        for i in range(VGG16_DEPTHS[stage], 0, -1):
            out = WIDTHS[stage if i > 1 else max(stage - 1, 1)]
            stack += block(nn.ConvTranspose2d(channels, out, 3, padding=1))
            channels = out
        if stage == 1:
            stack.append(nn.ConvTranspose2d(64, classes, 1))
        add(f"deconv{stage}", 0, nn.Sequential(*stack))

    torch.save(state, tmp_path / "port.pth")
    model = create_model("deconvnet", fc_channels=width, weights=tmp_path / "port.pth").eval()
    assert model.config["num_classes"] == classes
    image = images("deconvnet", (224, 224))
    x, routes = image, {}
    with torch.no_grad():
        for prefix, module in layers:
            stage = int(prefix[-1])
            if prefix.startswith("deconv") and prefix != "deconv67":
                x = functional.max_unpool2d(x, routes[stage], 2)
            x = module.eval()(x)
            if prefix.startswith("conv") and prefix != "conv67":
                x, routes[stage] = functional.max_pool2d(x, 2, return_indices=True)
        scores = model(image)["out"]
    # float32: near ties of the pooling windows may fall differently.
    assert correlation(scores, x) > 0.999


class Branches(nn.Sequential):
    """Torch7's ConcatTable: every child sees the same input."""

    def forward(self, x):
        return [child(x) for child in self]


class Join(nn.Module):
    def forward(self, parts):
        return torch.cat(parts, dim=1)


class Add(nn.Module):
    def forward(self, parts):
        return parts[0] + parts[1]


class AppendZeros(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x):
        zeros = x.new_zeros(x.shape[0], self.channels, *x.shape[2:])
        return torch.cat([x, zeros], dim=1)


class RememberingPool(nn.Module):
    def forward(self, x):
        x, self.indices = functional.max_pool2d(x, 2, return_indices=True)
        return x


class Unpool(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.pool = (pool,)

    def forward(self, x):
        return functional.max_unpool2d(x, self.pool[0].indices, 2)


def _torch7_block(in_channels, out_channels, middle, first=1, other=()):
    inner = out_channels // 4
    main = nn.Sequential(
        nn.Conv2d(in_channels, inner, first, stride=first, bias=False),
        nn.BatchNorm2d(inner, eps=1e-3),
        nn.PReLU(inner),
        *middle,
        nn.BatchNorm2d(inner, eps=1e-3),
        nn.PReLU(inner),
        nn.Conv2d(inner, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels, eps=1e-3),
    )
    other = nn.Sequential(nn.Identity(), *other)
    return nn.Sequential(Branches(main, other), Add(), nn.PReLU(out_channels))


def _torch7_enet(classes):
    """The published Cityscapes model as Torch7 nests it, PReLU in the decoder."""

    def conv(channels, dilation=1):
        return [nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)]

    def wide(channels):
        return [
            nn.Conv2d(channels, channels, (1, 5), padding=(0, 2), bias=False),
            nn.Conv2d(channels, channels, (5, 1), padding=(2, 0)),
        ]

    def up(channels):
        return [nn.ConvTranspose2d(channels, channels, 3, 2, padding=1, output_padding=1)]

    def project(in_channels, out_channels, pool):
        conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        return conv, nn.BatchNorm2d(out_channels, eps=1e-3), Unpool(pool)

    pool1, pool2 = RememberingPool(), RememberingPool()
    middles = (conv(32), conv(32, 2), wide(32), conv(32, 4), conv(32), conv(32, 8), wide(32))
    return nn.Sequential(
        Branches(nn.Conv2d(3, 13, 3, 2, padding=1), RememberingPool()),
        Join(),
        nn.BatchNorm2d(16, eps=1e-3),
        nn.PReLU(16),
        _torch7_block(16, 64, conv(16), 2, (pool1, AppendZeros(48))),
        *(_torch7_block(64, 64, conv(16)) for _ in range(4)),
        _torch7_block(64, 128, conv(32), 2, (pool2, AppendZeros(64))),
        *(
            _torch7_block(128, 128, copy.deepcopy(middle))
            for _ in range(2)
            for middle in (*middles, conv(32, 16))
        ),
        _torch7_block(128, 64, up(16), 1, project(128, 64, pool2)),
        *(_torch7_block(64, 64, conv(16)) for _ in range(2)),
        _torch7_block(64, 16, up(4), 1, project(64, 16, pool1)),
        _torch7_block(16, 16, conv(4)),
        nn.ConvTranspose2d(16, classes, 2, stride=2),
    )


def test_enet_out_of_torch7(tmp_path):
    reference = _torch7_enet(20)
    seed_weights(reference)
    # Fixed points of the published file: 13 filters on 3 channels, 20 classes of Cityscapes.
    state = reference.state_dict()
    assert tuple(state["0.0.weight"].shape) == (13, 3, 3, 3)
    assert tuple(state["12.0.0.4.weight"].shape) == (32, 32, 5, 1)
    assert tuple(state["29.0.1.1.weight"].shape) == (16, 64, 1, 1)
    assert tuple(state["31.weight"].shape) == (16, 20, 2, 2)
    torch.save(state, tmp_path / "port.pth")
    model = create_model("enet", weights=tmp_path / "port.pth").eval().double()
    assert model.config["decoder_prelu"]
    assert model.config["num_classes"] == 20
    image = images("enet", (64, 96), like=torch.empty(0, dtype=torch.float64))
    with torch.no_grad():
        assert_same(model(image)["out"], reference.eval().double()(image))


REFUSED = {
    "segnet": {
        "pytorch-semseg": (
            ["down1.conv1.cbr_unit.0.weight", "up1.conv2.cbr_unit.0.weight"],
            r"up1.conv2 is followed by batch norm and ReLU",
        ),
        "pytorch-semantic-segmentation": (
            ["enc1.0.weight", "dec5.0.weight", "dec4.decode.0.weight"],
            "its encoder enc1 to enc5 is VGG19.*transposed convolutions.*concatenates",
        ),
        "torchvision": (
            ["features.0.weight", "features.28.weight", "classifier.6.weight"],
            "weights_backbone=",
        ),
    },
    "deconvnet": {
        "torchvision": (
            ["features.0.weight", "features.28.weight", "classifier.6.weight"],
            "weights_backbone=",
        ),
    },
    "enet": {
        "PyTorch-ENet": (
            ["initial_block.main_branch.weight", "regular1_1.ext_conv1.0.weight"],
            "quarter of their input channels.*3x3 with padding.*extra activation",
        ),
        "ENet-Real-Time": (
            ["init.conv.weight", "b10.conv1.weight", "b10.bnorm1.weight"],
            "stride on the 3x3 convolution",
        ),
    },
}


@pytest.mark.parametrize(
    ("network", "port"), [(network, port) for network in REFUSED for port in REFUSED[network]]
)
def test_ports_of_other_networks_are_refused(network, port, tmp_path):
    keys, reason = REFUSED[network][port]
    torch.save({key: torch.zeros(1) for key in keys}, tmp_path / "port.pth")
    with pytest.raises(WeightsError, match=rf"state dict of .*{port}.*another network: .*{reason}"):
        create_model(network, weights=tmp_path / "port.pth")
