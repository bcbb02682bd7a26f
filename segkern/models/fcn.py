"""FCN-32s, -16s and -8s on VGG16, AlexNet and GoogLeNet."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from segkern.models._bilinear import UPSAMPLINGS, make_upsampling
from segkern.models._options import check_choice
from segkern.models._ports import find_port
from segkern.models._recipe import INPUT_MODES, Recipe
from segkern.models._registry import register_model
from segkern.models._resize import in_layout_of
from segkern.models._sizes import check_image, crop_to, pad_to_valid
from segkern.models._weights import WeightsError, read_card, read_state_dict
from segkern.models.backbones import (
    CaffeNetFeatures,
    GoogLeNetFeatures,
    VGG16Features,
    load_imagenet,
)
from segkern.models.backbones.imagenet import dense_layer
from segkern.models.backbones.resnet import scale_channels
from segkern.models.backbones.vgg import Pool

PAPER = (
    "J. Long, E. Shelhamer, T. Darrell: Fully Convolutional Networks for Semantic Segmentation, "
    "CVPR 2015, arXiv:1411.4038; PAMI 2017, arXiv:1605.06211"
)

# Constants of the at-once net's pools, by their stride.
AT_ONCE_SCALES = {16: 0.01, 8: 0.0001}


@dataclass(frozen=True)
class Geometry:
    """What lines scores up with pixels on a trunk.

    Attributes:
        border: Zeros around the image.
        crops: First row and column of the enlarged scores that are kept, by the stride they were
            enlarged from.
        skip_crops: First row and column kept of a pool, by its stride.
        even: Whether kernels of transposed convolutions have 2s taps, or 2s - 1: pools of 2x2 put
            centres between pixels, pools of 3x3 on them.
        fc6: Kernel of fc6; 0 for a trunk without fc6 and fc7.
        dropout: Rate before the classifier.
        minimum: Smallest image that gives a score.
    """

    border: int
    crops: dict[int, int]
    skip_crops: dict[int, int]
    even: bool
    fc6: int
    dropout: float
    minimum: int = 1


GEOMETRIES = {
    "vgg16": Geometry(100, {32: 19, 16: 27, 8: 31}, {16: 5, 8: 9}, True, 7, 0.5),
    "alexnet": Geometry(100, {32: 18, 16: 18, 8: 18}, {16: 5, 8: 10}, False, 6, 0.5),
    "googlenet": Geometry(3, {32: 1, 16: 1, 8: 1}, {16: 0, 8: 0}, False, 0, 0.4, minimum=31),
}
BACKBONES = tuple(GEOMETRIES)


@dataclass(frozen=True)
class FCN32sConfig:
    """Options of :class:`FCN` as ``fcn32s``.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels.
        backbone: ``"vgg16"``, ``"alexnet"`` (Caffe's) or ``"googlenet"`` (BVLC's).
        upsampling: ``"fixed"``, bilinear as released; ``"intermediate"``, learnt from bilinear on
            but for the last, as in the CVPR paper; or ``"learnt"``, all of them.
        width: Factor on all channels; 1 is the paper's.
    """

    num_classes: int = 21
    in_channels: int = 3
    backbone: str = "vgg16"
    upsampling: str = "fixed"
    width: float = 1.0


@dataclass(frozen=True)
class FCNSkipConfig(FCN32sConfig):
    """Options of :class:`FCN` as ``fcn16s`` and ``fcn8s``.

    Attributes:
        at_once: Multiply pool 4 by 0.01 and pool 3 by 0.0001 before they are scored, for training
            all strides at once; on VGG16 alone.
    """

    at_once: bool = False


class FCN(nn.Module):
    """A classifier made dense, its scores fused with those of earlier pools and enlarged.

    Args:
        name: Registered name.
        config: See :class:`FCN32sConfig` and :class:`FCNSkipConfig`.
        finest: Stride of the finest scores: 32, 16 or 8.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size of at least one pixel.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``.

    Raises (forward):
        ValueError: If the input has another number of axes or channels.

    Paper: arXiv:1411.4038, in the form released by the authors: 100 zeros around the image, pools
    rounding up, crops from the top left, classifiers starting at zero, dropout of elements.

    Deviations:
        - Fixed upsampling works channel by channel; the release multiplies with the zeros too.
        - GoogLeNet was never released. It is BVLC's without its average pool, with its own 3 zeros
          around the image; images below 31 pixels are padded by repetition.
        - ``fcn16s`` and ``fcn8s`` on AlexNet and GoogLeNet are ours by the same rules: scores of
          the pools at strides 16 and 8, kernels of 2s - 1 taps.
        - Without trained weights hidden convolutions start from He's normal.
        - The networks with two heads (SIFT Flow) and with two streams (colour and HHA of NYUDv2)
          are not here; colour and depth in one are, with ``in_channels=4``.
        - Files of wkentaro/pytorch-fcn load by a key map; those of its at-once network have the
          same names as the other's and need ``at_once=True``.
    """

    head_names = ("score_fr", "score_pool16", "score_pool8")

    def __init__(self, name: str, config: FCN32sConfig, finest: int) -> None:
        super().__init__()
        check_choice(name, "backbone", config.backbone, BACKBONES)
        check_choice(name, "upsampling", config.upsampling, UPSAMPLINGS)
        at_once = getattr(config, "at_once", False)
        if at_once and config.backbone != "vgg16":
            raise ValueError(f"{name}: at_once needs backbone='vgg16', got {config.backbone!r}")
        self.name = name
        # What it starts from, if not from a classifier.
        self.coarser = f"fcn{min(2 * finest, 32)}s"
        self.in_channels = config.in_channels
        self.finest = finest
        self.geometry = geometry = GEOMETRIES[config.backbone]
        self.scales = AT_ONCE_SCALES if at_once else {}
        self.backbone, channels, skips = _make_trunk(config, geometry.border)
        if geometry.fc6:
            hidden = scale_channels(4096, config.width)
            self.fc6 = nn.Conv2d(channels, hidden, geometry.fc6)
            self.fc7 = nn.Conv2d(hidden, hidden, 1)
            channels = hidden
        self.dropout = nn.Dropout(geometry.dropout)
        self.score_fr = nn.Conv2d(channels, config.num_classes, 1)
        classes, learnt = config.num_classes, config.upsampling != "fixed"
        stride = 32
        while stride > finest:
            stride //= 2
            self.add_module(f"score_pool{stride}", nn.Conv2d(skips[stride], classes, 1))
            kernel = 4 if geometry.even else 3
            self.add_module(f"up{stride}", make_upsampling(classes, 2, kernel, learnt))
        kernel = 2 * finest - (0 if geometry.even else 1)
        learnt = config.upsampling == "learnt"
        self.up1 = make_upsampling(classes, finest, kernel, learnt)
        self._init()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image(self.name, image, self.in_channels)
        height, width = image.shape[-2:]
        scores = self.score(pad_to_valid(self.name, image, minimum=self.geometry.minimum))
        first = self.geometry.crops[self.finest]
        out = crop_to(self.up1(scores)[..., first:, first:], height, width)
        return {"out": in_layout_of(image, out)}

    def score(self, image: Tensor) -> Tensor:
        """Scores at the finest stride, before the last enlargement; they reach over the image."""
        x, pools = self.backbone(image)
        if isinstance(self.backbone, VGG16Features):
            pools = {16: pools[3], 8: pools[2]}
        if self.geometry.fc6:
            x = self.dropout(functional.relu(self.fc6(x)))
            x = functional.relu(self.fc7(x))
        scores = self.score_fr(self.dropout(x))
        stride = 32
        while stride > self.finest:
            stride //= 2
            scores = self.get_submodule(f"up{stride}")(scores)
            pool = pools[stride]
            if stride in self.scales:
                pool = pool * self.scales[stride]
            finer = self.get_submodule(f"score_pool{stride}")(pool)
            first = self.geometry.skip_crops[stride]
            finer = finer[..., first:, first:]
            if self.geometry.skip_crops[stride] == 0:
                # Zero padding by 3 leaves an odd row more on this side.
                scores = crop_to(scores, *finer.shape[-2:])
            scores = scores + crop_to(finer, *scores.shape[-2:])
        return scores

    def load_backbone(self, source: str | Path) -> None:
        """Start from a classifier, or from the next coarser FCN.

        - On VGG16, torchvision's name or file as in
          :func:`segkern.models.backbones.load_imagenet`: trunk, fc6 and fc7 are copied, the latter
          as convolutions (``"IMAGENET1K_FEATURES"`` has none, and they stay random).
        - On AlexNet and GoogLeNet, a file with the names of this trunk, ``conv1.weight``,
          ``inception_3a.conv1x1.weight``, and Caffe's weights: BGR. AlexNet's ``fc6`` and ``fc7``
          are copied where they are there, flat or as convolutions.
        - A file of ``fcn32s`` for ``fcn16s``, of ``fcn16s`` for ``fcn8s``, of ``fcn8s`` for
          ``crfasrnn``, in our names or those of a port: everything is copied but a last enlargement
          of another size; new scores start at zero and so add nothing.

        Raises:
            WeightsError: If the source does not fit; the message lists what.
        """
        if Path(source).is_file():
            state_dict = read_state_dict(Path(source))[0]
            if "score_fr.weight" in state_dict:
                port = find_port(self.coarser, state_dict)
                if port is not None:
                    state_dict = port.convert(state_dict)
                self._load_coarser(Path(source), state_dict)
                return
        if isinstance(self.backbone, VGG16Features):
            state_dict = load_imagenet(self, self.backbone, "vgg16", source)
            if "classifier.0.weight" in state_dict:
                layers = {"fc6": dense_layer(state_dict, "classifier.0", 7)}
                layers["fc7"] = dense_layer(state_dict, "classifier.3", 1)
                if all(weight.isfinite().all() for weight, _ in layers.values()):
                    self._load(
                        {
                            f"{name}.{kind}": value
                            for name, pair in layers.items()
                            for kind, value in zip(("weight", "bias"), pair, strict=True)
                        },
                        str(source),
                        ("backbone.", "score", "up"),
                    )
            return
        if not Path(source).is_file():
            trunk = self.config["backbone"]
            raise WeightsError(
                f"{self.name}: weights_backbone {str(source)!r} is no file, and torchvision's "
                f"{trunk} is another network than Caffe's; its names serve backbone='vgg16' alone"
            )
        given = {}
        for key, value in state_dict.items():
            if key.startswith(("fc6.", "fc7.")) and hasattr(self, "fc6"):
                layer = self.get_submodule(key[:3])
                weight = key.endswith("weight") and value.numel() == layer.weight.numel()
                given[key] = value.reshape(layer.weight.shape) if weight else value
            elif not key.startswith(("fc8.", "classifier.", "fc.")):
                given[f"backbone.{key}"] = value
        dense = () if "fc6.weight" in given else ("fc6.", "fc7.")
        self._load(given, str(source), (*dense, "score", "up"))
        self.recipe = dataclasses.replace(self.recipe, input="caffe")

    def _load_coarser(self, path: Path, state_dict: dict[str, Tensor]) -> None:
        own = self.state_dict()
        given = {
            key: value
            for key, value in state_dict.items()
            if not key.startswith("up1.") or (key in own and value.shape == own[key].shape)
        }
        self._load(given, path.name, (f"score_pool{self.finest}.", f"up{self.finest}.", "up1."))
        mode = read_card(path).get("input")
        if mode in INPUT_MODES:
            self.recipe = dataclasses.replace(self.recipe, input=mode)

    def _load(self, given: dict[str, Tensor], source: str, optional: tuple[str, ...]) -> None:
        """Copy ``given``, which has to hold all but the optional names, in their shapes."""
        own = self.state_dict()
        wrong = [
            f"{key}: {_shape(given.get(key))}, network {_shape(own.get(key))}"
            for key in sorted(own.keys() | given.keys())
            if _shape(given.get(key)) != _shape(own.get(key))
            and (key in given or not key.startswith(optional))
        ]
        if wrong:
            shown = "\n  ".join(wrong[:20] + ([f"and {len(wrong) - 20} more"] * bool(wrong[20:])))
            raise WeightsError(f"{self.name}: {source} does not fit:\n  {shown}")
        self.load_state_dict(given, strict=False)

    def _init(self) -> None:
        for key, module in self.named_modules():
            if not isinstance(module, nn.Conv2d):
                continue
            if key.startswith("score"):
                nn.init.zeros_(module.weight)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(module.bias)


def _make_trunk(config: FCN32sConfig, border: int) -> tuple[nn.Module, int, dict[int, int]]:
    if config.backbone != "vgg16":
        kind = CaffeNetFeatures if config.backbone == "alexnet" else GoogLeNetFeatures
        trunk = kind(config.in_channels, border, config.width)
        return trunk, trunk.channels, trunk.skip_channels
    trunk = VGG16Features(config.in_channels, [Pool(2, 2)] * 5, rate5=1, width=config.width)
    trunk.features[0].padding = (border, border)
    skips = {16: scale_channels(512, config.width), 8: scale_channels(256, config.width)}
    return trunk, trunk.channels, skips


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else str(tuple(tensor.shape))


# An epoch of SBD's training images, less those of the validation set, is 8498 iterations.
_NOTES = (
    "On the 8498 images of SBD's training set at their own size, one at a time and not augmented; "
    "the loss is summed over pixels, so that the rate is not to be scaled. {} iterations, "
    "started from {}. The CVPR paper trains batches of 20 at momentum 0.9 and 1e-4 instead, with "
    "the loss averaged and intermediate enlargements learnt (upsampling='intermediate')."
)
RECIPE_32S = Recipe(
    optimizer="sgd",
    lr=1e-10,
    momentum=0.99,
    weight_decay=5e-4,
    batch_size=1,
    epochs=12,
    input="caffe",
    loss_reduction="batch",
    bias_lr_mult=2.0,
    bias_decay_mult=0.0,
    notes=_NOTES.format("100 000", "VGG16"),
    source="fcn.berkeleyvision.org voc-fcn32s/solver.prototxt, train.prototxt; arXiv:1605.06211",
)
RECIPE_16S = dataclasses.replace(
    RECIPE_32S,
    lr=1e-12,
    notes=_NOTES.format("100 000", "FCN-32s (weights_backbone=)"),
    source=RECIPE_32S.source.replace("32s", "16s"),
)
RECIPE_8S = dataclasses.replace(
    RECIPE_32S,
    lr=1e-14,
    notes=_NOTES.format("100 000", "FCN-16s (weights_backbone=)"),
    source=RECIPE_32S.source.replace("32s", "8s"),
)
RECIPE_AT_ONCE = dataclasses.replace(
    RECIPE_32S,
    epochs=36,
    notes=_NOTES.format("300 000", "VGG16"),
    source=RECIPE_32S.source.replace("32s", "8s-atonce"),
)
RECIPE_ALEXNET = dataclasses.replace(
    RECIPE_32S,
    lr=1e-4,
    momentum=0.9,
    batch_size=20,
    micro_batch=1,
    epochs=236,
    loss_reduction="pixels",
    bias_lr_mult=1.0,
    bias_decay_mult=1.0,
    notes=(
        "100 000 iterations from CaffeNet, images at their own size. In the release the bias of "
        "the score alone has twice the rate and no decay."
    ),
    source="fcn.berkeleyvision.org voc-fcn-alexnet/solver.prototxt, train.prototxt",
)
RECIPE_GOOGLENET = dataclasses.replace(
    RECIPE_ALEXNET,
    lr=5e-5,
    epochs=175,
    bias_lr_mult=2.0,
    bias_decay_mult=0.0,
    notes="The paper prints the rate as 5^-5; at least 175 epochs. Nothing was released.",
    source="arXiv:1411.4038 section 4.3",
)


def _recipe_of(own: Recipe) -> Any:
    """The recipe by a config's backbone, ``own`` being that on VGG16."""

    def choose(config: FCN32sConfig) -> Recipe:
        if config.backbone == "alexnet":
            return RECIPE_ALEXNET
        if config.backbone == "googlenet":
            return RECIPE_GOOGLENET
        return RECIPE_AT_ONCE if getattr(config, "at_once", False) else own

    return choose


