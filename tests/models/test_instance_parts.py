"""Parts of the instance networks: worked numbers of the published rules, torchvision's images."""

from __future__ import annotations

import doctest
import importlib
import math

import pytest
import torch

from segkern.models._instances.anchors import Anchors
from segkern.models._instances.boxes import box_iou, clip_boxes, decode_boxes, encode_boxes
from segkern.models._instances.fpn import FeaturePyramid, resnet_fpn
from segkern.models._instances.images import PrepareImages
from segkern.models._instances.matching import match_boxes, sample_boxes
from segkern.models._instances.roi_heads import crop_masks, paste

PARTS = ("anchors", "boxes", "fpn", "images", "matching")


@pytest.mark.parametrize("name", PARTS)
def test_examples(name):
    module = importlib.import_module(f"segkern.models._instances.{name}")
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


def maps_of(*sizes):
    return [torch.zeros(1, 1, *size) for size in sizes]


def test_anchors_of_detectron2():
    anchors = Anchors([32, 64], (0.25, 1, 4), strides=(4, 8), rounded=False)
    fine, coarse = anchors((99, 99), maps_of((1, 2), (1, 1)))
    first = [[-32, -8, 32, 8], [-16, -16, 16, 16], [-8, -32, 8, 32]]
    assert torch.equal(fine[:3], torch.tensor(first).float())
    assert torch.equal(fine[3:], fine[:3] + torch.tensor([4.0, 0, 4, 0]))
    assert torch.equal(coarse, 2 * fine[:3])
    shifted = Anchors([32], (1,), strides=(4,), rounded=False, offset=0.5)
    assert shifted((9, 9), maps_of((1, 1)))[0].tolist() == [[-14, -14, 18, 18]]


def test_anchors_of_torchvision():
    anchors = Anchors([32, 512], (0.5, 1, 2))
    small, large = anchors((800, 1344), maps_of((200, 336), (13, 21)))
    assert small[:3].tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    assert large[0].tolist() == [-362, -181, 362, 181]
    # The level's pixels are 61 apart downwards and 64 across; rows come first.
    assert (large[3] - large[0]).tolist() == [64, 0, 64, 0]
    assert (large[3 * 21] - large[0]).tolist() == [0, 61, 0, 61]
    assert small.shape == (200 * 336 * 3, 4)


def test_matches():
    quality = torch.tensor([[0.15, 0.45, 0.2, 0.6], [0.3, 0.65, 0.05, 0.1], [0.05, 0.4, 0.25, 0.4]])
    index, kind = match_boxes(quality, 0.3, 0.7, low_quality=True)
    assert index.tolist() == [1, 1, 2, 0]
    assert kind.tolist() == [-1, 1, 0, 1]
    assert match_boxes(quality, 0.3, 0.7)[1].tolist() == [-1, -1, 0, -1]
    assert match_boxes(quality, 0.5, 0.5)[1].tolist() == [0, 1, 0, 1]


def test_matches_of_ties_and_of_nothing():
    # Ties are all taken; an object that overlaps no box makes none an object.
    quality = torch.tensor([[0.2, 0.1, 0.2], [0.0, 0.0, 0.0]])
    assert match_boxes(quality, 0.3, 0.7, low_quality=True)[1].tolist() == [1, 0, 1]
    index, kind = match_boxes(torch.zeros(0, 3), 0.3, 0.7, low_quality=True)
    assert index.tolist() == kind.tolist() == [0, 0, 0]
    assert match_boxes(torch.zeros(2, 0), 0.3, 0.7, low_quality=True)[1].tolist() == []


