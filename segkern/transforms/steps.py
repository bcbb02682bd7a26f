"""Steps that torchvision lacks or does with a half-pixel shift between image and mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from segkern.transforms.elastic import mirrored


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


class ScalePair(v2.Transform):
    """Resize to a size times fixed factors, rounded to multiples of 8 pixels, at least 8.

    Args:
        height, width: the factors.
        size: (H, W) that they are factors on; None is the image's own.
    """

    def __init__(self, height: float, width: float, size: Sequence[int] | None = None) -> None:
        super().__init__()
        if not min(height, width) > 0:
            raise ValueError(
                f"ScalePair: height and width must be above 0, got {height} and {width}"
            )
        self.factors = (height, width)
        self.size = None if size is None else _pair("ScalePair", "size", size)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        size = v2.query_size(flat_inputs) if self.size is None else self.size
        sides = (length * factor for length, factor in zip(size, self.factors, strict=True))
        return {"size": tuple(max(8, 8 * int(side / 8 + 0.5)) for side in sides)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return _resize(inpt, params["size"])

    def extra_repr(self) -> str:
        return f"factors={self.factors}, size={self.size}"


class TrimAndResize(v2.Transform):
    """Half of the images lose as much at the top as at the bottom, at the left as at the right.

    Both amounts are drawn from 0 .. ``pixels``, or to a quarter of the side where that is less.
    What is left is brought to the size that the image had.

    Args:
        pixels: the most that is lost at a border.

    Source: ESPNet's release, RandomCropResize (arXiv:1803.06815).
    """

    def __init__(self, pixels: int) -> None:
        super().__init__()
        if isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 0:
            raise ValueError(f"TrimAndResize: pixels must be an int of at least 0, got {pixels!r}")
        self.pixels = pixels

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        size = v2.query_size(flat_inputs)
        happens = torch.rand(()).item() < 0.5
        drawn = [torch.randint(min(self.pixels, side // 4) + 1, ()).item() for side in size]
        return {"size": size, "lost": drawn if happens else [0, 0]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        (height, width), (rows, columns) = params["size"], params["lost"]
        kept = F.crop(inpt, rows, columns, height - 2 * rows, width - 2 * columns)
        return _resize(kept, (height, width))

    def extra_repr(self) -> str:
        return f"pixels={self.pixels}"


class RandomTurn(v2.Transform):
    """Rotate half of the images about their centre by a random angle; their size stays.

    Where a pixel is partly outside, image and fill are blended by their shares, which torchvision's
    fill of its own, weighing the image twice, does not do.

    Args:
        degrees: the largest angle, either way.
        fills: what comes in from outside, a number or one per channel, by the kind of input.
    """

    def __init__(self, degrees: float, fills: Mapping[type, Any]) -> None:
        super().__init__()
        if not 0 <= degrees <= 180:
            raise ValueError(f"RandomTurn: degrees must be between 0 and 180, got {degrees}")
        self.degrees = degrees
        self.fills = dict(fills)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        happens = torch.rand(()).item() < 0.5
        angle = self.degrees * (2 * torch.rand(()).item() - 1)
        return {"angle": angle if happens else 0.0}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        angle, fill = params["angle"], self.fills[type(inpt)]
        if angle == 0:
            return inpt
        if isinstance(inpt, tv_tensors.Mask):
            return F.rotate(inpt, angle, InterpolationMode.NEAREST, fill=fill)
        plain = inpt.as_subclass(Tensor)
        colour = torch.tensor(fill, dtype=torch.float32).reshape(-1, 1, 1)
        turned = F.rotate_image(plain - colour, angle, InterpolationMode.BILINEAR) + colour
        if not plain.is_floating_point():
            turned = turned.round()
        return tv_tensors.wrap(turned.to(plain.dtype), like=inpt)

    def extra_repr(self) -> str:
        return f"degrees={self.degrees}"


class PadTo(v2.Transform):
    """Fill images up to at least a size.

    Args:
        size: (H, W).
        place: ``"centre"``: half of what is added comes before the image, rounded down; ``"end"``:
            all of it after.
        fills: what is added, by the kind of input.
    """

    def __init__(self, size: Sequence[int], place: str, fills: Mapping[type, Any]) -> None:
        super().__init__()
        if place not in ("centre", "end"):
            raise ValueError(f"PadTo: place must be 'centre' or 'end', got {place!r}")
        self.size = _pair("PadTo", "size", size)
        self.place = place
        self.fills = dict(fills)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        sides = zip(self.size, v2.query_size(flat_inputs), strict=True)
        added = [max(wanted - side, 0) for wanted, side in sides]
        before = [side // 2 if self.place == "centre" else 0 for side in added]
        rows, columns = ((first, whole - first) for first, whole in zip(before, added, strict=True))
        return {"padding": [columns[0], rows[0], columns[1], rows[1]]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.pad(inpt, params["padding"], fill=self.fills[type(inpt)])

    def extra_repr(self) -> str:
        return f"size={self.size}, place={self.place!r}"


class CropWithMargin(v2.Transform):
    """Cut out a window at a random place, with a margin that is seen and not labelled.

    Beyond their border images are mirrored without repeating it, again and again where that is not
    enough; what an image lacks to the window is at the bottom and the right. All places of the
    window in the image are equally likely.

    Args:
        size: (H, W) of the window; what comes out is larger by twice the margin.
        margin: pixels.
        ignore_index: the label of the margin and of what was mirrored.
    """

    def __init__(self, size: Sequence[int], margin: int, ignore_index: int = 255) -> None:
        super().__init__()
        if margin < 0:
            raise ValueError(f"CropWithMargin: margin must be at least 0, got {margin}")
        self.size = _pair("CropWithMargin", "size", size)
        self.margin = margin
        self.ignore_index = ignore_index

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        sides = zip(v2.query_size(flat_inputs), self.size, strict=True)
        return {
            "first": [torch.randint(max(side - wanted, 0) + 1, ()).item() for side, wanted in sides]
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        plain = inpt.as_subclass(Tensor)
        if isinstance(inpt, tv_tensors.Mask):
            height, width = (side + 2 * self.margin for side in self.size)
            found = plain.new_full((height, width), self.ignore_index)
            (top, left), (rows, columns) = params["first"], self.size
            part = plain[top : top + rows, left : left + columns]
            found[self.margin :, self.margin :][: part.shape[0], : part.shape[1]] = part
            return tv_tensors.wrap(found, like=inpt)
        for axis, (first, wanted) in enumerate(zip(params["first"], self.size, strict=True), 1):
            places = torch.arange(first - self.margin, first + wanted + self.margin)
            plain = plain.index_select(axis, mirrored(places, plain.shape[axis]))
        return tv_tensors.wrap(plain, like=inpt)

    def extra_repr(self) -> str:
        return f"size={self.size}, margin={self.margin}"


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
