"""The numbers of a dense CRF: presets, files of settings, and inference with them."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segkern.engine.errors import EngineError
from segkern.ops import dense_crf
from segkern.ops.dense_crf import NORMALIZATIONS, bilateral_features, position_features

ORDERS = ("xy", "yx")
CLIP = 1e-5
"""The smallest probability that becomes an energy; zeros would be infinite."""


def _number(value: Any) -> bool:
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return real and math.isfinite(value)


@dataclass(frozen=True)
class CrfSettings:
    """A smoothness and an appearance term, and how mean field runs over them.

    gaussian_sxy, bilateral_sxy: widths in pixels; bilateral_srgb: width in colour, of 0 to 255.
    gaussian_weight, bilateral_weight: Potts weights; 0 leaves the term out. normalization,
    iterations: as in `segkern.ops.dense_crf`. order: of the positions among the features, which is
    part of the lattice: "xy" as in `segkern.ops.dense_crf` and pydensecrf's DenseCRF2D, "yx" as in
    pydensecrf's helper functions and its example.

    Raises EngineError where a number is out of range.
    """

    gaussian_sxy: float
    gaussian_weight: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_weight: float
    normalization: str
    iterations: int
    order: str = "xy"

    def __post_init__(self) -> None:
        for name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb"):
            self._check(name, _number(value := getattr(self, name)) and value > 0, "positive")
        for name in ("gaussian_weight", "bilateral_weight"):
            self._check(name, _number(value := getattr(self, name)) and value >= 0, "at least 0")
        whole = isinstance(self.iterations, int) and not isinstance(self.iterations, bool)
        self._check("iterations", whole and self.iterations >= 0, "an integer of at least 0")
        self._check(
            "normalization",
            self.normalization in NORMALIZATIONS,
            f"one of {', '.join(NORMALIZATIONS)}",
        )
        self._check("order", self.order in ORDERS, f"one of {', '.join(ORDERS)}")

    def _check(self, name: str, good: bool, wanted: str) -> None:
        if not good:
            raise EngineError(f"crf: {name} must be {wanted}, got {getattr(self, name)!r}")

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def replace(self, **changes: Any) -> CrfSettings:
        """With the changes that are not None."""
        given = {name: value for name, value in changes.items() if value is not None}
        return dataclasses.replace(self, **given)

    def gaussian_features(self, size: tuple[int, int], device: torch.device) -> Tensor:
        """(1, H W, 2) features of the smoothness term."""
        return self._ordered(position_features("crf", size, self.gaussian_sxy, device))

    def bilateral_features(self, images: Tensor) -> Tensor:
        """(N, H W, 5) features of the appearance term of images (N, 3, H, W)."""
        return self._ordered(
            bilateral_features("crf", images, self.bilateral_sxy, self.bilateral_srgb)
        )

    def _ordered(self, features: Tensor) -> Tensor:
        if self.order == "xy":
            return features
        return features[..., [1, 0, *range(2, features.shape[-1])]]

    def refine(self, energies: Tensor, images: Tensor) -> Tensor:
        """Marginals (N, L, H, W) from energies (N, L, H, W) and images (N, 3, H, W) uint8."""
        gaussian = bilateral = None
        extra: list[dict[str, Any]] = []
        if self.gaussian_weight > 0:
            gaussian = {"sxy": self.gaussian_sxy, "weight": self.gaussian_weight}
        if self.bilateral_weight > 0:
            bilateral = {
                "sxy": self.bilateral_sxy,
                "srgb": self.bilateral_srgb,
                "weight": self.bilateral_weight,
            }
        if self.order == "yx":
            if gaussian is not None:
                features = self.gaussian_features(tuple(energies.shape[2:]), energies.device)[0]
                extra.append({"features": features, "weight": self.gaussian_weight})
            if bilateral is not None:
                features = self.bilateral_features(images)
                extra.append({"features": features, "weight": self.bilateral_weight})
            gaussian = bilateral = None
        return dense_crf(
            energies,
            images,
            gaussian=gaussian,
            bilateral=bilateral,
            extra_terms=extra,
            normalization=self.normalization,
            iterations=self.iterations,
        )


PRESETS = {
    "pydensecrf": CrfSettings(3, 3, 80, 13, 10, "symmetric", 5, "yx"),
    "densecrf": CrfSettings(3, 3, 60, 20, 10, "after", 10),
    "deeplabv1": CrfSettings(3, 3, 49, 5, 4, "after", 10),
    "deeplabv2": CrfSettings(1, 3, 67, 3, 4, "symmetric", 10),
    "gcrf": CrfSettings(1, 3, 31, 4, 3, "symmetric", 10),
    "crfasrnn": CrfSettings(3, 3, 160, 3, 5, "after", 10),
}
"""What released code uses: pydensecrf's and the original C++ example, DeepLab v1 (LargeFOV, VOC)
and v2 (ResNet-101, VOC, as ported to PyTorch), G-CRF's post-processing, CRF-as-RNN at test time."""

DEFAULT_PRESET = "pydensecrf"


def energies_of(probabilities: Tensor) -> Tensor:
    """-ln p in float32, with p clipped from below at 1e-5."""
    return -probabilities.float().clamp(CLIP, 1.0).log()


def find_settings(text: str | Path) -> CrfSettings:
    """The settings of a preset's name, or of a json file such as `segkern crf tune` leaves."""
    if str(text) in PRESETS:
        return PRESETS[str(text)]
    path = Path(text)
    if path.suffix != ".json" and not path.is_file():
        raise EngineError(
            f"crf: settings must be a json file or one of {', '.join(PRESETS)}, got {str(text)!r}"
        )
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EngineError(f"crf: {path} is not a json file: {error}") from error
    found = stored.get("crf") if isinstance(stored, dict) else None
    names = [field.name for field in dataclasses.fields(CrfSettings)]
    if not isinstance(found, dict) or set(found) != set(names):
        raise EngineError(
            f'crf: {path} must hold {{"crf": {{...}}}} with {", ".join(names)}, as the best.json '
            "of `segkern crf tune` does"
        )
    try:
        return CrfSettings(**found)
    except EngineError as error:
        raise EngineError(f"{error} in {path}") from error
