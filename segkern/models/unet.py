"""U-Net: valid convolutions, skips cropped and concatenated, images of any size in tiles."""

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
from segkern.models._sizes import check_image, crop_to
from segkern.models.backbones.resnet import scale_channels

PAPER = (
    "O. Ronneberger, P. Fischer, T. Brox: U-Net: Convolutional Networks for Biomedical Image "
    "Segmentation, MICCAI 2015, arXiv:1505.04597"
)

WIDTHS = (64, 128, 256, 512, 1024)

# Valid convolutions: inputs of 16 k + 60 pixels lose 92 at each side; of the map at each level,
# as many at each side are cropped from the skip.
MULTIPLE = 16
MARGIN = 92
SKIP_CROPS = (88, 40, 16, 4)
# What a pixel sees in the form with padding, rounded up to whole cells of the deepest level.
SAME_MARGIN = 96


@dataclass(frozen=True)
class UNetConfig:
    """Options of :class:`UNet`.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels; the paper's images have 1.
        padding: ``"valid"``, the paper's; or ``"same"``, zeros around every map.
        border: Of ``"valid"``: ``"mirror"`` extends the image by mirroring, and the output has its
            size; ``"none"`` takes inputs of 16 k + 60 pixels, at least 188, and the output is 184
            smaller: 572 to 388.
        dropout: Rate after the levels of 512 and 1024 channels of the contracting path.
        variant: ``"paper"``; or ``"release"``, whose last up-convolution has 128 outputs and all
            of them a ReLU.
        tile: Side of the tiles of output that prediction works in where an image is larger, a
            multiple of 16. At 384 the network sees inputs of 572.
        width: Factor on all channels; 1 is the paper's.
    """

    num_classes: int = 2
    in_channels: int = 3
    padding: str = "valid"
    border: str = "mirror"
    dropout: float = 0.5
    variant: str = "paper"
    tile: int = 384
    width: float = 1.0


