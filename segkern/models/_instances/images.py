"""From a list of images to a batch: normalised, resized, padded, and the targets with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segkern.models._resize import resize_centres

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Size = tuple[int, int]
Target = dict[str, Tensor]


class ImageList(NamedTuple):
    """A batch of images of several sizes.

    Attributes:
        tensors: (N, 3, H, W), normalised, each image in the upper left corner and 0 elsewhere.
        sizes: (height, width) of each image in the batch, without padding.
        original: (height, width) of each image as it was given.
    """

    tensors: Tensor
    sizes: list[Size]
    original: list[Size]


class PrepareImages(nn.Module):
    """Normalises images, resizes them and their targets, and pads them to one batch.

    An image is scaled by min(min_size / shorter side, max_size / longer side), bilinearly with
    half-pixel centres and without anti-aliasing, to sizes rounded down. The batch is padded at the
    bottom and right with zeros, after normalisation.

    Args:
        min_size: what the shorter side becomes; of several, training draws one for each image and
            evaluation takes the last.
        max_size: the most the longer side may become.
        mean, std: of the channels, in the scale of the images.
        divisor: height and width of the batch are multiples of this.
        network: name for error messages.

    Forward takes (3, H, W) float images, checked before, and targets or None; it returns the
    :class:`ImageList` and the targets in the batch's pixels: boxes scaled by the ratio of the sizes
    of each axis, masks (and "semantic" maps) resized by nearest neighbour, other keys as they are.
    In training one number per image is drawn from torch's generator, even for one size. The
    arithmetic is torchvision's.

    Example:
        >>> import torch
        >>> from segkern.models._instances.images import PrepareImages
        >>> batch, _ = PrepareImages(64, 96).eval()([torch.zeros(3, 32, 40), torch.zeros(3, 9, 9)])
        >>> tuple(batch.tensors.shape), batch.sizes
        ((2, 3, 64, 96), [(64, 80), (64, 64)])
    """

    def __init__(
        self,
        min_size: int | Sequence[int] = 800,
        max_size: int = 1333,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        divisor: int = 32,
        *,
        network: str = "PrepareImages",
    ) -> None:
        super().__init__()
        sizes = (min_size,) if isinstance(min_size, int) else tuple(min_size)
        if not sizes or any(not _is_positive(size) for size in sizes):
            raise ValueError(f"{network}: min_size must be positive ints, got {min_size!r}")
        for name, value in (("max_size", max_size), ("divisor", divisor)):
            if not _is_positive(value):
                raise ValueError(f"{network}: {name} must be a positive int, got {value!r}")
        self.min_size, self.max_size, self.divisor = sizes, max_size, divisor
        self.mean, self.std = tuple(mean), tuple(std)

    def extra_repr(self) -> str:
        return f"min_size={self.min_size}, max_size={self.max_size}, divisor={self.divisor}"

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[Target] | None]:
        resized = [self._resize(self._normalise(image)) for image in images]
        sizes = [(image.shape[-2], image.shape[-1]) for image in resized]
        original = [(image.shape[-2], image.shape[-1]) for image in images]
        batch = ImageList(self._pad(resized, sizes), sizes, original)
        if targets is None:
            return batch, None
        return batch, [
            _resize_target(target, old, new)
            for target, old, new in zip(targets, original, sizes, strict=True)
        ]

    def _normalise(self, image: Tensor) -> Tensor:
        mean = image.new_tensor(self.mean)[:, None, None]
        std = image.new_tensor(self.std)[:, None, None]
        return (image - mean) / std

    def _resize(self, image: Tensor) -> Tensor:
        size = resized_size(image.shape[-2:], self._draw_size(), self.max_size)
        if size == tuple(image.shape[-2:]):
            return image
        return resize_centres(image[None], size)[0]

    def _draw_size(self) -> int:
        if not self.training:
            return self.min_size[-1]
        draw = torch.empty(1).uniform_(0.0, float(len(self.min_size)))
        return self.min_size[int(draw.item())]

    def _pad(self, images: Sequence[Tensor], sizes: Sequence[Size]) -> Tensor:
        height, width = (
            math.ceil(max(size[axis] for size in sizes) / self.divisor) * self.divisor
            for axis in (0, 1)
        )
        batch = images[0].new_zeros((len(images), images[0].shape[0], height, width))
        for slot, image in zip(batch, images, strict=True):
            slot[:, : image.shape[1], : image.shape[2]].copy_(image)
        return batch


def resized_size(size: Sequence[int], min_size: int, max_size: int) -> Size:
    """(height, width) that an image of ``size`` is resized to; at least one pixel.

    Example:
        >>> from segkern.models._instances.images import resized_size
        >>> resized_size((480, 640), 800, 1333)
        (800, 1066)
    """
    scale = min(min_size / min(size), max_size / max(size))
    return max(1, math.floor(size[0] * scale)), max(1, math.floor(size[1] * scale))


def resize_boxes(boxes: Tensor, old: Size, new: Size) -> Tensor:
    """Boxes (n, 4) of an image of size ``old`` in the pixels of one of size ``new``.

    The ratios of the sizes are rounded to float32, as torchvision has them.
    """
    ratio = torch.tensor(new, dtype=torch.float32) / torch.tensor(old, dtype=torch.float32)
    ratio = ratio.to(boxes.device)
    return boxes * ratio[[1, 0, 1, 0]]


def _resize_target(target: Mapping[str, Tensor], old: Size, new: Size) -> Target:
    resized = dict(target)
    if old == new:
        return resized
    resized["boxes"] = resize_boxes(target["boxes"], old, new)
    for key in ("masks", "semantic"):
        if key in target:
            resized[key] = _resize_nearest(target[key], old, new)
    return resized


def _resize_nearest(maps: Tensor, old: Size, new: Size) -> Tensor:
    """Maps (..., H, W) of any dtype; a pixel is the one at floor(i * old / new)."""
    rows, columns = (_nearest_sources(o, n).to(maps.device) for o, n in zip(old, new, strict=True))
    return maps[..., rows[:, None], columns]


def _nearest_sources(old: int, new: int) -> Tensor:
    return (torch.arange(new) * (torch.tensor(old / new, dtype=torch.float32))).long()


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
