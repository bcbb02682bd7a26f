"""Mean field inference of a fully connected CRF with Gaussian edge potentials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
import torch
from torch import Tensor

from segkern import _load
from segkern.ops.permutohedral import Lattice, permutohedral_build, permutohedral_filter

Widths = Union[float, Sequence[float]]

NORMALIZATIONS = ("none", "before", "after", "symmetric")
EPSILON = 1e-20

_ROW = 8  # native rows of labels are padded to this many floats


@dataclass(frozen=True)
class PairwiseTerm:
    """A pairwise term ready for :func:`mean_field`.

    Attributes:
        lattice: over the term's features, for every item or one for all.
        before, after: (N, P) or (1, P) float32 factors of the values on each side of the filter.
        cost: float32 (), (L,) or (L, L): what a message costs. A Potts term of weight w has -w;
            a matrix has the receiving label as its row.
    """

    lattice: Lattice
    before: Tensor
    after: Tensor
    cost: Tensor


def pairwise_term(features: Tensor, cost: Tensor, normalization: str = "symmetric") -> PairwiseTerm:
    """Builds the lattice of (N, P, d) features and the factors of a normalisation mode."""
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"dense_crf: normalization must be one of {', '.join(map(repr, NORMALIZATIONS))}, "
            f"got {normalization!r}"
        )
    lattice = permutohedral_build(features)
    weight = lattice.weight
    one = weight.new_ones(weight.shape[:2])
    if normalization == "none":
        return PairwiseTerm(lattice, one, one, cost)
    mass = permutohedral_filter(one[:, None], lattice)[:, 0] + EPSILON
    if normalization == "symmetric":
        root = mass.rsqrt()
        return PairwiseTerm(lattice, root, root, cost)
    if normalization == "before":
        return PairwiseTerm(lattice, 1 / mass, one, cost)
    return PairwiseTerm(lattice, one, 1 / mass, cost)


def mean_field(
    unary: Tensor,
    terms: Sequence[PairwiseTerm],
    iterations: int,
    *,
    q0: Tensor | None = None,
    memory: str = "recompute",
    return_kl: bool = False,
) -> tuple[Tensor, Tensor]:
    """(N, L, P) float32 marginals after mean field updates, and the objective (N,) or (0,).

    Differentiable in the unary energies, `q0` and the terms' costs. See :func:`dense_crf`.
    """
    if memory not in ("recompute", "store"):
        raise ValueError(f"dense_crf: memory must be 'recompute' or 'store', got {memory!r}")
    differentiable = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (unary, q0, *(term.cost for term in terms))
    )
    q, _, kl = torch.ops.segkern.dense_crf.default(
        unary,
        q0,
        [tensor for term in terms for tensor in term.lattice],
        [tensor for term in terms for tensor in (term.before, term.after)],
        [term.cost for term in terms],
        iterations,
        differentiable and memory == "store",
        return_kl,
    )
    return q, kl


def dense_crf(
    unary: Any,
    image: Any = None,
    *,
    gaussian: Mapping[str, Any] | None = {"sxy": 3.0, "weight": 3.0},  # noqa: B006 (never changed)
    bilateral: Mapping[str, Any] | None = {"sxy": 80.0, "srgb": 13.0, "weight": 10.0},  # noqa: B006
    extra_terms: Sequence[Mapping[str, Any]] = (),
    compatibility: Any = "potts",
    normalization: str = "symmetric",
    iterations: int = 10,
    q0: Any = None,
    memory: str = "recompute",
    return_kl: bool = False,
) -> Any:
    """Marginals of a fully connected CRF, refined from unary energies by parallel mean field.

    Every pixel is linked to every other: by the smoothness term through their distance, by the
    appearance term through their distance and colours, both filtered over a permutohedral lattice.

    Args:
        unary: (N, L, H, W) or (L, H, W) energies, that is negative log-probabilities, L labels;
            or volumes (N, L, D, H, W). Floating. A tensor or an array.
        image: (N, C, H, W), or (C, H, W) for all N, uint8 or floating, of the same spatial size; C
            may be any number of channels. Colours are in the units of ``srgb``, so 0 to 255 for the
            default. May be None without ``bilateral``.
        gaussian: the smoothness term: ``sxy`` its width in pixels, a number or (sx, sy), or
            (sx, sy, sz) for volumes; ``weight``; or None to leave it out.
        bilateral: the appearance term: ``sxy``, ``srgb`` (a number, or one per channel),
            ``weight``; or None. Features are ordered x, y, colours, which is part of the
            definition.
        extra_terms: further terms, each with ``features`` (N, P, d) or (P, d), already divided by
            their widths, and ``weight``. Any term may have a ``compatibility`` of its own, and a
            ``weight`` is a number, a 0-d tensor (to learn) or one per label.
        compatibility: ``"potts"``, or costs: (L,) per label or (L, L), row = the label that
            receives; positive repels. A matrix is used as it is, symmetric or not.
        normalization: ``"symmetric"``, ``"after"`` (DeepLab, CRF-as-RNN), ``"before"`` or
            ``"none"`` (raw sums, which saturate at once).
        iterations: number of updates; 0 returns the start.
        q0: start, of the form of `unary`; None is softmax(-unary).
        memory: for the backward, ``"recompute"`` the marginals of each update or ``"store"`` them.
        return_kl: also return the objective at the result, (N,) float64, not differentiable.

    Returns:
        Marginals of the shape and dtype of `unary`, of the kind (tensor or array) of `unary`; with
        `return_kl` a pair. A NaN among an item's energies makes marginals of that item NaN.

    Raises:
        TypeError, ValueError: an argument of the wrong form.
        RuntimeError: what :func:`permutohedral_build` raises.

    Everything is computed in float32, under autocast too. Differentiable once in `unary`, `q0`,
    weights and compatibilities, not in features and widths. Deterministic, on the CPU for any
    number of threads. On CUDA at most 256 labels, and nothing waits for the device: a call can be
    captured in a CUDA graph. Kraehenbuehl and Koltun, arXiv:1210.5644.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> unary = -torch.rand(1, 3, 8, 10).softmax(1).log()
        >>> image = torch.randint(0, 256, (1, 3, 8, 10), dtype=torch.uint8)
        >>> ops.dense_crf(unary, image, iterations=5).shape
        torch.Size([1, 3, 8, 10])
    """
    op = "dense_crf"
    like = unary
    unary = _as_tensor(op, "unary", unary)
    if not unary.is_floating_point():
        raise TypeError(f"{op}: unary must be floating, got {unary.dtype}")
    if image is not None:
        image = _as_tensor(op, "image", image).to(unary.device)
    energies = unary if unary.dim() >= 4 else unary[None]
    if energies.dim() < 4 or energies.shape[1] < 1:
        raise ValueError(
            f"{op}: unary must be (N, L, H, W) or (L, H, W) with at least one label, "
            f"got {tuple(unary.shape)}"
        )
    size = tuple(energies.shape[2:])
    if image is not None:
        pixels = image if image.dim() == energies.dim() else image[None]
        if tuple(pixels.shape[2:]) != size or pixels.shape[0] not in (1, energies.shape[0]):
            raise ValueError(
                f"{op}: image must be {(energies.shape[0], 'C', *size)} like unary, "
                f"got {tuple(image.shape)}"
            )
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"{op}: iterations must be an integer of at least 0, got {iterations!r}")
    if unary.is_cuda:
        _load.require_cuda(op)

    labels = energies.shape[1]
    device = energies.device
    terms = []
    if gaussian is not None:
        options = _options(op, "gaussian", gaussian, {"sxy"})
        cost = _cost(op, options, compatibility, labels, device)
        features = position_features(op, size, options["sxy"], device)
        terms.append(pairwise_term(features, cost, normalization))
    if bilateral is not None:
        if image is None:
            raise ValueError(f"{op}: image must be given for the bilateral term, got None")
        options = _options(op, "bilateral", bilateral, {"sxy", "srgb"})
        cost = _cost(op, options, compatibility, labels, device)
        features = bilateral_features(op, pixels, options["sxy"], options["srgb"])
        terms.append(pairwise_term(features, cost, normalization))
    for number, extra in enumerate(extra_terms):
        options = _options(op, f"extra_terms[{number}]", extra, {"features"})
        features = _as_tensor(op, "features", options["features"]).to(device)
        cost = _cost(op, options, compatibility, labels, device)
        terms.append(pairwise_term(features, cost, normalization))

    features = None  # the lattices hold all that is needed of them
    start = None
    if q0 is not None:
        start = _as_tensor(op, "q0", q0).to(device)
        if start.shape != unary.shape:
            raise ValueError(
                f"{op}: q0 must be {tuple(unary.shape)} like unary, got {tuple(start.shape)}"
            )
        start = start.reshape(energies.shape).flatten(2).float()
    q, kl = mean_field(
        energies.flatten(2).float(),
        terms,
        iterations,
        q0=start,
        memory=memory,
        return_kl=return_kl,
    )
    q = _like(like, q.to(unary.dtype).view(unary.shape))
    return (q, _like(like, kl)) if return_kl else q


def position_features(
    op: str, size: Sequence[int], sxy: Widths, device: torch.device | None = None
) -> Tensor:
    """(1, P, d) pixel positions over their widths, the last axis of `size` first: x, y, (z)."""
    widths = _widths(op, "sxy", sxy, len(size))
    planes = torch.empty(1, len(size), *size, device=device)
    for i, width in enumerate(widths):
        axis = len(size) - 1 - i
        steps = torch.arange(size[axis], device=device, dtype=torch.float32) / width
        planes[0, i] = steps.view([-1] + [1] * i)
    return planes.flatten(2).transpose(1, 2)


def bilateral_features(op: str, image: Tensor, sxy: Widths, srgb: Widths) -> Tensor:
    """(N, P, d + C) positions and then colours of (N, C, *size) images, over their widths."""
    size = tuple(image.shape[2:])
    colours = _widths(op, "srgb", srgb, image.shape[1])
    dims = len(size)
    planes = torch.empty(image.shape[0], dims + image.shape[1], *size, device=image.device)
    positions = position_features(op, size, sxy, image.device)
    planes[:, :dims] = positions.transpose(1, 2).reshape(1, dims, *size)
    divisors = torch.tensor(colours, device=image.device).view(-1, *[1] * dims)
    torch.div(image.float(), divisors, out=planes[:, dims:])
    return planes.flatten(2).transpose(1, 2)


def _widths(op: str, name: str, value: Widths, count: int) -> list[float]:
    values = [value] * count if isinstance(value, (int, float)) else [float(v) for v in value]
    if len(values) != count or not all(0 < v < float("inf") for v in values):
        raise ValueError(
            f"{op}: {name} must be positive and finite, one number or {count}, got {value!r}"
        )
    return [float(v) for v in values]


def _options(op: str, name: str, given: Mapping[str, Any], needed: set[str]) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise TypeError(f"{op}: {name} must be a dict, got {type(given).__name__}")
    known = needed | {"weight", "compatibility"}
    wrong = (needed | {"weight"}) - set(given) | set(given) - known
    if wrong:
        raise ValueError(
            f"{op}: {name} must have {', '.join(sorted(needed | {'weight'}))} and may have "
            f"compatibility, got {', '.join(map(str, given))}"
        )
    return given


def _cost(
    op: str, options: Mapping[str, Any], compatibility: Any, labels: int, device: torch.device
) -> Tensor:
    """weight * compatibility as the native operator wants it; Potts is minus the identity."""
    weight = _floats(options["weight"], device)
    if weight.dim() > 1 or (weight.dim() == 1 and weight.shape[0] != labels):
        raise ValueError(
            f"{op}: weight must be a number or ({labels},), got {tuple(weight.shape)}"
        )
    own = options.get("compatibility", compatibility)
    if isinstance(own, str):
        if own != "potts":
            raise ValueError(f"{op}: compatibility must be 'potts' or costs, got {own!r}")
        return -weight
    matrix = _floats(own, device)
    if tuple(matrix.shape) not in ((labels,), (labels, labels)):
        raise ValueError(
            f"{op}: compatibility must be ({labels},) or ({labels}, {labels}), "
            f"got {tuple(matrix.shape)}"
        )
    return weight * matrix


def _floats(value: Any, device: torch.device) -> Tensor:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    return torch.as_tensor(value, device=device).float()


def _as_tensor(op: str, name: str, value: Any) -> Tensor:
    """A tensor over the memory of a tensor, a NumPy array or any array with DLPack."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value)
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    if hasattr(value, "__dlpack__"):
        return torch.from_dlpack(value)
    raise TypeError(f"{op}: {name} must be a Tensor or an array, got {type(value).__name__}")


