"""AUNet as a whole: parameters, forms of what comes back, losses, the panoptic map, bad input."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from segkern.models import create_model, get_entry
from segkern.models._instances.fusion import fuse_panoptic
from segkern.models._instances.images import PrepareImages
from segkern.models.aunet import AUNetConfig

SMALL = {
    "num_classes": 4,
    "num_stuff": 3,
    "backbone": "resnet18",
    "width": 0.25,
    "channels": 16,
    "box_channels": 32,
    "mask_channels": 16,
    "background_channels": 32,
    "reduction": 8,
    "min_size": 64,
    "max_size": 96,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "proposals_before": (100, 50),
    "proposals_after": (60, 30),
    "anchor_samples": 64,
    "box_samples": 32,
    "detections": 10,
    "stuff_area": 16,
}
LOSSES = {
    "loss_classifier",
    "loss_box_reg",
    "loss_mask",
    "loss_objectness",
    "loss_rpn_box_reg",
    "loss_background",
}


def small(**options):
    torch.manual_seed(0)
    return create_model("aunet", **{**SMALL, **options})


def scene(seed, size=(64, 72), objects=3):
    """An image of bright squares on two kinds of stuff, and its target."""
    g = torch.Generator().manual_seed(seed)
    height, width = size
    image = torch.rand(3, height, width, generator=g) * 0.1
    semantic = torch.ones(size, dtype=torch.int64)
    semantic[height // 2 :] = 2
    image[1, height // 2 :] += 0.5
    boxes, labels, masks = [], [], []
    for _ in range(objects):
        x, y = (int(torch.randint(0, n - 24, (1,), generator=g)) for n in (width, height))
        label = int(torch.randint(1, 4, (1,), generator=g))
        mask = torch.zeros(size, dtype=torch.uint8)
        mask[y : y + 20, x : x + 22] = 1
        image[label - 1][mask.bool()] = 1.0
        semantic[mask.bool()] = 0
        boxes.append([x, y, x + 22, y + 20])
        labels.append(label)
        masks.append(mask)
    semantic[:3] = 255
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": torch.stack(masks) if masks else torch.zeros((0, *size), dtype=torch.uint8),
        "semantic": semantic,
        "image_id": torch.tensor(seed),
    }
    return image, target


def scenes(count, **options):
    images, targets = zip(*(scene(seed, **options) for seed in range(count)))
    return list(images), list(targets)


@pytest.fixture(scope="module")
def large():
    """The registered network; its parameters stay unset."""
    with torch.device("meta"):
        return create_model("aunet")


def size_of(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters(large):
    """The released reading has no norm parameters in the trunk and no background among the classes
    of boxes and masks."""
    assert size_of(large) == get_entry("aunet").parameters == 46_068_792
    assert size_of(large.background) == 1_630_774
    assert [size_of(block) for block in large.pam] == [8_721] * 4
    assert size_of(large.mam) == 2_441
    branch = size_of(large.background) + size_of(large.pam) + size_of(large.mam)
    assert branch == 1_668_099
    norms = [m for m in large.backbone.body.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    unused = 4 * (1024 + 1) + (256 + 1)
    whole = size_of(large) - sum(map(size_of, norms)) - unused
    assert whole == 44_343_216 + 1_668_099 == 46_011_315
    with torch.device("meta"):
        baseline = create_model("aunet", pam=False, mam=False)
    assert size_of(large) - size_of(baseline) == 4 * 8_721 + 2_441
    assert not any(key.startswith(("pam", "mam")) for key in baseline.state_dict())


def test_the_foreground_has_the_names_of_mask_rcnn(large):
    with torch.device("meta"):
        other = create_model("maskrcnn", num_classes=81)
    own = {key: value.shape for key, value in large.state_dict().items()}
    assert {key: own.get(key) for key in other.state_dict()} == {
        key: value.shape for key, value in other.state_dict().items()
    }


def test_entry_and_config():
    entry = get_entry("aunet")
    assert entry.task == "panoptic" and entry.recipe.loss == "network"
    assert entry.num_classes == 81 and entry.config().num_stuff == 53
    model = small(precedence=[[1, 2]])
    config = json.loads(json.dumps(model.config))
    again = create_model(**config)
    assert again.config == model.config
    assert AUNetConfig(precedence=[[1, 2]]).precedence == ((1, 2),)
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize("pam", [True, False])
@pytest.mark.parametrize("mam", [True, False])
def test_losses_and_their_gradients(pam, mam):
    model = small(pam=pam, mam=mam)
    images, targets = scenes(2)
    losses = model(images, targets)
    assert set(losses) == LOSSES
    assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


def test_the_background_alone_teaches_the_foreground_through_the_attention():
    """Gradients of its loss reach the heads that attention comes from, and no others."""
    images, targets = scenes(2)
    for pam, mam in ((True, False), (False, True), (False, False)):
        model = small(pam=pam, mam=mam)
        model(images, targets)["loss_background"].backward()
        touched = {name for name, p in model.named_parameters() if p.grad is not None}

        def reached(start, touched=touched):
            return any(name.startswith(start) for name in touched)

        assert reached("backbone.fpn") and reached("background")
        assert reached("rpn.head.conv") is pam
        assert reached("roi_heads.mask_head") is mam
        assert not reached("roi_heads.box") and not reached("rpn.head.bbox_pred")
        assert not reached("roi_heads.mask_predictor") and not reached("rpn.head.cls_logits")


def test_weights_of_the_losses():
    images, targets = scenes(2)
    options = ("proposal_weight", "box_weight", "mask_weight", "background_weight")
    plain = small(**dict.fromkeys(options, 1.0))
    weighted = small(proposal_weight=2.0, box_weight=3.0, mask_weight=5.0, background_weight=7.0)
    torch.manual_seed(3)
    ones = plain(images, targets)
    torch.manual_seed(3)
    others = weighted(images, targets)
    factors = {name: (others[name] / ones[name]).item() for name in LOSSES}
    assert factors == pytest.approx(
        {
            "loss_objectness": 2,
            "loss_rpn_box_reg": 2,
            "loss_classifier": 3,
            "loss_box_reg": 3,
            "loss_mask": 5,
            "loss_background": 7,
        }
    )
    assert AUNetConfig().background_weight == 0.3


def test_the_foreground_is_mask_rcnn():
    """Without attention from it and with one seed, the five losses are those of Mask R-CNN."""
    shared = {key: value for key, value in SMALL.items() if key not in ("num_stuff", "stuff_area")}
    for key in ("background_channels", "reduction"):
        shared.pop(key)
    model = small()
    other = create_model("maskrcnn", **shared)
    state = model.state_dict()
    other.load_state_dict({key: state[key] for key in other.state_dict()})
    images, targets = scenes(2)
    torch.manual_seed(5)
    losses = model(images, targets)
    torch.manual_seed(5)
    wanted = other(images, targets)
    assert set(losses) == set(wanted) | {"loss_background"}
    for name, loss in wanted.items():
        torch.testing.assert_close(losses[name], loss)
    with torch.no_grad():
        found, expected = model.eval()(images), other.eval()(images)
    for one, two in zip(found, expected):
        assert all(torch.equal(one[key], two[key]) for key in two)


@pytest.mark.parametrize("case", ["no things", "no stuff", "no labels", "all"])
def test_parts_of_a_target_may_be_missing(case):
    """No things at all, no pixel of stuff, no labelled pixel: finite losses, gradients, 0."""
    model = small()
    images, targets = scenes(2, objects=3 if case in ("no stuff", "no labels") else 0)
    for target in targets:
        if case == "no stuff":
            target["semantic"] = torch.zeros_like(target["semantic"])
        elif case in ("no labels", "all"):
            target["semantic"] = torch.full_like(target["semantic"], 255)
    losses = model(images, targets)
    assert all(loss.isfinite() for loss in losses.values())
    if case in ("no labels", "all"):
        assert losses["loss_background"] == 0
    if case in ("no things", "all"):
        assert losses["loss_mask"] == 0 and losses["loss_box_reg"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.fixture(scope="module")
def trained():
    """A network after 30 steps on four scenes, the losses of the first and last steps."""
    model = small()
    images, targets = scenes(4)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    history = []
    for _ in range(30):
        losses = model(images, targets)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    return model, history


def test_30_steps_lower_the_losses(trained):
    _, history = trained
    first, last = sum(history[0].values()), sum(sum(h.values()) for h in history[-3:]) / 3
    assert last < 0.6 * first
    for name in ("loss_background", "loss_mask", "loss_classifier", "loss_objectness"):
        assert sum(h[name] for h in history[-3:]) / 3 < 0.8 * history[0][name], name


def test_evaluation(trained):
    """Forms and sizes at sizes of several, and the panoptic map as fused from what is returned."""
    model = copy.deepcopy(trained[0]).eval()
    images = [scene(0)[0], scene(9, size=(80, 60))[0], torch.zeros(3, 30, 30)]
    with torch.no_grad():
        results = model(images)
        again = model(images)
    assert len(results) == 3 and results[0]["scores"].max() > 0.05
    for image, result, other in zip(images, results, again):
        assert list(result) == ["boxes", "labels", "scores", "masks", "panoptic", "segments"]
        size, count = tuple(image.shape[1:]), len(result["scores"])
        assert result["masks"].shape == (count, 1, *size)
        assert result["panoptic"].shape == size and result["panoptic"].dtype == torch.int64
        ids = {segment["id"] for segment in result["segments"]}
        assert set(result["panoptic"].unique().tolist()) - {0} == ids
        for segment in result["segments"]:
            assert set(segment) == {"id", "label", "isthing", "score", "area"}
            assert (result["panoptic"] == segment["id"]).sum() == segment["area"]
            assert 1 <= segment["label"] <= 3
            assert (segment["score"] is None) is not segment["isthing"]
        json.dumps(result["segments"])
        assert torch.equal(result["panoptic"], other["panoptic"])
    assert any(not s["isthing"] for result in results for s in result["segments"])


def test_options_of_the_fusion_reach_it(trained):
    """With a threshold of 0 every detection may have a segment; it is fuse_panoptic's map."""
    source = trained[0]
    model = small(panoptic_score=0.0, stuff_area=1, panoptic_overlap=1.0)
    model.load_state_dict(source.state_dict())
    image = scene(1)[0]
    with torch.no_grad():
        (result,) = model.eval()([image])
        (other,) = copy.deepcopy(source).eval()([image])
    assert sum(s["isthing"] for s in result["segments"]) > sum(
        s["isthing"] for s in other["segments"]
    )
    stuff = torch.zeros_like(result["panoptic"])
    for segment in result["segments"]:
        if not segment["isthing"]:
            stuff[result["panoptic"] == segment["id"]] = segment["label"]
    ids, segments = fuse_panoptic(
        result["masks"][:, 0],
        result["labels"],
        result["scores"],
        stuff,
        num_stuff=3,
        score_threshold=0.0,
        overlap=1.0,
        stuff_area=1,
    )
    assert torch.equal(ids, result["panoptic"]) and segments == result["segments"]


