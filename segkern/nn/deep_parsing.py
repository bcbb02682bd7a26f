"""The layers of the Deep Parsing Network's Markov random field, b12 to b15."""

from __future__ import annotations

import torch
from torch import Tensor

from segkern import ops


class ChannelAffine(torch.nn.Module):
    """a x + b with a factor and a shift of each channel; 1 and 0 at the start.

    Args:
        channels: C.

    Shape:
        - Input and output: (N, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.weight = torch.nn.Parameter(torch.ones(channels))
        self.bias = torch.nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)

    def extra_repr(self) -> str:
        return f"{self.channels}"


class LocalQuadraticFilter(torch.nn.Module):
    """:func:`segkern.ops.local_quadratic_filter` with learned weights: DPN's local convolution.

    The parameter ``weight`` holds the weights of colour and of position, both 1 at the start, as
    factors of a mean over the window: the operator gets ``weight[0] / (kh kw)`` and
    ``weight[1] / (kh kw position_unit^2)``.

    Args:
        kernel_size: window, one integer or (height, width).
        position_unit: pixels in which distances count 1.
        multiply: include the factor q_j.

    Shape:
        - q: (N, L, H, W); image: (N, C, H, W), 1 to 4 channels, colours in 0 to 1.
        - Output: that of q.

    Example:
        >>> import torch
        >>> layer = LocalQuadraticFilter(kernel_size=7)
        >>> layer(torch.rand(1, 4, 9, 11), torch.rand(1, 3, 9, 11)).shape
        torch.Size([1, 4, 9, 11])
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int] = 50,
        *,
        position_unit: float = 25.0,
        multiply: bool = True,
    ) -> None:
        super().__init__()
        size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        if len(size) != 2 or not all(isinstance(k, int) and k >= 1 for k in size):
            raise ValueError(
                f"LocalQuadraticFilter: kernel_size must be positive, got {kernel_size!r}"
            )
        if not 0 < position_unit < float("inf"):
            raise ValueError(
                f"LocalQuadraticFilter: position_unit must be positive, got {position_unit!r}"
            )
        self.kernel_size, self.position_unit, self.multiply = size, position_unit, multiply
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, q: Tensor, image: Tensor) -> Tensor:
        area = self.kernel_size[0] * self.kernel_size[1]
        colour, position = self.weight.double().unbind()
        return ops.local_quadratic_filter(
            q,
            image,
            colour / area,
            position / (area * self.position_unit**2),
            self.kernel_size,
            multiply=self.multiply,
        )

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, position_unit={self.position_unit}, "
            f"multiply={self.multiply}"
        )


class MixtureMRF(torch.nn.Module):
    """One mean field iteration of DPN's Markov random field: layers b12 to b15.

    Marginals are filtered around each pixel (b12), gathered over the labels of the neighbourhood by
    a convolution with K contexts a label, channel u K + k being context k of label u (b13; this one
    is an ordinary convolution, torch's), the cheapest context of each label is chosen (b14) and its
    penalty taken from the log unary (b15). b12 and b13 end in a :class:`ChannelAffine`. At the
    start penalties are small, so that the result is close to the unary term's softmax.

    Args:
        num_labels: L.
        mixtures: K.
        filter_size: window of b12.
        context_size: window of b13, odd.
        multiply: the factor q_j of b12, which the mean field formula has.

    Shape:
        - log_unary: (N, L, H, W) log-probabilities, or scores whose softmax they are.
        - unary: (N, L, H, W) probabilities.
        - image: (N, C, H, W), 1 to 4 channels, colours in 0 to 1.
        - Output: log-marginals, (N, L, H, W).

    Example:
        >>> import torch
        >>> mrf = MixtureMRF(4, filter_size=8, context_size=3)
        >>> scores = torch.randn(1, 4, 9, 11)
        >>> mrf(scores, scores.softmax(1), torch.rand(1, 3, 9, 11)).exp().sum(1).mean().round()
        tensor(1., grad_fn=<RoundBackward0>)
    """

    def __init__(
        self,
        num_labels: int,
        *,
        mixtures: int = 5,
        filter_size: int = 50,
        context_size: int = 9,
        multiply: bool = True,
    ) -> None:
        super().__init__()
        if num_labels < 1:
            raise ValueError(f"MixtureMRF: num_labels must be positive, got {num_labels}")
        if not 1 <= mixtures <= 256:
            raise ValueError(f"MixtureMRF: mixtures must be from 1 to 256, got {mixtures}")
        if context_size < 1 or context_size % 2 == 0:
            raise ValueError(
                f"MixtureMRF: context_size must be positive and odd, got {context_size}"
            )
        self.filter = LocalQuadraticFilter(filter_size, multiply=multiply)
        self.filter_affine = ChannelAffine(num_labels)
        self.contexts = torch.nn.Conv2d(
            num_labels,
            num_labels * mixtures,
            context_size,
            padding=context_size // 2,
            bias=False,
        )
        self.contexts_affine = ChannelAffine(num_labels * mixtures)
        torch.nn.init.normal_(self.contexts.weight, std=0.01)

    def forward(self, log_unary: Tensor, unary: Tensor, image: Tensor) -> Tensor:
        penalty = self.contexts_affine(self.contexts(self.local_penalty(unary, image)))
        return ops.mixture_mean_field(log_unary, penalty)

    def local_penalty(self, unary: Tensor, image: Tensor) -> Tensor:
        """The result of b12, (N, L, H, W)."""
        return self.filter_affine(self.filter(unary, image))
