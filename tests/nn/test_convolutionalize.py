"""Classifiers made dense, against the classifier itself on windows, in float64."""

from __future__ import annotations

import copy
import doctest
import functools

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.googlenet import BasicConv2d, Inception
from torchvision.models.vgg import make_layers

import segkern


def head(features: int, window: int) -> nn.Sequential:
    """A classifier of few parameters in the place of torchvision's."""
    return nn.Sequential(
        nn.Linear(features * window**2, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 5)
    )


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "alexnet":
        with torch.device("meta"):
            model = models.alexnet()
        model.features = model.features.to_empty(device="cpu")
        for parameter in model.features.parameters():
            nn.init.normal_(parameter, std=0.05)
        model.classifier = head(256, 6)
    elif name == "googlenet":
        model = models.googlenet(init_weights=False, transform_input=True)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.1, 0.1)
    else:
        layers = [4, "M", 6, "M", 6, 6, "M", 8, "M", 8, "M"]
        features = make_layers(layers, batch_norm=name == "vgg_bn")
        with torch.device("meta"):
            model = models.VGG(features, init_weights=False)
        model.classifier = head(8, 7)
    return model.double().eval()


@torch.no_grad()
@pytest.mark.parametrize("name", ["alexnet", "vgg", "vgg_bn", "googlenet"])
def test_on_the_training_size_scores_are_the_classifiers(name):
    classifier = network(name)
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    dense = segkern.convert.convolutionalize(classifier)
    image = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    expected = classifier(image)
    scores = dense(image)
    assert scores.shape == (*expected.shape, 1, 1)
    assert (scores[..., 0, 0] - expected).abs().max() <= 1e-13 * expected.abs().max()
    dense.classifier[-1].weight.zero_()
    assert all(torch.equal(before[key], v) for key, v in classifier.state_dict().items())


def without_padding(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d)):
            module.padding = 0
    return model


def field(layers: nn.Module) -> int:
    """Pixels that one window sees without padding."""
    size, step = 1, 1
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
            kernel, stride = (
                value[0] if isinstance(value, tuple) else value
                for value in (layer.kernel_size, layer.stride)
            )
            size += (kernel - 1) * step
            step *= stride
    return size


@torch.no_grad()
@pytest.mark.parametrize("name", ["alexnet", "vgg"])
def test_dense_scores_are_those_of_sliding_windows(name):
    """Exact without padding; with it in windows that no zero reaches, as the specification says."""
    dense = segkern.convert.convolutionalize(network(name))
    bare = without_padding(dense)
    layers = [*dense.features, *dense.classifier]
    size = field(layers)
    # Where window 0 starts, with the zeros around maps.
    first, step = 0, 1
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
            padding = layer.padding[0] if isinstance(layer.padding, tuple) else layer.padding
            stride = layer.stride[0] if isinstance(layer.stride, tuple) else layer.stride
            first, step = first - padding * step, step * stride
    assert step == 32 and first < 0
    if name == "alexnet":
        assert size == 355
    inside = -(first // 32)
    start = first + 32 * inside
    image = torch.randn(1, 3, size + start + 64, size + start + 40, dtype=torch.float64)
    padded, free = dense(image), bare(image)
    largest = free.abs().max()
    for i, j in ((0, 0), (1, 0), (1, 1)):
        window = image[..., 32 * i : 32 * i + size, 32 * j : 32 * j + size]
        assert bare(window).shape[-2:] == (1, 1)
        assert (free[..., i, j] - bare(window)[..., 0, 0]).abs().max() <= 1e-13 * largest
        at = start + 32 * i, start + 32 * j
        window = image[..., at[0] : at[0] + size, at[1] : at[1] + size]
        score = padded[..., inside + i, inside + j]
        assert (score - bare(window)[..., 0, 0]).abs().max() <= 1e-13 * largest
        # A window by itself sees its own zeros: the specification's warning, and a test of ours.
        assert (score - dense(window)[..., 0, 0]).abs().max() > 1e-6 * largest


@torch.no_grad()
def test_googlenets_scores_slide_with_the_image():
    """Its blocks add zeros of different widths, so no bare form exists: a score depends on the
    pixels of its window alone, and is found where these are."""

    def thin(inputs, outputs, **options):
        return BasicConv2d(inputs if inputs == 3 else inputs // 8, outputs // 8, **options)

    inception = functools.partial(Inception, conv_block=thin)
    classifier = models.GoogLeNet(
        init_weights=False, aux_logits=False, blocks=[thin, inception, None]
    )
    classifier.fc = nn.Linear(128, 5)
    dense = segkern.convert.convolutionalize(classifier.double().eval())
    image = torch.randn(1, 3, 32 * 30, 32 * 30, dtype=torch.float64)
    scores = dense(image)
    assert scores.shape[2:] == (24, 24)
    moved = dense(image[..., 32:, 64:])
    assert scores.std(dim=(2, 3)).min() > 0
    # Pixels 281 to 900, with no border among them.
    (row, column), size = (14, 14), scores.abs().max()
    difference = (scores[..., row, column] - moved[..., row - 1, column - 2]).abs().max()
    assert difference <= 1e-12 * size
    # Near the border the zeros tell.
    assert (scores[..., 2, 3] - moved[..., 1, 1]).abs().max() > 1e-9 * size


def test_other_networks_are_refused():
    with pytest.raises(TypeError, match="torchvision's AlexNet, VGG or GoogLeNet, got Linear"):
        segkern.convert.convolutionalize(nn.Linear(2, 2))
    broken = network("vgg")
    broken.classifier[0] = nn.Linear(100, 16)
    with pytest.raises(ValueError, match="must have a first layer of C \\* 7 \\* 7 inputs"):
        segkern.nn.convolutionalize(broken)


def test_the_docstring_example():
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(segkern.nn.convolutionalize, globs={})
    assert doctest.DocTestRunner().run(example).failed == 0
