"""DeepLab v1: VGG16 with holes, in the variants of its first fully connected layer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from segkern.models._options import check_choice
from segkern.models._recipe import Recipe
from segkern.models._refine import CRFSettings, check_crf, refine
from segkern.models._registry import register_model
from segkern.models._resize import pad_to_grid, resize_corners
from segkern.models._sizes import check_image, crop_to
from segkern.models.backbones import VGG16Features, load_imagenet
from segkern.models.backbones.imagenet import decimate, dense_layer
from segkern.models.backbones.resnet import scale_channels
from segkern.models.backbones.vgg import Pool
from segkern.nn import AtrousConv2d

PAPER = (
    "L.-C. Chen, G. Papandreou, I. Kokkinos, K. Murphy, A. L. Yuille: Semantic Image Segmentation "
    "with Deep Convolutional Nets and Fully Connected CRFs, ICLR 2015, arXiv:1412.7062"
)

DROPOUT = 0.5

# The trunk of LargeFOV keeps 8k + 1 pixels aligned through three pools of 3x3; the other has pools
# of 2x2 with a border pixel, for 8k + 2.
LARGE_FOV_POOLS = (*[Pool(3, 2, 1)] * 3, Pool(3, 1, 1), Pool(3, 1, 1))
FIRST_POOLS = (*[Pool(2, 2, 1)] * 3, Pool(2, 1, 0), Pool(3, 1, 1))

CRF = CRFSettings(bilateral=(50.0, 10.0, 5.0), gaussian=(3.0, 3.0))


@dataclass(frozen=True)
class Variant:
    """fc6 of a variant: kernel size, rate, channels; and the border pixels of its trunk."""

    kernel: int
    rate: int
    channels: int
    border: int = 0


VARIANTS = {
    "largefov": Variant(3, 12, 1024),
    "7x7": Variant(7, 4, 4096, border=1),
    "4x4": Variant(4, 8, 4096, border=1),
    "4x4_rate4": Variant(4, 4, 4096, border=1),
}


@dataclass(frozen=True)
class DeepLabV1Config:
    """Options of :class:`DeepLabV1`.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels.
        variant: ``"largefov"`` (3x3 at rate 12), ``"7x7"`` (rate 4), ``"4x4"`` (rate 8) or
            ``"4x4_rate4"``, the paper's first.
        multi_scale: Classifiers on the image and the first four pools too, summed with the last
            one: the paper's MSc-LargeFOV.
        dense_crf: End with the dense CRF in evaluation; the output is then its log-marginals.
        width: Factor on all channels; 1 is the paper's.
    """

    num_classes: int = 21
    in_channels: int = 3
    variant: str = "largefov"
    multi_scale: bool = False
    dense_crf: bool = False
    width: float = 1.0


class DenseHead(nn.Module):
    """fc6 with holes, fc7 and the classifier fc8, all convolutions with bias.

    Args:
        in_channels: Channels of the features.
        kernel, rate, channels: Of fc6; fc7 has the same channels.
        num_classes: Output channels.
    """

    def __init__(
        self, in_channels: int, kernel: int, rate: int, channels: int, num_classes: int
    ) -> None:
        super().__init__()
        padding = rate * (kernel - 1) // 2
        self.fc6 = AtrousConv2d(in_channels, channels, kernel, padding=padding, dilation=rate)
        self.fc7 = nn.Conv2d(channels, channels, 1)
        self.fc8 = nn.Conv2d(channels, num_classes, 1)
        self.dropout = nn.Dropout(DROPOUT)
        init_caffe(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(functional.relu(self.fc6(x)))
        x = self.dropout(functional.relu(self.fc7(x)))
        return self.fc8(x)

    def load_dense(self, state_dict: dict[str, Tensor]) -> None:
        """Start fc6 and fc7 from VGG16's, thinned out; they stay random if the file has none."""
        if "classifier.0.weight" not in state_dict:
            return
        layers = [dense_layer(state_dict, "classifier.0", 7)]
        layers.append(dense_layer(state_dict, "classifier.3", 1))
        if all(weight.isfinite().all() for weight, _ in layers):
            decimate(self.fc6, *layers[0])
            decimate(self.fc7, *layers[1])


class Early(nn.Sequential):
    """Classifier on an early map: two convolutions of 128 channels with dropout, and a 1x1."""

    def __init__(self, in_channels: int, channels: int, stride: int, num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1),
            nn.ReLU(inplace=True),
            nn.Dropout(DROPOUT),
            nn.Conv2d(channels, channels, 1),
            nn.ReLU(inplace=True),
            nn.Dropout(DROPOUT),
            nn.Conv2d(channels, num_classes, 1),
        )
        init_caffe(self)


