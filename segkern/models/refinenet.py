"""RefineNet: a ResNet's stages, the deepest first, refined, fused and pooled in chains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from segkern.models._options import check_choice
from segkern.models._recipe import Recipe
from segkern.models._registry import register_model
from segkern.models._resize import resize_corners
from segkern.models._sizes import check_image
from segkern.models._weights import WeightsError
from segkern.models.backbones import RESNETS, ResNet, load_imagenet
from segkern.models.backbones.resnet import scale_channels
from segkern.nn import FrozenBatchNorm2d, freeze_batch_norm

PAPER = (
    "G. Lin, A. Milan, C. Shen, I. Reid: RefineNet: Multi-Path Refinement Networks for "
    "High-Resolution Semantic Segmentation, CVPR 2017, arXiv:1611.06612"
)

# Channels of the refinement block of each stage of the trunk, stage 1 first.
WIDTHS = (256, 256, 256, 512)

DROPOUT = 0.5


@dataclass(frozen=True)
class RefineNetConfig:
    """Options of :class:`RefineNet`.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels.
        backbone: ``"resnet101"``, ``"resnet50"`` or ``"resnet152"``; ``"resnet17"`` for trials.
        stride_in: Of the trunk: ``"1x1"`` as the release, or ``"3x3"`` for torchvision's weights.
        pool_blocks: Blocks of each chained residual pooling: 4 as released, 2 in the paper's text.
        pool_order: In these: ``"original"``, a pool before its convolution, as the paper and its
            VOC and Cityscapes networks; ``"improved"``, after it, as the training code and the
            networks of 2018. Weights of one do not serve the other.
        width: Factor on all channels; 1 is the paper's.
    """

    num_classes: int = 21
    in_channels: int = 3
    backbone: str = "resnet101"
    stride_in: str = "1x1"
    pool_blocks: int = 4
    pool_order: str = "original"
    width: float = 1.0


class ResidualUnit(nn.Module):
    """``x`` plus two 3x3 convolutions with a ReLU before each; the first has a bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(functional.relu(self.conv1(functional.relu(x))))


class ChainedPooling(nn.ModuleList):
    """The rectified input and what a chain of 5x5 pools and 3x3 convolutions gives, summed."""

    def __init__(self, channels: int, blocks: int, pool_first: bool) -> None:
        super().__init__(_conv(channels, channels) for _ in range(blocks))
        self.pool_first = pool_first

    def forward(self, x: Tensor) -> Tensor:
        total = step = functional.relu(x)
        for conv in self:
            step = conv(_pool(step)) if self.pool_first else _pool(conv(step))
            total = total + step
        return total