def test_half_precision_is_near(trained):
    """Under autocast: finite losses near those in float32, and a panoptic map."""
    model = copy.deepcopy(trained[0])
    images, targets = scenes(2)
    found = []
    for is_half in (False, True):
        torch.manual_seed(7)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            found.append(model(images, targets))
    for name in ("loss_background", "loss_objectness", "loss_classifier"):
        assert found[1][name].item() == pytest.approx(found[0][name].item(), rel=0.1, abs=0.02)
    sum(found[1].values()).backward()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model.eval()(images)[0]["panoptic"].any()


def test_semantic_maps_are_resized_with_the_masks():
    """Nearest neighbour, the rule of masks: things stay 0 exactly where masks are."""
    image, target = scene(2)
    _, (resized,) = PrepareImages(96, 200)([image], [target])
    things = resized["masks"].any(0)
    assert resized["semantic"].shape == things.shape == (96, 108)
    assert torch.equal(resized["semantic"] == 0, things & (resized["semantic"] != 255))


def without(target, key):
    return {name: value for name, value in target.items() if name != key}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: without(t, "semantic"), ValueError, r"targets\[0\] must have the keys"),
        (
            lambda t: {**t, "semantic": t["semantic"].float()},
            TypeError,
            r"\['semantic'\] must be int64",
        ),
        (
            lambda t: {**t, "semantic": t["semantic"][:5]},
            ValueError,
            r"\['semantic'\] must be \(64, 72\)",
        ),
        (
            lambda t: {**t, "semantic": t["semantic"] + 2},
            ValueError,
            r"\['semantic'\] must be from 0 to 3, or 255, got 257",
        ),
        (
            lambda t: {**t, "labels": t["labels"] + 3},
            ValueError,
            r"\['labels'\] must be from 1 to 3",
        ),
    ],
)
def test_wrong_targets(change, error, message):
    image, target = scene(0)
    with pytest.raises(error, match=f"aunet: .*{message}"):
        small()([image], [change(target)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet7"}, "aunet: backbone must be one of"),
        ({"num_stuff": 0}, "aunet: num_stuff must be a positive int"),
        ({"stuff_area": 0}, "aunet: stuff_area must be a positive int"),
        ({"roi_mode": "max"}, "aunet: roi_mode must be one of"),
        ({"roi_reduction": "min"}, "aunet: roi_reduction must be one of"),
        ({"background_weight": -1.0}, "aunet: background_weight must be at least 0"),
        ({"precedence": [[1, 1]]}, "aunet: precedence must be pairs of different labels"),
        ({"precedence": [[1, 9]]}, "aunet: precedence must be pairs of different labels"),
        ({"background_channels": 40}, "channels must be a multiple of 32"),
        ({"num_classes": 1}, "aunet: num_classes must be at least 2"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_wrong_images():
    model = small().eval()
    with pytest.raises(TypeError, match="aunet: images must be a list"):
        model(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"aunet: images\[0\] must be finite"):
        model([torch.full((3, 8, 8), float("nan"))])
