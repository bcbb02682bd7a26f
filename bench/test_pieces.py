"""Shares of a network's time by kind of operation and by piece."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import pieces, results

LIGHT = {"width": 1 / 16, "backbone": "resnet17"}


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::mkldnn_convolution", "convolution"),
        ("aten::convolution_backward", "convolution"),
        ("aten::native_batch_norm_backward", "norm"),
        ("aten::max_pool2d_with_indices", "pooling"),
        ("segkern::max_pool2d_with_indices", "our kernels"),
        ("aten::upsample_bilinear2d", "up-sampling"),
        ("aten::bmm", "matrix product, softmax"),
        ("aten::cat", "copies, concatenation"),
        ("aten::threshold_backward", "activations"),
        ("aten::add_", "sums, products"),
        ("detach", "other"),
    ],
)
def test_kinds(operation, kind):
    assert pieces.kind_of(operation) == kind


def test_shares_are_kept_and_shown(tmp_path):
    row = pieces.measure("pspnet", size=(65, 65), **LIGHT)
    for what in ("training", "prediction"):
        assert sum(row[what].values()) == pytest.approx(1)
        assert row[what]["convolution"] > 0.05 and row[what]["our kernels"] > 0
    assert 0 < row["pieces"]["pyramid pooling"] < 1
    path = pieces.store(tmp_path, "cpu", row)
    pieces.store(tmp_path, "cpu", {**row, "network": "gcn"})
    assert sorted(results.load(path)["rows"]) == ["gcn", "pspnet"]
    text = pieces.block(tmp_path)
    share = f"{100 * row['pieces']['pyramid pooling']:.0f} %"
    assert f"| `pspnet` | pyramid pooling | {share} |" in text
    assert pieces.block(tmp_path / "none") == "Nothing measured yet.\n"


def test_pieces_take_their_time():
    class PyramidPooling(nn.Module):
        def forward(self, x):
            for _ in range(200):
                x = x.tanh()
            return x

    network = nn.Sequential(nn.Tanh(), PyramidPooling())
    found = pieces.pieces(network, torch.rand(1, 3, 128, 128))
    assert found["pyramid pooling"] > 0.9
