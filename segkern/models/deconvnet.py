"""DeconvNet: VGG16 with its dense layers as convolutions, mirrored by deconvolutions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from segkern.models._recipe import Recipe
from segkern.models._registry import register_model
from segkern.models._sizes import (
    check_batch_statistics,
    check_image,
    check_pad_mode,
    crop_to,
    pad_to_valid,
)
from segkern.models._vgg import (
    ConvNormReLU,
    Route,
    VGG16Encoder,
    load_dense,
    load_vgg16,
    msra_,
)
from segkern.nn import MaxUnpool2d

PAPER = (
    "H. Noh, S. Hong, B. Han: Learning Deconvolution Network for Semantic Segmentation, "
    "ICCV 2015, arXiv:1505.04366"
)

# The smallest axis that five rounding-up pools leave at 7, the window of fc6.
MINIMUM_SIZE = 193

# Output channels of the deconvolutions of each stage, the deepest first.
DECODER_STAGES = {
    5: (512, 512, 512),
    4: (512, 512, 256),
    3: (256, 256, 128),
    2: (128, 64),
    1: (64, 64),
}


@dataclass(frozen=True)
class DeconvNetConfig:
    """Options of :class:`DeconvNet`.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels.
        fc_channels: Channels of fc6 and fc7; the paper has 4096.
        pad_mode: How the right and the bottom of smaller inputs are padded to 193 pixels, and
            the scores cropped back: ``"replicate"``, ``"reflect"`` or ``"zeros"``.
        strict_size: Refuse smaller inputs with a ValueError instead.
    """

    num_classes: int = 21
    in_channels: int = 3
    fc_channels: int = 4096
    pad_mode: str = "replicate"
    strict_size: bool = False

    def __post_init__(self) -> None:
        check_pad_mode("deconvnet", self.pad_mode)
        if self.fc_channels < 1:
            raise ValueError(f"deconvnet: fc_channels must be positive, got {self.fc_channels}")


class Decoder(nn.Module):
    """Five stages of unpooling and 3x3 deconvolutions: ``(N, 512, h, w)`` to ``(N, 64, H, W)``.

    ``stage5.1`` is the paper's deconv5_1, the first after the deepest unpooling.
    """

    def __init__(self) -> None:
        super().__init__()
        channels = 512
        for i, widths in DECODER_STAGES.items():
            stage = nn.Sequential()
            for j, width in enumerate(widths, start=1):
                deconv = nn.ConvTranspose2d(channels, width, 3, padding=1)
                stage.add_module(str(j), ConvNormReLU(deconv))
                channels = width
            self.add_module(f"stage{i}", stage)
        self.unpool = MaxUnpool2d(2)

    def forward(self, x: Tensor, routes: list[Route]) -> Tensor:
        for i in DECODER_STAGES:
            indices, size = routes[i - 1]
            x = self.get_submodule(f"stage{i}")(self.unpool(x, indices, size))
        return x


class DeconvNet(nn.Module):
    """DeconvNet, as the authors' released Caffe definition of stage 2 has it.

    Args:
        config: See :class:`DeconvNetConfig`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, 224x224 in the paper. Any size from 193 per axis runs
          as it is; smaller ones are padded inside and the scores cropped back.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``.

    Raises (forward):
        ValueError: If the input has another number of axes or channels; with ``strict_size``, if
            it is smaller than 193 pixels; in training, if fc6 sees a batch of one at up to 224
            pixels, where its output is 1x1 and batch norm has nothing to average over.

    Paper: arXiv:1505.04366. Every convolution and deconvolution has a bias and is followed by
    batch norm (eps 1e-9) and ReLU, except the score layer. The published system runs it on object
    proposals and merges the score maps; this is the network alone.

    Deviations from the release:
        - Batch norm keeps torch's running averages; the release has none in training.
        - Without ``weights_backbone`` the convolutions start from He et al.'s initialisation; the
          release always starts from VGG16.
        - Sizes other than 224x224 are taken.
    """

    def __init__(self, config: DeconvNetConfig) -> None:
        super().__init__()
        self.in_channels = config.in_channels
        self.pad_mode = config.pad_mode
        self.strict_size = config.strict_size
        self.encoder = VGG16Encoder("deconvnet", config.in_channels)
        self.fc6 = ConvNormReLU(nn.Conv2d(512, config.fc_channels, 7))
        self.fc7 = ConvNormReLU(nn.Conv2d(config.fc_channels, config.fc_channels, 1))
        self.fc6_deconv = ConvNormReLU(nn.ConvTranspose2d(config.fc_channels, 512, 7))
        self.decoder = Decoder()
        self.score = nn.Conv2d(64, config.num_classes, 1)
        self._initialise()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image("deconvnet", image, self.in_channels)
        height, width = image.shape[-2:]
        image = pad_to_valid(
            "deconvnet",
            image,
            minimum=MINIMUM_SIZE,
            pad_mode=self.pad_mode,
            strict_size=self.strict_size,
        )
        features, routes = self.encoder(image)
        check_batch_statistics("deconvnet", "fc6.norm", features[..., 6:, 6:], self.training)
        features = self.fc6_deconv(self.fc7(self.fc6(features)))
        return {"out": crop_to(self.score(self.decoder(features, routes)), height, width)}

    def load_backbone(self, source: str | Path) -> None:
        """Start the convolutions, fc6 and fc7 from torchvision's VGG16.

        ``recipe.input`` becomes ``"imagenet"``.

        Args:
            source: See :func:`segkern.models._vgg.load_vgg16`.

        Raises:
            WeightsError: Also if ``fc_channels`` is not VGG16's 4096, or the classifier is missing.
        """
        state_dict = load_vgg16(self, source)
        load_dense(self.fc6.conv, state_dict, "classifier.0")
        load_dense(self.fc7.conv, state_dict, "classifier.3")

    def _initialise(self) -> None:
        msra_(self)
        gaussian = [module for module in self.modules() if isinstance(module, nn.ConvTranspose2d)]
        for layer in [*gaussian, self.score]:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)


RECIPE = Recipe(
    optimizer="sgd",
    lr=0.01,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="step",
    step_size=10_000,
    gamma=0.1,
    batch_size=64,
    micro_batch=8,
    epochs=1,
    input="caffe",
    class_weights=None,
    loss_reduction="pixels",
    bias_lr_mult=2.0,
    bias_decay_mult=0.0,
    resize=(250, 250),
    crop=(224, 224),
    flip=True,
    notes=(
        "Stage 2: 40 000 iterations over 2.7 M crops of object proposals, about one epoch, from "
        "the weights of stage 1 (20 000 iterations, step 9 000, 0.2 M object-centred crops with "
        "only the centre object's class kept). The encoder, fc6 and fc7 start from VGG16. Released "
        "mean: 104.008, 116.669, 122.675."
    ),
    source="arXiv:1505.04366 section 4; HyeonwooNoh/DeconvNet training/002_stage_2",
)


@register_model(
    DeconvNetConfig,
    parameters=251_805_653,
    paper=PAPER,
    recipe=RECIPE,
    head="score.bias",
    reported={
        "PASCAL VOC 2012 test mIoU": 69.6,
        "PASCAL VOC 2012 test mIoU with CRF": 70.5,
        "PASCAL VOC 2012 test mIoU, ensemble with FCN-8s and CRF": 72.5,
    },
)
def deconvnet(config: DeconvNetConfig) -> DeconvNet:
    """DeconvNet, 252 M parameters, 21 classes."""
    return DeconvNet(config)
