"""MaxPool2d and MaxUnpool2d beside torch's layers of the same name."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from segkern.nn import MaxPool2d, MaxUnpool2d

ARGUMENTS = [
    {"kernel_size": 2},
    {"kernel_size": 2, "ceil_mode": True},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 3, "stride": 1, "padding": 1},
    {"kernel_size": (2, 3), "stride": (3, 2), "padding": (1, 0), "dilation": (1, 2)},
    {"kernel_size": 20, "stride": 7},
]


def _id(arguments):
    return ",".join(f"{key}={value}" for key, value in arguments.items()).replace(" ", "")


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=_id)
def test_pool_equals_torch(arguments, device):
    ours, torchs = MaxPool2d(**arguments), torch.nn.MaxPool2d(**arguments)
    x = torch.randn(2, 3, 45, 61, device=device).relu()
    grads = []
    outputs = []
    for layer in (ours, torchs):
        leaf = x.clone().requires_grad_()
        outputs.append(layer(leaf))
        weight = torch.arange(outputs[-1].numel(), device=device).view_as(outputs[-1]).float()
        (outputs[-1] * weight).sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*outputs)
    torch.testing.assert_close(*grads)
    assert repr(ours) == repr(torchs)
    assert ours.state_dict() == torchs.state_dict() == {}


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=_id)
def test_flat_indices_are_torchs(arguments, device):
    ours = MaxPool2d(**arguments, return_indices=True, index_format="flat")
    x = torch.randn(2, 3, 45, 61, device=device).relu()
    expected = torch.nn.MaxPool2d(**arguments, return_indices=True)(x)
    for got, want in zip(ours(x), expected, strict=True):
        assert torch.equal(got, want)
        assert got.dtype == want.dtype


@pytest.mark.parametrize(
    ("index_format", "dtype", "width"),
    [("offset", torch.uint8, 30), ("packed", torch.int32, 2), ("flat", torch.int64, 30)],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_unpool_takes_every_format(index_format, dtype, width, channels_last, device):
    x = torch.randn(2, 4, 46, 60, device=device)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    pooled, indices = MaxPool2d(2, return_indices=True, index_format=index_format)(x)
    assert indices.dtype == dtype
    assert tuple(indices.shape) == (2, 4, 23, width)
    restored = MaxUnpool2d(2)(pooled, indices)
    flat = torch.nn.MaxPool2d(2, return_indices=True)(x)[1]
    assert torch.equal(restored, torch.nn.MaxUnpool2d(2)(pooled, flat))
    assert restored.is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


@pytest.mark.parametrize("index_format", ["offset", "packed", "flat"])
def test_unpool_of_pool_is_the_maxima(index_format, device):
    pool = MaxPool2d(2, ceil_mode=True, return_indices=True, index_format=index_format)
    unpool = MaxUnpool2d(2)
    x = torch.randn(2, 3, 45, 23, device=device)
    pooled, indices = pool(x)
    assert tuple(pooled.shape[-2:]) == (23, 12)
    restored = unpool(pooled, indices, x.size())
    assert restored.shape == x.shape
    is_maximum = restored != 0
    assert torch.equal(restored[is_maximum], x[is_maximum])
    assert is_maximum.sum() == pooled.numel()
    assert torch.equal(pool(restored.where(is_maximum, -torch.inf))[0], pooled)


def test_ties_go_to_the_first_in_raster_order(device):
    flat = MaxPool2d(2, return_indices=True, index_format="flat")
    assert flat(torch.zeros(1, 1, 4, 4, device=device))[1].flatten().tolist() == [0, 2, 8, 10]


def test_unpool_output_sizes(device):
    pooled, indices = MaxPool2d(2, return_indices=True)(torch.randn(1, 2, 9, 7, device=device))
    unpool = MaxUnpool2d(2)
    assert tuple(unpool(pooled, indices).shape) == (1, 2, 8, 6)
    for size in ((9, 7), (1, 2, 9, 7), torch.Size([1, 2, 9, 7]), [9, 7]):
        assert tuple(unpool(pooled, indices, size).shape) == (1, 2, 9, 7)
        assert tuple(unpool(pooled, indices, output_size=size).shape) == (1, 2, 9, 7)
    assert tuple(unpool(pooled[0], indices[0], (2, 9, 7)).shape) == (2, 9, 7)
    with pytest.raises(ValueError, match=r"MaxUnpool2d: output_size must be \(H, W\)"):
        unpool(pooled, indices, (2, 9, 7))


def test_unpool_with_dilation_and_overlap(device):
    window = {"kernel_size": (2, 3), "stride": 2, "padding": 1, "dilation": 2}
    x = torch.randn(2, 3, 21, 18, device=device)
    pooled, indices = MaxPool2d(**window, return_indices=True)(x)
    flat = MaxPool2d(**window, return_indices=True, index_format="flat")(x)[1]
    unpool = MaxUnpool2d(**window)
    assert torch.equal(unpool(pooled, indices, x.shape), unpool(pooled, flat, x.shape))


def test_unpool_repr_is_torchs():
    assert repr(MaxUnpool2d(2)) == repr(torch.nn.MaxUnpool2d(2))
    assert repr(MaxUnpool2d(3, 2, 1)) == repr(torch.nn.MaxUnpool2d(3, 2, 1))
    assert repr(MaxUnpool2d(3, dilation=2)).endswith("dilation=2)")


def test_unknown_index_format():
    with pytest.raises(ValueError, match="MaxPool2d: index_format must be one of offset, packed"):
        MaxPool2d(2, index_format="bits")


def test_packed_windows_of_more_than_16():
    pool = MaxPool2d(5, return_indices=True, index_format="packed")
    with pytest.raises(ValueError, match="16"):
        pool(torch.zeros(1, 1, 9, 9))


def test_layers_survive_copies(device):
    x = torch.randn(1, 2, 8, 8, device=device)
    pool, unpool = MaxPool2d(2, return_indices=True, index_format="packed"), MaxUnpool2d(2)
    for copied in (copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))):
        pooled, indices = copied(pool)(x)
        assert indices.dtype == torch.int32
        assert torch.equal(copied(unpool)(pooled, indices), unpool(*pool(x)))


@pytest.mark.parametrize("training", [True, False])
def test_from_torch(training):
    pool = torch.nn.MaxPool2d(3, 2, 1, 2, True, True).train(training)
    ours = MaxPool2d.from_torch(pool)
    assert repr(ours) == repr(pool)
    assert type(pool) is torch.nn.MaxPool2d
    assert ours.training is training
    assert ours.index_format == "flat"
    assert ours.return_indices

    unpool = torch.nn.MaxUnpool2d(3, 2, 1).train(training)
    ours = MaxUnpool2d.from_torch(unpool)
    assert repr(ours) == repr(unpool)
    assert ours.training is training

    with pytest.raises(TypeError, match="MaxPool2d.from_torch: module must be"):
        MaxPool2d.from_torch(torch.nn.ReLU())


def test_backward_keeps_one_byte_per_window():
    saved = []

    def record(tensor):
        saved.append(tensor)
        return tensor

    x = torch.randn(1, 8, 32, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        MaxPool2d(2)(x)
    assert [(tensor.dtype, tensor.numel()) for tensor in saved] == [(torch.uint8, 8 * 16 * 16)]


def test_compile(device):
    class RoundTrip(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = MaxPool2d(2, ceil_mode=True, return_indices=True)
            self.unpool = MaxUnpool2d(2)

        def forward(self, x):
            return self.unpool(*self.pool(x), x.size())

    model = RoundTrip()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in ((45, 31), (12, 7)):
        x = torch.randn(2, 3, *size, device=device)
        assert torch.equal(compiled(x), model(x))
    torch._dynamo.reset()