def _register(config: type, recipe: Recipe, **facts: Any) -> Any:
    """Enter an FCN into the list, with the recipes of its other backbones."""
    return register_model(
        config,
        paper=PAPER,
        recipe=recipe,
        recipe_of=_recipe_of(recipe),
        head="score_fr.bias",
        **facts,
    )


@_register(
    FCN32sConfig,
    RECIPE_32S,
    parameters=134_346_581,
    reported={
        "VOC 2011 val (736 images) mIoU, released": 63.6,
        "VOC 2011 val (736 images) mIoU, CVPR": 59.4,
        "VOC 2011 val mIoU, CVPR, backbone='alexnet'": 39.8,
        "VOC 2011 val (736 images) mIoU, released, backbone='alexnet'": 48.0,
        "VOC 2011 val mIoU, CVPR, backbone='googlenet'": 42.5,
    },
)
def fcn32s(config: FCN32sConfig) -> FCN:
    """FCN-32s on VGG16, 134.3 M parameters, 21 classes."""
    return FCN("fcn32s", config, 32)


@_register(
    FCNSkipConfig,
    RECIPE_16S,
    parameters=134_357_354,
    reported={
        "VOC 2011 val (736 images) mIoU, released": 65.0,
        "VOC 2011 val (736 images) mIoU, CVPR": 62.4,
        "SIFT Flow mIoU": 39.5,
    },
)
def fcn16s(config: FCNSkipConfig) -> FCN:
    """FCN-16s on VGG16, 134.4 M parameters, 21 classes."""
    return FCN("fcn16s", config, 16)


@_register(
    FCNSkipConfig,
    RECIPE_8S,
    parameters=134_362_751,
    reported={
        "VOC 2011 val (736 images) mIoU, released": 65.5,
        "VOC 2011 val (736 images) mIoU, released, at_once": 65.4,
        "VOC 2011 val (736 images) mIoU, CVPR": 62.7,
        "VOC 2012 test mIoU, CVPR": 62.2,
        "VOC 2012 test mIoU, released": 67.2,
    },
)
def fcn8s(config: FCNSkipConfig) -> FCN:
    """FCN-8s on VGG16, 134.4 M parameters, 21 classes."""
    return FCN("fcn8s", config, 8)
