"""Public ports of FCN, CRF-as-RNN, U-Net, FC-DenseNet, LinkNet, PSPNet, RefineNet, GCN, DANet."""

from __future__ import annotations

from typing import Any

import torch

from segkern.models._bilinear import bilinear_kernel
from segkern.models._port_rules import (
    TORCH_NORM_EPS,
    VGG16_DEPTHS,
    Port,
    StateDict,
    change_eps,
    rename_prefixes,
)

# Blocks of layer 3, by which ResNets of bottlenecks are told apart.
_RESNETS = {6: "resnet50", 23: "resnet101", 36: "resnet152"}

# Caffe's names of an FCN's layers, which its ports keep, after those of VGG16.
_FCN_LAYERS = {
    "score_pool4": "score_pool16",
    "score_pool3": "score_pool8",
    "upscore2": "up16",
    "upscore_pool4": "up8",
    "upscore": "up1",
    "upscore16": "up1",
    "upscore8": "up1",
    "crfrnn": "crf_rnn",
}
_LAST_UPS = ("upscore.weight", "upscore16.weight", "upscore8.weight")
_CRF_NAMES = {
    "crf_rnn.spatial_ker_weights": "crf_rnn.spatial_weights",
    "crf_rnn.bilateral_ker_weights": "crf_rnn.bilateral_weights",
    "crf_rnn.compatibility_matrix": "crf_rnn.compatibility",
}


def _fcn_prefixes() -> list[tuple[str, str]]:
    pairs, number = [], 0
    for stage, depth in VGG16_DEPTHS.items():
        for i in range(1, depth + 1):
            pairs.append((f"conv{stage}_{i}.", f"backbone.features.{number}."))
            number += 2
        number += 1
    return pairs + [(f"{theirs}.", f"{own}.") for theirs, own in _FCN_LAYERS.items()]


def _is_bilinear(weight: torch.Tensor) -> bool:
    """Whether a transposed convolution is the fixed enlargement of every channel by itself."""
    expected = torch.zeros_like(weight)
    index = torch.arange(len(weight))
    expected[index, index] = bilinear_kernel(weight.shape[-1]).to(weight)
    return torch.allclose(weight, expected, rtol=0, atol=1e-6)


def _upsampling(state_dict: StateDict) -> str:
    """Option ``upsampling`` under which a port's transposed convolutions are ours."""
    fixed = {
        key: _is_bilinear(value)
        for key, value in state_dict.items()
        if key.startswith("upscore") and key.endswith("weight")
    }
    if all(fixed.values()):
        return "fixed"
    last = all(fixed[key] for key in _LAST_UPS if key in fixed)
    return "intermediate" if last else "learnt"


def _fcn(state_dict: StateDict) -> StateDict:
    """Caffe's names to ours; enlargements that are bilinear and so not learnt are left out.

    The port of CRF-as-RNN has a bias after its first enlargement, to which the scores of pool 4
    are added: it goes into theirs.
    """
    left_out = {"fixed": "up", "intermediate": "up1.", "learnt": "-"}[_upsampling(state_dict)]
    renamed = rename_prefixes(state_dict, _fcn_prefixes())
    bias = renamed.pop("up16.bias", None)
    if bias is not None and "score_pool16.bias" in renamed:
        renamed["score_pool16.bias"] = renamed["score_pool16.bias"] + bias
    return {key: value for key, value in renamed.items() if not key.startswith(left_out)}


def _crfasrnn(state_dict: StateDict) -> StateDict:
    """FCN-8s, and the layer's matrices: the port adds what the release subtracts."""
    renamed = {_CRF_NAMES.get(key, key): value for key, value in _fcn(state_dict).items()}
    key = "crf_rnn.compatibility"
    return {**renamed, **({key: -renamed[key]} if key in renamed else {})}


def _fcn_options(state_dict: StateDict) -> dict[str, Any]:
    return {
        "upsampling": _upsampling(state_dict),
        "in_channels": state_dict["conv1_1.weight"].shape[1],
    }


