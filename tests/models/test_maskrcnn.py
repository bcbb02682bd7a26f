"""Mask R-CNN beside torchvision's: losses, gradients, detections, weights; sizes; bad input."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch

from segkern.models import create_model, get_entry, save_weights

detection = pytest.importorskip("torchvision.models.detection")
backbone_utils = pytest.importorskip("torchvision.models.detection.backbone_utils")

CLASSES = 5
SIZES = {"min_size": 64, "max_size": 96}
# Ours, and the same in torchvision's words.
FEW = {
    "proposals_before": (120, 80),
    "proposals_after": (100, 60),
    "anchor_samples": 64,
    "box_samples": 48,
    "detections": 12,
    "score_threshold": 0.1,
    **SIZES,
}
THEIR_FEW = {
    "rpn_pre_nms_top_n_train": 120,
    "rpn_pre_nms_top_n_test": 80,
    "rpn_post_nms_top_n_train": 100,
    "rpn_post_nms_top_n_test": 60,
    "rpn_batch_size_per_image": 64,
    "box_batch_size_per_image": 48,
    "box_detections_per_img": 12,
    "box_score_thresh": 0.1,
    **SIZES,
}
SMALL = {
    "num_classes": 4,
    "backbone": "resnet18",
    "width": 1 / 8,
    "min_size": 64,
    "max_size": 64,
    "channels": 16,
    "box_channels": 32,
    "mask_channels": 16,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "proposals_before": (100, 50),
    "proposals_after": (100, 50),
    "anchor_samples": 64,
    "box_samples": 32,
}


def scene(height, width, count, seed, classes=CLASSES):
    """An image of noise with rectangles, and its target."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, height, width, generator=generator) * 0.3
    size = torch.tensor([width, height])
    corner = (torch.rand(count, 2, generator=generator) * 0.6 * size).floor()
    boxes = torch.cat((corner, corner + (0.35 * size).floor()), 1)
    masks = torch.zeros(count, height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.long().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
        mask[top, left] = 0
        image[:, mask.bool()] += torch.rand(3, 1, generator=generator) * 0.7
    labels = torch.randint(1, classes, (count,), generator=generator)
    return image, {"boxes": boxes, "labels": labels, "masks": masks}


def batch():
    scenes = [scene(50, 71, 3, 0), scene(66, 40, 0, 1), scene(64, 64, 2, 2)]
    return [image for image, _ in scenes], [target for _, target in scenes]


def spread(model):
    """Weights of the last layers large enough for scores to differ, small enough to rank."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_score.weight", "mask_fcn_logits.weight", "cls_logits.weight")):
            scale = 0.05
        elif name.endswith("bbox_pred.weight"):
            scale = 0.02
        else:
            continue
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


@pytest.fixture(scope="module")
def networks():
    """torchvision's network on ResNet-18 with seeded weights, and ours with the same."""
    torch.manual_seed(0)
    trunk = backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=torch.nn.BatchNorm2d, trainable_layers=5
    )
    theirs = detection.MaskRCNN(trunk, num_classes=CLASSES, **THEIR_FEW)
    spread(theirs)
    ours = create_model("maskrcnn", num_classes=CLASSES, backbone="resnet18", **FEW)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def test_losses_and_gradients_are_torchvisions(networks, monkeypatch):
    """Losses as the network is used; gradients in double precision, where no rounding decides a
    maximum: in single, torchvision's own change by 3e-3 with the number of threads."""

    def losses_of(network, images):
        torch.manual_seed(3)
        return network(images, [dict(target) for target in targets])

    theirs, ours = (copy.deepcopy(network).train() for network in networks)
    images, targets = batch()
    wanted, losses = losses_of(theirs, images), losses_of(ours, images)
    assert losses.keys() == wanted.keys()
    for name, loss in losses.items():
        assert loss.shape == ()
        assert abs(loss - wanted[name]) < 2e-6 * max(1, wanted[name].item()), name

    monkeypatch.setattr("segkern.models.maskrcnn.check_images", lambda *_: None)
    images = [image.double() for image in images]
    targets = [{**target, "boxes": target["boxes"].double()} for target in targets]
    theirs, ours = (copy.deepcopy(network).train().double() for network in networks)
    sum(losses_of(theirs, images).values()).backward()
    sum(losses_of(ours, images).values()).backward()
    own = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        error = (own[name].grad - parameter.grad).norm() / parameter.grad.norm()
        assert error < 1e-5, name


