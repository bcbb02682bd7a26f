"""Input sizes a network can take: padding to them, refusing others, tiny feature maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

PAD_MODES = {"replicate": "replicate", "reflect": "reflect", "zeros": "constant"}


def check_pad_mode(network: str, pad_mode: str) -> None:
    """Raise ValueError unless ``pad_mode`` is ``"replicate"``, ``"reflect"`` or ``"zeros"``."""
    if pad_mode not in PAD_MODES:
        raise ValueError(
            f"{network}: pad_mode must be one of {', '.join(PAD_MODES)}, got {pad_mode!r}"
        )


def pad_to_valid(
    network: str,
    image: Tensor,
    *,
    multiple: int = 1,
    minimum: int = 1,
    pad_mode: str = "replicate",
    strict_size: bool = False,
) -> Tensor:
    """Pad the bottom and the right of ``image`` to the nearest size the network can take.

    Args:
        network: Name for error messages.
        image: ``(N, C, H, W)``.
        multiple: H and W must be multiples of this.
        minimum: Smallest H and W, itself a multiple of ``multiple``.
        pad_mode: ``"replicate"`` repeats the border pixel, ``"reflect"`` mirrors without it,
            ``"zeros"`` writes zeros.
        strict_size: Refuse instead of padding.

    Returns:
        ``image`` itself where its size is valid, else a padded copy. The valid part starts at
        row 0 and column 0, so cropping back is ``[..., :H, :W]``.

    Raises:
        ValueError: If ``image`` has not 4 axes or an empty one, if ``strict_size`` is set and the
            size is not valid, or if the image is too small to be mirrored.
    """
    check_image(network, image)
    height, width = image.shape[-2:]
    pad_h = _missing(height, multiple, minimum)
    pad_w = _missing(width, multiple, minimum)
    if pad_h == 0 and pad_w == 0:
        return image
    if strict_size:
        raise ValueError(_size_message(network, height, width, multiple, minimum))
    if pad_mode == "reflect" and (pad_h >= height or pad_w >= width):
        raise ValueError(
            f"{network}: input {height}x{width} is too small to mirror up to "
            f"{height + pad_h}x{width + pad_w}; use pad_mode='replicate'"
        )
    return functional.pad(image, (0, pad_w, 0, pad_h), mode=PAD_MODES[pad_mode])


@dataclass(frozen=True)
class InputSize:
    """What a network whose maps are halved takes: called with an image, it checks and pads it.

    Attributes:
        network: Name for error messages.
        in_channels: Channels that the image must have.
        multiple, pad_mode, strict_size: As for :func:`pad_to_valid`.
    """

    network: str
    in_channels: int
    multiple: int
    pad_mode: str
    strict_size: bool

    @classmethod
    def of(cls, network: str, config: Any, multiple: int) -> InputSize:
        """That of a config with ``in_channels``, ``pad_mode`` and ``strict_size``."""
        return cls(network, config.in_channels, multiple, config.pad_mode, config.strict_size)

    def __post_init__(self) -> None:
        check_pad_mode(self.network, self.pad_mode)

    def __call__(self, image: Tensor) -> Tensor:
        check_image(self.network, image, self.in_channels)
        return pad_to_valid(
            self.network,
            image,
            multiple=self.multiple,
            pad_mode=self.pad_mode,
            strict_size=self.strict_size,
        )


def check_image(
    network: str, image: Tensor, channels: int | None = None, *, prepared: bool = True
) -> None:
    """Raise unless ``image`` is ``(N, C, H, W)``, floating point, with at least one pixel.

    Args:
        network: Name for the message.
        image: What the network was called with.
        channels: C, where it is known.
        prepared: Whether the image is what the network computes with; before its preprocessing it
            may have any dtype.

    Raises:
        TypeError: If it is no tensor, or not floating point.
        ValueError: If its axes or channels are others, or one is empty.
    """
    if not isinstance(image, Tensor):
        raise TypeError(f"{network}: input must be a tensor, got {type(image).__name__}")
    if prepared and not image.is_floating_point():
        raise TypeError(f"{network}: input must be floating point, got {image.dtype}")
    if image.dim() != 4 or image.shape[-1] == 0 or image.shape[-2] == 0:
        raise ValueError(
            f"{network}: input must be (N, C, H, W) with at least one pixel, "
            f"got {tuple(image.shape)}"
        )
    if channels is not None and image.shape[1] != channels:
        raise ValueError(
            f"{network}: input must have {channels} channels, got {tuple(image.shape)}"
        )


def crop_to(scores: Tensor, height: int, width: int) -> Tensor:
    """``scores[..., :height, :width]``, or ``scores`` itself where it has that size."""
    if scores.shape[-2:] == (height, width):
        return scores
    return scores[..., :height, :width]


def check_batch_statistics(network: str, layer: str, features: Tensor, training: bool) -> None:
    """Raise ValueError where ``layer``'s batch norm would have one value per channel to train on.

    Args:
        network: Name for the message.
        layer: Qualified name of the normalised layer.
        features: What the layer normalises, or a tensor of the same batch, height and width.
        training: Whether batch statistics are used.
    """
    if training and features.shape[0] * features.shape[2] * features.shape[3] == 1:
        raise ValueError(
            f"{network}: {layer} sees one 1x1 feature map in training, which has no variance for "
            "its batch norm; use a batch of 2 or more, a larger input, or eval()"
        )


def _missing(size: int, multiple: int, minimum: int) -> int:
    """Pixels up to the nearest valid size. Modulo, as export can prove it 0 for ``8 * Dim``."""
    return minimum - size if size < minimum else -size % multiple


def _size_message(network: str, height: int, width: int, multiple: int, minimum: int) -> str:
    rules = []
    if multiple > 1:
        rules.append(f"a multiple of {multiple}")
    if minimum > multiple:
        rules.append(f"at least {minimum}")

    def nearest(size: int, up: bool) -> int:
        valid = size + -size % multiple if up else size - size % multiple
        return max(minimum, multiple, valid)

    smaller = f"{nearest(height, False)}x{nearest(width, False)}"
    larger = f"{nearest(height, True)}x{nearest(width, True)}"
    sizes = f"{smaller} and {larger}" if smaller != larger else larger
    return (
        f"{network}: input height and width must be {' and '.join(rules)}, "
        f"got {height}x{width}; nearest valid: {sizes}"
    )
