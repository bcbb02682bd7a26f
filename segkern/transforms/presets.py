"""The transforms a recipe asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torchvision import tv_tensors
from torchvision.transforms import v2

from segkern.transforms.elastic import ElasticDeformation
from segkern.transforms.pair import PairTransform
from segkern.transforms.steps import (
    CropWithMargin,
    PadTo,
    RandomScale,
    RandomTurn,
    ResizePair,
    ScalePair,
    TrimAndResize,
    _pair,
)


class AugmentationRecipe(Protocol):
    """The fields of a recipe that are read here."""

    resize: tuple[int, int] | None
    passes: tuple[tuple[float, float, int], ...]
    scale: tuple[float, float] | None
    scale_step: float | None
    rotate: float | None
    blur: int | None
    crop: tuple[int, int] | None
    crop_pad: str
    crop_colour: str
    crop_margin: int
    elastic: float | None
    flip: bool
    vertical_flip: bool


def build_train_transform(
    recipe: AugmentationRecipe,
    *,
    ignore_index: int = 255,
    fill: int | Sequence[int] = 0,
    color_jitter: float = 0.0,
    size: tuple[int, int] | None = None,
) -> PairTransform | list[PairTransform]:
    """Every augmentation that the recipe has, in the order of its fields.

    Images are resampled bilinearly and masks at the nearest pixel, by the same draw.

    Args:
        recipe: see :class:`segkern.models.Recipe`.
        ignore_index: mask value where a crop or a rotation reaches beyond the image.
        fill: image value there, a number or one per channel in RGB 0 .. 255; a data set's mean
            makes the border vanish where the input is normalised. Not with ``crop_colour`` black.
        color_jitter: strength of random brightness, contrast and saturation (0.4 is common); 0 is
            none, as in all recipes of the papers here.
        size: (H, W) that the recipe's ``passes`` are factors on; None is its ``resize``, or the
            images' own.

    Returns:
        callable ``(image, mask, generator=None) -> (image, mask)``; with ``passes`` a list of one
        for each, which take turns by epoch.
    """
    colour = fill if isinstance(fill, int) else list(fill)
    fills = {
        tv_tensors.Image: 0 if recipe.crop_colour == "black" else colour,
        tv_tensors.Mask: ignore_index,
    }
    steps = _after_resize(recipe, fills)
    if color_jitter:
        steps.append(
            v2.ColorJitter(brightness=color_jitter, contrast=color_jitter, saturation=color_jitter)
        )
    if not recipe.passes:
        return PairTransform(_resize_steps(recipe) + steps)
    size = recipe.resize if size is None else size
    return [
        PairTransform([ScalePair(height, width, size), TrimAndResize(int(trim)), *steps])
        for height, width, trim in recipe.passes
    ]


def _after_resize(recipe: AugmentationRecipe, fills: dict[type, Any]) -> list[v2.Transform]:
    steps: list[v2.Transform] = []
    if recipe.scale is not None:
        steps.append(RandomScale(*recipe.scale, step=recipe.scale_step))
    if recipe.rotate is not None:
        steps.append(RandomTurn(recipe.rotate, fills))
    if recipe.blur is not None:
        # The width that OpenCV chooses for a kernel of this size.
        sigma = 0.3 * ((recipe.blur - 1) * 0.5 - 1) + 0.8
        steps.append(v2.RandomApply([v2.GaussianBlur(recipe.blur, sigma)], p=0.5))
    if recipe.crop is not None:
        steps += _crop_steps(recipe, fills)
    if recipe.elastic is not None:
        steps.append(ElasticDeformation(recipe.elastic))
    if recipe.flip:
        steps.append(v2.RandomHorizontalFlip())
    if recipe.vertical_flip:
        steps.append(v2.RandomVerticalFlip())
    return steps


def _crop_steps(recipe: AugmentationRecipe, fills: dict[type, Any]) -> list[v2.Transform]:
    size = _pair("build_train_transform", "crop", recipe.crop)
    if recipe.crop_margin:
        return [CropWithMargin(size, recipe.crop_margin, fills[tv_tensors.Mask])]
    if recipe.crop_pad == "random":
        return [v2.RandomCrop(size, pad_if_needed=True, fill=fills)]
    return [PadTo(size, recipe.crop_pad, fills), v2.RandomCrop(size)]


def build_eval_transform(recipe: AugmentationRecipe) -> PairTransform:
    """The recipe's resize alone; without one, samples stay as they are.

    Masks are resized as well, so that figures are those at the network's resolution.
    """
    return PairTransform(_resize_steps(recipe))


def _resize_steps(recipe: AugmentationRecipe) -> list[v2.Transform]:
    return [] if recipe.resize is None else [ResizePair(recipe.resize)]
