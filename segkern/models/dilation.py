"""Dilated convolutions of Yu and Koltun: a front end without padding, and the context module."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from segkern.models._options import check_choice
from segkern.models._recipe import Recipe
from segkern.models._registry import register_model
from segkern.models._resize import in_layout_of, reflect, resize_corners
from segkern.models._sizes import check_image
from segkern.models.backbones import VGG16Features, load_imagenet
from segkern.models.backbones.imagenet import decimate, dense_layer
from segkern.models.backbones.resnet import scale_channels
from segkern.models.backbones.vgg import Pool
from segkern.models.deeplabv1 import DROPOUT, init_caffe
from segkern.nn import AtrousConv2d

PAPER = (
    "F. Yu, V. Koltun: Multi-Scale Context Aggregation by Dilated Convolutions, ICLR 2016, "
    "arXiv:1511.07122"
)

# Pixels that the front end's unpadded convolutions take off each side.
MARGIN = 186
STRIDE = 8

POOLS = (*[Pool(2, 2)] * 3, Pool(0), Pool(0))

# Rates of the 3x3 convolutions of the context module; a 1x1 follows. Growth of the channels of
# each in the large form.
RATES = {7: (1, 1, 2, 4, 8, 1), 8: (1, 1, 2, 4, 8, 16, 1), 10: (1, 1, 2, 4, 8, 16, 32, 64, 1)}
LARGE = (2, 2, 4, 8, 16, 32, 32)

# Spread of the noise around the identity of the large form.
NOISE = 0.01


@dataclass(frozen=True)
class DilationFrontendConfig:
    """Options of :class:`Dilation` without a context module.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels.
        tile: Size (H, W) of the pieces that images are run in, margins included, or ``None`` for
            the whole image at once. The release has 900x900 for VOC.
        width: Factor on the channels of the front end; 1 is the paper's.
    """

    num_classes: int = 21
    in_channels: int = 3
    tile: tuple[int, int] | None = None
    width: float = 1.0

    def __post_init__(self) -> None:
        if self.tile is None:
            return
        object.__setattr__(self, "tile", tuple(self.tile))
        least = 2 * MARGIN + STRIDE
        if len(self.tile) != 2 or any(n < least or (n - 2 * MARGIN) % STRIDE for n in self.tile):
            raise ValueError(
                f"dilation: tile must be (H, W), each {2 * MARGIN} and a positive multiple of "
                f"{STRIDE}, got {self.tile}"
            )


@dataclass(frozen=True)
class Dilation8Config(DilationFrontendConfig):
    """Options of Dilation8: those of :class:`DilationFrontendConfig`, and

    Attributes:
        context: ``"large"``, whose channels grow up to 32-fold, as for VOC, or ``"basic"``, as for
            CamVid.
        padding: ``"once"``, all of it before the first convolution, as for VOC, or ``"each"``, as
            for CamVid.
        layers: 8, or 7 without the rate of 16, as for KITTI.
    """

    context: str = "large"
    padding: str = "once"
    layers: int = 8


@dataclass(frozen=True)
class Dilation10Config(DilationFrontendConfig):
    """Options of Dilation10: those of :class:`DilationFrontendConfig`."""

    num_classes: int = 19


class Context(nn.Module):
    """The context module: 3x3 convolutions of growing rate, each truncated at 0, and a 1x1.

    Args:
        network: Name for error messages.
        num_classes: Channels in and out, C.
        rates: Of the 3x3 convolutions.
        large: Channels of 2C, 2C, 4C, ... inside instead of C.
        padding: ``"once"``: the input is padded by the sum of the rates; ``"each"``: every layer
            by its own. The size stays.

    The convolutions start as the identity on inputs of 0 and more; see :meth:`set_identity`.
    """

    def __init__(
        self,
        network: str,
        num_classes: int,
        rates: Sequence[int],
        *,
        large: bool = False,
        padding: str = "each",
    ) -> None:
        super().__init__()
        check_choice(network, "padding", padding, ("once", "each"))
        if large and len(rates) != len(LARGE):
            raise ValueError(f"{network}: context must be 'basic' with these layers, got 'large'")
        self.num_classes = num_classes
        self.margin = sum(rates) if padding == "once" else 0
        growth = LARGE if large else (1,) * len(rates)
        channels = num_classes
        self.layers = nn.ModuleList()
        for rate, factor in zip(rates, growth, strict=True):
            out = factor * num_classes
            pad = rate if padding == "each" else 0
            self.layers.append(AtrousConv2d(channels, out, 3, padding=pad, dilation=rate))
            channels = out
        self.final = nn.Conv2d(channels, num_classes, 1)
        self.set_identity()

    def forward(self, scores: Tensor) -> Tensor:
        x = scores
        if self.margin:
            x = functional.pad(x, (self.margin,) * 4)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.final(x)

    @torch.no_grad()
    def set_identity(self, noise: float = NOISE) -> None:
        """Start every convolution as the paper's equations 4 and 5 say, biases at 0.

        The centre tap of output b and input a is C / c_out where both stand for one class, that
        is where floor(a C / c_in) = floor(b C / c_out). Where channels grow, the other values are
        normal with the standard deviation ``noise`` times C / c_out; where they do not, they are 0.
        """
        classes = self.num_classes
        for layer in [*self.layers, self.final]:
            outs, ins = layer.weight.shape[:2]
            gain = classes / outs
            same = (torch.arange(outs) * classes // outs)[:, None] == (
                torch.arange(ins) * classes // ins
            )
            middle = layer.kernel_size[0] // 2
            if outs == ins == classes:
                nn.init.zeros_(layer.weight)
            else:
                nn.init.normal_(layer.weight, std=noise * gain)
            tap = layer.weight[:, :, middle, middle]
            tap[same.to(tap.device)] = gain
            nn.init.zeros_(layer.bias)


class FrontEnd(nn.Module):
    """VGG16 without padding and without its last two pools, and its dense layers at rate 4.

    Takes an image with a margin of 186 pixels a side; scores are those of each 8th pixel of the
    part within.
    """

    def __init__(self, in_channels: int, num_classes: int, width: float) -> None:
        super().__init__()
        self.backbone = VGG16Features(in_channels, POOLS, padded=False, width=width)
        channels = scale_channels(4096, width)
        self.fc6 = AtrousConv2d(self.backbone.channels, channels, 7, dilation=4)
        self.fc7 = nn.Conv2d(channels, channels, 1)
        self.final = nn.Conv2d(channels, num_classes, 1)
        self.dropout = nn.Dropout(DROPOUT)
        init_caffe(self)
        nn.init.normal_(self.final.weight, std=0.001)

    def forward(self, image: Tensor) -> Tensor:
        x, _ = self.backbone(image)
        x = self.dropout(functional.relu(self.fc6(x)))
        x = self.dropout(functional.relu(self.fc7(x)))
        return self.final(x)


class Dilation(nn.Module):
    """Front end, and a context module where there is one.

    Args:
        name: Registered name, for error messages.
        config: See :class:`DilationFrontendConfig`.
        context: The context module, or ``None``.
        deconvolution: Enlarge scores by a fixed bilinear transposed convolution, as the network
            for Cityscapes, instead of probabilities.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size; mirrored inside by 186 pixels a side, and at
          the bottom and the right up to multiples of 8 or to whole tiles.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``; without ``deconvolution``
          log-probabilities, enlarged as probabilities. In training also ``"logits"``, the scores
          of each 8th pixel from the first, ``(N, num_classes, ceil(H/8), ceil(W/8))``, on which the
          loss is.

    Raises (forward):
        ValueError: If the input has another number of axes or channels.

    Paper: arXiv:1511.07122. Convolutions of the front end have no padding, stage 5 has the rate 2
    and fc6 the rate 4. Cell (r, c) of the scores is that of pixel (8r, 8c), and what lies beyond
    the last cell repeats it.

    Deviations from the release: the whole image is one tile unless ``tile`` is given, so that the
    context module's padding lies at the image's border alone; and the noise of the starting
    weights is in the large context only, as in the paper.
    """

    def __init__(
        self,
        name: str,
        config: DilationFrontendConfig,
        context: Context | None = None,
        *,
        deconvolution: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.in_channels, self.tile = config.in_channels, config.tile
        self.frontend = FrontEnd(config.in_channels, config.num_classes, config.width)
        self.context = context
        self.deconvolution = deconvolution
        self.head_names = ("frontend.final",)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image(self.name, image, self.in_channels)
        height, width = image.shape[-2:]
        scores = self.scores(image) if self.tile is None else self._tiled(image, self.tile)
        if self.deconvolution:
            out = _deconvolve(scores)
        else:
            # softmax gives up the layout of channels last.
            probabilities = in_layout_of(scores, scores.float().softmax(dim=1))
            out = enlarge_cells(probabilities).clamp(min=1e-20).log().to(scores.dtype)
        out = out[..., :height, :width]
        return {"out": out, "logits": scores} if self.training else {"out": out}

    def scores(self, image: Tensor) -> Tensor:
        """Scores of each 8th pixel, ``(N, C, ceil(H/8), ceil(W/8))``."""
        after = [MARGIN + -length % STRIDE for length in image.shape[-2:]]
        return self._net(reflect(image, MARGIN, after))

    def _net(self, padded: Tensor) -> Tensor:
        scores = self.frontend(padded)
        return scores if self.context is None else self.context(scores)

    def _tiled(self, image: Tensor, tile: tuple[int, int]) -> Tensor:
        """Scores from tiles of one size that overlap by their margins."""
        steps = [length - 2 * MARGIN for length in tile]
        counts = [-(-length // step) for length, step in zip(image.shape[-2:], steps, strict=True)]
        after = [
            MARGIN + count * step - length
            for count, step, length in zip(counts, steps, image.shape[-2:], strict=True)
        ]
        padded = reflect(image, MARGIN, after)
        rows = []
        for i in range(counts[0]):
            row = padded[:, :, i * steps[0] : i * steps[0] + tile[0]]
            starts = [j * steps[1] for j in range(counts[1])]
            rows.append(torch.cat([self._net(row[..., s : s + tile[1]]) for s in starts], dim=3))
        cells = [-(-length // STRIDE) for length in image.shape[-2:]]
        return torch.cat(rows, dim=2)[..., : cells[0], : cells[1]]

    def load_backbone(self, source: str | Path) -> None:
        """Start the front end from VGG16, dense layers included.

        ``recipe.input`` becomes ``"imagenet"``, or ``"caffe"`` with ``"IMAGENET1K_FEATURES"``,
        which has no dense layers: fc6 and fc7 stay random then.

        Args:
            source: See :func:`segkern.models.backbones.load_imagenet`.
        """
        state_dict = load_imagenet(self, self.frontend.backbone, "vgg16", source)
        if "classifier.0.weight" not in state_dict:
            return
        fc6 = dense_layer(state_dict, "classifier.0", 7)
        fc7 = dense_layer(state_dict, "classifier.3", 1)
        if fc6[0].isfinite().all() and fc7[0].isfinite().all():
            decimate(self.frontend.fc6, *fc6)
            decimate(self.frontend.fc7, *fc7)


def enlarge_cells(cells: Tensor) -> Tensor:
    """Bilinear by 8 with cell (r, c) at pixel (8r, 8c); the last cell repeats beyond itself."""
    size = [STRIDE * length + 1 for length in cells.shape[-2:]]
    bordered = functional.pad(cells, (0, 1, 0, 1), mode="replicate")
    return resize_corners(bordered, size)[..., :-1, :-1]


def _deconvolve(scores: Tensor) -> Tensor:
    """Caffe's fixed bilinear deconvolution by 8: kernel 16, padding 4, one channel at a time."""
    kernel = 2 * STRIDE
    taps = 1 - (torch.arange(kernel, device=scores.device) - (kernel - 1) / 2).abs() / STRIDE
    weight = (taps[:, None] * taps).to(scores.dtype).expand(scores.shape[1], 1, kernel, kernel)
    return functional.conv_transpose2d(
        scores, weight, stride=STRIDE, padding=STRIDE // 2, groups=scores.shape[1]
    )


