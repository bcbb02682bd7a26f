"""Deep Parsing Network: VGG16 scores refined by one mean field iteration of learned layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from segkern import ops
from segkern.models._preprocess import colour_scale
from segkern.models._recipe import Recipe
from segkern.models._registry import register_model
from segkern.models._resize import resize_centres
from segkern.models._sizes import check_image, check_pad_mode, crop_to, pad_to_valid
from segkern.models._vgg import VGG16_STAGES, load_dense, load_vgg16, make_dropout, msra_
from segkern.nn.deep_parsing import MixtureMRF

PAPER = (
    "Z. Liu, X. Li, P. Luo, C. C. Loy, X. Tang: Semantic Image Segmentation via Deep Parsing "
    "Network, ICCV 2015, arXiv:1509.02634"
)

# Input pixels to one score, an axis: three pools are left of VGG16's five.
STRIDE = 8

# Dilation of the convolutions after each pool that was taken out, and of fc6 after both.
STAGE5_DILATION, FC6_DILATION = 2, 4

STAGES = (1, 2, 3, 4)

RECIPE = Recipe(
    optimizer="sgd",
    lr=1e-3,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="poly",
    power=0.9,
    batch_size=10,
    epochs=50,
    input="caffe",
    loss="cross_entropy",
    loss_reduction="pixels",
    bias_lr_mult=2.0,
    bias_decay_mult=0.0,
    crop=(512, 512),
    flip=True,
    notes=(
        "The paper trains in four stages, each from the weights of the one before: b1 to b11, then "
        "b12, then b13 and b14, the rest being fixed, then everything; here the option stage, or "
        "configure_stage. b1 to b10 start from VGG16. The numbers of the optimiser are this "
        "project's, those usual for VGG16; the paper's are not known to it."
    ),
    source="arXiv:1509.02634 for the stages; the numbers are this project's",
)


@dataclass(frozen=True)
class DeepParsingNetworkConfig:
    """Options of :class:`DeepParsingNetwork`.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels, 1 to 4; the local filter compares them as colours.
        fc_channels: Channels of fc6 and fc7; VGG16 has 4096.
        dropout: Rate after fc6 and after fc7.
        unary: Probabilities of b11: ``"softmax"`` or ``"sigmoid"``.
        filter_size: Window of b12.
        filter_product: Whether b12 multiplies by the marginal of the pixel itself, as the mean
            field formula does.
        context_size: Window of b13, odd.
        mixtures: Label contexts of each label.
        stage: Of the training, 1 to 4; see :meth:`DeepParsingNetwork.configure_stage`.
        pad_mode: How the right and the bottom are padded to multiples of 8 for b1 to b11:
            ``"replicate"``, ``"reflect"`` or ``"zeros"``.
        strict_size: Refuse other sizes with a ValueError instead.
    """

    num_classes: int = 21
    in_channels: int = 3
    fc_channels: int = 4096
    dropout: float = 0.5
    unary: str = "softmax"
    filter_size: int = 50
    filter_product: bool = True
    context_size: int = 9
    mixtures: int = 5
    stage: int = 4
    pad_mode: str = "replicate"
    strict_size: bool = False

    def __post_init__(self) -> None:
        name = "deep_parsing_network"
        check_pad_mode(name, self.pad_mode)
        for field in ("fc_channels", "filter_size", "context_size", "mixtures"):
            if getattr(self, field) < 1:
                raise ValueError(f"{name}: {field} must be positive, got {getattr(self, field)}")
        if self.in_channels > 4:
            raise ValueError(f"{name}: in_channels must be 1 to 4, got {self.in_channels}")
        if self.context_size % 2 == 0:
            raise ValueError(f"{name}: context_size must be odd, got {self.context_size}")
        if self.mixtures > 256:
            raise ValueError(f"{name}: mixtures must be at most 256, got {self.mixtures}")
        if self.unary not in ("softmax", "sigmoid"):
            raise ValueError(f"{name}: unary must be 'softmax' or 'sigmoid', got {self.unary!r}")
        if self.stage not in STAGES:
            raise ValueError(f"{name}: stage must be 1, 2, 3 or 4, got {self.stage!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"{name}: dropout must be from 0 to below 1, got {self.dropout}")


class ConvReLU(nn.Module):
    """Convolution with bias, then ReLU, of the input's size."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv(x), inplace=True)