def _like(original: Any, result: Tensor) -> Any:
    if isinstance(original, Tensor):
        return result
    if isinstance(original, np.ndarray):
        return result.numpy()
    import cupy

    return cupy.from_dlpack(result)


@torch.library.register_fake("segkern::dense_crf")
def _dense_crf_fake(unary, q0, lattices, scales, costs, iterations, keep, want_kl):
    batch, labels, points = unary.shape
    stride = (labels + _ROW - 1) // _ROW * _ROW
    return (
        unary.new_empty(unary.shape),
        unary.new_empty((batch, iterations, points, stride) if keep else (0,)),
        unary.new_empty((batch if want_kl else 0,), dtype=torch.float64),
    )


@torch.library.register_fake("segkern::_dense_crf_backward")
def _dense_crf_backward_fake(
    grad, unary, q0, q, history, lattices, scales, costs, iterations
):
    return (
        unary.new_empty(unary.shape),
        unary.new_empty((0,) if q0 is None else unary.shape),
        [cost.new_empty(cost.shape) for cost in costs],
    )


def _setup_dense_crf(ctx, inputs, output):
    unary, q0, lattices, scales, costs, iterations, _, _ = inputs
    q, history, kl = output
    ctx.mark_non_differentiable(history, kl)
    ctx.save_for_backward(unary, q0, q, history, *lattices, *scales, *costs)
    ctx.counts = (len(lattices), len(scales))
    ctx.iterations = iterations


def _backward_dense_crf(ctx, grad, _history, _kl):
    unary, q0, q, history, *lists = ctx.saved_tensors
    first, second = ctx.counts[0], sum(ctx.counts)
    lattices, scales, costs = lists[:first], lists[first:second], lists[second:]
    grad_unary, grad_q0, grad_costs = torch.ops.segkern._dense_crf_backward.default(
        grad, unary, q0, q, history, lattices, scales, costs, ctx.iterations
    )
    return (
        grad_unary,
        None if q0 is None else grad_q0,
        [None] * len(lattices),
        [None] * len(scales),
        grad_costs,
        None,
        None,
        None,
    )


torch.library.register_autograd(
    "segkern::dense_crf", _backward_dense_crf, setup_context=_setup_dense_crf
)


def _refuse_second_derivative(ctx, *grads):
    raise RuntimeError("dense_crf: second derivatives are not available")


torch.library.register_autograd(
    "segkern::_dense_crf_backward",
    _refuse_second_derivative,
    setup_context=lambda ctx, inputs, output: None,
)
