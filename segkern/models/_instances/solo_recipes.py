"""How the networks of the SOLO family were trained on COCO."""

from __future__ import annotations

import dataclasses

from segkern.models._recipe import Recipe

_NOTES = (
    "Starts from ImageNet weights: weights_backbone; then stem and layer 1 are not trained and "
    "batch norm keeps its statistics. Images are resized by the network's min_size and max_size. "
    "Measured at one scale, without flips."
)

# 12 epochs at the one size of the network's default.
FULL_1X = Recipe(
    optimizer="sgd",
    lr=0.01,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="multistep",
    milestones=(9 / 12, 11 / 12),
    gamma=0.1,
    warmup_steps=500,
    warmup_factor=1 / 3,
    clip_norm=35.0,
    batch_size=16,
    epochs=12,
    input="unit",
    loss="network",
    flip=True,
    aspect_groups=True,
    notes=_NOTES
    + " The 3x schedule: 36 epochs, min_size=(640, 672, 704, 736, 768, 800), steps at 27 and 33.",
    source="WXinlong/SOLO configs/solo/*_r50_fpn_8gpu_1x.py",
)

# 36 epochs at several sizes.
FULL_3X = dataclasses.replace(
    FULL_1X,
    milestones=(27 / 36, 33 / 36),
    warmup_factor=0.01,
    epochs=36,
    notes=_NOTES + " The 1x schedule: 12 epochs, min_size=(800,), steps at 9 and 11.",
    source="WXinlong/SOLO configs/solov2/solov2_r50_fpn_8gpu_3x.py",
)

LIGHT_3X = dataclasses.replace(
    FULL_3X,
    notes=_NOTES,
    source="WXinlong/SOLO configs/solov2/solov2_light_448_r50_fpn_8gpu_3x.py and "
    "configs/solo/decoupled_solo_light_r50_fpn_8gpu_3x.py",
)
