"""SegNet, SegNet-Basic and DeconvNet: counts, sizes, layers and dropout of their specification."""

from __future__ import annotations

import math

import pytest
import torch
from modeltester import build
from torch import nn
from torch.nn import functional

from segkern.models import create_model


def _count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def _meta(name, **options):
    with torch.device("meta"):
        return create_model(name, **options)


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("segnet", 11, 29_449_355),
        ("segnet", 12, 29_449_932),
        ("segnet", 21, 29_455_125),
        ("segnet", 38, 29_464_934),
        ("segnet_basic", 11, 1_416_587),
        ("segnet_basic", 12, 1_416_652),
        ("deconvnet", 21, 251_805_653),
        ("deconvnet", 2, 251_804_418),
    ],
)
def test_parameters(name, classes, count):
    model = _meta(name, num_classes=classes)
    assert _count(model) == count


@pytest.mark.parametrize(("name", "count"), [("segnet", 15_872), ("deconvnet", 33_408)])
def test_parameters_of_batch_norm(name, count):
    norms = [module for module in _meta(name).modules() if isinstance(module, nn.BatchNorm2d)]
    assert sum(map(_count, norms)) == count
    assert all(norm.eps == 1e-9 for norm in norms)


@pytest.mark.parametrize("name", ["segnet", "segnet_basic", "deconvnet"])
def test_start_of_the_layers(name):
    torch.manual_seed(0)
    options = {"fc_channels": 64} if name == "deconvnet" else {}
    model = create_model(name, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.equal(module.bias, torch.full_like(module.bias, 1e-3))
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            assert torch.equal(module.bias, torch.zeros_like(module.bias))
            msra = isinstance(module, nn.Conv2d) and module is not getattr(model, "score", None)
            expected = math.sqrt(2 / module.weight[0].numel()) if msra else 0.01
            # Five standard errors of a standard deviation.
            error = 5 / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(expected, rel=error)


def test_the_classifiers_are_bare():
    segnet = _meta("segnet")
    assert list(segnet.decoder.stage1.named_children())[-1][0] == "1"
    assert (segnet.classifier.kernel_size, segnet.classifier.padding) == ((3, 3), (1, 1))
    assert _meta("segnet_basic").classifier.kernel_size == (1, 1)
    assert _meta("deconvnet").score.kernel_size == (1, 1)
    widths = [
        [block.conv.out_channels for block in segnet.decoder.get_submodule(f"stage{i}")]
        for i in (5, 4, 3, 2, 1)
    ]
    assert widths == [[512, 512, 512], [512, 512, 256], [256, 256, 128], [128, 64], [64]]


@pytest.mark.parametrize(
    ("name", "sizes", "channels"),
    [
        (
            "segnet",
            [(360, 480), (180, 240), (90, 120), (45, 60), (23, 30)],
            [64, 128, 256, 512, 512],
        ),
        ("segnet_basic", [(360, 480), (180, 240), (90, 120), (45, 60)], [64] * 4),
        (
            "deconvnet",
            [(224, 224), (112, 112), (56, 56), (28, 28), (14, 14)],
            [64, 128, 256, 512, 512],
        ),
    ],
)
def test_every_unpooling_restores_what_its_pool_saw(name, sizes, channels):
    """On the meta device: the shapes are the whole test."""
    model = _meta(name).eval()
    unpool = model.unpool if name == "segnet_basic" else model.decoder.unpool
    seen = []
    unpool.register_forward_hook(
        lambda _, args, output: seen.append((args[0].shape[1], args[1].shape, output.shape))
    )
    scores = model(torch.empty(1, 3, *sizes[0], device="meta"))["out"]
    assert tuple(scores.shape[-2:]) == sizes[0]
    assert [tuple(output[-2:]) for *_, output in seen] == sizes[::-1]
    assert [values for values, *_ in seen] == channels[::-1]
    pooled = [(math.ceil(h / 2), math.ceil(w / 2)) for h, w in sizes[::-1]]
    assert [tuple(indices[-2:]) for _, indices, _ in seen] == pooled
    assert [indices[1] for _, indices, _ in seen] == channels[::-1]


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (45, 23), (31, 64)])
def test_segnet_takes_any_size(size, device):
    assert build("segnet", device)(torch.rand(1, 3, *size, device=device))["out"].shape[-2:] == size


