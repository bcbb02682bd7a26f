"""SegNet: a VGG16 encoder whose pooling indices steer the upsampling of a mirrored decoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from segkern.models._recipe import Recipe
from segkern.models._registry import register_model
from segkern.models._sizes import check_image
from segkern.models._vgg import ConvNormReLU, Route, VGG16Encoder, load_vgg16, make_dropout, msra_
from segkern.nn import MaxUnpool2d

PAPER = (
    "V. Badrinarayanan, A. Kendall, R. Cipolla: SegNet: A Deep Convolutional Encoder-Decoder "
    "Architecture for Image Segmentation, PAMI 2017, arXiv:1511.00561"
)

# Output channels of the convolutions of each decoder stage, the deepest first. The last stage
# ends in the classifier instead of a second convolution.
DECODER_STAGES = {
    5: (512, 512, 512),
    4: (512, 512, 256),
    3: (256, 256, 128),
    2: (128, 64),
    1: (64,),
}

BAYESIAN_RATE = 0.5


@dataclass(frozen=True)
class SegNetConfig:
    """Options of :class:`SegNet`.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels.
        bayesian: Dropout of 0.5 after pools 3 to 5 and after decoder stages 5 to 3, as in
            Bayesian SegNet (arXiv:1511.02680); see :meth:`SegNet.sample`.
    """

    num_classes: int = 11
    in_channels: int = 3
    bayesian: bool = False


class Decoder(nn.Module):
    """Five stages of unpooling and convolutions: ``(N, 512, h, w)`` to ``(N, 64, H, W)``.

    ``stage5.1`` is the first convolution after the deepest unpooling. The last convolution of a
    stage reduces the channels, so that every unpooling gets as many as its indices have.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        channels = 512
        for i, widths in DECODER_STAGES.items():
            stage = nn.Sequential()
            for j, width in enumerate(widths, start=1):
                conv = nn.Conv2d(channels, width, 3, padding=1)
                stage.add_module(str(j), ConvNormReLU(conv))
                channels = width
            self.add_module(f"stage{i}", stage)
            self.add_module(f"dropout{i}", make_dropout(rate if i >= 3 else 0))
        self.unpool = MaxUnpool2d(2)

    def forward(self, x: Tensor, routes: list[Route]) -> Tensor:
        for i in DECODER_STAGES:
            indices, size = routes[i - 1]
            x = self.get_submodule(f"stage{i}")(self.unpool(x, indices, size))
            x = self.get_submodule(f"dropout{i}")(x)
        return x


class MonteCarloDropout(nn.Module):
    """Base of networks that are sampled with their dropout left on."""

    @torch.no_grad()
    def sample(self, image: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """Class probabilities and their uncertainty from repeated passes with dropout on.

        Args:
            image: As for ``forward``.
            samples: Passes; Bayesian SegNet settles after about 40.

        Returns:
            Mean and variance of the softmax over the passes, both ``(N, num_classes, H, W)``.
            The variance is the population's: 0 for one pass. Draws from torch's global
            generator, so a seed repeats them.

        Raises:
            ValueError: If ``samples`` is below 1, or the network has no dropout.
        """
        if samples < 1:
            raise ValueError(f"{type(self).__name__}: samples must be at least 1, got {samples}")
        with self._dropout_on():
            mean = square = None
            for i in range(1, samples + 1):
                probability = self(image)["out"].softmax(dim=1)
                if mean is None:
                    mean, square = probability, torch.zeros_like(probability)
                    continue
                # Welford's update: no difference of two large sums.
                step = probability - mean
                mean = mean + step / i
                square = square + step * (probability - mean)
        return mean, square / samples

    @contextmanager
    def _dropout_on(self) -> Iterator[None]:
        layers = [module for module in self.modules() if isinstance(module, nn.Dropout)]
        if not layers:
            raise ValueError(f"{type(self).__name__}: sample needs a network with bayesian=True")
        modes = [layer.training for layer in layers]
        for layer in layers:
            layer.train()
        try:
            yield
        finally:
            for layer, mode in zip(layers, modes, strict=True):
                layer.train(mode)


class SegNet(MonteCarloDropout):
    """SegNet, as the authors' released Caffe definition has it.

    Args:
        config: See :class:`SegNetConfig`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size of at least one pixel: pools round up and
          every unpooling restores the size that its pool saw.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``.

    Raises (forward):
        ValueError: If the input has another number of axes or channels, or if in training a batch
            of one comes down to a 1x1 map before a batch norm (16 pixels or fewer per axis).

    Paper: arXiv:1511.00561; with ``bayesian`` arXiv:1511.02680. Convolutions have biases, batch
    norm an eps of 1e-9, the classifier is a bare 3x3 convolution. A channel that is constant over
    a training batch has variance 0 and is divided by the root of eps alone, 3e-5.

    Deviations from the release:
        - Batch norm keeps torch's running averages; the release has none in training and computes
          the statistics afterwards in a pass over the training set.
        - The paper's experiments normalise local contrast of the input; the release feeds raw BGR
          values, and so does the recipe here.
    """

    def __init__(self, config: SegNetConfig) -> None:
        super().__init__()
        self.in_channels = config.in_channels
        rate = BAYESIAN_RATE if config.bayesian else 0
        self.encoder = VGG16Encoder("segnet", config.in_channels, (0, 0, rate, rate, rate))
        self.decoder = Decoder(rate)
        self.classifier = nn.Conv2d(64, config.num_classes, 3, padding=1)
        msra_(self)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image("segnet", image, self.in_channels)
        features, routes = self.encoder(image)
        return {"out": self.classifier(self.decoder(features, routes))}

    def load_backbone(self, source: str | Path) -> None:
        """Start the encoder from torchvision's VGG16; ``recipe.input`` becomes ``"imagenet"``.

        Args:
            source: See :func:`segkern.models._vgg.load_vgg16`.
        """
        load_vgg16(self, source)


RECIPE = Recipe(
    optimizer="sgd",
    lr=1e-3,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="constant",
    batch_size=5,
    epochs=100,
    input="bgr",
    class_weights="segnet",
    loss_reduction="pixels",
    bias_lr_mult=2.0,
    bias_decay_mult=0.0,
    norm_shift_decay=False,
    resize=(360, 480),
    notes=(
        "Encoder from VGG16. The paper trains more than 100 epochs, batch 5 on CamVid and 4 on SUN "
        "RGB-D, the tutorial 40 000 iterations of batch 4, or 60 000 for the Bayesian net. "
        "Median-frequency weights in the variant study and Table 2, none in Table 3. The weight "
        "decay and the raw BGR input are the tutorial's; the paper normalises local contrast of "
        "RGB. No augmentation."
    ),
    source="arXiv:1511.00561 section 3.1; SegNet-Tutorial Models/segnet_solver.prototxt",
)


@register_model(
    SegNetConfig,
    parameters=29_449_355,
    paper=PAPER,
    recipe=RECIPE,
    head="classifier.bias",
    reported={
        "CamVid (3433 road images) test global accuracy": 90.40,
        "CamVid (3433 road images) test class accuracy": 71.20,
        "CamVid (3433 road images) test mIoU": 60.10,
        "CamVid (3433 road images) test boundary F1": 46.84,
        "SUN RGB-D global accuracy": 72.63,
        "SUN RGB-D class accuracy": 44.76,
        "SUN RGB-D mIoU": 31.84,
        "SUN RGB-D boundary F1": 12.66,
    },
)
def segnet(config: SegNetConfig) -> SegNet:
    """SegNet on VGG16, 29.4 M parameters, 11 classes."""
    return SegNet(config)
