"""State dicts of public ports: recognised by their keys, mapped to ours or refused with the reason.

Only names, shapes and constants are known here; nothing of a port's code is. A port is mapped where
its network computes what ours does at evaluation; a difference in the eps of batch norm is taken
into the running variances, so that the sums under the root are the port's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from segkern.models._instances import solo_ports
from segkern.models._port_rules import (
    CAFFE_NORM_EPS,
    NO_EPS,
    TORCH_NORM_EPS,
    VGG16_DEPTHS,
    Port,
    StateDict,
    change_eps,
    rename,
)
from segkern.models._ports_full_set import FULL_SET_PORTS


def find_port(network: str, state_dict: StateDict) -> Port | None:
    """The port of ``network`` that ``state_dict`` comes from, or None."""
    for port in _PORTS.get(network, ()):
        if all(mark in state_dict for mark in port.marks):
            return port
    return None


def _segnet_pairs(
    conv: Callable[[int, int], str],
    norm: Callable[[int, int], str],
    conv_up: Callable[[int, int], str],
    norm_up: Callable[[int, int], str],
) -> list[tuple[str, str]]:
    """Pairs for ports that number encoder and decoder layers by VGG16's (stage, convolution).

    Their decoder counts down: stage 5 runs 5_3, 5_2, 5_1; ours counts up. Decoder 1_1 is the
    classifier.
    """
    pairs = []
    for stage, depth in VGG16_DEPTHS.items():
        for i in range(1, depth + 1):
            pairs.append((conv(stage, i), f"encoder.stage{stage}.{i}.conv"))
            pairs.append((norm(stage, i), f"encoder.stage{stage}.{i}.norm"))
            if (stage, i) != (1, 1):
                own = f"decoder.stage{stage}.{depth + 1 - i}"
                pairs.append((conv_up(stage, i), f"{own}.conv"))
                pairs.append((norm_up(stage, i), f"{own}.norm"))
    return [*pairs, (conv_up(1, 1), "classifier")]


def _segnet_onera(state_dict: StateDict) -> StateDict:
    pairs = _segnet_pairs(
        lambda s, i: f"conv{s}{i}",
        lambda s, i: f"bn{s}{i}",
        lambda s, i: f"conv{s}{i}d",
        lambda s, i: f"bn{s}{i}d",
    )
    return change_eps(rename(state_dict, pairs), TORCH_NORM_EPS, CAFFE_NORM_EPS)


def _segnet_vinceecws(state_dict: StateDict) -> StateDict:
    pairs = _segnet_pairs(
        lambda s, i: f"ConvEn{s}{i}",
        lambda s, i: f"BNEn{s}{i}",
        lambda s, i: f"ConvDe{s}{i}",
        lambda s, i: f"BNDe{s}{i}",
    )
    # The port makes a batch norm for its last convolution and does not call it.
    used = {key: value for key, value in state_dict.items() if not key.startswith("BNDe11.")}
    return change_eps(rename(used, pairs), TORCH_NORM_EPS, CAFFE_NORM_EPS)


def _deconvnet_jasonlee(state_dict: StateDict) -> StateDict:
    pairs = [
        ("conv67.0", "fc6.conv"),
        ("conv67.1", "fc6.norm"),
        ("conv67.3", "fc7.conv"),
        ("conv67.4", "fc7.norm"),
        ("deconv67.0", "fc6_deconv.conv"),
        ("deconv67.1", "fc6_deconv.norm"),
        ("deconv1.6", "score"),
    ]
    for stage, depth in VGG16_DEPTHS.items():
        for i in range(depth):
            for theirs, own in (("conv", "encoder.stage"), ("deconv", "decoder.stage")):
                pairs.append((f"{theirs}{stage}.{3 * i}", f"{own}{stage}.{i + 1}.conv"))
                pairs.append((f"{theirs}{stage}.{3 * i + 1}", f"{own}{stage}.{i + 1}.norm"))
    renamed = change_eps(rename(state_dict, pairs), TORCH_NORM_EPS, CAFFE_NORM_EPS)
    if "score.weight" in renamed:
        # A transposed 1x1 convolution holds (in, out, 1, 1).
        renamed["score.weight"] = renamed["score.weight"].transpose(0, 1)
    return renamed


def _enet_berman(state_dict: StateDict) -> StateDict:
    pairs = [
        ("0.0", "encoder.initial.conv"),
        ("2", "encoder.initial.norm"),
        ("3", "encoder.initial.act"),
        ("31", "decoder.fullconv"),
    ]
    # Torch7 counts the blocks of the whole network in one row, from 4 on.
    blocks = ["encoder.down1", *(f"encoder.section1.{i}" for i in range(1, 5)), "encoder.down2"]
    blocks += [f"encoder.section{section}.{i}" for section in (2, 3) for i in range(1, 9)]
    blocks += ["decoder.up4", "decoder.section4.1", "decoder.section4.2"]
    blocks += ["decoder.up5", "decoder.section5.1"]
    for number, own in enumerate(blocks, start=4):
        branch = f"{number}.0.0"
        layers = ["reduce", "norm1", "act1", "conv", "norm2", "act2", "expand", "norm3"]
        if f"{branch}.8.weight" in state_dict:
            layers[3:4] = ["conv.0", "conv.1"]
        pairs += [(f"{branch}.{i}", f"{own}.{layer}") for i, layer in enumerate(layers)]
        pairs += [(f"{number}.2", f"{own}.act")]
        pairs += [(f"{number}.0.1.1", f"{own}.project"), (f"{number}.0.1.2", f"{own}.norm_project")]
    return rename(state_dict, pairs)


# Layers of ESPNet's encoder and decoder: the release's holders of one layer each, and ours.
_ESPNET_LAYERS = {
    "level1.conv": "level1.0",
    "level1.bn": "level1.1",
    "level1.act": "level1.2",
    "classifier.conv": "classifier",
    **{f"b{i}.{their}": f"b{i}.{our}" for i in (1, 2, 3) for their, our in (("bn", 0), ("act", 1))},
}
_ESPNET_DECODER = {
    "up_l3.0": "up_l3",
    "level3_C.conv": "level3_C",
    "combine_l2_l3.0.bn": "combine_l2_l3.0.0",
    "combine_l2_l3.0.act": "combine_l2_l3.0.1",
    "up_l2.1.bn": "up_l2.1.0",
    "up_l2.1.act": "up_l2.1.1",
    "conv.conv": "conv.0",
    "conv.bn": "conv.1",
    "conv.act": "conv.2",
}


def _espnet_c(state_dict: StateDict) -> StateDict:
    return rename(state_dict, list(_ESPNET_LAYERS.items()))


def _espnet(state_dict: StateDict) -> StateDict:
    encoder = [(f"encoder.{their}", f"encoder.{our}") for their, our in _ESPNET_LAYERS.items()]
    return rename(state_dict, [*encoder, *_ESPNET_DECODER.items()])


def _espnet_options(state_dict: StateDict) -> dict[str, Any]:
    """Depths, and the tail by the channels that its convolution sees."""

    def depth(level: str) -> int:
        parts = {key.partition(f"{level}.")[2].partition(".")[0] for key in state_dict}
        return len(parts - {""})

    options: dict[str, Any] = {"p": depth("level2"), "q": depth("level3")}
    tail = state_dict.get("conv.conv.weight")
    if tail is not None:
        options["tail"] = "level1" if tail.shape[1] - tail.shape[0] == 16 else "b1"
    return options


def _solo(mark: str) -> tuple[Port, ...]:
    """The release's files, which have ``mark`` in their head."""
    return (
        Port(
            source="WXinlong/SOLO, the authors' release",
            marks=(*solo_ports.MARKS, f"bbox_head.{mark}"),
            convert=solo_ports.from_release,
            infer=solo_ports.release_options,
        ),
    )


