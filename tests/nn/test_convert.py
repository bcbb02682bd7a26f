"""convert() on models that other people wrote."""

from __future__ import annotations

import pytest
import torch

import segkern
from segkern.nn import MaxPool2d, MaxUnpool2d, Swap, convert

torchvision = pytest.importorskip("torchvision")


def _vgg16_bn():
    return torchvision.models.vgg16_bn(num_classes=10), 64


def _googlenet():
    return torchvision.models.googlenet(num_classes=10, aux_logits=False, init_weights=False), 96


def _resnet50():
    return torchvision.models.resnet50(num_classes=10), 64


@pytest.mark.parametrize(
    ("build", "count"),
    [(_vgg16_bn, 5), (_googlenet, 13), (_resnet50, 1)],
    ids=lambda v: str(v)[1:9],
)
def test_torchvision_models_keep_their_bits(build, count, device):
    torch.manual_seed(0)
    model, size = build()
    model = model.to(device).eval()
    image = torch.randn(2, 3, size, size, device=device)

    def output_and_gradients():
        model.zero_grad()
        leaf = image.clone().requires_grad_()
        output = model(leaf)
        output.square().sum().backward()
        return output.detach(), leaf.grad, [p.grad.clone() for p in model.parameters()]

    keys = list(model.state_dict())
    output, image_grad, grads = output_and_gradients()
    swaps = convert(model)
    assert len(swaps) == count
    assert all((swap.old, swap.new) == (torch.nn.MaxPool2d, MaxPool2d) for swap in swaps)
    assert all(type(model.get_submodule(swap.name)) is MaxPool2d for swap in swaps)
    assert list(model.state_dict()) == keys

    new_output, new_image_grad, new_grads = output_and_gradients()
    assert torch.equal(new_output, output)
    assert torch.equal(new_image_grad, image_grad)
    assert all(torch.equal(new, old) for new, old in zip(new_grads, grads, strict=True))
    assert convert(model) == []


class Router(torch.nn.Module):
    """Encoder and decoder whose author works on flat indices."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.pool = torch.nn.MaxPool2d(2, return_indices=True)
        self.unpool = torch.nn.MaxUnpool2d(2)

    def forward(self, x):
        features = self.conv(x)
        pooled, indices = self.pool(features)
        rows = indices // features.shape[-1]
        return self.unpool(pooled, indices, features.size()), rows


def test_indices_stay_what_the_author_expects(device):
    model = Router().to(device)
    x = torch.randn(2, 3, 21, 18, device=device)
    expected = model(x)
    swaps = convert(model)
    assert [swap.name for swap in swaps] == ["pool", "unpool"]
    assert model.pool.index_format == "flat"
    for got, want in zip(model(x), expected, strict=True):
        assert torch.equal(got, want)
    model.pool.index_format = "offset"
    assert torch.equal(model(x)[0], expected[0])


def test_the_model_itself():
    pool = torch.nn.MaxPool2d(2)
    (swap,) = convert(pool)
    assert swap == Swap("", torch.nn.MaxPool2d, MaxPool2d)
    assert type(pool) is MaxPool2d
    assert str(swap) == "(the model itself): torch.nn.MaxPool2d -> segkern.nn.MaxPool2d"


def test_shared_layers_hooks_and_flags_are_kept():
    pool = torch.nn.MaxPool2d(2)
    model = torch.nn.ModuleDict({"a": torch.nn.Sequential(pool), "b": pool})
    listed = [pool]
    calls = []
    handle = pool.register_forward_hook(lambda *_: calls.append(1))
    pool.eval()
    pool.note = "kept"
    assert [swap.name for swap in convert(model)] == ["a.0"]
    assert model["a"][0] is model["b"] is listed[0] is pool
    assert type(pool) is MaxPool2d
    assert not pool.training
    assert pool.note == "kept"
    pool(torch.zeros(1, 1, 4, 4))
    handle.remove()
    pool(torch.zeros(1, 1, 4, 4))
    assert calls == [1]


def test_subclasses_and_other_layers_are_left_alone():
    class Special(torch.nn.MaxPool2d):
        pass

    model = torch.nn.Sequential(Special(2), torch.nn.AvgPool2d(2), MaxUnpool2d(2))
    types = [type(layer) for layer in model]
    assert convert(model) == []
    assert [type(layer) for layer in model] == types


def test_only_modules():
    with pytest.raises(TypeError, match="convert: model must be a torch.nn.Module, got list"):
        convert([torch.nn.MaxPool2d(2)])


def test_a_converted_pool_of_a_large_window():
    pool = torch.nn.MaxPool2d(20)
    x = torch.randn(1, 2, 40, 40)
    expected = pool(x)
    convert(pool)
    assert torch.equal(pool(x), expected)


def test_it_is_at_the_top_level():
    assert segkern.convert is convert
