"""The networks of the SOLO family: sizes, losses and instances against the definition, training."""

from __future__ import annotations

import json

import pytest
import solo_reference as reference
import torch

from segkern.models import WeightsError, create_model, get_entry, save_weights
from segkern.models._instances.solo_inference import points_nms

NAMES = ("solo", "decoupled_solo", "decoupled_solo_light", "solov2", "solov2_light")

TINY = {
    "num_classes": 4,
    "backbone": "resnet18",
    "width": 1 / 8,
    "channels": 32,
    "head_channels": 32,
    "depth": 2,
    "levels": (0, 2, 3),
    "grids": (7, 4, 3),
    "scale_ranges": ((1, 24), (12, 48), (30, 500)),
    "min_size": 60,
    "max_size": 90,
}


def build(name, **options):
    torch.manual_seed(0)
    extra = {"mask_channels": 32, "feature_channels": 32} if "v2" in name else {}
    return create_model(name, **{**TINY, **extra, **options})


def batch(seed=0, sizes=((50, 75), (64, 48)), counts=(4, 3)):
    """Images of coloured rectangles and the rectangles, the later ones in front."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for (height, width), count in zip(sizes, counts):
        image = 0.1 * torch.rand(3, height, width, generator=generator)
        ids = torch.zeros(height, width, dtype=torch.int64)
        labels = torch.randint(1, 4, (count,), generator=generator)
        for n in range(count):
            y, x = (int(torch.rand((), generator=generator) * s * 0.7) for s in (height, width))
            h, w = torch.randint(10, 36, (2,), generator=generator).tolist()
            ids[y : y + h, x : x + w] = n + 1
            image[:, y : y + h, x : x + w] = 0.3
            image[labels[n] - 1, y : y + h, x : x + w] = 0.9
        masks = torch.stack([ids == n + 1 for n in range(count)]) if count else ids[None][:0]
        boxes = [
            (*mask.nonzero().amin(0).flip(0), *(mask.nonzero().amax(0).flip(0) + 1))
            if mask.any()
            else (0, 0, 1, 1)
            for mask in masks
        ]
        images.append(image)
        targets.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                "labels": labels,
                "masks": masks.to(torch.uint8),
            }
        )
    return images, targets


def excite(model, bias=-1.0):
    """Weights under which scores and masks vary: as after training, not as at its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.head.named_parameters():
            if key.startswith(("masks", "x_masks", "y_masks", "kernels", "category.")):
                scale = 0.3 if parameter.dim() == 4 else 0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        model.head.category.bias.fill_(bias)
    return model


@pytest.mark.parametrize(
    ("name", "options", "head", "total"),
    [
        ("solo", {}, 9_448_816, 36_301_232),
        ("decoupled_solo", {}, 13_176_144, 40_028_560),
        ("decoupled_solo_light", {}, 5_501_776, 32_354_192),
        ("solov2", {}, 18_081_104, 46_592_912),
        ("solov2_light", {}, 2_845_392, 31_340_560),
        ("solov2_light", {"backbone": "resnet18"}, 2_845_392, None),
    ],
)
def test_parameters(name, options, head, total):
    with torch.device("meta"):
        model = create_model(name, **options)
    count = {key: sum(p.numel() for p in part.parameters()) for key, part in model.named_children()}
    assert count["head"] == head
    if "v2" in name:
        assert count["mask_features"] == {"solov2": 1_659_392, "solov2_light": 1_642_752}[name]
    if total is not None:
        assert sum(count.values()) == get_entry(name).parameters == total


