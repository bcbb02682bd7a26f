"""The patch-wise network of Ciresan et al.: every pixel classified by the 95x95 around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from segkern.models._options import check_choice
from segkern.models._recipe import Recipe
from segkern.models._registry import register_model
from segkern.models._resize import as_it_is, in_layout_of, mirrored_window
from segkern.models._sizes import check_image
from segkern.models.backbones.resnet import scale_channels

PAPER = (
    "D. C. Ciresan, A. Giusti, L. M. Gambardella, J. Schmidhuber: Deep Neural Networks Segment "
    "Neuronal Membranes in Electron Microscopy Images, NIPS 2012"
)

PATCH = 95
MARGIN = PATCH // 2
STRIDE = 16
KERNELS = (4, 5, 4, 4)
EVALUATIONS = ("atrous", "stitch", "patches")

# Patches run at a time by "patches".
_CHUNK = 256


@dataclass(frozen=True)
class PatchCNNConfig:
    """Options of :class:`PatchCNN`.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels; the paper's images have 1.
        evaluation: ``"atrous"``: once, with strides turned into rates. ``"stitch"``: on 256 shifts
            of the image, interlaced. ``"patches"``: patch by patch. Scores are equal, times not.
        tile: Side of the tiles that prediction works in where an image is larger.
        width: Factor on all channels; 1 is the paper's.
    """

    num_classes: int = 2
    in_channels: int = 3
    evaluation: str = "atrous"
    tile: int = 256
    width: float = 1.0


class PatchCNN(nn.Module):
    """The network N4: four valid convolutions with pools of 2x2, and two dense layers.

    Args:
        config: See :class:`PatchCNNConfig`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size; mirrored inside by 47 pixels.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``.

    Raises (forward):
        ValueError: If the input has another number of axes or channels.

    Paper: NIPS 2012. No layer pads, so that a dense evaluation gives the scores of every patch.

    Deviations: the activation is tanh, after every hidden layer. Foveation, the recalibration of
    probabilities after balanced sampling and the average over rotations are left out.
    """

    tiled_only = False

    def __init__(self, config: PatchCNNConfig) -> None:
        super().__init__()
        check_choice("patch_cnn", "evaluation", config.evaluation, EVALUATIONS)
        if isinstance(config.tile, bool) or config.tile < 1:
            raise ValueError(f"patch_cnn: tile must be at least 1, got {config.tile!r}")
        self.in_channels = config.in_channels
        self.evaluation = config.evaluation
        self.tile = config.tile
        channels, hidden = config.in_channels, scale_channels(48, config.width)
        self.convs = nn.ModuleList()
        for kernel in KERNELS:
            self.convs.append(nn.Conv2d(channels, hidden, kernel))
            channels = hidden
        self.fc = nn.Conv2d(channels, scale_channels(200, config.width), 3)
        self.score = nn.Conv2d(self.fc.out_channels, config.num_classes, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image("patch_cnn", image, self.in_channels)
        return {"out": self._window(image, 0, 0, *image.shape[-2:])}

    def cells(self, x: Tensor) -> Tensor:
        """Scores of the patches that start every 16 pixels: 95 + 16 k to 1 + k per axis."""
        for conv in self.convs:
            x = functional.max_pool2d(conv(x).tanh(), 2)
        return self.score(self.fc(x).tanh())

    def atrous(self, x: Tensor) -> Tensor:
        """Scores of all patches: strides become rates of the layers after them. H to H - 94."""
        rate = 1
        for conv in self.convs:
            x = functional.conv2d(x, conv.weight, conv.bias, dilation=rate).tanh()
            x = functional.max_pool2d(x, 2, stride=1, dilation=rate)
            rate *= 2
        x = functional.conv2d(x, self.fc.weight, self.fc.bias, dilation=rate).tanh()
        return self.score(x)

    def stitch(self, x: Tensor) -> Tensor:
        """As :meth:`atrous`, by shift and stitch: the strided network on every shift."""
        height, width = (n - 2 * MARGIN for n in x.shape[-2:])
        out = x.new_empty(x.shape[0], self.score.out_channels, height, width)
        for top in range(min(STRIDE, height)):
            for left in range(min(STRIDE, width)):
                out[..., top::STRIDE, left::STRIDE] = self.cells(x[..., top:, left:])
        return out

    def patches(self, x: Tensor) -> Tensor:
        """As :meth:`atrous`, one patch after the other."""
        windows = x.unfold(2, PATCH, 1).unfold(3, PATCH, 1).permute(0, 2, 3, 1, 4, 5)
        batch, height, width = windows.shape[:3]
        count = batch * height * width
        scores = []
        for first in range(0, count, _CHUNK):
            index = torch.arange(first, min(first + _CHUNK, count), device=x.device)
            plane, column = index // width, index % width
            scores.append(self.cells(windows[plane // height, plane % height, column]))
        return torch.cat(scores).view(batch, height, width, -1).permute(0, 3, 1, 2).contiguous()

    def tiles(
        self, image: Tensor, prepare: Callable[[Tensor], Tensor] = as_it_is
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Scores tile by tile, those of the whole image; see :meth:`UNet.tiles`."""
        check_image("patch_cnn", image, self.in_channels, prepared=False)
        height, width = image.shape[-2:]
        for top in range(0, height, self.tile):
            for left in range(0, width, self.tile):
                bottom, right = min(top + self.tile, height), min(left + self.tile, width)
                yield top, left, self._window(image, top, left, bottom, right, prepare)

    def _window(
        self,
        image: Tensor,
        top: int,
        left: int,
        bottom: int,
        right: int,
        prepare: Callable[[Tensor], Tensor] = as_it_is,
    ) -> Tensor:
        ends = (bottom + MARGIN, right + MARGIN)
        x = prepare(mirrored_window(image, (top - MARGIN, left - MARGIN), ends))
        return in_layout_of(image, getattr(self, self.evaluation)(x))


RECIPE = Recipe(
    optimizer="sgd",
    lr=1e-2,
    momentum=0.9,
    batch_size=1,
    epochs=30,
    input="unit",
    class_weights="median_frequency",
    notes=(
        "The paper samples patches of both classes equally, and turns and mirrors them; here the "
        "loss is on all patches of an image, weighted by class. The numbers are ours."
    ),
    source="NIPS 2012 section 2, without its numbers",
)


@register_model(
    PatchCNNConfig,
    parameters=220_826,
    paper=PAPER,
    recipe=RECIPE,
    head="score.bias",
    reported={
        "ISBI 2012 EM test warping error": 0.000420,
        "ISBI 2012 EM test Rand error": 0.0504,
    },
)
def patch_cnn(config: PatchCNNConfig) -> PatchCNN:
    """Patch-wise network N4, 0.2 M parameters, 2 classes."""
    return PatchCNN(config)
