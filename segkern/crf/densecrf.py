"""The classes of pydensecrf's ``densecrf`` module over :mod:`segkern.ops`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import numpy as np
import torch

from segkern.ops.dense_crf import PairwiseTerm, mean_field, pairwise_term

CONST_KERNEL = 0
DIAG_KERNEL = 1
FULL_KERNEL = 2

NO_NORMALIZATION = 0
NORMALIZE_BEFORE = 1
NORMALIZE_AFTER = 2
NORMALIZE_SYMMETRIC = 3

_MODES = ("none", "before", "after", "symmetric")

Number = Union[int, float]


class ConstUnary:
    """Energies (L, N), for :meth:`DenseCRF.setUnary`."""

    def __init__(self, u: np.ndarray) -> None:
        self.energy = _floats("ConstUnary", "u", u, 2)


class LogisticUnary:
    """Energies ``L @ f`` from weights (labels, k) and features (k, N)."""

    def __init__(self, L: np.ndarray, f: np.ndarray) -> None:
        weights = _floats("LogisticUnary", "L", L, 2)
        features = _floats("LogisticUnary", "f", f, 2)
        if weights.shape[1] != features.shape[0]:
            raise ValueError(
                f"LogisticUnary: f must be ({weights.shape[1]}, N), got {features.shape}"
            )
        self.energy = weights @ features


class DenseCRF:
    """A fully connected CRF over `nvar` variables; arrays are (labels, nvar), float32.

    Args:
        nvar: number of variables.
        nlabels: number of labels.
        device: where inference runs, ``"cpu"`` or a CUDA device.
    """

    def __init__(self, nvar: int, nlabels: int, *, device: str | torch.device = "cpu") -> None:
        for name, value in (("nvar", nvar), ("nlabels", nlabels)):
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{type(self).__name__}: {name} must be at least 1, got {value!r}")
        self._nvar, self._nlabels = int(nvar), int(nlabels)
        self._device = torch.device(device)
        self._unary: torch.Tensor | None = None
        self._terms: list[PairwiseTerm] = []

    def setUnaryEnergy(self, u: np.ndarray, f: np.ndarray | None = None) -> None:
        """Sets (L, N) energies, or logistic ones from weights and features."""
        self.setUnary(ConstUnary(u) if f is None else LogisticUnary(u, f))

    def setUnary(self, u: ConstUnary | LogisticUnary) -> None:
        """Sets the energies of a unary object."""
        if not isinstance(u, (ConstUnary, LogisticUnary)):
            raise TypeError(
                f"setUnary: u must be ConstUnary or LogisticUnary, got {type(u).__name__}"
            )
        wanted = (self._nlabels, self._nvar)
        if u.energy.shape != wanted:
            raise ValueError(f"setUnaryEnergy: u must be {wanted}, got {u.energy.shape}")
        self._unary = torch.from_numpy(u.energy.copy())[None].to(self._device)

    def addPairwiseEnergy(
        self,
        features: np.ndarray,
        compat: Number | np.ndarray,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Adds a term over (d, N) features, already divided by their widths.

        `compat` is a Potts weight, a vector of costs, or a matrix of costs, which is symmetrised.
        `kernel` matters only for learning kernels, which is not offered here: it changes nothing.
        """
        op = "addPairwiseEnergy"
        array = _floats(op, "features", features, 2)
        if array.shape[1] != self._nvar:
            raise ValueError(f"{op}: features must be (d, {self._nvar}), got {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{op}: features must be finite, got NaN or infinity")
        points = torch.from_numpy(array.copy())[None].transpose(1, 2)
        self._add(op, points, compat, kernel, normalization)

    def inference(self, n: int) -> np.ndarray:
        """(L, N) marginals after n updates."""
        return self._run("inference", None, _steps(n))[0]

    def map(self, n: int) -> np.ndarray:
        """(N,) int32, the most probable label after n updates; the first one where they tie."""
        return self.inference(n).argmax(0).astype(np.int32)

    def startInference(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(Q, tmp1, tmp2) for :meth:`stepInference`: the marginals before the first update."""
        q = self.inference(0)
        return q, np.zeros_like(q), np.zeros_like(q)

    def stepInference(self, Q: np.ndarray, tmp1: np.ndarray, tmp2: np.ndarray) -> None:
        """One update of Q in place; the other two arrays are not used, but must fit."""
        for name, array in (("tmp1", tmp1), ("tmp2", tmp2)):
            self._marginals("stepInference", name, array)
        Q[...] = self._run("stepInference", Q, 1)[0]

    def klDivergence(self, Q: np.ndarray) -> float:
        """The objective that updates lower, up to a constant."""
        return self._run("klDivergence", Q, 0, return_kl=True)[1]

    def _add(
        self,
        op: str,
        points: torch.Tensor,
        compat: Number | np.ndarray,
        kernel: int,
        normalization: int,
    ) -> None:
        if kernel not in (CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL):
            raise ValueError(f"{op}: kernel must be CONST, DIAG or FULL_KERNEL, got {kernel!r}")
        if normalization not in range(len(_MODES)):
            raise ValueError(f"{op}: normalization must be 0, 1, 2 or 3, got {normalization!r}")
        given = np.asarray(compat)
        if given.ndim > 2 or any(length != self._nlabels for length in given.shape):
            raise ValueError(
                f"{op}: compat must be a number, ({self._nlabels},) or "
                f"({self._nlabels}, {self._nlabels}), got shape {given.shape}"
            )
        if given.dtype.kind not in "fiu" or not np.isfinite(given).all():
            raise ValueError(f"{op}: compat must be finite numbers, got {compat!r}")
        cost = torch.from_numpy(given.astype(np.float32))
        if cost.dim() == 2:
            cost = (cost + cost.T) / 2
        elif cost.dim() == 0:
            cost = -cost
        term = pairwise_term(points.to(self._device), cost.to(self._device), _MODES[normalization])
        self._terms.append(term)

    def _marginals(self, op: str, name: str, value: np.ndarray) -> np.ndarray:
        wanted = (self._nlabels, self._nvar)
        array = _floats(op, name, value, 2)
        if array.shape != wanted:
            raise ValueError(f"{op}: {name} must be {wanted}, got {array.shape}")
        return array

    def _run(
        self, op: str, start: np.ndarray | None, n: int, return_kl: bool = False
    ) -> tuple[np.ndarray, float]:
        if self._unary is None:
            raise ValueError(f"{op}: setUnaryEnergy must be called first")
        q0 = None
        if start is not None:
            array = self._marginals(op, "Q", start)
            q0 = torch.from_numpy(array.copy())[None].to(self._device)
        q, kl = mean_field(self._unary, self._terms, n, q0=q0, return_kl=return_kl)
        return q[0].cpu().numpy(), float(kl[0]) if return_kl else 0.0


class DenseCRF2D(DenseCRF):
    """A CRF over the pixels of an image: width first, pixel index = row * w + column."""

    def __init__(self, w: int, h: int, nlabels: int, *, device: str | torch.device = "cpu") -> None:
        for name, value in (("w", w), ("h", h)):
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
                raise ValueError(f"DenseCRF2D: {name} must be at least 1, got {value!r}")
        super().__init__(w * h, nlabels, device=device)
        self._w, self._h = int(w), int(h)

    def addPairwiseGaussian(
        self,
        sxy: Number | Sequence[Number],
        compat: Number | np.ndarray,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Adds the smoothness term, features (x / sx, y / sy)."""
        planes = self._positions("addPairwiseGaussian", sxy)
        self._add_planes("addPairwiseGaussian", planes, compat, kernel, normalization)

    def addPairwiseBilateral(
        self,
        sxy: Number | Sequence[Number],
        srgb: Number | Sequence[Number],
        rgbim: np.ndarray,
        compat: Number | np.ndarray,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Adds the appearance term, features (x, y, r, g, b) over their widths; rgbim is uint8."""
        op = "addPairwiseBilateral"
        image = np.asarray(rgbim)
        if image.shape != (self._h, self._w, 3) or image.dtype != np.uint8:
            raise ValueError(
                f"{op}: rgbim must be uint8 ({self._h}, {self._w}, 3), "
                f"got {image.dtype} {image.shape}"
            )
        planes = self._positions(op, sxy)
        for channel, width in enumerate(_widths(op, "srgb", srgb, 3)):
            planes.append(image[:, :, channel].astype(np.float32) / np.float32(width))
        self._add_planes(op, planes, compat, kernel, normalization)

    def _positions(self, op: str, sxy: Number | Sequence[Number]) -> list[np.ndarray]:
        sx, sy = _widths(op, "sxy", sxy, 2)
        shape = (self._h, self._w)
        x = np.broadcast_to(np.arange(self._w, dtype=np.float32) / np.float32(sx), shape)
        y = np.broadcast_to((np.arange(self._h, dtype=np.float32) / np.float32(sy))[:, None], shape)
        return [x, y]

    def _add_planes(
        self,
        op: str,
        planes: list[np.ndarray],
        compat: Number | np.ndarray,
        kernel: int,
        normalization: int,
    ) -> None:
        stacked = torch.from_numpy(np.stack(planes)).flatten(1)
        self._add(op, stacked[None].transpose(1, 2), compat, kernel, normalization)


def _widths(op: str, name: str, value: Number | Sequence[Number], count: int) -> list[float]:
    given = np.atleast_1d(value)
    numbers = given.dtype.kind in "fiu" and given.ndim == 1
    values = [float(v) for v in given] * (count if np.ndim(value) == 0 else 1) if numbers else []
    if len(values) != count or not all(0 < v < float("inf") for v in values):
        raise ValueError(f"{op}: {name} must be positive, one number or {count}, got {value!r}")
    return values


def _floats(op: str, name: str, value: np.ndarray, dims: int) -> np.ndarray:
    """float32 as pydensecrf demands it: another dtype raises, it is not converted."""
    array = np.asarray(value)
    if array.ndim != dims or array.dtype != np.float32:
        raise ValueError(
            f"{op}: {name} must be a float32 array of {dims} dimensions, "
            f"got {array.dtype} of shape {array.shape}"
        )
    return np.ascontiguousarray(array)


def _steps(n: int) -> int:
    if not isinstance(n, (int, np.integer)) or isinstance(n, bool) or n < 0:
        raise ValueError(f"inference: n must be an integer of at least 0, got {n!r}")
    return int(n)
