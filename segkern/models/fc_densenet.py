"""FC-DenseNet, the hundred-layer tiramisu: dense blocks down and up, with skips between them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from segkern.models._options import as_tuple, check_choice
from segkern.models._recipe import Recipe
from segkern.models._registry import register_model
from segkern.models._sizes import (
    check_batch_statistics,
    check_image,
    check_pad_mode,
    crop_to,
    pad_to_valid,
)

PAPER = (
    "S. Jégou, M. Drozdzal, D. Vazquez, A. Romero, Y. Bengio: The One Hundred Layers Tiramisu: "
    "Fully Convolutional DenseNets for Semantic Segmentation, CVPRW 2017, arXiv:1611.09326"
)

# Lasagne's, with which the networks were trained.
NORM_EPS = 1e-4

# Pools of the way down, and the smallest image that they leave a pixel of.
POOLS = 5
SMALLEST = 2**POOLS


@dataclass(frozen=True)
class FCDenseNet56Config:
    """Options of :class:`FCDenseNet`.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels.
        growth_rate: Channels that a layer adds to the stack.
        layers: Layers of the 11 blocks: 5 on the way down, the bottleneck, 5 on the way up.
        first_channels: Of the first convolution.
        dropout: Rate of the elementwise dropout after every convolution of the blocks.
        statistics: What batch norm uses in evaluation: ``"running"``, averages kept in training,
            or ``"batch"``, the statistics of the images at hand, as the authors measured: scores
            then depend on the images that share the batch.
        pad_mode: How images smaller than 32 pixels are padded: ``"replicate"``, ``"reflect"`` or
            ``"zeros"``.
    """

    num_classes: int = 11
    in_channels: int = 3
    growth_rate: int = 12
    layers: tuple[int, ...] = (4,) * 11
    first_channels: int = 48
    dropout: float = 0.2
    statistics: str = "running"
    pad_mode: str = "replicate"

    def __post_init__(self) -> None:
        as_tuple(self, "layers")


@dataclass(frozen=True)
class FCDenseNet67Config(FCDenseNet56Config):
    """Options of :class:`FCDenseNet` with the defaults of the network of 67 layers."""

    growth_rate: int = 16
    layers: tuple[int, ...] = (5,) * 11


@dataclass(frozen=True)
class FCDenseNet103Config(FCDenseNet56Config):
    """Options of :class:`FCDenseNet` with the defaults of the network of 103 layers."""

    growth_rate: int = 16
    layers: tuple[int, ...] = (4, 5, 7, 10, 12, 15, 12, 10, 7, 5, 4)


class Norm(nn.BatchNorm2d):
    """Batch norm that may use the batch's own statistics in evaluation too."""

    def __init__(self, channels: int, of_batch: bool) -> None:
        super().__init__(channels, eps=NORM_EPS)
        self.of_batch = of_batch

    def forward(self, x: Tensor) -> Tensor:
        if self.training or not self.of_batch:
            return super().forward(x)
        return functional.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