@pytest.mark.parametrize("name", NAMES)
def test_initial_weights(name):
    head = build(name, head_channels=64).head
    assert head.category.bias.tolist() == pytest.approx([-4.59512] * 3)
    for key, parameter in head.named_parameters():
        if parameter.dim() == 4:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.15), key
        if key.startswith(("masks", "x_masks", "y_masks")) and key.endswith("bias"):
            assert parameter.tolist() == pytest.approx([-4.59512] * len(parameter))
        if key == "kernels.bias":
            assert (parameter == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_losses(name):
    model = excite(build(name, norm="frozen"))
    images, targets = batch()
    got = model(images, targets)
    category, mask, pairs = reference.losses(model, images, targets)
    assert pairs > 8
    assert set(got) == {"loss_category", "loss_mask"}
    assert got["loss_category"].item() == pytest.approx(category, rel=1e-4)
    assert got["loss_mask"].item() == pytest.approx(mask, rel=1e-4)


def test_losses_with_kernels_of_3x3():
    model = excite(build("solov2", norm="frozen", kernel_size=3))
    images, targets = batch(1)
    got = model(images, targets)
    category, mask, _ = reference.losses(model, images, targets)
    assert got["loss_category"].item() == pytest.approx(category, rel=1e-4)
    assert got["loss_mask"].item() == pytest.approx(mask, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_instances(name):
    model = excite(build(name)).eval()
    images, _ = batch(2)
    with torch.no_grad():
        results = model(images)
    wanted = reference.detect(model, images)
    for image, result, expected in zip(images, results, wanted):
        assert list(result) == ["boxes", "labels", "scores", "masks"]
        size = tuple(image.shape[1:])
        assert result["masks"].dtype == torch.bool and result["masks"].shape[1:] == size
        expected = [each for each in expected if each[2].any()]
        assert len(result["scores"]) == len(expected) > 3
        assert (result["scores"].diff() <= 0).all()
        assert result["scores"].tolist() == pytest.approx([e[1] for e in expected], abs=2e-4)
        for n, (label, score, mask) in enumerate(expected):
            same = (result["scores"] - score).abs() < 2e-4
            differing = (result["masks"][same] != mask).sum((1, 2))
            assert (differing <= 0.002 * mask.numel()).any(), n
            assert label in result["labels"][same]
        for box, mask in zip(result["boxes"], result["masks"]):
            y, x = mask.nonzero(as_tuple=True)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_points_nms():
    scores = torch.tensor([[[1.0, 2, 3], [4, 9, 8], [7, 6, 5]]])
    assert points_nms(scores)[0].tolist() == [[1, 2, 3], [4, 9, 0], [7, 0, 0]]
    torch.manual_seed(0)
    scores = torch.rand(2, 3, 6, 6)
    got = points_nms(scores)
    for row in range(6):
        for column in range(6):
            near = scores[..., max(row - 1, 0) : row + 1, max(column - 1, 0) : column + 1]
            own = scores[..., row, column]
            wanted = torch.where(own == near.amax((-1, -2)), own, 0)
            assert torch.equal(got[..., row, column], wanted)


@pytest.mark.parametrize("name", NAMES)
def test_images_do_not_depend_on_their_company(name):
    model = excite(build(name)).eval()
    images, _ = batch(3, sizes=((64, 64), (64, 64)))
    with torch.no_grad():
        together, alone = model(images), model(images[1:])
    for key in ("labels", "masks"):
        assert torch.equal(together[1][key], alone[0][key])
    torch.testing.assert_close(together[1]["scores"], alone[0]["scores"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_loss(name):
    model = excite(build(name), bias=-2.0)
    images, targets = batch(0, counts=(3, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    history = []
    for _ in range(30):
        losses = model(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 35.0)
        optimizer.step()
        history.append([value.item() for value in losses.values()])
    first, last = torch.tensor(history[:3]).mean(0), torch.tensor(history[-3:]).mean(0)
    assert (last < torch.tensor([0.3, 0.8]) * first).all(), history[::5]


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_trained(name):
    model = excite(build(name))
    sum(model(*batch()).values()).backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
            if parameter.dim() > 1:
                assert parameter.grad.abs().max() > 0, key
    frozen = [key for key, p in model.named_parameters() if not p.requires_grad]
    own = [] if "v2" in name else ["backbone.fpn.layer_blocks.1.0."]
    assert frozen == [key + part for key in own for part in ("weight", "bias")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_batch_without_instances(name, kernel_size):
    if kernel_size == 3 and "v2" not in name:
        pytest.skip("no kernels")
    model = build(name, **({"kernel_size": 3} if kernel_size == 3 else {}))
    images, targets = batch(counts=(0, 0))
    losses = model(images, targets)
    assert losses["loss_mask"].item() == 0 and losses["loss_category"].item() > 0
    parameters = [p for p in model.head.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(
        losses["loss_mask"], parameters, retain_graph=True, allow_unused=True
    )
    assert any(slope is not None for slope in slopes)
    assert all((slope == 0).all() for slope in slopes if slope is not None)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)
    # Beside an image with instances it changes the category loss alone.
    mixed = model(*batch(counts=(3, 0)))
    assert mixed["loss_mask"].item() > 0


@pytest.mark.parametrize("name", NAMES)
def test_nothing_found(name):
    model = build(name).eval()
    with torch.no_grad():
        results = model(batch()[0])
    for image, result in zip(batch()[0], results):
        assert result["boxes"].shape == (0, 4) and result["boxes"].dtype == torch.float32
        assert result["labels"].shape == (0,) and result["labels"].dtype == torch.int64
        assert result["scores"].shape == (0,) and result["scores"].dtype == torch.float32
        assert result["masks"].shape == (0, *image.shape[1:])
        assert result["masks"].dtype == torch.bool


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (1, 200), (300, 2)])
def test_sizes_of_images(name, size):
    model = excite(build(name))
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    target = {
        "boxes": torch.tensor([[0.0, 0.0, size[1], size[0]]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, *size, dtype=torch.uint8),
    }
    # Alone, batch norm would have one pixel of the coarsest map.
    other, its = batch(counts=(2, 2))
    losses = model([image, *other], [target, *its])
    assert all(value.isfinite() for value in losses.values())
    model.eval()
    with torch.no_grad():
        (result,) = model([image])
    assert result["masks"].shape[1:] == size
    assert result["scores"].isfinite().all()


@pytest.mark.parametrize("name", ["solo", "decoupled_solo_light", "solov2"])
def test_autocast(name):
    model = excite(build(name))
    images, targets = batch()
    exact = model(images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(images, targets)
        sum(losses.values()).backward()
    for key, value in losses.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact[key].item(), rel=0.1)
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for result in model(images):
            assert result["scores"].dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load(name, tmp_path):
    model = excite(build(name)).eval()
    config = json.loads(json.dumps(model.config))
    assert create_model(**config).config == model.config
    path = tmp_path / "weights.safetensors"
    save_weights(path, model.state_dict(), {"card": json.dumps({"config": config})})
    loaded = create_model(name, weights=path).eval()
    images, _ = batch()
    with torch.no_grad():
        for one, other in zip(model(images), loaded(images)):
            assert all(torch.equal(one[key], other[key]) for key in one)
    # Without a card the head tells the number of classes, the background not among its values.
    save_weights(path, model.state_dict(), {})
    options = {key: value for key, value in config.items() if key not in ("name", "num_classes")}
    assert create_model(name, weights=path, **options).num_classes == 4


def release_names(name, depth, levels=5):
    """Layers of the authors' networks and ours; towers are of convolution and norm."""
    pairs = [("backbone", "backbone.body", None)]
    for n in range(4):
        for theirs, ours in (("lateral_convs", "inner_blocks"), ("fpn_convs", "layer_blocks")):
            pairs.append((f"neck.{theirs}.{n}.conv", f"backbone.fpn.{ours}.{n}.0", None))
    towers = {
        "solo": {"ins_convs": "mask_tower"},
        "decoupled_solo": {"ins_convs_x": "x_tower", "ins_convs_y": "y_tower"},
        "decoupled_solo_light": {"ins_convs": "mask_tower"},
    }.get(name, {"kernel_convs": "kernel_tower"})
    for theirs, ours in {**towers, "cate_convs": "category_tower"}.items():
        pairs += [(f"bbox_head.{theirs}.{n}", f"head.{ours}.{n}", None) for n in range(depth)]
    if "v2" in name:
        pairs += [("bbox_head.solo_kernel", "head.kernels", None)]
        pairs += [("bbox_head.solo_cate", "head.category", None)]
        pairs += [("mask_feat_head.conv_pred.0", "mask_features.fuse", None)]
        for n in range(4):
            for j in range(max(n, 1)):
                theirs = f"mask_feat_head.convs_all_levels.{n}.conv{j}"
                pairs.append((theirs, f"mask_features.levels.{n}.{j}", None))
    elif name == "solo":
        pairs += [("bbox_head.solo_cate", "head.category", None)]
        pairs += [(f"bbox_head.solo_ins_list.{n}", f"head.masks.{n}", None) for n in range(levels)]
    else:
        pairs += [("bbox_head.dsolo_cate", "head.category", None)]
        for n in range(levels):
            for axis in "xy":
                theirs = f"bbox_head.dsolo_ins_list_{axis}.{n}"
                pairs.append((theirs, f"head.{axis}_masks.{n}", None))
    return [(theirs, ours) for theirs, ours, _ in pairs]


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_the_release(name, tmp_path):
    """A file under the authors' names, batch counters left out, gives network and weights."""
    options = {
        "backbone": "resnet18",
        "channels": 32,
        "head_channels": 64,
        "depth": 3,
        "num_classes": 6,
        **({"grids": (6, 5, 4, 3, 2)} if "v2" not in name else {}),
        **({"mask_channels": 32, "feature_channels": 96, "kernel_size": 3} if "v2" in name else {}),
    }
    torch.manual_seed(3)
    model = create_model(name, **options)
    ours = model.state_dict()
    theirs = {}
    for prefix, own in release_names(name, 3):
        found = {key: value for key, value in ours.items() if key.startswith(f"{own}.")}
        assert found, own
        for key, value in found.items():
            if not key.endswith("num_batches_tracked"):
                theirs[prefix + key.removeprefix(own)] = value
    assert len(theirs) == sum(not key.endswith("num_batches_tracked") for key in ours)
    path = tmp_path / "release.pth"
    torch.save({"meta": {"epoch": 36}, "state_dict": theirs, "optimizer": {}}, path)
    loaded = create_model(name, weights=path)
    assert {key: loaded.config[key] for key in options} == options
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, ours[key]), key
    del theirs["bbox_head.cate_convs.1.gn.weight"]
    torch.save(theirs, path)
    with pytest.raises(WeightsError, match=r"head.category_tower.1.gn.weight"):
        create_model(name, weights=path)


def test_imagenet_weights_freeze_the_trunk(tmp_path):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    path = tmp_path / "resnet18.pth"
    torch.save(resnet18().state_dict(), path)
    options = {**TINY, "width": 1.0}
    model = create_model("solo", weights_backbone=path, **options)
    assert model.recipe.input == "unit"
    assert (model.config["norm"], model.config["trainable_layers"]) == ("frozen", 3)
    body = dict(model.backbone.body.named_parameters())
    assert not body["layer1.0.conv1.weight"].requires_grad
    assert body["layer2.0.conv1.weight"].requires_grad
    assert not body["layer2.0.bn1.weight"].requires_grad
    free = create_model("solo", weights_backbone=path, **options, norm="batch", trainable_layers=5)
    assert all(p.requires_grad for p in free.backbone.body.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_recipes(name):
    entry = get_entry(name)
    recipe = entry.recipe
    assert entry.task == "instance" and entry.paper and entry.reported and recipe.source
    assert (recipe.lr, recipe.momentum, recipe.weight_decay) == (0.01, 0.9, 1e-4)
    assert (recipe.batch_size, recipe.clip_norm, recipe.warmup_steps) == (16, 35.0, 500)
    assert recipe.loss == "network" and recipe.input == "unit" and recipe.flip
    steps = [m * recipe.epochs for m in recipe.milestones]
    assert steps == pytest.approx({12: [9, 11], 36: [27, 33]}[recipe.epochs])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"in_channels": 1}, "in_channels must be one of 3, got 1"),
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"backbone": "vgg16"}, "backbone must be one of"),
        ({"norm": "group"}, "norm must be one of"),
        ({"trainable_layers": 6}, "trainable_layers must be one of"),
        ({"head_channels": 48}, "head_channels must be a positive multiple of 32, got 48"),
        ({"mask_channels": 0}, "mask_channels must be a positive multiple of 32, got 0"),
        ({"kernel_size": 2}, "kernel_size must be one of 1, 3, got 2"),
        ({"depth": 0}, "depth must be a positive int"),
        ({"detections": 0}, "detections must be a positive int"),
        ({"score_threshold": 1.0}, r"score_threshold must be in \[0, 1\)"),
        ({"grids": (3, 3)}, "grids must have 3 entries"),
        ({"min_size": ()}, "min_size must be positive ints"),
    ],
)
def test_option_errors(options, match):
    with pytest.raises(ValueError, match=f"solov2: {match}"):
        build("solov2", **options)


def test_call_errors():
    model = build("solo")
    images, targets = batch()
    with pytest.raises(TypeError, match="solo: targets must be a list of dicts"):
        model(images)
    with pytest.raises(TypeError, match="solo: images must be a list"):
        model(torch.zeros(2, 3, 32, 32), targets)
    targets[1]["labels"] = targets[1]["labels"] + 3
    with pytest.raises(ValueError, match=r"solo: targets\[1\]\['labels'\] must be from 1 to 3"):
        model(images, targets)
