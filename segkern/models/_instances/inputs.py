"""What instance networks are given: images and targets, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def check_images(network: str, images: object) -> None:
    """Refuse what is no list of finite float32 (3, H, W) images on one device.

    Raises:
        TypeError, ValueError: naming the image.
    """
    if not isinstance(images, (list, tuple)):
        raise TypeError(
            f"{network}: images must be a list of (3, H, W) tensors, got {type(images).__name__}"
        )
    if not images:
        raise ValueError(f"{network}: images must hold at least one image, got none")
    for i, image in enumerate(images):
        name = f"{network}: images[{i}]"
        if not isinstance(image, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(image).__name__}")
        if image.dtype != torch.float32:
            raise TypeError(f"{name} must be float32 in 0..1, got {image.dtype}")
        if image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise ValueError(
                f"{name} must be (3, H, W) with at least one pixel, got {tuple(image.shape)}"
            )
        if image.device != images[0].device:
            raise ValueError(f"{name} must be on {images[0].device}, got {image.device}")
    # One number an image, and one wait for the device: a sum is finite if all its terms are.
    finite = torch.stack([image.detach().sum() for image in images]).isfinite()
    if not finite.all():
        i = int((~finite).nonzero()[0])
        raise ValueError(f"{network}: images[{i}] must be finite, got NaN or infinity")


def check_targets(
    network: str,
    images: Sequence[Tensor],
    targets: object,
    num_classes: int,
    *,
    num_stuff: int | None = None,
) -> None:
    """Refuse targets that do not fit their images.

    Args:
        network: Name for messages.
        images: Checked by :func:`check_images`.
        targets: A dict an image: boxes float (n, 4) with x1 < x2 and y1 < y2; labels int64 (n,)
            from 1 to num_classes - 1; masks uint8 or bool (n, H, W) of the image's size.
        num_classes: Classes with the background.
        num_stuff: Where the network is panoptic, the number of its stuff classes; targets then
            hold "semantic" too, int64 (H, W) from 0 to num_stuff, or 255.

    Raises:
        TypeError, ValueError: naming the target and its key.
    """
    if not isinstance(targets, (list, tuple)):
        raise TypeError(
            f"{network}: targets must be a list of dicts, one an image, in training, "
            f"got {type(targets).__name__}"
        )
    if len(targets) != len(images):
        raise ValueError(
            f"{network}: targets must be one an image, {len(images)}, got {len(targets)}"
        )
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        _check_form(f"{network}: targets[{i}]", image, target, num_stuff is not None)
    _check_values(network, targets, num_classes, num_stuff)


def _check_form(name: str, image: Tensor, target: object, is_panoptic: bool) -> None:
    """Keys, types, shapes and devices, which wait for no device."""
    if not isinstance(target, Mapping):
        raise TypeError(f"{name} must be a dict, got {type(target).__name__}")
    keys = ("boxes", "labels", "masks") + (("semantic",) if is_panoptic else ())
    missing = [key for key in keys if key not in target]
    if missing:
        raise ValueError(
            f"{name} must have the keys {', '.join(keys)}, "
            f"got {', '.join(map(str, target)) or 'none'}"
        )
    height, width = image.shape[-2:]
    labels = target["labels"]
    count = labels.shape[0] if isinstance(labels, Tensor) and labels.dim() == 1 else "n"
    for key, dtypes, shape in (
        ("labels", (torch.int64,), (count,)),
        ("boxes", (torch.float32, torch.float64), (count, 4)),
        ("masks", (torch.uint8, torch.bool), (count, height, width)),
        ("semantic", (torch.int64,), (height, width)),
    ):
        if key not in keys:
            continue
        value = target[key]
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}[{key!r}] must be a tensor, got {type(value).__name__}")
        if value.dtype not in dtypes:
            wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise TypeError(f"{name}[{key!r}] must be {wanted}, got {value.dtype}")
        if tuple(value.shape) != shape:
            wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
            raise ValueError(f"{name}[{key!r}] must be ({wanted}), got {tuple(value.shape)}")
        if value.device != image.device:
            raise ValueError(f"{name}[{key!r}] must be on {image.device}, got {value.device}")


def _check_values(
    network: str,
    targets: Sequence[Mapping[str, Tensor]],
    num_classes: int,
    num_stuff: int | None,
) -> None:
    """Boxes and labels of the whole batch, waiting for the device once."""
    boxes = torch.cat([target["boxes"].detach().float() for target in targets])
    labels = torch.cat([target["labels"] for target in targets])
    bad_box = ~((boxes[:, 2:] > boxes[:, :2]).all(1) & boxes.isfinite().all(1))
    bad_label = (labels < 1) | (labels >= num_classes)
    bad = (bad_box | bad_label).any()
    if num_stuff is not None:
        for target in targets:
            bad = bad | _bad_stuff(target["semantic"], num_stuff).any()
    if not bad:
        return
    owners = [i for i, target in enumerate(targets) for _ in range(len(target["labels"]))]
    if bad_box.any():
        k = int(bad_box.nonzero()[0])
        raise ValueError(
            f"{network}: targets[{owners[k]}]['boxes'] must be finite with x1 < x2 and y1 < y2, "
            f"got {[round(v, 3) for v in boxes[k].tolist()]}"
        )
    if bad_label.any():
        k = int(bad_label.nonzero()[0])
        raise ValueError(
            f"{network}: targets[{owners[k]}]['labels'] must be from 1 to {num_classes - 1}, "
            f"got {int(labels[k])}"
        )
    for i, target in enumerate(targets):
        wrong = _bad_stuff(target["semantic"], num_stuff)
        if wrong.any():
            raise ValueError(
                f"{network}: targets[{i}]['semantic'] must be from 0 to {num_stuff}, or 255, "
                f"got {int(target['semantic'][wrong][0])}"
            )


def _bad_stuff(semantic: Tensor, num_stuff: int) -> Tensor:
    return (semantic < 0) | ((semantic > num_stuff) & (semantic != 255))