class Layer(nn.Module):
    """Batch norm, ReLU, convolution with bias, dropout."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, config: FCDenseNet56Config
    ) -> None:
        super().__init__()
        self.norm = Norm(in_channels, config.statistics == "batch")
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.conv(functional.relu(self.norm(x), inplace=True)))


class DenseBlock(nn.ModuleList):
    """Layers that each see the input and all outputs before: ``(N, C, H, W)`` to the stack.

    The stack has the input's channels first, then those that the layers added.
    """

    def __init__(self, in_channels: int, layers: int, config: FCDenseNet56Config) -> None:
        growth = config.growth_rate
        super().__init__(Layer(in_channels + i * growth, growth, 3, config) for i in range(layers))
        self.in_channels = in_channels
        self.out_channels = in_channels + layers * growth

    def forward(self, stack: Tensor) -> Tensor:
        for layer in self:
            stack = torch.cat([stack, layer(stack)], dim=1)
        return stack


class FCDenseNet(nn.Module):
    """FC-DenseNet, as the authors' released definition has it.

    Args:
        name: Registered name, for error messages.
        config: See :class:`FCDenseNet56Config`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size of at least one pixel; images of fewer than
          32 rows or columns are padded to 32 inside and the scores cropped back.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``.

    Raises (forward):
        ValueError: If the input has another number of axes or channels, or if one image comes
            down to a 1x1 map before a batch norm that uses its statistics (63 pixels or fewer
            per axis).

    Paper: arXiv:1611.09326. Pools round down, transposed convolutions give 2h + 1 rows of which
    the middle ones are kept. On the way up only what a block added goes further; the classifier
    sees the whole last stack. The paper's table 2 prints stacks of 880, 1072, 800 and 368 channels
    for the network of 103 layers, 16 fewer than the release and this network have, and 1.5 M
    parameters for that of 56, which no reading of the code gives.

    Deviation from the release: evaluation uses running averages unless ``statistics="batch"``,
    with which the reported results were measured. Files of bfortuner/pytorch_tiramisu load by a key
    map, under any of the three names.
    """

    def __init__(self, name: str, config: FCDenseNet56Config) -> None:
        super().__init__()
        _check(name, config)
        self.name, self.in_channels, self.pad_mode = name, config.in_channels, config.pad_mode
        self.uses_batch = config.statistics == "batch"
        self.first = nn.Conv2d(config.in_channels, config.first_channels, 3, padding=1)
        channels, skips = config.first_channels, []
        for i, layers in enumerate(config.layers[:POOLS], start=1):
            block = DenseBlock(channels, layers, config)
            channels = block.out_channels
            skips.append(channels)
            self.add_module(f"down{i}", block)
            self.add_module(f"transition_down{i}", Layer(channels, channels, 1, config))
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = DenseBlock(channels, config.layers[POOLS], config)
        block = self.bottleneck
        for i, layers in zip(range(POOLS, 0, -1), config.layers[POOLS + 1 :], strict=True):
            added = block.out_channels - block.in_channels
            self.add_module(f"transition_up{i}", nn.ConvTranspose2d(added, added, 3, stride=2))
            block = DenseBlock(added + skips[i - 1], layers, config)
            self.add_module(f"up{i}", block)
        self.classifier = nn.Conv2d(block.out_channels, config.num_classes, 1)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_uniform_(module.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image(self.name, image, self.in_channels)
        height, width = image.shape[-2:]
        padded = pad_to_valid(self.name, image, minimum=SMALLEST, pad_mode=self.pad_mode)
        x = self.first(padded)
        skips = []
        for i in range(1, POOLS + 1):
            x = self.get_submodule(f"down{i}")(x)
            skips.append(x)
            x = self.pool(self.get_submodule(f"transition_down{i}")(x))
        uses_batch = self.training or self.uses_batch
        check_batch_statistics(self.name, "bottleneck.0.norm", x, uses_batch)
        block, x = self.bottleneck, self.bottleneck(x)
        for i in range(POOLS, 0, -1):
            x = self.get_submodule(f"transition_up{i}")(x[:, block.in_channels :])
            x = torch.cat([_middle(x, skips[i - 1]), skips[i - 1]], dim=1)
            block = self.get_submodule(f"up{i}")
            x = block(x)
        return {"out": crop_to(self.classifier(x), height, width)}


def _middle(x: Tensor, like: Tensor) -> Tensor:
    """The middle of ``x`` at the size of ``like``."""
    height, width = like.shape[-2:]
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


def _check(name: str, config: FCDenseNet56Config) -> None:
    check_choice(name, "statistics", config.statistics, ("running", "batch"))
    check_pad_mode(name, config.pad_mode)
    for key in ("growth_rate", "first_channels"):
        value = getattr(config, key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: {key} must be a positive int, got {value!r}")
    if len(config.layers) != 2 * POOLS + 1 or any(n < 1 for n in config.layers):
        raise ValueError(
            f"{name}: layers must be {2 * POOLS + 1} positive ints, got {config.layers}"
        )
    if not 0 <= config.dropout < 1:
        raise ValueError(f"{name}: dropout must be in [0, 1), got {config.dropout}")


RECIPE_103 = Recipe(
    optimizer="rmsprop",
    lr=1e-3,
    smoothing=0.9,
    square_eps=1e-6,
    weight_decay=2e-4,
    schedule="step",
    step_epochs=1,
    gamma=0.995,
    batch_size=3,
    epochs=750,
    patience=150,
    input="unit",
    bias_decay_mult=0.0,
    norm_shift_decay=False,
    crop=(224, 224),
    flip=True,
    notes=(
        "The release's patience, the paper has 100 epochs; then fine-tuned on whole images, one a "
        "step, at lr 1e-4. The release adds 1e-4 times the sum of squares to the loss, without a "
        "half. The paper prints vertical flips, the code mirrors horizontally. Measured with batch "
        "norm on the statistics of test batches of 10, see the option statistics. 11 classes, no "
        "class weights."
    ),
    source="arXiv:1611.09326 section 4; SimJeg/FC-DenseNet train.py, config/FC-DenseNet103.py",
)

RECIPE = replace(RECIPE_103, source="arXiv:1611.09326 section 4; SimJeg/FC-DenseNet train.py")


_register = partial(register_model, paper=PAPER, head="classifier.bias")


@_register(
    FCDenseNet56Config,
    parameters=1_376_795,
    recipe=RECIPE,
    reported={"CamVid test mIoU": 58.9, "CamVid test global accuracy": 88.9},
)
def fc_densenet56(config: FCDenseNet56Config) -> FCDenseNet:
    """FC-DenseNet56, 1.4 M parameters, 11 classes."""
    return FCDenseNet("fc_densenet56", config)


@_register(
    FCDenseNet67Config,
    parameters=3_463_243,
    recipe=RECIPE,
    reported={"CamVid test mIoU": 65.8, "CamVid test global accuracy": 90.8},
)
def fc_densenet67(config: FCDenseNet67Config) -> FCDenseNet:
    """FC-DenseNet67, 3.5 M parameters, 11 classes."""
    return FCDenseNet("fc_densenet67", config)


@_register(
    FCDenseNet103Config,
    parameters=9_322_091,
    recipe=RECIPE_103,
    reported={"CamVid test mIoU": 66.9, "CamVid test global accuracy": 91.5},
)
def fc_densenet103(config: FCDenseNet103Config) -> FCDenseNet:
    """FC-DenseNet103, 9.3 M parameters, 11 classes."""
    return FCDenseNet("fc_densenet103", config)