def test_lrn_is_caffes():
    lrn = create_model("segnet_basic").lrn
    x = 255 * torch.rand(2, 3, 4, 5, dtype=torch.float64)
    squares = x.square().sum(1, keepdim=True)
    # A window of 5 centred on any of 3 channels covers all of them.
    torch.testing.assert_close(lrn(x), x / (1 + 1e-4 / 5 * squares) ** 0.75)


def test_basic_has_relu_in_the_encoder_only():
    model = build("segnet_basic")
    low = {}
    for part in ("encoder", "decoder"):

        def record(_, __, output, part=part):
            low[part] = output.min().item()

        model.get_submodule(f"{part}.stage2").register_forward_hook(record)
    with torch.no_grad():
        model(255 * torch.rand(1, 3, 32, 32))
    assert low["encoder"] == 0
    assert low["decoder"] < 0


@pytest.mark.parametrize(("name", "layers"), [("segnet", 6), ("segnet_basic", 4)])
def test_bayesian(name, layers, device):
    plain = create_model(name)
    model = create_model(name, bayesian=True)
    assert list(model.state_dict()) == list(plain.state_dict())
    dropouts = [key for key, module in model.named_modules() if isinstance(module, nn.Dropout)]
    depths = (3, 4, 5) if name == "segnet" else (3, 4)
    expected = {f"{part}.dropout{i}" for part in ("encoder", "decoder") for i in depths}
    assert set(dropouts) == expected
    assert len(dropouts) == layers

    model = build(name, device, bayesian=True)
    image = torch.rand(1, 3, 32, 48, device=device)
    torch.manual_seed(0)
    mean, variance = model.sample(image, 4)
    assert mean.shape == variance.shape == (1, 11, 32, 48)
    torch.testing.assert_close(mean.sum(1), torch.ones_like(mean[:, 0]))
    assert not any(module.training for module in model.modules())
    torch.manual_seed(0)
    with torch.no_grad():
        for key in dropouts:
            model.get_submodule(key).train()
        passes = torch.stack([model(image)["out"].softmax(1) for _ in range(4)])
    torch.testing.assert_close(mean, passes.mean(0))
    torch.testing.assert_close(variance, passes.var(0, correction=0))
    assert variance.max() > 0

    with pytest.raises(ValueError, match="sample needs a network with bayesian=True"):
        plain.sample(image, 2)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        model.sample(image, 0)


@pytest.mark.parametrize(
    ("name", "size", "layer"),
    [
        ("segnet", (16, 10), "encoder.stage5.1.norm"),
        ("segnet", (1, 1), "encoder.stage1.1.norm"),
        ("segnet_basic", (8, 5), "encoder.stage4.norm"),
        ("deconvnet", (224, 200), "fc6.norm"),
    ],
)
def test_one_pixel_in_training(name, size, layer):
    options = {"fc_channels": 8} if name == "deconvnet" else {}
    model = create_model(name, **options).train()
    with pytest.raises(ValueError, match=f"{name}: {layer} sees one 1x1 feature map"):
        model(torch.rand(1, 3, *size))


def test_deconvnet_at_224():
    model = _meta("deconvnet").eval()
    shapes = []
    for name in ("fc6", "fc7", "fc6_deconv"):
        model.get_submodule(name).register_forward_hook(
            lambda _, __, output: shapes.append(tuple(output.shape[1:]))
        )
    assert model(torch.empty(2, 3, 224, 224, device="meta"))["out"].shape == (2, 21, 224, 224)
    assert shapes == [(4096, 1, 1), (4096, 1, 1), (512, 7, 7)]


def test_deconvnet_pads_small_images(device):
    model = build("deconvnet", device)
    image = torch.rand(1, 3, 100, 205, device=device)
    padded = functional.pad(image, (0, 0, 0, 93), mode="replicate")
    with torch.no_grad():
        assert torch.equal(model(image)["out"], model(padded)["out"][..., :100, :])
    strict = _meta("deconvnet", strict_size=True)
    with pytest.raises(ValueError, match="at least 193, got 192x300; nearest valid: 193x300"):
        strict(torch.empty(2, 3, 192, 300, device="meta"))


def test_the_whole_of_deconvnet_runs():
    """252 M parameters, once, at the paper's size."""
    model = create_model("deconvnet").eval()
    with torch.no_grad():
        scores = model(torch.rand(1, 3, 224, 224))["out"]
    assert scores.shape == (1, 21, 224, 224)
    assert scores.isfinite().all()
