"""From 8-bit images to what a network expects."""

from __future__ import annotations

import torch
from torch import Tensor

from segkern.models._recipe import INPUT_MODES

# Blue, green, red; the mean that Caffe's networks subtract (ILSVRC, 0..255).
CAFFE_MEAN_BGR = (104.00699, 116.66877, 122.67892)
# Red, green, blue; torchvision's constants for images in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Blue, green, red; of the Cityscapes training set, as ESPNet's release has them.
ESPNET_MEAN_BGR = (72.3923111, 82.90893555, 73.15840149)
ESPNET_STD_BGR = (45.3192215, 46.15289307, 44.91483307)

# Means that modes subtract from blue, green, red in 0..255 and leave unscaled. Those of data sets
# are the ones of Yu and Koltun's networks.
BGR_MEANS = {
    "bgr": (0.0, 0.0, 0.0),
    "caffe": CAFFE_MEAN_BGR,
    "bgr_voc": (102.93, 111.36, 116.52),
    "bgr_camvid": (110.703, 108.778, 105.412),
    "bgr_cityscapes": (72.39, 82.91, 73.16),
}


def preprocess(images: Tensor, mode: str) -> Tensor:
    """Scale RGB images the way a network was trained on them.

    Args:
        images: ``(N, 3, H, W)`` or ``(3, H, W)``, RGB in 0..255, uint8 or floating.
        mode: ``"unit"``: RGB / 255. ``"caffe"``: BGR minus (104.00699, 116.66877, 122.67892).
            ``"bgr"``: BGR as it is. ``"imagenet"``: RGB / 255, minus the ImageNet mean, over its
            standard deviation. ``"symmetric"``: RGB * 2 / 255 - 1. ``"espnet"``: BGR, less the mean
            and over the standard deviation of Cityscapes, then / 255. ``"rgb_128"``: RGB - 128.
            ``"bgr_voc"``, ``"bgr_camvid"``, ``"bgr_cityscapes"``: BGR minus the data set's mean.

    Returns:
        A new tensor of the same shape and memory format: float32 for uint8 input, else the
        input's dtype.

    Raises:
        ValueError: If ``mode`` is unknown or there are not 3 channels.
        TypeError: If ``images`` is neither uint8 nor floating.

    Example:
        >>> import torch
        >>> preprocess(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), "unit").flatten()
        tensor([1., 1., 1.])
    """
    if mode not in INPUT_MODES:
        raise ValueError(f"preprocess: mode must be one of {', '.join(INPUT_MODES)}, got {mode!r}")
    if images.dim() not in (3, 4) or images.shape[-3] != 3:
        raise ValueError(
            f"preprocess: images must be (N, 3, H, W) or (3, H, W), got {tuple(images.shape)}"
        )
    if images.dtype == torch.uint8:
        images = images.float()
    elif not images.is_floating_point():
        raise TypeError(f"preprocess: images must be uint8 or floating, got {images.dtype}")

    if mode == "unit":
        return images / 255
    if mode == "symmetric":
        return images * (2 / 255) - 1
    if mode == "rgb_128":
        return images - 128
    if mode == "imagenet":
        scale = 255 * _channels(IMAGENET_STD, images)
        return (images - 255 * _channels(IMAGENET_MEAN, images)) / scale
    flipped = images.flip(-3)
    if mode == "espnet":
        scale = 255 * _channels(ESPNET_STD_BGR, images)
        return (flipped - _channels(ESPNET_MEAN_BGR, images)) / scale
    return flipped if mode == "bgr" else flipped - _channels(BGR_MEANS[mode], images)


def mean_pixel(mode: str) -> tuple[int, int, int]:
    """The RGB colour, 0..255, that ``mode`` brings nearest to 0: what images are padded with."""
    if mode == "unit":
        return (0, 0, 0)
    if mode in ("symmetric", "rgb_128"):
        return (128, 128, 128)
    if mode == "imagenet":
        return tuple(round(255 * value) for value in IMAGENET_MEAN)
    mean = ESPNET_MEAN_BGR if mode == "espnet" else BGR_MEANS[mode]
    return tuple(round(value) for value in reversed(mean))


def colour_scale(mode: str) -> tuple[float, float, float]:
    """Factors that bring differences of preprocessed colours back to those of 0..255."""
    if mode == "unit":
        return (255.0, 255.0, 255.0)
    if mode == "symmetric":
        return (127.5, 127.5, 127.5)
    if mode == "imagenet":
        return tuple(255 * value for value in IMAGENET_STD)
    if mode == "espnet":
        return tuple(255 * value for value in ESPNET_STD_BGR)
    return (1.0, 1.0, 1.0)


def to_levels(mode: str, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Scale and shift (channels, 1, 1), float32, from a network's input back to levels of 0..255.

    Channels keep their order, and what ``"caffe"`` and the like subtract stays subtracted: a level
    is one grey level of the 8-bit image, from wherever it is counted.

    Raises:
        ValueError: If ``mode`` is unknown, or is for 3 channels and there are others.

    Example:
        >>> scale, shift = to_levels("unit")
        >>> (torch.full((3, 1, 1), 0.5) * scale + shift).flatten()
        tensor([127.5000, 127.5000, 127.5000])
    """
    if mode not in INPUT_MODES:
        raise ValueError(f"to_levels: mode must be one of {', '.join(INPUT_MODES)}, got {mode!r}")
    like = torch.ones(channels, 1, 1)
    if mode in ("unit", "symmetric"):
        factor = 255.0 if mode == "unit" else 127.5
        return like * factor, torch.full_like(like, 127.5 if mode == "symmetric" else 0.0)
    if mode in ("imagenet", "espnet"):
        if channels != 3:
            raise ValueError(f"to_levels: mode {mode!r} needs 3 channels, got {channels}")
        if mode == "espnet":
            return 255 * _channels(ESPNET_STD_BGR, like), _channels(ESPNET_MEAN_BGR, like)
        return 255 * _channels(IMAGENET_STD, like), 255 * _channels(IMAGENET_MEAN, like)
    return like, torch.zeros_like(like)


def _channels(values: tuple[float, float, float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(3, 1, 1)
