"""How a trained network is applied to an image: scales, mirroring, windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkern import ops
from segkern.engine.errors import EngineError

MERGES = ("softmax", "logits")


@dataclass(frozen=True)
class Protocol:
    """What is averaged over for the scores of an image; by default the image alone, once, whole.

    scales: factors on the image's size, as (0.5, 0.75, 1, 1.25, 1.5, 1.75). flip: the mirror image
    too. window: (H, W) of overlapping windows each scale is run in, or None for the whole image.
    merge: what an image and its mirror image are averaged in, "softmax" probabilities (DeepLab) or
    "logits" (PSPNet); over windows and scales probabilities are averaged.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    merge: str = "softmax"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        if not self.scales or not all(scale > 0 for scale in self.scales):
            raise EngineError(f"scales must be numbers above 0, got {self.scales}")
        if self.window is not None and (len(self.window) != 2 or min(self.window) < 1):
            raise EngineError(f"window must be (H, W), both at least 1, got {self.window}")
        if self.merge not in MERGES:
            raise EngineError(f"merge must be one of {', '.join(MERGES)}, got {self.merge!r}")

    @property
    def plain(self) -> bool:
        """Whether it is one pass over the whole image."""
        return self.scales == (1.0,) and not self.flip and self.window is None

    def as_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return {
            "scales": list(self.scales),
            "flip": self.flip,
            "window": None if self.window is None else list(self.window),
            "merge": self.merge,
        }


def class_scores(network: nn.Module, inputs: Tensor, protocol: Protocol) -> Tensor:
    """Scores (N, C, H, W) of preprocessed images (N, 3, H, W), whose softmax is the probabilities.

    The network's own logits, at the size it gives, for one pass over the whole image; else
    the logarithm of the averaged probabilities at the images' size, float32. Scaled images keep
    corner pixels on corner pixels, their sides being (n - 1) * scale + 1; probabilities come back
    likewise.
    """
    if protocol.plain:
        return _whole_or_tiled(network, inputs)
    size = inputs.shape[-2:]
    total = None
    for scale in protocol.scales:
        scaled = _resize(inputs, [max(1, round((n - 1) * scale + 1)) for n in size])
        found = _resize(_probabilities(network, scaled, protocol), size)
        total = found if total is None else total + found
    return (total / len(protocol.scales)).clamp(min=1e-20).log()


def works_in_tiles(network: nn.Module, inputs: Tensor) -> bool:
    """Whether inputs are taken tile by tile: where they are larger than a tile of the network."""
    if not hasattr(network, "tiles"):
        return False
    return network.tiled_only or max(inputs.shape[-2:]) > network.tile


def tiled_labels(network: nn.Module, images: Tensor, prepare: Callable[[Tensor], Tensor]) -> Tensor:
    """Classes (N, H, W) int64 on the CPU of images as they are stored, tile by tile.

    Windows are preprocessed by `prepare` one at a time, and scores kept of one: what grows with the
    images is the labels alone.
    """
    labels = torch.empty(images.shape[0], *images.shape[-2:], dtype=torch.int64)
    for top, left, scores in network.tiles(images, prepare):
        height, width = scores.shape[-2:]
        labels[:, top : top + height, left : left + width] = scores.argmax(1).cpu()
    return labels


def window_starts(length: int, window: int) -> list[int]:
    """First pixels of windows that step by two thirds of themselves, the last shifted inward."""
    step = -(-2 * window // 3)
    count = -(-max(length - window, 0) // step) + 1
    return [min(i * step, max(length - window, 0)) for i in range(count)]


def _probabilities(network: nn.Module, inputs: Tensor, protocol: Protocol) -> Tensor:
    """Probabilities at the size of the inputs, averaged over windows that overlap."""
    if protocol.window is None:
        return _one_pass(network, inputs, protocol)
    size = inputs.shape[-2:]
    # Zero is the mean pixel once it is subtracted.
    missing = [max(w - n, 0) for w, n in zip(protocol.window, size, strict=True)]
    padded = F.pad(inputs, (0, missing[1], 0, missing[0]))
    height, width = protocol.window
    total = None
    for top in window_starts(padded.shape[-2], height):
        for left in window_starts(padded.shape[-1], width):
            part = padded[..., top : top + height, left : left + width]
            found = _one_pass(network, part, protocol)
            if total is None:
                total = found.new_zeros(*found.shape[:2], *padded.shape[-2:])
                visits = found.new_zeros(padded.shape[-2:])
            total[..., top : top + height, left : left + width] += found
            visits[top : top + height, left : left + width] += 1
    return (total / visits)[..., : size[0], : size[1]]


def _one_pass(network: nn.Module, inputs: Tensor, protocol: Protocol) -> Tensor:
    """Probabilities at the size of the inputs, averaged with those of the mirror image."""
    views: Sequence[Tensor] = [_enlarged(network, inputs)]
    if protocol.flip:
        views = [*views, _enlarged(network, inputs.flip(-1)).flip(-1)]
    if protocol.merge == "logits":
        return torch.stack(list(views)).mean(0).softmax(1)
    return torch.stack([view.softmax(1) for view in views]).mean(0)


def _whole_or_tiled(network: nn.Module, inputs: Tensor) -> Tensor:
    """Scores of one pass, or of a network's own tiles put together."""
    if not works_in_tiles(network, inputs):
        return network(inputs)["out"]
    whole = None
    for top, left, scores in network.tiles(inputs):
        if whole is None:
            whole = scores.new_empty(*scores.shape[:2], *inputs.shape[-2:])
        height, width = scores.shape[-2:]
        whole[..., top : top + height, left : left + width] = scores
    return whole


def _enlarged(network: nn.Module, inputs: Tensor) -> Tensor:
    scores = _whole_or_tiled(network, inputs).float()
    if scores.shape[-2:] == inputs.shape[-2:]:
        return scores
    return ops.resize_bilinear(scores, inputs.shape[-2:])


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    if list(maps.shape[-2:]) == list(size):
        return maps
    return ops.resize_bilinear(maps, size, align_corners=True)
