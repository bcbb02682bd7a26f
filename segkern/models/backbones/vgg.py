"""The convolutions of VGG16 under torchvision's numbers, with pools and rates to choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from segkern.models._vgg import VGG16_STAGES
from segkern.models.backbones.atrous import use_atrous
from segkern.models.backbones.resnet import scale_channels


@dataclass(frozen=True)
class Pool:
    """A max pool of Caffe's, which rounds up; ``kernel`` 0 is none."""

    kernel: int
    stride: int = 1
    padding: int = 0


class VGG16Features(nn.Module):
    """VGG16's 13 convolutions with bias and ReLU, numbered as torchvision's ``features``.

    ``features.28`` is conv5_3. A pool left out leaves its number free.

    Args:
        in_channels: Channels of the image.
        pools: The five pools.
        rate5: Dilation of the convolutions of stage 5.
        padded: Whether convolutions keep the size; otherwise they have no padding at all.
        width: Factor on all channels.

    Forward returns the features and the outputs of the five pools.
    """

    def __init__(
        self,
        in_channels: int,
        pools: Sequence[Pool],
        *,
        rate5: int = 2,
        padded: bool = True,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.ends: list[str] = []
        channels, number = in_channels, 0
        for stage, widths in enumerate(VGG16_STAGES, start=1):
            rate = rate5 if stage == 5 else 1
            for out in widths:
                out = scale_channels(out, width)
                conv = nn.Conv2d(channels, out, 3, padding=rate if padded else 0, dilation=rate)
                self.features.add_module(str(number), conv)
                self.features.add_module(str(number + 1), nn.ReLU(inplace=True))
                channels, number = out, number + 2
            pool = pools[stage - 1]
            if pool.kernel:
                layer = nn.MaxPool2d(pool.kernel, pool.stride, pool.padding, ceil_mode=True)
                self.features.add_module(str(number), layer)
                self.ends.append(str(number))
            number += 1
        self.channels = channels
        use_atrous(self)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, pooled = image, []
        for name, layer in self.features.named_children():
            x = layer(x)
            if name in self.ends:
                pooled.append(x)
        return x, pooled