class Refinement(nn.Module):
    """The block of one stage: adapt, fuse with the block below, pool in a chain, refine.

    Args:
        tap: Channels of the trunk's stage.
        below: Channels of the block below, or ``None`` for the deepest.
        channels: Of the output.
        dropout: Rate of the elementwise dropout on the stage.
        blocks: Of the chained pooling.
        pool_first: Their order.
    """

    def __init__(
        self,
        tap: int,
        below: int | None,
        channels: int,
        dropout: float,
        blocks: int,
        pool_first: bool,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.adapt = _conv(tap, channels)
        self.units_in = nn.Sequential(*(ResidualUnit(channels) for _ in range(2)))
        self.fuse = self.fuse_below = None
        if below is not None:
            self.fuse = _conv(channels, channels)
            self.fuse_below = _conv(below, channels)
        self.pool = ChainedPooling(channels, blocks, pool_first)
        self.units_out = nn.Sequential(*(ResidualUnit(channels) for _ in range(3)))

    def forward(self, tap: Tensor, below: Tensor | None) -> Tensor:
        x = self.units_in(self.adapt(self.dropout(tap)))
        if below is not None:
            x = self.fuse(x) + resize_corners(self.fuse_below(below), x.shape[-2:])
        return self.units_out(self.pool(x))


class RefineNet(nn.Module):
    """RefineNet of four cascaded blocks, one per stage of the trunk.

    Args:
        config: See :class:`RefineNetConfig`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``; in training also ``"logits"``,
          the scores at 1/4 of the image, which the paper's loss is on.

    Raises (forward):
        ValueError: If the input has another number of axes or channels.

    Paper: arXiv:1611.06612. Batch norm of the trunk has given statistics; its scale and shift
    learn. There is none after it. The three units after each pooling are the block's output unit
    and the two input units of the next, or before the classifier.

    Deviations from the release:
        - Maps are enlarged bilinearly with corners on corners, as the converted networks do; the
          release resizes bicubically and propagates gradients through a plain reduction.
        - The networks of one block, of two, and of two scales (two ResNets) are not here.

    The converted networks (DrSleep/refinenet-pytorch) load by a key map.
    """

    def __init__(self, config: RefineNetConfig) -> None:
        super().__init__()
        check_choice("refinenet", "backbone", config.backbone, tuple(RESNETS))
        check_choice("refinenet", "pool_order", config.pool_order, ("original", "improved"))
        blocks = config.pool_blocks
        if isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 1:
            raise ValueError(f"refinenet: pool_blocks must be a positive int, got {blocks!r}")
        self.in_channels = config.in_channels
        self.backbone = ResNet(
            "refinenet",
            config.backbone,
            config.in_channels,
            output_stride=32,
            stride_in=config.stride_in,
            width=config.width,
        )
        freeze_batch_norm(self.backbone)
        for module in self.backbone.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.requires_grad_(True)
        below = None
        for i in (4, 3, 2, 1):
            channels = scale_channels(WIDTHS[i - 1], config.width)
            tap = self.backbone.stage_channels[i - 1]
            dropout = DROPOUT if i > 2 else 0.0
            pool_first = config.pool_order == "original"
            block = Refinement(tap, below, channels, dropout, blocks, pool_first)
            self.add_module(f"refine{i}", block)
            below = channels
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Conv2d(channels, config.num_classes, 3, padding=1)
        self.head_names = tuple(name for name, _ in self.named_children() if name != "backbone")
        for name in self.head_names:
            for module in self.get_submodule(name).modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.normal_(module.weight, std=0.01)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image("refinenet", image, self.in_channels)
        stages = self.backbone.stages(image)
        x = None
        for i in (4, 3, 2, 1):
            x = self.get_submodule(f"refine{i}")(stages[i], x)
        logits = self.classifier(self.dropout(x))
        out = resize_corners(logits, image.shape[-2:])
        return {"out": out, "logits": logits} if self.training else {"out": out}

    def load_backbone(self, source: str | Path) -> None:
        """Start the trunk from ImageNet; ``recipe.input`` becomes ``"imagenet"``.

        Args:
            source: See :func:`segkern.models.backbones.load_imagenet`.

        Raises:
            WeightsError: If it does not fit, or is torchvision's for a network with its stride in
                the 1x1 convolutions, which has the same names and is another network.
        """
        if self.config["stride_in"] == "1x1" and not Path(source).is_file():
            raise WeightsError(
                "refinenet: torchvision's ResNet has its stride in the 3x3 convolutions; build the "
                "network with stride_in='3x3' to start from it"
            )
        load_imagenet(self, self.backbone, self.config["backbone"], source)


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)


def _pool(x: Tensor) -> Tensor:
    """5x5 maxima at every pixel; beyond the border is nothing."""
    return functional.max_pool2d(x, 5, stride=1, padding=2)


# Trunk at a tenth of the rate: 5e-4 for the blocks.
RECIPE = Recipe(
    optimizer="sgd",
    lr=5e-5,
    momentum=0.9,
    weight_decay=5e-4,
    batch_size=1,
    epochs=100,
    input="rgb_128",
    head_lr_mult=10.0,
    outputs={"logits": 1.0},
    scale=(0.7, 1.3),
    scale_step=0.1,
    crop=(400, 400),
    flip=True,
    notes=(
        "The rate is divided by 10 by hand when the result stays; the number of epochs is not "
        "given, 100 is ours. Crops of 600 on Cityscapes, drawn so that classes are balanced. Not "
        "here, since they are of its tests as of its training: images are brought to a short edge "
        "of 450 to 1100 first, and the network's input is enlarged by 1.2. Loss at 1/4 with the "
        "nearest labels. Measured on scales 0.4 to 1.2. Converted weights want torchvision's "
        "scaling of the input."
    ),
    source="arXiv:1611.06612 section 4; guosheng/refinenet main/demo_refinenet_train.m",
)


@register_model(
    RefineNetConfig,
    parameters=118_052_437,
    paper=PAPER,
    recipe=RECIPE,
    head="classifier.bias",
    reported={
        "VOC 2012 test mIoU, ResNet-152, scales": 83.4,
        "VOC 2012 val mIoU, ResNet-101": 80.5,
        "Cityscapes test class IoU, ResNet-101": 73.6,
        "NYUDv2 mIoU, ResNet-152": 46.5,
        "ADE20K val mIoU, ResNet-152": 40.7,
    },
)
def refinenet(config: RefineNetConfig) -> RefineNet:
    """RefineNet on ResNet-101, 118.1 M parameters, 21 classes."""
    return RefineNet(config)
