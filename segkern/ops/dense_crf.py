"""Mean field inference of a fully connected CRF with Gaussian edge potentials."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from segkern import _load
from segkern.ops._arrays import as_tensor, constants, like
from segkern.ops._crf_features import bilateral_features, position_features
from segkern.ops._mean_field import (
    NORMALIZATIONS,
    GridTerm,
    PairwiseTerm,
    Term,
    check_normalization,
    grid_term,
    mean_field,
    pairwise_term,
    rows_bytes,
)
from segkern.ops._memory import require_memory
from segkern.ops.permutohedral import lattice_bytes
from segkern.ops.separable_gaussian import grid_widths

__all__ = [
    "NORMALIZATIONS",
    "GridTerm",
    "PairwiseTerm",
    "bilateral_features",
    "dense_crf",
    "mean_field",
    "pairwise_term",
    "position_features",
]


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
            or volumes (N, L, D, H, W). Floating. A tensor, or an array of NumPy, CuPy or another
            library with DLPack.
        image: (N, C, H, W), or (C, H, W) for all N, uint8 or floating, of the same spatial size; C
            may be any number of channels. Colours are in the units of ``srgb``, so 0 to 255 for the
            default. May be None without ``bilateral``.
        gaussian: the smoothness term: ``sxy`` its width in pixels, a number or (sx, sy), or
            (sx, sy, sz) for volumes; ``weight``; or None to leave it out. With ``"exact": True`` it
            is filtered by :func:`separable_gaussian` instead of a lattice. That is another model:
            marginals differ by some hundredths where labels compete, and parameters tuned for the
            one are not the best for the other.
        bilateral: the appearance term: ``sxy``, ``srgb`` (a number, or one per channel),
            ``weight``; or None. Features are ordered x, y, colours, which is part of the
            definition (:func:`image_features`).
        extra_terms: further terms, each with ``features`` (N, P, d) or (P, d), already divided by
            their widths, and ``weight``. Any term may have a ``compatibility`` of its own, and a
            ``weight`` is a number, a 0-d tensor (to learn) or one per label that sends.
        compatibility: ``"potts"``, or costs: (L,) per label or (L, L), row = the label that
            receives; positive repels. A matrix is used as it is, symmetric or not.
        normalization: ``"symmetric"``, ``"after"`` (DeepLab, CRF-as-RNN), ``"before"`` or
            ``"none"`` (raw sums, which saturate at once).
        iterations: number of updates; 0 returns the start.
        q0: start, of the form of `unary`; None is softmax(-unary).
        memory: for the backward, ``"recompute"`` what an update needs, or ``"store"`` it.
        return_kl: also return the objective at the result, (N,) float64, not differentiable.

    Returns:
        Marginals of the shape and dtype of `unary`, of the kind (tensor or array) of `unary`; with
        `return_kl` a pair. An infinite energy makes a label impossible. A NaN or minus infinity
        among an item's energies, or only infinite ones at a pixel, make marginals of that item NaN.

    Raises:
        TypeError, ValueError: an argument of the wrong form.
        MemoryError: the lattices, or the rows that updates work on, may need more memory than is
            left; raised before any of it is taken.
        RuntimeError: what :func:`permutohedral_build` raises: features that are not finite.

    Everything is computed in float32, under autocast too. Differentiable once in `unary`, `q0`,
    weights and compatibilities; and in widths, extra features and floating images that are tensors
    which want a gradient. A term with such features is filtered apart from the others, which takes
    longer; no lattice is built again. Where it has more than 3 dimensions it is not continuous in
    them (:func:`permutohedral_filter`): learn with small steps. Deterministic, on the CPU for any
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
    given = as_tensor(op, "unary", unary)
    if not given.is_floating_point():
        raise TypeError(f"{op}: unary must be floating, got {given.dtype}")
    energies = given[None] if given.dim() == 3 else given
    if energies.dim() not in (4, 5) or energies.shape[1] < 1:
        raise ValueError(
            f"{op}: unary must be (N, L, H, W), (L, H, W) or (N, L, D, H, W) with at least one "
            f"label, got {tuple(given.shape)}"
        )
    batch, labels, *size = energies.shape
    if image is not None:
        image = _pixels(op, image, batch, size, energies.device)
    if isinstance(iterations, bool) or not isinstance(iterations, Integral) or iterations < 0:
        raise ValueError(f"{op}: iterations must be an integer of at least 0, got {iterations!r}")
    check_normalization(normalization)
    if energies.is_cuda:
        _load.require_cuda(op)
    start = None
    if q0 is not None:
        start = as_tensor(op, "q0", q0).to(energies.device)
        if start.shape != given.shape:
            raise ValueError(
                f"{op}: q0 must be {tuple(given.shape)} like unary, got {tuple(start.shape)}"
            )
    wanted = _wanted_terms(op, gaussian, bilateral, extra_terms, energies, image)
    costs = [_cost(op, w.options, compatibility, labels, energies.device) for w in wanted]
    _check_memory(op, wanted, energies)
    q, kl = mean_field(
        energies.flatten(2).float(),
        [w.build(cost, normalization) for w, cost in zip(wanted, costs)],
        int(iterations),
        q0=None if start is None else start.reshape(energies.shape).flatten(2).float(),
        memory=memory,
        return_kl=return_kl,
    )
    q = like(op, "unary", unary, q.to(given.dtype).view(given.shape))
    return (q, like(op, "unary", unary, kl)) if return_kl else q


def _pixels(op: str, image: Any, batch: int, size: Sequence[int], device: torch.device) -> Tensor:
    """The image as (N or 1, C, *size) on `device`."""
    tensor = as_tensor(op, "image", image).to(device)
    pixels = tensor[None] if tensor.dim() == len(size) + 1 else tensor
    if (
        pixels.dim() != len(size) + 2
        or list(pixels.shape[2:]) != list(size)
        or (pixels.shape[0] != 1 and pixels.shape[0] != batch)
    ):
        raise ValueError(
            f"{op}: image must be {(batch, 'C', *size)} like unary, got {tuple(tensor.shape)}"
        )
    if pixels.is_complex():
        raise TypeError(f"{op}: image must be uint8 or floating, got {pixels.dtype}")
    return pixels


@dataclass(frozen=True)
class _Wanted:
    """A term as it is asked for: its options, the shape of its features (None: no lattice is
    needed), and what makes them."""

    options: Mapping[str, Any]
    shape: tuple[int, int, int] | None
    make: Callable[[], Tensor]
    size: tuple[int, ...] = ()

    def build(self, cost: Tensor, normalization: str) -> Term:
        if self.shape is None:
            return grid_term(self.size, self.make(), cost, normalization)
        return pairwise_term(self.make(), cost, normalization)


def _wanted_terms(
    op: str,
    gaussian: Mapping[str, Any] | None,
    bilateral: Mapping[str, Any] | None,
    extra_terms: Sequence[Mapping[str, Any]],
    energies: Tensor,
    image: Tensor | None,
) -> list[_Wanted]:
    size, device = tuple(energies.shape[2:]), energies.device
    points, axes = math.prod(energies.shape[2:]), len(size)
    wanted = []
    if gaussian is not None:
        sxy = _options(op, "gaussian", gaussian, {"sxy"}, {"exact"})["sxy"]
        exact = gaussian.get("exact", False)
        if not isinstance(exact, bool):
            raise TypeError(f"{op}: exact must be True or False, got {exact!r}")
        if exact:
            make = partial(grid_widths, op, sxy, axes, device)
            wanted.append(_Wanted(gaussian, None, make, size))
        else:
            make = partial(position_features, op, size, sxy, device)
            wanted.append(_Wanted(gaussian, (1, points, axes), make))
    if bilateral is not None:
        if image is None:
            raise ValueError(f"{op}: image must be given for the bilateral term, got None")
        _options(op, "bilateral", bilateral, {"sxy", "srgb"})
        make = partial(bilateral_features, op, image, bilateral["sxy"], bilateral["srgb"])
        wanted.append(_Wanted(bilateral, (image.shape[0], points, axes + image.shape[1]), make))
    for number, extra in enumerate(extra_terms):
        name = f"extra_terms[{number}]"
        _options(op, name, extra, {"features"})
        features = as_tensor(op, f"{name} features", extra["features"]).to(device)
        batch = energies.shape[0]
        shape = tuple(features.shape if features.dim() == 3 else features[None].shape)
        if len(shape) != 3 or (shape[0] != 1 and shape[0] != batch) or shape[1] != points:
            raise ValueError(
                f"{op}: {name} features must be ({batch}, {points}, d) or ({points}, d), "
                f"got {tuple(features.shape)}"
            )
        wanted.append(_Wanted(extra, shape, partial(features.view, shape)))
    return wanted


def _check_memory(op: str, wanted: Sequence[_Wanted], energies: Tensor) -> None:
    """The rows of energies and marginals, all lattices, and the features of the largest."""
    if torch.compiler.is_compiling():
        return
    batch, labels, points = (*energies.shape[:2], math.prod(energies.shape[2:]))
    shapes = [w.shape for w in wanted if w.shape is not None]
    needed = rows_bytes((batch, labels, points), len(wanted) - len(shapes), energies.device)
    needed += sum(lattice_bytes(*shape) for shape in shapes)
    needed += max([4 * math.prod(shape) for shape in shapes] or [0])
    what = f"{tuple(energies.shape)} energies"
    if shapes:
        what += f" with lattices of {', '.join(map(str, shapes))} features"
    require_memory(op, what, needed, energies.device)


def _options(
    op: str,
    name: str,
    given: Mapping[str, Any],
    needed: set[str],
    optional: frozenset[str] | set[str] = frozenset(),
) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise TypeError(f"{op}: {name} must be a dict, got {type(given).__name__}")
    needed = needed | {"weight"}
    optional = optional | {"compatibility"}
    if needed - set(given) or set(given) - needed - optional:
        raise ValueError(
            f"{op}: {name} must have {', '.join(sorted(needed))} and may have "
            f"{', '.join(sorted(optional))}, got {', '.join(map(str, given))}"
        )
    return given


def _cost(
    op: str, options: Mapping[str, Any], compatibility: Any, labels: int, device: torch.device
) -> Tensor:
    """weight * compatibility as the native operator wants it; Potts is minus the identity."""
    weight = _floats(op, "weight", options["weight"], device)
    if weight.dim() > 1 or (weight.dim() == 1 and weight.shape[0] != labels):
        raise ValueError(f"{op}: weight must be a number or ({labels},), got {tuple(weight.shape)}")
    own = options.get("compatibility", compatibility)
    if isinstance(own, str):
        if own != "potts":
            raise ValueError(f"{op}: compatibility must be 'potts' or costs, got {own!r}")
        return -weight
    matrix = _floats(op, "compatibility", own, device)
    if matrix.dim() not in (1, 2) or any(length != labels for length in matrix.shape):
        raise ValueError(
            f"{op}: compatibility must be ({labels},) or ({labels}, {labels}), "
            f"got {tuple(matrix.shape)}"
        )
    return weight * matrix


def _floats(op: str, name: str, value: Any, device: torch.device) -> Tensor:
    """A float32 tensor of a number, a list of numbers, a tensor or an array."""
    if isinstance(value, (str, bytes)) or value is None:
        raise TypeError(f"{op}: {name} must be a number, a tensor or an array, got {value!r}")
    if isinstance(value, Real):
        if not -math.inf < value < math.inf:
            raise ValueError(f"{op}: {name} must be finite, got {value!r}")
        return constants([value], device)[0]
    if isinstance(value, (list, tuple)):
        value = torch.tensor(value, dtype=torch.float32)
    return as_tensor(op, name, value).to(device).float()
