"""State dicts of the SOLO release (WXinlong/SOLO): names to ours, and options from shapes."""

from __future__ import annotations

import math
import re
from typing import Any

from torch import Tensor

StateDict = dict[str, Tensor]

# The release's prefixes, as patterns, and ours.
_PREFIXES = (
    (r"backbone\.", "backbone.body."),
    (r"neck\.lateral_convs\.(\d+)\.conv\.", r"backbone.fpn.inner_blocks.\1.0."),
    (r"neck\.fpn_convs\.(\d+)\.conv\.", r"backbone.fpn.layer_blocks.\1.0."),
    (r"bbox_head\.cate_convs\.", "head.category_tower."),
    (r"bbox_head\.d?solo_cate\.", "head.category."),
    (r"bbox_head\.ins_convs\.", "head.mask_tower."),
    (r"bbox_head\.solo_ins_list\.", "head.masks."),
    (r"bbox_head\.ins_convs_([xy])\.", r"head.\1_tower."),
    (r"bbox_head\.dsolo_ins_list_([xy])\.", r"head.\1_masks."),
    (r"bbox_head\.kernel_convs\.", "head.kernel_tower."),
    (r"bbox_head\.solo_kernel\.", "head.kernels."),
    (r"mask_feat_head\.convs_all_levels\.(\d+)\.conv(\d+)\.", r"mask_features.levels.\1.\2."),
    (r"mask_feat_head\.conv_pred\.0\.", "mask_features.fuse."),
)

MARKS = ("backbone.layer4.0.conv1.weight", "neck.lateral_convs.3.conv.weight")


def from_release(state_dict: StateDict) -> StateDict:
    """Under our names; a name that is none of the release's stays and so shows up."""
    renamed = {}
    for key, value in state_dict.items():
        for pattern, ours in _PREFIXES:
            new, found = re.subn(f"^{pattern}", ours, key)
            if found:
                key = new
                break
        renamed[key] = value
    return renamed


def release_options(state_dict: StateDict) -> dict[str, Any]:
    """Options of the network that a state dict of the release is of, as far as shapes tell."""

    options: dict[str, Any] = {
        "backbone": _backbone(state_dict),
        "depth": _count(state_dict, r"bbox_head\.cate_convs\.(\d+)\.conv\.weight"),
    }
    for name, key, axis in (
        ("channels", "neck.lateral_convs.0.conv.weight", 0),
        ("head_channels", "bbox_head.cate_convs.0.conv.weight", 0),
        ("mask_channels", "mask_feat_head.conv_pred.0.conv.weight", 0),
        ("feature_channels", "mask_feat_head.conv_pred.0.conv.weight", 1),
    ):
        # A file that lacks one is refused for that when it is loaded.
        if key in state_dict:
            options[name] = state_dict[key].shape[axis]
    kernels = state_dict.get("bbox_head.solo_kernel.bias")
    if kernels is not None and "mask_channels" in options:
        options["kernel_size"] = math.isqrt(kernels.shape[0] // options["mask_channels"])
    for name, is_square in (("solo_ins_list", True), ("dsolo_ins_list_x", False)):
        levels = _count(state_dict, rf"bbox_head\.{name}\.(\d+)\.bias")
        sizes = [len(state_dict.get(f"bbox_head.{name}.{n}.bias", "?")) for n in range(levels)]
        if sizes:
            options["grids"] = tuple(math.isqrt(n) if is_square else n for n in sizes)
    return options


def _backbone(state_dict: StateDict) -> str:
    depth = _count(state_dict, r"backbone\.layer3\.(\d+)\.conv1\.weight")
    if "backbone.layer4.0.conv3.weight" in state_dict:
        return "resnet101" if depth == 23 else "resnet50"
    return "resnet34" if depth == 6 else "resnet18"


def _count(state_dict: StateDict, pattern: str) -> int:
    return sum(re.fullmatch(pattern, key) is not None for key in state_dict)
