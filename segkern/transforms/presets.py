"""The transforms a recipe asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torchvision import tv_tensors
from torchvision.transforms import v2

from segkern.transforms.elastic import ElasticDeformation
from segkern.transforms.pair import PairTransform
from segkern.transforms.steps import RandomScale, ResizePair, _pair


class AugmentationRecipe(Protocol):
    """The fields of a recipe that are read here."""

    crop: tuple[int, int] | None
    resize: tuple[int, int] | None
    flip: bool
    scale: tuple[float, float] | None
    scale_step: float | None
    elastic: float | None


def build_train_transform(
    recipe: AugmentationRecipe,
    *,
    ignore_index: int = 255,
    fill: int | Sequence[int] = 0,
    color_jitter: float = 0.0,
) -> PairTransform:
    """Resize, scale, crop, elastic deformation, flip, colour jitter: those the recipe has.

    Args:
        recipe: ``resize`` (H, W), ``scale`` (low, high) and its ``scale_step``, ``crop`` (H, W),
            ``elastic`` (pixels) and ``flip``.
        ignore_index: mask value where a crop reaches beyond the image.
        fill: image value there, a number or one per channel in RGB 0 .. 255; a data set's mean
            makes the border vanish where the input is normalised.
        color_jitter: strength of random brightness, contrast and saturation (0.4 is common); 0 is
            none, as in all recipes of the papers here.

    Returns:
        callable ``(image, mask, generator=None) -> (image, mask)``.
    """
    steps: list[v2.Transform] = _resize_steps(recipe)
    if recipe.scale is not None:
        steps.append(RandomScale(*recipe.scale, step=recipe.scale_step))
    if recipe.crop is not None:
        fills = {
            tv_tensors.Image: fill if isinstance(fill, int) else list(fill),
            tv_tensors.Mask: ignore_index,
        }
        size = _pair("build_train_transform", "crop", recipe.crop)
        steps.append(v2.RandomCrop(size, pad_if_needed=True, fill=fills))
    if recipe.elastic is not None:
        steps.append(ElasticDeformation(recipe.elastic))
    if recipe.flip:
        steps.append(v2.RandomHorizontalFlip())
    if color_jitter:
        steps.append(
            v2.ColorJitter(brightness=color_jitter, contrast=color_jitter, saturation=color_jitter)
        )
    return PairTransform(steps)


def build_eval_transform(recipe: AugmentationRecipe) -> PairTransform:
    """The recipe's resize alone; without one, samples stay as they are.

    Masks are resized as well, so that figures are those at the network's resolution.
    """
    return PairTransform(_resize_steps(recipe))


def _resize_steps(recipe: AugmentationRecipe) -> list[v2.Transform]:
    return [] if recipe.resize is None else [ResizePair(recipe.resize)]