def _maskrcnn(state_dict: StateDict) -> StateDict:
    """torchvision's names, those of before 0.13 among them."""
    levels = [f"backbone.fpn.{kind}_blocks.{i}" for kind in ("inner", "layer") for i in range(4)]
    pairs = [(level, f"{level}.0") for level in levels]
    pairs += [
        (f"roi_heads.mask_head.mask_fcn{i + 1}", f"roi_heads.mask_head.{i}.0") for i in range(4)
    ]
    return rename(state_dict, [*pairs, ("rpn.head.conv", "rpn.head.conv.0.0")])


def _maskrcnn_options(state_dict: StateDict) -> dict[str, Any]:
    """Options by names and shapes. Only frozen norm has no counters, and only the published file,
    which has the older names, was trained with its eps 0."""
    body = "backbone.body."
    blocks = {key.removeprefix(f"{body}layer3.").partition(".")[0] for key in state_dict}
    depth = len([block for block in blocks if block.isdigit()])
    is_basic = f"{body}layer1.0.conv3.weight" not in state_dict
    older = "rpn.head.conv.weight" in state_dict
    is_v2 = "roi_heads.box_head.5.weight" in state_dict
    options: dict[str, Any] = {
        "backbone": ("resnet18" if depth == 2 else "resnet34")
        if is_basic
        else ("resnet50" if depth == 6 else "resnet101"),
        "version": "v2" if is_v2 else "v1",
    }
    for name, key in (
        ("channels", "rpn.head.cls_logits.weight"),
        ("box_channels", "roi_heads.box_predictor.cls_score.weight"),
        ("mask_channels", "roi_heads.mask_predictor.mask_fcn_logits.weight"),
    ):
        if key in state_dict:
            options[name] = state_dict[key].shape[1]
    if f"{body}bn1.num_batches_tracked" not in state_dict:
        eps = NO_EPS if older else TORCH_NORM_EPS
        options |= {"norm": "frozen", "norm_eps": eps, "trainable_layers": 3}
    return options


