"""Networks written out in plain calls of torch, on tensors made when their names are asked for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class Named:
    """A state dict that fills itself with the layers that a computation asks for.

    The first call makes each tensor, in float32; later ones find it. Computed in float64.
    """

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(0)

    def tensor(self, key: str, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        if key not in self.state:
            values = torch.randn(shape, generator=self.generator)
            self.state[key] = scale * values + shift
        return self.state[key].double()

    def conv(self, key, x, channels, kernel, bias=True, **options) -> Tensor:
        size = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        inputs = x.shape[1] // options.get("groups", 1)
        scale = (2 / (inputs * size[0] * size[1])) ** 0.5
        weight = self.tensor(f"{key}.weight", channels, inputs, *size, scale=scale)
        own = self.tensor(f"{key}.bias", channels, scale=0.1) if bias else None
        return F.conv2d(x, weight, own, **options)

    def up(self, key, x, channels, kernel, stride, bias=True, **options) -> Tensor:
        scale = (2 / (x.shape[1] * 4)) ** 0.5
        weight = self.tensor(f"{key}.weight", x.shape[1], channels, kernel, kernel, scale=scale)
        own = self.tensor(f"{key}.bias", channels, scale=0.1) if bias else None
        return F.conv_transpose2d(x, weight, own, stride=stride, **options)

    def norm(self, key, x, eps=1e-5) -> Tensor:
        channels = x.shape[1]
        mean = self.tensor(f"{key}.running_mean", channels, scale=0.1)
        if f"{key}.running_var" not in self.state:
            self.state[f"{key}.running_var"] = torch.rand(channels, generator=self.generator) + 0.5
            self.state[f"{key}.num_batches_tracked"] = torch.tensor(3)
        variance = self.state[f"{key}.running_var"].double()
        weight = self.tensor(f"{key}.weight", channels, scale=0.1, shift=1.0)
        bias = self.tensor(f"{key}.bias", channels, scale=0.1)
        shape = (1, -1, 1, 1)
        x = (x - mean.view(shape)) / (variance + eps).sqrt().view(shape)
        return x * weight.view(shape) + bias.view(shape)

    def conv_norm_relu(self, conv, norm, x, channels, kernel, **options) -> Tensor:
        return self.norm(norm, self.conv(conv, x, channels, kernel, bias=False, **options)).relu()

    def layer(self, key, x, planes, stride=1, rates=(1,)) -> Tensor:
        """A layer of a ResNet of bottlenecks, its stride in the 3x3 convolution."""
        for i, rate in enumerate(rates):
            own = {"stride": stride if i == 0 else 1}
            at = f"{key}.{i}"
            y = self.conv_norm_relu(f"{at}.conv1", f"{at}.bn1", x, planes, 1)
            spread = {"padding": rate, "dilation": rate}
            y = self.conv_norm_relu(f"{at}.conv2", f"{at}.bn2", y, planes, 3, **own, **spread)
            y = self.norm(f"{at}.bn3", self.conv(f"{at}.conv3", y, 4 * planes, 1, bias=False))
            if i == 0:
                x = self.conv(f"{at}.downsample.0", x, 4 * planes, 1, bias=False, **own)
                x = self.norm(f"{at}.downsample.1", x)
            x = (x + y).relu()
        return x

    def basic_layer(self, key, x, planes, stride=1, blocks=2) -> Tensor:
        """A layer of a ResNet of basic blocks."""
        for i in range(blocks):
            own = {"stride": stride if i == 0 else 1}
            at = f"{key}.{i}"
            y = self.conv_norm_relu(f"{at}.conv1", f"{at}.bn1", x, planes, 3, padding=1, **own)
            y = self.conv(f"{at}.conv2", y, planes, 3, bias=False, padding=1)
            y = self.norm(f"{at}.bn2", y)
            if i == 0 and stride != 1:
                x = self.conv(f"{at}.downsample.0", x, planes, 1, bias=False, **own)
                x = self.norm(f"{at}.downsample.1", x)
            x = (x + y).relu()
        return x


def align(x: Tensor, size) -> Tensor:
    """Bilinear, corner pixels onto corner pixels."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def image(height: int, width: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, channels, height, width, generator=generator, dtype=torch.float64)