RECIPE_FRONTEND = Recipe(
    optimizer="sgd",
    lr=1e-3,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="step",
    step_size=100_000,
    gamma=0.1,
    batch_size=14,
    epochs=80,
    input="bgr_voc",
    bias_lr_mult=2.0,
    bias_decay_mult=0.0,
    outputs={"logits": 1.0},
    label_grid="stride",
    crop=(256, 256),
    crop_margin=MARGIN,
    flip=True,
    notes=(
        "60 000 iterations on VOC's trainaug from VGG16. With COCO: 100 000 at 1e-3 and 40 000 at "
        "1e-4 on both, then 50 000 at 1e-5 on VOC. The loss is on scores at 1/8, labels taken at "
        "each 8th pixel. Decay, steps and mirroring are the released code's, the crop of 628x628, "
        "margins included, is that of the front ends for other data."
    ),
    source="arXiv:1511.07122 section 4; fyu/dilation train.py, docs/training.md",
)

RECIPE_DILATION8 = dataclasses.replace(
    RECIPE_FRONTEND,
    notes=(
        "The context module is trained at lr 1e-3 on the front end's stored scores; joint training "
        "gained little. CamVid: context basic, padding each, input bgr_camvid; front end 20 000 "
        "iterations of batch 8, lr 1e-4, momentum 0.99, then together 852x852, batch 1, lr 1e-5. "
        + RECIPE_FRONTEND.notes
    ),
)