_PORTS: dict[str, tuple[Port, ...]] = {
    **FULL_SET_PORTS,
    "solo": _solo("solo_ins_list.0.weight"),
    "decoupled_solo": _solo("ins_convs_x.0.conv.weight"),
    "decoupled_solo_light": _solo("dsolo_ins_list_x.0.weight"),
    "solov2": _solo("solo_kernel.weight"),
    "solov2_light": _solo("solo_kernel.weight"),
    "segnet": (
        Port(
            source="delta-onera/segnet_pytorch",
            marks=("conv11.weight", "bn53.running_mean", "conv53d.weight", "conv11d.weight"),
            convert=_segnet_onera,
        ),
        Port(
            source="vinceecws/SegNet_PyTorch",
            marks=("ConvEn11.weight", "BNEn53.running_mean", "ConvDe11.weight"),
            convert=_segnet_vinceecws,
        ),
        Port(
            source="meetps/pytorch-semseg, segnet",
            marks=("down1.conv1.cbr_unit.0.weight", "up1.conv2.cbr_unit.0.weight"),
            differs=(
                "its last convolution up1.conv2 is followed by batch norm and ReLU "
                "(up1.conv2.cbr_unit.1 and .2), where SegNet has a bare classifier; no weights of "
                "ours give such scores"
            ),
        ),
        Port(
            source="zijundeng/pytorch-semantic-segmentation, SegNet",
            marks=("enc1.0.weight", "dec5.0.weight", "dec4.decode.0.weight"),
            differs=(
                "its encoder enc1 to enc5 is VGG19, it upsamples by learnt transposed convolutions "
                "(dec5.0, dec4.decode.0 to dec1.decode.0) instead of pooling indices, and "
                "concatenates encoder features to dec4 to dec1"
            ),
        ),
        Port(
            source="torchvision, VGG16",
            marks=("features.0.weight", "features.28.weight", "classifier.6.weight"),
            differs="a classifier, of which weights_backbone= takes the features as the encoder",
        ),
    ),
    "deconvnet": (
        Port(
            source="Jasonlee1995/DeconvNet",
            marks=("conv1.0.weight", "conv67.0.weight", "deconv67.0.weight", "deconv1.6.weight"),
            convert=_deconvnet_jasonlee,
        ),
        Port(
            source="torchvision, VGG16",
            marks=("features.0.weight", "features.28.weight", "classifier.6.weight"),
            differs="a classifier, of which weights_backbone= takes the encoder, fc6 and fc7",
        ),
    ),
    "enet": (
        Port(
            source="bermanmaxim/Enet-PyTorch, the authors' Cityscapes model out of Torch7",
            marks=("0.0.weight", "3.weight", "4.0.0.0.weight", "26.0.1.1.weight", "31.weight"),
            convert=_enet_berman,
            options={"decoder_prelu": True},
        ),
        Port(
            source="davidtvs/PyTorch-ENet",
            marks=("initial_block.main_branch.weight", "regular1_1.ext_conv1.0.weight"),
            differs=(
                "its down- and upsampling blocks (downsample1_0, downsample2_0, upsample4_0, "
                "upsample5_0) work at a quarter of their input channels instead of their output's; "
                "initial_block pools 3x3 with padding; every block has an extra activation after "
                "its expansion (ext_conv3; ext_conv2 in upsampling); asymmetric blocks have batch "
                "norm and activation between their two convolutions; PReLU has one slope for all "
                "channels; ext_tconv1 is 2x2 without bias; transposed_conv is 3x3 without bias"
            ),
        ),
        Port(
            source="iArunava/ENet-Real-Time-Semantic-Segmentation",
            marks=("init.conv.weight", "b10.conv1.weight", "b10.bnorm1.weight"),
            differs=(
                "b10 and b20 have their stride on the 3x3 convolution instead of a 2x2 projection "
                "and work at a quarter of their input channels; PReLU has one slope for all "
                "channels and is shared within a block; batch norm in init covers the 13 convolved "
                "channels only"
            ),
        ),
    ),
    "espnet": (
        Port(
            source="sacmehta/ESPNet, the authors' ESPNet",
            marks=("encoder.level1.conv.weight", "level3_C.conv.weight", "up_l2.1.bn.weight"),
            convert=_espnet,
            infer=_espnet_options,
        ),
        Port(
            source="sacmehta/ESPNet, the authors' ESPNet-C",
            marks=("level1.conv.weight", "b3.bn.weight", "classifier.conv.weight"),
            differs="the encoder alone, which weights_backbone= takes",
        ),
    ),
    "espnet_c": (
        Port(
            source="sacmehta/ESPNet, the authors' ESPNet-C",
            marks=("level1.conv.weight", "b3.bn.weight", "classifier.conv.weight"),
            convert=_espnet_c,
            infer=_espnet_options,
        ),
    ),
    "maskrcnn": (
        Port(
            source="torchvision, maskrcnn_resnet50_fpn and its second version",
            marks=("backbone.body.conv1.weight", "roi_heads.mask_predictor.conv5_mask.weight"),
            convert=_maskrcnn,
            infer=_maskrcnn_options,
        ),
    ),
    "deeplabv3": (
        Port(
            source="torchvision, deeplabv3_resnet",
            marks=("backbone.layer4.0.conv2.weight", "classifier.0.convs.0.0.weight"),
            differs=(
                "its head has another 3x3 convolution with batch norm (classifier.1, classifier.2) "
                "before the classifier, rates (12, 24, 36) at output stride 8 and no multi-grid; "
                "weights_backbone= takes torchvision's ImageNet weights"
            ),
        ),
    ),
}