def test_detections_are_torchvisions(networks):
    theirs, ours = (network.eval() for network in networks)
    images, _ = batch()
    with torch.no_grad():
        wanted, found = theirs(images), ours(images)
    assert len(found) == 3
    for image, own, want in zip(images, found, wanted, strict=True):
        assert len(own["boxes"]) > 5
        assert own["masks"].shape == (len(own["boxes"]), 1, *image.shape[1:])
        assert torch.equal(own["labels"], want["labels"])
        assert (own["boxes"] - want["boxes"]).abs().max() < 1e-3
        assert (own["scores"] - want["scores"]).abs().max() < 1e-5
        # Corners of a pasted box are cut to whole pixels.
        assert ((own["masks"] - want["masks"]).abs() > 1e-3).float().mean() < 1e-3


def test_an_image_alone_is_detected_as_in_a_batch(networks):
    ours = networks[1].eval()
    image, _ = scene(64, 64, 2, 2)
    with torch.no_grad():
        alone, *others = ours([image]) + ours([image, image])
    for other in others:
        assert torch.equal(alone["labels"], other["labels"])
        assert (alone["boxes"] - other["boxes"]).abs().max() < 1e-3


def older_names(state_dict):
    """Names of the published file."""
    renamed = {}
    for key, value in state_dict.items():
        for i in range(4):
            key = key.replace(f"mask_head.{i}.0.", f"mask_head.mask_fcn{i + 1}.")
        key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        if "_blocks." in key:
            key = key.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        renamed[key] = value
    return renamed


@pytest.mark.parametrize("published", [False, True])
def test_weights_of_torchvision(published, tmp_path):
    torch.manual_seed(1)
    trunk = backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, trainable_layers=3
    )
    theirs = detection.MaskRCNN(trunk, num_classes=CLASSES).eval()
    state_dict = theirs.state_dict()
    for key, value in state_dict.items():
        if key.endswith("running_var"):
            # So small that eps matters.
            value.copy_(torch.rand(value.shape) * 1e-3 + 1e-3)
    if published:
        state_dict = older_names(state_dict)
        for module in theirs.modules():
            if hasattr(module, "running_var"):
                module.eps = 0.0  # of the published file
    torch.save(state_dict, tmp_path / "weights.pth")
    ours = create_model("maskrcnn", weights=tmp_path / "weights.pth").eval()
    assert ours.config["num_classes"] == CLASSES
    assert ours.config["backbone"] == "resnet18"
    assert ours.config["norm"] == "frozen"
    names = {name for name, p in theirs.named_parameters() if p.requires_grad}
    assert {name for name, p in ours.named_parameters() if p.requires_grad} == names
    with torch.no_grad():
        image = torch.rand(1, 3, 32, 32)
        maps, wanted = ours.backbone(image), list(theirs.backbone(image).values())
    for own, want in zip(maps, wanted, strict=True):
        assert (own - want).abs().max() < 1e-4 * want.abs().max()


def test_own_weights_come_back(tmp_path):
    model = create_model("maskrcnn", **SMALL, norm="frozen")
    path = tmp_path / "own.safetensors"
    save_weights(path, model.state_dict(), {"config": json.dumps(model.config)})
    again = create_model("maskrcnn", weights=path)
    assert again.config == model.config
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


def test_second_version_is_torchvisions():
    with torch.device("meta"):
        ours = create_model("maskrcnn", version="v2")
        theirs = detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
    assert sum(p.numel() for p in ours.parameters()) == 46_359_409


def count(model):
    """Parameters without and with those of frozen norm, and those that are trained."""
    parameters = list(model.parameters())
    norms = sum(
        p.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for p in module.parameters()
    )
    total = sum(p.numel() for p in parameters)
    return total - norms, total, sum(p.numel() for p in parameters if p.requires_grad)


