"""GCN: score maps from large separable kernels at each stage of a ResNet, refined and summed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from segkern.models._options import check_choice
from segkern.models._recipe import Recipe
from segkern.models._registry import register_model
from segkern.models._resize import resize_corners
from segkern.models._sizes import check_batch_statistics, check_image
from segkern.models.backbones import RESNETS, ResNet, load_imagenet

PAPER = (
    "C. Peng, X. Zhang, G. Yu, G. Luo, J. Sun: Large Kernel Matters: Improve Semantic Segmentation "
    "by Global Convolutional Network, CVPR 2017, arXiv:1703.02719"
)


@dataclass(frozen=True)
class GCNConfig:
    """Options of :class:`GCN`.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels.
        backbone: ``"resnet152"``, ``"resnet101"`` or ``"resnet50"``; ``"resnet17"`` for trials.
        kernel_size: k of the large kernels, odd; 15 for crops of 512, 25 for 800 (Cityscapes).
        upsample: ``"bilinear"``, corners on corners, to the size of the map it meets; or
            ``"deconv"``, learned 4x4 transposed convolutions of stride 2, started as bilinear.
        width: Factor on the trunk's channels; 1 is the paper's.
    """

    num_classes: int = 21
    in_channels: int = 3
    backbone: str = "resnet152"
    kernel_size: int = 15
    upsample: str = "bilinear"
    width: float = 1.0


class GlobalConvolution(nn.Module):
    """k x 1 after 1 x k plus 1 x k after k x 1, with biases and nothing between.

    ``(N, in_channels, H, W)`` to ``(N, out_channels, H, W)``: ``2k(cC + C²) + 4C`` weights where a
    dense k x k kernel has ``k²cC + C``.
    """

    def __init__(self, in_channels: int, out_channels: int, k: int) -> None:
        super().__init__()
        pad = k // 2
        self.a1 = nn.Conv2d(in_channels, out_channels, (k, 1), padding=(pad, 0))
        self.a2 = nn.Conv2d(out_channels, out_channels, (1, k), padding=(0, pad))
        self.b1 = nn.Conv2d(in_channels, out_channels, (1, k), padding=(0, pad))
        self.b2 = nn.Conv2d(out_channels, out_channels, (k, 1), padding=(pad, 0))

    def forward(self, x: Tensor) -> Tensor:
        return self.a2(self.a1(x)) + self.b2(self.b1(x))


class BoundaryRefinement(nn.Module):
    """A residual of two 3x3 convolutions with a ReLU between, on score maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(functional.relu(self.conv1(x)))


