"""Layers over the permutohedral lattice: bilateral filtering and the dense CRF."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segkern import ops
from segkern.nn._crf_arguments import check_choice, check_count, term_numbers
from segkern.ops.dense_crf import NORMALIZATIONS, bilateral_features


class BilateralFilter(torch.nn.Module):
    """Averages values over pixels that are near and of similar colour.

    Args:
        sxy: width in pixels, a number or (sx, sy), or a tensor (a parameter is learned).
        srgb: width in colour, in the units of the guide: a number or one per channel, or a tensor.
        normalize: divide by the filtered ones, which makes it an average; otherwise raw sums.

    Shape:
        - values: (N, C, H, W), a floating dtype, computed in float32.
        - guide: (N, G, H, W) or (1, G, H, W), uint8 or floating.
        - Output: that of values.

    Differentiable in the values, and on the CPU in widths and guides that want a gradient.
    Deterministic on the CPU.

    Example:
        >>> import torch
        >>> smooth = BilateralFilter(sxy=8.0, srgb=13.0)
        >>> guide = torch.randint(0, 256, (1, 3, 6, 7), dtype=torch.uint8)
        >>> smooth(torch.ones(1, 2, 6, 7), guide).mean().round().item()
        1.0
    """

    def __init__(
        self,
        sxy: float | Sequence[float],
        srgb: float | Sequence[float],
        *,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.sxy, self.srgb, self.normalize = sxy, srgb, normalize

    def forward(self, values: Tensor, guide: Tensor) -> Tensor:
        if not values.is_floating_point():
            raise TypeError(f"BilateralFilter: values must be floating, got {values.dtype}")
        if values.shape[2:] != guide.shape[2:]:
            raise ValueError(
                f"BilateralFilter: guide must have the size of values {tuple(values.shape[2:])}, "
                f"got {tuple(guide.shape)}"
            )
        if guide.shape[0] not in (1, values.shape[0]):
            raise ValueError(
                f"BilateralFilter: guide must be one image or {values.shape[0]} like values, "
                f"got {tuple(guide.shape)}"
            )
        features = bilateral_features("BilateralFilter", guide, self.sxy, self.srgb)
        lattice = ops.permutohedral_build(features)
        learned = features if features.requires_grad else None  # through the widths or the guide
        # The sums in float32: in half precision they overflow before they are divided.
        filtered = ops.permutohedral_filter(values.float(), lattice, features=learned)
        if not self.normalize:
            return filtered.to(values.dtype)
        ones = torch.ones(features.shape[0], 1, features.shape[1], device=values.device)
        mass = ops.permutohedral_filter(ones, lattice, features=learned)
        mass = mass.view(-1, 1, *values.shape[2:])
        return (filtered / (mass + 1e-20)).to(values.dtype)

    def extra_repr(self) -> str:
        return f"sxy={self.sxy}, srgb={self.srgb}, normalize={self.normalize}"


class DenseCRF(torch.nn.Module):
    """Mean field in a fully connected CRF over an image, with weights fixed or learned.

    The parameters ``gaussian_weight`` and ``bilateral_weight`` are numbers, or one per label with
    `per_label`; ``compatibility`` is the (L, L) matrix of costs, Potts (1 off the diagonal, 0 on
    it) at the start. They are parameters with `learnable`, otherwise buffers, and in the
    ``state_dict`` either way.

    Costs are weight times compatibility: a weight per label is that of the label that sends, so
    that ``diag(gaussian_weight)`` stands right of the matrix. A learnt matrix need not stay
    symmetric.

    Args:
        num_labels: L.
        gaussian: (sxy, weight) of the smoothness term, or None.
        bilateral: (sxy, srgb, weight) of the appearance term, or None.
        normalization, iterations: as in :func:`segkern.ops.dense_crf`.
        per_label: a weight for each label.
        learnable: make weights and compatibility parameters.

    Shape:
        - logits: (N, L, H, W), of which the unary energies are minus the log-softmax.
        - image: (N, C, H, W), uint8 or floating, in the units of ``srgb``.
        - Output: log-marginals (N, L, H, W), in the dtype of logits; none is below ln 1e-20, and
          those that would be pass on no gradient.

    Differentiable in logits, weights and compatibility, not in the image. Deterministic as
    :func:`segkern.ops.dense_crf`. :class:`CRFAsRNN` is the layer with full matrices of weights.

    Example:
        >>> import torch
        >>> crf = DenseCRF(4, iterations=3)
        >>> image = torch.randint(0, 256, (1, 3, 6, 7), dtype=torch.uint8)
        >>> crf(torch.randn(1, 4, 6, 7), image).shape
        torch.Size([1, 4, 6, 7])
    """

    def __init__(
        self,
        num_labels: int,
        *,
        gaussian: tuple[float, float] | None = (3.0, 3.0),
        bilateral: tuple[float, float, float] | None = (80.0, 13.0, 10.0),
        normalization: str = "symmetric",
        iterations: int = 10,
        per_label: bool = False,
        learnable: bool = False,
    ) -> None:
        super().__init__()
        check_count("DenseCRF", "num_labels", num_labels)
        check_count("DenseCRF", "iterations", iterations, least=0)
        check_choice("DenseCRF", "normalization", normalization, NORMALIZATIONS)
        parts = ("sxy", "srgb", "weight")
        if gaussian is not None:
            gaussian = term_numbers("DenseCRF", "gaussian", gaussian, parts[::2])
        if bilateral is not None:
            bilateral = term_numbers("DenseCRF", "bilateral", bilateral, parts)
        self.num_labels = num_labels
        self.normalization, self.iterations = normalization, iterations
        self.gaussian_sxy = None if gaussian is None else gaussian[0]
        self.bilateral_widths = None if bilateral is None else tuple(bilateral[:2])
        shape = (num_labels,) if per_label else ()
        values = {"compatibility": 1.0 - torch.eye(num_labels)}
        if gaussian is not None:
            values["gaussian_weight"] = torch.full(shape, float(gaussian[1]))
        if bilateral is not None:
            values["bilateral_weight"] = torch.full(shape, float(bilateral[2]))
        for name, value in values.items():
            if learnable:
                self.register_parameter(name, torch.nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, logits: Tensor, image: Tensor) -> Tensor:
        if not logits.is_floating_point():
            raise TypeError(f"DenseCRF: logits must be floating, got {logits.dtype}")
        if logits.dim() != 4 or logits.shape[1] != self.num_labels:
            raise ValueError(
                f"DenseCRF: logits must be (N, {self.num_labels}, H, W), got {tuple(logits.shape)}"
            )
        gaussian = bilateral = None
        if self.gaussian_sxy is not None:
            gaussian = {"sxy": self.gaussian_sxy, "weight": self.gaussian_weight}
        if self.bilateral_widths is not None:
            sxy, srgb = self.bilateral_widths
            bilateral = {"sxy": sxy, "srgb": srgb, "weight": self.bilateral_weight}
        q = ops.dense_crf(
            -logits.float().log_softmax(1),
            image.detach(),
            gaussian=gaussian,
            bilateral=bilateral,
            compatibility=self.compatibility,
            normalization=self.normalization,
            iterations=self.iterations,
        )
        return q.clamp(min=1e-20).log().to(logits.dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.num_labels}, gaussian_sxy={self.gaussian_sxy}, "
            f"bilateral_widths={self.bilateral_widths}, normalization={self.normalization!r}, "
            f"iterations={self.iterations}"
        )