def test_parameters():
    with torch.device("meta"):
        batch_norm = create_model("maskrcnn")
        frozen = create_model("maskrcnn", norm="frozen", trainable_layers=3)
        coco80 = create_model("maskrcnn", num_classes=81)
    assert count(batch_norm) == (44_401_393, 44_454_513, 44_454_513)
    assert count(frozen) == (44_401_393, 44_454_513, 44_178_993)
    parts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in (
            ("body", batch_norm.backbone.body),
            ("fpn", batch_norm.backbone.fpn),
            ("rpn", batch_norm.rpn),
            ("box head", batch_norm.roi_heads.box_head),
        )
    }
    assert parts == {
        "body": 23_508_032,
        "fpn": 3_344_384,
        "rpn": 593_935,
        "box head": 12_846_080 + 1_049_600,
    }
    # detectron2 counts 44 343 216; the background's box and mask, which ours has, are never used.
    assert count(coco80)[0] == 44_343_216 + 4 * 1025 + 257


def test_state_dict_names_are_torchvisions():
    with torch.device("meta"):
        ours = create_model("maskrcnn")
        theirs = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}


def test_trunk_weights_freeze_the_trunk(tmp_path):
    from torchvision.models import resnet18

    torch.save(resnet18(weights=None).state_dict(), tmp_path / "trunk.pth")
    options = {key: value for key, value in SMALL.items() if key != "width"}
    model = create_model("maskrcnn", **options, weights_backbone=tmp_path / "trunk.pth")
    assert model.config["norm"] == "frozen"
    assert model.config["trainable_layers"] == 3
    assert model.recipe.input == "unit"
    body = model.train().backbone.body
    assert not body.bn1.training
    assert not body.layer1[0].conv1.weight.requires_grad
    assert body.layer2[0].conv1.weight.requires_grad
    assert not body.layer2[0].bn1.weight.requires_grad
    assert create_model(**model.config).backbone.body.conv1.weight.requires_grad is False


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"version": "v2"},
        {"aligned": True, "anchor_rounding": False, "beta": 0.0, "class_agnostic": True},
    ],
    ids=["v1", "v2", "detectron2"],
)
def test_thirty_steps_lower_the_loss(options):
    torch.manual_seed(0)
    model = create_model("maskrcnn", **SMALL, **options).train()
    scenes = [scene(64, 64, 3, seed, classes=4) for seed in (4, 5)]
    images, targets = zip(*scenes, strict=True)
    # Of three seeds, each form and one or two threads the ratio was 0.26 to 0.57.
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    totals = []
    for _ in range(30):
        losses = model(list(images), list(targets))
        total = sum(losses.values())
        optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        totals.append(total.item())
    assert sum(totals[-3:]) < 0.7 * sum(totals[:3])


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_images_without_objects(version):
    model = create_model("maskrcnn", **SMALL, version=version).train()
    image, target = scene(40, 50, 0, 0)
    losses = model([image, image], [target, target])
    assert losses["loss_mask"] == losses["loss_box_reg"] == losses["loss_rpn_box_reg"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_no_detections():
    model = create_model("maskrcnn", **SMALL, score_threshold=1.0).eval()
    (found,) = model([torch.rand(3, 30, 70)])
    assert found["boxes"].shape == (0, 4)
    assert found["labels"].shape == found["scores"].shape == (0,)
    assert found["masks"].shape == (0, 1, 30, 70)


def test_targets_are_left_as_they_are():
    model = create_model("maskrcnn", **SMALL).train()
    image, target = scene(40, 50, 2, 0, classes=4)
    before = {key: value.clone() for key, value in target.items()}
    kept = image.clone()
    model([image], [{**target, "masks": target["masks"].bool(), "area": None}])
    assert torch.equal(image, kept)
    assert all(torch.equal(target[key], before[key]) for key in before)


def changed(**fields):
    image, target = scene(40, 50, 2, 0, classes=4)
    return image, {**target, **fields}


BAD_TARGETS = [
    ({"boxes": torch.tensor([[0.0, 0, 5, 5], [3, 3, 3, 9]])}, "['boxes'] must be finite with x1"),
    (
        {"boxes": torch.tensor([[0.0, 0, 5, 5], [0, 0, float("nan"), 9]])},
        "['boxes'] must be finite",
    ),
    ({"boxes": torch.zeros(2, 5)}, "['boxes'] must be (2, 4), got (2, 5)"),
    ({"boxes": torch.zeros(2, 4).long()}, "['boxes'] must be float32 or float64"),
    ({"labels": torch.tensor([0, 1])}, "['labels'] must be from 1 to 3, got 0"),
    ({"labels": torch.tensor([1, 4])}, "['labels'] must be from 1 to 3, got 4"),
    ({"labels": torch.tensor([1.0, 2])}, "['labels'] must be int64, got torch.float32"),
    ({"labels": torch.tensor([1])}, "['boxes'] must be (1, 4), got (2, 4)"),
    ({"masks": torch.zeros(2, 41, 50).byte()}, "['masks'] must be (2, 40, 50), got (2, 41, 50)"),
    ({"masks": torch.zeros(2, 40, 50)}, "['masks'] must be uint8 or bool, got torch.float32"),
    ({"masks": [1]}, "['masks'] must be a tensor, got list"),
]


@pytest.fixture(scope="module")
def small():
    return create_model("maskrcnn", **SMALL).train()


@pytest.mark.parametrize(("fields", "message"), BAD_TARGETS)
def test_bad_targets(small, fields, message):
    image, target = changed(**fields)
    with pytest.raises((ValueError, TypeError)) as caught:
        small([torch.rand(3, 8, 9), image], [scene(8, 9, 0, 0)[1], target])
    assert f"maskrcnn: targets[1]{message}" in str(caught.value)


def test_targets_that_are_missing(small):
    image, target = changed()
    with pytest.raises(TypeError, match="maskrcnn: targets must be a list of dicts, one an image"):
        small([image])
    with pytest.raises(ValueError, match="maskrcnn: targets must be one an image, 2, got 1"):
        small([image, image], [target])
    wrong = {"bbox": target["boxes"], "labels": target["labels"]}
    with pytest.raises(ValueError, match=r"targets\[0\] must have the keys boxes, .*, got bbox, l"):
        small([image], [wrong])
    with pytest.raises(TypeError, match=r"targets\[0\] must be a dict, got list"):
        small([image], [[]])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 3, 8, 8), "images must be a list of (3, H, W) tensors, got Tensor"),
        ([], "images must hold at least one image"),
        ([torch.rand(1, 8, 8)], "images[0] must be (3, H, W) with at least one pixel, got (1, 8"),
        ([torch.rand(3, 8, 0)], "images[0] must be (3, H, W) with at least one pixel"),
        ([torch.zeros(3, 8, 8).byte()], "images[0] must be float32 in 0..1, got torch.uint8"),
        ([torch.rand(3, 8, 8), torch.full((3, 8, 8), float("nan"))], "images[1] must be finite"),
        (["image"], "images[0] must be a tensor, got str"),
    ],
)
def test_bad_images(small, images, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        copy.copy(small).eval()(images)
    assert f"maskrcnn: {message}" in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "resnet17"},
        {"version": "v3"},
        {"norm": "group"},
        {"num_classes": 1},
        {"in_channels": 4},
        {"anchor_sizes": (32, 64)},
        {"proposals_after": (0, 5)},
        {"box_samples": 0},
        {"min_size": 0},
        {"trainable_layers": 6},
        {"norm_eps": 0.0},
    ],
)
def test_bad_options(options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"maskrcnn: {name} must be"):
        create_model("maskrcnn", **options)


def test_entry():
    entry = get_entry("maskrcnn")
    assert entry.task == "instance"
    assert entry.num_classes == 91
    assert entry.parameters == 44_454_513
    recipe = entry.recipe
    assert recipe.loss == "network"
    assert [round(90_000 * mark) for mark in recipe.milestones] == [60_000, 80_000]
    assert dataclasses.replace(recipe, epochs=37, milestones=(21 / 27, 25 / 27)).lr == 0.02


def test_options_come_back_from_json():
    model = create_model("maskrcnn", **{**SMALL, "min_size": (48, 64)})
    again = create_model(**json.loads(json.dumps(model.config)))
    assert again.config == model.config
    assert again.transform.min_size == (48, 64)