@pytest.mark.parametrize(("positives", "wanted"), [(3, 3), (20, 4), (0, 0)])
def test_samples(positives, wanted):
    kind = torch.zeros(50, dtype=torch.int8)
    kind[10 : 10 + positives] = 1
    kind[45:] = -1
    torch.manual_seed(0)
    chosen, rest = sample_boxes(kind, 16, 0.25)
    assert len(chosen) == wanted
    assert len(rest) == 16 - wanted
    assert (kind[chosen] == 1).all()
    assert (kind[rest] == 0).all()
    for part in (chosen, rest):
        assert part.unique().tolist() == part.tolist()
    torch.manual_seed(0)
    assert set(chosen.tolist()) == set((10 + torch.randperm(positives)[:4]).tolist())


def test_codes():
    anchors = torch.tensor([[0.8, 1.1, 3.2, 2.8], [2.3, 2.5, 7, 8]])
    boxes = torch.tensor([[1.0, 1, 3, 3], [2, 2, 6, 6]])
    codes = encode_boxes(boxes, anchors, (10, 10, 5, 5))
    wanted = [[0, 0.294118, -0.911608, 0.812595], [-1.382979, -2.272727, -0.806341, -1.592269]]
    assert (codes - torch.tensor(wanted)).abs().max() < 2e-6
    assert (decode_boxes(codes, anchors, (10, 10, 5, 5)) - boxes).abs().max() < 2e-6
    grown = decode_boxes(torch.tensor([[0.0, 0, 99, 99]]), torch.tensor([[0.0, 0, 1, 1]]), (1,) * 4)
    assert (grown[:, 2:] - grown[:, :2] - 1000 / 16).abs().max() < 1e-4


def test_overlaps_and_clips():
    a = torch.tensor([[0.0, 0, 2, 2], [5, 5, 6, 6]])
    b = torch.tensor([[1.0, 1, 3, 3], [0, 0, 2, 2], [2, 0, 4, 2]])
    wanted = torch.tensor([[1 / 7, 1, 0], [0, 0, 0]])
    assert (box_iou(a, b) - wanted).abs().max() < 1e-7
    clipped = clip_boxes(torch.tensor([[-1.0, -2, 50, 60]]), (30, 40))
    assert clipped.tolist() == [[0, 0, 40, 30]]


def targets_of(images, generator):
    return [
        {
            "boxes": torch.rand(2, 4, generator=generator) * 50,
            "labels": torch.ones(2, dtype=torch.int64),
            "masks": torch.randint(2, (2, *image.shape[1:]), generator=generator).byte(),
        }
        for image in images
    ]


def test_images_and_targets_of_torchvision():
    transform = pytest.importorskip("torchvision.models.detection.transform")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    theirs = transform.GeneralizedRCNNTransform([60, 77, 90], 133, mean, std)
    ours = PrepareImages([60, 77, 90], 133)
    generator = torch.Generator().manual_seed(0)
    for seed in range(4):
        sizes = torch.randint(20, 200, (3, 2), generator=generator).tolist()
        images = [torch.rand(3, *size, generator=generator) for size in sizes]
        targets = targets_of(images, generator)
        torch.manual_seed(seed)
        wanted, wanted_targets = theirs(images, [dict(target) for target in targets])
        torch.manual_seed(seed)
        batch, found = ours(images, targets)
        assert batch.sizes == wanted.image_sizes
        assert batch.original == [tuple(size) for size in sizes]
        assert (batch.tensors - wanted.tensors).abs().max() < 1e-5
        for target, want in zip(found, wanted_targets, strict=True):
            assert torch.equal(target["boxes"], want["boxes"])
            assert torch.equal(target["masks"], want["masks"])


def test_evaluation_takes_the_last_size_and_pads_to_the_divisor():
    prepare = PrepareImages((32, 48), 64, (0, 0, 0), (1, 1, 1), 32).eval()
    batch, _ = prepare([torch.ones(3, 10, 20), torch.ones(3, 10, 10), torch.ones(3, 1, 100)])
    assert batch.sizes == [(32, 64), (48, 48), (1, 64)]
    assert batch.tensors.shape == (3, 3, 64, 64)
    for image, (height, width) in zip(batch.tensors, batch.sizes, strict=True):
        assert (image[:, :height, :width] - 1).abs().max() < 1e-6
        assert image.count_nonzero() == 3 * height * width


