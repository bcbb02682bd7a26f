"""Steps that torchvision lacks or does with a half-pixel shift between image and mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F


class ResizePair(v2.Transform):
    """Resize to a fixed size: images bilinear with antialiasing, masks to the nearest pixel.

    Masks use the nearest pixel centre (``nearest-exact``), which lies where bilinear samples;
    torchvision's own rule for masks is up to half a pixel off.

    Args:
        size: (H, W).
    """

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = _pair("ResizePair", "size", size)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return _resize(inpt, self.size)

    def extra_repr(self) -> str:
        return f"size={self.size}"


class RandomScale(v2.Transform):
    """Resize by one factor for both sides, drawn uniformly from a range.

    Args:
        low, high: the range of the factor; 0.5 halves the image.
        step: draw from low, low + step, ... up to high instead.
    """

    def __init__(self, low: float, high: float, step: float | None = None) -> None:
        super().__init__()
        if not 0 < low <= high:
            raise ValueError(f"RandomScale: must have 0 < low <= high, got {low} and {high}")
        if step is not None and not step > 0:
            raise ValueError(f"RandomScale: step must be above 0, got {step}")
        self.low = low
        self.high = high
        self.step = step

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        if self.step is None:
            factor = self.low + (self.high - self.low) * torch.rand(()).item()
        else:
            # A hair more than the quotient, which may fall short of a whole number.
            steps = int((self.high - self.low) / self.step + 1e-6)
            factor = self.low + self.step * torch.randint(steps + 1, ()).item()
        return {"size": (max(round(height * factor), 1), max(round(width * factor), 1))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return _resize(inpt, params["size"])

    def extra_repr(self) -> str:
        step = "" if self.step is None else f", step={self.step}"
        return f"low={self.low}, high={self.high}{step}"


def _resize(inpt: Any, size: tuple[int, int]) -> Any:
    if not isinstance(inpt, torch.Tensor) or tuple(inpt.shape[-2:]) == size:
        return inpt
    if isinstance(inpt, tv_tensors.Mask):
        plain = inpt.as_subclass(torch.Tensor)
        resized = F.resize_image(plain[None], list(size), InterpolationMode.NEAREST_EXACT)[0]
        return tv_tensors.wrap(resized, like=inpt)
    return F.resize(inpt, list(size), InterpolationMode.BILINEAR, antialias=True)


def _pair(owner: str, name: str, value: Sequence[int]) -> tuple[int, int]:
    if isinstance(value, (str, int, float)) or len(value) != 2 or min(value) < 1:
        raise ValueError(f"{owner}: {name} must be (H, W) with both at least 1, got {value!r}")
    return int(value[0]), int(value[1])