RECIPE_DILATION10 = dataclasses.replace(
    RECIPE_FRONTEND,
    lr=1e-5,
    momentum=0.99,
    batch_size=1,
    epochs=20,
    input="bgr_cityscapes",
    crop=(1024, 1024),
    crop_margin=0,
    notes=(
        "The last of three stages, all together: 60 000 iterations of 1396x1396 with margins, "
        "batch 1. Before: the front end 40 000 iterations of 628x628 with margins, batch 8, lr "
        "1e-4, and the context 24 000 of batch 100, lr 1e-4; all with momentum 0.99."
    ),
)


@register_model(
    DilationFrontendConfig,
    parameters=134_346_581,
    paper=PAPER,
    recipe=RECIPE_FRONTEND,
    head="frontend.final.bias",
    reported={
        "VOC 2012 val mIoU, COCO": 69.8,
        "VOC 2012 test mIoU": 67.6,
        "VOC 2012 test mIoU, COCO": 71.3,
    },
)
def dilation_frontend(config: DilationFrontendConfig) -> Dilation:
    """The front end alone, 134.3 M parameters, 21 classes."""
    return Dilation("dilation_frontend", config)


@register_model(
    Dilation8Config,
    parameters=141_149_720,
    paper=PAPER,
    recipe=RECIPE_DILATION8,
    head="frontend.final.bias",
    reported={
        "VOC 2012 val mIoU, COCO, basic": 71.3,
        "VOC 2012 val mIoU, COCO, large": 72.1,
        "VOC 2012 test mIoU, COCO, large": 73.5,
        "CamVid test mIoU, basic": 65.3,
    },
)
def dilation8(config: Dilation8Config) -> Dilation:
    """Dilation8 with the large context module for VOC, 141.1 M parameters, 21 classes."""
    check_choice("dilation8", "context", config.context, ("large", "basic"))
    check_choice("dilation8", "layers", config.layers, (7, 8))
    context = Context(
        "dilation8",
        config.num_classes,
        RATES[config.layers],
        large=config.context == "large",
        padding=config.padding,
    )
    return Dilation("dilation8", config, context)


@register_model(
    Dilation10Config,
    parameters=134_368_179,
    paper=PAPER,
    recipe=RECIPE_DILATION10,
    head="frontend.final.bias",
    reported={"Cityscapes val class IoU": 68.7, "Cityscapes test class IoU": 67.1},
)
def dilation10(config: Dilation10Config) -> Dilation:
    """Dilation10 for Cityscapes, with rates up to 64, 134.4 M parameters, 19 classes."""
    context = Context("dilation10", config.num_classes, RATES[10])
    return Dilation("dilation10", config, context, deconvolution=True)
