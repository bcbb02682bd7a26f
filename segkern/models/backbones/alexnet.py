"""The convolutions of AlexNet as Caffe's reference network (CaffeNet) has them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from segkern.models.backbones.resnet import scale_channels


class CaffeLRN(nn.LocalResponseNorm):
    """Over 5 channels, alpha 1e-4, beta 0.75, k 1: that of AlexNet and GoogLeNet in Caffe.

    Positions lie in one axis for it: torch averages pooled squares of (N, C, H, W) by a 3-D pool,
    whose backward on CUDA adds in no fixed order, those of (N, C, H * W) by a 2-D one.
    """

    def __init__(self) -> None:
        super().__init__(5, alpha=1e-4, beta=0.75, k=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(2)).unflatten(2, x.shape[2:])


class CaffeNetFeatures(nn.Module):
    """``conv1`` to ``conv5`` with bias and ReLU; 3x3 pools of stride 2, before normalisation.

    torchvision's AlexNet is another network: one tower, other channels, no normalisation.

    Args:
        in_channels: Channels of the image.
        border: Zeros around the image, the padding of ``conv1``.
        width: Factor on all channels.

    Forward returns the features at stride 32, and the pools at strides 16 and 8 by their stride,
    before they are normalised.
    """

    def __init__(self, in_channels: int, border: int, width: float = 1.0) -> None:
        super().__init__()
        # Even, for two groups.
        c1, c2, c3, c4, c5 = (
            2 * (-(-scale_channels(c, width) // 2)) for c in (96, 256, 384, 384, 256)
        )
        self.conv1 = nn.Conv2d(in_channels, c1, 11, stride=4, padding=border)
        self.conv2 = nn.Conv2d(c1, c2, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(c2, c3, 3, padding=1)
        self.conv4 = nn.Conv2d(c3, c4, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(c4, c5, 3, padding=1, groups=2)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm = CaffeLRN()
        self.channels = c5
        self.skip_channels = {16: c2, 8: c1}

    def forward(self, image: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        pool1 = self.pool(functional.relu(self.conv1(image)))
        pool2 = self.pool(functional.relu(self.conv2(self.norm(pool1))))
        x = functional.relu(self.conv3(self.norm(pool2)))
        x = functional.relu(self.conv4(x))
        x = self.pool(functional.relu(self.conv5(x)))
        return x, {16: pool2, 8: pool1}
