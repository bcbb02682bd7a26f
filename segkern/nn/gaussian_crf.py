"""A Gaussian CRF whose pairwise values come from features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from segkern.ops.gaussian_crf import MAX_LEVELS, PAIRWISE, definite_limit, gaussian_crf


class GaussianCRF(torch.nn.Module):
    """Scores from unary scores and pairwise values that convolutions make from features.

    A 1x2 convolution gives the value between a cell and its right neighbour, a 2x1 convolution
    that between a cell and the one below: one channel, or one for every pair of labels in the
    general model. With several levels a 1x1 convolution over the features of a fine cell and of
    the coarse cell that covers it links them too. Weights and biases start at zero, so the layer
    starts as a division by `diagonal` (in the reduced model, as the centring of the labels).

    Args:
        in_channels: channels of the features, or one number for each level, finest first.
        num_labels: L.
        pairwise: ``"potts"``, ``"general"`` or ``"reduced"`` (the layer released with the paper),
            see :func:`segkern.ops.gaussian_crf`.
        diagonal: what is added on the diagonal; the released value is 10.
        definite: below 1, a pairwise value v becomes b * tanh(v / b), with b this share of the
            bound below which the matrix is positive definite whatever the features are. None uses
            the values as they are, as the release does, and an item whose matrix is not positive
            definite is an error or NaN, see `check`.
        repeats: applications of the layer, one after the other with the same pairwise values; the
            released network has 2.
        output: with several levels, the scores of the ``"finest"``, or the ``"average"`` of all,
            spread to the size of the finest.
        tolerance, max_iterations, eta, check: as in :func:`segkern.ops.gaussian_crf`.

    Shape:
        - features: (N, in_channels, H, W), or one for each level, finest first; each level has
          as many or fewer rows and columns than the one before.
        - unary: (N, L, H, W), or one for each level.
        - Output: (N, L, H, W) of the finest level, in the dtype of unary.

    The loss is any loss on the scores, softmax cross-entropy in the paper. Chandra and Kokkinos,
    arXiv:1603.08358.

    Example:
        >>> import torch
        >>> crf = GaussianCRF(8, 3)
        >>> crf(torch.rand(2, 8, 5, 6), torch.rand(2, 3, 5, 6)).shape
        torch.Size([2, 3, 5, 6])
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        num_labels: int,
        *,
        pairwise: str = "potts",
        diagonal: float = 10.0,
        definite: float | None = 0.95,
        repeats: int = 1,
        output: str = "finest",
        tolerance: float = 1e-5,
        max_iterations: int = 200,
        eta: float = 1.0,
        check: bool | None = None,
    ) -> None:
        super().__init__()
        channels = [in_channels] if isinstance(in_channels, int) else list(in_channels)
        name = type(self).__name__
        if not 1 <= len(channels) <= MAX_LEVELS:
            raise ValueError(
                f"{name}: in_channels must be for 1 to {MAX_LEVELS} levels, got {len(channels)}"
            )
        least = 2 if pairwise == "reduced" else 1
        if num_labels < least:
            raise ValueError(f"{name}: num_labels must be at least {least}, got {num_labels}")
        if pairwise not in PAIRWISE:
            raise ValueError(
                f"{name}: pairwise must be one of {', '.join(map(repr, PAIRWISE))}, "
                f"got {pairwise!r}"
            )
        if not 0 < diagonal < math.inf:
            raise ValueError(f"{name}: diagonal must be positive and finite, got {diagonal!r}")
        if definite is not None and not 0 < definite < 1:
            raise ValueError(f"{name}: definite must be None or in (0, 1), got {definite!r}")
        if repeats < 1:
            raise ValueError(f"{name}: repeats must be at least 1, got {repeats}")
        if output not in ("finest", "average"):
            raise ValueError(f"{name}: output must be 'finest' or 'average', got {output!r}")
        self.num_labels, self.pairwise, self.diagonal = num_labels, pairwise, float(diagonal)
        self.definite, self.repeats, self.output = definite, repeats, output
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self.eta, self.check = eta, check
        planes = num_labels**2 if pairwise == "general" else 1
        self.horizontal = torch.nn.ModuleList(torch.nn.Conv2d(c, planes, (1, 2)) for c in channels)
        self.vertical = torch.nn.ModuleList(torch.nn.Conv2d(c, planes, (2, 1)) for c in channels)
        self.across = torch.nn.ModuleList(
            torch.nn.Conv2d(fine + coarse, planes, 1)
            for fine, coarse in zip(channels, channels[1:])
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            torch.nn.init.zeros_(parameter)

    def edges(
        self, features: Tensor | Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The pairwise values: horizontal, vertical and across, for each level."""
        levels = [features] if isinstance(features, Tensor) else list(features)
        if len(levels) != len(self.horizontal):
            raise ValueError(
                f"{type(self).__name__}: features must have {len(self.horizontal)} levels, "
                f"got {len(levels)}"
            )
        horizontal = [_strip(conv, level, 3) for conv, level in zip(self.horizontal, levels)]
        vertical = [_strip(conv, level, 2) for conv, level in zip(self.vertical, levels)]
        across = [
            conv(torch.cat([fine, spread(coarse, fine.shape[2:])], 1))
            for conv, fine, coarse in zip(self.across, levels, levels[1:])
        ]
        if self.definite is not None:
            sizes = [tuple(level.shape[2:]) for level in levels]
            bound = self.definite * definite_limit(
                sizes, pairwise=self.pairwise, labels=self.num_labels, diagonal=self.diagonal
            )
            horizontal, vertical, across = (
                [bound * torch.tanh(value / bound) for value in values]
                for values in (horizontal, vertical, across)
            )
        return horizontal, vertical, across

    def forward(self, features: Tensor | Sequence[Tensor], unary: Tensor | Sequence[Tensor]):
        several = not isinstance(unary, Tensor)
        for level in unary if several else [unary]:
            if level.dim() != 4 or level.shape[1] != self.num_labels:
                raise ValueError(
                    f"{type(self).__name__}: unary must be (N, {self.num_labels}, H, W), "
                    f"got {tuple(level.shape)}"
                )
        edges = self.edges(features)
        scores = unary if several else [unary]
        for _ in range(self.repeats):
            scores = gaussian_crf(
                scores,
                *edges,
                pairwise=self.pairwise,
                diagonal=self.diagonal,
                tolerance=self.tolerance,
                max_iterations=self.max_iterations,
                eta=self.eta,
                check=self.check,
            )
        if self.output == "finest":
            return scores[0]
        size = scores[0].shape[2:]
        return sum(spread(level, size) for level in scores) / len(scores)

    def extra_repr(self) -> str:
        return (
            f"{self.num_labels}, pairwise={self.pairwise!r}, diagonal={self.diagonal}, "
            f"definite={self.definite}, repeats={self.repeats}, output={self.output!r}"
        )


def spread(coarse: Tensor, size: Sequence[int]) -> Tensor:
    """(N, C, *size) of values of the coarse cells that cover each fine one."""
    rows, columns = (
        torch.arange(n, device=coarse.device) * coarse.shape[2 + axis] // max(n, 1)
        for axis, n in enumerate(size)
    )
    return coarse[:, :, rows[:, None], columns]


def _strip(conv: torch.nn.Conv2d, level: Tensor, axis: int) -> Tensor:
    """`conv` over pairs along an axis, also where it has one cell and so no pair."""
    if level.shape[axis] < 2:
        shape = list(level.shape)
        shape[1], shape[axis] = conv.out_channels, 0
        return level.new_zeros(shape)
    return conv(level)
