"""Checks of what a network of instances is called with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def check_call(
    network: str,
    images: Sequence[Tensor],
    targets: Sequence[Mapping[str, Tensor]] | None,
    training: bool,
    num_classes: int,
) -> None:
    """Checks a batch.

    Args:
        network: Name for error messages.
        images: (3, H, W) floating tensors of one dtype and device, a list or one (N, 3, H, W).
        targets: Needed in training, not looked at otherwise.
        training: Whether the network is in training mode.
        num_classes: Labels must be from 1 to one less.

    Raises:
        TypeError, ValueError: Naming the argument, and the image it belongs to.
    """
    if not isinstance(images, (Sequence, Tensor)) or len(images) == 0:
        raise ValueError(f"{network}: images must be a list of at least one (3, H, W) tensor")
    for i, image in enumerate(images):
        if not isinstance(image, Tensor):
            raise TypeError(f"{network}: images[{i}] must be a Tensor, got {type(image).__name__}")
        if image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise ValueError(
                f"{network}: images[{i}] must be (3, H, W) with a pixel at least, got "
                f"{tuple(image.shape)}"
            )
        if not image.is_floating_point():
            raise TypeError(
                f"{network}: images[{i}] must be floating, with values from 0 to 1, got "
                f"{image.dtype}"
            )
        if image.dtype != images[0].dtype or image.device != images[0].device:
            raise ValueError(
                f"{network}: images[{i}] must be {images[0].dtype} on {images[0].device} as the "
                f"first, got {image.dtype} on {image.device}"
            )
    if not training:
        return
    if targets is None:
        raise ValueError(f"{network}: targets must be given in training mode, got None")
    if len(targets) != len(images):
        raise ValueError(
            f"{network}: targets must be one for each of {len(images)} images, got {len(targets)}"
        )
    for i, (target, image) in enumerate(zip(targets, images, strict=True)):
        _check_target(f"{network}: targets[{i}]", target, image, num_classes)


def _check_target(
    where: str, target: Mapping[str, Tensor], image: Tensor, num_classes: int
) -> None:
    missing = [key for key in ("boxes", "labels", "masks") if key not in target]
    if missing:
        raise ValueError(f"{where} must have boxes, labels and masks, got no {missing[0]}")
    labels, boxes, masks = target["labels"], target["boxes"], target["masks"]
    for key, value in (("labels", labels), ("boxes", boxes), ("masks", masks)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{where}: {key} must be a Tensor, got {type(value).__name__}")
        if value.device != image.device:
            raise ValueError(f"{where}: {key} must be on {image.device}, got {value.device}")
    if labels.dim() != 1 or labels.dtype != torch.int64:
        raise ValueError(
            f"{where}: labels must be int64 (n,), got {labels.dtype} {tuple(labels.shape)}"
        )
    count = labels.shape[0]
    if tuple(boxes.shape) != (count, 4) or not boxes.is_floating_point():
        raise ValueError(
            f"{where}: boxes must be floating ({count}, 4), got {boxes.dtype} {tuple(boxes.shape)}"
        )
    if tuple(masks.shape) != (count, *image.shape[1:]):
        raise ValueError(
            f"{where}: masks must be {(count, *image.shape[1:])}, got {tuple(masks.shape)}"
        )
    if masks.dtype not in (torch.uint8, torch.bool):
        raise TypeError(f"{where}: masks must be uint8 or bool, got {masks.dtype}")
    if count == 0:
        return
    low, high = labels.min().item(), labels.max().item()
    if low < 1 or high >= num_classes:
        raise ValueError(
            f"{where}: labels must be from 1 to {num_classes - 1}, got {low if low < 1 else high}"
        )
    if not boxes.isfinite().all() or (boxes[:, 2:] < boxes[:, :2]).any():
        raise ValueError(f"{where}: boxes must be finite, x1 <= x2 and y1 <= y2, got {boxes}")