def test_semantic_maps_are_resized_as_masks():
    semantic = torch.arange(6).view(2, 3)
    target = {"boxes": torch.zeros(0, 4), "masks": torch.zeros(0, 2, 3).byte()}
    prepare = PrepareImages(4, 6)
    _, (found,) = prepare([torch.rand(3, 2, 3)], [{**target, "semantic": semantic}])
    assert torch.equal(found["semantic"], semantic.repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert found["masks"].shape == (0, 4, 6)


@pytest.mark.parametrize("options", [{"min_size": 0}, {"min_size": ()}, {"max_size": -1}])
def test_wrong_sizes(options):
    with pytest.raises(ValueError, match=f"net: {next(iter(options))} must be"):
        PrepareImages(**options, network="net")


def test_pyramid_adds_the_coarser_level():
    pyramid = FeaturePyramid([2, 2], 2, extra=None).double()
    maps = [torch.rand(1, 2, 3, 5).double(), torch.rand(1, 2, 2, 3).double()]
    inner = [block[0] for block in pyramid.inner_blocks]
    fine, coarse = (conv(level) for conv, level in zip(inner, maps, strict=True))
    rows, columns = [0, 0, 1], [0, 0, 1, 1, 2]
    merged = fine + coarse[:, :, rows][:, :, :, columns]
    found = pyramid(maps)
    assert len(found) == 2
    assert torch.allclose(found[0], pyramid.layer_blocks[0](merged))
    assert torch.allclose(found[1], pyramid.layer_blocks[1](coarse))
    bound = math.sqrt(3 / 2)
    weights = torch.cat([conv.weight.flatten() for conv in inner])
    assert 0.5 * bound < weights.abs().max() <= bound


def test_trunk_freezes_from_the_stem_on():
    net = resnet_fpn("net", "resnet18", channels=8, norm="frozen", trainable_layers=2, width=1 / 16)
    trained = {name.split(".")[0] for name, p in net.body.named_parameters() if p.requires_grad}
    assert trained == {"layer3", "layer4"}
    assert all(p.requires_grad for p in net.fpn.parameters())
    with pytest.raises(ValueError, match="net: trainable_layers must be one of 0, .*, got 6"):
        resnet_fpn("net", "resnet18", trainable_layers=6)


def test_masks_within_boxes():
    masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    masks[1, 2:6, 2:4] = 1
    boxes, match = torch.tensor([[2.0, 2, 6, 6], [0, 0, 8, 8]]), torch.tensor([1, 0])
    crops = crop_masks(masks, boxes, match, 4)
    # Pixel j is the point j here: the last row's sample lies between an inner and an outer row.
    assert crops[0, :3, 0].eq(1).all()
    assert not crops[0, :, 2:].any()
    assert not crops[1].any()
    assert crop_masks(masks[:0], boxes[:0], match[:0], 4).shape == (0, 4, 4)


def test_paste_of_torchvision():
    heads = pytest.importorskip("torchvision.models.detection.roi_heads")
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(20, 2, generator=generator) * torch.tensor([52.0, 36.0]) - 2
    boxes = torch.cat((corner, corner + torch.rand(20, 2, generator=generator) * 50), 1)
    boxes[0] = torch.tensor([3.0, 4, 3, 4])
    masks = torch.rand(20, 1, 28, 28, generator=generator)
    wanted = heads.paste_masks_in_image(masks, boxes, (40, 56))
    found = paste(masks[:, 0], boxes, (40, 56))
    assert found.shape == wanted.shape == (20, 1, 40, 56)
    assert (found - wanted).abs().max() < 1e-5
    assert paste(masks[:0, 0], boxes[:0], (4, 5)).shape == (0, 1, 4, 5)
