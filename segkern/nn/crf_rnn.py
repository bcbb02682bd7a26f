"""CRF-as-RNN: mean field of a dense CRF as a layer whose weights and compatibility are learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from segkern.nn._crf_arguments import check_choice, check_count, term_numbers
from segkern.ops import permutohedral_filter
from segkern.ops.dense_crf import (
    PairwiseTerm,
    bilateral_features,
    mean_field,
    pairwise_term,
    position_features,
)

KERNEL_WEIGHTS = ("matrix", "vector", "scalar")

# Names in the PyTorch port (sadeepj/crfasrnn_pytorch), which adds H where the release subtracts it.
PORT_NAMES = {
    "spatial_ker_weights": "spatial_weights",
    "bilateral_ker_weights": "bilateral_weights",
    "compatibility_matrix": "compatibility",
}
PORT_PREFIX = "crfrnn."


class CRFAsRNN(torch.nn.Module):
    """Ends a network with T mean field updates of a dense CRF, and learns their three matrices.

    Scores u, positive for likely labels, are refined by T updates with shared parameters, q_0 = u:

    1. Q = softmax(q_{t-1}) over the labels;
    2. F_s, F_b = Q averaged over near pixels, and over near pixels of similar colour;
    3. G = W_s F_s + W_b F_b, with ``spatial_weights`` and ``bilateral_weights``;
    4. H = M G, with ``compatibility``;
    5. q_t = u - H.

    The result is q_T as it is, for a softmax cross-entropy: the softmax of it is Q. The sign is
    that of the Caffe release, where M starts as -I (a positive entry repels); the PyTorch port adds
    H and starts from +I, see :meth:`load_port`.

    Args:
        num_labels: L.
        kernel_weights: form of W_s and W_b: ``"matrix"`` (L, L) as released, rows receive;
            ``"vector"`` (L,), one per class: the diagonal; ``"scalar"`` (), one for all. 3 L^2,
            L^2 + 2 L or L^2 + 2 parameters with M: 1323, 483 or 443 for 21 labels.
        gaussian: (sxy, weight) of the spatial kernel: width in pixels, a number or (sx, sy), and
            what W_s starts from, times I.
        bilateral: (sxy, srgb, weight) of the bilateral kernel: widths in pixels and colour (a
            number or one per channel), and what W_b starts from.
        training_iterations: T in training. More gave the paper nothing.
        iterations: T in evaluation.
        memory: for the backward, ``"store"`` or ``"recompute"`` the marginals, as in
            :func:`segkern.ops.dense_crf`. On the CPU storing takes 4 T bytes a score.

    Shape:
        - logits: (N, L, H, W), floating.
        - image: (N, C, H, W) or (1, C, H, W), uint8 or floating, in the units of ``srgb``: 0 to 255
          for the default, mean-subtracted or not.
        - Output: (N, L, H, W), in the dtype of logits; computed in float32, under autocast too.

    Raises (forward):
        TypeError, ValueError: an argument of the wrong form.
        RuntimeError: what :func:`segkern.ops.permutohedral_build` raises.

    Differentiable once in logits and parameters, not in the image. Deterministic. The widths are
    fixed, the filters divided by their mass afterwards, features ordered x, y, colours. Zheng et
    al., arXiv:1502.03240. Deviations: 1e-20 is added to the mass as in the release (2.2e-16 in the
    port), which does not matter, as every pixel counts itself; images are not cropped or padded to
    500x500, so that no padded pixels take part.

    Example:
        >>> import torch
        >>> crf = CRFAsRNN(21)
        >>> sum(p.numel() for p in crf.parameters())
        1323
        >>> image = torch.randint(0, 256, (1, 3, 6, 7), dtype=torch.uint8)
        >>> crf(torch.randn(1, 21, 6, 7), image).shape
        torch.Size([1, 21, 6, 7])
    """

    def __init__(
        self,
        num_labels: int,
        *,
        kernel_weights: str = "matrix",
        gaussian: Sequence = (3.0, 3.0),
        bilateral: Sequence = (160.0, 3.0, 5.0),
        training_iterations: int = 5,
        iterations: int = 10,
        memory: str = "store",
    ) -> None:
        super().__init__()
        layer = "CRFAsRNN"
        check_count(layer, "num_labels", num_labels)
        check_count(layer, "training_iterations", training_iterations)
        check_count(layer, "iterations", iterations)
        check_choice(layer, "kernel_weights", kernel_weights, KERNEL_WEIGHTS)
        check_choice(layer, "memory", memory, ("store", "recompute"))
        self.num_labels, self.kernel_weights = num_labels, kernel_weights
        parts = ("sxy", "srgb", "weight")
        self.gaussian_sxy, spatial = term_numbers(layer, "gaussian", gaussian, parts[::2])
        *widths, appearance = term_numbers(layer, "bilateral", bilateral, parts)
        self.bilateral_widths = tuple(widths)
        self.training_iterations, self.iterations = training_iterations, iterations
        self.memory = memory
        self.spatial_weights = torch.nn.Parameter(self._start(spatial))
        self.bilateral_weights = torch.nn.Parameter(self._start(appearance))
        self.compatibility = torch.nn.Parameter(-torch.eye(num_labels))
        self._spatial: tuple[tuple, PairwiseTerm] | None = None

    def forward(self, logits: Tensor, image: Tensor) -> Tensor:
        self._check_inputs(logits, image)
        with torch.autocast(logits.device.type, enabled=False):
            unary = logits.float().flatten(2)
            size = tuple(logits.shape[2:])
            terms = [
                _with_cost(self._spatial_term(size, logits.device), self._cost("spatial_weights")),
                pairwise_term(
                    bilateral_features("CRFAsRNN", image.detach(), *self.bilateral_widths),
                    self._cost("bilateral_weights"),
                    "after",
                ),
            ]
            count = self.training_iterations if self.training else self.iterations
            memory = self.memory if torch.is_grad_enabled() else "recompute"
            # The operator returns marginals; the last update is written out for its scores.
            q, _ = mean_field(-unary, terms, count - 1, memory=memory)
            for term in terms:
                message = permutohedral_filter(q, term.lattice) * term.after[:, None]
                # Not matmul, which rounds in another way where a gradient is needed.
                unary = unary - torch.bmm(term.cost.expand(len(message), -1, -1), message)
        return unary.view(logits.shape).to(logits.dtype)

    def load_port(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take the three matrices of the PyTorch port, with the sign of its compatibility turned.

        Args:
            state_dict: of the port's whole network, whose other entries are left alone
                (``crfrnn.spatial_ker_weights``, ``crfrnn.bilateral_ker_weights``,
                ``crfrnn.compatibility_matrix``), or of its layer alone.

        Raises:
            ValueError: If a matrix is missing or does not fit; nothing is loaded then.
        """
        given = {}
        for theirs, own in PORT_NAMES.items():
            value = state_dict.get(PORT_PREFIX + theirs, state_dict.get(theirs))
            if value is None:
                raise ValueError(
                    f"CRFAsRNN: state_dict must hold {PORT_PREFIX}{theirs} or {theirs}, it has "
                    f"{', '.join(list(state_dict)[:8]) or 'nothing'}"
                )
            wanted = tuple(getattr(self, own).shape)
            if tuple(value.shape) != wanted:
                raise ValueError(
                    f"CRFAsRNN: {theirs} must be {wanted} like {own}, got {tuple(value.shape)}"
                )
            given[own] = -value if own == "compatibility" else value
        self.load_state_dict(given)

    def extra_repr(self) -> str:
        return (
            f"{self.num_labels}, kernel_weights={self.kernel_weights!r}, "
            f"gaussian_sxy={self.gaussian_sxy}, bilateral_widths={self.bilateral_widths}, "
            f"training_iterations={self.training_iterations}, iterations={self.iterations}"
        )

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_spatial": None}  # the lattice can be had again

    def _start(self, weight: float) -> Tensor:
        if self.kernel_weights == "matrix":
            return weight * torch.eye(self.num_labels)
        return torch.full((self.num_labels,) if self.kernel_weights == "vector" else (), weight)

    def _cost(self, name: str) -> Tensor:
        """M W as an (L, L) matrix: what a filtered marginal costs, rows receive."""
        weights, compatibility = getattr(self, name).float(), self.compatibility.float()
        if self.kernel_weights == "matrix":
            return compatibility @ weights
        return compatibility * weights  # scales column j by weight j, as a diagonal matrix does

    def _spatial_term(self, size: tuple[int, ...], device: torch.device) -> PairwiseTerm:
        """The spatial lattice and its mass, kept for the next image of this size."""
        key = (size, device)
        if torch.compiler.is_compiling():
            return self._build_spatial(size, device)
        if self._spatial is None or self._spatial[0] != key:
            # What is kept may be used under autograd later, which inference tensors refuse.
            with torch.inference_mode(False):
                self._spatial = (key, self._build_spatial(size, device))
        return self._spatial[1]

    def _build_spatial(self, size: tuple[int, ...], device: torch.device) -> PairwiseTerm:
        features = position_features("CRFAsRNN", size, self.gaussian_sxy, device)
        return pairwise_term(features, features.new_zeros(()), "after")

    def _check_inputs(self, logits: Tensor, image: Tensor) -> None:
        if not logits.is_floating_point():
            raise TypeError(f"CRFAsRNN: logits must be floating, got {logits.dtype}")
        if logits.dim() != 4 or logits.shape[1] != self.num_labels:
            raise ValueError(
                f"CRFAsRNN: logits must be (N, {self.num_labels}, H, W), got {tuple(logits.shape)}"
            )
        if (
            image.dim() != 4
            or image.shape[0] not in (1, logits.shape[0])
            or image.shape[2:] != logits.shape[2:]
        ):
            raise ValueError(
                f"CRFAsRNN: image must be {(logits.shape[0], 'C', *logits.shape[2:])} like logits, "
                f"got {tuple(image.shape)}"
            )


def _with_cost(term: PairwiseTerm, cost: Tensor) -> PairwiseTerm:
    return PairwiseTerm(term.lattice, term.before, term.after, cost)