class DeepLabV1(nn.Module):
    """DeepLab v1, as the released Caffe definitions have it.

    Args:
        config: See :class:`DeepLabV1Config`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size; padded inside with zeros, the mean pixel, to
          8k + 1 (LargeFOV) or 8k + 2.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``; in training also
          ``"logits"``, the scores at 1/8 that the paper's loss is on, of the padded image.

    Raises (forward):
        ValueError: If the input has another number of axes or channels.

    Paper: arXiv:1412.7062. Pools 4 and 5 have stride 1, stage 5 the rate 2; LargeFOV's pools are
    3x3, and an average pool follows pool 5. Scores are enlarged with corners on corners.

    Deviations from the release:
        - The trunk of ``"7x7"`` and ``"4x4"`` is that of ``"4x4_rate4"``, whose definition alone
          is public. There the release takes labels from pixel 1 on; ``"logits"`` does not say so.
        - ``multi_scale`` is for LargeFOV only.
    """

    head_names = ("head.fc8", "early")

    def __init__(self, config: DeepLabV1Config) -> None:
        super().__init__()
        check_choice("deeplabv1", "variant", config.variant, tuple(VARIANTS))
        check_crf("deeplabv1", config.dense_crf, config.in_channels)
        variant = VARIANTS[config.variant]
        if config.multi_scale and variant.border:
            raise ValueError(
                "deeplabv1: multi_scale must be False unless variant is 'largefov', "
                f"got {config.variant!r}"
            )
        self.in_channels = config.in_channels
        self.border, self.dense_crf = variant.border, config.dense_crf
        pools = FIRST_POOLS if variant.border else LARGE_FOV_POOLS
        self.backbone = VGG16Features(config.in_channels, pools, width=config.width)
        init_caffe(self.backbone)
        self.head = DenseHead(
            self.backbone.channels,
            variant.kernel,
            variant.rate,
            scale_channels(variant.channels, config.width),
            config.num_classes,
        )
        self.early = None
        if config.multi_scale:
            sources = ((config.in_channels, 8), (64, 4), (128, 2), (256, 1), (512, 1))
            self.early = nn.ModuleList(
                Early(
                    channels if i == 0 else scale_channels(channels, config.width),
                    scale_channels(128, config.width),
                    stride,
                    config.num_classes,
                )
                for i, (channels, stride) in enumerate(sources)
            )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image("deeplabv1", image, self.in_channels)
        padded = pad_to_grid("deeplabv1", image, 8, 1 + self.border)
        x, pooled = self.backbone(padded)
        if not self.border:
            x = functional.avg_pool2d(x, 3, stride=1, padding=1)
        logits = self.head(x)
        if self.early is not None:
            for classifier, source in zip(self.early, [padded, *pooled[:4]], strict=True):
                logits = logits + classifier(source)
        height, width = (length - self.border for length in padded.shape[-2:])
        scores = resize_corners(logits, (height, width))
        if self.border:
            scores = functional.pad(scores, (1, 0, 1, 0), mode="replicate")
        scores = crop_to(scores, *image.shape[-2:])
        if self.training:
            return {"out": scores, "logits": logits}
        return {"out": refine(self, scores, image, CRF) if self.dense_crf else scores}

    def load_backbone(self, source: str | Path) -> None:
        """Start the trunk, fc6 and fc7 from VGG16; ``recipe.input`` becomes ``"imagenet"``.

        fc6 and fc7 take every n-th channel and tap of VGG16's, as the paper; with
        ``"IMAGENET1K_FEATURES"``, which has none, they stay random and the input ``"caffe"``.

        Args:
            source: See :func:`segkern.models.backbones.load_imagenet`.
        """
        self.head.load_dense(load_imagenet(self, self.backbone, "vgg16", source))


def init_caffe(network: nn.Module) -> None:
    """He's normal for hidden convolutions, N(0, 0.01) for one called fc8; biases 0."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            if name.endswith("fc8"):
                nn.init.normal_(module.weight, std=0.01)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(module.bias)


# An epoch of trainaug is 352 iterations of 30 images.
RECIPE = Recipe(
    optimizer="sgd",
    lr=1e-3,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="step",
    step_size=2000,
    gamma=0.1,
    batch_size=30,
    epochs=17,
    input="caffe",
    bias_lr_mult=2.0,
    bias_decay_mult=0.0,
    head_lr_mult=10.0,
    outputs={"logits": 1.0},
    label_grid="corners",
    crop=(321, 321),
    crop_pad="end",
    flip=True,
    notes=(
        "6000 iterations on VOC's trainaug (10 582 images) from VGG16. The loss is on scores at "
        "1/8, labels taken there. With multi_scale only the added layers are trained. The CRF's "
        "weights are searched on 100 validation images: w1 in 5..10, position 50..100, colour "
        "3..10; the option dense_crf has those released, 5, 50, 10."
    ),
    source="arXiv:1412.7062 section 5; DeepLab-Context voc12/config/vgg128_noup",
)

# The other trunk takes 8k + 2 pixels; an epoch is 529 iterations of 20 images.
RECIPE_VARIANTS = dataclasses.replace(RECIPE, batch_size=20, epochs=12, crop=(306, 306))


@register_model(
    DeepLabV1Config,
    parameters=20_505_429,
    paper=PAPER,
    recipe=RECIPE,
    recipe_of=lambda config: RECIPE if config.variant == "largefov" else RECIPE_VARIANTS,
    head="head.fc8.bias",
    reported={
        "VOC 2012 val mIoU, LargeFOV": 62.25,
        "VOC 2012 val mIoU, LargeFOV, CRF": 67.64,
        "VOC 2012 val mIoU, 7x7": 64.38,
        "VOC 2012 val mIoU, 7x7, CRF": 67.64,
        "VOC 2012 val mIoU, 4x4, CRF": 67.14,
        "VOC 2012 test mIoU, LargeFOV, CRF": 70.3,
        "VOC 2012 test mIoU, LargeFOV, multi_scale, CRF": 71.6,
    },
)
def deeplabv1(config: DeepLabV1Config) -> DeepLabV1:
    """DeepLab v1 LargeFOV on VGG16, 20.5 M parameters, 21 classes."""
    return DeepLabV1(config)
