"""CRF-as-RNN: FCN-8s and a dense CRF's mean field, trained end to end."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from segkern.models._options import as_tuple
from segkern.models._preprocess import to_levels
from segkern.models._recipe import Recipe
from segkern.models._registry import register_model
from segkern.models.fcn import FCN, FCN32sConfig
from segkern.nn import CRFAsRNN

PAPER = (
    "S. Zheng, S. Jayasumana, B. Romera-Paredes, V. Vineet, Z. Su, D. Du, C. Huang, P. H. S. Torr: "
    "Conditional Random Fields as Recurrent Neural Networks, ICCV 2015, arXiv:1502.03240"
)


RECIPE = Recipe(
    optimizer="sgd",
    lr=1e-13,
    momentum=0.99,
    weight_decay=5e-4,
    batch_size=1,
    epochs=12,
    input="caffe",
    loss_reduction="batch",
    bias_lr_mult=2.0,
    bias_decay_mult=0.0,
    crf_weights_lr_mult=10_000.0,
    crf_compatibility_lr_mult=1000.0,
    notes=(
        "Started from a trained FCN-8s (weights_backbone=), then end to end, images one at a time, "
        "not augmented; the loss is summed over pixels, so that the rate is not to be scaled. The "
        "number of iterations is not given, the epochs are FCN's. 5 updates in training, 10 in "
        "evaluation."
    ),
    source="arXiv:1502.03240 section 6; torrvision/crfasrnn TVG_CRFRNN_new_deploy.prototxt",
)


@dataclass(frozen=True)
class CRFasRNNConfig(FCN32sConfig):
    """Options of :class:`CRFasRNN`: those of ``fcn32s``, and of :class:`segkern.nn.CRFAsRNN`.

    Attributes:
        kernel_weights: ``"matrix"``, ``"vector"`` or ``"scalar"``.
        gaussian: Width in pixels, and what the spatial weights start from.
        bilateral: Widths in pixels and in levels of 0..255, and what the bilateral weights start
            from.
        training_iterations: Mean field updates in training.
        iterations: In evaluation.
        memory: ``"store"`` or ``"recompute"`` the marginals for the backward.
    """

    kernel_weights: str = "matrix"
    gaussian: tuple[float, ...] = (3.0, 3.0)
    bilateral: tuple[float, ...] = (160.0, 3.0, 5.0)
    training_iterations: int = 5
    iterations: int = 10
    memory: str = "store"

    def __post_init__(self) -> None:
        as_tuple(self, "gaussian", "bilateral")


class CRFasRNN(FCN):
    """FCN-8s whose scores a CRF-as-RNN refines; the CRF starts from the release's values.

    Args:
        config: See :class:`CRFasRNNConfig`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, any size of at least one pixel, scaled as
          ``recipe.input`` says: the CRF compares colours in levels of 0..255.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)``, the refined scores.

    Raises (forward):
        ValueError: If the input has another number of axes or channels.

    Paper: arXiv:1502.03240. The names of the state dict are those of ``fcn8s``, and ``crf_rnn``
    with 3 L^2 = 1323 parameters at 21 classes. It starts from a file of ``fcn8s``, as the paper
    does (``weights_backbone=``); the CRF keeps its initial values.

    Deviations: those of :class:`segkern.models.fcn.FCN` and :class:`segkern.nn.CRFAsRNN`; images
    keep their size, where the release brings them to 500x500.
    """

    recipe: Recipe = RECIPE

    def __init__(self, config: CRFasRNNConfig) -> None:
        super().__init__("crfasrnn", config, 8)
        self.coarser = "fcn8s"
        self.crf_rnn = CRFAsRNN(
            config.num_classes,
            kernel_weights=config.kernel_weights,
            gaussian=config.gaussian,
            bilateral=config.bilateral,
            training_iterations=config.training_iterations,
            iterations=config.iterations,
            memory=config.memory,
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        scores = super().forward(image)["out"]
        scale, shift = to_levels(self.recipe.input, self.in_channels)
        levels = image.detach().float() * scale.to(image.device) + shift.to(image.device)
        return {"out": self.crf_rnn(scores, levels)}

    def _load(self, given: dict[str, Tensor], source: str, optional: tuple[str, ...]) -> None:
        super()._load(given, source, (*optional, "crf_rnn."))


@register_model(
    CRFasRNNConfig,
    parameters=134_364_074,
    paper=PAPER,
    recipe=RECIPE,
    head="score_fr.bias",
    reported={
        "VOC 2012 test mIoU": 72.0,
        "VOC 2012 test mIoU, with COCO": 74.7,
        "VOC 2012 reduced val mIoU": 69.6,
        "VOC 2012 reduced val mIoU, with COCO": 72.9,
    },
)
def crfasrnn(config: CRFasRNNConfig) -> CRFasRNN:
    """CRF-as-RNN on FCN-8s on VGG16, 134.4 M parameters, 21 classes."""
    return CRFasRNN(config)
