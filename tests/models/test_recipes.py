"""Every number of every recipe, as the papers and the released code have it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from segkern.models import Recipe, create_model, get_entry, list_models
from segkern.models._preprocess import mean_pixel
from segkern.transforms import build_train_transform

PLAIN = Recipe(lr=1.0, batch_size=1, epochs=1)

CAFFE = {"bias_lr_mult": 2.0, "bias_decay_mult": 0.0}
POLY = {"schedule": "poly", "power": 0.9}
HEAVY = {**CAFFE, "momentum": 0.99, "weight_decay": 5e-4, "batch_size": 1, "epochs": 12,
         "input": "caffe", "loss_reduction": "batch"}  # fmt: skip
ACCUMULATED = {"batch_size": 20, "micro_batch": 1, "weight_decay": 5e-4, "input": "caffe"}
DEEPLAB = {**CAFFE, "weight_decay": 5e-4, "input": "caffe", "head_lr_mult": 10.0, "flip": True,
           "label_grid": "corners", "crop": (321, 321), "crop_pad": "end"}  # fmt: skip
ATROUS = {**POLY, "lr": 7e-3, "batch_size": 16, "epochs": 46, "scale": (0.5, 2.0),
          "scale_step": 0.25, "crop": (513, 513), "crop_pad": "end", "flip": True}  # fmt: skip
SCALES = {name: 1.0 for name in ("logits", "scale_100", "scale_75", "scale_50")}
ESP = {"optimizer": "adam", "lr": 5e-4, "weight_decay": 5e-4, "schedule": "step", "gamma": 0.5,
       "step_epochs": 500, "epochs": 1500, "input": "espnet", "class_weights": "espnet",
       "loss_reduction": "weights", "resize": (512, 1024), "vertical_flip": True}  # fmt: skip
TIRAMISU = {"optimizer": "rmsprop", "lr": 1e-3, "smoothing": 0.9, "square_eps": 1e-6,
            "weight_decay": 2e-4, "schedule": "step", "step_epochs": 1, "gamma": 0.995,
            "batch_size": 3, "epochs": 750, "patience": 150, "bias_decay_mult": 0.0,
            "norm_shift_decay": False, "crop": (224, 224), "flip": True}  # fmt: skip
ENET = {"optimizer": "adam", "lr": 5e-4, "weight_decay": 2e-4, "schedule": "step",
        "step_epochs": 100, "batch_size": 10, "epochs": 300, "class_weights": "enet",
        "loss_reduction": "weights", "resize": (360, 480)}  # fmt: skip
SEGNET = {**CAFFE, "weight_decay": 5e-4, "input": "bgr", "class_weights": "segnet",
          "resize": (360, 480)}  # fmt: skip
DILATED = {**CAFFE, "weight_decay": 5e-4, "schedule": "step", "step_size": 100_000, "flip": True,
           "outputs": {"logits": 1.0}, "label_grid": "stride"}  # fmt: skip
# Crops of 628x628 with 186 pixels lost at each side.
FRONT = {**DILATED, "lr": 1e-3, "batch_size": 14, "epochs": 80, "input": "bgr_voc",
         "crop": (256, 256), "crop_margin": 186}  # fmt: skip

# Fields that differ from the defaults, `lr`, `batch_size` and `epochs` having none.
EXPECTED = {
    "fcn32s": {**HEAVY, "lr": 1e-10},
    "fcn16s": {**HEAVY, "lr": 1e-12},
    "fcn8s": {**HEAVY, "lr": 1e-14},
    "fcn8s at_once=True": {**HEAVY, "lr": 1e-10, "epochs": 36},
    "fcn32s backbone=alexnet": {**ACCUMULATED, "lr": 1e-4, "epochs": 236},
    "fcn32s backbone=googlenet": {**ACCUMULATED, **CAFFE, "lr": 5e-5, "epochs": 175},
    "crfasrnn": {**HEAVY, "lr": 1e-13, "crf_weights_lr_mult": 1e4,
                 "crf_compatibility_lr_mult": 1e3},
    "segnet": {**SEGNET, "lr": 1e-3, "batch_size": 5, "epochs": 100, "norm_shift_decay": False},
    "segnet_basic": {**SEGNET, "lr": 0.1, "batch_size": 12, "epochs": 109},
    "deconvnet": {**CAFFE, "lr": 0.01, "weight_decay": 5e-4, "schedule": "step",
                  "step_size": 10_000, "batch_size": 64, "micro_batch": 8, "epochs": 1,
                  "input": "caffe", "resize": (250, 250), "crop": (224, 224), "flip": True},
    "unet": {"lr": 1e-4, "momentum": 0.99, "batch_size": 1, "epochs": 100, "loss": "border",
             "loss_options": {"w0": 10.0, "sigma": 5.0}, "label_grid": "centre", "elastic": 10.0},
    **{f"fc_densenet{size}": TIRAMISU for size in (56, 67, 103)},
    "enet": ENET,
    "enet_encoder": ENET,
    "linknet": {"optimizer": "rmsprop", "lr": 5e-4, "schedule": "step", "step_epochs": 100,
                "batch_size": 8, "epochs": 300, "class_weights": "enet",
                "loss_reduction": "weights", "resize": (512, 1024)},
    "dilation_frontend": FRONT,
    "dilation8": FRONT,
    "dilation10": {**DILATED, "lr": 1e-5, "momentum": 0.99, "batch_size": 1, "epochs": 20,
                   "input": "bgr_cityscapes", "crop": (1024, 1024)},
    "deeplabv1": {**DEEPLAB, "lr": 1e-3, "schedule": "step", "step_size": 2000, "batch_size": 30,
                  "epochs": 17, "outputs": {"logits": 1.0}},
    "deeplabv1 variant=4x4_rate4": {**DEEPLAB, "lr": 1e-3, "schedule": "step", "step_size": 2000,
                                    "batch_size": 20, "epochs": 12, "crop": (306, 306),
                                    "outputs": {"logits": 1.0}},
    "deeplabv2": {**DEEPLAB, **POLY, "lr": 2.5e-4, "batch_size": 10, "micro_batch": 1,
                  "epochs": 19, "scale": (0.5, 1.5), "outputs": SCALES},
    "deeplabv2 backbone=vgg16": {**DEEPLAB, **POLY, "lr": 1e-3, "batch_size": 10, "epochs": 19,
                                 "outputs": SCALES},
    "deeplabv3": {**ATROUS, "weight_decay": 1e-4, "input": "imagenet"},
    "deeplabv3_cascade": {**ATROUS, "weight_decay": 1e-4, "input": "imagenet"},
    "deeplabv3plus": {**ATROUS, "weight_decay": 4e-5, "input": "symmetric",
                      "depthwise_decay": False},
    "deeplabv3plus backbone=resnet101": {**ATROUS, "weight_decay": 1e-4, "input": "symmetric",
                                         "depthwise_decay": False},
    "pspnet": {**POLY, "lr": 0.01, "weight_decay": 1e-4, "batch_size": 16, "epochs": 46,
               "input": "imagenet", "head_lr_mult": 10.0, "outputs": {"out": 1.0, "aux": 0.4},
               "scale": (0.5, 2.0), "rotate": 10.0, "blur": 5, "crop": (473, 473),
               "crop_pad": "centre", "flip": True},
    "refinenet": {"lr": 5e-5, "head_lr_mult": 10.0, "weight_decay": 5e-4, "batch_size": 1,
                  "epochs": 100, "input": "rgb_128", "outputs": {"logits": 1.0},
                  "scale": (0.7, 1.3), "scale_step": 0.1, "crop": (400, 400), "flip": True},
    "gfrnet": {**SEGNET, "lr": 1e-3, "schedule": "step", "step_size": 50_000, "batch_size": 6,
               "epochs": 2459,
               "outputs": {"out": 1.0, **{f"stage_{i}": 1.0 for i in range(1, 6)}}},
    "gcn": {"lr": 1e-4, "momentum": 0.99, "weight_decay": 5e-4, "batch_size": 1, "epochs": 30,
            "input": "imagenet", "crop": (512, 512), "flip": True},
    **{f"espnet_{form}": {**ESP, "batch_size": 12} for form in "abc"},
    "espnet": {**ESP, "batch_size": 6},
    "danet": {**POLY, "lr": 0.01, "weight_decay": 1e-4, "batch_size": 8, "epochs": 240,
              "input": "imagenet", "head_lr_mult": 10.0, "scale": (0.5, 2.0), "crop": (768, 768),
              "crop_pad": "end", "crop_colour": "black", "flip": True,
              "outputs": {"out": 1.0, "position": 1.0, "channel": 1.0}},
    "deep_parsing_network": {**CAFFE, **POLY, "lr": 1e-3, "weight_decay": 5e-4, "batch_size": 10,
                             "epochs": 50, "input": "caffe", "crop": (512, 512), "flip": True},
    "patch_cnn": {"lr": 0.01, "batch_size": 1, "epochs": 30, "class_weights": "median_frequency"},
    "random_forest": {"optimizer": "fit", "lr": 0.0, "batch_size": 1, "epochs": 1},
    "texton_forest": {"optimizer": "fit", "lr": 0.0, "batch_size": 1, "epochs": 1},
}  # fmt: skip


def recipe_of(case: str) -> Recipe:
    name, *options = case.split()
    pairs = dict(option.split("=") for option in options)
    return get_entry(name).choose_recipe({k: v == "True" or v for k, v in pairs.items()})


@pytest.mark.parametrize("case", EXPECTED)
def test_numbers(case):
    recipe = recipe_of(case)
    given = {
        field.name: getattr(recipe, field.name)
        for field in dataclasses.fields(recipe)
        if field.name not in ("notes", "source", "passes")
        and getattr(recipe, field.name) != getattr(PLAIN, field.name)
    }
    same = {k: v for k, v in EXPECTED[case].items() if v != getattr(PLAIN, k)}
    assert given == same
    assert recipe.source


def test_every_network_of_pixels_is_here():
    known = {case.split()[0] for case in EXPECTED}
    assert known == {n for n in list_models() if get_entry(n).task == "semantic"}


def test_sizes_of_espnets_passes():
    steps = build_train_transform(recipe_of("espnet"))
    sizes = [one.steps[0].make_params([])["size"] for one in steps]
    assert sizes == [(768, 1536), (720, 1280), (512, 1024), (384, 768), (256, 512)]
    assert [one.steps[1].pixels for one in steps] == [100, 100, 32, 32, 32]
    assert all(not recipe_of(case).passes for case in EXPECTED if not case.startswith("espnet"))


def test_order_of_pspnets_augmentation():
    recipe = recipe_of("pspnet")
    steps = build_train_transform(recipe, fill=mean_pixel(recipe.input)).steps
    names = [type(step).__name__ for step in steps]
    assert names == [
        "RandomScale", "RandomTurn", "RandomApply", "PadTo", "RandomCrop", "RandomHorizontalFlip",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("deeplabv1", {"logits": (9, 13)}),
        ("deeplabv2", {"logits": (9, 13), "scale_100": (9, 13), "scale_75": (9, 13),
                       "scale_50": (5, 7)}),
        ("refinenet", {"logits": (17, 25)}),
        ("pspnet", {"out": (65, 97), "aux": (65, 97)}),
        ("danet", dict.fromkeys(("out", "position", "channel"), (65, 97))),
        ("gfrnet", dict.fromkeys(("out", *(f"stage_{i}" for i in range(1, 6))), (65, 97))),
    ],
)  # fmt: skip
def test_sizes_at_which_the_losses_are_taken(name, sizes):
    network = create_model(name, num_classes=3, width=0.03125).train()
    with torch.no_grad():
        outputs = network(torch.zeros(2, 3, 65, 97))
    assert {k: tuple(outputs[k].shape[-2:]) for k in network.recipe.outputs} == sizes
