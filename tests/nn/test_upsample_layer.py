"""BilinearUpsample beside torch.nn.Upsample, and convert's swap to it."""

from __future__ import annotations

import pytest
import torch

from segkern.nn import BilinearUpsample, convert

ARGUMENTS = (
    {"size": (7, 9)},
    {"size": 6, "align_corners": True},
    {"scale_factor": 2},
    {"scale_factor": (3.0, 1.0)},
    {"scale_factor": 1.7, "align_corners": True},
    {"scale_factor": 1.7, "recompute_scale_factor": True},
    {"scale_factor": 1.7},
    {"scale_factor": 0.4},
)


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_as_torchs(arguments, device):
    torchs = torch.nn.Upsample(mode="bilinear", **arguments)
    ours = BilinearUpsample(**arguments)
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, device=device)
    torch.testing.assert_close(ours(x), torchs(x), rtol=0, atol=1e-12)
    assert repr(ours) == repr(torchs).replace("Upsample(", "BilinearUpsample(")
    torch.testing.assert_close(BilinearUpsample.from_torch(torchs.eval())(x), torchs(x))
    assert not BilinearUpsample.from_torch(torchs).training


def test_integer_factors_keep_sizes_symbolic():
    layer = torch.compile(
        BilinearUpsample(scale_factor=2), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for size in ((4, 5), (7, 3)):
        x = torch.randn(1, 2, *size)
        torch.testing.assert_close(layer(x), torch.nn.Upsample(scale_factor=2, mode="bilinear")(x))


def test_what_is_not_ours_is_torchs():
    byte = torch.randint(0, 255, (1, 3, 4, 4), dtype=torch.uint8)
    wanted = torch.nn.Upsample(scale_factor=2, mode="bilinear")(byte)
    assert torch.equal(BilinearUpsample(scale_factor=2)(byte), wanted)
    with pytest.raises(ValueError, match="size or scale_factor"):
        BilinearUpsample()(torch.ones(1, 1, 2, 2))
    for module in (torch.nn.Upsample(scale_factor=2), torch.nn.ReLU()):
        with pytest.raises(TypeError, match="BilinearUpsample: module must be a bilinear"):
            BilinearUpsample.from_torch(module)


def test_convert_swaps_bilinear_layers_alone():
    model = torch.nn.Sequential(
        torch.nn.Upsample(scale_factor=2, mode="bilinear"),
        torch.nn.Upsample(scale_factor=2),
        torch.nn.UpsamplingBilinear2d(size=(9, 5)),
        torch.nn.UpsamplingNearest2d(scale_factor=2),
    )
    x = torch.randn(1, 2, 3, 4)
    wanted = model(x)
    assert [str(swap) for swap in convert(model)] == [
        "0: torch.nn.Upsample -> segkern.nn.BilinearUpsample",
        "2: torch.nn.UpsamplingBilinear2d -> segkern.nn.BilinearUpsample",
    ]
    assert isinstance(model[0], BilinearUpsample)
    assert isinstance(model[2], BilinearUpsample)
    torch.testing.assert_close(model(x), wanted)
    assert convert(model) == []