def _fcn_ports(*last: str) -> tuple[Port, ...]:
    """wkentaro's port, whose network of this stride has ``last``, and what is taken for an FCN."""
    return (
        Port(
            source="wkentaro/pytorch-fcn",
            marks=("conv1_1.weight", "fc6.weight", "score_fr.weight", *last),
            convert=_fcn,
            infer=_fcn_options,
        ),
        Port(
            source="torchvision, fcn_resnet",
            marks=("backbone.layer4.0.conv2.weight", "classifier.4.weight"),
            differs=(
                "a ResNet with holes and two convolutions, enlarged once, without VGG16, skips or "
                "zeros around the image"
            ),
        ),
        Port(
            source="torchvision, VGG16",
            marks=("features.0.weight", "features.28.weight", "classifier.6.weight"),
            differs="a classifier, of which weights_backbone= takes the trunk, fc6 and fc7",
        ),
    )


def _unet(state_dict: StateDict) -> StateDict:
    pairs = [("last.", "score.")]
    for i in range(5):
        pairs.append((f"down_path.{i}.block.", f"down{i}."))
        pairs.append((f"up_path.{i}.up.", f"upconv{3 - i}."))
        pairs.append((f"up_path.{i}.conv_block.block.", f"up{3 - i}."))
    return rename_prefixes(state_dict, pairs)


def _unet_options(state_dict: StateDict) -> dict[str, Any]:
    channels, in_channels = state_dict["down_path.0.block.0.weight"].shape[:2]
    return {"in_channels": in_channels, "width": channels / 64}


def _tiramisu(state_dict: StateDict) -> StateDict:
    pairs = [
        ("firstconv.", "first."),
        ("bottleneck.bottleneck.layers.", "bottleneck."),
        ("finalConv.", "classifier."),
    ]
    for i in range(5):
        pairs.append((f"denseBlocksDown.{i}.layers.", f"down{i + 1}."))
        pairs.append((f"transDownBlocks.{i}.", f"transition_down{i + 1}."))
        pairs.append((f"transUpBlocks.{i}.convTrans.", f"transition_up{5 - i}."))
        pairs.append((f"denseBlocksUp.{i}.layers.", f"up{5 - i}."))
    # Lasagne's eps, which ours has.
    return change_eps(rename_prefixes(state_dict, pairs), TORCH_NORM_EPS, 1e-4)


def _tiramisu_options(state_dict: StateDict) -> dict[str, Any]:
    blocks = [f"denseBlocksDown.{i}." for i in range(5)]
    blocks += ["bottleneck.bottleneck.", *(f"denseBlocksUp.{i}." for i in range(5))]
    first = state_dict["firstconv.weight"]
    return {
        "in_channels": first.shape[1],
        "first_channels": first.shape[0],
        "growth_rate": state_dict["denseBlocksDown.0.layers.0.conv.weight"].shape[0],
        "layers": tuple(
            sum(key.startswith(block) and key.endswith("conv.weight") for key in state_dict)
            for block in blocks
        ),
    }


def _trunk_options(state_dict: StateDict, layer3: str) -> dict[str, Any]:
    """Option ``backbone`` by the blocks under the prefix ``layer3``, where it is a usual one."""
    blocks = {key.removeprefix(layer3).partition(".")[0] for key in state_dict}
    depth = len([block for block in blocks if block.isdigit()])
    return {"backbone": _RESNETS[depth]} if depth in _RESNETS else {}


def _layers(theirs: str = "") -> list[tuple[str, str]]:
    return [(f"{theirs}layer{i}.", f"backbone.layer{i}.") for i in range(1, 5)]


