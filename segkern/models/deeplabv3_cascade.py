"""DeepLab v3's other form: copies of the last layer one after another, with growing rates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from segkern.models import deeplabv3 as pyramid
from segkern.models._options import as_tuple, check_choice
from segkern.models._registry import register_model
from segkern.models._resize import resize_corners
from segkern.models._sizes import check_image
from segkern.models.backbones import RESNETS, ResNet, load_imagenet


@dataclass(frozen=True)
class DeepLabV3CascadeConfig:
    """Options of :class:`DeepLabV3Cascade`; those not listed as :class:`DeepLabV3Config`.

    Attributes:
        blocks: The last layer, 4 to 7, numbered as ResNet's ``block4``, which is ``layer4``.
        multi_grid: Unit rates of the blocks of layer 4 and of each copy.
    """

    num_classes: int = 21
    in_channels: int = 3
    backbone: str = "resnet101"
    output_stride: int = 16
    stem: str = "plain"
    blocks: int = 7
    multi_grid: tuple[int, ...] = (1, 2, 1)
    norm_momentum: float | None = None
    width: float = 1.0

    def __post_init__(self) -> None:
        as_tuple(self, "multi_grid")


class DeepLabV3Cascade(nn.Module):
    """A ResNet whose layer 4 is followed by up to three copies of it, and a 1x1 classifier.

    Args:
        config: See :class:`DeepLabV3CascadeConfig`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``.

    Raises (forward):
        ValueError: If the input has another number of axes or channels.

    Paper: arXiv:1706.05587, section 3.2. At output stride 16 the layers 4 to 7 have the rates 2, 4,
    8 and 16, times the multi-grid. Copies have three blocks of 2048 channels and no projection;
    they start from random weights, as no pre-training has them. Deviations as :class:`DeepLabV3`.
    """

    def __init__(self, config: DeepLabV3CascadeConfig) -> None:
        super().__init__()
        check_choice("deeplabv3_cascade", "backbone", config.backbone, tuple(RESNETS))
        check_choice("deeplabv3_cascade", "blocks", config.blocks, (4, 5, 6, 7))
        self.in_channels = config.in_channels
        momentum = config.norm_momentum
        self.backbone = ResNet(
            "deeplabv3_cascade",
            config.backbone,
            config.in_channels,
            output_stride=config.output_stride,
            stem=config.stem,
            multi_grid=config.multi_grid,
            layers=config.blocks,
            width=config.width,
            momentum=pyramid.TRUNK_MOMENTUM if momentum is None else momentum,
        )
        self.classifier = nn.Conv2d(self.backbone.channels, config.num_classes, 1)
        pyramid.init_head(nn.Identity(), self.classifier)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image("deeplabv3_cascade", image, self.in_channels)
        features, _ = self.backbone(image)
        return {"out": resize_corners(self.classifier(features), image.shape[-2:])}

    def load_backbone(self, source: str | Path) -> None:
        """Start stem and layers 1 to 4 from ImageNet; ``recipe.input`` becomes ``"imagenet"``.

        Args:
            source: See :func:`segkern.models.backbones.load_imagenet`.

        Raises:
            WeightsError: If it does not fit.
        """
        layers = [getattr(self.backbone, f"layer{i}") for i in range(5, self.backbone.layers + 1)]
        trunk = nn.Module()
        for key, child in self.backbone.named_children():
            if child not in layers:
                trunk.add_module(key, child)
        load_imagenet(self, trunk, self.config["backbone"], source)


@register_model(
    DeepLabV3CascadeConfig,
    parameters=82_706_517,
    paper=pyramid.PAPER,
    recipe=pyramid.RECIPE,
    head="classifier.bias",
    reported={
        "VOC 2012 val mIoU, block4, output stride 16": 68.39,
        "VOC 2012 val mIoU, block5, output stride 16": 73.21,
        "VOC 2012 val mIoU, block6, output stride 16": 75.34,
        "VOC 2012 val mIoU, block7, output stride 16": 75.76,
    },
)
def deeplabv3_cascade(config: DeepLabV3CascadeConfig) -> DeepLabV3Cascade:
    """DeepLab v3 with blocks up to 7 in cascade on ResNet-101, 82.7 M parameters, 21 classes."""
    return DeepLabV3Cascade(config)
