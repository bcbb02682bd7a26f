"""The acceptance table of the networks of atrous convolution: parameters, exact."""

from __future__ import annotations

import pytest
import torch

from segkern.models import create_model
from segkern.models.backbones import ResNet, VGG16Features, Xception
from segkern.models.dilation import POOLS

X65, X41 = {"backbone": "xception65"}, {"backbone": "xception41"}
R50, R101 = {"backbone": "resnet50"}, {"backbone": "resnet101"}

NETWORKS = [
    ("deeplabv1", {}, 20_505_429),
    ("deeplabv1", {"variant": "7x7"}, 134_346_581),
    ("deeplabv1", {"variant": "4x4"}, 65_140_565),
    ("deeplabv1", {"variant": "4x4_rate4"}, 65_140_565),
    ("deeplabv1", {"multi_scale": True}, 21_711_550),
    ("deeplabv2", {"backbone": "vgg16"}, 37_877_652),
    ("deeplabv2", {"backbone": "vgg16", "head": "aspp_s"}, 37_877_652),
    ("deeplabv2", {"backbone": "vgg16", "head": "largefov"}, 20_505_429),
    ("deeplabv2", R101, 44_048_532),
    ("deeplabv2", {**R101, "head": "largefov"}, 42_887_253),
    ("deeplabv3", R50, 39_048_533),
    ("deeplabv3", R101, 58_040_661),
    ("deeplabv3", {**R101, "stem": "deep"}, 58_164_437),
    ("deeplabv3_cascade", {"blocks": 4}, 42_543_189),
    ("deeplabv3_cascade", {"blocks": 5}, 55_930_965),
    ("deeplabv3_cascade", {"blocks": 6}, 69_318_741),
    ("deeplabv3_cascade", {"blocks": 7}, 82_706_517),
    ("deeplabv3plus", X65, 41_055_413),
    ("deeplabv3plus", {**X65, "num_classes": 19}, 41_054_899),
    ("deeplabv3plus", {**X65, "num_classes": 150}, 41_088_566),
    ("deeplabv3plus", {**X65, "separable": False}, 54_711_461),
    ("deeplabv3plus", X41, 28_108_661),
    ("deeplabv3plus", {**R101, "separable": False}, 59_344_309),
    ("deeplabv3plus", {**R101, "separable": False, "num_classes": 19}, 59_343_795),
    ("deeplabv3plus", R101, 45_688_261),
    ("deeplabv3plus", {**R101, "stem": "deep"}, 45_812_037),
    ("dilation_frontend", {}, 134_346_581),
    ("dilation8", {}, 141_149_720),
    ("dilation8", {"context": "basic"}, 134_374_973),
    ("dilation8", {"context": "basic", "num_classes": 11}, 134_313_443),
    ("dilation8", {"context": "basic", "num_classes": 11, "layers": 7}, 134_312_343),
    ("dilation10", {}, 134_368_179),
    ("espnet_a", {}, 330_272),
    ("espnet_b", {}, 348_384),
    ("espnet_b", {"concat_norm": False}, 347_232),
]

# At q = 3, 5 and 8: ESPNet-C, ESPNet on level 1, ESPNet on b1.
ESPNETS = {
    11: ((185_225, 249_993, 347_145), (191_220, 255_988, 353_140), (191_517, 256_285, 353_437)),
    12: ((185_481, 250_249, 347_401), (192_273, 257_041, 354_193), (192_597, 257_365, 354_517)),
    19: ((187_273, 252_041, 349_193), (201_029, 265_797, 362_949), (201_542, 266_310, 363_462)),
    20: ((187_529, 252_297, 349_449), (202_649, 267_417, 364_569), (203_189, 267_957, 365_109)),
    21: ((187_785, 252_553, 349_705), (204_102, 268_870, 366_022), (204_669, 269_437, 366_589)),
}


def parameters(model: torch.nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


@pytest.mark.parametrize(("name", "options", "expected"), NETWORKS)
def test_networks(name, options, expected):
    with torch.device("meta"):
        assert parameters(create_model(name, **options)) == expected


@pytest.mark.parametrize("classes", ESPNETS)
def test_espnets(classes):
    builds = (("espnet_c", {}), ("espnet", {}), ("espnet", {"tail": "b1"}))
    with torch.device("meta"):
        for (name, options), row in zip(builds, ESPNETS[classes], strict=True):
            for q, expected in zip((3, 5, 8), row, strict=True):
                model = create_model(name, num_classes=classes, q=q, **options)
                assert parameters(model) == expected


def test_frozen_batch_norm_of_deeplab_v2():
    with torch.device("meta"):
        assert parameters(create_model("deeplabv2"), trainable=True) == 43_943_188


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: VGG16Features(3, POOLS), 14_714_688),
        (lambda: ResNet("x", "resnet50", 3), 23_508_032),
        (lambda: ResNet("x", "resnet101", 3), 42_500_160),
        (lambda: ResNet("x", "resnet50", 3, stem="deep"), 23_631_808),
        (lambda: ResNet("x", "resnet101", 3, stem="deep"), 42_623_936),
        (lambda: Xception("x", "xception65", 3), 37_867_312),
        (lambda: Xception("x", "xception41", 3), 24_920_560),
    ],
)
def test_trunks(make, expected):
    with torch.device("meta"):
        assert parameters(make()) == expected
