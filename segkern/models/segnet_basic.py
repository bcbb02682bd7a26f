"""SegNet-Basic: four stages of 7x7 convolutions with 64 channels, pooling indices routed across."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from segkern.models._recipe import Recipe
from segkern.models._registry import register_model
from segkern.models._sizes import check_batch_statistics, check_image
from segkern.models._vgg import ConvNormReLU, make_dropout, msra_
from segkern.models.segnet import BAYESIAN_RATE, PAPER, MonteCarloDropout
from segkern.nn import MaxPool2d, MaxUnpool2d

STAGES = 4
CHANNELS = 64


@dataclass(frozen=True)
class SegNetBasicConfig:
    """Options of :class:`SegNetBasic`.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels.
        bayesian: Dropout of 0.5 after pools 3 and 4 and after decoder stages 4 and 3
            (arXiv:1511.02680); see :meth:`SegNetBasic.sample`.
    """

    num_classes: int = 11
    in_channels: int = 3
    bayesian: bool = False


class SegNetBasic(MonteCarloDropout):
    """SegNet-Basic, as the authors' released Caffe definition has it.

    Args:
        config: See :class:`SegNetBasicConfig`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size of at least one pixel.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``.

    Raises (forward):
        ValueError: If the input has another number of axes or channels, or if in training a batch
            of one comes down to a 1x1 map before a batch norm (8 pixels or fewer per axis).

    Paper: arXiv:1511.00561. The input passes a local response normalisation over 5 channels
    (alpha 1e-4, beta 0.75; torch divides alpha by the window as Caffe does), which does nearly
    nothing to images scaled to 0..1: feed raw values as the recipe does. Encoder stages have a
    ReLU, decoder stages have none.

    Deviations from the release:
        - Batch norm keeps torch's running averages, see :class:`segkern.models.segnet.SegNet`.

    Deviations from the paper:
        - Convolutions have biases, as released; the paper says they have none.
    """

    def __init__(self, config: SegNetBasicConfig) -> None:
        super().__init__()
        self.in_channels = config.in_channels
        rate = BAYESIAN_RATE if config.bayesian else 0
        self.lrn = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)
        self.encoder = nn.ModuleDict()
        self.decoder = nn.ModuleDict()
        for i in range(1, STAGES + 1):
            conv = nn.Conv2d(config.in_channels if i == 1 else CHANNELS, CHANNELS, 7, padding=3)
            self.encoder[f"stage{i}"] = ConvNormReLU(conv)
            self.encoder[f"dropout{i}"] = make_dropout(rate if i >= 3 else 0)
        for i in range(STAGES, 0, -1):
            conv = nn.Conv2d(CHANNELS, CHANNELS, 7, padding=3)
            self.decoder[f"stage{i}"] = ConvNormReLU(conv, relu=False)
            self.decoder[f"dropout{i}"] = make_dropout(rate if i >= 3 else 0)
        self.pool = MaxPool2d(2, ceil_mode=True, return_indices=True)
        self.unpool = MaxUnpool2d(2)
        self.classifier = nn.Conv2d(CHANNELS, config.num_classes, 1)
        msra_(self)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image("segnet_basic", image, self.in_channels)
        x = self.lrn(image)
        routes = []
        for i in range(1, STAGES + 1):
            layer = f"encoder.stage{i}.norm"
            check_batch_statistics("segnet_basic", layer, x, self.training)
            x = self.encoder[f"stage{i}"](x)
            size = tuple(x.shape[-2:])
            x, indices = self.pool(x)
            routes.append((indices, size))
            x = self.encoder[f"dropout{i}"](x)
        for i in range(STAGES, 0, -1):
            indices, size = routes[i - 1]
            x = self.decoder[f"stage{i}"](self.unpool(x, indices, size))
            x = self.decoder[f"dropout{i}"](x)
        return {"out": self.classifier(x)}


RECIPE = Recipe(
    optimizer="sgd",
    lr=0.1,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="constant",
    batch_size=12,
    epochs=109,
    input="bgr",
    class_weights="segnet",
    loss_reduction="pixels",
    bias_lr_mult=2.0,
    bias_decay_mult=0.0,
    resize=(360, 480),
    notes=(
        "The paper gives no length; 109 epochs are the tutorial's 10 000 iterations of batch 4. "
        "Its weight decay and raw BGR input into the LRN layer are taken too. Results are from "
        "the checkpoint with the best global accuracy on validation. No augmentation."
    ),
    source="arXiv:1511.00561 section 3.1; SegNet-Tutorial Models/segnet_basic_solver.prototxt",
)


@register_model(
    SegNetBasicConfig,
    parameters=1_416_587,
    paper=PAPER,
    recipe=RECIPE,
    head="classifier.bias",
    reported={
        "CamVid test global accuracy": 82.7,
        "CamVid test class accuracy": 62.0,
        "CamVid test mIoU": 47.7,
        "CamVid test boundary F1": 35.78,
    },
)
def segnet_basic(config: SegNetBasicConfig) -> SegNetBasic:
    """SegNet-Basic, 1.4 M parameters, 11 classes."""
    return SegNetBasic(config)
