"""The dense CRF at the end of DeepLab v1 and v2."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from segkern import ops
from segkern.models._preprocess import colour_scale


@dataclass(frozen=True)
class CRFSettings:
    """Weights and widths of the two terms, and the mean-field iterations.

    Attributes:
        bilateral: Width in pixels, width in colours of 0..255, weight.
        gaussian: Width in pixels, weight.
        iterations: Of mean field.
    """

    bilateral: tuple[float, float, float]
    gaussian: tuple[float, float]
    iterations: int = 10


def check_crf(name: str, dense_crf: bool, in_channels: int) -> None:
    """Raise ValueError if the CRF is asked for without colours to look at."""
    if dense_crf and in_channels != 3:
        raise ValueError(
            f"{name}: dense_crf must be False unless in_channels is 3, got {in_channels}"
        )


def refine(network: nn.Module, scores: Tensor, image: Tensor, settings: CRFSettings) -> Tensor:
    """Log-marginals of the dense CRF whose unary energies are ``-scores``, in their shape.

    Filters are normalised per pixel afterwards, as in the code that DeepLab shipped. The image is
    the network's preprocessed input: ``network.recipe.input`` says how its colours are scaled,
    and shifts and the order of channels do not matter to the CRF.
    """
    factors = image.new_tensor(colour_scale(network.recipe.input)).view(1, 3, 1, 1)
    sxy, srgb, weight = settings.bilateral
    marginals = ops.dense_crf(
        -scores.float().log_softmax(dim=1),
        image.float() * factors.float(),
        gaussian={"sxy": settings.gaussian[0], "weight": settings.gaussian[1]},
        bilateral={"sxy": sxy, "srgb": srgb, "weight": weight},
        normalization="after",
        iterations=settings.iterations,
    )
    return marginals.clamp(min=1e-20).log().to(scores.dtype)