def _pspnet(state_dict: StateDict) -> StateDict:
    stem = zip((0, 1, 3, 4, 6, 7), ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"), strict=True)
    pairs = [(f"layer0.{i}.", f"backbone.{own}.") for i, own in stem]
    for i in range(8):
        pairs.append((f"ppm.features.{i}.1.", f"pyramid.levels.{i}.0."))
        pairs.append((f"ppm.features.{i}.2.", f"pyramid.levels.{i}.1."))
    pairs += [("cls.0.", "fuse.0.0."), ("cls.1.", "fuse.0.1."), ("cls.4.", "classifier.")]
    pairs += [("aux.0.", "aux.0.0.0."), ("aux.1.", "aux.0.0.1."), ("aux.4.", "aux.1.")]
    return rename_prefixes(state_dict, [*pairs, *_layers()])


def _pspnet_options(state_dict: StateDict) -> dict[str, Any]:
    return {"aux": "aux.0.weight" in state_dict, **_trunk_options(state_dict, "layer3.")}


def _refinenet(state_dict: StateDict) -> StateDict:
    """The converted networks count stages from the deepest, 1 to 4; ours are those of the trunk."""
    pairs = [("conv1.", "backbone.conv1."), ("bn1.", "backbone.bn1."), *_layers()]
    pairs.append(("clf_conv.", "classifier."))
    for n in range(1, 5):
        own = f"refine{5 - n}"
        pairs.append((f"p_ims1d2_outl{n}_dimred.", f"{own}.adapt."))
        pairs.append((f"adapt_stage{n}_b2_joint_varout_dimred.", f"{own}.fuse."))
        pairs.append((f"mflow_conv_g{n}_b3_joint_varout_dimred.", f"refine{4 - n}.fuse_below."))
        for i in range(1, 9):
            pool = f"mflow_conv_g{n}_pool.0.{i}_outvar_dimred."
            pairs.append((pool, f"{own}.pool.{i - 1}."))
        for theirs, units in ((f"adapt_stage{n}_b", "in"), (f"mflow_conv_g{n}_b", "out")):
            for i in range(1, 4):
                unit = f"{own}.units_{units}.{i - 1}"
                pairs.append((f"{theirs}.0.{i}_conv.", f"{unit}.conv1."))
                pairs.append((f"{theirs}.0.{i}_conv_relu_varout_dimred.", f"{unit}.conv2."))
    return rename_prefixes(state_dict, pairs)


def _refinenet_options(state_dict: StateDict) -> dict[str, Any]:
    chain = [key for key in state_dict if key.startswith("mflow_conv_g1_pool.")]
    return {"pool_blocks": len(chain), **_trunk_options(state_dict, "layer3.")}


def _gcn(state_dict: StateDict) -> StateDict:
    pairs = [("layer0.0.", "backbone.conv1."), ("layer0.1.", "backbone.bn1.")]
    pairs += [("layer1.1.", "backbone.layer1."), *_layers()[1:]]
    for n in range(1, 5):
        for theirs, own in (("l1", "a1"), ("l2", "a2"), ("r1", "b1"), ("r2", "b2")):
            pairs.append((f"gcm{n}.conv_{theirs}.", f"gcn{5 - n}.{own}."))
        pairs.append((f"brm{n}.", f"refine{5 - n}."))
    pairs += [(f"brm{n}.", f"refine_sums.{n - 5}.") for n in range(5, 10)]
    return rename_prefixes(state_dict, pairs)


def _gcn_options(state_dict: StateDict) -> dict[str, Any]:
    kernel = state_dict["gcm1.conv_l1.weight"].shape[2]
    return {"kernel_size": kernel, **_trunk_options(state_dict, "layer3.")}


def _danet(state_dict: StateDict) -> StateDict:
    trunk = "pretrained."
    pairs = _layers(trunk)
    if f"{trunk}conv1.0.weight" in state_dict:
        stem = {"conv1.0": "conv1", "conv1.1": "bn1", "conv1.3": "conv2", "conv1.4": "bn2"}
        stem |= {"conv1.6": "conv3", "bn1": "bn3"}
        pairs += [(f"{trunk}{theirs}.", f"backbone.{own}.") for theirs, own in stem.items()]
    else:
        pairs += [(f"{trunk}{name}.", f"backbone.{name}.") for name in ("conv1", "bn1")]
    for theirs, own in (
        ("conv5a", "position_in"),
        ("conv5c", "channel_in"),
        ("conv51", "position_out"),
        ("conv52", "channel_out"),
        ("sa.query_conv", "position.query"),
        ("sa.key_conv", "position.key"),
        ("sa.value_conv", "position.value"),
        ("sa", "position"),
        ("sc", "channel"),
        ("conv6.1", "position_classifier"),
        ("conv7.1", "channel_classifier"),
        ("conv8.1", "classifier"),
    ):
        pairs.append((f"head.{theirs}.", f"{own}."))
    # The classifier of ImageNet, which some files keep.
    used = {key: value for key, value in state_dict.items() if not key.startswith(f"{trunk}fc.")}
    return rename_prefixes(used, pairs)


def _danet_options(state_dict: StateDict) -> dict[str, Any]:
    deep = "pretrained.conv1.0.weight" in state_dict
    return {
        "stem": "deep" if deep else "plain",
        **_trunk_options(state_dict, "pretrained.layer3."),
    }


_TIRAMISU = (
    Port(
        source="bfortuner/pytorch_tiramisu",
        marks=("firstconv.weight", "denseBlocksDown.0.layers.0.norm.weight", "finalConv.weight"),
        convert=_tiramisu,
        infer=_tiramisu_options,
    ),
)

FULL_SET_PORTS: dict[str, tuple[Port, ...]] = {
    "fcn32s": _fcn_ports("upscore.weight"),
    "fcn16s": _fcn_ports("upscore16.weight"),
    "fcn8s": _fcn_ports("upscore8.weight"),
    "crfasrnn": (
        Port(
            source="sadeepj/crfasrnn_pytorch",
            marks=("conv1_1.weight", "score_fr.weight", "crfrnn.spatial_ker_weights"),
            convert=_crfasrnn,
            infer=_fcn_options,
        ),
    ),
    "unet": (
        Port(
            source="jvanvugt/pytorch-unet with batch norm",
            marks=("down_path.0.block.2.running_mean", "last.weight"),
            differs="batch norm follows every ReLU (down_path.0.block.2), the paper has none",
        ),
        Port(
            source="jvanvugt/pytorch-unet with bilinear enlargement",
            marks=("down_path.0.block.2.weight", "up_path.0.up.1.weight"),
            differs="it enlarges bilinearly before a 1x1 convolution instead of by up-convolutions",
        ),
        Port(
            source="jvanvugt/pytorch-unet",
            marks=("down_path.0.block.2.weight", "up_path.0.up.weight", "last.weight"),
            convert=_unet,
            infer=_unet_options,
        ),
        Port(
            source="milesial/Pytorch-UNet",
            marks=("inc.double_conv.0.weight", "outc.conv.weight"),
            differs=(
                "its convolutions are padded, batch norm follows each (inc.double_conv.1), the "
                "skip comes first in the concatenation, and some files enlarge bilinearly"
            ),
        ),
    ),
    "fc_densenet56": _TIRAMISU,
    "fc_densenet67": _TIRAMISU,
    "fc_densenet103": _TIRAMISU,
    "linknet": tuple(
        Port(
            source=f"e-lab/pytorch-linknet, {network}",
            marks=(mark, "decoder1.tp_conv.0.weight", "tp_conv2.weight"),
            differs=(
                "no ReLU follows the additions of encoder and decoder, its decoders' convolutions "
                "have no bias and their batch norms an eps of 1e-5"
            ),
        )
        for network, mark in (
            ("LinkNet", "in_block.0.weight"),
            ("LinkNetBase", "encoder1.block1.conv1.weight"),
        )
    ),
    "pspnet": (
        Port(
            source="hszhao/semseg, the authors' PyTorch code",
            marks=("layer0.0.weight", "layer0.6.weight", "ppm.features.0.1.weight", "cls.4.weight"),
            convert=_pspnet,
            options={"stem": "deep", "stride_in": "3x3", "rates": "whole_layer"},
            infer=_pspnet_options,
            input="imagenet",
        ),
    ),
    "refinenet": (
        Port(
            source="DrSleep/refinenet-pytorch, converted from the authors' networks",
            marks=("p_ims1d2_outl1_dimred.weight", "clf_conv.weight", "conv1.weight"),
            convert=_refinenet,
            options={"stride_in": "3x3"},
            infer=_refinenet_options,
            input="imagenet",
        ),
    ),
    "gcn": (
        Port(
            source="zijundeng/pytorch-semantic-segmentation, GCN",
            marks=("layer0.0.weight", "gcm1.conv_l1.weight", "brm9.conv2.weight"),
            convert=_gcn,
            infer=_gcn_options,
            input="imagenet",
        ),
    ),
    "danet": (
        Port(
            source="junfu1115/DANet, the authors' release",
            marks=("pretrained.layer1.0.conv1.weight", "head.sa.gamma", "head.conv8.1.weight"),
            convert=_danet,
            infer=_danet_options,
            input="imagenet",
        ),
    ),
}