class UNet(nn.Module):
    """U-Net as the paper has it: no batch norm, biases, He's initialisation.

    Args:
        config: See :class:`UNetConfig`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size; with ``border="none"`` 16 k + 60 pixels, at
          least 188, per axis.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``; with ``border="none"`` of
          ``(H - 184, W - 184)``, the middle of the input.

    Raises (forward):
        ValueError: If the input has another number of axes or channels, or with
            ``border="none"`` another size.

    Paper: arXiv:1505.04597. The up-sampled map comes first in the concatenation, as in ports of
    the release; the paper does not say. Mirroring does not repeat the border pixel. The standard
    deviation sqrt(2 / N) of an up-convolution counts N = 4 C_out, as the release's filler.
    Files of jvanvugt/pytorch-unet load by a key map; its first revisions, whose files have the
    same names, pool by averages, and one trained with padding needs ``padding="same"``.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        check_choice("unet", "padding", config.padding, ("valid", "same"))
        check_choice("unet", "border", config.border, ("mirror", "none"))
        check_choice("unet", "variant", config.variant, ("paper", "release"))
        if config.padding == "same" and config.border == "none":
            raise ValueError("unet: border='none' is for padding='valid'")
        if isinstance(config.tile, bool) or config.tile < 1 or config.tile % MULTIPLE:
            raise ValueError(f"unet: tile must be a multiple of {MULTIPLE}, got {config.tile!r}")
        if not 0 <= config.dropout < 1:
            raise ValueError(f"unet: dropout must be in [0, 1), got {config.dropout!r}")
        self.in_channels = config.in_channels
        self.padding = config.padding
        self.border = config.border
        self.tile = config.tile
        self.release = config.variant == "release"
        pad = 1 if config.padding == "same" else 0
        widths = [scale_channels(width, config.width) for width in WIDTHS]
        channels = config.in_channels
        for level, width in enumerate(widths):
            self.add_module(f"down{level}", _convolutions(channels, width, pad))
            channels = width
        for level in reversed(range(len(widths) - 1)):
            width = widths[level]
            out = channels if self.release and level == 0 else width
            self.add_module(f"upconv{level}", nn.ConvTranspose2d(channels, out, 2, stride=2))
            self.add_module(f"up{level}", _convolutions(out + width, width, pad))
            channels = width
        self.score = nn.Conv2d(channels, config.num_classes, 1)
        self.dropout = nn.Dropout(config.dropout)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    @property
    def tiled_only(self) -> bool:
        """Whether scores at the image's size come from :meth:`tiles` alone."""
        return self.border == "none"

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image("unet", image, self.in_channels)
        height, width = image.shape[-2:]
        if self.border == "none":
            check_valid_size(height, width)
            return {"out": self.scores(image)}
        if self.padding == "valid":
            return {"out": self._window(image, (0, 0), (height, width))}
        ends = (height + -height % MULTIPLE, width + -width % MULTIPLE)
        padded = mirrored_window(image, (0, 0), ends)
        return {"out": in_layout_of(image, crop_to(self.scores(padded), height, width))}

    def scores(self, x: Tensor) -> Tensor:
        """The bare network: 16 k + 60 pixels to 184 fewer; with ``padding="same"`` 16 k to 16 k."""
        skips = []
        last = len(WIDTHS) - 1
        for level in range(last):
            x = self.get_submodule(f"down{level}")(x)
            if level == last - 1:
                x = self.dropout(x)
            skips.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.dropout(self.get_submodule(f"down{last}")(x))
        for level in reversed(range(last)):
            x = self.get_submodule(f"upconv{level}")(x)
            if self.release:
                x = functional.relu(x)
            skip = skips[level]
            if self.padding == "valid":
                crop = SKIP_CROPS[level]
                skip = skip[..., crop:-crop, crop:-crop]
            x = self.get_submodule(f"up{level}")(torch.cat([x, skip], dim=1))
        return self.score(x)

    def tiles(
        self, image: Tensor, prepare: Callable[[Tensor], Tensor] = as_it_is
    ) -> Iterator[tuple[int, int, Tensor]]:
        """The overlap-tile strategy: scores of an image of any size, tile by tile.

        Tiles start at multiples of ``tile``, so that every pool sees the pixels it would see in
        the whole image: the scores are those of the whole image, up to rounding. What a tile
        needs around itself is cut from the image, and mirrored beyond its border
        (``padding="same"``: zeros, as for the whole image).

        Args:
            image: ``(N, in_channels, H, W)``, preprocessed; or as ``prepare`` takes it.
            prepare: Preprocessing of each window cut from the image, pixel by pixel.

        Yields:
            First row, first column and scores ``(N, num_classes, h, w)`` of each tile; h and w are
            ``tile`` but at the bottom and the right. Together the tiles cover the image once.

        Memory: the features of one tile and what surrounds it, whatever the size of the image.

        Raises:
            ValueError: If the input has another number of axes or channels.
        """
        check_image("unet", image, self.in_channels, prepared=False)
        height, width = image.shape[-2:]
        for top in range(0, height, self.tile):
            for left in range(0, width, self.tile):
                size = (min(self.tile, height - top), min(self.tile, width - left))
                cut = self._window if self.padding == "valid" else self._same_window
                yield top, left, cut(image, (top, left), size, prepare)

    def _window(
        self,
        image: Tensor,
        first: tuple[int, int],
        size: tuple[int, int],
        prepare: Callable[[Tensor], Tensor] = as_it_is,
    ) -> Tensor:
        """Scores of a window of the mirrored image by valid convolutions."""
        first = (first[0] - MARGIN, first[1] - MARGIN)
        # The next 16 k + 60; modulo, as export can prove it constant for multiples of 16.
        missing = [-(n + 2 * MARGIN - 60) % MULTIPLE for n in size]
        ends = [f + n + 2 * MARGIN + m for f, n, m in zip(first, size, missing)]
        scores = self.scores(prepare(mirrored_window(image, first, (ends[0], ends[1]))))
        return in_layout_of(image, crop_to(scores, *size))

    def _same_window(
        self,
        image: Tensor,
        first: tuple[int, int],
        size: tuple[int, int],
        prepare: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Scores of a window by padded convolutions, which pad at the border of the image alone."""
        starts, ends = [], []
        for begin, n, length in zip(first, size, image.shape[-2:]):
            starts.append(max(begin - SAME_MARGIN, 0))
            last = length + -length % MULTIPLE
            end = begin + n
            ends.append(min(end + -end % MULTIPLE + SAME_MARGIN, last))
        window = mirrored_window(image, (starts[0], starts[1]), (ends[0], ends[1]))
        scores = self.scores(prepare(window))
        scores = scores[..., first[0] - starts[0] :, first[1] - starts[1] :]
        return in_layout_of(image, crop_to(scores, *size))


def check_valid_size(height: int, width: int) -> None:
    """Raise ValueError unless both are 16 k + 60, at least 188."""
    for n in (height, width):
        if n < 188 or (n - 60) % MULTIPLE:
            raise ValueError(
                "unet: input height and width must be 16 k + 60 and at least 188 with "
                f"border='none', got {height}x{width}"
            )


def _convolutions(channels: int, width: int, pad: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=pad),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=pad),
        nn.ReLU(inplace=True),
    )


RECIPE = Recipe(
    optimizer="sgd",
    lr=1e-4,
    momentum=0.99,
    batch_size=1,
    epochs=100,
    input="unit",
    loss="border",
    loss_options={"w0": 10.0, "sigma": 5.0},
    label_grid="centre",
    elastic=10.0,
    notes=(
        "One large tile a step, here the image; 30 images of 512x512 of the EM challenge. The "
        "paper also shifts, rotates and varies grey values; it gives neither a learning rate nor a "
        "number of epochs, 1e-4 and 100 are ours. The loss is weighted around cells where there "
        "are two classes; with more it is plain. On the EM set the paper averages over 7 rotations "
        "of the input."
    ),
    source="arXiv:1505.04597 section 3",
)


@register_model(
    UNetConfig,
    parameters=31_031_810,
    paper=PAPER,
    recipe=RECIPE,
    head="score.bias",
    reported={
        "ISBI 2012 EM test warping error": 0.0003529,
        "ISBI 2012 EM test Rand error": 0.0382,
        "ISBI 2015 PhC-U373 IoU": 92.0,
        "ISBI 2015 DIC-HeLa IoU": 77.5,
    },
)
def unet(config: UNetConfig) -> UNet:
    """U-Net, 31.0 M parameters, 2 classes."""
    return UNet(config)
