"""Transforms of an image with boxes, masks and panoptic labels together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from segkern.data._base import IGNORE_INDEX
from segkern.data._instances import Target, mask_boxes, select_objects

Step = Callable[[Tensor, Target, "torch.Generator | None"], tuple[Tensor, Target]]

MEAN_PIXEL = (124, 116, 104)
"""ImageNet's mean in RGB, which is near 0 once it is normalised."""


# Fields that masks of objects are not made for.
_FOR_PIXELS = (
    "resize",
    "passes",
    "scale",
    "rotate",
    "blur",
    "crop_margin",
    "elastic",
    "vertical_flip",
)


class InstanceRecipe(Protocol):
    """The fields of a recipe that are read here; those in ``_FOR_PIXELS`` must not be set."""

    flip: bool
    crop: tuple[int, int] | None
    jitter: tuple[float, float] | None


class InstanceTransform:
    """Steps in turn on an image and its target; see `segkern.data.InstanceDataset` for both.

    The result is a function of the image, the target and the generator's state alone. Neither of
    them is written to.

    Args:
        steps: callables ``(image, target, generator) -> (image, target)``.

    Example:
        >>> target = {"boxes": torch.tensor([[0.0, 0.0, 1.0, 1.0]])}
        >>> flip = InstanceTransform([HorizontalFlip(p=1.0)])
        >>> flip(torch.zeros(3, 2, 5), target)[1]["boxes"]
        tensor([[4., 0., 5., 1.]])
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = list(steps)

    def __call__(
        self, image: Tensor, target: Target, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Target]:
        """Transform one sample.

        Args:
            image: (3, H, W) uint8 or float.
            target: of the image; keys that are missing stay missing.
            generator: source of the randomness; None takes torch's global numbers.
        """
        for step in self.steps:
            image, target = step(image, target, generator)
        return image, target

    def __repr__(self) -> str:
        return f"InstanceTransform({self.steps})"


class HorizontalFlip:
    """Mirror left and right with probability ``p``."""

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"HorizontalFlip: p must be in [0, 1], got {p}")
        self.p = p

    def __call__(
        self, image: Tensor, target: Target, generator: torch.Generator | None
    ) -> tuple[Tensor, Target]:
        if torch.rand((), generator=generator).item() >= self.p:
            return image, target
        flipped = dict(target)
        for key in ("masks", "semantic"):
            if key in target:
                flipped[key] = target[key].flip(-1)
        if "boxes" in target:
            x1, y1, x2, y2 = target["boxes"].unbind(1)
            width = image.shape[-1]
            flipped["boxes"] = torch.stack([width - x2, y1, width - x1, y2], dim=1)
        return image.flip(-1), flipped

    def __repr__(self) -> str:
        return f"HorizontalFlip(p={self.p})"


class RandomCrop:
    """Cut out a window of at most ``size`` at a random place.

    Boxes and areas become those of what is left of the masks; objects whose box is less than
    ``smallest`` pixels wide or high are left out.

    Args:
        size: (H, W). An image that is smaller along an axis is left whole along it.
        smallest: pixels, at least 1.
    """

    def __init__(self, size: Sequence[int], smallest: float = 2.0) -> None:
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"RandomCrop: size must be (H, W) with both at least 1, got {size!r}")
        if not smallest >= 1:
            raise ValueError(f"RandomCrop: smallest must be at least 1, got {smallest}")
        self.size = int(size[0]), int(size[1])
        self.smallest = smallest

    def __call__(
        self, image: Tensor, target: Target, generator: torch.Generator | None
    ) -> tuple[Tensor, Target]:
        window = _random_window(image, self.size, generator)
        image, target = _cut(image, target, window)
        return image, _refit(target, self.smallest)

    def __repr__(self) -> str:
        return f"RandomCrop(size={self.size}, smallest={self.smallest})"


class LargeScaleJitter:
    """Enlarge or shrink what is seen by one random factor, at the size the image has.

    At a factor above 1 a random window is enlarged to the image's size; below 1 the whole image is
    shrunk into the upper left corner, and the rest is ``fill`` and unlabelled. The image is sampled
    bilinearly with antialiasing, masks and labels at the nearest pixel centre. Boxes and areas
    become those of the masks; objects whose box is less than ``smallest`` pixels wide or high are
    left out. The factor is uniform in [low, high].

    Args:
        low, high: the range of the factor, (0.1, 2.0) in the paper.
        smallest: pixels, at least 1.
        fill: the colour, in RGB 0 .. 255, of the empty part.

    Paper: Ghiasi et al., arXiv:2012.07177 section 3.
    """

    def __init__(
        self,
        low: float = 0.1,
        high: float = 2.0,
        smallest: float = 2.0,
        fill: Sequence[int] = MEAN_PIXEL,
    ) -> None:
        if not 0 < low <= high < float("inf"):
            raise ValueError(f"LargeScaleJitter: must have 0 < low <= high, got {low} and {high}")
        if not smallest >= 1:
            raise ValueError(f"LargeScaleJitter: smallest must be at least 1, got {smallest}")
        self.low = low
        self.high = high
        self.smallest = smallest
        self.fill = tuple(fill)

    def __call__(
        self, image: Tensor, target: Target, generator: torch.Generator | None
    ) -> tuple[Tensor, Target]:
        drawn = torch.rand((), generator=generator, dtype=torch.float64).item()
        factor = self.low + (self.high - self.low) * drawn
        size = tuple(image.shape[-2:])
        if factor >= 1:
            seen = tuple(max(round(side / factor), 1) for side in size)
            window = _random_window(image, seen, generator)
            image, target = _resize(*_cut(image, target, window), size)
        else:
            small = tuple(max(round(side * factor), 1) for side in size)
            image, target = self._pad(*_resize(image, target, small), size)
        return image, _refit(target, self.smallest)

    def _pad(self, image: Tensor, target: Target, size: tuple[int, ...]) -> tuple[Tensor, Target]:
        height, width = image.shape[-2:]
        colour = torch.tensor(self.fill, dtype=torch.float32)
        if image.is_floating_point():
            colour = colour / 255
        canvas = colour.to(image.dtype)[:, None, None].repeat(1, *size)
        canvas[:, :height, :width] = image
        padded = dict(target)
        for key, value in (("masks", 0), ("semantic", IGNORE_INDEX)):
            if key in target:
                part = target[key]
                whole = part.new_full((*part.shape[:-2], *size), value)
                whole[..., :height, :width] = part
                padded[key] = whole
        return canvas, padded

    def __repr__(self) -> str:
        return f"LargeScaleJitter(low={self.low}, high={self.high}, smallest={self.smallest})"


def build_instance_transform(recipe: InstanceRecipe, train: bool) -> InstanceTransform:
    """Large-scale jitter, crop and flip: those the recipe has; nothing for evaluation.

    Resizing is the network's own; see its options ``min_size`` and ``max_size``.

    Raises:
        ValueError: the recipe has an augmentation that masks of objects are not made for.
    """
    for field in _FOR_PIXELS:
        if getattr(recipe, field, None):
            raise ValueError(
                f"build_instance_transform: {field} must not be set for instances, got "
                f"{getattr(recipe, field)}; networks of instances resize by themselves, and "
                "jitter changes the scale"
            )
    steps: list[Step] = []
    if train:
        if recipe.jitter is not None:
            steps.append(LargeScaleJitter(*recipe.jitter))
        if recipe.crop is not None:
            steps.append(RandomCrop(recipe.crop))
        if recipe.flip:
            steps.append(HorizontalFlip())
    return InstanceTransform(steps)


def _random_window(
    image: Tensor, size: Sequence[int], generator: torch.Generator | None
) -> tuple[slice, slice]:
    """Rows and columns of a window of at most ``size``, every place equally likely."""
    window = []
    for side, wanted in zip(image.shape[-2:], size, strict=True):
        room = max(side - wanted, 0)
        first = int(torch.randint(room + 1, (), generator=generator))
        window.append(slice(first, min(first + wanted, side)))
    return window[0], window[1]


def _cut(image: Tensor, target: Target, window: tuple[slice, slice]) -> tuple[Tensor, Target]:
    where = (..., *window)
    parts = {k: target[k][where] for k in ("masks", "semantic") if k in target}
    return image[where], {**target, **parts}


def _resize(image: Tensor, target: Target, size: tuple[int, ...]) -> tuple[Tensor, Target]:
    resized = dict(target)
    for key in ("masks", "semantic"):
        if key in target:
            part = target[key] if target[key].dim() == 3 else target[key][None]
            if part.shape[0]:
                part = F.resize_image(part, list(size), InterpolationMode.NEAREST_EXACT)
            else:
                part = part.new_zeros(0, *size)
            resized[key] = part.reshape(*target[key].shape[:-2], *size)
    # torch 2.11 fails on bytes that are to become a single pixel.
    whole = image.float() if size == (1, 1) and not image.is_floating_point() else image
    whole = F.resize_image(whole, list(size), InterpolationMode.BILINEAR, antialias=True)
    return whole if whole.dtype == image.dtype else whole.round().to(image.dtype), resized


def _refit(target: Target, smallest: float) -> Target:
    """Boxes and areas of the masks as they are now; too small ones left out."""
    masks = target["masks"]
    boxes = mask_boxes(masks)
    area = masks.sum(dim=(1, 2), dtype=torch.int64).to(torch.float32)
    fitted = {**target, "boxes": boxes, "area": area}
    sides = (boxes[:, 2:] - boxes[:, :2]).amin(dim=1)
    kept = sides >= smallest
    return fitted if kept.all() else select_objects(fitted, kept)