class GCN(nn.Module):
    """Global convolutional network with boundary refinement.

    Args:
        config: See :class:`GCNConfig`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size; multiples of 32 leave no remainder.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``.

    Raises (forward):
        ValueError: If the input has another number of axes or channels, or in training for one
            image of 32x32 or less, whose last features have no variance.

    Paper: arXiv:1703.02719. From the deepest map up, the scores are enlarged, added to those of the
    next stage and refined; twice more at the end, to half and to the whole size. The trunk's names
    and strides are torchvision's. No code was released: this is the paper's text.

    Deviation from the paper: it enlarges by transposed convolutions whose kernel it does not give;
    here bilinearly without parameters, unless ``upsample="deconv"``. Its ResNet with large kernels
    inside (ResNet-GCN) is not here, as its widths are not given. Files of
    zijundeng/pytorch-semantic-segmentation load by a key map.
    """

    def __init__(self, config: GCNConfig) -> None:
        super().__init__()
        check_choice("gcn", "backbone", config.backbone, tuple(RESNETS))
        check_choice("gcn", "upsample", config.upsample, ("bilinear", "deconv"))
        k = config.kernel_size
        if isinstance(k, bool) or not isinstance(k, int) or k < 1 or k % 2 == 0:
            raise ValueError(f"gcn: kernel_size must be an odd positive int, got {k!r}")
        self.in_channels = config.in_channels
        self.backbone = ResNet(
            "gcn", config.backbone, config.in_channels, output_stride=32, width=config.width
        )
        classes = config.num_classes
        for i, channels in enumerate(self.backbone.stage_channels, start=1):
            self.add_module(f"gcn{i}", GlobalConvolution(channels, classes, k))
            self.add_module(f"refine{i}", BoundaryRefinement(classes))
        # After each addition, and at half and at the whole size.
        self.refine_sums = nn.ModuleList(BoundaryRefinement(classes) for _ in range(5))
        self.deconvs = None
        if config.upsample == "deconv":
            self.deconvs = nn.ModuleList(_deconv(classes) for _ in range(5))
        names = [f"{part}{i}" for part in ("gcn", "refine") for i in range(1, 5)]
        self.head_names = (*names, "refine_sums", "deconvs")
        for name in (*names, "refine_sums"):
            for module in self.get_submodule(name).modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.normal_(module.weight, std=0.01)
                    nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image("gcn", image, self.in_channels)
        last = image[..., ::32, ::32]
        check_batch_statistics("gcn", "backbone.layer4.0.bn2", last, self.training)
        stages = self.backbone.stages(image)
        maps = [
            self.get_submodule(f"refine{i}")(self.get_submodule(f"gcn{i}")(stages[i]))
            for i in range(1, 5)
        ]
        x = maps[3]
        for step, beside in enumerate((maps[2], maps[1], maps[0])):
            x = self.refine_sums[step](self._enlarge(x, step, beside.shape[-2:]) + beside)
        height, width = image.shape[-2:]
        half = ((height + 1) // 2, (width + 1) // 2)
        x = self.refine_sums[3](self._enlarge(x, 3, half))
        return {"out": self.refine_sums[4](self._enlarge(x, 4, (height, width)))}

    def _enlarge(self, x: Tensor, step: int, size: tuple[int, int]) -> Tensor:
        if self.deconvs is None:
            return resize_corners(x, size)
        return self.deconvs[step](x)[..., : size[0], : size[1]]

    def load_backbone(self, source: str | Path) -> None:
        """Start the trunk from ImageNet; ``recipe.input`` becomes ``"imagenet"``.

        Args:
            source: See :func:`segkern.models.backbones.load_imagenet`.
        """
        load_imagenet(self, self.backbone, self.config["backbone"], source)


def _deconv(channels: int) -> nn.ConvTranspose2d:
    """Doubles the size, bilinearly at the start."""
    layer = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False)
    row = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        layer.weight.zero_()
        diagonal = torch.arange(channels)
        layer.weight[diagonal, diagonal] = torch.outer(row, row)
    return layer


# The paper gives no number of iterations; 30 epochs of trainaug are as many as FCN's.
RECIPE = Recipe(
    optimizer="sgd",
    lr=1e-4,
    momentum=0.99,
    weight_decay=5e-4,
    batch_size=1,
    epochs=30,
    input="imagenet",
    crop=(512, 512),
    flip=True,
    notes=(
        "Batch, momentum and weight decay are the paper's; learning rate, its schedule and the "
        "number of epochs are not in it, those here are ours. Three stages: COCO with SBD and VOC "
        "on images padded to 640, SBD with VOC on 512, VOC on 512. Only the mean is subtracted "
        "there; torchvision's ImageNet weights want its scaling. Cityscapes: crops of 800 with "
        "kernel_size 25, measured on four windows of 1024x1024."
    ),
    source="arXiv:1703.02719 section 4",
)


@register_model(
    GCNConfig,
    parameters=60_688_084,
    paper=PAPER,
    recipe=RECIPE,
    head="refine_sums.4.conv2.bias",
    reported={
        "VOC 2012 val mIoU": 80.3,
        "VOC 2012 val mIoU, scales": 80.4,
        "VOC 2012 val mIoU, scales, CRF": 81.0,
        "VOC 2012 test mIoU": 82.2,
        "VOC 2012 val mIoU, ablation, ResNet-50, k = 15": 74.5,
        "VOC 2012 val mIoU, ablation, ResNet-50, k = 15, boundary refinement": 74.7,
        "Cityscapes val class IoU": 76.9,
        "Cityscapes test class IoU": 76.9,
    },
)
def gcn(config: GCNConfig) -> GCN:
    """GCN with boundary refinement on ResNet-152, 60.7 M parameters, 21 classes."""
    return GCN(config)