class DenseVGG16(nn.Module):
    """VGG16's 13 convolutions at an eighth of the resolution: (N, 512, H/8, W/8).

    The last two pools are taken out, and stage 5 is dilated instead (b1 to b8).

    Args:
        in_channels: Channels of the image.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        channels = in_channels
        for i, widths in enumerate(VGG16_STAGES, start=1):
            stage = nn.Sequential()
            for j, width in enumerate(widths, start=1):
                dilation = STAGE5_DILATION if i == 5 else 1
                stage.add_module(str(j), ConvReLU(channels, width, 3, dilation))
                channels = width
            self.add_module(f"stage{i}", stage)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, len(VGG16_STAGES) + 1):
            x = self.get_submodule(f"stage{i}")(x)
            if i <= 3:
                x = functional.max_pool2d(x, 2)
        return x

    def convolutions(self) -> list[ConvReLU]:
        """The 13 blocks in order."""
        return [
            block
            for i in range(1, len(VGG16_STAGES) + 1)
            for block in self.get_submodule(f"stage{i}")
        ]


class DeepParsingNetwork(nn.Module):
    """Deep Parsing Network (DPN).

    Args:
        config: See :class:`DeepParsingNetworkConfig`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size, scaled as ``recipe.input`` says: the local
          filter reads colours back from it.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``: log-marginals, which serve as
          logits; in stage 1 the unary scores.

    Raises (forward):
        ValueError: If the input has another number of axes or channels; with ``strict_size``, if
            its size is not a multiple of 8.

    Paper: arXiv:1509.02634. The scores of b11 are upsampled bilinearly by 8 and cropped to the
    image, so that the Markov random field sees the image itself and nothing padded.

    Readings of the paper:
        - b12 and b13 end in a factor and a shift a channel, 1 and 0 at the start.
        - b11 gives probabilities by a softmax; ``unary="sigmoid"`` is the other reading.
        - b12's colours are in 0..1, its distances in units of 25 pixels, and its window reaches
          from -25 to 24; its weights start at 1/2500, the layer's parameters being factors of it.
    """

    recipe: Recipe = RECIPE

    def __init__(self, config: DeepParsingNetworkConfig) -> None:
        super().__init__()
        self.in_channels = config.in_channels
        self.unary = config.unary
        self.pad_mode = config.pad_mode
        self.strict_size = config.strict_size
        self.encoder = DenseVGG16(config.in_channels)
        self.fc6 = ConvReLU(512, config.fc_channels, 7, FC6_DILATION)
        self.dropout6 = make_dropout(config.dropout)
        self.fc7 = ConvReLU(config.fc_channels, config.fc_channels, 1)
        self.dropout7 = make_dropout(config.dropout)
        self.score = nn.Conv2d(config.fc_channels, config.num_classes, 1)
        self._initialise()
        self.mrf = MixtureMRF(
            config.num_classes,
            mixtures=config.mixtures,
            filter_size=config.filter_size,
            context_size=config.context_size,
            multiply=config.filter_product,
        )
        self.configure_stage(config.stage)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image("deep_parsing_network", image, self.in_channels)
        height, width = image.shape[-2:]
        scores = crop_to(self._scores(image), height, width)
        log_unary = functional.logsigmoid(scores) if self.unary == "sigmoid" else scores
        if self.stage == 1:
            return {"out": log_unary}
        unary = scores.sigmoid() if self.unary == "sigmoid" else scores.softmax(1)
        colours = self._colours(image)
        if self.stage == 2:
            penalty = self.mrf.local_penalty(unary, colours)
            return {"out": ops.mixture_mean_field(log_unary, penalty)}
        return {"out": self.mrf(log_unary, unary, colours)}

    def configure_stage(self, stage: int) -> None:
        """Choose what the forward pass ends with and which parameters are trained.

        Args:
            stage: 1: b1 to b11, whose scores are the output. 2: b12 alone, its penalties taken from
                the log unary. 3: b13 (and b14, b15, which have no parameters) alone. 4: everything.
                Parameters that are not trained have ``requires_grad`` False.

        Raises:
            ValueError: If there is no such stage.
        """
        if stage not in STAGES:
            raise ValueError(f"deep_parsing_network: stage must be 1, 2, 3 or 4, got {stage!r}")
        self.stage = stage
        if hasattr(self, "config"):
            self.config["stage"] = stage
        parts = {
            1: (self.encoder, self.fc6, self.fc7, self.score),
            2: (self.mrf.filter, self.mrf.filter_affine),
            3: (self.mrf.contexts, self.mrf.contexts_affine),
            4: (self,),
        }
        self.requires_grad_(False)
        for part in parts[stage]:
            part.requires_grad_(True)

    def load_backbone(self, source: str | Path) -> None:
        """Start b1 to b10 from torchvision's VGG16 (without batch norm).

        ``recipe.input`` becomes what the weights expect.

        Args:
            source: See :func:`segkern.models._vgg.load_vgg16`.

        Raises:
            WeightsError: Also if ``fc_channels`` is not VGG16's 4096, or the classifier is missing.
        """
        state_dict = load_vgg16(self, source)
        load_dense(self.fc6.conv, state_dict, "classifier.0")
        load_dense(self.fc7.conv, state_dict, "classifier.3")

    def _scores(self, image: Tensor) -> Tensor:
        image = pad_to_valid(
            "deep_parsing_network",
            image,
            multiple=STRIDE,
            minimum=STRIDE,
            pad_mode=self.pad_mode,
            strict_size=self.strict_size,
        )
        features = self.dropout6(self.fc6(self.encoder(image)))
        scores = self.score(self.dropout7(self.fc7(features)))
        return resize_centres(scores, image.shape[-2:])

    def _colours(self, image: Tensor) -> Tensor:
        """The image in a scale in which colours differ by 0 to 1."""
        factors = [factor / 255 for factor in colour_scale(self.recipe.input)]
        if self.in_channels != 3 or len(set(factors)) == 1:
            return image * (sum(factors) / len(factors))
        planes = zip(image.split(1, dim=1), factors)
        return torch.cat([plane * factor for plane, factor in planes], dim=1)

    def _initialise(self) -> None:
        msra_(self)
        nn.init.normal_(self.score.weight, std=0.01)


@register_model(
    DeepParsingNetworkConfig,
    parameters=134_525_440,
    paper=PAPER,
    recipe=RECIPE,
    head="score.bias",
    reported={"PASCAL VOC 2012 test mIoU": 77.5},
)
def deep_parsing_network(config: DeepParsingNetworkConfig) -> DeepParsingNetwork:
    """Deep Parsing Network, 135 M parameters, 21 classes."""
    return DeepParsingNetwork(config)
